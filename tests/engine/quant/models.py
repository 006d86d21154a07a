"""Models whose activations have what real ones have: a few channels far larger than the others, and correlations."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from puyulm.engine.quant.layerwise import Activations
from puyulm.model.attention import PackedAttention
from puyulm.model.checkpoint import save_model
from puyulm.model.decoder import Block, Decoder
from tests.conftest import tiny_decoder

OUTLIERS = (3, 17, 40)
OUTLIER_SIZE = 30.0


@torch.no_grad()
def outlier_decoder(**changes: object) -> Decoder:
    """A tiny decoder (64 wide, MLP of 96) whose norms, values and up projections make some channels large."""
    shape = {"vocab_size": 128, "max_position_embeddings": 256}
    decoder = tiny_decoder(seed=5, **(shape | changes))
    generator = torch.Generator().manual_seed(0)
    for layer in decoder.layers:
        assert isinstance(layer, Block)
        for norm in (layer.attention_norm, layer.mlp_norm):
            norm.weight.copy_(1 + 0.2 * torch.randn(norm.weight.shape, generator=generator))
            norm.weight[list(OUTLIERS)] *= OUTLIER_SIZE
        for linear in (layer.attention.qkv, layer.mlp.gate_up):
            linear.weight[:, list(OUTLIERS)] /= OUTLIER_SIZE / 3
        up = layer.mlp.gate_up.weight.unflatten(0, (-1, 2, layer.mlp.block))[:, 1]
        up[0, :4] *= 10
        layer.mlp.down.weight[:, :4] /= 5
    return with_biases(decoder)


@torch.no_grad()
def with_biases(decoder: Decoder) -> Decoder:
    """Gives the biases, which are made as zeros, values."""
    generator = torch.Generator().manual_seed(1)
    for name, parameter in decoder.named_parameters():
        if name.endswith(".bias"):
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return decoder


def tokens(rows: int, length: int, seed: int = 0, vocab_size: int = 128) -> Tensor:
    """Random tokens `[rows, length]`."""
    return torch.randint(0, vocab_size, (rows, length), generator=torch.Generator().manual_seed(seed))


def activations(decoder: Decoder, rows: Tensor) -> Activations:
    """The inputs of a decoder's first layer."""
    return Activations(decoder.config, rows, decoder.embed.weight.detach(), torch.device("cpu"))


@torch.no_grad()
def logits(decoder: Decoder, rows: Tensor) -> Tensor:
    """`[R, L, V]`."""
    attention = PackedAttention([rows.shape[1]] * len(rows))
    return decoder.logits(decoder(rows.flatten(), attention.positions, attention)).unflatten(0, rows.shape)


def save(decoder: Decoder, folder: Path) -> Path:
    """A checkpoint folder of a decoder."""
    save_model(decoder, folder)
    return folder


def correlated(rows: int, columns: int, seed: int = 0) -> Tensor:
    """Inputs `[rows, columns]` that lie near a subspace of a quarter of the dimensions."""
    generator = torch.Generator().manual_seed(seed)
    latent = torch.randn(rows, columns // 4, generator=generator)
    mixing = torch.randn(columns // 4, columns, generator=generator)
    return latent @ mixing / (columns // 4) ** 0.5 + 0.05 * torch.randn(rows, columns, generator=generator)
