"""The one training loop, for pretraining and fine-tuning alike.

It is handed a model over any number of ranks, a course that says what each step is, and settings. Everything that could
differ between two runs of the same recipe (batches, learning rates) is a function of the step's number, so a resumed
run goes on with the very numbers of an uninterrupted one, on whatever ranks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from puyulm.errors import TrainError
from puyulm.parallel.build import Fill, ParallelModel
from puyulm.train.course import Course
from puyulm.train.feed import Feed
from puyulm.train.settings import TrainSettings
from puyulm.train.signals import StopSignals, stop
from puyulm.train.trainer import Export, Trainer, Validate


@dataclass(frozen=True)
class TrainResult:
    """How a run ended: steps and tokens in all, and what the last validation measured (empty without one)."""

    steps: int
    tokens: int
    validation: Mapping[str, float]


def train(
    model: ParallelModel,
    course: Course,
    settings: TrainSettings,
    folder: Path,
    *,
    identity: Mapping[str, Any],
    fill: Fill,
    validate: Validate | None = None,
    export: Export | None = None,
    label: str = "training",
    profile: bool = False,
) -> TrainResult:
    """Trains in place, from the newest whole checkpoint in `folder` where there is one.

    Writes `metrics.jsonl` (a line a step), `validation.jsonl`, and `checkpoints/`. Ctrl-C, SIGTERM or SIGUSR1 on any
    rank lets all ranks finish the step and write a checkpoint first.

    Args:
        folder: The run's, made ready by `open_run`.
        identity: Stored in the checkpoints, see `open_run`.
        fill: Gives the model its first weights, where there is no checkpoint.
        validate: Called every `eval_every` steps and after the last.
        export: Called every `export_every` steps.
        profile: Trace a few steps, see `StepProfile`.

    Raises:
        TrainError: Steps could not be taken again and again, or a checkpoint cannot be read or written.
        KeyboardInterrupt: After the checkpoint that Ctrl-C asked for.
        Preempted: After the checkpoint that another signal asked for.
    """
    world = model.world
    with (
        StopSignals(quiet=not world.main) as signals,
        Feed(course, world.data_rank, world.plan.data_size, settings.prefetch) as feed,
        Trainer(model, course, settings, folder, dict(identity), label, profile) as run,
    ):
        run.begin(fill, validate)
        while run.state.step < course.steps:
            run.take_step(feed, signals)
            run.look()
            if run.spiked is not None:
                run.go_back(run.spiked)
                continue
            run.do_what_is_due(validate, export)
            if run.flags and run.state.step < course.steps:
                run.save(wait=True)
                step = run.state.step
                run.log.event(step, "stopped", f"stopped after step {step:,}; the same command goes on from there")
                stop(run.flags)
        run.checkpoints.finish()
        # A signal in the last step or its validation: what follows the run is not wanted either.
        flags = float(world.sum(torch.tensor(signals.flag, device=world.device)))
        if flags:
            run.log.say(f"all {course.steps:,} steps are done; the same command only saves the model")
            stop(flags)
    model.train(False)
    return TrainResult(run.state.step, run.state.tokens, run.measured)


def pick_device(name: str) -> torch.device:
    """`"auto"` is CUDA where there is one, else the CPU.

    Raises:
        TrainError: CUDA is asked for and missing.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise TrainError("settings.device is cuda, but PyTorch finds no CUDA device; use --settings.device cpu")
    return torch.device(name)
