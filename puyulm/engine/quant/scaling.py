"""Scales between a matrix and what feeds it: how AWQ and SmoothQuant prepare a layer without changing its outputs.

The inputs of each matrix are divided by a scale a channel and its columns multiplied by the same. The division costs
nothing: it is folded into the norm before (of qkv, and of gate and up), into the values (of the attention output), or
into up (of down).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from puyulm.engine.quant.rounding import quantize
from puyulm.engine.quant.settings import QuantSettings
from puyulm.engine.quant.statistics import InputStatistics
from puyulm.model.decoder import Block, RMSNorm

STEPS = 20  # exponents tried by AWQ, from 0 to 1
MAX_ROWS = 512  # of a matrix, on which AWQ tries them
SMALLEST = 1e-5  # magnitude of a channel, below which it counts as silent


@dataclass(frozen=True)
class Place:
    """A matrix of a block and how its inputs are scaled.

    Attributes:
        name: Of the linear inside the block.
        share: Takes a value a channel `[K]` to the same with the mean of all channels that must have one scale:
            query heads of a group read the same values.
        fold: Divides the inputs by scales `[K]` where they are made, rounding to the type that norms are stored in,
            and returns by what they are divided then.
    """

    name: str
    share: Callable[[Tensor], Tensor]
    fold: Callable[[Tensor, torch.dtype], Tensor]


def places(block: Block) -> tuple[Place, ...]:
    """The four matrices of a block. Down and the attention output come first: their scales go into rows of the others,
    which should be final when their own are searched."""
    heads = (-1, block.attention.q_per_kv, block.attention.head_dim)

    def share_heads(values: Tensor) -> Tensor:
        return values.view(heads).mean(1, keepdim=True).expand(-1, heads[1], -1).flatten()

    def fold_values(scales: Tensor, dtype: torch.dtype) -> Tensor:
        qkv = block.attention.qkv
        of_value = scales.view(heads)[:, 0]
        _rows(qkv.weight, (-1, heads[1] + 2, heads[2]))[:, -1] /= of_value[..., None]
        if qkv.bias is not None:
            _rows(qkv.bias, (-1, heads[1] + 2, heads[2]))[:, -1] /= of_value
        return scales

    def fold_up(scales: Tensor, dtype: torch.dtype) -> Tensor:
        gate_up, of_up = block.mlp.gate_up, scales.view(-1, block.mlp.block)
        _rows(gate_up.weight, (-1, 2, block.mlp.block))[:, 1] /= of_up[..., None]
        if gate_up.bias is not None:
            _rows(gate_up.bias, (-1, 2, block.mlp.block))[:, 1] /= of_up
        return scales

    return (
        Place("mlp.down", _alone, fold_up),
        Place("attention.out", share_heads, fold_values),
        Place("mlp.gate_up", _alone, lambda scales, dtype: fold_norm(block.mlp_norm, scales, dtype)),
        Place("attention.qkv", _alone, lambda scales, dtype: fold_norm(block.attention_norm, scales, dtype)),
    )


def fold_norm(norm: RMSNorm, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """Divides a norm's weight by scales `[H]` and rounds it to `dtype`; returns what it is divided by after rounding,
    so that the matrix behind makes up for the rounding, too."""
    before = norm.weight.detach().clone()
    rounded = (before / scales).to(dtype).float()
    storable = rounded.isfinite() & (rounded != 0)  # a channel that would be lost is left alone
    norm.weight.copy_(torch.where(storable, rounded, before))
    return torch.where(storable, before / rounded, torch.ones_like(before))


@torch.no_grad()
def scale_block(
    block: Block,
    statistics: dict[str, InputStatistics],
    choose: Callable[[Tensor, InputStatistics, Place], Tensor],
    dtype: torch.dtype,
) -> dict[str, InputStatistics]:
    """Scales all four matrices of a float block, in place. Its outputs stay the same.

    Args:
        statistics: Of the inputs of each matrix.
        choose: Gives the scales `[K]` of a matrix `[N, K]`.
        dtype: What norms are stored in.

    Returns:
        The statistics of the scaled inputs.
    """
    scaled = {}
    for place in places(block):
        weight, seen = block.get_parameter(f"{place.name}.weight"), statistics[place.name]
        scales = place.fold(choose(weight, seen, place), dtype)
        weight.mul_(scales)
        scaled[place.name] = seen.scaled(scales)
    return scaled


def smoothquant_scales(weight: Tensor, seen: InputStatistics, place: Place, alpha: float) -> Tensor:
    """`max|x|^alpha / max|w|^(1 - alpha)` of each channel (Xiao et al. 2022, eq. 4)."""
    inputs = place.share(seen.largest).clamp(min=SMALLEST)
    weights = place.share(weight.abs().amax(0)).clamp(min=SMALLEST)
    return _centred(inputs**alpha / weights ** (1 - alpha))


def awq_scales(weight: Tensor, seen: InputStatistics, place: Place, settings: QuantSettings) -> Tensor:
    """The power of the inputs' mean magnitude, with and without that of the weights against it, that leaves the least
    error in the output (Lin et al. 2023, eq. 4 and 5). Tried on at most `MAX_ROWS` rows, spread evenly."""
    moments = seen.require_moments()
    rows = weight[:: -(-len(weight) // MAX_ROWS)]
    inputs = place.share(seen.mean).clamp(min=SMALLEST)
    weights = place.share(_relative_magnitude(rows, settings.group_size)).clamp(min=SMALLEST)
    best, least = torch.ones_like(inputs), float("inf")
    for against_weights in (False, True):
        for step in range(STEPS + 1):
            power = step / STEPS
            scales = inputs**power / (weights ** (1 - power) if against_weights else 1.0)
            scales = _centred(scales)
            error = _output_error(rows, scales, moments, settings)
            if error < least:
                best, least = scales, error
    return best


def _output_error(rows: Tensor, scales: Tensor, moments: Tensor, settings: QuantSettings) -> float:
    rounded = quantize(
        rows * scales, settings.bits, settings.group_size, zero_point=settings.zero_point, search=False
    ).dequantize()
    error = rounded / scales - rows
    return float((error @ moments * error).sum())


def _relative_magnitude(weight: Tensor, group_size: int | None) -> Tensor:
    """`[K]`: mean over rows of each weight's magnitude beside the largest of its group."""
    groups = weight.abs().unflatten(1, (-1, group_size or weight.shape[1]))
    return (groups / groups.amax(-1, keepdim=True).clamp(min=1e-12)).flatten(1).mean(0)


def _centred(scales: Tensor) -> Tensor:
    """Scaled as a whole to lie around 1."""
    return scales / (scales.max() * scales.min()).sqrt()


def _alone(values: Tensor) -> Tensor:
    return values


def _rows(parameter: Tensor, shape: tuple[int, ...]) -> Tensor:
    return parameter.data.unflatten(0, shape)
