"""Names and shapes of published tensors, and where each lives in our parameters.

Two layouts cover the family. InternLM2's has one grouped `wqkv`, which is ours as it stands. Llama's, shared by the
first and third generation, has separate q, k, v, gate and up matrices, which are rows of our fused ones. A `Slot`
says which rows; reading and writing through it are exact inverses, so that round trips are bit-exact.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from puyulm.model.config import ModelConfig

Layout = Literal["internlm2", "llama"]


@dataclass(frozen=True)
class Slot:
    """Where one published tensor lives.

    Attributes:
        parameter: Name of our parameter.
        shape: Shape of the published tensor.
        view: Our parameter's shape seen as `[groups, parts, ...]`; None where it is the published tensor as it stands.
        parts: First and past-the-last part of every group that this tensor holds; without a view, nothing.
    """

    parameter: str
    shape: tuple[int, ...]
    view: tuple[int, ...] | None = None
    parts: tuple[int, int] = (0, 0)

    def rows(self, parameter: Tensor) -> Tensor:
        """The parameter's rows that hold this tensor (a view, not contiguous where rows are interleaved)."""
        return parameter if self.view is None else parameter.view(self.view)[:, slice(*self.parts)]

    def store(self, parameter: Tensor, published: Tensor) -> None:
        """Copies the published tensor into the parameter, converting dtype and device."""
        rows = self.rows(parameter)
        rows.copy_(published.view(rows.shape))

    def extract(self, parameter: Tensor) -> Tensor:
        """The published tensor, contiguous."""
        return self.rows(parameter).reshape(self.shape).contiguous()


def layout_of(config: ModelConfig) -> Layout:
    """The layout of the family's own published checkpoints."""
    return "internlm2" if config.family == "internlm2" else "llama"


def published_tensors(config: ModelConfig, layout: Layout) -> dict[str, Slot]:
    """Every tensor of a published checkpoint, in the order it is written: name -> slot."""
    names = _INTERNLM2 if layout == "internlm2" else _LLAMA
    vocab, hidden = config.vocab_size, config.hidden_size
    slots = {names["embed"]: Slot("embed.weight", (vocab, hidden))}
    for index in range(config.num_layers):
        for name, slot in _layer(config, layout):
            slots[f"model.layers.{index}.{name}"] = Slot(
                f"layers.{index}.{slot.parameter}", slot.shape, slot.view, slot.parts
            )
    slots["model.norm.weight"] = Slot("norm.weight", (hidden,))
    if config.head == "reward":
        slots[names["reward"]] = Slot("head.weight", (1, hidden))
    elif not config.tie_embeddings:
        slots[names["head"]] = Slot("head.weight", (vocab, hidden))
    return slots


_INTERNLM2 = {"embed": "model.tok_embeddings.weight", "head": "output.weight", "reward": "v_head.weight"}
_LLAMA = {"embed": "model.embed_tokens.weight", "head": "lm_head.weight", "reward": "score.weight"}


def _layer(config: ModelConfig, layout: Layout) -> Iterator[tuple[str, Slot]]:
    """The tensors of one layer: name below `model.layers.N.` -> slot below `layers.N.`."""
    hidden, inter = config.hidden_size, config.intermediate_size
    heads = config.num_heads * config.head_dim
    if layout == "internlm2":
        yield "attention_norm.weight", Slot("attention_norm.weight", (hidden,))
        yield from _linear("attention.wqkv", "attention.qkv", config.qkv_size, hidden, config.qkv_bias)
        yield from _linear("attention.wo", "attention.out", hidden, heads, config.out_bias)
        yield "ffn_norm.weight", Slot("mlp_norm.weight", (hidden,))
        gate, up, down = "feed_forward.w1", "feed_forward.w3", "feed_forward.w2"
    else:
        yield "input_layernorm.weight", Slot("attention_norm.weight", (hidden,))
        group = (config.num_kv_heads, config.q_per_kv + 2, config.head_dim)
        q, per_part = config.q_per_kv, config.num_kv_heads * config.head_dim
        for name, rows, parts in (
            ("q_proj", heads, (0, q)),
            ("k_proj", per_part, (q, q + 1)),
            ("v_proj", per_part, (q + 1, q + 2)),
        ):
            yield from _linear(f"self_attn.{name}", "attention.qkv", rows, hidden, config.qkv_bias, group, parts)
        yield from _linear("self_attn.o_proj", "attention.out", hidden, heads, config.out_bias)
        yield "post_attention_layernorm.weight", Slot("mlp_norm.weight", (hidden,))
        gate, up, down = "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"
    group = (config.mlp_groups, 2, inter // config.mlp_groups)
    yield from _linear(gate, "mlp.gate_up", inter, hidden, config.mlp_bias, group, (0, 1))
    yield from _linear(up, "mlp.gate_up", inter, hidden, config.mlp_bias, group, (1, 2))
    yield from _linear(down, "mlp.down", hidden, inter, config.mlp_bias)


def _linear(
    name: str,
    parameter: str,
    rows: int,
    columns: int,
    bias: bool,
    group: tuple[int, ...] | None = None,
    parts: tuple[int, int] = (0, 0),
) -> Iterator[tuple[str, Slot]]:
    view = None if group is None else (*group, columns)
    yield f"{name}.weight", Slot(f"{parameter}.weight", (rows, columns), view, parts)
    if bias:
        yield f"{name}.bias", Slot(f"{parameter}.bias", (rows,), group, parts)
