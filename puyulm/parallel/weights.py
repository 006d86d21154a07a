"""A model's weights, rank by rank: fresh ones, those of a published checkpoint, and the way back to one.

Each rank fills only what it holds. A whole parameter is in memory once, on the way out; a whole model never is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from puyulm.errors import CheckpointError
from puyulm.model.checkpoint import Rows, each_published, fill_decoder, parameter_order, stored_dtype, write_model
from puyulm.model.init import initial_values
from puyulm.model.layouts import Slot, layout_of, published_tensors
from puyulm.parallel.build import ParallelModel
from puyulm.progress import Progress


@torch.no_grad()
def init_weights(model: ParallelModel, seed: int) -> None:
    """Fills the parameters to train from scratch: the same values however the model is cut over ranks."""
    for name, parameter in model.named_parameters():
        local, (rows, *columns) = shard_of(parameter)
        values = initial_values(model.config, name, tuple(parameter.shape), seed, rows.start, rows.stop)
        local.copy_(values[:, *columns])


def load_weights(model: ParallelModel, folder: Path) -> None:
    """Fills the parameters from a published checkpoint, whichever of the two layouts it has.

    Each rank reads the rows that it holds some of, tensor by tensor.

    Raises:
        ConfigError, CheckpointError: With the tensor, the shapes and the file that do not fit; on all ranks, also
            where only one could not read.
    """
    if model.world.size == 1:
        fill_decoder(model.decoder, folder)
        return
    error: Exception | None = None
    try:
        _load_shards(model, folder)
    except OSError as reason:
        error = CheckpointError(f"{folder}: cannot be read: {reason}")
    except Exception as reason:
        error = reason
    model.world.raise_alike(error)


def save_weights(model: ParallelModel, folder: Path, *, write_extra: Callable[[Path], None] | None = None) -> None:
    """Writes the published layout, stored in the configuration's `dtype`, replacing what is there.

    The main process writes; no rank ever holds more than one whole parameter. All ranks call it, and return once the
    folder stands.

    Raises:
        CheckpointError: The folder cannot be written.
        ConfigError: The layout cannot express the model.
    """
    gathered = _gather(model)
    error: Exception | None = None
    if model.world.main:
        try:
            write_model(model.config, gathered, folder, overwrite=True, write_extra=write_extra)
        except Exception as reason:
            error = reason
    for _ in gathered:  # the others' part; and the main's own after an error, for the others wait for it
        pass
    model.world.raise_alike(error)


def shard_of(parameter: Tensor) -> tuple[Tensor, tuple[slice, ...]]:
    """What this rank holds of a parameter, and which part of each dimension of the whole that is."""
    if not isinstance(parameter, DTensor):
        return parameter.detach(), tuple(slice(0, size) for size in parameter.shape)
    sizes, starts = compute_local_shape_and_global_offset(parameter.shape, parameter.device_mesh, parameter.placements)
    part = tuple(slice(start, start + size) for start, size in zip(starts, sizes, strict=True))
    local = parameter.detach()
    assert isinstance(local, DTensor)
    return local.to_local(), part


@torch.no_grad()
def _load_shards(model: ParallelModel, folder: Path) -> None:
    parameters = dict(model.named_parameters())
    total = len(published_tensors(model.config, layout_of(model.config))) if model.world.main else None
    with Progress(f"loading {folder.name}", total=total, unit="tensor") as progress:
        for _, slot, read in each_published(folder, model.config):
            if slot.parameter in parameters:
                _store(parameters[slot.parameter], slot, read)
            if model.world.main:
                progress.advance()


def _store(parameter: nn.Parameter, slot: Slot, read: Rows) -> None:
    """Copies what a rank holds of a published tensor into its shard."""
    local, (rows, *columns) = shard_of(parameter)
    if not local.numel():
        return
    if slot.view is None:
        local.copy_(read(rows.start, rows.stop)[:, *columns])
        return
    # Whole groups are read: a published tensor has its rows of every group, in the order of the groups.
    groups = slot.view[0]
    mine, theirs = parameter.shape[0] // groups, slot.shape[0] // groups
    first, last = rows.start // mine, -(-rows.stop // mine)
    here = torch.arange(first * mine, last * mine).view(last - first, *slot.view[1:3])[:, slice(*slot.parts)].flatten()
    held = (here >= rows.start) & (here < rows.stop)
    values = read(first * theirs, last * theirs)[held][:, *columns]
    local.index_copy_(0, (here[held] - rows.start).to(local.device), values.to(local.device, local.dtype))


@torch.no_grad()
def _gather(model: ParallelModel) -> Iterator[tuple[str, Tensor]]:
    """Every parameter of the whole model in the stored dtype on the CPU, in the order of `parameter_order`.

    All ranks take part in all; the main process gets the values, the others names alone. Shards travel through host
    memory, of which there is more than on devices, and to the main process only.
    """
    world, dtype = model.world, stored_dtype(model.config)
    parameters = dict(model.named_parameters())
    mine = {name: shard_of(parameter)[1] for name, parameter in parameters.items() if _sends(parameter)}
    held: list[dict[str, tuple[slice, ...]]] | None = [mine] * world.size if world.main else None
    if world.size > 1:
        dist.gather_object(mine, held)
    for name in parameter_order(model.config):
        world.wait()  # those with nothing to send would else wait for the whole model at the end, past the time limit
        whole = torch.empty(0)
        if held is not None:
            parts = {rank: shards[name] for rank, shards in enumerate(held) if name in shards}
            shape = [max(places) for places in zip(*(_stops(part) for part in parts.values()), strict=True)]
            whole = torch.empty(shape, dtype=dtype)
            for rank, part in parts.items():
                if rank == world.rank:
                    whole[part] = shard_of(parameters[name])[0].to("cpu", dtype)
                else:
                    whole[part] = _received(whole[part], rank)
        elif name in mine:
            dist.send(shard_of(parameters[name])[0].to("cpu", dtype).contiguous(), 0)
        yield name, whole


def _sends(parameter: nn.Parameter) -> bool:
    """Whether this rank is the first of those that hold the same shard, and the shard is not empty."""
    if not isinstance(parameter, DTensor):
        return True
    mesh = parameter.device_mesh
    copies = [dim for dim, placement in enumerate(parameter.placements) if placement.is_replicate()]
    first = all(mesh.get_local_rank(dim) == 0 for dim in copies)
    return first and shard_of(parameter)[0].numel() > 0


def _received(like: Tensor, rank: int) -> Tensor:
    piece = torch.empty_like(like, memory_format=torch.contiguous_format)
    dist.recv(piece, rank)
    return piece


def _stops(part: tuple[slice, ...]) -> list[int]:
    return [dimension.stop for dimension in part]
