"""One optimizer step: gradients of all micro-batches, their norm, the verdict, the update."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from puyulm.data.packing import PackedBatch
from puyulm.model.loss import IGNORE
from puyulm.parallel.batch import MicroBatch
from puyulm.parallel.build import ParallelModel
from puyulm.parallel.world import World
from puyulm.train.guard import Guard
from puyulm.train.optimizer import Optimizer
from puyulm.train.settings import TrainSettings


@dataclass(frozen=True)
class StepResult:
    """What a step measured, on the device and not waited for, alike on all ranks.

    Attributes:
        values: `[5]` float32: loss in nats per target token of the whole step, norm of the gradients before clipping,
            tokens with a loss, whether the step was not taken, the flags of all ranks summed.
        sources: `[2, S]` float32: sum of the losses, and number of tokens with a loss, of each source.
    """

    values: Tensor
    sources: Tensor


def to_device(model: ParallelModel, batches: Iterable[PackedBatch]) -> list[MicroBatch]:
    """Micro-batches as this model wants them."""
    size = {"pad_to": model.pad_to, "multiple": model.multiple}
    return [
        MicroBatch.of(b.tokens, b.targets, b.lengths, model.world.device, sources=b.sources, **size) for b in batches
    ]


def train_step(
    model: ParallelModel,
    optimizer: Optimizer,
    guard: Guard,
    batches: Sequence[MicroBatch],
    lr: float,
    settings: TrainSettings,
    *,
    num_sources: int = 0,
    flag: Callable[[], float] = lambda: 0.0,
) -> StepResult:
    """One optimizer step over this rank's micro-batches.

    The loss is the sum over all target tokens of the step, on all ranks, divided by their number: it does not depend
    on how tokens are split into micro-batches or over ranks. Nothing is read back from the device.

    Args:
        num_sources: S, of `StepResult.sources`.
        flag: Something that all ranks should hear of: a number, asked for late in the step, to be summed over them.
    """
    world = model.world
    targets = count_targets(world, batches)
    total, token_losses = model.forward_backward(batches, targets.clamp_min(1), settings.z_loss)
    sources = by_source(model, batches, token_losses, num_sources)
    # One all-reduce for all: the loss that each rank has counted, the squares that each owns, its sources and flag.
    mine = torch.stack((total, squared_norm(model.parameters(), world), _scalar(flag(), world)))
    shared = world.sum(torch.cat((mine, sources.flatten())))
    loss, norm = shared[0], shared[1].sqrt()
    skip = guard.judge(loss, norm)
    optimizer.step(lr, (settings.clip_norm / (norm + 1e-6)).clamp_max(1.0), skip)
    optimizer.zero_grad()
    return StepResult(torch.stack((loss, norm, targets, skip.float(), shared[2])), shared[3:].view(2, num_sources))


def by_source(
    model: ParallelModel, batches: Sequence[MicroBatch], token_losses: Sequence[Tensor], num_sources: int
) -> Tensor:
    """`[2, S]`: sum of the losses and number of target tokens of each source, of the tokens that this rank counts."""
    sums = torch.zeros(2, num_sources, device=model.world.device)
    if not num_sources:
        return sums
    split = model.stages[-1].split
    for batch, losses in zip(batches, token_losses, strict=False):
        if batch.sources is not None:
            sources = split.tokens(batch.sources)
            sums[0].index_add_(0, sources, losses.float())
            sums[1].index_add_(0, sources, (split.tokens(batch.targets) != IGNORE).float())
    return sums


def count_targets(world: World, batches: Sequence[MicroBatch]) -> Tensor:
    """Target tokens of the whole step: ranks that share micro-batches count them once."""
    mine = sum(batch.num_targets for batch in batches)
    shared = any(world.coordinate(name) for name in ("pipeline", "context", "tensor"))
    return world.sum(_scalar(0.0 if shared else float(mine), world))


def _scalar(value: float, world: World) -> Tensor:
    """Filled on the device; a copy from the host would wait for all that the device has yet to do."""
    return torch.full((), value, device=world.device)


def squared_norm(parameters: Iterable[nn.Parameter], world: World) -> Tensor:
    """The part of the squared gradient norm that this rank owns: summed over all ranks it is the square of the norm.

    Where several ranks hold the same values (replicas; norms under tensor parallelism), the first of them owns them.
    """
    total = torch.zeros((), device=world.device)
    local = []
    for parameter in parameters:
        grad = parameter.grad
        if grad is None or not _owned(grad, world):
            continue
        local.append(grad.to_local() if isinstance(grad, DTensor) else grad)
    if local:
        norms = torch._foreach_norm([grad for grad in local if grad.numel()] or [total])
        total = torch.stack([norm.float() for norm in norms]).square().sum()
    return total


def _owned(grad: Tensor, world: World) -> bool:
    split: tuple[str, ...] = ()
    if isinstance(grad, DTensor):
        names = grad.device_mesh.mesh_dim_names or ()
        split = tuple(name for name, place in zip(names, grad.placements, strict=True) if not place.is_replicate())
    return all(name in split or world.coordinate(name) == 0 for name in ("replicate", "fsdp", "tensor"))
