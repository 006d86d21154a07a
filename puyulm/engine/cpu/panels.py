"""The order in which the quantised kernels read weights."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from puyulm.engine.quant.tensor import QuantizedWeight

GROUP = 32
"""Inputs whose activations share a scale."""

PANEL = 16
"""Outputs that are computed side by side."""


@dataclass(frozen=True)
class PanelWeight:
    """A quantised weight in panels of 16 outputs, so that 4 activations, repeated, meet 16 outputs at once.

    N and K are filled up to multiples of 16 and 32. Scales keep their precision: it is read from memory with them.

    Attributes:
        codes: int32 `[panels, K / 4, 16]` of four 8-bit codes each, or `[panels, K / 8, 16]` of eight 4-bit codes: a
            byte holds a code of an even quad of inputs in its low half and one of the odd quad after it in its high.
        scales: `[panels, scale groups, 16]`, float16 or float32.
        zeros: uint8, like scales; None where all are 8 or there are none.
    """

    codes: Tensor
    scales: Tensor
    zeros: Tensor | None

    @classmethod
    def of(cls, weight: QuantizedWeight) -> PanelWeight:
        scales = weight.scales if weight.scales.dtype == torch.float16 else weight.scales.float()
        return cls(_codes(weight), _panels(scales), None if weight.zeros is None else _panels(weight.zeros))


def _codes(weight: QuantizedWeight) -> Tensor:
    if weight.bits == 8:
        return _panels(_quads(weight.codes))
    quads = _quads(torch.stack((weight.codes & 15, weight.codes >> 4), dim=-1).flatten(1))
    return _panels(quads[:, ::2] | quads[:, 1::2] << 4)


def _quads(codes: Tensor) -> Tensor:
    """`[N, K]` of bytes -> `[N, K / 4]` int32, with K filled up to groups of 32."""
    return F.pad(codes, (0, -codes.shape[1] % GROUP)).contiguous().view(torch.int32)


def _panels(values: Tensor) -> Tensor:
    """`[N, C]` -> `[panels, C, 16]`, with N filled up."""
    padded = F.pad(values, (0, 0, 0, -values.shape[0] % PANEL))
    return padded.unflatten(0, (-1, PANEL)).transpose(1, 2).contiguous()
