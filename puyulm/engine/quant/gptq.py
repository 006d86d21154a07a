"""GPTQ: round column by column, and let the columns still to come make up for each error (Frantar et al. 2022)."""

from __future__ import annotations

import torch
from torch import Tensor

from puyulm.engine.quant.rounding import Grid, find_grid, metric, pack
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
    moments, weights = moments.float(), weight.float().T.contiguous()
    fixed = act_order or size > BLOCK
    grid = None
    if fixed:
        grid = find_grid(weights.unflatten(0, (-1, size)), bits, zero_point, metric(moments, size), columns)
    if not act_order:
        codes, grid = _round(weights, inverse_factor(moments, damping), bits, size, zero_point, moments, grid)
        return pack(codes.T, grid)
    assert grid is not None
    order = torch.argsort(moments.diagonal(), descending=True)
    upper = inverse_factor(moments[order][:, order], damping)
    codes = torch.empty_like(weights)
    codes[order] = _round_on(grid, weights[order], upper, (order // size).tolist())
    return pack(codes.T, grid)


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


def _round(
    weights: Tensor, upper: Tensor, bits: Bits, size: int, zero_point: bool, moments: Tensor, grid: Grid | None
) -> tuple[Tensor, Grid]:
    """Rounds columns in order; codes `[K, N]` and their grid. A grid that is not given is found a group at a time, when
    its turn comes, from the weights as corrected by then."""
    columns = len(weights)
    if grid is not None:
        return _round_on(grid, weights, upper, [column // size for column in range(columns)]), grid
    block = size * max(1, BLOCK // size)
    grids, codes = [], torch.empty_like(weights)
    for start in range(0, columns, block):
        stop = min(start + block, columns)
        rest = weights[start:stop].clone()
        errors = torch.empty_like(rest)
        for column in range(start, stop):
            place = column - start
            if column % size == 0:
                weigh = metric(moments[column : column + size, column : column + size], size)
                grids.append(find_grid(rest[None, place : place + size], bits, zero_point, weigh, columns))
            codes[column] = _round_column(grids[-1], rest, errors, place, upper[column, column:stop])
        weights[stop:] -= upper[start:stop, stop:].T @ errors
    scales, zeros = torch.cat([g.scales for g in grids]), torch.cat([g.zeros for g in grids])
    return codes, Grid(bits, scales, zeros)


def _round_on(grid: Grid, weights: Tensor, upper: Tensor, groups: list[int]) -> Tensor:
    """Rounds columns in the order given, each on the grid of its group; codes `[K, N]` in the same order."""
    columns, codes = len(weights), torch.empty_like(weights)
    for start in range(0, columns, BLOCK):
        stop = min(start + BLOCK, columns)
        rest = weights[start:stop].clone()
        errors = torch.empty_like(rest)
        for column in range(start, stop):
            group = slice(groups[column], groups[column] + 1)
            own = Grid(grid.bits, grid.scales[group], grid.zeros[group])
            codes[column] = _round_column(own, rest, errors, column - start, upper[column, column:stop])
        weights[stop:] -= upper[start:stop, stop:].T @ errors
    return codes


def _round_column(grid: Grid, rest: Tensor, errors: Tensor, place: int, row: Tensor) -> Tensor:
    """Rounds one column of a block, corrects those behind it and notes the error for what follows; codes `[N]`."""
    column = rest[None, place : place + 1]
    codes = grid.codes(column)
    errors[place] = ((column - grid.values(codes)) / row[0]).view(-1)
    rest[place + 1 :].addr_(row[1:], errors[place], alpha=-1)
    return codes.view(-1)
