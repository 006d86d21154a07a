"""The records of a web archive, whole or of a byte range, without a pass over the file.

A range holds the records that begin in it: of a plain file those whose header does, of a compressed one those whose
gzip member does. So ranges that cover the file give every record once, wherever the cuts are. Where a record is
damaged, reading goes on at the next that begins like one, and the bytes between are reported once.

One thing cannot be told apart without a pass over the file: an archive stored uncompressed inside an archive. A range
that begins inside such a record takes the inner records for outer ones.
"""

from __future__ import annotations

import os
import re
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, Protocol

from puyulm.data.format.quarantine import SAMPLE_BYTES, Reason

HEADER_BYTES = 1 << 16  # a longer header is damage
_PEEK = 2048  # most headers are shorter
_BLOCK = 1 << 18
_INPUT = 1 << 16
_MAGIC = b"\x1f\x8b\x08"
_MEMBER_HEAD = 1 << 17  # enough of a member to see its first five bytes of text, after any extra header fields

_BLANK_LINE = re.compile(rb"\r?\n\r?\n")
_LENGTH = re.compile(rb"\ncontent-length:[ \t]*(\d{1,18})[ \t]*\r?\n", re.I)
_TYPE = re.compile(rb"\nwarc-type:", re.I)


@dataclass(frozen=True, slots=True)
class RawRecord:
    """A record of a web archive as it stands in the file, or a stretch that holds none.

    Attributes:
        place: "#" and the byte at which it, or its gzip member, begins; within a member, "+" and the byte of its text.
        data: Header and body; of a bad record its first 4 KB.
        size: Bytes of header and body, decompressed; of a stretch that cannot be decompressed, its bytes in the file.
        problem: Why it cannot be used, or None.
    """

    place: str
    data: bytes
    size: int
    problem: Reason | None = None


def read_records(path: Path, start: int, stop: int, limit: int) -> Iterator[RawRecord]:
    """Yields the records of a `.warc` or `.warc.gz` that begin in a range, in order.

    Args:
        path: The file; its first bytes, or else its name, say whether it is compressed.
        start, stop: The range, in bytes of the file.
        limit: Larger records are only reported. Memory stays within about three times this.
    """
    with open(path, "rb", buffering=1 << 18) as file:
        head = file.read(5)
        if head != b"WARC/" and (head.startswith(_MAGIC) or path.name.lower().endswith(".gz")):
            yield from _gzip_records(file, start, stop, limit)
        else:
            yield from _plain_records(file, start, stop, limit)


class _Window(Protocol):
    """Bytes by their position, as far back as `kept`."""

    kept: int
    failure: Reason | None  # why the bytes end early, once they have
    sound: int  # bytes before this are what was written

    def read(self, position: int, size: int) -> bytes:
        """Up to `size` bytes; fewer only at the end."""
        ...

    def forget(self, position: int) -> None:
        """Bytes before `position` will not be asked for again."""
        ...


class _FileWindow:
    """A plain file."""

    kept = 0
    failure: Reason | None = None
    sound = sys.maxsize

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def read(self, position: int, size: int) -> bytes:
        self._file.seek(position)
        return self._file.read(size)

    def forget(self, position: int) -> None:
        pass


class _Members:
    """The members of a gzip file, one after another from `offset`."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.size = os.fstat(file.fileno()).st_size
        self.offset = 0  # of `_input` in the file: everything before is done with
        self._input = b""

    def seek(self, offset: int) -> None:
        """Goes to a byte of the file."""
        self.offset, self._input = offset, b""
        self._file.seek(offset)

    def peek(self, size: int) -> bytes:
        """The next bytes of the file, as they are."""
        if len(self._input) < size:
            self._input += self._file.read(max(size - len(self._input), _INPUT))
        return self._input[:size]

    def decompress(self, decompressor: zlib._Decompress) -> bytes:
        """Feeds some of the file and moves `offset` on; raises zlib.error, or EOFError at the end of the file."""
        if not self._input:
            self._input = self._file.read(_INPUT)
            if not self._input:
                raise EOFError
        text = decompressor.decompress(self._input, _BLOCK)
        rest = decompressor.unused_data if decompressor.eof else decompressor.unconsumed_tail
        self.offset += len(self._input) - len(rest)
        self._input = rest
        return text

    def begins_record(self) -> bool:
        """Whether a member begins here whose text begins like a WARC record."""
        return self.first_text() == b"WARC/"

    def first_text(self) -> bytes | None:
        """The first five bytes of the text of the member that begins here; None if none does."""
        if self.peek(len(_MAGIC)) != _MAGIC:
            return None
        for size in (1024, _MEMBER_HEAD):
            head = self.peek(size)
            decompressor = zlib.decompressobj(31)
            try:
                text = decompressor.decompress(head, 5)
            except zlib.error:
                return None
            if len(text) == 5 or decompressor.eof:
                return text
        return None

    def find(self, offset: int, stop: int) -> int:
        """Goes to the first place at `offset` or later where a record's member begins; `stop` if none is before."""
        while offset < stop:
            self._file.seek(offset)
            block = self._file.read(_BLOCK)
            found = block.find(_MAGIC)
            while 0 <= found < stop - offset:
                self.seek(offset + found)
                if self.begins_record():
                    return offset + found
                found = block.find(_MAGIC, found + 1)
            if len(block) < _BLOCK:
                break
            offset += _BLOCK - len(_MAGIC) + 1
        self.seek(stop)
        return stop


class _GzipWindow:
    """The text of a member that begins with a record, and of those after it up to the next that begins with one."""

    def __init__(self, members: _Members) -> None:
        self._members = members
        self._decompressor = zlib.decompressobj(31)
        self._text = bytearray()
        self._ended = False
        self._forgotten = 0
        self.kept = 0
        self.failure: Reason | None = None
        self.sound = 0
        self.sound_offset = members.offset  # in the file: where the last whole member ends

    def read(self, position: int, size: int) -> bytes:
        while not self._ended and self.kept + len(self._text) < position + size:
            self._more()
            self._drop()
        start = max(position - self.kept, 0)
        return bytes(self._text[start : start + size])

    def forget(self, position: int) -> None:
        self._forgotten = max(position, self._forgotten)
        self._drop()

    def _drop(self) -> None:
        """Lets go of the text before `_forgotten`, in large steps, since each moves what is behind."""
        done = min(self._forgotten - self.kept, len(self._text))
        if done >= _BLOCK:
            del self._text[:done]
            self.kept += done

    def _more(self) -> None:
        try:
            self._text += self._members.decompress(self._decompressor)
        except EOFError:
            self.failure, self._ended = Reason.TRUNCATED_COMPRESSION, True
        except zlib.error:
            self.failure, self._ended = Reason.DAMAGED_COMPRESSION, True
        else:
            if self._decompressor.eof:
                self.sound, self.sound_offset = self.kept + len(self._text), self._members.offset
                self._ended = self._members.first_text() in (None, b"WARC/")
                self._decompressor = zlib.decompressobj(31)


def _plain_records(file: BinaryIO, start: int, stop: int, limit: int) -> Iterator[RawRecord]:
    window = _FileWindow(file)
    first = _find_record(window, start, stop, limit)
    if start == 0 and first > 0:
        yield _between(window, 0, _find_record(window, first, None, limit))[1]
    for position, record in _split(window, first, stop, limit):
        yield replace(record, place=f"#{position}")


def _gzip_records(file: BinaryIO, start: int, stop: int, limit: int) -> Iterator[RawRecord]:
    members = _Members(file)
    stop = min(stop, members.size)
    offset = members.find(start, stop)
    if start == 0 and offset > 0:
        yield _gap(members, 0, members.find(offset, members.size))
    while offset < stop:
        members.seek(offset)  # blocks begin here, so that damage looks the same in every range
        window = _GzipWindow(members)
        problem: Reason | None = None
        for position, record in _split(window, 0, sys.maxsize, limit):
            problem = record.problem
            yield replace(record, place=f"#{offset}+{position}" if position else f"#{offset}")
        if window.failure:
            broken = window.sound_offset
            following = members.find(broken + 1, members.size)
            if not problem:  # it broke after the last record
                yield RawRecord(f"#{broken}", b"", following - broken, window.failure)
        else:
            following = end = members.offset
            if end < members.size and not members.begins_record():
                following = members.find(end + 1, members.size)
                yield _gap(members, end, following)
        offset = following


def _gap(members: _Members, start: int, stop: int) -> RawRecord:
    """Bytes of a compressed file that belong to no record."""
    members.seek(start)
    data = members.peek(SAMPLE_BYTES)[: stop - start]
    cut = stop == members.size and _MAGIC.startswith(data[: len(_MAGIC)])
    reason = Reason.TRUNCATED_COMPRESSION if cut else Reason.DAMAGED_COMPRESSION
    return RawRecord(f"#{start}", data, stop - start, reason)


def _split(window: _Window, position: int, stop: int, limit: int) -> Iterator[tuple[int, RawRecord]]:
    """(position, record) of what begins in a range: records, and after each the bytes that are none, if there are such.

    So damage belongs to the record before it, and the range in which that begins reports it, also when it goes beyond.
    """
    while position < stop:
        found = _record(window, position, limit)
        if found is None:
            if not window.read(position, 1):
                return
            following = _find_record(window, position + 1, None, limit)
            yield _between(window, position, following)
            position = following
            continue
        total, end = found
        if total > limit:
            sample = window.read(max(position, window.kept), SAMPLE_BYTES)
            yield position, RawRecord("", sample, total, Reason.TOO_LARGE)
        else:
            yield position, RawRecord("", window.read(position, total), total)
        position = end
        window.forget(position)
        if position >= stop and window.read(position, 1) and _record(window, position, limit) is None:
            yield _between(window, position, _find_record(window, position + 1, None, limit))


def _between(window: _Window, position: int, following: int) -> tuple[int, RawRecord]:
    """The bytes from `position` to the next record."""
    sample = window.read(max(position, window.kept), SAMPLE_BYTES)[: following - position]
    reason = window.failure if window.failure and not window.read(following, 1) else Reason.DAMAGED_RECORD
    return position, RawRecord(f"#{position}", sample, following - position, reason)


def _record(window: _Window, position: int, limit: int) -> tuple[int, int] | None:
    """(bytes of the record here, where the next must begin); None if none begins here, or it does not end well."""
    header = _header(window, position)
    if header is None:
        return None
    total = sum(header)
    if total > limit:
        window.forget(position + total - 1)
    end = position + total
    tail = window.read(end - 1, 5)
    if not tail or not (tail[1:].startswith((b"\r\n\r\n", b"\n\n")) or (len(tail) < 5 and not tail[1:].strip(b"\r\n"))):
        return None
    while (block := window.read(end, 64)) and block[0] in b"\r\n":
        end += len(block) - len(block.lstrip(b"\r\n"))
    return None if not block and window.failure and end > window.sound else (total, end)


def _header(window: _Window, position: int) -> tuple[int, int] | None:
    """Bytes of the header, with its blank line, and of the body of the record here; None if none begins here."""
    if position < window.kept:
        return None
    for size in (_PEEK, HEADER_BYTES):
        head = window.read(position, size)
        if not head.startswith(b"WARC/"):
            return None
        if end := _BLANK_LINE.search(head):
            length = _LENGTH.search(head, 0, end.end())
            return (end.end(), int(length[1])) if length and _TYPE.search(head, 0, end.end()) else None
        if len(head) < size:
            return None
    return None


def _find_record(window: _Window, position: int, stop: int | None, limit: int) -> int:
    """The first place at `position` or later, and before `stop`, where a record begins, else `stop` or the end."""
    while stop is None or position < stop:
        position = max(position, window.kept)
        block = window.read(position, _BLOCK)
        for match in re.finditer(b"WARC/", block):
            found = position + match.start()
            if stop is not None and found >= stop:
                return stop
            if _record(window, found, limit) is not None:
                return found
        position += len(block) - len(b"WARC/") + 1
        if len(block) < _BLOCK:
            return position + len(b"WARC/") - 1 if stop is None else stop
        window.forget(position)
    return position if stop is None else stop
