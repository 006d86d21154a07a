"""Documents, the records that the data stages pass on, and their files: JSON lines, gzip-compressed."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from puyulm.errors import DataError


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


_FIELDS = {f.name for f in fields(Document)}
_STRINGS = ("id", "text", "language", "source", "url", "date", "licence")


def write_documents(path: Path, documents: Iterable[Document]) -> int:
    """Writes one JSON object a line, gzip-compressed where the name ends in ".gz".

    The same documents give the same bytes, and the file appears under its name only when it is whole.

    Returns:
        The number of documents.
    """
    count = 0
    with replacing(path) as partial, _open_binary(partial, ".gz" in path.suffixes, "wb") as file:
        for document in documents:
            file.write(_to_line(document))
            count += 1
    return count


def read_documents(path: Path) -> Iterator[Document]:
    """Yields the documents of one file in order.

    Raises:
        DataError: The file is missing or truncated, or a line is no document; the message names file and line.
    """
    if not path.is_file():
        raise DataError(f"no documents at {path}: collect them first (puyu data collect), or check the path")
    number = 0
    try:
        with _open_binary(path, ".gz" in path.suffixes, "rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield _from_line(line, path, number)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path} is damaged after line {number} ({error}): make the file again") from error


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
    partial = path.with_name(f".{path.name}.partial")
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


@contextmanager
def _open_binary(path: Path, compressed: bool, mode: str) -> Iterator[Any]:
    with open(path, mode) as raw:
        if not compressed:
            yield raw
        else:  # no file name and no time in the header, so that equal documents give equal bytes
            with gzip.GzipFile(filename="", mode=mode, fileobj=raw, compresslevel=6, mtime=0) as file:
                yield file


def _to_line(document: Document) -> bytes:
    record = {name: value for name, value in asdict(document).items() if value or name in ("id", "text")}
    line = json.dumps(record, ensure_ascii=False, separators=(",", ":")) + "\n"
    return line.encode("utf-8", "backslashreplace")  # half a surrogate pair becomes its JSON escape


def _from_line(line: bytes, path: Path, number: int) -> Document:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise DataError(f"{path}, line {number}: not JSON ({error})") from error
    if not isinstance(record, dict):
        raise DataError(f"{path}, line {number}: a document is a JSON object, found {type(record).__name__}")
    wrong = [name for name in _STRINGS if not isinstance(record.setdefault(name, ""), str)]
    if wrong or not record["id"]:
        raise DataError(f"{path}, line {number}: {', '.join(wrong) or 'id'} must be a string")
    unknown = {name: value for name, value in record.items() if name not in _FIELDS}
    known = {name: value for name, value in record.items() if name in _FIELDS}
    if unknown:
        known["metadata"] = {**unknown, **known.get("metadata", {})}
    return Document(**known)
