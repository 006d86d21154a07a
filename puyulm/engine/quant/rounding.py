"""Rounding a matrix to few bits: which scale a group gets, and which code a weight.

The largest weight of a group gives its scale a start; shrinking it cuts the largest weights and rounds all others more
finely. The shrinking of least squared error is searched, and the scale then refitted to the codes. What counts as
error is a matter of the inputs: with their second moments the error of the matrix's output is what is made small, of
which AWQ's clipping is a special case (Lin et al. 2023, section 3).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from puyulm.engine.quant.tensor import Bits, QuantizedWeight
from puyulm.errors import ConfigError

SHRINK: dict[Bits, tuple[float, ...]] = {4: (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7), 8: (1.0, 0.95)}
LARGEST_BLOCK = 256  # of second moments; larger groups are measured by the diagonal alone
CHUNK = 1 << 18  # weights worked on at a time: what fits into a processor's cache

Weigh = Callable[[Tensor], Tensor]
"""The metric M of an error d `[groups, group_size, rows]`, as a function d -> M d; the squared error is `d . M d`."""


@dataclass(frozen=True)
class Grid:
    """The values that each group's codes can stand for.

    Rows come last everywhere in here, so that what a group shares is spread over long runs of memory.

    Attributes:
        scales: `[groups, 1, rows]`, already rounded to what is stored.
        zeros: `[groups, 1, rows]`, whole numbers; 8 (4 bits) or 0 (8 bits) where the grid is symmetric.
    """

    bits: Bits
    scales: Tensor
    zeros: Tensor

    def codes(self, weights: Tensor) -> Tensor:
        """The nearest code of each weight `[groups, group_size, rows]`, as float."""
        # A group of zeros has a scale of zero, and any code will do.
        steps = torch.where(self.scales == 0, 0, 1 / self.scales)
        low, high = (0, 15) if self.bits == 4 else (-127, 127)
        return (weights * steps).round_().add_(self.zeros).clamp_(low, high)

    def values(self, codes: Tensor) -> Tensor:
        return (codes - self.zeros).mul_(self.scales)

    def error(self, weights: Tensor) -> Tensor:
        """What rounding does to each weight."""
        return self.values(self.codes(weights)).sub_(weights)

    def where(self, chosen: Tensor, other: Grid) -> Grid:
        """This grid in the groups that are chosen `[groups, 1, rows]`, the other elsewhere."""
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
    columns = weight.shape[1]
    size = group_size or columns
    weigh = metric(moments, size)
    grids, codes = [], []
    for part in weight.split(max(16, CHUNK // columns)):
        groups = part.float().T.contiguous().unflatten(0, (-1, size))
        grid = find_grid(groups, bits, zero_point, weigh, columns, search=search)
        grids.append(grid)
        codes.append(grid.codes(groups).flatten(0, 1).T)
    scales, zeros = (torch.cat(parts, 2) for parts in zip(*((g.scales, g.zeros) for g in grids), strict=True))
    return pack(torch.cat(codes), Grid(bits, scales, zeros))


def find_grid(
    weights: Tensor, bits: Bits, zero_point: bool, weigh: Weigh, columns: int, *, search: bool = True
) -> Grid:
    """The grid of least error for groups of weights `[groups, group_size, rows]` of a matrix with so many columns."""
    dtype = scale_dtype(columns, weights.shape[1])
    if not search:
        return next(_candidates(weights, bits, zero_point, (1.0,), dtype))
    best: Grid | None = None
    least = torch.empty(0)
    for grid in _candidates(weights, bits, zero_point, SHRINK[bits], dtype):
        best, least = _better(grid, _squared(grid.error(weights), weigh), best, least)
    assert best is not None
    codes = best.codes(weights) - best.zeros
    along = _product(codes, weigh(codes))
    fitted = _product(weights, weigh(codes)) / along.clamp(min=1e-12)
    refitted = Grid(bits, _stored(torch.where(along > 0, fitted, best.scales), dtype), best.zeros)
    return _better(refitted, _squared(refitted.error(weights), weigh), best, least)[0]


def metric(moments: Tensor | None, group_size: int) -> Weigh:
    """The metric of errors that second moments of the inputs `[K, K]` make; None: each weight counts the same."""
    if moments is None:
        return lambda error: error
    groups = len(moments) // group_size
    if group_size > LARGEST_BLOCK:
        importance = moments.diagonal().reshape(groups, group_size, 1)
        return lambda error: error * importance
    blocks = moments.unflatten(0, (groups, group_size)).unflatten(2, (groups, group_size))
    blocks = blocks.diagonal(dim1=0, dim2=2).permute(2, 0, 1).contiguous()  # [groups, group_size, group_size]
    return lambda error: torch.bmm(blocks, error)


def pack(codes: Tensor, grid: Grid) -> QuantizedWeight:
    """Codes `[N, K]` on their grid, as they are stored.

    Raises:
        ConfigError: They hold infinities or NaN.
    """
    scales, zeros = grid.scales.squeeze(1).T.contiguous(), grid.zeros.squeeze(1).T.contiguous()
    size = codes.shape[1] // scales.shape[1]
    scales = scales.to(scale_dtype(codes.shape[1], size))
    if not (scales.isfinite().all() and codes.isfinite().all()):
        raise ConfigError("a matrix holds infinities or NaN, or values beyond 10^5, and cannot be quantised")
    if grid.bits == 8:
        return QuantizedWeight(codes.to(torch.int8).contiguous(), scales, None, 8, size)
    pairs = codes.to(torch.uint8).unflatten(1, (-1, 2))
    stored = None if bool((zeros == 8).all()) else zeros.to(torch.uint8)
    return QuantizedWeight((pairs[..., 0] | pairs[..., 1] << 4).contiguous(), scales, stored, 4, size)


def _candidates(
    weights: Tensor, bits: Bits, zero_point: bool, shrinks: tuple[float, ...], dtype: torch.dtype
) -> Iterator[Grid]:
    low, high = weights.amin(1, keepdim=True), weights.amax(1, keepdim=True)
    largest = torch.maximum(high, -low)
    # Codes reach one step further below zero than above: the sign of the scale turns the longer side to where the
    # largest weight is.
    extreme = torch.where(high >= -low, largest, -largest)
    eight = torch.full_like(largest, 8)
    for shrink in shrinks:
        if zero_point:
            bottom, top = shrink * low.clamp(max=0), shrink * high.clamp(min=0)
            scales = _stored((top - bottom) / 15, dtype)
            zeros = (-bottom / torch.where(scales == 0, 1, scales)).round().clamp(0, 15)
            yield Grid(bits, scales, torch.where(scales == 0, eight, zeros))
        elif bits == 8:
            yield Grid(8, _stored(shrink * largest / 127, dtype), torch.zeros_like(largest))
        else:
            yield Grid(4, _stored(-shrink * extreme / 8, dtype), eight)
            yield Grid(4, _stored(shrink * largest / 7, dtype), eight)


def _stored(scales: Tensor, dtype: torch.dtype) -> Tensor:
    return scales.to(dtype).float()


def _product(left: Tensor, right: Tensor) -> Tensor:
    return (left * right).sum(1, keepdim=True)


def _squared(error: Tensor, weigh: Weigh) -> Tensor:
    return _product(error, weigh(error))


def _better(grid: Grid, error: Tensor, best: Grid | None, least: Tensor) -> tuple[Grid, Tensor]:
    if best is None:
        return grid, error
    improved = error < least
    return grid.where(improved, best), torch.where(improved, error, least)
