"""Documents, the records that the data stages pass on, and their files: JSON lines (plain, .gz, .zst) or parquet."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, Self, cast

from puyulm.data.extras import needs
from puyulm.errors import DataError

if TYPE_CHECKING:
    from puyulm.data.parquet import ParquetWriter


@dataclass(frozen=True, slots=True)
class Document:
    """One text with where it came from.

    Attributes:
        id: Unique in a corpus and stable from run to run: `source:path` with `#part` for a part of a longer work.
        text: The text itself.
        language: ISO 639-1 code of a natural language ("en", "zh"), or "code".
        source: Name of the corpus it came from.
        url: Address, or path inside the source.
        date: ISO 8601 date of the text or of its crawl; empty when unknown.
        licence: SPDX identifier, or a few words where none exists.
        scores: What classifiers said, by name.
        metadata: Anything else that JSON can hold.
    """

    id: str
    text: str
    language: str
    source: str
    url: str = ""
    date: str = ""
    licence: str = ""
    scores: Mapping[str, float] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)

    @property
    def num_bytes(self) -> int:
        """Length of the text in UTF-8 bytes."""
        return len(self.text.encode("utf-8", "surrogatepass"))


_ORDER = [f.name for f in fields(Document)]
_FIELDS = set(_ORDER)
_STRINGS = ("id", "text", "language", "source", "url", "date", "licence")


def write_documents(path: Path, documents: Iterable[Document], name: str = "") -> int:
    """Writes documents to `.jsonl`, `.jsonl.gz` or `.jsonl.zst` (one JSON object a line), or to `.parquet`.

    The same documents give the same bytes, and the file appears under its name only when it is whole. The format is
    that of `name`, where the file will get another name later.

    Returns:
        The number of documents.
    """
    with replacing(path) as partial, DocumentWriter(partial, name or path.name) as writer:
        for document in documents:
            writer.write(document)
    return writer.count


def read_documents(path: Path) -> Iterator[Document]:
    """Yields the documents of one file in order.

    Raises:
        DataError: The file is missing or truncated, or a line is no document; the message names file and line.
    """
    if not path.is_file():
        raise DataError(f"no documents at {path}: make them first (puyu data collect or run), or check the path")
    if path.suffix == ".parquet":
        from puyulm.data.parquet import read_parquet

        yield from read_parquet(path)
        return
    number = 0
    try:
        with open_compressed(path, "rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield document_from_line(line, f"{path}, line {number}")
    except (EOFError, gzip.BadGzipFile, zlib.error, CompressionError) as error:
        raise DataError(f"{path} is damaged after line {number} ({error}): make the file again") from error


class DocumentWriter:
    """Writes documents to `path` in the format that `name` ends in; a context manager.

    Args:
        path: The file to write, usually the partial one that `replacing` gives.
        name: The name that it will have.
    """

    def __init__(self, path: Path, name: str) -> None:
        self.count = 0
        self._parquet: ParquetWriter | None = None
        self._lines: IO[bytes] | None = None
        if name.endswith(".parquet"):
            from puyulm.data.parquet import ParquetWriter

            self._parquet = ParquetWriter(path)
        else:
            self._lines = open_compressed(path, "wb", name)

    def write(self, document: Document) -> None:
        """Appends one document."""
        self.count += 1
        if self._lines is not None:
            self._lines.write(_to_line(document))
        elif self._parquet is not None:
            self._parquet.write(document)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for file in (self._lines, self._parquet):
            if file is not None:
                file.close()


def document_from_line(line: bytes | str, where: str) -> Document:
    """A document from one line of JSON; unknown keys go into its metadata.

    Raises:
        DataError: It is none; the message begins with `where`.
    """
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON ({error})") from error
    if not isinstance(record, dict):
        raise DataError(f"{where}: a document is a JSON object, found {type(record).__name__}")
    return document_from_record(record, where)


def document_from_record(record: dict[str, Any], where: str) -> Document:
    """A document from the fields of one; unknown ones go into its metadata. Raises DataError as above."""
    wrong = [name for name in _STRINGS if not isinstance(record.setdefault(name, ""), str)]
    if wrong or not record["id"]:
        raise DataError(f"{where}: {', '.join(wrong) or 'id'} must be a string")
    if wrong := [name for name in ("scores", "metadata") if not isinstance(record.get(name, {}), dict)]:
        raise DataError(f"{where}: {', '.join(wrong)} must be an object")
    unknown = {name: value for name, value in record.items() if name not in _FIELDS}
    known = {name: value for name, value in record.items() if name in _FIELDS}
    if unknown:
        known["metadata"] = {**unknown, **known.get("metadata", {})}
    return Document(**known)


def split_text(text: str, max_bytes: int, heading: re.Pattern[str] | None = None) -> list[str]:
    """Cuts a long work into parts at headings, and parts above `max_bytes` at blank lines; joined, they are the work.

    Args:
        text: The work.
        max_bytes: Aim for the length of a part in UTF-8 bytes; a single paragraph may be longer.
        heading: Matches (in multi-line mode) the start of a line at which a new part begins. Parts of under an eighth
            of `max_bytes` (an act's title before its first scene) go with what follows.
    """
    cuts = [0, *(match.start() for match in heading.finditer(text) if match.start() > 0)] if heading else [0]
    sections = [text[a:b] for a, b in zip(cuts, [*cuts[1:], len(text)], strict=True)]
    pieces = [piece for section in sections for piece in _at_blank_lines(section, max_bytes)]
    parts: list[str] = []
    for piece in pieces:
        if parts and len(parts[-1].encode()) < max_bytes // 8:
            parts[-1] += piece
        else:
            parts.append(piece)
    return parts


def text_hash(text: str) -> str:
    """128-bit BLAKE2b of a text, in hex."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Gives a path beside `path` to write to, which replaces `path` if the block ends well and else is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _at_blank_lines(text: str, max_bytes: int) -> Iterator[str]:
    start = size = 0
    for paragraph in re.finditer(r".*?(?:\n\s*\n|\Z)", text, re.DOTALL):
        length = len(paragraph.group().encode())
        if size and size + length > max_bytes:
            yield text[start : paragraph.start()]
            start, size = paragraph.start(), 0
        size += length
    if start < len(text):
        yield text[start:]


def open_compressed(path: Path, mode: Literal["rb", "wb"], name: str = "") -> IO[bytes]:
    """Opens a binary file, through gzip or zstandard where its name (or `name`) ends in .gz or .zst.

    What is written holds no name and no time, so that equal contents are equal files.

    Raises:
        DataError: zstandard is needed and not installed.
    """
    suffix = Path(name or path.name).suffix
    raw: Any = open(path, mode)  # noqa: SIM115 - closed with what wraps it
    if suffix == ".gz":
        return cast(IO[bytes], _Gzip(filename="", mode=mode, fileobj=raw, compresslevel=6, mtime=0))
    if suffix == ".zst":
        zstandard = needs("zstandard", "zstandard")
        if mode == "wb":
            compressor = zstandard.ZstdCompressor(level=3, write_checksum=True)
            return cast(IO[bytes], io.BufferedWriter(compressor.stream_writer(raw, closefd=True), 1 << 20))
        return cast(IO[bytes], io.BufferedReader(_Zstd(raw, zstandard), 1 << 20))
    return cast(IO[bytes], raw)


class CompressionError(ValueError):
    """Compressed bytes are damaged or end early."""


class _Gzip(gzip.GzipFile):
    """A gzip file that also closes the file below it."""

    def close(self) -> None:
        raw: Any = self.fileobj
        try:
            super().close()
        finally:
            if raw is not None:
                raw.close()


class _Zstd(io.RawIOBase):
    """A zstandard file's frames, decompressed; an end inside a frame is an error and not the end of the text."""

    def __init__(self, raw: IO[bytes], zstandard: Any) -> None:
        self._raw, self._new, self._error = raw, zstandard.ZstdDecompressor, zstandard.ZstdError
        self._frame: Any = None
        self._compressed = self._text = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._text:
            self._compressed = self._compressed or self._raw.read(1 << 13)  # repetitive text grows 100 times and more
            if not self._compressed:
                if self._frame is not None:
                    raise CompressionError("the file ends early")
                return 0
            self._frame = self._frame or self._new().decompressobj()
            try:
                self._text = self._frame.decompress(self._compressed)
            except self._error as error:
                raise CompressionError(str(error)) from error
            self._compressed = self._frame.unused_data if self._frame.eof else b""
            if self._frame.eof:
                self._frame = None
        taken, self._text = self._text[: len(buffer)], self._text[len(buffer) :]
        buffer[: len(taken)] = taken
        return len(taken)

    def close(self) -> None:
        self._raw.close()
        super().close()


def _to_line(document: Document) -> bytes:
    record = {name: value for name in _ORDER if (value := getattr(document, name)) or name in ("id", "text")}
    line = json.dumps(record, ensure_ascii=False, separators=(",", ":")) + "\n"
    return line.encode("utf-8", "backslashreplace")  # half a surrogate pair becomes its JSON escape
