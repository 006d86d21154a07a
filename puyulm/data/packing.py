"""Packing: documents of token shards laid end to end into full batches, any batch reachable by its number alone.

The documents of an epoch, in the order that (seed, epoch) shuffles them, form one stream of tokens, and the epochs'
streams follow each other without end. Row `r` is its tokens `r * seq_len` to `(r + 1) * seq_len`; a batch is some rows
one after the other. So every token is an input exactly once an epoch, nothing is padded or dropped, and a run resumes
at any step with any number of readers (reader `k` of `n` takes batches `k`, `n + k`, `2 n + k`, ...). A document that
meets the end of a row goes on as a sample of its own in the next row: its target at the cut is still the document's
next token, so that only each document's last token has none.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from puyulm.data.shards import TokenShards
from puyulm.errors import DataError

IGNORE = -100  # target of a token whose prediction is not scored; what the loss ignores


@dataclass(frozen=True)
class PackedBatch:
    """Some tokens, what follows each, and which of them belong together.

    Attributes:
        tokens: `[T]` int64.
        targets: `[T]` int64, the next token of the same document, or -100 at its last token.
        lengths: Length of each sample, in order; they sum to T. A sample attends only to itself.
        num_bytes: UTF-8 bytes of the documents whose last token is here: exact when summed over whole documents.
        sources: Source of each sample, an index into the course's names; None where sources are not told apart.
    """

    tokens: np.ndarray
    targets: np.ndarray
    lengths: list[int]
    num_bytes: int
    sources: list[int] | None = None

    @property
    def num_targets(self) -> int:
        """Number of tokens whose prediction is scored."""
        return int(np.count_nonzero(self.targets != IGNORE))


class PackedDataset:
    """An endless sequence of full batches of `rows_per_batch * seq_len` tokens.

    Args:
        shards: The documents.
        seq_len: Tokens in a row, and the longest sample.
        rows_per_batch: Rows in a batch.
        seed: Chooses the order of the documents in each epoch.
    """

    def __init__(self, shards: TokenShards, seq_len: int, rows_per_batch: int, seed: int = 0) -> None:
        if seq_len < 1 or rows_per_batch < 1:
            raise DataError(f"seq_len and rows_per_batch must be at least 1, found {seq_len} and {rows_per_batch}")
        self.shards, self.seq_len, self.rows_per_batch, self.seed = shards, seq_len, rows_per_batch, seed
        self.batch_tokens = seq_len * rows_per_batch
        self._plans: dict[int, _Plan] = {}

    def batch(self, step: int) -> PackedBatch:
        """Batch number `step`, from 0: the same for ever, whatever was read before."""
        first_row = step * self.rows_per_batch
        rows = [self._row(row) for row in range(first_row, first_row + self.rows_per_batch)]
        return _joined([sample for row in rows for sample in row])

    def epoch(self, step: int) -> float:
        """Epochs that lie behind when `step` batches have been read."""
        return step * self.batch_tokens / self.shards.num_tokens

    def _row(self, row: int) -> list[_Sample]:
        epoch, position = divmod(row * self.seq_len, self.shards.num_tokens)
        samples: list[_Sample] = []
        missing = self.seq_len
        while missing:
            found = _samples(self.shards, self._plan(epoch), position, position + missing)
            samples += found
            missing -= sum(len(sample.tokens) for sample in found)
            epoch, position = epoch + 1, 0
        return samples

    def _plan(self, epoch: int) -> _Plan:
        if epoch not in self._plans:
            if len(self._plans) >= 2:  # rows move forward and span two epochs at most, but for tiny corpora
                del self._plans[min(self._plans)]
            order = np.random.default_rng([self.seed, epoch]).permutation(self.shards.num_documents)
            self._plans[epoch] = _plan(self.shards, order)
        return self._plans[epoch]


def document_batches(
    shards: TokenShards, seq_len: int, rows_per_batch: int, max_tokens: int | None = None
) -> Iterator[PackedBatch]:
    """Batches of every document once, in order, for validation; the last batch is what remains.

    A document longer than `seq_len` is read in windows that overlap by half: a window predicts only what the one before
    has not, so that every prediction but those at a document's beginning sees at least half a window of text.

    Args:
        shards: The documents.
        seq_len: Tokens in a window.
        rows_per_batch: A batch has at most `rows_per_batch * seq_len` tokens.
        max_tokens: Stop after the document that reaches as many tokens. Always whole documents, so that the sums of
            `num_bytes` and of the loss belong together.
    """
    samples: list[_Sample] = []
    size = seen = 0
    for document in range(shards.num_documents):
        for sample in _windows(shards, document, seq_len):
            if size + len(sample.tokens) > rows_per_batch * seq_len:
                yield _joined(samples)
                samples, size = [], 0
            samples.append(sample)
            size += len(sample.tokens)
        seen += int(shards.token_starts[document + 1] - shards.token_starts[document])
        if max_tokens is not None and seen >= max_tokens:
            break
    if samples:
        yield _joined(samples)


def _windows(shards: TokenShards, document: int, seq_len: int) -> Iterator[_Sample]:
    """A document's windows; targets that an earlier window has are left out."""
    ids = shards.document(document).astype(np.int64)
    targets = np.append(ids[1:], IGNORE)
    predicted = start = 0
    while predicted < len(ids):
        end = min(start + seq_len, len(ids))
        fresh = targets[start:end].copy()
        fresh[: predicted - start] = IGNORE
        size = int(shards.byte_starts[document + 1] - shards.byte_starts[document]) if end == len(ids) else 0
        yield _Sample(ids[start:end], fresh, size)
        predicted, start = end, start + max(1, seq_len // 2)


@dataclass(frozen=True)
class _Plan:
    """Documents in the order of an epoch, and where each ends in the epoch's stream."""

    order: np.ndarray
    ends: np.ndarray


@dataclass(frozen=True)
class _Sample:
    tokens: np.ndarray
    targets: np.ndarray
    num_bytes: int


def _plan(shards: TokenShards, order: np.ndarray) -> _Plan:
    return _Plan(order, np.cumsum(np.diff(shards.token_starts)[order]))


def _samples(shards: TokenShards, plan: _Plan, start: int, stop: int) -> list[_Sample]:
    """The samples of tokens `start` to `stop` of an epoch's stream, or to its end."""
    samples = []
    place = int(np.searchsorted(plan.ends, start, side="right"))
    while start < stop and place < len(plan.order):
        document, end = int(plan.order[place]), int(plan.ends[place])
        length = int(shards.token_starts[document + 1] - shards.token_starts[document])
        begin = start - (end - length)  # within the document
        count = min(stop, end) - start
        last = begin + count == length
        ids = shards.slice(document, begin, begin + count + (not last)).astype(np.int64)
        targets = np.append(ids[1:], IGNORE) if last else ids[1:]
        size = int(shards.byte_starts[document + 1] - shards.byte_starts[document]) if last else 0
        samples.append(_Sample(ids[:count], targets, size))
        start, place = start + count, place + 1
    return samples


def _joined(samples: list[_Sample], sources: list[int] | None = None) -> PackedBatch:
    return PackedBatch(
        tokens=np.concatenate([sample.tokens for sample in samples]),
        targets=np.concatenate([sample.targets for sample in samples]),
        lengths=[len(sample.tokens) for sample in samples],
        num_bytes=sum(sample.num_bytes for sample in samples),
        sources=sources,
    )
