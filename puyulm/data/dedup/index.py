"""What is kept of each document while duplicates are found: files beside the shards, looked up without loading them.

A document's item is its place: the shard's number in the upper 32 bits of a 64-bit number, the row in the lower ones;
documents of an earlier crawl have the highest bit set and their shards are numbered apart. A document's ordinal is its
number among all documents of this crawl. Both follow the order of the input.
"""

from __future__ import annotations

import datetime
import functools
import json
import mmap
import re
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from puyulm.data.dedup.arrays import ArrayWriter, damaged, map_array
from puyulm.data.dedup.settings import DedupSettings
from puyulm.data.dedup.shuffle import Run
from puyulm.data.documents import Document, replacing
from puyulm.errors import DataError

Integers = npt.NDArray[np.int64]
Items = npt.NDArray[np.uint64]
Signatures = npt.NDArray[np.uint16]

ROW_BITS = 32
EARLIER = 1 << 63
INDEX_FILE = "index.json"
VERSION = 1
DATE, CHARACTERS, ID_END = 0, 1, 2  # columns of a shard's facts
_OPEN = 64  # shards that stay mapped
_MINUTES = 24 * 60
_DATE = re.compile(
    r"(\d{4})(?:-?(\d\d)(?:-?(\d\d)(?:[T ](\d\d)(?::?(\d\d)(?::?(\d\d)(?:[.,]\d+)?)?)?(Z|[+-]\d\d(?::?\d\d)?)?)?)?)?",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class IndexedShard:
    """The index of one input shard.

    Attributes:
        stem: Its files' path without their last endings.
        documents: Rows.
    """

    stem: Path
    documents: int


def shard_stem(folder: Path, number: int) -> Path:
    """Where the index of a stage's input shard is."""
    return folder / "index" / f"{number:05d}"


def date_key(date: str) -> int:
    """Seconds that order ISO 8601 dates of any precision; a missing part is its start, no date at all is 0.

    Text after the date is ignored, and what is no date is none.
    """
    match = _DATE.match(date.strip())
    if match is None:
        return 0
    parts = [int(part) if part else least for part, least in zip(match.groups()[:6], (1, 1, 1, 0, 0, 0), strict=True)]
    year, month, day, hour, minute, second = parts
    try:
        days = datetime.date(year, month, day).toordinal()
    except ValueError:
        return 0
    zone = match.group(7) or "Z"
    offset = 0
    if zone not in "Zz":
        digits = zone[1:].replace(":", "").ljust(4, "0")
        offset = (int(digits[:2]) * 60 + int(digits[2:])) * (-1 if zone[0] == "-" else 1)
    return max(1, (days * _MINUTES + hour * 60 + minute - offset) * 60 + second)


class IndexWriter:
    """Writes the index of one shard; a context manager that leaves whole files or none.

    Args:
        stem: Of the files.
        hashes: Of a document's signature; 0 to keep none.
    """

    def __init__(self, stem: Path, hashes: int) -> None:
        self._stem, self._hashes, self._ids, self._stack = stem, hashes, 0, ExitStack()

    def __enter__(self) -> Self:
        def partial(kind: str) -> Path:
            return self._stack.enter_context(replacing(self._stem.with_suffix(kind)))

        self._id_file = self._stack.enter_context(open(partial(".ids"), "wb"))
        self._facts = self._stack.enter_context(ArrayWriter(partial(".facts.npy"), np.int64, (3,)))
        self._signatures: ArrayWriter | None = None
        if self._hashes:
            writer = ArrayWriter(partial(".signatures.npy"), np.uint16, (self._hashes,))
            self._signatures = self._stack.enter_context(writer)
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    @property
    def documents(self) -> int:
        """Rows written."""
        return self._facts.rows

    def append(self, documents: Sequence[Document], signatures: Signatures | None) -> None:
        """Appends documents, and their signatures `[D, hashes]`."""
        facts = np.empty((len(documents), 3), dtype=np.int64)
        for row, document in enumerate(documents):
            self._ids += self._id_file.write(document.id.encode("utf-8", "surrogatepass"))
            facts[row] = date_key(document.date), len(document.text), self._ids
        self._facts.append(facts)
        if self._signatures is not None and signatures is not None:
            self._signatures.append(signatures)

    def files(self, folder: Path) -> dict[str, int]:
        """The files' paths below the stage's folder, and their sizes; when they are whole."""
        kinds = [".ids", ".facts.npy"] + [".signatures.npy"] * bool(self._hashes)
        paths = [self._stem.with_suffix(kind) for kind in kinds]
        return {str(path.relative_to(folder)): path.stat().st_size for path in paths}


class DocumentIndex:
    """Looks documents up in the index.

    Args:
        shards: Of this crawl, in order.
        earlier: Of earlier crawls.
    """

    def __init__(self, shards: Sequence[IndexedShard], earlier: Sequence[IndexedShard] = ()) -> None:
        self._shards, self._earlier = shards, earlier
        self.starts = np.concatenate([[0], np.cumsum([shard.documents for shard in shards])]).astype(np.int64)
        self.documents = int(self.starts[-1])
        self.facts = functools.lru_cache(maxsize=_OPEN)(_map_facts)
        self._map_ids = functools.lru_cache(maxsize=_OPEN)(_map_ids)
        self._map_signatures = functools.lru_cache(maxsize=_OPEN)(_map_signatures)

    def ordinals(self, items: Items) -> Integers:
        """Ordinals of documents of this crawl, `[N]`."""
        rows = (items & np.uint64((1 << ROW_BITS) - 1)).astype(np.int64)
        return self.starts[(items >> np.uint64(ROW_BITS)).astype(np.int64)] + rows

    def items(self, ordinals: Integers) -> Items:
        """Items of documents of this crawl, `[N]`."""
        shards = np.searchsorted(self.starts, ordinals, side="right") - 1
        return (shards.astype(np.uint64) << np.uint64(ROW_BITS)) | (ordinals - self.starts[shards]).astype(np.uint64)

    def facts_of(self, start: int, end: int) -> Integers:
        """Facts of documents `start` to `end`, `[end - start, 3]`: date, characters, where the id ends."""
        found = [np.zeros((0, 3), dtype=np.int64)]
        for number in range(int(np.searchsorted(self.starts, start, side="right")) - 1, len(self._shards)):
            if self.starts[number] >= end:
                break
            first = int(self.starts[number])
            found.append(self.facts(self._shards[number])[max(start - first, 0) : end - first])
        return np.concatenate(found)

    def shard(self, item: int) -> IndexedShard:
        """The shard of a document, of this crawl or an earlier one."""
        return (self._earlier if item & EARLIER else self._shards)[(item & ~EARLIER) >> ROW_BITS]

    def signatures(self, items: Items) -> Signatures:
        """Signatures of documents, `[N, hashes]`."""
        heads = items >> np.uint64(ROW_BITS)
        order = np.argsort(heads, kind="stable")
        rows = (items & np.uint64((1 << ROW_BITS) - 1)).astype(np.int64)
        found = np.zeros((0, 0), dtype=np.uint16)
        for members in np.split(order, np.flatnonzero(np.diff(heads[order])) + 1) if len(items) else []:
            mapped = self._map_signatures(self.shard(int(items[members[0]])))
            if not len(found):
                found = np.empty((len(items), mapped.shape[1]), dtype=np.uint16)
            found[members] = mapped[rows[members]]
        return found

    def similarities(self, one: Items, other: Items, method: str) -> list[float]:
        """Estimated Jaccard similarities of pairs of documents; 1.0 for the method "exact"."""
        if method == "exact" or not len(one):
            return [1.0] * len(one)
        return [round(float(share), 4) for share in (self.signatures(one) == self.signatures(other)).mean(axis=1)]

    def id(self, item: int) -> str:
        """A document's id.

        Raises:
            DataError: The index is damaged.
        """
        shard, row = self.shard(item), item & ((1 << ROW_BITS) - 1)
        facts = self.facts(shard)
        start, end = int(facts[row - 1, ID_END]) if row else 0, int(facts[row, ID_END])
        name = self._map_ids(shard)[start:end]
        if len(name) != end - start:
            raise damaged(shard.stem.with_suffix(".ids"), "it ends early")
        return name.decode("utf-8", "surrogatepass")


@dataclass(frozen=True)
class Crawl:
    """The index of a stage as a whole: what a later crawl needs to be compared with it.

    Attributes:
        shards: Of the input.
        runs: Its documents' keys, sorted.
    """

    shards: tuple[IndexedShard, ...]
    runs: tuple[Run, ...]


def index_parameters(settings: DedupSettings) -> dict[str, Any]:
    """What must be the same in two crawls for their keys to be compared."""
    if settings.method == "minhash":
        facts = asdict(settings.minhash)
        del facts["threshold"]
    else:
        facts = asdict(settings.exact)
    return {"version": VERSION, "method": settings.method, **facts}


def write_index(settings: DedupSettings, folder: Path, documents: Sequence[int], runs: Sequence[Run]) -> None:
    """Writes `index.json`: the settings that count, the documents of each shard, the runs, and the crawl before."""
    facts = {
        "parameters": index_parameters(settings), "documents": list(documents),
        "runs": [[str(run.path.relative_to(folder)), run.records] for run in runs],
        "against": str(settings.against.resolve()) if settings.against else None,
    }  # fmt: skip
    with replacing(folder / INDEX_FILE) as path:
        path.write_text(json.dumps(facts, ensure_ascii=True), encoding="utf-8")


def read_earlier(settings: DedupSettings) -> Crawl:
    """The crawl that the settings name, and those that it was compared with itself, as one.

    Raises:
        DataError: A folder holds no finished run of this stage, or one with other settings.
    """
    shards: list[IndexedShard] = []
    runs: list[Run] = []
    folder = settings.against
    while folder is not None:
        try:
            facts = json.loads((folder / INDEX_FILE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise DataError(
                f"{folder} holds no finished {settings.method} dedup ({INDEX_FILE} is missing): 'against' takes the "
                "folder of that stage, such as runs/may/03-dedup"
            ) from None
        if facts["parameters"] != index_parameters(settings):
            raise DataError(
                f"{folder} was made with other settings ({_difference(facts['parameters'], settings)}): use the same "
                "in both runs"
            )
        shift = EARLIER + (len(shards) << ROW_BITS)
        runs += [Run(folder / name, records, shift) for name, records in facts["runs"]]
        shards += [IndexedShard(shard_stem(folder, i), count) for i, count in enumerate(facts["documents"])]
        folder = Path(facts["against"]) if facts["against"] else None
    return Crawl(tuple(shards), tuple(runs))


def _difference(theirs: dict[str, Any], settings: DedupSettings) -> str:
    mine = index_parameters(settings)
    names = [name for name in {**mine, **theirs} if mine.get(name) != theirs.get(name)]
    return ", ".join(f"{name}: {theirs.get(name)}, here {mine.get(name)}" for name in names)


def _map_facts(shard: IndexedShard) -> Integers:
    return map_array(shard.stem.with_suffix(".facts.npy"), shard.documents)


def _map_ids(shard: IndexedShard) -> mmap.mmap:
    path = shard.stem.with_suffix(".ids")
    try:
        with open(path, "rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise damaged(path, str(error)) from None


def _map_signatures(shard: IndexedShard) -> Signatures:
    return map_array(shard.stem.with_suffix(".signatures.npy"), shard.documents)
