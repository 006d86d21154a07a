"""The course of a pretraining run: rows of token shards, phase after phase."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from puyulm.data.packing import PackedBatch
from puyulm.data.stream import Mixture
from puyulm.errors import RecipeError
from puyulm.parallel.plan import ParallelPlan, micro_rows
from puyulm.train.course import Skips
from puyulm.train.phases import Segment, Timeline
from puyulm.train.sources import Sources

MOST_EPOCHS = 4  # up to about so many, repeated text is nearly as good as new (Muennighoff et al. 2023, section 5)
LITTLE_MORE = 1.01


@dataclass(frozen=True)
class _Reading:
    """How a phase is read: its row `r` is row `r + offset` of the mixture."""

    mixture: Mixture
    offset: int


class PhasedRows:
    """A `Course` over token shards.

    A phase goes on in each stream where the phases before have stopped, whatever the length of their rows. The rows of
    a step follow from its number and from what was left out, and not from how many ranks there are, how they are laid
    out and what a micro-batch holds.

    Args:
        micro_tokens: Tokens of a micro-batch, at most; a row at least.
        boundaries: Documents see only themselves; off, a row is one text.
    """

    def __init__(self, timeline: Timeline, sources: Sources, micro_tokens: int, *, boundaries: bool = True) -> None:
        self.timeline, self.streams, self._weights = timeline, sources.streams, sources.weights
        self._micro_tokens, self._boundaries = micro_tokens, boundaries
        self.steps = timeline.steps
        self.sources: Sequence[str] = sources.names
        self._readings: dict[tuple[int, Skips], _Reading] = {}
        self.bits_per_byte_factor: float | None = self._targets_per_byte() / math.log(2)

    def lr(self, step: int) -> float:
        return self.timeline.lr(step)

    def rope_theta(self, step: int) -> float | None:
        return self.timeline.rope_theta(step)

    def phase(self, step: int) -> str:
        return self.timeline.phase(step).name if len(self.timeline.phases) > 1 else ""

    def phase_index(self, step: int) -> int:
        return self.timeline.segment(step).phase

    def seq_len(self, step: int) -> int:
        return self.timeline.phase(step).seq_len

    def batches(self, step: int, part: int, parts: int, skips: Skips = ()) -> list[PackedBatch]:
        segment = self.timeline.segment(step)
        reading = self._reading(segment.phase, skips)
        share = segment.rows // parts
        first = self.timeline.rows(step)[0] + reading.offset + part * share
        rows = self._micro_rows(segment, parts)
        return [reading.mixture.batch(row, row + rows) for row in range(first, first + share, rows)]

    def skip(self, first: int, last: int, skips: Skips = ()) -> Skips:
        """Pairs of numbers: the run went back to step `first` after the data of the steps before the other was read."""
        return (*skips, first, last + 1)

    def positions(self, step: int, skips: Skips = ()) -> list[int]:
        """Tokens of each stream that are read, or left out, before a step."""
        index = self.phase_index(max(step - 1, 0))
        reading = self._reading(index, skips)
        return reading.mixture.positions(reading.offset + self.timeline.rows_before(step, index))

    def epochs(self, step: int, skips: Skips = ()) -> dict[str, float]:
        positions = self.positions(step, skips)
        return {
            stream.label: position / stream.shards.num_tokens
            for stream, position in zip(self.streams, positions, strict=True)
        }

    def check(self, plan: ParallelPlan) -> None:
        """Raises RecipeError where a step's rows cannot be divided among the ranks that read data, or a rank's share of
        them not into micro-batches for its pipeline."""
        problems: dict[int, str] = {}  # one a phase
        for segment in self.timeline.segments:
            phase = self.timeline.phases[segment.phase]
            if segment.rows % plan.data_size:
                where = "batch_tokens" if segment.full else "ramp.start and ramp.increment"
                problems.setdefault(
                    segment.phase,
                    f"phase {phase.name}: {segment.rows} rows of {phase.seq_len:,} tokens a step cannot be divided "
                    f"among {plan.data_size} ranks (replicate x shard); make {where} multiples of "
                    f"{plan.data_size * phase.seq_len:,}",
                )
                continue
            count = segment.rows // plan.data_size // self._micro_rows(segment, plan.data_size)
            if (problem := plan.micro_batches_problem(count)) is not None:
                problems.setdefault(segment.phase, f"phase {phase.name}: {problem}")
        if problems:
            raise RecipeError("; ".join(problems.values()))

    def notes(self) -> list[str]:
        """What whoever starts this run should know of its data, a line each."""
        lines = []
        for index, phase in enumerate(self.timeline.phases):
            tokens = self.timeline.phase_tokens(index)
            if phase.tokens is not None and tokens > phase.tokens * LITTLE_MORE:
                lines.append(
                    f"phase {phase.name} takes {tokens:,} tokens instead of {phase.tokens:,}: whole steps of "
                    f"{phase.batch_tokens:,}"
                )
        for label, epochs in self.epochs(self.steps).items():
            if epochs > MOST_EPOCHS:
                lines.append(
                    f"{label} is read {epochs:.1f} times; text that comes more than {MOST_EPOCHS} times teaches little"
                )
        return lines

    def _reading(self, index: int, skips: Skips) -> _Reading:
        """How a phase is read by steps behind the last going back."""
        key = (index, skips)
        if key not in self._readings:
            self._readings[key] = self._find_reading(index, skips)
        return self._readings[key]

    def _find_reading(self, index: int, skips: Skips) -> _Reading:
        if skips:
            earlier, first, behind = skips[:-2], skips[-2], skips[-1]
            back = self.phase_index(first)
            if index < back:
                return self._reading(index, earlier)
            if index == back:
                # The phase goes on with the next of its rows, but behind all that later phases had read, too.
                before = self._reading(index, earlier)
                read = before.offset + self.timeline.rows_before(behind, index)
                positions = self.positions(behind, earlier)
                mixture = self._mixture(index, before.mixture.starts_for(read, positions))
                return _Reading(mixture, read - self.timeline.rows_before(first, index))
        if index == 0:
            return _Reading(self._mixture(0, [0] * len(self.streams)), 0)
        return _Reading(self._mixture(index, self.positions(self.timeline.phase_steps(index).start, skips)), 0)

    def _mixture(self, index: int, starts: Sequence[int]) -> Mixture:
        seq_len = self.timeline.phases[index].seq_len
        return Mixture(self.streams, self._weights[index], seq_len, starts, boundaries=self._boundaries)

    def _micro_rows(self, segment: Segment, parts: int) -> int:
        return micro_rows(segment.rows // parts, self._micro_tokens // self.timeline.phases[segment.phase].seq_len)

    def _targets_per_byte(self) -> float:
        """Tokens with a loss for a byte of text, in what the whole run reads."""
        targets = size = 0.0
        for stream, epochs in zip(self.streams, self.epochs(self.steps).values(), strict=True):
            ends = stream.shards.num_documents if self._boundaries else 0
            targets += epochs * (stream.shards.num_tokens - ends)
            size += epochs * stream.shards.num_bytes
        return targets / (size or 1.0)
