"""The course of a pretraining run: rows of token shards, phase after phase."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from puyulm.data.packing import PackedBatch
from puyulm.data.shards import TokenShards
from puyulm.data.stream import Mixture, TokenStream
from puyulm.errors import RecipeError
from puyulm.parallel.plan import ParallelPlan
from puyulm.text.tokenizer import Tokenizer
from puyulm.train.course import Skips
from puyulm.train.phases import Data, Timeline


@dataclass(frozen=True)
class Sources:
    """All folders of token shards that any phase reads, each opened once.

    Attributes:
        folders: By label.
        streams: In the same order.
        weights: Of each phase, one a stream.
    """

    folders: dict[str, Path]
    streams: list[TokenStream]
    weights: list[list[float]] = field(default_factory=list)


def open_sources(phases: Sequence[Data], seed: int, tokenizer: Tokenizer) -> Sources:
    """Opens the shards of all phases.

    Raises:
        DataError: A folder holds no shards, or those of another tokenizer.
    """
    shares = [data if isinstance(data, dict) else {str(data): 1.0} for data in phases]
    names = list(dict.fromkeys(name for share in shares for name in share))
    streams = []
    for number, name in enumerate(names):
        shards = TokenShards.open(Path(name).expanduser())
        shards.check_tokenizer(tokenizer)
        streams.append(TokenStream(shards, seed + number, name))
    weights = [[share.get(name, 0.0) for name in names] for share in shares]
    return Sources({name: Path(name).expanduser() for name in names}, streams, weights)


class PhasedRows:
    """A `Course` over token shards.

    Args:
        micro_tokens: Tokens of a micro-batch, at most; a row at least.
        boundaries: Documents see only themselves; off, a row is one text.
    """

    def __init__(self, timeline: Timeline, sources: Sources, micro_tokens: int, *, boundaries: bool = True) -> None:
        self.timeline, self._sources = timeline, sources
        self._micro_tokens, self._boundaries = micro_tokens, boundaries
        self.steps = timeline.steps
        self.sources = list(sources.folders) if len(sources.folders) > 1 else []
        shards = [stream.shards for stream in sources.streams]
        tokens = sum(part.num_tokens - part.num_documents for part in shards)
        self.bits_per_byte_factor = tokens / sum(part.num_bytes for part in shards) / math.log(2)
        self._mixtures: dict[tuple[int, Skips], Mixture] = {}

    def lr(self, step: int) -> float:
        return self.timeline.lr(step)

    def rope_theta(self, step: int) -> float | None:
        return self.timeline.rope_theta(step)

    def phase(self, step: int) -> str:
        return self.timeline.phase(step).name if len(self.timeline.phases) > 1 else ""

    def phase_index(self, step: int) -> int:
        return self.timeline.segment(step).phase

    def batches(self, step: int, part: int, parts: int, skips: Skips = ()) -> list[PackedBatch]:
        index = self.phase_index(step)
        mixture = self._mixture(index, skips)
        first, last = (row + _at(skips, index) for row in self.timeline.rows(step))
        share = (last - first) // parts
        first += part * share
        rows = micro_rows(share, self._micro_tokens // mixture.seq_len)
        return [mixture.batch(row, row + rows) for row in range(first, first + share, rows)]

    def skip(self, first: int, last: int, skips: Skips = ()) -> Skips:
        left_out = [_at(skips, index) for index in range(len(self.timeline.phases))]
        for step in range(first, last + 1):
            start, stop = self.timeline.rows(step)
            left_out[self.phase_index(step)] += stop - start
        return tuple(left_out)

    def epochs(self, step: int, skips: Skips = ()) -> dict[str, float]:
        index = self.phase_index(step)
        positions = self._mixture(index, skips).positions(self.timeline.rows(step)[0] + _at(skips, index))
        streams = self._sources.streams
        return {
            stream.label: position / stream.shards.num_tokens
            for stream, position in zip(streams, positions, strict=True)
        }

    def check(self, plan: ParallelPlan) -> None:
        """Raises RecipeError where a step's rows cannot be divided among the ranks that read data."""
        for segment in self.timeline.segments:
            if segment.rows % plan.data_size:
                phase = self.timeline.phases[segment.phase]
                raise RecipeError(
                    f"phase {phase.name}: {segment.rows} rows of {phase.seq_len:,} tokens a step cannot be divided "
                    f"among {plan.data_size} ranks (replicate x shard); make batch_tokens a multiple of "
                    f"{plan.data_size * phase.seq_len:,}"
                )

    def _mixture(self, index: int, skips: Skips) -> Mixture:
        """A phase's rows, which begin where the phases before have stopped reading."""
        key = (index, skips[:index])
        if key not in self._mixtures:
            streams, weights = self._sources.streams, self._sources.weights[index]
            starts = [0] * len(streams)
            if index > 0:
                rows = self.timeline.phase_rows(index - 1) + _at(skips, index - 1)
                starts = self._mixture(index - 1, skips).positions(rows)
            self._mixtures[key] = Mixture(streams, weights, self.timeline.phases[index].seq_len, starts)
        return self._mixtures[key]


def micro_rows(rows: int, most: int) -> int:
    """Rows of a micro-batch: the largest divisor of a rank's rows that is not above what fits, so that all micro-batches
    of a step are of one size."""
    return max(size for size in range(1, max(min(most, rows), 1) + 1) if rows % size == 0)


def _at(skips: Skips, index: int) -> int:
    return skips[index] if index < len(skips) else 0
