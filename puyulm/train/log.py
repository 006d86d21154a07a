"""What is written down and shown of a run: files that grow by a line a step, the screen, and other programs' files."""

from __future__ import annotations

import os
import resource
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
import yaml

from puyulm.errors import PuyuError
from puyulm.model.config import ModelConfig
from puyulm.parallel.world import World
from puyulm.train.checkpoint import TrainState
from puyulm.train.course import Course
from puyulm.train.flops import find_peak, palm_flops
from puyulm.train.metrics import (
    EVENTS_FILE,
    LOG_FILE,
    METRICS_FILE,
    VALIDATION_FILE,
    AppendFile,
    JsonLines,
    Smoothed,
    StepFigures,
    finite,
    json_line,
    short_names,
)  # fmt: skip
from puyulm.train.screen import open_screen, plain_line
from puyulm.train.settings import TrainSettings
from puyulm.train.trackers import EventFile, Tracker, WeightsAndBiases

RECIPE_FILE = "recipe.yaml"
RATE_STEPS = 100


class RunLog:
    """What is written down and shown of a run's steps; only the main process does.

    In the run's folder: `metrics.jsonl` and `validation.jsonl` (a line a step, none twice), `events.jsonl` and
    `train.log` (all that ever happened, with the time), and `tensorboard/`.

    Args:
        folder: Of the run.
        config: Of the model, for floating-point operations.
        state: Where the run starts; later lines of metrics and validations are dropped.
        label: What is being done.

    Attributes:
        validations: The validations so far; None on other processes.

    Raises:
        TrainError: A file cannot be written, or Weights & Biases is asked for and cannot be had; on all processes.
    """

    def __init__(
        self, folder: Path, config: ModelConfig, course: Course, settings: TrainSettings, world: World,
        state: TrainState, label: str,
    ) -> None:  # fmt: skip
        self._folder, self._course, self._world, self._settings = folder, course, world, settings
        self.config = config
        self.validations: JsonLines | None = None
        self._files: _Files | None = None
        self._sources = short_names(course.sources)
        self._loss = Smoothed()
        self._source_losses = [Smoothed() for _ in course.sources]
        self._peak: float | None = None
        self._begun = False
        self._clock = time.perf_counter()
        self._recent: deque[tuple[float, int]] = deque([(self._clock, state.step)], maxlen=RATE_STEPS)
        error: PuyuError | OSError | None = None
        if world.main:
            try:
                self._files = _Files(folder, settings, state.step)
                self.validations = self._files.validations
                self._screen = open_screen(label, course.steps, settings.log_every)
            except (PuyuError, OSError) as caught:
                error = caught
        world.raise_alike(error)

    def step(
        self, state: TrainState, lr: float, values: Sequence[float], sources: Sequence[Sequence[float]], tokens: int,
        flops: float, *, seq_len: int | None = None, data_seconds: float = 0.0,
    ) -> None:  # fmt: skip
        """Writes and shows one step, in order; called when its values have come from the device.

        Args:
            state: After the step.
            values, sources: Of its `StepResult`.
            tokens, flops: Of the whole global batch.
            seq_len: Tokens of a row, for MFU by PaLM's convention; None leaves that out.
            data_seconds: How long the step waited for its batches.
        """
        now = time.perf_counter()
        seconds, self._clock = max(now - self._clock, 1e-9), now
        if self._files is None:
            return
        if not self._begun:
            self._begin(state, flops)
            self.pause()
        loss, norm, targets, skipped = values[:4]
        factor = self._course.bits_per_byte_factor
        if not skipped:
            self._loss.add(loss * targets, targets)
        self._recent.append((now, state.step))
        figures = StepFigures(
            step=state.step, steps=self._course.steps, tokens=state.tokens, phase=self._course.phase(state.step - 1),
            lr=lr, loss=loss, smoothed=self._loss.value, grad_norm=norm, targets=int(targets),
            bits_per_byte=None if factor is None else loss * factor,
            tokens_per_second=tokens / seconds,
            mfu=None if seq_len is None else self._utilisation(palm_flops(self.config, tokens, seq_len), seconds),
            mfu_causal=self._utilisation(flops, seconds),
            memory_gib=memory_gib(self._world.device), seconds=seconds, data_seconds=min(data_seconds, seconds),
            left=self._left(), skipped=bool(skipped), **self._by_source(sources, bool(skipped)),
        )  # fmt: skip
        self._files.step(figures)
        self._screen.step(figures)

    def validation(self, state: TrainState, measured: Mapping[str, float]) -> None:
        """Writes and shows a validation."""
        if self._files is not None:
            self._files.validation(state.step, state.tokens, measured)
        shown = ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in measured.items())
        self.say(f"step {state.step:,}: validation {shown}")

    def event(self, step: int, kind: str, text: str, **facts: object) -> None:
        """Something worth a line of its own: a step not taken, going back, stopping.

        Args:
            kind: One word.
            facts: More about it, for programs.
        """
        if self._files is not None:
            self._files.event(step, kind, text, facts)
        self.say(text)

    def say(self, text: str) -> None:
        """A line above the progress, and in `train.log`."""
        if self._files is not None:
            self._files.note(text)
            self._screen.say(text)

    def aside(self) -> AbstractContextManager[None]:
        """Leaves the screen to others, who show progress of their own, for a while."""
        return nullcontext() if self._files is None else self._screen.aside()

    def pause(self) -> None:
        """Leaves what happened since the last step (validation, saving) out of the next speed."""
        self._clock = time.perf_counter()

    def rewind(self, state: TrainState) -> None:
        """The run is back at a checkpoint: the lines of later steps are dropped."""
        self._loss = Smoothed()
        self._source_losses = [Smoothed() for _ in self._source_losses]
        self._recent.clear()
        self._recent.append((time.perf_counter(), state.step))
        if self._files is not None:
            self._files.rewind(state.step)
            self.validations = self._files.validations
        self.pause()

    def close(self) -> None:
        """Ends the progress and closes the files."""
        if self._files is not None:
            self._screen.close()
            self._files.close()

    def _begin(self, state: TrainState, flops: float) -> None:
        """Tells what the run goes on, and against what its speed is measured."""
        self._begun = True
        world, settings, before = self._world, self._settings, state.step - 1
        self._peak = find_peak(world, settings.dtype, flops, settings.peak_tflops)
        cuda = world.device.type == "cuda"
        device = torch.cuda.get_device_name(world.device) if cuda else f"CPU, {torch.get_num_threads()} threads"
        many = f"{world.size} x " if world.size > 1 else ""
        against = "" if self._peak is None else f"; MFU is of {self._peak:.4g} TFLOP/s" + " each" * (world.size > 1)
        self.event(
            before, "resume" if before else "start",
            f"step {before:,} of {self._course.steps:,}, on {many}{device}, {settings.dtype}{against}",
            steps=self._course.steps, device=f"{many}{device}", peak_tflops=self._peak, torch=torch.__version__,
        )  # fmt: skip

    def _utilisation(self, flops: float, seconds: float) -> float | None:
        return None if self._peak is None else flops / seconds / (self._peak * 1e12 * self._world.size)

    def _left(self) -> float | None:
        """Seconds to the end, at the pace of the last steps with all their pauses."""
        (begin, first), (now, last) = self._recent[0], self._recent[-1]
        return (
            (now - begin) / (last - first) * (self._course.steps - last) if first < last < self._course.steps else None
        )

    def _by_source(self, sources: Sequence[Sequence[float]], skipped: bool) -> dict[str, Any]:
        if not self._sources:
            return {}
        now, smoothed = {}, {}
        for name, mean, total, targets in zip(self._sources, self._source_losses, *sources, strict=True):
            if targets:
                now[name] = (total / targets, int(targets))
            if not skipped:
                mean.add(total, targets)
            if mean.value is not None:
                smoothed[name] = mean.value
        return {"sources": now, "sources_smoothed": smoothed}


class _Files:
    """The files of the main process."""

    def __init__(self, folder: Path, settings: TrainSettings, step: int) -> None:
        self._folder = folder
        self._open_rows(step)
        self._events, self._log = AppendFile(folder / EVENTS_FILE), AppendFile(folder / LOG_FILE)
        self._trackers: list[Tracker] = []
        if settings.tensorboard:
            self._trackers.append(EventFile(folder, step))
        if settings.wandb is not None:
            self._trackers.append(WeightsAndBiases(settings.wandb, folder, step, _recipe(folder)))

    def step(self, figures: StepFigures) -> None:
        row = figures.row()
        self._metrics.append([row])
        self.note(plain_line(figures))
        if self._trackers:
            scalars = {name: value for name, value in row.items() if isinstance(value, float)}
            scalars |= {f"sources/{name}": loss for name, (loss, _) in figures.sources.items()}
            self._track(figures.step, scalars)

    def validation(self, step: int, tokens: int, measured: Mapping[str, float]) -> None:
        self.validations.append([{"step": step, "tokens": tokens, **measured}])
        self._track(step, {f"validation/{name}": value for name, value in measured.items()})

    def event(self, step: int, kind: str, text: str, facts: Mapping[str, object]) -> None:
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        self._events.write(json_line({"step": step, "kind": kind, "text": text, "time": now, **facts}))

    def note(self, text: str) -> None:
        self._log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n".encode())

    def rewind(self, step: int) -> None:
        self._metrics.close()
        self.validations.close()
        self._open_rows(step)
        for tracker in self._trackers:
            tracker.rewind(step)

    def close(self) -> None:
        for tracker in self._trackers:
            tracker.close()
        for file in (self._metrics, self.validations, self._events, self._log):
            file.close()

    def _open_rows(self, step: int) -> None:
        self._metrics = JsonLines(self._folder / METRICS_FILE, step)
        self.validations = JsonLines(self._folder / VALIDATION_FILE, step)

    def _track(self, step: int, scalars: Mapping[str, float]) -> None:
        known = {name: value for name, value in scalars.items() if finite(value) is not None}
        for tracker in self._trackers:
            tracker.write(step, known)


def memory_gib(device: torch.device) -> float:
    """GiB: the most that tensors took on a GPU so far; elsewhere what of the process is in memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    try:
        with open("/proc/self/statm", "rb", buffering=0) as file:
            return int(file.read(100).split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**30
    except OSError:  # no Linux: the most so far, which macOS gives in bytes and others in KiB
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most / (2**30 if sys.platform == "darwin" else 2**20)


def _recipe(folder: Path) -> dict[str, Any]:
    """The recipe that lies beside the run, for those who compare runs; empty without one."""
    try:
        return dict(yaml.safe_load((folder / RECIPE_FILE).read_text("utf-8")))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
