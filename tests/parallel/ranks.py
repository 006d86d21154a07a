"""Runs a function on several processes joined by gloo, and the training curve that parallel plans must reproduce."""

from __future__ import annotations

import os
import queue
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor
from torch.distributed.tensor import DTensor

from puyulm.data.packing import IGNORE, PackedBatch
from puyulm.model.config import ModelConfig
from puyulm.parallel.build import ParallelModel, build_model
from puyulm.parallel.plan import ParallelPlan
from puyulm.parallel.weights import init_weights
from puyulm.parallel.world import World
from puyulm.train.guard import Guard
from puyulm.train.optimizer import Optimizer
from puyulm.train.settings import SpikeSettings, TrainSettings
from puyulm.train.step import count_targets, to_device, train_step

TIMEOUT = 240.0


def run_ranks(size: int, function: Callable[..., Any], folder: Path, *arguments: Any) -> list[Any]:
    """Calls `function(*arguments)` on `size` new processes and returns what each returned, by rank.

    Process groups are made and ended here. To save the seconds that starting takes, do several things in one call.

    Args:
        function: Of a module's top level; what it returns must be picklable.
        folder: An empty one, for the processes to find each other.
    """
    context = mp.get_context("spawn")
    results: Any = context.Queue()
    store = folder / f"store-{os.urandom(4).hex()}"
    processes = [
        context.Process(target=_rank, args=(rank, size, str(store), results, function, arguments), daemon=True)
        for rank in range(size)
    ]
    for process in processes:
        process.start()
    found: dict[int, Any] = {}
    try:
        while len(found) < size:
            rank, value, error = results.get(timeout=TIMEOUT)
            assert error is None, f"rank {rank} of {size}:\n{error}"
            found[rank] = value
    except queue.Empty:
        raise AssertionError(f"ranks {sorted(set(range(size)) - set(found))} of {size} did not end") from None
    finally:
        for process in processes:
            process.join(5 if len(found) == size else 0)
            process.kill()
    return [found[rank] for rank in range(size)]


def _rank(rank: int, size: int, store: str, results: Any, function: Callable[..., Any], arguments: Any) -> None:
    torch.set_num_threads(1)
    try:
        dist.init_process_group("gloo", store=dist.FileStore(store, size), rank=rank, world_size=size)
        results.put((rank, function(*arguments), None))
        dist.barrier()
    except BaseException:
        results.put((rank, None, traceback.format_exc()))
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


@dataclass(frozen=True)
class Curve:
    """What a short run measured: the gradients before the first step, the loss and gradient norm of each step, and the
    parameters after the last. Gradients and parameters are whole, those of the stages of one rank."""

    gradients: dict[str, np.ndarray]
    losses: list[float]
    norms: list[float]
    weights: dict[str, np.ndarray]


def train_curve(config: ModelConfig, plan: ParallelPlan, steps: int = 10, micro_batches: int = 8) -> Curve:
    """Trains on random packed documents; every plan must give the curve of one process.

    The global batch is `micro_batches` micro-batches of 64 tokens, whatever the plan. Half of the steps are clipped.
    """
    # With a usual eps the update of a value whose gradient is next to nothing is one of rounding errors.
    settings = TrainSettings(lr=1e-2, clip_norm=1.6, z_loss=1e-3, eps=1e-3)
    model = filled_model(config, plan)
    optimizer = Optimizer(dict(model.named_parameters()), settings)
    guard = Guard(SpikeSettings(), model.world.device)
    gradients = first_gradients(model, micro_batches, settings.z_loss)
    optimizer.zero_grad()
    losses, norms = [], []
    for step in range(steps):
        batches = to_device(model, rank_batches(model, step, micro_batches))
        result = train_step(model, optimizer, guard, batches, settings.lr, settings)
        losses.append(float(result.values[0]))
        norms.append(float(result.values[1]))
    return Curve(gradients, losses, norms, whole_weights(model.named_parameters()))


def filled_model(config: ModelConfig, plan: ParallelPlan) -> ParallelModel:
    """A model over the ranks of the process group, or alone where there is none, with weights of one seed.

    They are large, so that logits and gradients are, too.
    """
    world = World.join(plan, torch.device("cpu")) if dist.is_initialized() else World.alone("cpu", plan)
    model = build_model(config.evolve(initializer_range=0.2), world, micro_tokens=64)
    init_weights(model, seed=1)
    return model


def first_gradients(model: ParallelModel, micro_batches: int, z_loss: float) -> dict[str, np.ndarray]:
    """Whole gradients of the first step's loss."""
    batches = to_device(model, rank_batches(model, 0, micro_batches))
    model.forward_backward(batches, count_targets(model.world, batches), z_loss)
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert all(gradient is not None for gradient in gradients.values())
    return whole_weights(gradients.items())


def rank_batches(model: ParallelModel, step: int, micro_batches: int) -> list[PackedBatch]:
    """This rank's share of a step's micro-batches."""
    share = micro_batches // model.world.plan.data_size
    first = step * micro_batches + model.world.data_rank * share
    return [random_batch(model.config.vocab_size, number) for number in range(first, first + share)]


def random_batch(vocab_size: int, number: int, tokens: int = 64) -> PackedBatch:
    """Packed documents of different lengths. Of the targets of even numbers all count, but the last of each document;
    of odd ones nine of ten; of every eighth none."""
    rng = np.random.default_rng(number)
    cuts = np.sort(rng.choice(np.arange(1, tokens), size=rng.integers(2, 5), replace=False))
    lengths = np.diff([0, *cuts, tokens]).tolist()
    ids = rng.integers(0, vocab_size, size=tokens)
    targets = np.roll(ids, -1)
    targets[np.cumsum(lengths) - 1] = IGNORE
    targets[rng.random(tokens) < (1.0 if number % 8 == 5 else 0.1 if number % 2 else 0.0)] = IGNORE
    return PackedBatch(ids, targets, lengths, 0)


def whole_weights(tensors: Iterable[tuple[str, Tensor]]) -> dict[str, np.ndarray]:
    """Tensors by name, gathered from their shards."""
    return {name: whole(tensor).numpy().copy() for name, tensor in tensors}


def whole(tensor: Tensor) -> Tensor:
    """A tensor put together from the shards of all ranks, without the help of DTensor; copies must be alike.

    A parameter is cut over "tensor" ranks first, and each part of it over "fsdp" ranks.
    """
    if not isinstance(tensor, DTensor):
        return tensor.detach()
    local, mesh = tensor.detach().to_local(), tensor.device_mesh
    assert list(mesh.mesh_dim_names) == [n for n in ("replicate", "fsdp", "tensor") if n in mesh.mesh_dim_names]
    for dim, placement in enumerate(tensor.placements):
        parts: list[Any] = [None] * mesh.size(dim)
        dist.all_gather_object(parts, local, group=mesh.get_group(dim))
        if placement.is_replicate():
            assert all(torch.equal(part, local) for part in parts), f"copies differ over {mesh.mesh_dim_names[dim]}"
        else:
            local = torch.cat(parts, dim=placement.dim)
    assert local.shape == tensor.shape
    return local


def assert_same_curve(found: Sequence[Curve], expected: Curve, tolerance: float = 1e-5) -> None:
    """Every rank's curve is the expected one, and together the ranks hold every parameter as expected.

    Losses and norms are compared relative to themselves, gradients and parameters to the largest value of each tensor.
    """
    for curve in found:
        np.testing.assert_allclose(curve.losses, expected.losses, rtol=tolerance)
        np.testing.assert_allclose(curve.norms, expected.norms, rtol=10 * tolerance)
        for name, values in curve.gradients.items():
            assert_near(values, expected.gradients[name], tolerance, f"gradient of {name}")
        for name, values in curve.weights.items():
            assert_near(values, expected.weights[name], 10 * tolerance, name)
        assert set(curve.gradients) == set(curve.weights)
    assert set().union(*(curve.weights for curve in found)) == set(expected.weights)


def assert_near(found: np.ndarray, expected: np.ndarray, tolerance: float, name: str) -> None:
    """No value is further from the expected one than `tolerance` times the largest of the tensor."""
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.abs(expected).max(), err_msg=name)
