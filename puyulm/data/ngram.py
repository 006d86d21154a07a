"""N-gram language models as honest references: interpolated modified Kneser-Ney, in NumPy, on bytes or on tokens.

Source: Chen and Goodman, An Empirical Study of Smoothing Techniques for Language Modeling (1998), section 3: discounts
D1, D2, D3+ from the counts of counts; orders below the highest count distinct left neighbours; the unigrams are
interpolated with the uniform distribution, so that every context's probabilities sum to one over the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from puyulm.data.shards import TokenShards
from puyulm.errors import DataError


@dataclass(frozen=True)
class IdStream:
    """Documents of ids end to end.

    Attributes:
        ids: `[T]` integers.
        starts: `[D + 1]` int64, first id of each document, and T.
    """

    ids: np.ndarray
    starts: np.ndarray


def byte_stream(texts: Iterable[str]) -> IdStream:
    """The UTF-8 bytes of texts; vocabulary 256."""
    encoded = [text.encode("utf-8") for text in texts]
    return IdStream(np.frombuffer(b"".join(encoded), dtype=np.uint8), np.cumsum([0, *map(len, encoded)]))


def token_stream(shards: TokenShards) -> IdStream:
    """The tokens of shards without each document's bos, which no model has to predict."""
    skip = int(shards.bos_id is not None)
    documents = [shards.document(i)[skip:] for i in range(shards.num_documents)]
    return IdStream(np.concatenate(documents), np.cumsum([0, *map(len, documents)]))


def ngram_bits_per_byte(train: IdStream, valid: IdStream, order: int, vocab_size: int, valid_bytes: int) -> float:
    """Bits per byte of text that an n-gram model of `train` needs for `valid`.

    Args:
        train: Documents to count; no n-gram crosses from one to the next.
        valid: Documents to predict, every id of them.
        order: Length of the longest n-gram: 1 counts single ids, 5 predicts from four.
        vocab_size: Ids are below it.
        valid_bytes: UTF-8 bytes of the validation text, which makes vocabularies comparable.
    """
    return float(-NgramModel(train, order, vocab_size).log2_probabilities(valid).sum() / valid_bytes)


class NgramModel:
    """An interpolated modified Kneser-Ney model; the constructor counts.

    N-grams are known by 64-bit sums of random numbers, one per (distance from the end, id): among ten million of them
    the chance that any two are taken for one is 3 in a million. The start of a document is seen as a run of an id that
    is never predicted.
    """

    def __init__(self, train: IdStream, order: int, vocab_size: int) -> None:
        if order < 1 or len(train.ids) == 0:
            raise DataError(
                f"an n-gram model needs an order of at least 1 and some ids, found {order} and {len(train.ids)}"
            )
        self.order, self.vocab_size = order, vocab_size
        generator = np.random.default_rng(0)
        self._random = generator.integers(0, 1 << 64, size=(order, vocab_size + 1), dtype=np.uint64)
        self._levels = self._count(train)

    def log2_probabilities(self, stream: IdStream) -> np.ndarray:
        """Log2 of the probability of every id of `stream` given those before it in its document, `[T]` float64."""
        padded, positions = self._padded(stream)
        probabilities = np.full(len(positions), 1.0 / self.vocab_size)
        for length, level in enumerate(self._levels, start=1):
            contexts, grams = self._keys(padded, positions, length)
            probabilities = level.interpolate(contexts, grams, probabilities)
        return np.log2(probabilities)

    def _count(self, train: IdStream) -> list[_Level]:
        padded, positions = self._padded(train)
        levels: list[_Level] = []
        for length in range(self.order, 0, -1):
            contexts, grams = self._keys(padded, positions, length)
            unique, first, counts = np.unique(grams, return_index=True, return_counts=True)
            levels.insert(0, _level(unique, counts, contexts[first]))
            positions = positions[first]  # below the highest order each distinct n-gram counts its suffix once
        return levels

    def _padded(self, stream: IdStream) -> tuple[np.ndarray, np.ndarray]:
        """The ids with `order - 1` start ids before each document, and the positions of the documents' own ids."""
        if len(stream.ids) and int(stream.ids.max()) >= self.vocab_size:
            raise DataError(f"id {int(stream.ids.max())} is outside the vocabulary of {self.vocab_size:,}")
        document = np.repeat(np.arange(len(stream.starts) - 1), np.diff(stream.starts))
        positions = np.arange(len(stream.ids)) + (document + 1) * (self.order - 1)
        padded = np.full(len(stream.ids) + (len(stream.starts) - 1) * (self.order - 1), self.vocab_size, dtype=np.int32)
        padded[positions] = stream.ids
        return padded, positions

    def _keys(self, padded: np.ndarray, positions: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Keys of the contexts and of the n-grams of `length` ids that end at `positions`."""
        contexts = np.zeros(len(positions), dtype=np.uint64)
        for distance in range(1, length):
            contexts += self._random[distance][padded[positions - distance]]
        return contexts, contexts + self._random[0][padded[positions]]


@dataclass(frozen=True)
class _Level:
    """Counts of one order: n-grams by key, and per context its total and the mass left to shorter ones."""

    grams: np.ndarray
    discounted: np.ndarray
    contexts: np.ndarray
    totals: np.ndarray
    backoff: np.ndarray

    def interpolate(self, contexts: np.ndarray, grams: np.ndarray, shorter: np.ndarray) -> np.ndarray:
        """Probabilities at this order, given those of the order below; a context never seen leaves them as they are."""
        place, known = _find(self.contexts, contexts)
        where, seen = _find(self.grams, grams)
        own = np.where(seen, self.discounted[where], 0.0)
        return np.where(known, (own + self.backoff[place] * shorter) / self.totals[place], shorter)


def _level(grams: np.ndarray, counts: np.ndarray, contexts: np.ndarray) -> _Level:
    discount = _discounts(counts)[np.minimum(counts, 3)]
    unique, inverse = np.unique(contexts, return_inverse=True)
    totals = np.bincount(inverse, weights=counts)
    backoff = np.bincount(inverse, weights=discount)  # what the discounts took away
    return _Level(grams, counts - discount, unique, totals, backoff)


def _discounts(counts: np.ndarray) -> np.ndarray:
    """Discounts of n-grams seen 0, 1, 2 and at least 3 times, `[4]`; where too few were seen to tell, 0.5, 1, 1.5."""
    n1, n2, n3, n4 = (int(np.count_nonzero(counts == k)) for k in (1, 2, 3, 4))
    if min(n1, n2, n3, n4) == 0:
        return np.array([0.0, 0.5, 1.0, 1.5])
    y = n1 / (n1 + 2 * n2)
    found = np.array([0.0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3])
    return np.clip(found, [0.0, 0.1, 0.1, 0.1], [0.0, 0.95, 1.95, 2.95])  # each n-gram keeps and gives something


def _find(table: np.ndarray, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Index in the sorted `table` of each key, and whether it is there."""
    place = np.minimum(np.searchsorted(table, keys), len(table) - 1)
    return place, table[place] == keys
