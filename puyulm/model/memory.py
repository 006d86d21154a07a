"""How large a model is: exact parameter counts, bytes by precision, key/value cache, longest context.

What the byte counts assume:

- "bf16": every parameter in 16 bits.
- "int8": the matrices of the layers in 8 bits with one 16-bit scale per row (output channel).
- "int4": the matrices of the layers in 4 bits with a 16-bit scale and a 16-bit zero point for every group of 128
  values of a row.
- Embeddings, head, norms and biases stay in 16 bits.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from puyulm.errors import ConfigError
from puyulm.model.config import ModelConfig

Precision = Literal["bf16", "int8", "int4"]
PRECISIONS: tuple[Precision, ...] = ("bf16", "int8", "int4")
INT4_GROUP = 128
WORKING_RESERVE = 0.10  # share of the memory kept for activations, logits and the allocator's waste

_UNITS = {"": 1, "b": 1} | {
    unit: base**power
    for power, letter in enumerate("kmgt", start=1)
    for unit, base in ((letter, 1024), (f"{letter}ib", 1024), (f"{letter}b", 1000))
}


@dataclass(frozen=True)
class ParameterCount:
    """Numbers of parameters by where they sit. Tied embeddings are counted once, in `embedding`."""

    embedding: int
    per_layer: int
    num_layers: int
    final_norm: int
    head: int

    @property
    def total(self) -> int:
        return self.embedding + self.per_layer * self.num_layers + self.final_norm + self.head


def layer_matrices(config: ModelConfig) -> tuple[tuple[int, int], ...]:
    """(rows, columns) of one layer's matrices: qkv, attention output, gate and up, down."""
    hidden, mlp = config.hidden_size, config.intermediate_size
    return (
        (config.qkv_size, hidden),
        (hidden, config.num_heads * config.head_dim),
        (2 * mlp, hidden),
        (hidden, mlp),
    )


def count_parameters(config: ModelConfig) -> ParameterCount:
    """Counts parameters to the unit."""
    hidden = config.hidden_size
    qkv, out, gate_up, down = layer_matrices(config)
    matrices = sum(rows * columns for rows, columns in (qkv, out, gate_up, down))
    biases = config.qkv_bias * qkv[0] + config.out_bias * out[0] + config.mlp_bias * (gate_up[0] + down[0])
    head = hidden if config.head == "reward" else 0 if config.tie_embeddings else config.vocab_size * hidden
    return ParameterCount(
        embedding=config.vocab_size * hidden,
        per_layer=matrices + biases + 2 * hidden,
        num_layers=config.num_layers,
        final_norm=hidden,
        head=head,
    )


def weight_bytes(config: ModelConfig, precision: Precision) -> int:
    """Bytes of all weights in a precision, under the assumptions at the top of this module."""
    total = count_parameters(config).total
    if precision == "bf16":
        return 2 * total
    quantised = 0
    for rows, columns in layer_matrices(config):
        if precision == "int8":
            quantised += rows * columns + 2 * rows
        else:
            groups = -(-columns // INT4_GROUP)
            quantised += (rows * columns + 1) // 2 + 4 * rows * groups
    matrices = sum(rows * columns for rows, columns in layer_matrices(config))
    return quantised * config.num_layers + 2 * (total - matrices * config.num_layers)


def kv_bytes_per_token(config: ModelConfig, precision: Precision = "bf16") -> int:
    """Bytes that one token's keys and values take in the cache, over all layers. In int8 and int4 each head's vector
    has a 32-bit scale and a 32-bit offset."""
    width = config.head_dim
    a_head = {"bf16": 2 * width, "int8": width + 8, "int4": -(-width // 32) * 16 + 8}[precision]
    return 2 * config.num_layers * config.num_kv_heads * a_head


def longest_context(config: ModelConfig, memory: int, precision: Precision, cache: Precision = "bf16") -> int:
    """Tokens whose keys and values fit beside the weights.

    Args:
        memory: Bytes of the device. `WORKING_RESERVE` of it is left for activations.
        precision, cache: Of the weights, and of keys and values.

    Returns:
        0 where the weights alone do not fit. The model's own limit (`max_position_embeddings`, rope scaling) is not
        applied.
    """
    free = int(memory * (1 - WORKING_RESERVE)) - weight_bytes(config, precision)
    return max(free // kv_bytes_per_token(config, cache), 0)


def parse_bytes(text: str) -> int:
    """Reads a size: "80GiB" and "80G" are binary (2**30), "24GB" is decimal (10**9), a bare number is bytes.

    Raises:
        ConfigError: The text is not a size.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    unit = _UNITS.get(match[2].lower()) if match else None
    if match is None or unit is None:
        raise ConfigError(f"'{text}' is not a size: write a number with a unit, like 80GiB, 24GB or 512MiB")
    size = int(float(match[1]) * unit)
    if size < 1:
        raise ConfigError(f"'{text}' is not a size: it must be at least one byte")
    return size


def format_bytes(count: float) -> str:
    """A size for people, in binary units: 14.41 GiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} B" if unit == "B" else f"{count:.2f} {unit}"
        count /= 1024
    return f"{count:.2f} TiB"
