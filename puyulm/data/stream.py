"""Streams of tokens and mixtures of them: any row is found by its number, whoever reads it.

The documents of an epoch, in the order that (seed, epoch) shuffles them, form one stream of tokens, and the epochs'
streams follow each other without end. A mixture of streams is an endless sequence of rows of one length, each from one
stream; how many rows of each stream are among the first `n` follows from the weights alone. So a place in a mixture is
one number, or, which is the same, one position for each stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from puyulm.data.packing import PackedBatch, _joined, _plan, _Plan, _Sample, _samples
from puyulm.data.shards import TokenShards
from puyulm.errors import DataError


class TokenStream:
    """The documents of some shards, shuffled anew in every epoch, as one endless stream of tokens.

    Args:
        label: What the source is called.
    """

    def __init__(self, shards: TokenShards, seed: int = 0, label: str = "") -> None:
        self.shards, self.seed, self.label = shards, seed, label
        self._plans: dict[int, _Plan] = {}

    def samples(self, position: int, count: int) -> list[_Sample]:
        """Tokens `position` to `position + count` of the stream, a sample a document."""
        epoch, place = divmod(position, self.shards.num_tokens)
        samples: list[_Sample] = []
        while count:
            found = _samples(self.shards, self._epoch(epoch), place, place + count)
            samples += found
            count -= sum(len(sample.tokens) for sample in found)
            epoch, place = epoch + 1, 0
        return samples

    def _epoch(self, epoch: int) -> _Plan:
        if epoch not in self._plans:
            if len(self._plans) >= 2:  # rows move forward and span two epochs at most, but for tiny corpora
                del self._plans[min(self._plans)]
            order = np.random.default_rng([self.seed, epoch]).permutation(self.shards.num_documents)
            self._plans[epoch] = _plan(self.shards, order)
        return self._plans[epoch]


@dataclass(frozen=True)
class Mixture:
    """Rows of `seq_len` tokens from several streams by weights, exact at every length.

    Attributes:
        starts: Where in each stream the first row begins: what earlier phases have read.
    """

    streams: Sequence[TokenStream]
    weights: Sequence[float]
    seq_len: int
    starts: Sequence[int]

    def __post_init__(self) -> None:
        if not self.streams or min(self.weights) < 0 or not sum(self.weights) > 0:
            raise DataError("a mixture needs one or more sources, with weights of 0 or more and one above 0")

    def counts(self, rows: int) -> list[int]:
        """Rows of each stream among the first `rows`: within one of their exact share."""
        return _counts(rows, self.weights)

    def positions(self, rows: int) -> list[int]:
        """Tokens of each stream that lie behind the first `rows` rows."""
        return [start + count * self.seq_len for start, count in zip(self.starts, self.counts(rows), strict=True)]

    def batch(self, start: int, stop: int) -> PackedBatch:
        """Rows `start` to `stop`, one after another."""
        counts, samples = self.counts(start), []
        sources: list[int] = []
        for _ in range(start, stop):
            source = _next(counts, self.weights)
            found = self.streams[source].samples(self.starts[source] + counts[source] * self.seq_len, self.seq_len)
            counts[source] += 1
            samples += found
            sources += [source] * len(found)
        return _joined(samples, sources)


def _next(counts: Sequence[int], weights: Sequence[float]) -> int:
    """The stream of the next row: a stream's k-th row is due at `(k + 1/2) / weight`, the earliest comes first."""
    due = [(counts[i] + 0.5) / weight if weight else float("inf") for i, weight in enumerate(weights)]
    return due.index(min(due))


def _counts(rows: int, weights: Sequence[float]) -> list[int]:
    total = sum(weights)
    time = max(rows - 2 * len(weights), 0) / total
    counts = [max(int(time * weight) - 1, 0) for weight in weights]  # certainly due by then; the rest one by one
    while sum(counts) < rows:
        counts[_next(counts, weights)] += 1
    return counts
