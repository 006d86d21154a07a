"""The phases of a pretraining run, and which rows, learning rate and rotary base each step has."""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from puyulm.errors import RecipeError
from puyulm.train.schedule import Schedule
from puyulm.train.settings import Shape, TrainSettings

Data = Path | dict[str, float]
"""A folder of token shards, or several with the share of the tokens that each gives."""


@dataclass(frozen=True, kw_only=True)
class BatchRamp:
    """Small batches at the beginning of a phase: `start` tokens, and `increment` more after every `every` steps."""

    start: int
    increment: int
    every: int

    def __post_init__(self) -> None:
        for name in ("start", "increment", "every"):
            if getattr(self, name) < 1:
                raise RecipeError(f"{name} must be above 0, not {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A stretch of a run with one length of rows and one mixture.

    Attributes:
        name: Shown in logs; under `mixture`, the folder of the phase's shards.
        tokens: Tokens to train on, rounded up to whole steps; or give `steps`.
        seq_len: Tokens of a row; longer documents go on in another row.
        batch_tokens: Tokens of a step, over all ranks and micro-batches: a multiple of `seq_len`.
        ramp: Smaller batches at the beginning of the phase.
        rope_theta: Base of the rotary embedding; None leaves it as it was.
        lr, min_lr_ratio, warmup_ratio, schedule, decay_ratio: With `lr` (or any other of them) a learning-rate schedule
            of its own begins with this phase, where what is not given is the run's. Without, that of the phase before
            goes on: it spans both.
        data: Token shards; None takes the recipe's.
    """

    name: str = "train"
    tokens: int | None = None
    steps: int | None = None
    seq_len: int
    batch_tokens: int
    ramp: BatchRamp | None = None
    rope_theta: float | None = None
    lr: float | None = None
    min_lr_ratio: float | None = None
    warmup_ratio: float | None = None
    schedule: Shape | None = None
    decay_ratio: float | None = None
    data: Data | None = None

    def __post_init__(self) -> None:
        problems = [
            f"{name} must be above 0, not {value}"
            for name in ("tokens", "steps", "seq_len", "batch_tokens", "rope_theta", "lr")
            if (value := getattr(self, name)) is not None and not value > 0
        ] + [
            f"{name} must be between 0 and 1, not {value}"
            for name in ("min_lr_ratio", "warmup_ratio", "decay_ratio")
            if (value := getattr(self, name)) is not None and not 0 <= value <= 1
        ]
        if (self.tokens is None) == (self.steps is None):
            problems.append("give either tokens or steps")
        sizes = {"batch_tokens": self.batch_tokens}
        if self.ramp is not None:
            sizes |= {"ramp.start": self.ramp.start, "ramp.increment": self.ramp.increment}
            if self.ramp.start >= self.batch_tokens:
                problems.append(f"ramp.start {self.ramp.start:,} must be below batch_tokens {self.batch_tokens:,}")
        if self.seq_len > 0:
            problems += [
                f"{name} {value:,} is no multiple of seq_len {self.seq_len:,}"
                for name, value in sizes.items()
                if value % self.seq_len
            ]
        if problems:
            raise RecipeError(f"phase {self.name}: {'; '.join(problems)}")

    @property
    def own_schedule(self) -> bool:
        """Whether a learning-rate schedule begins with this phase."""
        names = ("lr", "min_lr_ratio", "warmup_ratio", "schedule", "decay_ratio")
        return any(getattr(self, name) is not None for name in names)


@dataclass(frozen=True)
class Segment:
    """Steps of one phase that have equally many rows.

    Attributes:
        phase: Index of the phase.
        first_step, steps: Counted over the whole run.
        rows: Rows of each step, over all ranks.
        first_row: Row of the phase with which the first step begins.
        full: Whether a ramp is over.
    """

    phase: int
    first_step: int
    steps: int
    rows: int
    first_row: int
    full: bool


class Timeline:
    """Which rows, learning rate and rotary base each step has: pure functions of its number.

    Args:
        phases: In order.
        settings: For the learning rate of phases without one of their own.
    """

    def __init__(self, phases: Sequence[Phase], settings: TrainSettings) -> None:
        self.phases = list(phases)
        self.segments: list[Segment] = []
        for index, phase in enumerate(self.phases):
            self.segments += _segments(index, phase, self.segments[-1] if self.segments else None)
        self._firsts = [segment.first_step for segment in self.segments]
        self.steps = self.segments[-1].first_step + self.segments[-1].steps
        self._schedules = self._plan_schedules(settings)

    def segment(self, step: int) -> Segment:
        """The segment of a step; of the last step for any beyond it."""
        return self.segments[max(bisect.bisect_right(self._firsts, step) - 1, 0)]

    def phase(self, step: int) -> Phase:
        """The phase of a step."""
        return self.phases[self.segment(step).phase]

    def rows(self, step: int) -> tuple[int, int]:
        """First row, and the one behind the last, that a step takes of its phase's rows."""
        segment = self.segment(step)
        first = segment.first_row + (step - segment.first_step) * segment.rows
        return first, first + segment.rows

    def phase_rows(self, index: int) -> int:
        """Rows of all steps of a phase."""
        return sum(segment.steps * segment.rows for segment in self.segments if segment.phase == index)

    def phase_tokens(self, index: int) -> int:
        """Tokens of all steps of a phase."""
        return self.phase_rows(index) * self.phases[index].seq_len

    def rows_before(self, step: int, index: int) -> int:
        """Rows of a phase that steps before `step` take."""
        steps = self.phase_steps(index)
        if step >= steps.stop:
            return self.phase_rows(index)
        return self.rows(step)[0] if step > steps.start else 0

    def phase_steps(self, index: int) -> range:
        """The steps of a phase."""
        mine = [segment for segment in self.segments if segment.phase == index]
        return range(mine[0].first_step, mine[-1].first_step + mine[-1].steps)

    def tokens(self, step: int) -> int:
        """Tokens of one step, over all ranks."""
        segment = self.segment(step)
        return segment.rows * self.phases[segment.phase].seq_len

    @property
    def total_tokens(self) -> int:
        """Tokens of the whole run."""
        return sum(map(self.phase_tokens, range(len(self.phases))))

    def lr(self, step: int) -> float:
        """The learning rate of a step."""
        first, schedule = next(entry for entry in reversed(self._schedules) if entry[0] <= step)
        return schedule(step - first)

    def rope_theta(self, step: int) -> float | None:
        """The rotary base of a step: the last that a phase up to now has set; None before that."""
        until = self.phases[: self.segment(step).phase + 1]
        return next((phase.rope_theta for phase in reversed(until) if phase.rope_theta is not None), None)

    def _plan_schedules(self, settings: TrainSettings) -> list[tuple[int, Schedule]]:
        begins = [i for i, phase in enumerate(self.phases) if i == 0 or phase.own_schedule]
        schedules = []
        for index, end in zip(begins, [*begins[1:], len(self.phases)], strict=True):
            phase, first = self.phases[index], self.phase_steps(index).start
            schedule = Schedule.of(
                settings, self.phase_steps(end - 1).stop - first, lr=phase.lr, min_lr_ratio=phase.min_lr_ratio,
                warmup_ratio=phase.warmup_ratio, shape=phase.schedule, decay_ratio=phase.decay_ratio,
            )  # fmt: skip
            schedules.append((first, schedule))
        return schedules


def _segments(index: int, phase: Phase, before: Segment | None) -> list[Segment]:
    """A phase as segments: those of its ramp, then the rest."""
    step, row = before.first_step + before.steps if before else 0, 0
    full = phase.batch_tokens // phase.seq_len
    segments: list[Segment] = []
    for rows, most in _sizes(phase):
        if phase.tokens is None:
            assert phase.steps is not None
            left = phase.steps - sum(segment.steps for segment in segments)
        else:
            left = math.ceil((math.ceil(phase.tokens / phase.seq_len) - row) / rows)
        steps = left if most is None else min(left, most)
        if steps > 0:
            segments.append(Segment(index, step, steps, rows, row, rows == full))
            step, row = step + steps, row + steps * rows
    return segments


def _sizes(phase: Phase) -> Iterator[tuple[int, int | None]]:
    """Rows of a step, and how many steps have as many at most: up the ramp, then for the rest of the phase."""
    full = phase.batch_tokens // phase.seq_len
    if phase.ramp is not None:
        for tokens in range(phase.ramp.start, phase.batch_tokens, phase.ramp.increment):
            yield tokens // phase.seq_len, phase.ramp.every
    yield full, None
