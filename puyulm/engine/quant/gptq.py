"""GPTQ: round column by column, and let the columns still to come make up for each error (Frantar et al. 2022)."""

from __future__ import annotations

import torch
from torch import Tensor

from puyulm.engine.quant.rounding import Grid, Weigh, find_grid, metric, pack
from puyulm.engine.quant.tensor import Bits, QuantizedWeight
from puyulm.errors import ConfigError

BLOCK = 128  # columns whose errors are gathered before the rest of the matrix is corrected
STRONGEST_DAMPING = 1.0


def gptq(
    weight: Tensor,
    moments: Tensor,
    bits: Bits,
    group_size: int | None,
    *,
    zero_point: bool = False,
    act_order: bool = False,
    damping: float = 0.01,
) -> QuantizedWeight:
    """Rounds a matrix so that its output, not each weight, changes least.

    Args:
        weight: `[N, K]`.
        moments: `[K, K]`, second moments of the inputs, up to a factor.
        act_order: Columns with the largest inputs first, on grids found beforehand.
        damping: Added to the diagonal, as a share of its mean; raised where the moments are still singular.

    Raises:
        ConfigError: The moments hold infinities or NaN.
    """
    columns = weight.shape[1]
    size = group_size or columns
    moments = moments.float()
    fixed = act_order or size > BLOCK
    weigh = metric(moments, size)
    grid = find_grid(weight.float().unflatten(1, (-1, size)), bits, zero_point, weigh, columns) if fixed else None
    order = torch.argsort(moments.diagonal(), descending=True) if act_order else torch.arange(columns)
    order = order.to(weight.device)
    upper = inverse_factor(moments[order][:, order], damping)
    if grid is not None:
        codes = _round_on(grid, weight.float()[:, order], upper, order // size)
        restored = torch.empty_like(codes)
        restored[:, order] = codes
        return pack(restored, grid, columns)
    return _round_in_groups(weight.float().clone(), upper, bits, size, zero_point, moments)


def inverse_factor(moments: Tensor, damping: float) -> Tensor:
    """`[K, K]`, upper triangular U with U^T U the inverse of the damped moments."""
    diagonal = moments.diagonal()
    if not bool(diagonal.isfinite().all()):
        raise ConfigError("the calibration activations hold infinities or NaN: is the checkpoint sound?")
    mean = diagonal.mean().clamp(min=1e-12)
    while True:
        damped = moments + torch.diag(torch.full_like(diagonal, float(damping * mean)))
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not int(failed):
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
        if not int(failed):
            return upper
        damping *= 10
        if damping > STRONGEST_DAMPING:
            raise ConfigError("the second moments of the calibration activations cannot be inverted; give more text")


def _round_in_groups(
    weight: Tensor, upper: Tensor, bits: Bits, size: int, zero_point: bool, moments: Tensor
) -> QuantizedWeight:
    """Rounds in order; a group's grid is found when its turn comes, from the weights as corrected by then."""
    columns = weight.shape[1]
    block = size * max(1, BLOCK // size)
    grids, codes = [], torch.empty_like(weight)
    for start in range(0, columns, block):
        stop = min(start + block, columns)
        rest, errors = weight[:, start:stop].clone(), []
        for begin in range(start, stop, size):
            group = slice(begin - start, begin - start + size)
            weigh: Weigh = metric(moments[begin : begin + size, begin : begin + size], size)
            grid = find_grid(rest[:, None, group], bits, zero_point, weigh, columns)
            grids.append(grid)
            for column in range(begin, begin + size):
                codes[:, column], error = _round_column(grid, rest, column - start, upper[column, column:stop])
                errors.append(error)
        weight[:, stop:] -= torch.stack(errors, 1) @ upper[start:stop, stop:]
    joined = Grid(bits, torch.cat([g.scales for g in grids], 1), torch.cat([g.zeros for g in grids], 1))
    return pack(codes, joined, columns)


def _round_on(grid: Grid, weight: Tensor, upper: Tensor, groups: Tensor) -> Tensor:
    """Rounds columns in the order given, each on the grid of its group `[K]`; returns codes in the same order."""
    columns, codes = weight.shape[1], torch.empty_like(weight)
    of_column = groups.tolist()
    for start in range(0, columns, BLOCK):
        stop = min(start + BLOCK, columns)
        rest, errors = weight[:, start:stop].clone(), []
        for column in range(start, stop):
            group = of_column[column]
            own = Grid(grid.bits, grid.scales[:, group : group + 1], grid.zeros[:, group : group + 1])
            codes[:, column], error = _round_column(own, rest, column - start, upper[column, column:stop])
            errors.append(error)
        weight[:, stop:] -= torch.stack(errors, 1) @ upper[start:stop, stop:]
    return codes


def _round_column(grid: Grid, rest: Tensor, place: int, row: Tensor) -> tuple[Tensor, Tensor]:
    """Rounds one column of a block and corrects those behind it; the codes `[N]`, and the error `[N]` for the rest."""
    column = rest[:, place, None, None]
    codes = grid.codes(column)
    error = ((column - grid.values(codes)) / row[0]).view(-1)
    rest[:, place + 1 :] -= error[:, None] * row[1:]
    return codes.view(-1), error
