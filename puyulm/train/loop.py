"""The one training loop, for pretraining and fine-tuning alike.

It is handed a model over any number of ranks, a course that says what each step is, and settings. Everything that could
differ between two runs of the same recipe (batches, learning rates) is a function of the step's number, so a resumed
run goes on with the very numbers of an uninterrupted one, on whatever ranks.
"""

from __future__ import annotations

import math
import sys
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from puyulm.data.packing import PackedBatch
from puyulm.errors import TrainError
from puyulm.parallel.build import Fill, ParallelModel
from puyulm.train.checkpoint import Checkpoints, TrainState
from puyulm.train.course import Course
from puyulm.train.feed import Feed
from puyulm.train.guard import Guard
from puyulm.train.metrics import RunLog, training_flops
from puyulm.train.optimizer import Optimizer
from puyulm.train.settings import TrainSettings
from puyulm.train.signals import StopSignals
from puyulm.train.step import StepResult, to_device, train_step

Validate = Callable[[ParallelModel], Mapping[str, float]]
"""Measures a model, on all ranks together; the names and values go to `validation.jsonl`."""

Export = Callable[[ParallelModel, int], None]
"""Writes the model of a step in the published layout, on all ranks together."""


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
) -> TrainResult:
    """Trains in place, from the newest checkpoint in `folder` where there is one.

    Writes `metrics.jsonl` (a line a step), `validation.jsonl`, and `checkpoints/`. Ctrl-C, SIGTERM and SIGUSR1 let the
    step finish and write a checkpoint first.

    Args:
        folder: The run's, made ready by `open_run`.
        identity: Stored in the checkpoints, see `open_run`.
        fill: Gives the model its first weights, where there is no checkpoint.
        validate: Called every `eval_every` steps and after the last.
        export: Called every `export_every` steps.

    Raises:
        TrainError: Steps could not be taken again and again, or a checkpoint cannot be read or written.
        KeyboardInterrupt: After the checkpoint that Ctrl-C asked for.
        Preempted: After the checkpoint that another signal asked for.
    """
    run = _Run(model, course, settings, folder, dict(identity), fill, validate, export, label)
    parts = model.world.plan.data_size
    with StopSignals() as stop, Feed(course, model.world.data_rank, parts, settings.prefetch) as feed:
        try:
            run.begin()
            while run.state.step < course.steps:
                run.take_step(feed.batches(run.state.step, run.state.skips), stop.asked)
                run.after_step()
                if run.stopping and run.state.step < course.steps:
                    run.save(wait=True)
                    run.log.say(f"stopped after step {run.state.step:,}; the same command goes on from there")
                    stop.end()
            if stop.asked:  # in the last step or its validation: what follows the run is not wanted either
                run.log.say(f"all {course.steps:,} steps are done; the same command only saves the model")
                stop.end()
        finally:
            run.end()
    model.train(False)
    return TrainResult(run.state.step, run.state.tokens, run.measured)


class _Run:
    """The state of a run between its steps."""

    def __init__(
        self, model: ParallelModel, course: Course, settings: TrainSettings, folder: Path, identity: dict[str, Any],
        fill: Fill, validate: Validate | None, export: Export | None, label: str,
    ) -> None:  # fmt: skip
        self.model, self.course, self.settings, self.folder, self.label = model, course, settings, folder, label
        self._fill, self._validate, self._export = fill, validate, export
        self.world = model.world
        self.optimizer = Optimizer(dict(model.named_parameters()), settings)
        self.guard = Guard(settings.spikes, self.world.device)
        self.checkpoints = Checkpoints(folder, self.world, settings)
        self.state = TrainState(step=0, tokens=0, identity=identity)
        self.stopping = False
        self.measured: dict[str, float] = {}
        # Steps whose values have not come from the device yet. On a GPU the host looks one step behind, and so never
        # waits for the device to be idle.
        self._pending: deque[tuple[_Step, Tensor, torch.cuda.Event | None]] = deque()
        self._lag = 1 if self.world.device.type == "cuda" else 0

    def begin(self) -> None:
        """First weights or the newest checkpoint, and a validation that a killed run still owes."""
        path = self.checkpoints.newest()
        if path is None:
            self._fill(self.model)
        else:
            self.state = self.checkpoints.load(path, self._tensors())
            if self.world.main:
                done = self.state.step >= self.course.steps
                where = f"resuming at step {self.state.step:,} of {self.course.steps:,}"
                print(f"{self.label}: {'already trained' if done else where} ({self.folder})", file=sys.stderr)
        self._open_log()
        last = self.log.validations.last if self.log.validations is not None else {}
        last = self.world.share(dict(last))
        if last.get("step") == self.state.step:
            self.measured = {name: value for name, value in last.items() if name not in ("step", "tokens")}
        else:
            self._validate_if_due()

    def take_step(self, batches: list[PackedBatch], flag: bool) -> None:
        """One step; its values are looked at when they have come from the device."""
        course, step = self.course, self.state.step
        theta = course.rope_theta(step)
        if theta is not None and theta != self.model.config.rope.theta:
            self.model.evolve(rope=replace(self.model.config.rope, theta=theta))
        lr = course.lr(step)
        result = train_step(
            self.model, self.optimizer, self.guard, to_device(self.model, batches), lr, self.settings,
            num_sources=len(course.sources), flag=flag,
        )  # fmt: skip
        parts = self.world.plan.data_size
        tokens = sum(len(batch.tokens) for batch in batches) * parts
        flops = sum(training_flops(self.model.config, batch.lengths) for batch in batches) * parts
        phase = course.phase_index(step)
        self.state = replace(self.state, step=step + 1, tokens=self.state.tokens + tokens, phase=phase)
        self._push(_Step(self.state, lr, tokens, flops), result)
        while len(self._pending) > self._lag:
            self._look()

    def after_step(self) -> None:
        """Goes back, saves, validates and exports where that is due."""
        due = [self._due(every) for every in (self.settings.checkpoint_every, self.settings.eval_every)]
        due.append(self.settings.export_every is not None and self._due(self.settings.export_every))
        if self.stopping or any(due) or self.state.streak >= self.settings.spikes.patience:
            while self._pending:
                self._look()
        if self.state.streak >= self.settings.spikes.patience:
            self._roll_back()
            return
        if due[0]:
            self.save()
        self._validate_if_due()
        if due[2] and self._export is not None:
            self._export(self.model, self.state.step)
        if any(due):
            self.log.pause()

    def save(self, wait: bool = False) -> None:
        """Writes a checkpoint."""
        self.checkpoints.save(self._tensors(), self.state, wait=wait)

    def end(self) -> None:
        """Leaves files as they should be, whatever ended the run."""
        self.checkpoints.finish()
        if hasattr(self, "log"):
            self.log.close()

    def _open_log(self) -> None:
        if hasattr(self, "log"):
            self.log.close()
        self.log = RunLog(
            self.folder, self.model.config, self.course, self.settings, self.world, self.state, self.label
        )

    def _tensors(self) -> dict[str, Tensor]:
        return {
            **{f"model.{name}": parameter.detach() for name, parameter in self.model.named_parameters()},
            **{f"optimizer.{name}": tensor for name, tensor in self.optimizer.state_tensors().items()},
            **{f"guard.{name}": tensor for name, tensor in self.guard.state_tensors().items()},
        }

    def _push(self, step: _Step, result: StepResult) -> None:
        values = torch.cat((result.values, result.sources.flatten()))
        event = None
        if values.is_cuda:
            values = torch.empty_like(values, device="cpu", pin_memory=True).copy_(values, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        self._pending.append((step, values, event))

    def _look(self) -> None:
        step, tensor, event = self._pending.popleft()
        if event is not None:
            event.synchronize()
        values = tensor.tolist()
        sources = tensor[5:].view(2, -1).tolist()
        skipped = bool(values[3])
        self.stopping |= values[4] > 0
        before = self.state
        self.state = replace(before, skipped=before.skipped + skipped, streak=before.streak + 1 if skipped else 0)
        self.log.step(step.state, step.lr, values, sources, step.tokens, step.flops)
        if skipped:
            self.log.event(
                step.state.step, "skipped",
                f"step {step.state.step:,} is not taken: loss {values[0]:g}, gradient norm {values[1]:g}, "
                f"{self.state.streak} in a row",
            )  # fmt: skip

    def _roll_back(self) -> None:
        """Back to the checkpoint before the steps that were not taken; their data, and all since, is left out."""
        step, spikes = self.state.step, self.settings.spikes
        self.checkpoints.finish()
        path = self.checkpoints.newest(at_most=step - self.state.streak)
        rollbacks = self.state.rollbacks + 1
        if path is None or rollbacks > spikes.max_rollbacks:
            why = "there is no checkpoint yet" if path is None else f"it went back {spikes.max_rollbacks} times already"
            raise TrainError(
                f"step {step}: {self.state.streak} steps in a row have a loss or gradient that is not finite or a spike, and "
                f"{why}; lower settings.lr or settings.clip_norm, or lengthen settings.warmup_ratio"
            )
        before = self.state
        self.state = self.checkpoints.load(path, self._tensors())
        skips = self.course.skip(self.state.step, step - 1, self.state.skips)
        self.state = replace(self.state, skips=skips, skipped=before.skipped, rollbacks=rollbacks, streak=0)
        self._open_log()
        self.log.event(
            step, "rollback",
            f"back from step {step:,} to the checkpoint of step {self.state.step:,}; the batches between are left out",
        )  # fmt: skip

    def _validate_if_due(self) -> None:
        if self._validate is None or not self._due(self.settings.eval_every):
            return
        self.measured = dict(self._validate(self.model))
        if not all(map(math.isfinite, self.measured.values())):
            raise TrainError(f"step {self.state.step}: the validation is not finite: {self.measured}")
        self.log.validation(self.state, self.measured)

    def _due(self, every: int | None) -> bool:
        step = self.state.step
        return step == self.course.steps or (every is not None and step > 0 and step % every == 0)


@dataclass(frozen=True)
class _Step:
    """A step on its way to the log; `state` is that after it."""

    state: TrainState
    lr: float
    tokens: int
    flops: float


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
