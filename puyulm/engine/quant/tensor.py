"""A matrix in few bits: what every method of quantisation makes and every kernel reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Bits = Literal[4, 8]


@dataclass(frozen=True)
class QuantizedWeight:
    """A matrix `[N, K]` whose rows are cut into groups of `group_size` consecutive values, each with a scale.

    Attributes:
        codes: 8 bits: int8 `[N, K]`, from -127 to 127; the value is `code * scale`.
            4 bits: uint8 `[N, K / 2]`, two codes of 0 to 15 a byte, the first in the low half; the value is
            `(code - zero) * scale`.
        scales: `[N, K / group_size]`, float32 or float16; may be negative.
        zeros: 4 bits: uint8 `[N, K / group_size]`; None where every zero is 8. 8 bits: None.
        group_size: Divides K; K itself for a scale per row (output channel).
    """

    codes: Tensor
    scales: Tensor
    zeros: Tensor | None
    bits: Bits
    group_size: int

    @property
    def shape(self) -> tuple[int, int]:
        """(N, K)."""
        rows, columns = self.codes.shape
        return rows, columns * (2 if self.bits == 4 else 1)

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in (self.codes, self.scales, self.zeros) if part is not None)

    def integers(self) -> Tensor:
        """`[N, K]` int8: codes with their zeros taken off (from -15 to 15 for 4 bits)."""
        if self.bits == 8:
            return self.codes
        codes = torch.stack((self.codes & 15, self.codes >> 4), dim=-1).flatten(1).to(torch.int8)
        if self.zeros is None:
            return codes - 8
        return codes - self.zeros.to(torch.int8).repeat_interleave(self.group_size, dim=1)

    def dequantize(self) -> Tensor:
        """`[N, K]` in float32."""
        return self.integers().float() * self.scales.float().repeat_interleave(self.group_size, dim=1)
