"""How a model is to be quantised."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from puyulm.engine.quant.tensor import Bits
from puyulm.errors import ConfigError
from puyulm.model.config import ModelConfig
from puyulm.model.memory import layer_matrices

Method = Literal["rtn", "awq", "gptq", "smoothquant", "fp8"]
Head = Literal["int8", "int4", "keep"]

GROUP_UNIT = 32  # what the kernels multiply at a time


@dataclass(frozen=True, kw_only=True)
class QuantSettings:
    """What `quantize_checkpoint` does to the matrices of a model.

    Attributes:
        method: "rtn" rounds each weight to the nearest value, with scales of least squared error. "awq" first enlarges
            the input channels that matter (Lin et al. 2023). "gptq" lets the weights that are not rounded yet make up
            for the error of those that are (Frantar et al. 2022). "smoothquant" moves outliers of activations into
            the weights, for 8-bit activations (Xiao et al. 2022). "fp8" stores e4m3 values with a scale a row.
        bits: Of a weight in the layers.
        group_size: Consecutive weights of a row that share a scale; None: the row.
        zero_point: Groups have a zero point as well (4 bits alone).
        head: What the language-model head is stored in, always rounded to nearest; embeddings are never quantised.
        alpha: SmoothQuant: 0 leaves the activations' outliers where they are, 1 moves them into the weights whole.
        act_order: GPTQ rounds the columns with the largest activations first. Scales then come from the matrix as it
            was, so that groups stay consecutive.
        damping: GPTQ: added to the Hessian's diagonal, as a share of its mean.

    Raises:
        ConfigError: From the constructor, when they do not go together.
    """

    method: Method = "rtn"
    bits: Bits = 4
    group_size: int | None = 32
    zero_point: bool = False
    head: Head = "int8"
    alpha: float = 0.5
    act_order: bool = False
    damping: float = 0.01

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            raise ConfigError(f"unknown method {self.method!r}; known are {', '.join(get_args(Method))}")
        if self.head not in get_args(Head):
            raise ConfigError(f"unknown kind of head {self.head!r}; known are {', '.join(get_args(Head))}")
        if self.bits not in get_args(Bits):
            raise ConfigError(f"weights can have 4 or 8 bits, not {self.bits!r}")
        if self.method in ("smoothquant", "fp8") and self.bits != 8:
            raise ConfigError(f"{self.method} has 8 bits, not {self.bits}; for 4 bits use rtn, awq or gptq")
        if self.method in ("smoothquant", "fp8") and self.group_size is not None:
            raise ConfigError(f"{self.method} has a scale a row, not groups; leave the group size out")
        if self.group_size is not None and (self.group_size < GROUP_UNIT or self.group_size % GROUP_UNIT):
            raise ConfigError(f"groups must have a multiple of {GROUP_UNIT} weights, not {self.group_size}")
        if self.zero_point and self.bits != 4:
            raise ConfigError("zero points go with 4 bits; 8 bits are symmetric")
        if not 0 <= self.alpha <= 1:
            raise ConfigError(f"alpha must be from 0 to 1, not {self.alpha:g}")
        if not 0 < self.damping < 1:
            raise ConfigError(f"damping must be between 0 and 1, not {self.damping:g}")

    @property
    def calibrated(self) -> bool:
        """Whether the method looks at activations."""
        return self.method in ("awq", "gptq", "smoothquant")

    def require_fits(self, config: ModelConfig) -> None:
        """Raises a ConfigError unless the groups divide the columns of every matrix of the model."""
        for rows, columns in layer_matrices(config):
            if self.group_size is not None and columns % self.group_size:
                fitting = [str(size) for size in (32, 64, 128) if _divides(size, config)]
                remedy = f"use {' or '.join(fitting)}" if fitting else "use whole rows (--group-size row)"
                raise ConfigError(
                    f"groups of {self.group_size} do not divide the {columns} columns of a {rows} x {columns} matrix of"
                    f" this model; {remedy}"
                )
            if self.bits == 4 and columns % 2:
                raise ConfigError(f"4 bits need an even number of columns, and a matrix of this model has {columns}")


def _divides(size: int, config: ModelConfig) -> bool:
    return all(columns % size == 0 for _, columns in layer_matrices(config))
