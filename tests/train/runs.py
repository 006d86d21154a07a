"""Small runs for the tests of the loop; as a program, one that waits in the middle to be killed."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from puyulm.data.packing import IGNORE, PackedBatch
from puyulm.parallel.build import ParallelModel, build_model
from puyulm.parallel.weights import init_weights
from puyulm.parallel.world import World
from puyulm.train.course import Skips
from puyulm.train.loop import TrainResult, Validate, train
from puyulm.train.run import open_run
from puyulm.train.schedule import Schedule
from puyulm.train.settings import TrainSettings
from tests.conftest import tiny_config

IDENTITY = {"data": "counting", "seed": 0}


def pack(documents: list[np.ndarray]) -> PackedBatch:
    """Documents as a batch: each predicts its next token, its last nothing."""
    targets = np.concatenate([np.append(document[1:], IGNORE) for document in documents])
    return PackedBatch(np.concatenate(documents), targets, [len(document) for document in documents], 0)


@dataclass(frozen=True)
class Counting:
    """Documents that count upwards from a random token; `split` cuts each step's documents into micro-batches."""

    documents: int = 6
    split: int = 1

    def batch(self, step: int, part: int = 0) -> PackedBatch:
        rng = np.random.default_rng(step)
        lengths = rng.integers(3, 24, size=self.documents)
        documents = [(rng.integers(0, 128) + np.arange(length)) % 128 for length in lengths]
        return pack([documents[i] for i in range(part, self.documents, self.split)])


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

    def batches(self, step: int, part: int, parts: int, skips: Skips = ()) -> list[PackedBatch]:
        size = self.source.split // parts
        return [self.source.batch(step + sum(skips), part * size + i) for i in range(size)]

    def skip(self, first: int, last: int, skips: Skips = ()) -> Skips:
        return (sum(skips) + last - first + 1,)

    def epochs(self, step: int, skips: Skips = ()) -> dict[str, float]:
        return {}


class WaitAt(Counting):
    """Says so and waits for the end of the input when asked for one batch."""

    def batch(self, step: int, part: int = 0) -> PackedBatch:
        if step == int(sys.argv[2]):
            print("waiting", flush=True)
            sys.stdin.read()
        return super().batch(step, part)


def run(
    folder: Path, steps: int, validate: Validate | None = None, source: Counting | None = None, **changes: object
) -> TrainResult:
    usual = TrainSettings(lr=3e-3, warmup_ratio=0.2, checkpoint_every=4, log_every=3, device="cpu")
    settings = replace(usual, **changes)  # type: ignore[arg-type]
    open_run(folder, IDENTITY)
    return train(
        tiny_model(seed=3), CountingCourse(source or Counting(), steps, settings), settings, folder,
        identity=IDENTITY, fill=lambda model: None, validate=validate, label="test",
    )  # fmt: skip


def tiny_model(seed: int = 0, **changes: object) -> ParallelModel:
    """A tiny decoder of one process, filled."""
    model = build_model(tiny_config(initializer_range=0.2, **changes), World.alone())
    init_weights(model, seed)
    return model


def measure(model: ParallelModel) -> Mapping[str, float]:
    return {"loss": float(model.decoder.embed.weight.detach().double().square().mean())}


def run_all(folder: Path, source: Counting | None = None) -> TrainResult:
    """The run that tests of resuming compare."""
    return run(folder, steps=17, validate=measure, source=source, eval_every=3)


if __name__ == "__main__":
    run_all(Path(sys.argv[1]), source=WaitAt())
