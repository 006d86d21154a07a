"""Records of shards by their number, read as far as is needed: an index of what was seen, and no shard in memory."""

from __future__ import annotations

import zlib
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol

from puyulm.data.documents import CompressionError, Document, document_from_line, open_compressed
from puyulm.data.pipeline.run import PIPELINE_FILE, load_results
from puyulm.data.pipeline.stage import DROPPED_FOLDER, shards_in
from puyulm.data.shards import META_FILE, TokenShards
from puyulm.errors import DataError

if TYPE_CHECKING:
    from puyulm.text.tokenizer import Tokenizer

CACHE_RECORDS = 64
CACHE_CHARACTERS = 8_000_000
_SKIP_BYTES = 1 << 20
_SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
_DAMAGED = (EOFError, OSError, zlib.error, CompressionError, DataError)


@dataclass(frozen=True)
class Record:
    """A document with its place.

    Attributes:
        number: From 1, over all shards, of those that are wanted.
        place: File and line, row or document.
        document: None where it cannot be read.
        problem: Why it cannot be read, in a sentence.
    """

    number: int
    place: str
    document: Document | None
    problem: str = ""

    @property
    def reason(self) -> str:
        """Why a stage dropped it; empty if none did."""
        metadata: Any = self.document.metadata if self.document is not None else None
        return str(metadata.get("dropped", "")) if isinstance(metadata, dict) else ""


class Shard(Protocol):
    """A file of records, each at a position that leads back to it."""

    def scan(self) -> Iterator[tuple[int, int]]:
        """Yields (position, number of the line, row or document) of each record in turn."""
        ...

    def read(self, position: int, number: int) -> Record:
        """The record at a position; cheap for the next ones in turn. Its `number` is not set yet."""
        ...

    def close(self) -> None:
        """Closes its files."""
        ...


class LineShard:
    """JSON lines, perhaps compressed; positions are offsets in the text.

    Going back in a compressed file reads it again from its beginning, which takes a second for some hundred MB.
    """

    def __init__(self, path: Path, name: str) -> None:
        self._name = name
        self._scanned, self._read = _Lines(path), _Lines(path)
        self._last = (-1, b"")

    def scan(self) -> Iterator[tuple[int, int]]:
        number = offset = 0
        while True:
            try:
                line = self._scanned.at(offset)
            except _DAMAGED:
                yield offset, number + 1  # reading it says what is wrong
                return
            if not line:
                return
            number += 1
            if line.strip():
                self._last = (offset, line)
                yield offset, number
            offset += len(line)

    def read(self, position: int, number: int) -> Record:
        place = f"{self._name}, line {number}"
        try:
            line = self._last[1] if self._last[0] == position else self._read.at(position)
        except _DAMAGED as error:
            known = isinstance(error, DataError | OSError)
            problem = str(error) if known else f"{self._name} is damaged after line {number - 1} ({error})"
            return Record(0, place, None, problem)
        try:
            return Record(0, place, document_from_line(line, place))
        except (DataError, TypeError, RecursionError) as error:
            problem = str(error) if isinstance(error, DataError) else f"{place}: not a document ({error!r})"
            return Record(0, place, None, problem)

    def close(self) -> None:
        self._scanned.close()
        self._read.close()


class _Lines:
    """A file of lines that can go back; `at` is cheap for lines that follow one another."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[bytes] | None = None
        self._offset = 0

    def at(self, offset: int) -> bytes:
        """The line that begins at an offset."""
        try:
            return self._at(offset)
        except _DAMAGED:
            self.close()
            raise

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _at(self, offset: int) -> bytes:
        if self._file is None or offset < self._offset:
            self.close()
            self._file, self._offset = open_compressed(self._path, "rb"), 0
        if offset > self._offset and self._path.suffix == ".jsonl":
            self._offset = self._file.seek(offset)
        while offset > self._offset:
            skipped = len(self._file.read(min(offset - self._offset, _SKIP_BYTES)))
            if not skipped:
                raise EOFError("it has become shorter")
            self._offset += skipped
        line = self._file.readline()
        self._offset += len(line)
        return line


class ParquetShard:
    """A parquet file; one row group is in memory. Positions are row numbers."""

    def __init__(self, path: Path, name: str) -> None:
        from puyulm.data.parquet import num_row_groups

        self.path, self._name = path, name
        self._groups = num_row_groups(path)
        self._starts: list[int] | None = None
        self._rows: Iterator[Document] | None = None
        self._next = 0

    def scan(self) -> Iterator[tuple[int, int]]:
        for row in range(self._first_rows()[-1]):
            yield row, row

    def read(self, position: int, number: int) -> Record:
        from puyulm.data.parquet import read_parquet

        place = f"{self._name}, row {number}"
        starts = self._first_rows()
        try:
            if self._rows is None or position < self._next or any(self._next < s <= position for s in starts[:-1]):
                group = max(i for i, start in enumerate(starts[:-1]) if start <= position)
                self._rows, self._next = read_parquet(self.path, range(group, self._groups)), starts[group]
            while True:
                document = next(self._rows)
                self._next += 1
                if self._next > position:
                    return Record(0, place, document)
        except (DataError, TypeError, ValueError, RecursionError, StopIteration) as error:
            self._rows = None
            return Record(0, place, None, str(error) if isinstance(error, DataError) else f"{place}: {error!r}")

    def close(self) -> None:
        self._rows = None

    def _first_rows(self) -> list[int]:
        """First row of each group, and the number of rows."""
        if self._starts is None:
            from puyulm.data.extras import needs

            with needs("pyarrow.parquet", "pyarrow").ParquetFile(self.path) as file:
                rows = [file.metadata.row_group(i).num_rows for i in range(self._groups)]
            self._starts = [sum(rows[:i]) for i in range(len(rows) + 1)]
        return self._starts


class TokenShard:
    """The documents of a folder of token shards: decoded, or as ids without a tokenizer."""

    def __init__(self, folder: Path, name: str, tokenizer: Tokenizer | None) -> None:
        self._shards = TokenShards.open(folder)
        self._name = name
        self._tokenizer = tokenizer
        if tokenizer is not None:
            self._shards.check_tokenizer(tokenizer)

    def scan(self) -> Iterator[tuple[int, int]]:
        for i in range(self._shards.num_documents):
            yield i, i

    def read(self, position: int, number: int) -> Record:
        ids = self._shards.document(position).tolist()
        text = " ".join(map(str, ids)) if self._tokenizer is None else self._tokenizer.decode(ids)
        source = self._shards.sources[int(self._shards.document_source[position])]
        size = int(self._shards.byte_starts[position + 1] - self._shards.byte_starts[position])
        return Record(0, f"{self._name}, document {number}", Document(
            id=f"{self._name}#{number}", text=text, language=source.language, source=source.source,
            metadata={"tokens": len(ids), "bytes": size, "bytes_per_token": round(size / len(ids), 3)},
        ))  # fmt: skip

    def close(self) -> None:
        pass  # the files are mapped


class BrokenShard:
    """A file that cannot be opened: one record that says why."""

    def __init__(self, problem: str) -> None:
        self._problem = problem

    def scan(self) -> Iterator[tuple[int, int]]:
        yield 0, 0

    def read(self, position: int, number: int) -> Record:
        return Record(0, "", None, self._problem)

    def close(self) -> None:
        pass


class Records:
    """The records of some shards, in order.

    Args:
        shards: Opened one after another, when they are reached.
        wanted: Leaves others out; None takes all. Records that cannot be read are always wanted.
    """

    def __init__(self, shards: Sequence[Callable[[], Shard]], wanted: Callable[[Record], bool] | None = None) -> None:
        self._makers, self._wanted = list(shards), wanted
        self._opened: dict[int, Shard] = {}
        self._index = (array("q"), array("q"), array("q"))  # shard, position, number in the shard
        self._cache: OrderedDict[int, Record] = OrderedDict()
        self._scanned = 0
        self._scan = self._all()
        self.complete = False

    @property
    def seen(self) -> int:
        """Wanted records found so far."""
        return len(self._index[0])

    def more(self) -> bool:
        """Looks at one more record; False at the end of all."""
        entry = next(self._scan, None)
        if entry is None:
            self.complete = True
            return False
        if self._wanted is not None:
            record = self._read(*entry)
            if not record.problem and not self._wanted(record):
                return True
            self._keep(self.seen + 1, record)
        for column, value in zip(self._index, entry, strict=True):
            column.append(value)
        return True

    def get(self, number: int) -> Record | None:
        """A record by its number (from 1), reading forward if it was not seen yet; None where there is none."""
        while number > self.seen:
            if not self.more():
                return None
        if number < 1:
            return None
        if number in self._cache:
            self._cache.move_to_end(number)
            return self._cache[number]
        shard, position, inner = (column[number - 1] for column in self._index)
        return self._keep(number, self._read(shard, position, inner))

    def _keep(self, number: int, record: Record) -> Record:
        record = Record(number, record.place, record.document, record.problem)
        self._cache[number] = record
        while len(self._cache) > 1 and (
            len(self._cache) > CACHE_RECORDS
            or sum(len(r.document.text) for r in self._cache.values() if r.document is not None) > CACHE_CHARACTERS
        ):
            self._cache.popitem(last=False)
        return record

    def _all(self) -> Iterator[tuple[int, int, int]]:
        for i in range(len(self._makers)):
            self._scanned = i
            for position, number in self._shard(i).scan():
                yield i, position, number

    def _shard(self, i: int) -> Shard:
        """A shard, opened; the one that is scanned stays open beside the one that is read."""
        if i not in self._opened:
            for other in [other for other in self._opened if other != self._scanned]:
                self._opened.pop(other).close()
            try:
                self._opened[i] = self._makers[i]()
            except (DataError, OSError) as error:
                self._opened[i] = BrokenShard(str(error))
        return self._opened[i]

    def _read(self, shard: int, position: int, number: int) -> Record:
        return self._shard(shard).read(position, number)


def open_records(path: Path, *, dropped: bool = False, reason: str = "", tokenizer: Tokenizer | None = None) -> Records:
    """The records of a shard, of a folder of shards, of a stage of a run, of a run, or of token shards.

    Args:
        path: Of a run, the last stage that has documents is taken.
        dropped: Of a stage, the documents that it dropped; of a run, those that all stages dropped.
        reason: Only documents that were dropped for a reason that contains this text.
        tokenizer: Decodes token shards.

    Raises:
        DataError: Nothing of the kind is there, or a shard cannot be opened.
    """
    shards = _document_shards(path, dropped or bool(reason))
    folders = sorted(found.parent for found in path.rglob(META_FILE)) if not shards and path.is_dir() else []
    if folders and not dropped and not reason:
        makers = [_token_maker(folder, path, tokenizer) for folder in folders]
        makers[0]()  # a wrong tokenizer is told now
        return Records(makers)
    if not shards:
        what = "dropped documents" if dropped or reason else "documents"
        hint = "; these are token shards, which have none" if folders else ""
        raise DataError(f"no {what} at {path}: give a shard, or the folder of a stage or of token shards{hint}")
    wanted = reason.lower()
    return Records([_maker(shard, path) for shard in shards],
                   (lambda record: wanted in record.reason.lower()) if wanted else None)  # fmt: skip


def _maker(path: Path, root: Path) -> Callable[[], Shard]:
    name = _shown(path, root)
    return lambda: ParquetShard(path, name) if path.suffix == ".parquet" else LineShard(path, name)


def _token_maker(folder: Path, root: Path, tokenizer: Tokenizer | None) -> Callable[[], Shard]:
    name = _shown(folder, root)
    return lambda: TokenShard(folder, name, tokenizer)


def _shown(path: Path, root: Path) -> str:
    return path.name if path == root else path.relative_to(root).as_posix()


def _document_shards(path: Path, dropped: bool) -> list[Path]:
    """Files with documents at a path; none where there is another kind of folder."""
    if path.is_file():
        if not path.name.endswith(_SUFFIXES):
            raise DataError(
                f"{path} is no shard of documents ({', '.join(_SUFFIXES)}); of token shards, name the folder"
            )
        return [path]
    if not path.is_dir():
        raise DataError(f"nothing at {path}: give a shard, or the folder of a stage or of token shards")
    if (path / PIPELINE_FILE).is_file():
        folders = [result.folder for result in load_results(path)]
        found = [shards_in(folder / DROPPED_FOLDER if dropped else folder) for folder in folders]
        shards = [shard for part in found for shard in part] if dropped else next(filter(None, reversed(found)), [])
    else:
        folder = path / DROPPED_FOLDER if dropped and (path / DROPPED_FOLDER).is_dir() else path
        shards = sorted(p for p in folder.iterdir() if p.name.endswith(_SUFFIXES) and p.is_file())
        if dropped and folder == path and path.name != DROPPED_FOLDER:
            shards = []
    return shards
