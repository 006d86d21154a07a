"""From keys to pairs of documents: those that share a key, and of these the ones that are duplicates.

Items of documents of an earlier crawl have the highest bit set (see `index`), so they come last among those of a key.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from puyulm.data.dedup.arrays import ArrayWriter
from puyulm.data.dedup.index import EARLIER, DocumentIndex, IndexedShard, Items
from puyulm.data.dedup.shuffle import Run, Runs, RunWriter, first_of_each
from puyulm.data.documents import replacing
from puyulm.data.pipeline.counts import Counts

Positions = npt.NDArray[np.int64]

SMALL = 32  # documents of one key among which all pairs are compared
COMPARED = 8192  # pairs whose signatures are in memory


def find_pairs(task: tuple[int, tuple[int, int]], runs: Sequence[Run], folder: Path, memory: int) -> dict[str, Any]:
    """A task: pairs of documents that share a key of a range, as runs of records (smaller item, larger item)."""
    number, (low, high) = task
    writer = RunWriter(folder, f"pairs/{number:05d}", memory // 2, distinct=True)
    reader = Runs(runs, 2, memory // 2)
    for batch in reader.batches(low, high):
        found = pairs_of(*batch.records) if batch.large is None else _pairs_of_large(reader, batch.large)
        for one, other in found:
            writer.add(one, other)
    return writer.finish()


def pairs_of(keys: Items, items: Items) -> Iterator[tuple[Items, Items]]:
    """Pairs of items with equal keys, some at a time; the first of a pair is the smaller and of this crawl.

    Of up to 32 items all pairs; of more, each with the first and with the one before, and each with the first of an
    earlier crawl: so a million copies are two million pairs, and still one cluster.

    Args:
        keys: Sorted, `[N]`.
        items: Ascending among equal keys, `[N]`.
    """
    starts = np.flatnonzero(first_of_each(keys))
    sizes = np.diff(starts, append=len(keys))
    small = np.repeat((sizes > 1) & (sizes <= SMALL), sizes)
    yield from _all_pairs(keys[small], items[small])
    for start, size in zip(starts[sizes > SMALL], sizes[sizes > SMALL], strict=True):
        group = items[start : start + size]
        earlier = group[group >= EARLIER]
        yield from _part_pairs(group, group[:1], group[:0], int(earlier[0]) if len(earlier) else None)


def _all_pairs(keys: Items, items: Items) -> Iterator[tuple[Items, Items]]:
    for distance in range(1, SMALL):
        here = np.flatnonzero((keys[distance:] == keys[:-distance]) & (items[:-distance] < EARLIER))
        if not len(here):  # then no key has a document of this crawl and `distance` more after it
            return
        yield items[here], items[here + distance]


def _pairs_of_large(reader: Runs, key: int) -> Iterator[tuple[Items, Items]]:
    first = last = np.zeros(0, dtype=np.uint64)
    earlier = reader.shifted(key)
    for _, items in reader.parts(key):
        first = first if len(first) else items[:1]
        yield from _part_pairs(items, first, last, earlier)
        last = items[-1:]


def _part_pairs(items: Items, first: Items, last: Items, earlier: int | None) -> Iterator[tuple[Items, Items]]:
    """The few pairs of a large group, or of a part of it.

    Args:
        items: Of the part, ascending.
        first: The group's first item, `[1]`.
        last: The last item before this part, `[1]`, or `[0]` in the first part.
        earlier: The first item of an earlier crawl in the group, if there is one.
    """
    new = items[items < EARLIER]
    if earlier is not None:
        yield new, np.full(len(new), earlier, dtype=np.uint64)
    chain = np.concatenate([last, new]) if len(new) else new
    yield np.broadcast_to(first, len(chain[1:])), chain[1:]
    yield chain[:-1], chain[1:]


def verify_pairs(
    task: tuple[int, tuple[int, int]],
    runs: Sequence[Run],
    shards: Sequence[IndexedShard],
    earlier: Sequence[IndexedShard],
    threshold: float,
    folder: Path,
    memory: int,
) -> dict[str, Any]:
    """A task: of the pairs whose first item is in a range, those that have enough equal hashes."""
    number, (low, high) = task
    index, counts = DocumentIndex(shards, earlier), Counts()

    def found() -> Iterator[tuple[Items, Items, Positions]]:
        for records in Runs(runs, 2, memory).pieces(low, high):
            one, other = records[:, np.lexsort(records[::-1])]
            distinct = first_of_each(one, other)
            one, other = one[distinct], other[distinct]
            counts.note("candidate pairs", len(one))
            for start in range(0, len(one), COMPARED):
                first, second = one[start : start + COMPARED], other[start : start + COMPARED]
                left, right = index.signatures(first), index.signatures(second)
                equal = (left == right).sum(axis=1)
                good = equal >= ceil(threshold * left.shape[1] - 1e-9)  # 0.55 * 100 is a little more than 55
                counts.note("duplicate pairs", int(good.sum()))
                yield first[good], second[good], equal[good]

    return {**write_edges(folder, number, found()), "counts": asdict(counts)}


def find_equal(task: tuple[int, tuple[int, int]], runs: Sequence[Run], folder: Path, memory: int) -> dict[str, Any]:
    """A task: equal documents, given runs of records (first half of a hash, item, second half)."""
    number, (low, high) = task
    reader = Runs(runs, 3, memory)

    def found() -> Iterator[tuple[Items, Items, Positions]]:
        for batch in reader.batches(low, high):
            keys, items, halves = batch.records[:, np.lexsort(batch.records[::2][::-1])]
            pairs = equal_pairs(keys, items, halves) if batch.large is None else _equal_of_large(reader, batch.large)
            for one, other in pairs:
                different = one != other
                yield one[different], other[different], np.ones(int(different.sum()), dtype=np.int64)

    return write_edges(folder, number, found())


def _equal_of_large(reader: Runs, key: int) -> Iterator[tuple[Items, Items]]:
    """As `equal_pairs`, of one key; should another text share this half of its hash with so many, it just stays."""
    first: Items | None = None
    earlier = reader.shifted(key)
    for records in reader.parts(key):
        first = records[:, 0] if first is None else first
        items = records[1, (records[2] == first[2]) & (records[1] < EARLIER)]
        yield np.broadcast_to(first[1], len(items)), items
        if earlier is not None:
            yield items, np.full(len(items), earlier, dtype=np.uint64)


def equal_pairs(keys: Items, items: Items, halves: Items) -> Iterator[tuple[Items, Items]]:
    """Each item of a group with the group's first, and each of this crawl with the first of an earlier crawl.

    Args:
        keys, halves: Sorted by both, `[N]`; equal in a group.
        items: Ascending in a group, `[N]`.
    """
    starts = np.flatnonzero(first_of_each(keys, halves))
    sizes = np.diff(starts, append=len(keys))
    new = items < EARLIER
    yield np.repeat(items[starts], sizes)[new], items[new]
    counts = np.add.reduceat(new, starts, dtype=np.int64) if len(starts) else starts
    mixed = counts < sizes
    earlier = items[(starts + counts)[mixed]]
    members = new & np.repeat(mixed, sizes)
    yield items[members], np.repeat(earlier, counts[mixed])


def write_edges(folder: Path, number: int, found: Iterable[tuple[Items, Items, Positions]]) -> dict[str, Any]:
    """Writes pairs (an item of this crawl, another or an earlier one, equal hashes) and gives a task's result.

    Of each document that matches earlier ones, the best match is written: the most equal hashes, then the first.
    """
    edges, matches = folder / "edges" / f"{number:05d}.npy", folder / "matches" / f"{number:05d}.npy"
    in_earlier = [np.zeros((0, 3), dtype=np.uint64)]
    with replacing(edges) as partial, ArrayWriter(partial, np.uint64, (2,)) as writer:
        for one, other, equal in found:
            old = other >= EARLIER
            writer.append(np.stack([one[~old], other[~old]], axis=1))
            if old.any():
                in_earlier.append(np.stack([one, other, equal.astype(np.uint64)], axis=1)[old])
        rows = writer.rows
    best = np.concatenate(in_earlier)
    best = best[np.lexsort((best[:, 1], ~best[:, 2], best[:, 0]))]
    best = best[first_of_each(best[:, 0])]
    with replacing(matches) as partial, ArrayWriter(partial, np.uint64, (3,)) as writer:
        writer.append(best)
    names = [str(path.relative_to(folder)) for path in (edges, matches)]
    return {"edges": [names[0], rows], "matches": [names[1], len(best)],
            "files": {name: (folder / name).stat().st_size for name in names}}  # fmt: skip
