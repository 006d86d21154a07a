"""Small runs for the tests of the loop; as a program, runs that are killed and started again (see the end)."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor

from puyulm.data.packing import IGNORE, PackedBatch
from puyulm.parallel.batch import MicroBatch
from puyulm.parallel.build import ParallelModel, build_model
from puyulm.parallel.plan import ParallelPlan
from puyulm.parallel.weights import init_weights
from puyulm.parallel.world import World
from puyulm.train import checkpoint
from puyulm.train.checkpoint import latest_checkpoint, read_state
from puyulm.train.course import Skips
from puyulm.train.loop import TrainResult, Validate, train
from puyulm.train.metrics import read_json_lines
from puyulm.train.run import open_run
from puyulm.train.schedule import Schedule
from puyulm.train.settings import SpikeSettings, TrainSettings
from puyulm.train.validation import mean_loss
from tests.conftest import tiny_config

IDENTITY = {"data": "counting", "seed": 0}
CURVE = ("step", "tokens", "lr", "loss", "grad_norm")
POISON, SPIKE = 127, 126  # tokens of batches whose loss is not finite, or 1,000 times as large, see `poisonable`


def pack(documents: list[np.ndarray]) -> PackedBatch:
    """Documents as a batch: each predicts its next token, its last nothing."""
    targets = np.concatenate([np.append(document[1:], IGNORE) for document in documents])
    return PackedBatch(np.concatenate(documents), targets, [len(document) for document in documents], 0)


@dataclass(frozen=True)
class Counting:
    """Documents that count upwards from a random token; `split` cuts each step's documents into micro-batches.

    Attributes:
        bad: Batches, counted over the whole data, with the token that their last micro-batch begins with.
    """

    documents: int = 6
    split: int = 1
    bad: Mapping[int, int] = field(default_factory=dict)

    def batch(self, step: int, part: int = 0) -> PackedBatch:
        rng = np.random.default_rng(step)
        lengths = rng.integers(3, 24, size=self.documents)
        documents = [(rng.integers(0, 120) + np.arange(length)) % 120 for length in lengths]
        batch = pack([documents[i] for i in range(part, self.documents, self.split)])
        if step in self.bad and part == self.split - 1:
            batch.tokens[0] = self.bad[step]
        return batch


@dataclass(frozen=True)
class ActAt(Counting):
    """Does something when asked for one batch."""

    at: int = 0
    action: Callable[[], object] = lambda: None

    def batch(self, step: int, part: int = 0) -> PackedBatch:
        if step == self.at:
            self.action()
        return super().batch(step, part)


class CountingCourse:
    """A course over counting documents."""

    sources: Sequence[str] = ()

    def __init__(
        self, source: Counting, steps: int, settings: TrainSettings, bits_per_byte_factor: float | None = None
    ) -> None:
        self.source, self.steps, self.bits_per_byte_factor = source, steps, bits_per_byte_factor
        self.lr = Schedule.of(settings, steps)

    def rope_theta(self, step: int) -> float | None:
        return None

    def phase(self, step: int) -> str:
        return ""

    def phase_index(self, step: int) -> int:
        return 0

    def seq_len(self, step: int) -> int:
        return 24

    def batches(self, step: int, part: int, parts: int, skips: Skips = ()) -> list[PackedBatch]:
        size = self.source.split // parts
        return [self.source.batch(step + sum(skips), part * size + i) for i in range(size)]

    def skip(self, first: int, last: int, skips: Skips = ()) -> Skips:
        return (sum(skips) + last - first + 1,)

    def epochs(self, step: int, skips: Skips = ()) -> dict[str, float]:
        return {}


def run(
    folder: Path,
    steps: int,
    validate: Validate | None = None,
    source: Counting | None = None,
    *,
    model: ParallelModel | None = None,
    course: type[CountingCourse] = CountingCourse,
    **changes: object,
) -> TrainResult:
    """A run of a tiny model, or what is left of it."""
    usual = TrainSettings(lr=3e-3, warmup_ratio=0.2, checkpoint_every=4, log_every=3, device="cpu", prefetch=0)
    settings = replace(usual, **changes)  # type: ignore[arg-type]
    model = tiny_model(seed=3) if model is None else model
    if model.world.main:
        open_run(folder, IDENTITY)
    model.world.wait()
    return train(
        model, course(source or Counting(), steps, settings), settings, folder,
        identity=IDENTITY, fill=lambda model: None, validate=validate, label="test",
    )  # fmt: skip


def tiny_model(seed: int = 0, world: World | None = None, **changes: object) -> ParallelModel:
    """A tiny decoder, filled; of one process, unless a world is given."""
    model = build_model(tiny_config(initializer_range=0.2, **changes), world or World.alone(), micro_tokens=256)
    init_weights(model, seed)
    return model


def poisonable(model: ParallelModel) -> ParallelModel:
    """The model, on which batches of `Counting.bad` do what their first token says, on the ranks that read them."""
    plain, factors = model.forward_backward, {POISON: float("nan"), SPIKE: 1000.0}

    def forward_backward(
        batches: Sequence[MicroBatch], denominator: float | Tensor, z_loss: float = 0.0
    ) -> tuple[Tensor, list[Tensor]]:
        for batch in batches:
            denominator = denominator / factors.get(int(batch.tokens[0]), 1.0)
        return plain(batches, denominator, z_loss)

    model.forward_backward = forward_backward  # type: ignore[method-assign]
    return model


def measure(model: ParallelModel, step: int = 0) -> Mapping[str, float]:
    """A validation."""
    return mean_loss(model, [Counting().batch(10_000)])


def run_all(folder: Path, source: Counting | None = None, **changes: Any) -> TrainResult:
    """The run that tests of resuming compare."""
    return run(folder, steps=17, validate=measure, source=source, **({"eval_every": 3} | changes))


def curve(folder: Path) -> list[tuple[Any, ...]]:
    """What does not depend on time of a run's metrics."""
    return [tuple(row[name] for name in CURVE) for row in read_json_lines(folder / "metrics.jsonl")]


def stored(folder: Path) -> dict[str, Tensor]:
    """Every tensor of a run's newest checkpoint, whole."""
    latest = latest_checkpoint(folder)
    assert latest is not None
    return stored_tensors(latest)


def stored_tensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a checkpoint, whole."""
    index = dcp.FileSystemReader(path).read_metadata().state_dict_metadata
    tensors: dict[str, Any] = {name: torch.empty(m.size, dtype=m.properties.dtype) for name, m in index.items()}  # type: ignore[union-attr]
    with warnings.catch_warnings(action="ignore"):  # that it is one process which loads them
        dcp.load(tensors, checkpoint_id=path, no_dist=True)
    return tensors


def assert_same_run(folder: Path, other: Path) -> None:
    """Both runs wrote the same metrics and validations, and ended with the same weights, moments and state."""
    assert curve(folder) == curve(other)
    assert read_json_lines(folder / "validation.jsonl") == read_json_lines(other / "validation.jsonl")
    ours, theirs = stored(folder), stored(other)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    latest, expected = latest_checkpoint(folder), latest_checkpoint(other)
    assert latest is not None and expected is not None and read_state(latest) == read_state(expected)


# --- Runs that are killed -------------------------------------------------------------------------------------------


def kill_self() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def kill_when(condition: Callable[[], bool]) -> None:
    """Kills this process as soon as a condition holds, wherever its other threads are then."""

    def watch() -> None:
        while not condition():
            time.sleep(0.0005)
        kill_self()

    threading.Thread(target=watch, daemon=True).start()


def kill_after(function: Any, name: str, calls: int = 1, *, before: bool = False) -> None:
    """Kills this process when a function has been called so many times, before or after the last."""
    plain, left = getattr(function, name), [calls]

    def counted(*arguments: Any, **named: Any) -> Any:
        left[0] -= 1
        if before and left[0] == 0:
            kill_self()
        result = plain(*arguments, **named)
        if left[0] == 0:
            kill_self()
        return result

    setattr(function, name, counted)


def arm(kind: str, folder: Path, lines: int, rng: random.Random) -> None:
    """Prepares one way to be killed."""
    checkpoints = folder / "checkpoints"
    if kind == "steps":  # at any moment some steps on
        metrics, target = folder / "metrics.jsonl", lines + rng.randint(2, 7)
        kill_when(lambda: metrics.exists() and metrics.read_bytes().count(b"\n") >= target)
    elif kind == "partial":  # a checkpoint has been begun
        kill_when(lambda: any(checkpoints.glob(".step-*.partial")))
    elif kind == "written":  # its tensors are there, but not what says so
        kill_after(checkpoint._Writer, "write_data", rng.randint(1, 2))
    elif kind == "named":  # all is there but the name
        kill_after(checkpoint, "_flush_folder", 2 * rng.randint(1, 2) - 1)
    elif kind == "renamed":
        kill_after(checkpoint, "_complete", rng.randint(1, 2))
    elif kind == "pruning":  # an old one is being removed
        kill_after(checkpoint.shutil, "rmtree", rng.randint(4, 8), before=True)


def run_killed(folder: Path, seed: int) -> list[dict[str, Any]]:
    """Runs `run_all`, longer, in child processes that are killed; the last may end. What is left after each kill."""
    rng = random.Random(seed)
    kinds = ["steps", "partial", "written", "named", "renamed", "pruning"] * 2
    rng.shuffle(kinds)
    report = []
    for kind in [*kinds, "never"]:
        before = len(read_json_lines(folder / "metrics.jsonl"))
        child = os.fork()
        if child == 0:
            arm(kind, folder, before, rng)
            run_long(folder)
            os._exit(0)
        rng.random()
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        latest = latest_checkpoint(folder)
        report.append({
            "kind": kind, "status": status, "steps": len(read_json_lines(folder / "metrics.jsonl")),
            "checkpoint": 0 if latest is None else read_state(latest).step,
            "half_written": [path.name for path in (folder / "checkpoints").glob(".*")],
        })  # fmt: skip
    return report


def run_long(folder: Path) -> TrainResult:
    """The run that is killed again and again; bad batches and going back are part of it."""
    bad = {9: POISON, 21: SPIKE, 22: POISON, 40: SPIKE, 41: SPIKE, 42: SPIKE}
    spikes = SpikeSettings(sigma=8.0, window=6, patience=2, max_rollbacks=3)
    return run(
        folder, 60, measure, Counting(bad=bad), model=poisonable(tiny_model(seed=3)), checkpoint_every=3, eval_every=7,
        prefetch=2, spikes=spikes,
    )  # fmt: skip


def run_ranks_of_torchrun(folder: Path) -> None:
    """Two runs one after the other; in the second, rank 1 is killed once, and torchrun starts both ranks again."""
    world = World.join(ParallelPlan(), torch.device("cpu"))

    def once() -> None:
        if world.rank == 1 and not (folder / "was-killed").exists():
            (folder / "was-killed").touch()
            kill_self()

    for name, source in (("calm", Counting(split=2)), ("killed", ActAt(split=2, at=10, action=once))):
        run(folder / name, 14, measure, source, model=tiny_model(3, world), eval_every=5)
    world.leave()


if __name__ == "__main__":
    torch.set_num_threads(1)
    target = Path(sys.argv[2])
    if sys.argv[1] == "killed":
        print(json.dumps(run_killed(target, int(sys.argv[3]))))
    else:
        run_ranks_of_torchrun(target)
