"""Streams of tokens and mixtures of them: any row is found by its number, whoever reads it.

The documents of an epoch, in the order that (seed, epoch) shuffles them, form one stream of tokens, and the epochs'
streams follow each other without end. A mixture of streams is an endless sequence of rows of one length; each row goes
on in one of the streams where that stream's last row has ended. So every token is an input exactly once an epoch of its
stream, nothing is padded or dropped, and a place in a mixture is one number, or, which is the same, one position for
each stream. A document that meets the end of a row goes on as a sample of its own in the stream's next row: its target
at the cut is still the document's next token, so that only each document's last token has none.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from puyulm.data.packing import IGNORE, PackedBatch
from puyulm.data.shards import TokenShards
from puyulm.data.shares import Shares
from puyulm.errors import DataError

BLOCK = 64  # documents of which an epoch's order keeps only the sum of their lengths
PART = BLOCK * 16384  # documents that are looked at together when it is made: no other array is as long as all of them


class Piece(NamedTuple):
    """Tokens `start` to `stop` of a document; `last` tells whether the document ends there."""

    document: int
    start: int
    stop: int
    last: bool


class TokenStream:
    """The documents of some shards, shuffled anew in every epoch, as one endless stream of tokens.

    The order depends on the seed and on what the shards hold, not on where they lie or what else is read. A stream may
    be read by several threads.

    Args:
        label: What the stream is called.
        source_ids: What `PackedBatch.sources` shall say of the documents of each of the shards' sources; None: nothing.

    Raises:
        DataError: The shards hold no tokens.
    """

    def __init__(
        self, shards: TokenShards, seed: int = 0, label: str = "", source_ids: Sequence[int] | None = None
    ) -> None:
        if not shards.num_tokens:
            raise DataError(f"{shards.folder} holds no tokens: leave it out")
        self.shards, self.label = shards, label
        self.key = shards.content_hash
        self.source_ids = None if source_ids is None else np.array(source_ids, dtype=np.int64)
        self._seed = [seed % 2**64, int(self.key, 16)]
        self._orders: dict[int, _EpochOrder] = {}
        self._lock = threading.Lock()

    def pieces(self, position: int, count: int) -> list[Piece]:
        """Where tokens `position` to `position + count` of the stream are."""
        epoch, place = divmod(position, self.shards.num_tokens)
        starts, pieces = self.shards.token_starts, []
        while count:
            order = self._order(epoch)
            rank, begin = order.locate(place)
            for document in map(int, order.documents[rank:]):
                length = int(starts[document + 1] - starts[document])
                stop = min(begin + count, length)
                pieces.append(Piece(document, begin, stop, stop == length))
                count -= stop - begin
                begin = 0
                if not count:
                    break
            epoch, place = epoch + 1, 0
        return pieces

    def _order(self, epoch: int) -> _EpochOrder:
        """Two are kept: rows move forward and lie in one epoch or two, but for tiny corpora."""
        with self._lock:
            if epoch not in self._orders:
                while len(self._orders) > 1:
                    del self._orders[next(iter(self._orders))]
                self._orders[epoch] = _EpochOrder(self.shards.token_starts, [*self._seed, epoch])
            return self._orders[epoch]


class _EpochOrder:
    """The order of the documents in one epoch: 4 bytes a document, and found by a token's place in the epoch."""

    def __init__(self, token_starts: np.ndarray, seed: list[int]) -> None:
        count = len(token_starts) - 1
        numbers = np.arange(count, dtype=np.int32 if count < 2**31 else np.int64)
        self.documents = np.random.default_rng(seed).permutation(numbers)
        self._starts = token_starts
        parts = (self._lengths(first, first + PART) for first in range(0, count, PART))
        self._ends = np.cumsum(np.concatenate([np.add.reduceat(x, np.arange(0, len(x), BLOCK)) for x in parts]))

    def locate(self, place: int) -> tuple[int, int]:
        """Which document in the order has token `place` of the epoch, and which token of the document it is."""
        block = int(np.searchsorted(self._ends, place, side="right"))
        begin = place - (int(self._ends[block - 1]) if block else 0)
        ends = np.cumsum(self._lengths(block * BLOCK, (block + 1) * BLOCK))
        rank = int(np.searchsorted(ends, begin, side="right"))
        return block * BLOCK + rank, begin - (int(ends[rank - 1]) if rank else 0)

    def _lengths(self, first: int, last: int) -> np.ndarray:
        documents = self.documents[first:last]
        return self._starts[documents + 1] - self._starts[documents]


@dataclass(frozen=True)
class _Rows:
    """A batch that is being filled, row by row."""

    tokens: np.ndarray
    targets: np.ndarray
    sources: np.ndarray | None
    lengths: list[int]


class Mixture:
    """Rows of `seq_len` tokens from several streams by weights.

    Of the first `n` rows, for every `n`, each stream gives its exact share to within 1.7 rows (see `Shares`).

    Args:
        weights: One a stream.
        starts: Where in each stream the first row begins: what others have read.
        boundaries: Each document is a sample of its own. Off, a row is one sample, a plain stretch of the stream: the
            target of a document's last token is the first of the next.

    Raises:
        DataError: No weight is above 0, one is below, or `seq_len` is not above 0.
    """

    def __init__(
        self,
        streams: Sequence[TokenStream],
        weights: Sequence[float],
        seq_len: int,
        starts: Sequence[int] | None = None,
        *,
        boundaries: bool = True,
    ) -> None:
        if seq_len < 1:
            raise DataError(f"seq_len must be at least 1, found {seq_len}")
        self.streams, self.seq_len, self.boundaries = list(streams), seq_len, boundaries
        self.starts = [0] * len(self.streams) if starts is None else list(starts)
        self._shares = Shares(weights, [stream.key for stream in self.streams])

    def counts(self, rows: int) -> list[int]:
        """Rows of each stream among the first `rows`."""
        return self._shares.counts(rows)

    def positions(self, rows: int) -> list[int]:
        """Where each stream goes on after the first `rows` rows."""
        return [start + count * self.seq_len for start, count in zip(self.starts, self.counts(rows), strict=True)]

    def starts_for(self, rows: int, positions: Sequence[int]) -> list[int]:
        """`starts` with which row number `rows` finds the streams at `positions`; some may be below 0."""
        counts = self.counts(rows)
        return [position - count * self.seq_len for position, count in zip(positions, counts, strict=True)]

    def batch(self, start: int, stop: int) -> PackedBatch:
        """Rows `start` to `stop`, one after another."""
        size = (stop - start) * self.seq_len
        labelled = any(stream.source_ids is not None for stream in self.streams)
        rows = _Rows(
            np.empty(size, np.int64), np.empty(size, np.int64), np.zeros(size, np.int64) if labelled else None, []
        )
        num_bytes = sum(self._fill(rows, number, row) for number, row in enumerate(range(start, stop)))
        return PackedBatch(rows.tokens, rows.targets, rows.lengths, num_bytes, rows.sources)

    def _fill(self, rows: _Rows, number: int, row: int) -> int:
        """Fills a batch's row `number` with a row of the mixture; the bytes of the documents that end in it."""
        source, before = self._shares.find(row)
        stream, shards = self.streams[source], self.streams[source].shards
        ids = np.empty(self.seq_len + 1, np.int64)  # one more, for the last target
        first, place, ends, num_bytes = number * self.seq_len, 0, [], 0
        for piece in stream.pieces(self.starts[source] + before * self.seq_len, self.seq_len + 1):
            begin, place = place, place + piece.stop - piece.start
            ids[begin:place] = shards.slice(piece.document, piece.start, piece.stop)
            if begin == self.seq_len:
                break
            end = min(place, self.seq_len)
            if self.boundaries:
                rows.lengths.append(end - begin)
            if piece.last and place == end:
                ends.append(end - 1)
                num_bytes += int(shards.byte_starts[piece.document + 1] - shards.byte_starts[piece.document])
            if rows.sources is not None and stream.source_ids is not None:
                name = stream.source_ids[shards.document_source[piece.document]]
                rows.sources[first + begin : first + end] = name
        rows.tokens[first : first + self.seq_len] = ids[:-1]
        targets = rows.targets[first : first + self.seq_len]
        targets[:] = ids[1:]
        if self.boundaries:
            targets[ends] = IGNORE
        else:
            rows.lengths.append(self.seq_len)
        return num_bytes
