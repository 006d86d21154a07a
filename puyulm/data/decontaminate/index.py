"""What is looked for, as sorted arrays: which runs of words occur in which field of which item, and where."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from puyulm.data.decontaminate.items import files_of, read_items
from puyulm.data.decontaminate.settings import DecontaminateSettings, Kind
from puyulm.data.decontaminate.streams import Stream, is_dense, positions, read_streams
from puyulm.data.words import Hashes, Integers, ngram_hashes

MOST_PLACES = 256  # of one probe that are kept: a field's other probes tell it from so many with the same words
MOST_OCCURRENCES = 64  # of one probe in one document that are looked at
_BATCH = 4096


@dataclass(frozen=True)
class Field:
    """One field of one item.

    Attributes:
        evaluation: Number of its set in the settings.
        item: Name of the item.
        stream, text: Where its words are: a stream, and the number of its text there.
        words: How many words it has.
        ngram: Words of an n-gram that counts for it; its own number of words where it has fewer.
        dense: Most of its words are single characters.
    """

    evaluation: int
    item: str
    stream: Stream
    text: int
    words: int
    ngram: int
    dense: bool


@dataclass(frozen=True)
class Table:
    """The probes of all fields of one kind that have one size.

    Attributes:
        kind, probe: Which words, and how many in a probe.
        hashes: Of the probes, sorted, each once, `[U]`.
        start: Where the places of each begin, and their number, `[U + 1]`.
        fields, places: Field and first word of each place, `[P]`.
        filter: Whether some probe's hash has these upper bits, `[2^bits]` bool: most words of a document end here.
    """

    kind: Kind
    probe: int
    hashes: Hashes
    start: Integers
    fields: np.ndarray
    places: np.ndarray
    filter: np.ndarray

    def find(self, stream: Stream) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """(text, word, field, place) of every probe that a batch of texts has, in the texts' order, `[N]` each."""
        grams, first = ngram_hashes(stream.words, self.probe)
        shift = np.uint64(64 - (len(self.filter).bit_length() - 1))
        maybe = np.flatnonzero(self.filter[(grams >> shift).astype(np.int64)])
        rank = np.searchsorted(self.hashes, grams[maybe])
        found = self.hashes[np.minimum(rank, len(self.hashes) - 1)] == grams[maybe]
        texts, words = positions(first, maybe[found])
        rank = rank[found]
        seldom = _occurrence(texts * len(self.hashes) + rank) < MOST_OCCURRENCES
        texts, words, rank = texts[seldom], words[seldom], rank[seldom]
        count = self.start[rank + 1] - self.start[rank]
        inside = np.arange(int(count.sum())) - np.repeat(np.cumsum(count) - count, count)
        places = np.repeat(self.start[rank], count) + inside
        return np.repeat(texts, count), np.repeat(words, count), self.fields[places], self.places[places]


@dataclass(frozen=True)
class Index:
    """All fields that are long enough, and their probes.

    Attributes:
        fields: In the order of the sets.
        tables: None is empty.
        too_short: Set -> fields of fewer words than a probe.
    """

    fields: tuple[Field, ...]
    tables: tuple[Table, ...]
    too_short: dict[str, int]


def load_index(settings: DecontaminateSettings) -> Index:
    """The index of the settings' sets, built once in each process and again when a file has changed.

    Raises:
        DataError: A set's files are missing or damaged, or hold none of its fields.
    """
    stats = [path.stat() for evaluation in settings.sets for path in files_of(evaluation)]
    return _load(settings, tuple((stat.st_size, stat.st_mtime_ns) for stat in stats))


@functools.lru_cache(maxsize=1)
def _load(settings: DecontaminateSettings, _files: tuple[tuple[int, int], ...]) -> Index:
    fields: list[Field] = []
    too_short: dict[str, int] = {}
    probes: dict[tuple[Kind, int], list[tuple[np.ndarray, np.ndarray, np.ndarray]]] = {}
    for number, evaluation in enumerate(settings.sets):
        too_short[evaluation.name] = 0
        for names, texts in _batches(settings, number):
            stream = read_streams(texts, [evaluation.kind])[evaluation.kind]
            dense = is_dense(stream.words) | (evaluation.kind == "code")
            for wanted, probe, ngram in ((False, settings.probe, settings.ngram),
                                         (True, settings.probe_zh, settings.ngram_zh)):  # fmt: skip
                chosen = np.flatnonzero((dense == wanted) & (stream.words.counts >= probe))
                too_short[evaluation.name] += int(((dense == wanted) & (stream.words.counts < probe)).sum())
                known = np.full(len(texts), -1)
                known[chosen] = len(fields) + np.arange(len(chosen))
                fields += [Field(number, names[i], stream, int(i), int(stream.words.counts[i]),
                                 min(ngram, int(stream.words.counts[i])), wanted) for i in chosen]  # fmt: skip
                grams, first = ngram_hashes(stream.words, probe)
                owner, place = positions(first, np.arange(len(grams)))
                mine = known[owner] >= 0
                probes.setdefault((evaluation.kind, probe), []).append((grams[mine], known[owner[mine]], place[mine]))
    tables = [_table(*key, parts) for key, parts in probes.items() if sum(len(part[0]) for part in parts)]
    return Index(tuple(fields), tuple(tables), too_short)


def _batches(settings: DecontaminateSettings, number: int) -> Iterator[tuple[list[str], list[str]]]:
    names: list[str] = []
    texts: list[str] = []
    for item in read_items(settings.sets[number]):
        names += [item.name] * len(item.fields)
        texts += item.fields
        if len(texts) >= _BATCH:
            yield names, texts
            names, texts = [], []
    if texts:
        yield names, texts


def _table(kind: Kind, probe: int, parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> Table:
    grams, fields, places = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    order = np.argsort(grams, kind="stable")
    order = order[_occurrence(grams[order]) < MOST_PLACES]
    hashes, first = np.unique(grams[order], return_index=True)
    bits = min(max(len(hashes).bit_length() + 3, 10), 27)
    table_filter = np.zeros(1 << bits, dtype=bool)
    table_filter[(hashes >> np.uint64(64 - bits)).astype(np.int64)] = True
    start = np.append(first, len(order)).astype(np.int64)
    return Table(kind, probe, hashes, start, fields[order], places[order], table_filter)


def _occurrence(keys: np.ndarray) -> np.ndarray:
    """Of each key, how many equal ones stand before it."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    begins = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]])) if len(keys) else order
    counts = np.diff(np.append(begins, len(keys)))
    occurrence = np.empty(len(keys), dtype=np.int64)
    occurrence[order] = np.arange(len(keys)) - np.repeat(begins, counts)
    return occurrence
