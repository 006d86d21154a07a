"""An external shuffle: tasks write records as sorted runs, and others read all records of a range of keys.

Records are columns of 64-bit numbers, `[W, N]`: the key, an item, and perhaps more. A run is one file, sorted by key,
written whole. The ranges that are read are chosen after all is written, from the number of records and the memory
that they may take, so that they do not depend on the number of workers, and records of earlier runs can join.
"""

from __future__ import annotations

import functools
import resource
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from puyulm.data.dedup.arrays import damaged
from puyulm.data.documents import replacing

Records = npt.NDArray[np.uint64]

BLOCK = 512  # records under one check sum
COPIES = 6  # of its records that a task holds while it sorts and works on them
KEYS = 1 << 64
_MAPPED = 4096  # runs that a reader keeps open, at most: each takes a file descriptor


@dataclass(frozen=True)
class Run:
    """A file of sorted records.

    Attributes:
        path: Where.
        records: How many.
        shift: Added to the items as they are read, modulo 2^64: tells an earlier crawl's from this one's.
    """

    path: Path
    records: int
    shift: int = 0


class Batch(NamedTuple):
    """Records sorted by key and, for one key, in the order of the runs.

    Attributes:
        records: `[W, N]`, all that there are of each key.
        large: A key whose records do not fit, so that none are here: `Runs.parts` reads them. None otherwise.
    """

    records: Records
    large: int | None = None


class RunWriter:
    """Collects records and writes them as sorted runs.

    Args:
        folder: The stage's.
        name: Of the runs: `folder/NAME-000.npy`.
        memory: Bytes that the writer may take.
        distinct: Equal records are written once, and sorted by all columns; of each run alone.
    """

    def __init__(self, folder: Path, name: str, memory: int, distinct: bool = False) -> None:
        self.runs: list[tuple[str, int]] = []
        self._folder, self._name, self._distinct = folder, name, distinct
        self._limit = memory // COPIES
        self._waiting: list[Records] = []
        self._size = 0

    def add(self, *columns: npt.NDArray[np.uint64] | int) -> None:
        """Adds N records, given by columns; a number stands for a column of it."""
        shape = np.broadcast_shapes(*(np.shape(column) for column in columns))
        records = np.empty((len(columns), *shape), dtype=np.uint64)
        for row, column in zip(records, columns, strict=True):
            row[...] = column
        self._waiting.append(records)
        self._size += records.nbytes
        if self._size >= self._limit:
            self._flush()

    def finish(self) -> dict[str, Any]:
        """Writes what is left and gives a task's result: "runs" ([name, records] of each) and "files"."""
        self._flush()
        files = {name: (self._folder / name).stat().st_size for name, _ in self.runs}
        return {"runs": self.runs, "files": files}

    def _flush(self) -> None:
        if not self._size:
            return
        records = np.concatenate(self._waiting, axis=1)
        self._waiting, self._size = [], 0
        order = np.lexsort(records[::-1]) if self._distinct else np.argsort(records[0], kind="stable")
        records = records.take(order, axis=1)
        if self._distinct:
            records = records.compress(first_of_each(*records), axis=1)
        name = f"{self._name}-{len(self.runs):03d}.npy"
        with replacing(self._folder / name) as partial, open(partial, "wb") as file:
            np.save(file, _sums(records))
            np.save(file, records)
        self.runs.append((name, records.shape[1]))


class Runs:
    """Reads the records of many runs by ranges of keys; bounds are inclusive.

    Args:
        runs: In order. Of one key, the records come out in the order of the runs.
        width: Columns of a record.
        memory: Bytes that a batch and the work on it may take.
    """

    def __init__(self, runs: Sequence[Run], width: int, memory: int) -> None:
        self._runs, self._width = runs, width
        self._limit = max(1, memory // (8 * width * COPIES))
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        kept = min(_MAPPED, most // 2) if most >= 0 else _MAPPED
        self._map = functools.lru_cache(maxsize=kept)(_map_run)

    def batches(self, low: int, high: int) -> Iterator[Batch]:
        """All records of a range in order of their keys, as many at a time as fit in memory."""
        count = self.count(low, high)
        if 0 < count <= self._limit:
            yield Batch(self.read(low, high))
        elif count and low == high:
            yield Batch(np.zeros((self._width, 0), dtype=np.uint64), low)
        elif count:
            middle = (low + high) // 2
            yield from self.batches(low, middle)
            yield from self.batches(middle + 1, high)

    def pieces(self, low: int, high: int) -> Iterator[Records]:
        """As `batches`, where it does not matter that the records of a key come together."""
        for batch in self.batches(low, high):
            if batch.large is None:
                yield batch.records
            else:
                yield from self.parts(batch.large)

    def count(self, low: int, high: int) -> int:
        """Records in a range."""
        return sum(end - start for start, end in (self._slice(run, low, high) for run in self._runs))

    def read(self, low: int, high: int) -> Records:
        """All records of a range at once, sorted by key.

        Raises:
            DataError: A run is damaged.
        """
        parts = [self._records(run, *self._slice(run, low, high)) for run in self._runs]
        records = np.concatenate([np.zeros((self._width, 0), dtype=np.uint64), *parts], axis=1)
        return records.take(np.argsort(records[0], kind="stable"), axis=1)

    def shifted(self, key: int) -> int | None:
        """The first record's item of a key in the runs whose items are shifted."""
        for run in self._runs:
            if run.shift:
                start, end = self._slice(run, key, key)
                if start < end:
                    return int(self._records(run, start, start + 1)[1, 0])
        return None

    def parts(self, key: int) -> Iterator[Records]:
        """The records of one key in the order of the runs, as many at a time as fit in memory."""
        for run in self._runs:
            start, end = self._slice(run, key, key)
            for position in range(start, end, self._limit):
                yield self._records(run, position, min(position + self._limit, end))

    def _slice(self, run: Run, low: int, high: int) -> tuple[int, int]:
        keys = self._map(run, self._width)[1][0]
        start = np.searchsorted(keys, np.uint64(low), side="left")
        return int(start), int(np.searchsorted(keys, np.uint64(high), side="right"))

    def _records(self, run: Run, start: int, end: int) -> Records:
        sums, mapped = self._map(run, self._width)
        first, last = start // BLOCK, -(-end // BLOCK)
        if first == last:
            return np.zeros((self._width, 0), dtype=np.uint64)
        records = np.array(mapped[:, first * BLOCK : last * BLOCK])
        if not np.array_equal(_sums(records), sums[:, first:last]):
            raise damaged(run.path, "its check sums differ")
        records = records[:, start - first * BLOCK : end - first * BLOCK]
        if run.shift:
            records[1] += np.uint64(run.shift)
        return records


def runs_of(folder: Path, results: Sequence[Mapping[str, Any]]) -> list[Run]:
    """The runs that tasks wrote below a stage's folder, as `RunWriter.finish` tells them, in the tasks' order."""
    return [Run(folder / name, records) for result in results for name, records in result["runs"]]


def partitions(records: int, width: int, memory: int) -> list[tuple[int, int]]:
    """Cuts all keys into ranges, bounds inclusive, so that the records of each are a batch if the keys are hashes."""
    fit = max(1, memory // (8 * width * COPIES)) * 4 // 5  # ranges are not quite equal
    count = max(1, -(-records // max(1, fit)))
    bounds = [KEYS * number // count for number in range(count + 1)]
    return [(low, high - 1) for low, high in pairwise(bounds)]


def first_of_each(*columns: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    """True where a record differs from the one before in any of the columns, `[N]`."""
    new = np.ones(len(columns[0]), dtype=bool)
    if len(new):
        new[1:] = np.any([column[1:] != column[:-1] for column in columns], axis=0)
    return new


def _sums(records: Records) -> Records:
    """Sums modulo 2^64 of each column over blocks of records, `[W, blocks]`."""
    return np.add.reduceat(records, np.arange(0, records.shape[1], BLOCK), axis=1)


def _map_run(run: Run, width: int) -> tuple[Records, Records]:
    try:
        with open(run.path, "rb") as file:
            sums = np.lib.format.read_array(file)
            np.lib.format.read_magic(file)
            shape, by_columns, dtype = np.lib.format.read_array_header_1_0(file)
            records = np.memmap(run.path, dtype, "r", file.tell(), shape)
    except (OSError, ValueError) as error:
        raise damaged(run.path, str(error)) from None
    if by_columns or shape != (width, run.records) or sums.shape != (width, -(-run.records // BLOCK)):
        raise damaged(run.path, f"{shape} records, expected {(width, run.records)}")
    return sums, np.asarray(records)
