"""The parts of the training loop: a step, a look at its values, the way back, and what is due between steps."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from puyulm.data.report.numbers import duration
from puyulm.errors import TrainError
from puyulm.parallel.build import Fill, ParallelModel
from puyulm.train.checkpoint import Checkpoints, TrainState, step_of
from puyulm.train.course import Course
from puyulm.train.feed import Feed
from puyulm.train.flops import training_flops
from puyulm.train.guard import Guard
from puyulm.train.log import RunLog
from puyulm.train.optimizer import Optimizer
from puyulm.train.profile import StepProfile
from puyulm.train.readback import Readback
from puyulm.train.settings import TrainSettings
from puyulm.train.signals import StopSignals
from puyulm.train.step import to_device, train_step

Validate = Callable[[ParallelModel, int], Mapping[str, float]]
"""Measures the model after so many steps, on all ranks together; names and values go to `validation.jsonl`."""

Export = Callable[[ParallelModel, int], None]
"""Writes the model of a step in the published layout, on all ranks together."""


@dataclass(frozen=True)
class _Step:
    """A step on its way to the log: the state after it, and the seconds that it waited for its batches."""

    state: TrainState
    lr: float
    tokens: int
    flops: float
    waited: float


class Trainer:
    """A run between its steps: a context manager, of which the loop calls one method after another.

    Args:
        folder: The run's.
        identity: Stored in the checkpoints.
        label: What is being done, for the log.
        profile: Trace a few steps, see `StepProfile`.

    Attributes:
        state: How far it is; `skipped` and `streak` as far as the host has looked.
        measured: By the last validation.
        flags: Of signals, summed over the ranks; see `signals.stop`.
        spiked: The state after the step with which too many in a row were not taken.
    """

    def __init__(
        self, model: ParallelModel, course: Course, settings: TrainSettings, folder: Path, identity: dict[str, Any],
        label: str, profile: bool,
    ) -> None:  # fmt: skip
        self.model, self.course, self.settings, self.folder, self.label = model, course, settings, folder, label
        self.world = model.world
        self.optimizer = Optimizer(dict(model.named_parameters()), settings, model.config)
        self.guard = Guard(settings.spikes, self.world.device)
        self.checkpoints = Checkpoints(folder, self.world, settings)
        self.state = TrainState(step=0, tokens=0, identity=identity)
        self.measured: dict[str, float] = {}
        self.flags = 0.0
        self.spiked: TrainState | None = None
        self._intervals = settings.checkpoint_every, settings.eval_every, settings.export_every
        self._log: RunLog | None = None
        self._profile = None
        if profile:
            self._profile = StepProfile(folder, self.world.rank, self.world.device, lambda text: self.log.say(text))
        self._theta = model.config.rope.theta
        self._readback: Readback[_Step] = Readback(self.world.device)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.checkpoints.close()
        if self._log is not None:
            if self._profile is not None:
                self._profile.close()
            self._log.close()

    @property
    def log(self) -> RunLog:
        """What is written down and shown, from `begin` on."""
        assert self._log is not None
        return self._log

    def begin(self, fill: Fill, validate: Validate | None) -> None:
        """First weights or the newest checkpoint, and a validation that a killed run still owes."""
        if self.world.main and self.world.plan.compile:
            print(f"{self.label}: compiling the layers; the first step takes a minute longer", file=sys.stderr)
        path = self.checkpoints.newest()
        if path is None:
            fill(self.model)
        else:
            self._load(path)
            if self.world.main:
                done = self.state.step >= self.course.steps
                where = f"resuming at step {self.state.step:,} of {self.course.steps:,}"
                print(f"{self.label}: {'already trained' if done else where} ({self.folder})", file=sys.stderr)
        self._set_rope_theta(max(self.state.step - 1, 0))
        self._log = RunLog(
            self.folder, self.model.config, self.course, self.settings, self.world, self.state, self.label
        )
        last = self.world.share(dict(self.log.validations.last) if self.log.validations is not None else {})
        if last.get("step") == self.state.step:
            self.measured = {name: value for name, value in last.items() if name not in ("step", "tokens")}
        elif self._due(self.settings.eval_every):
            self._measure(validate)

    def take_step(self, feed: Feed, signals: StopSignals) -> None:
        """Launches one step, which also tells all ranks of signals to any."""
        course, step = self.course, self.state.step
        started = time.perf_counter()
        batches = feed.batches(step, self.state.skips)
        waited = time.perf_counter() - started
        self._set_rope_theta(step)
        phase, lr = course.phase_index(step), course.lr(step)
        if phase != self.state.phase:
            self.guard.forget()
        result = train_step(
            self.model, self.optimizer, self.guard, to_device(self.model, batches), lr, self.settings,
            num_sources=len(course.sources), flag=lambda: signals.flag,
        )  # fmt: skip
        parts = self.world.plan.data_size
        tokens = sum(len(batch.tokens) for batch in batches) * parts
        flops = sum(training_flops(self.model.config, batch.lengths) for batch in batches) * parts
        self.state = replace(self.state, step=step + 1, tokens=self.state.tokens + tokens, phase=phase)
        self._readback.push(
            _Step(self.state, lr, tokens, flops, waited), torch.cat((result.values, result.sources.flatten()))
        )

    def look(self) -> None:
        """Looks at the values of steps that have come from the device; waits for them where something is to be done."""
        self._look(all=False)
        if self.spiked is None and (self.flags or self._due(*self._intervals)):
            self._look(all=True)
        if self._profile is not None:
            self._profile.step()
            self.log.pause()  # writing a trace is no part of a step

    def go_back(self, spiked: TrainState) -> None:
        """Back to the checkpoint before the steps that were not taken; their data, and all since, is left out."""
        self.spiked = None
        self._readback.clear()
        self.checkpoints.finish()
        path, most = self.checkpoints.newest(at_most=spiked.step - spiked.streak), self.settings.spikes.max_rollbacks
        if path is None or spiked.rollbacks >= most:
            why = "no checkpoint is from before them" if path is None else f"the run went back {most} times already"
            raise TrainError(
                f"step {spiked.step}: {spiked.streak} steps in a row have a loss or gradient that is not finite or a "
                f"spike, and {why}; lower settings.lr or settings.clip_norm, or lengthen settings.warmup_ratio"
            )
        self.checkpoints.discard_after(step_of(path))
        self._load(path)
        skips = self.course.skip(self.state.step, spiked.step - 1, spiked.skips)
        self.state = replace(self.state, skips=skips, skipped=spiked.skipped, rollbacks=spiked.rollbacks + 1, streak=0)
        self.log.rewind(self.state)
        self.log.event(
            spiked.step, "rollback",
            f"back from step {spiked.step:,} to the checkpoint of step {self.state.step:,}; "
            "the batches between are left out",
        )  # fmt: skip

    def do_what_is_due(self, validate: Validate | None, export: Export | None) -> None:
        """Saves, validates and exports; what that takes does not count as training."""
        save_every, eval_every, export_every = self._intervals
        if self._due(save_every):
            self.save()
        if self._due(eval_every):
            self._measure(validate)
        if export is not None and export_every is not None and self._due(export_every):
            with self.log.aside():
                export(self.model, self.state.step)
        if self._due(*self._intervals):
            self.log.pause()

    def save(self, wait: bool = False) -> None:
        """Writes a checkpoint."""
        started, step = time.perf_counter(), self.state.step
        self.checkpoints.save(self._tensors(), self.state, wait=wait)
        seconds = time.perf_counter() - started
        self.log.event(
            step, "checkpoint", f"step {step:,}: checkpoint, for which training waited {duration(seconds)}",
            seconds=seconds, epochs=self.course.epochs(step, self.state.skips),
        )  # fmt: skip

    def _load(self, path: Path) -> None:
        # The recipe's identity, not the checkpoint's: phases to come may have been changed.
        self.state = replace(self.checkpoints.load(path, self._tensors()), identity=self.state.identity)

    def _tensors(self) -> dict[str, Tensor]:
        return {
            **{f"model.{name}": parameter.detach() for name, parameter in self.model.named_parameters()},
            **{f"optimizer.{name}": tensor for name, tensor in self.optimizer.state_tensors().items()},
            **{f"guard.{name}": tensor for name, tensor in self.guard.state_tensors().items()},
        }

    def _set_rope_theta(self, step: int) -> None:
        theta = self.course.rope_theta(step) or self._theta
        if theta != self.model.config.rope.theta:
            self.model.evolve(rope=replace(self.model.config.rope, theta=theta))

    def _look(self, *, all: bool) -> None:
        """Counts, judges and logs steps in order, up to one where the run must go back: what was launched after it, on
        a device that the host does not wait for, is void."""
        for step, values in self._readback.take(all=all):
            skipped, now = bool(values[3]), self.state
            self.state = replace(now, skipped=now.skipped + skipped, streak=now.streak + 1 if skipped else 0)
            state = replace(step.state, skipped=self.state.skipped, streak=self.state.streak)
            self.flags = max(self.flags, values[4])
            if values[2] == 0:
                raise TrainError(f"step {state.step}: the batches have no token to learn from")
            sources = [values[5 : 5 + len(self.course.sources)], values[5 + len(self.course.sources) :]]
            self.log.step(
                state, step.lr, values, sources, step.tokens, step.flops,
                seq_len=self.course.seq_len(state.step - 1), data_seconds=step.waited,
            )  # fmt: skip
            if skipped:
                self.log.event(
                    state.step, "skipped",
                    f"step {state.step:,} is not taken: loss {values[0]:g}, gradient norm {values[1]:g}, "
                    f"{state.streak} in a row",
                )  # fmt: skip
            if state.streak >= self.settings.spikes.patience:
                self.spiked = state
                return

    def _measure(self, validate: Validate | None) -> None:
        if validate is None:
            return
        self.measured = dict(validate(self.model, self.state.step))
        if not all(map(math.isfinite, self.measured.values())):
            raise TrainError(f"step {self.state.step}: the validation is not finite: {self.measured}")
        self.log.validation(self.state, self.measured)

    def _due(self, *intervals: int | None) -> bool:
        """Whether something that is done every so many steps, and after the last, is to be done."""
        step = self.state.step
        return step == self.course.steps or any(step > 0 and step % every == 0 for every in intervals if every)
