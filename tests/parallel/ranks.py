"""Runs a function on several processes joined by gloo, and the training curve that parallel plans must reproduce."""

from __future__ import annotations

import os
import queue
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from puyulm.data.packing import IGNORE, PackedBatch
from puyulm.model.config import ModelConfig
from puyulm.parallel.build import build_model
from puyulm.parallel.plan import ParallelPlan
from puyulm.parallel.weights import init_weights
from puyulm.parallel.world import World
from puyulm.train.guard import Guard
from puyulm.train.optimizer import Optimizer
from puyulm.train.settings import SpikeSettings, TrainSettings
from puyulm.train.step import to_device, train_step

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
    """What a short run measured: loss and gradient norm of each step, and every parameter after the last."""

    losses: list[float]
    norms: list[float]
    weights: dict[str, np.ndarray]


def train_curve(config: ModelConfig, plan: ParallelPlan, steps: int = 10, micro_batches: int = 8) -> Curve:
    """Trains on random packed documents; every plan must give the curve of one process.

    The global batch is `micro_batches` micro-batches of 64 tokens, whatever the plan.
    """
    world = World.join(plan, torch.device("cpu")) if dist.is_initialized() else World.alone("cpu", plan)
    settings = TrainSettings(lr=1e-2, clip_norm=0.5, z_loss=1e-3)
    model = build_model(config, world, micro_tokens=64)
    init_weights(model, seed=1)
    optimizer = Optimizer(dict(model.named_parameters()), settings)
    guard = Guard(SpikeSettings(), world.device)
    share = micro_batches // world.plan.data_size
    losses, norms = [], []
    for step in range(steps):
        first = step * micro_batches + world.data_rank * share
        batches = [random_batch(config.vocab_size, number) for number in range(first, first + share)]
        result = train_step(model, optimizer, guard, to_device(model, batches), 1e-2, settings)
        losses.append(float(result.values[0]))
        norms.append(float(result.values[1]))
    return Curve(losses, norms, whole_weights(model.named_parameters()))


def random_batch(vocab_size: int, number: int, tokens: int = 64) -> PackedBatch:
    """Packed documents of different lengths; micro-batches have different numbers of targets."""
    rng = np.random.default_rng(number)
    cuts = np.sort(rng.choice(np.arange(1, tokens), size=rng.integers(2, 5), replace=False))
    lengths = np.diff([0, *cuts, tokens]).tolist()
    ids = rng.integers(0, vocab_size, size=tokens)
    targets = np.roll(ids, -1)
    targets[np.cumsum(lengths) - 1] = IGNORE
    targets[rng.random(tokens) < 0.1] = IGNORE
    return PackedBatch(ids, targets, lengths, 0)


def whole_weights(parameters: Any) -> dict[str, np.ndarray]:
    """Parameters of this rank's stages, gathered from their shards."""
    from torch.distributed.tensor import DTensor

    whole = {}
    for name, parameter in parameters:
        tensor = parameter.detach()
        whole[name] = (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).numpy().copy()
    return whole


def assert_same_curve(found: Sequence[Curve], expected: Curve, tolerance: float = 1e-5) -> None:
    """Every rank's curve is the expected one, and together the ranks hold every parameter as expected."""
    for curve in found:
        np.testing.assert_allclose(curve.losses, expected.losses, rtol=tolerance)
        np.testing.assert_allclose(curve.norms, expected.norms, rtol=10 * tolerance)
        for name, values in curve.weights.items():
            np.testing.assert_allclose(values, expected.weights[name], atol=10 * tolerance, err_msg=name)
    assert set().union(*(curve.weights for curve in found)) == set(expected.weights)
