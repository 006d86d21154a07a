"""Whole files: plain text, Markdown, and what all readers of files share."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator, Mapping
from typing import Any

from puyulm.data.documents import CompressionError, Document, open_compressed, split_text
from puyulm.data.format.encoding import decode_text
from puyulm.data.format.pieces import Piece
from puyulm.data.format.quarantine import SAMPLE_BYTES, QuarantineError, Reason, quarantined, skip
from puyulm.data.format.settings import FormatSettings
from puyulm.data.pipeline.counts import Counts, Outcome

READ_ERRORS = (EOFError, CompressionError, zlib.error, OSError)
"""What reading through `open_compressed` may raise."""


def read_text(piece: Piece, settings: FormatSettings, counts: Counts) -> Iterator[Outcome]:
    """A plain text or a Markdown file, as it is; cut into parts if it is longer than `split_bytes`."""
    try:
        text = decode_text(read_file(piece, settings, counts)).replace("\r\n", "\n")
        yield from parts(piece, settings, counts, text)
    except QuarantineError as error:
        yield quarantined(piece, "", error.reason, error.sample)


def read_skipped(piece: Piece, settings: FormatSettings, counts: Counts) -> Iterator[Outcome]:
    """A file or folder that is left out: counted, and nothing else."""
    skip(counts, piece.detail, piece.size)
    return iter(())


def read_unsupported(piece: Piece, settings: FormatSettings, counts: Counts) -> Iterator[Outcome]:
    """A file of no kind that is known."""
    counts.add_input(piece.size)
    with open(piece.path, "rb") as file:
        yield quarantined(piece, "", Reason.UNSUPPORTED, file.read(SAMPLE_BYTES))


def read_file(piece: Piece, settings: FormatSettings, counts: Counts) -> bytes:
    """The bytes of a file, decompressed, and counted as input.

    Raises:
        QuarantineError: It is larger than the settings allow, damaged, or cannot be read.
    """
    data = bytearray()
    reason: Reason | None = None
    try:
        with open_compressed(piece.path, "rb") as file:
            while len(data) <= settings.max_item_bytes and (block := file.read(1 << 20)):
                data += block
    except READ_ERRORS as error:
        reason = read_problem(error)
    if not reason and len(data) > settings.max_item_bytes:
        reason = Reason.TOO_LARGE
    if reason:
        counts.add_input(piece.size)
        raise QuarantineError(reason, bytes(data[:SAMPLE_BYTES]))
    counts.add_input(len(data))
    return bytes(data)


def read_problem(error: BaseException) -> Reason:
    """The reason of the quarantine for one of `READ_ERRORS`."""
    if isinstance(error, EOFError) or "ends early" in str(error):
        return Reason.TRUNCATED_COMPRESSION
    damaged = isinstance(error, gzip.BadGzipFile | zlib.error | CompressionError)
    return Reason.DAMAGED_COMPRESSION if damaged else Reason.UNREADABLE


def parts(
    piece: Piece,
    settings: FormatSettings,
    counts: Counts,
    text: str,
    metadata: Mapping[str, Any] | None = None,
    date: str = "",
) -> Iterator[Document]:
    """A work as one document, or as several, each counted as an item of input, if it is longer than `split_bytes`.

    Raises:
        QuarantineError: There is no text.
    """
    if not text.strip():
        raise QuarantineError(Reason.EMPTY_TEXT)
    texts = [text]
    if settings.split_bytes and len(text) * 4 > settings.split_bytes and len(text.encode()) > settings.split_bytes:
        texts = [part for part in split_text(text, settings.split_bytes) if part.strip()]
    counts.add_input(0, len(texts) - 1)
    for number, part in enumerate(texts):
        named = {**(metadata or {}), "part": number} if len(texts) > 1 else metadata
        place = f"#{number}" if len(texts) > 1 else ""
        yield file_document(piece, settings, part, place, named, date)


def file_document(
    piece: Piece, settings: FormatSettings, text: str, place: str = "", metadata: Mapping[str, Any] | None = None,
    date: str = "",
) -> Document:  # fmt: skip
    """A document out of a file; its language is found later where the settings do not say it."""
    given = settings.inputs[piece.input]
    return Document(
        id=f"{piece.source}:{piece.name}{place}", text=text, language=given.language, source=piece.source,
        url=piece.name, date=date or given.date, licence=given.licence, metadata=metadata or {},
    )  # fmt: skip
