"""The pass that quantises a checkpoint: layer by layer, with the calibration text's activations carried along.

One layer's weights are in memory at a time, beside the activations of the calibration text, which have already gone
through the quantised layers before: each layer is fitted to the inputs that it will see. Held-out text may go along
through the float layers, for the perplexity before.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from puyulm.engine.quant.float8 import quantize_float8
from puyulm.engine.quant.gptq import gptq
from puyulm.engine.quant.linear import AnyWeight, set_linear
from puyulm.engine.quant.rounding import quantize
from puyulm.engine.quant.scaling import awq_scales, scale_block, smoothquant_scales
from puyulm.engine.quant.settings import QuantSettings
from puyulm.engine.quant.source import FloatSource
from puyulm.engine.quant.statistics import Gatherer, InputStatistics
from puyulm.errors import CheckpointError, PuyuError
from puyulm.model.attention import PackedAttention
from puyulm.model.config import ModelConfig
from puyulm.model.decoder import Block
from puyulm.model.kernels import swiglu
from puyulm.model.rope import RopeTables, rope_tables
from puyulm.progress import Progress

MATRICES = ("attention.qkv", "attention.out", "mlp.gate_up", "mlp.down")
CHUNK_TOKENS = 4096  # of the activations inside a layer that exist at a time
LOGIT_TOKENS = 512


class Activations:
    """Hidden states of equally long rows of tokens on their way through the layers.

    Args:
        config: Of the model.
        tokens: `[R, L]`; each row is a document of its own.
        embedding: `[V, H]`.
        device: Where they live.
    """

    def __init__(self, config: ModelConfig, tokens: Tensor, embedding: Tensor, device: torch.device) -> None:
        self.config = config
        self.tokens = tokens.to(device)
        self.hidden = F.embedding(tokens, embedding).float().to(device)  # [R, L, H]

    def chunks(self) -> Iterator[tuple[Tensor, RopeTables, PackedAttention]]:
        """Some rows at a time: `[T, H]`, a view that may be written to, and what a block wants to know of them."""
        length = self.hidden.shape[1]
        for part in self.hidden.split(max(1, CHUNK_TOKENS // length)):
            attention = PackedAttention([length] * len(part), part.device)
            config = self.config
            rope = rope_tables(
                config.rope, config.head_dim, config.max_position_embeddings, attention.positions, attention.seq_lens,
                part.dtype,
            )  # fmt: skip
            yield part.view(-1, part.shape[-1]), rope, attention

    def advance(self, block: Block) -> None:
        """Runs them through a layer."""
        for x, rope, attention in self.chunks():
            x.copy_(block(x, rope, attention, 0))

    def perplexity(self, norm: nn.Module, head: nn.Module) -> float:
        """Of each token given those before it in its row, once all layers have been run."""
        total = torch.zeros((), dtype=torch.float64, device=self.hidden.device)
        for hidden, tokens in zip(self.hidden, self.tokens, strict=True):
            parts = zip(hidden[:-1].split(LOGIT_TOKENS), tokens[1:].split(LOGIT_TOKENS), strict=True)
            for x, targets in parts:
                total += F.cross_entropy(head(norm(x)).float(), targets, reduction="sum").double()
        rows, length = self.tokens.shape
        return math.exp(min(float(total) / (rows * (length - 1)), 700))


class LayerwisePass:
    """Quantises the parameters of a checkpoint in the order in which they are written.

    Args:
        source: The float checkpoint.
        calibration: `[R, L]` tokens, which calibrated methods need.
        held_out: `[R, L]` tokens on which the perplexity of the float model is measured on the way, or None.

    Attributes:
        perplexity: Of the float model on `held_out`, once all parameters have been given.
    """

    def __init__(
        self,
        source: FloatSource,
        settings: QuantSettings,
        calibration: Tensor | None,
        held_out: Tensor | None,
        device: torch.device,
    ) -> None:
        if settings.calibrated and calibration is None:
            raise PuyuError(f"{settings.method} needs calibration text")
        self._source, self._settings, self._device = source, settings, device
        self._calibration = calibration if settings.calibrated else None
        self._held_out = held_out
        self.perplexity: float | None = None

    @torch.no_grad()
    def parameters(self) -> Iterator[tuple[str, Tensor | AnyWeight]]:
        """Name and value of every parameter: embeddings, layers, final norm, head (unless it stays tied)."""
        source, config = self._source, self._source.config
        embedding = source.read("embed.weight")
        seen = self._activations(self._calibration, embedding)
        plain = self._activations(self._held_out, embedding)
        yield "embed.weight", embedding
        del embedding
        with Progress(f"quantising ({self._settings.method})", total=config.num_layers, unit="layer") as progress:
            for index in range(config.num_layers):
                block = source.block(index, self._device)
                if plain is not None:
                    plain.advance(block)
                try:
                    quantize_block(block, seen, self._settings, source.dtype)
                except PuyuError as error:
                    raise CheckpointError(f"{source.path}: layer {index}: {error}") from None
                if seen is not None:
                    seen.advance(block)
                for name, value in block_parameters(block):
                    yield f"layers.{index}.{name}", value
                progress.advance()
        yield from self._rest(seen, plain)

    def _activations(self, tokens: Tensor | None, embedding: Tensor) -> Activations | None:
        if tokens is None:
            return None
        return Activations(self._source.config, tokens, embedding, self._device)

    def _rest(self, seen: Activations | None, plain: Activations | None) -> Iterator[tuple[str, Tensor | AnyWeight]]:
        source, settings = self._source, self._settings
        norm, head = source.final(self._device)
        if plain is not None:
            self.perplexity = plain.perplexity(norm, head)
        yield "norm.weight", norm.weight.detach()
        weight = head.weight.detach()
        if source.config.head == "reward" or (settings.head == "keep" and not source.config.tie_embeddings):
            yield "head.weight", weight
        elif settings.head != "keep":
            moments = None
            if seen is not None and settings.method != "smoothquant":
                gatherer = Gatherer(moments=True)
                for x, _, _ in seen.chunks():
                    gatherer.add(norm(x))
                moments = gatherer.statistics().moments
            bits, size = (4 if settings.head == "int4" else 8), settings.group_size
            yield "head.weight", quantize(weight, bits, size, moments=moments)  # type: ignore[arg-type]


def quantize_block(block: Block, seen: Activations | None, settings: QuantSettings, dtype: torch.dtype) -> None:
    """Replaces the matrices of a float layer by quantised ones, in place.

    Args:
        seen: The calibration text's inputs of the layer, for methods that want them.
        dtype: What norms are stored in.
    """
    statistics: dict[str, InputStatistics] = {}
    if settings.method in ("awq", "smoothquant"):
        assert seen is not None
        statistics = observe(block, seen, MATRICES, moments=settings.method == "awq")
        choose = (
            functools.partial(awq_scales, settings=settings)
            if settings.method == "awq"
            else functools.partial(smoothquant_scales, alpha=settings.alpha)
        )
        statistics = scale_block(block, statistics, choose, dtype)
    for name in MATRICES:
        if settings.method == "gptq":
            assert seen is not None
            statistics = observe(block, seen, (name,), moments=True)
        weight = block.get_submodule(name).weight
        assert isinstance(weight, Tensor)
        quantised = _quantize(weight.detach(), statistics.get(name), settings)
        set_linear(block, name, quantised, "int8" if settings.method == "smoothquant" else None)


def observe(block: Block, seen: Activations, names: tuple[str, ...], *, moments: bool) -> dict[str, InputStatistics]:
    """Statistics of the inputs of some of a layer's matrices, as the layer stands."""
    gatherers = {name: Gatherer(moments=moments) for name in names}
    for x, rope, attention in seen.chunks():
        missing = set(names)
        for name, inputs in linear_inputs(block, x, rope, attention):
            if name in missing:
                gatherers[name].add(inputs)
                missing.remove(name)
            if not missing:
                break
    return {name: gatherer.statistics() for name, gatherer in gatherers.items()}


def linear_inputs(
    block: Block, x: Tensor, rope: RopeTables, attention: PackedAttention
) -> Iterator[tuple[str, Tensor]]:
    """The inputs of a layer's four matrices, each computed when it is asked for."""
    inputs = block.attention_norm(x)
    yield "attention.qkv", inputs
    q, k, v = block.attention.project(inputs, rope)
    mixed = attention(0, q, k, v)
    yield "attention.out", mixed.flatten(1)
    x = x + block.attention(mixed)
    inputs = block.mlp_norm(x)
    yield "mlp.gate_up", inputs
    yield "mlp.down", swiglu(block.mlp.gate_up(inputs), block.mlp.block)


def block_parameters(block: Block) -> Iterator[tuple[str, Tensor | AnyWeight]]:
    """Names and values of a quantised layer's parameters, in the order of published files."""
    norms = {"attention.qkv": "attention_norm", "mlp.gate_up": "mlp_norm"}
    for name in MATRICES:
        if name in norms:
            yield f"{norms[name]}.weight", block.get_submodule(norms[name]).weight.detach()  # type: ignore[operator]
        linear = block.get_submodule(name)
        yield f"{name}.weight", linear.weight  # type: ignore[misc]
        if isinstance(linear.bias, Tensor):
            yield f"{name}.bias", linear.bias


def _quantize(weight: Tensor, seen: InputStatistics | None, settings: QuantSettings) -> AnyWeight:
    bits, size, zero_point = settings.bits, settings.group_size, settings.zero_point
    if settings.method == "fp8":
        return quantize_float8(weight)
    if settings.method == "gptq":
        assert seen is not None
        return gptq(
            weight, seen.require_moments(), bits, size, zero_point=zero_point, act_order=settings.act_order,
            damping=settings.damping,
        )  # fmt: skip
    moments = None if seen is None else seen.moments
    return quantize(weight, bits, size, zero_point=zero_point, moments=moments)
