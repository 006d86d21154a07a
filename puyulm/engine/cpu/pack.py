"""Replaces the parts of a decoder by those that run fast on a CPU."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from puyulm.engine.cpu import block, dense, onednn
from puyulm.engine.cpu.layers import fuse_layers
from puyulm.model.decoder import Block, Decoder, RMSNorm


@torch.no_grad()
def pack_for_inference(model: Decoder, weights: torch.dtype | None = None) -> Decoder:
    """Makes a decoder on a CPU compute in float32 from weights in the order that its kernels read.

    In place: each linear layer becomes a `DenseLinear` (without a C compiler a `PackedLinear`), each layer a
    `CpuBlock`. Linear layers of other kinds, say of quantised weights, stay. Weights are packed one after another and
    their originals released, so that memory grows by one matrix at most; embeddings tied to the head are looked up in
    its packed weight.

    A bfloat16 decoder keeps its weights in bfloat16 and gives, bit for bit, what it would give with the same values in
    float32. `embed.weight` then is an empty tensor of the activations' type.

    Decoders elsewhere, in other types or split over ranks, and machines with neither compiler nor oneDNN, are left
    alone. So is one that is packed already. A packed decoder can neither be saved nor trained.

    Args:
        weights: torch.float32 or torch.bfloat16, to which weights are rounded; None: their own type. Without a
            compiler always float32.

    Returns:
        The same decoder.
    """
    if weights not in (None, torch.float32, torch.bfloat16):
        raise ValueError(f"weights can be packed in float32 and bfloat16, not in {weights}")
    pack = _packer(weights)
    if pack is None or not _packable(model.embed.weight):
        return model
    tied = isinstance(model.embed, nn.Embedding) and getattr(model.head, "weight", None) is model.embed.weight
    try:
        _replace(model, nn.Linear, lambda linear: pack(linear) if _packable(linear.weight) else linear)
    except RuntimeError:  # oneDNN's operator is there, but not for this processor
        return model
    if tied and isinstance(model.head, dense.DenseLinear):
        model.embed = dense.PanelEmbedding(model.head)  # type: ignore[assignment]
    elif isinstance(model.embed, nn.Embedding) and model.embed.weight.dtype != torch.float32:
        model.embed = dense.WideEmbedding(model.embed)  # type: ignore[assignment]
    if block.available():
        _replace(model, Block, lambda layer: block.CpuBlock(layer) if _can_add(layer) else layer)
    _replace(model, RMSNorm, block.CpuRMSNorm if block.available() else _widened)
    fuse_layers(model)
    return model


def _packer(weights: torch.dtype | None) -> Callable[[nn.Linear], nn.Module] | None:
    if dense.available():
        return lambda linear: dense.DenseLinear(linear, weights)
    return onednn.PackedLinear if onednn.available() else None


def _packable(weight: Tensor) -> bool:
    plain = type(weight.data) is Tensor  # no DTensor
    return plain and weight.device.type == "cpu" and weight.dtype in (torch.float32, torch.bfloat16)


def _can_add(layer: Block) -> bool:
    linears = (layer.attention.qkv, layer.attention.out, layer.mlp.gate_up, layer.mlp.down)
    return type(layer) is Block and all(hasattr(linear, "add_to") for linear in linears)


def _widened(norm: RMSNorm) -> RMSNorm:
    return norm.float()


def _replace(model: nn.Module, kind: type[nn.Module], replacement: Callable) -> None:
    """Places, not modules: a list of the modules would keep every original alive to the end."""
    places = [
        (owner, name) for owner in model.modules() for name, child in owner.named_children() if isinstance(child, kind)
    ]
    for owner, name in places:
        setattr(owner, name, replacement(getattr(owner, name)))
