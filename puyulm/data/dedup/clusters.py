"""From pairs of duplicates to clusters, and the document of each that stays.

The arrays have an entry for each document and are mapped files that are worked through in pieces, so that they may be
larger than the memory. A cluster's root is its first document. The result does not depend on the order of the pairs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from puyulm.data.dedup.arrays import map_array
from puyulm.data.dedup.index import CHARACTERS, DATE, DocumentIndex, IndexedShard, Integers, Items
from puyulm.data.documents import replacing
from puyulm.data.words import mix

Keep = Literal["newest", "first", "longest"]

LARGEST = 50  # clusters for the report
SAMPLED = 50
MEMBERS = 20  # of a cluster, for the report
PIECE_BYTES = 128  # memory that a document's place in a piece takes


@dataclass(frozen=True)
class Verdicts:
    """What is to be done with each document; all `[documents]`.

    Attributes:
        kept: Ordinal of the document that stays in its place: its own if it stays itself.
        numbers: Of its cluster, from 0 in the order of their first documents; -1 if it is in none.
        earlier: Item of an earlier crawl's document that it is like, 0 if none, and the equal hashes, `[documents, 2]`;
            None where there is no earlier crawl.
    """

    kept: Integers
    numbers: Integers
    earlier: Items | None


def read_verdicts(folder: Path, documents: int, with_earlier: bool) -> Verdicts:
    """What `find_clusters` wrote."""
    kept, numbers = (map_array(folder / "clusters" / f"{name}.npy", documents) for name in ("kept", "numbers"))
    earlier = map_array(folder / "clusters" / "earlier.npy", documents) if with_earlier else None
    return Verdicts(kept, numbers, earlier)


def find_clusters(
    task: None,
    edges: Sequence[tuple[str, int]],
    matches: Sequence[tuple[str, int]],
    shards: Sequence[IndexedShard],
    keep: Keep,
    with_earlier: bool,
    folder: Path,
    memory: int,
) -> dict[str, Any]:
    """A task, the only one of its phase: clusters, and the document of each that stays.

    Documents that are in an earlier crawl leave without being in a cluster.

    Args:
        task: Nothing.
        edges, matches: Files below the folder and their rows (`pairs.write_edges`).
        shards: Of the input.
        keep: Which document stays.
        with_earlier: There is an earlier crawl.
        folder: The stage's.
        memory: Bytes that arrays take, beside mapped files.

    Returns:
        "files", the clusters' numbers and those for the report (see `_figures`).
    """
    index = DocumentIndex(shards)
    piece = max(1, memory // PIECE_BYTES)
    written: list[Path] = []
    with ExitStack() as stack:
        scratch = Scratch(folder / "clusters", index.documents, stack)
        earlier = None
        if with_earlier:
            earlier = scratch.array("earlier", np.uint64, 2)
            for match in _rows(folder, matches, piece):
                earlier[index.ordinals(match[:, 0])] = match[:, 1:]
        labels = scratch.array("labels", np.int64, temporary=True)
        for start in range(0, len(labels), piece):
            labels[start : start + piece] = np.arange(start, min(start + piece, len(labels)))
        connect(labels, _edges(folder, edges, index, earlier, piece))
        kept, numbers = scratch.array("kept", np.int64), scratch.array("numbers", np.int64)
        sizes = settle(labels, scratch.array("sizes", np.int64, temporary=True), piece)
        best, winners = (scratch.array(name, np.int64, temporary=True) for name in ("best", "winners"))
        choose(labels, sizes, best, winners, index, keep, piece)
        _write(labels, sizes, winners, kept, numbers, piece)
        figures = _figures(labels, sizes, kept, numbers, piece)
        figures["earlier"] = int(sum(rows for _, rows in matches))
        written = scratch.paths
    files = {str(path.relative_to(folder)): path.stat().st_size for path in written}
    return {**figures, "files": files}


class Scratch:
    """Makes mapped arrays with an entry for each document, all zero.

    Args:
        folder: Of the files.
        documents: Entries.
        stack: Closes the files: those that are not temporary get their names then.
    """

    def __init__(self, folder: Path, documents: int, stack: ExitStack) -> None:
        self.paths: list[Path] = []
        self._folder, self._documents, self._stack = folder, documents, stack

    def array(self, name: str, dtype: npt.DTypeLike, columns: int = 0, temporary: bool = False) -> npt.NDArray[Any]:
        """A new array, `[documents]` or `[documents, columns]`."""
        path = self._folder / f"{name}.npy"
        partial = self._stack.enter_context(_removed(path) if temporary else replacing(path))
        if not temporary:
            self.paths.append(path)
        shape = (self._documents, columns) if columns else (self._documents,)
        array = np.lib.format.open_memmap(partial, mode="w+", dtype=dtype, shape=shape)
        self._stack.callback(array.flush)
        return np.asarray(array)


def connect(labels: Integers, edges: Iterable[tuple[Integers, Integers]]) -> None:
    """Joins the trees of each pair of nodes; the roots of all are their least nodes.

    Roots are hooked onto smaller roots, and the hooked ones are led to their new roots by doubling steps (Shiloach and
    Vishkin 1982, with the least neighbour in place of any).

    Args:
        labels: Parent of each node, at most the node itself, `[nodes]`; changed in place.
        edges: Pairs, some at a time.
    """
    for one, other in edges:
        while True:
            one, other = roots(labels, one), roots(labels, other)
            apart = one != other
            if not apart.any():
                break
            one, other = one[apart], other[apart]
            hooked = np.maximum(one, other)
            np.minimum.at(labels, hooked, np.minimum(one, other))
            while True:
                above = labels[hooked]
                higher = labels[above]
                if np.array_equal(above, higher):
                    break
                labels[hooked] = higher


def roots(labels: Integers, nodes: Integers) -> Integers:
    """The roots of nodes, which become their parents."""
    found = labels[nodes]
    while not np.array_equal(above := labels[found], found):
        found = above
    labels[nodes] = found
    return found


def settle(labels: Integers, sizes: Integers, piece: int) -> Integers:
    """Makes each node's parent its root; gives the clusters' sizes at their roots, 0 elsewhere and for single nodes."""
    for start in range(0, len(labels), piece):
        nodes = np.arange(start, min(start + piece, len(labels)))
        found = roots(labels, nodes)
        members, counts = np.unique(found[found != nodes], return_counts=True)
        sizes[members] += counts + (sizes[members] == 0)
    return sizes


def choose(
    labels: Integers, sizes: Integers, best: Integers, winners: Integers, index: DocumentIndex, keep: Keep, piece: int
) -> None:
    """Puts the document that stays, plus one, at the root of each cluster in `winners`; `best` is room to work in."""
    for start in range(0, len(labels), piece):
        members = _members(labels, sizes, start, piece)
        np.maximum.at(best, labels[members], _ranks(index, start, piece, keep)[members - start])
    for start in range(0, len(labels), piece):
        members = _members(labels, sizes, start, piece)
        ranks = _ranks(index, start, piece, keep)[members - start]
        members = members[ranks == best[labels[members]]]
        clusters, first = np.unique(labels[members], return_index=True)
        unset = winners[clusters] == 0
        winners[clusters[unset]] = members[first[unset]] + 1


def _write(labels: Integers, sizes: Integers, winners: Integers, kept: Integers, numbers: Integers, piece: int) -> None:
    count = 0
    for start in range(0, len(labels), piece):
        nodes = np.arange(start, min(start + piece, len(labels)))
        kept[nodes], numbers[nodes] = nodes, -1
        first = nodes[sizes[nodes] > 0]
        numbers[first] = count + np.arange(len(first))
        count += len(first)
        members = _members(labels, sizes, start, piece)
        kept[members] = winners[labels[members]] - 1
        numbers[members] = numbers[labels[members]]


def _members(labels: Integers, sizes: Integers, start: int, piece: int) -> Integers:
    """The documents of a piece that are in clusters."""
    return start + np.flatnonzero(sizes[labels[start : start + piece]])


def _ranks(index: DocumentIndex, start: int, piece: int, keep: Keep) -> Integers:
    """A number for each document of a piece; the greatest stays."""
    end = min(start + piece, index.documents)
    if keep == "first":
        return np.zeros(end - start, dtype=np.int64)
    return index.facts_of(start, end)[:, DATE if keep == "newest" else CHARACTERS]


def _rows(folder: Path, files: Sequence[tuple[str, int]], piece: int) -> Iterator[npt.NDArray[np.uint64]]:
    for name, rows in files:
        array = map_array(folder / name, rows)
        for start in range(0, rows, piece):
            yield np.array(array[start : start + piece])


def _edges(
    folder: Path, files: Sequence[tuple[str, int]], index: DocumentIndex, earlier: Items | None, piece: int
) -> Iterator[tuple[Integers, Integers]]:
    """Pairs of ordinals, without those of documents that leave for an earlier crawl's."""
    for rows in _rows(folder, files, piece):
        one, other = index.ordinals(rows[:, 0]), index.ordinals(rows[:, 1])
        if earlier is not None:
            stay = (earlier[one, 0] == 0) & (earlier[other, 0] == 0)
            one, other = one[stay], other[stay]
        yield one, other


def _figures(labels: Integers, sizes: Integers, kept: Integers, numbers: Integers, piece: int) -> dict[str, Any]:
    """Numbers of clusters, their sizes, and the largest and a fixed random sample of the others with their members.

    Returns:
        "clusters" and "duplicates" (documents that leave), "sizes" ([least, greatest, clusters, documents] of each bin
        of powers of two), "largest" and "sample": {"number", "size", "kept", "members"}, documents as ordinals.
    """
    none = np.zeros(0, dtype=np.int64)
    largest, sample, bins = none, none, np.zeros((64, 2), dtype=np.int64)
    for start in range(0, len(labels), piece):
        found = start + np.flatnonzero(sizes[start : start + piece])
        here = np.frexp(sizes[found].astype(np.float64) - 1)[1]  # 2 is in bin 1, 3-4 in 2, 5-8 in 3
        np.add.at(bins, here, np.stack([np.ones(len(found), dtype=np.int64), sizes[found]], axis=1))
        largest = np.concatenate([largest, found])
        largest = largest[np.lexsort((largest, -sizes[largest]))][:LARGEST]
        sample = np.concatenate([sample, found])
        sample = sample[np.argsort(mix(sample.astype(np.uint64) + np.uint64(1)), kind="stable")][: LARGEST + SAMPLED]
    sample = sample[~np.isin(sample, largest)][:SAMPLED]
    members = _some_members(labels, np.concatenate([largest, sample]), piece)

    def described(root: int) -> dict[str, Any]:
        stays = int(kept[root])
        others = [member for member in members[root] if member != stays]
        return {"number": int(numbers[root]), "size": int(sizes[root]), "kept": stays,
                "members": [stays, *others[: MEMBERS - 1]]}  # fmt: skip

    return {
        "clusters": int(bins[:, 0].sum()), "duplicates": int(bins[:, 1].sum() - bins[:, 0].sum()),
        "sizes": [[2 ** (i - 1) + 1, 2**i, *map(int, bins[i])] for i in range(1, 64) if bins[i, 0]],
        "largest": [described(root) for root in largest.tolist()],
        "sample": [described(root) for root in np.sort(sample).tolist()],
    }  # fmt: skip


def _some_members(labels: Integers, chosen: Integers, piece: int) -> dict[int, list[int]]:
    """The first members of some clusters, by root."""
    members: dict[int, list[int]] = {root: [] for root in chosen.tolist()}
    for start in range(0, len(labels), piece):
        places = start + np.flatnonzero(np.isin(labels[start : start + piece], chosen))
        places = places[np.argsort(labels[places], kind="stable")]
        found, first, counts = np.unique(labels[places], return_index=True, return_counts=True)
        for root, place, count in zip(found.tolist(), first.tolist(), counts.tolist(), strict=True):
            room = MEMBERS - len(members[root])
            members[root] += places[place : place + min(count, room)].tolist()
    return members


@contextmanager
def _removed(path: Path) -> Iterator[Path]:
    """Gives a path for a file that is gone after the block."""
    partial = path.with_name(f".{path.name}.partial")  # what a killed run leaves has names like this
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield partial
    finally:
        partial.unlink(missing_ok=True)
