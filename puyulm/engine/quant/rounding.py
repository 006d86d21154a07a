"""Rounding a matrix to few bits: which scale a group gets, and which code a weight.

The largest weight of a group gives its scale a start; shrinking it cuts the largest weights and rounds all others more
finely. The shrinking of least squared error is searched, and the scale then refitted to the codes. What counts as
error is a matter of the inputs: with their second moments the error of the matrix's output is what is made small, of
which AWQ's clipping is a special case (Lin et al. 2023, section 3).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from puyulm.engine.quant.tensor import Bits, QuantizedWeight
from puyulm.errors import ConfigError

SHRINK = tuple(1.0 - 0.025 * step for step in range(21))  # 1.0 to 0.5
LARGEST_BLOCK = 256  # of second moments; larger groups are measured by the diagonal alone
CHUNK = 1 << 20  # weights worked on at a time

Weigh = Callable[[Tensor], Tensor]
"""The metric M of an error d `[rows, groups, group_size]`, as a function d -> M d; the squared error is `d . M d`."""


@dataclass(frozen=True)
class Grid:
    """The values that each group's codes can stand for.

    Attributes:
        scales: `[rows, groups, 1]`, already rounded to what is stored.
        zeros: `[rows, groups, 1]`, whole numbers; 8 (4 bits) or 0 (8 bits) where the grid is symmetric.
    """

    bits: Bits
    scales: Tensor
    zeros: Tensor

    def codes(self, weights: Tensor) -> Tensor:
        """The nearest code of each weight `[rows, groups, group_size]`, as float."""
        # A group of zeros has a scale of zero, and any code will do.
        scaled = weights / torch.where(self.scales == 0, 1, self.scales)
        low, high = (0, 15) if self.bits == 4 else (-127, 127)
        return (scaled.round() + self.zeros).clamp(low, high)

    def values(self, codes: Tensor) -> Tensor:
        return (codes - self.zeros) * self.scales

    def nearest(self, weights: Tensor) -> Tensor:
        """Each weight rounded to the grid."""
        return self.values(self.codes(weights))

    def where(self, chosen: Tensor, other: Grid) -> Grid:
        """This grid in the groups that are chosen `[rows, groups, 1]`, the other elsewhere."""
        scales = torch.where(chosen, self.scales, other.scales)
        return Grid(self.bits, scales, torch.where(chosen, self.zeros, other.zeros))


def scale_dtype(columns: int, group_size: int) -> torch.dtype:
    """What scales are stored in: half precision for groups; a scale a row costs nothing at full precision."""
    return torch.float32 if group_size == columns else torch.float16


def quantize(
    weight: Tensor,
    bits: Bits,
    group_size: int | None,
    *,
    zero_point: bool = False,
    moments: Tensor | None = None,
    search: bool = True,
) -> QuantizedWeight:
    """Rounds a matrix to nearest, with the scales of least error.

    Args:
        weight: `[N, K]`, of any floating type.
        group_size: None for a scale a row.
        zero_point: Each group has its own zero (4 bits); without, 8.
        moments: `[K, K]`, second moments of the inputs, which make the error that of the output. Only what lies inside
            a group counts. None: the error is that of the weights.
        search: False takes the largest weight of a group as it is.

    Raises:
        ConfigError: The matrix holds infinities or NaN, or values beyond the range of half-precision scales.
    """
    rows, columns = weight.shape
    size = group_size or columns
    weigh = metric(moments, size)
    parts = [
        _quantize_rows(part.float().unflatten(1, (-1, size)), bits, zero_point, weigh, search)
        for part in weight.split(max(1, CHUNK // columns))
    ]
    grids, codes = [grid for grid, _ in parts], torch.cat([codes for _, codes in parts])
    return pack(codes.flatten(1), Grid(bits, *_joined(grids)), columns)


def find_grid(
    weights: Tensor, bits: Bits, zero_point: bool, weigh: Weigh, columns: int, *, search: bool = True
) -> Grid:
    """The grid of least error for groups of weights `[rows, groups, group_size]` of a matrix with so many columns."""
    dtype = scale_dtype(columns, weights.shape[2])
    best: Grid | None = None
    least = torch.empty(0)
    for shrink in SHRINK if search else (1.0,):
        for grid in _candidates(weights, bits, zero_point, shrink, dtype):
            error = _error(weights - grid.nearest(weights), weigh)
            best, least = _better(grid, error, best, least)
    assert best is not None
    if not search:
        return best
    codes = best.codes(weights) - best.zeros
    along = (codes * weigh(codes)).sum(-1, keepdim=True)
    fitted = (weights * weigh(codes)).sum(-1, keepdim=True) / along.clamp(min=1e-12)
    refitted = Grid(bits, _stored(torch.where(along > 0, fitted, best.scales), dtype), best.zeros)
    return _better(refitted, _error(weights - refitted.nearest(weights), weigh), best, least)[0]


def metric(moments: Tensor | None, group_size: int) -> Weigh:
    """The metric of errors that second moments of the inputs `[K, K]` make; None: each weight counts the same."""
    if moments is None:
        return lambda error: error
    if group_size > LARGEST_BLOCK:
        importance = moments.diagonal().unflatten(0, (-1, group_size))
        return lambda error: error * importance
    groups = len(moments) // group_size
    blocks = moments.unflatten(0, (groups, group_size)).unflatten(2, (groups, group_size))
    blocks = blocks.diagonal(dim1=0, dim2=2).permute(2, 0, 1).contiguous()  # [groups, group_size, group_size]
    return lambda error: torch.bmm(error.transpose(0, 1), blocks).transpose(0, 1)


def pack(codes: Tensor, grid: Grid, columns: int) -> QuantizedWeight:
    """Codes `[N, K]` and their grid `[N, groups, 1]` as they are stored."""
    scales, zeros = grid.scales.squeeze(2), grid.zeros.squeeze(2)
    size = columns // scales.shape[1]
    dtype = scale_dtype(columns, size)
    if not (scales.to(dtype).isfinite().all() and codes.isfinite().all()):
        raise ConfigError("the matrix holds infinities or NaN, or values beyond 10^5, and cannot be quantised")
    if grid.bits == 8:
        return QuantizedWeight(codes.to(torch.int8), scales.to(dtype), None, 8, size)
    pairs = codes.to(torch.uint8).unflatten(1, (-1, 2))
    stored = None if bool((zeros == 8).all()) else zeros.to(torch.uint8)
    return QuantizedWeight(pairs[..., 0] | pairs[..., 1] << 4, scales.to(dtype), stored, 4, size)


def _quantize_rows(
    weights: Tensor, bits: Bits, zero_point: bool, weigh: Weigh, search: bool
) -> tuple[Grid, Tensor]:
    columns = weights.shape[1] * weights.shape[2]
    grid = find_grid(weights, bits, zero_point, weigh, columns, search=search)
    return grid, grid.codes(weights)


def _candidates(weights: Tensor, bits: Bits, zero_point: bool, shrink: float, dtype: torch.dtype) -> list[Grid]:
    if zero_point:
        low = shrink * weights.amin(-1, keepdim=True).clamp(max=0)
        high = shrink * weights.amax(-1, keepdim=True).clamp(min=0)
        scales = _stored((high - low) / 15, dtype)
        zeros = (-low / torch.where(scales == 0, 1, scales)).round().clamp(0, 15)
        return [Grid(bits, scales, torch.where(scales == 0, 8, zeros))]
    largest = shrink * weights.abs().amax(-1, keepdim=True)
    if bits == 8:
        return [Grid(8, _stored(largest / 127, dtype), torch.zeros_like(largest))]
    # Codes reach one step further below zero than above: the sign of the scale turns the longer side to where the
    # largest weight is.
    eight = torch.full_like(largest, 8)
    extreme = torch.where(weights.amax(-1, keepdim=True) * shrink == largest, largest, -largest)
    return [Grid(4, _stored(largest / 7, dtype), eight), Grid(4, _stored(-extreme / 8, dtype), eight)]


def _stored(scales: Tensor, dtype: torch.dtype) -> Tensor:
    return scales.to(dtype).float()


def _error(error: Tensor, weigh: Weigh) -> Tensor:
    return (error * weigh(error)).sum(-1, keepdim=True)


def _better(grid: Grid, error: Tensor, best: Grid | None, least: Tensor) -> tuple[Grid, Tensor]:
    if best is None:
        return grid, error
    improved = error < least
    return grid.where(improved, best), torch.where(improved, error, least)


def _joined(grids: list[Grid]) -> tuple[Tensor, Tensor]:
    return torch.cat([grid.scales for grid in grids]), torch.cat([grid.zeros for grid in grids])
