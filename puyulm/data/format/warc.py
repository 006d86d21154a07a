"""Web archives: their pages as documents, and small archives written for tests and examples."""

from __future__ import annotations

import gzip
import hashlib
import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from puyulm.data.documents import Document, replacing
from puyulm.data.extras import needs
from puyulm.data.format.encoding import decode_text
from puyulm.data.format.pages import page_text
from puyulm.data.format.pieces import Piece
from puyulm.data.format.quarantine import SAMPLE_BYTES, QuarantineError, Reason, quarantined, skip
from puyulm.data.format.settings import FormatSettings
from puyulm.data.format.warc_records import RawRecord, read_records
from puyulm.data.pipeline.counts import Counts, Dropped, Outcome

PAGE_TYPES = ("text/html", "application/xhtml+xml")
_NAMESPACE = uuid.UUID("7d2f1c0e-3a64-5b0c-9d5e-1f6a52c6b8d4")


def read_warc(piece: Piece, settings: FormatSettings, counts: Counts) -> Iterator[Outcome]:
    """Documents out of the pages of a web archive, and out of the plain texts of a WET archive.

    Of responses with status 200 and the type HTML, the main text; other responses are counted as skipped, and requests
    and other records about records as notes only.

    Raises:
        DataError: fastwarc is not installed.
    """
    warc = needs("fastwarc.warc", "fastwarc")
    for raw in read_records(piece.path, piece.start, piece.stop, settings.max_item_bytes):
        if raw.problem:
            counts.add_input(raw.size)
            yield quarantined(piece, raw.place, raw.problem, raw.data)
        elif (outcome := _outcome(raw, warc, piece, settings, counts)) is not None:
            yield outcome


def make_warc(path: Path, pages: Iterable[tuple[str, str, bytes]], content_type: str = "text/html") -> None:
    """Writes pages to a web archive as a crawler would: a gzip member for each record if the name ends in .gz.

    The same pages give the same bytes.

    Args:
        path: `.warc` or `.warc.gz`.
        pages: (url, ISO 8601 date with time, body) of each.
        content_type: Of all of them; may name a charset.
    """
    with replacing(path) as partial, open(partial, "wb") as file:
        for url, date, body in pages:
            record = response_record(url, date, body, content_type)
            file.write(gzip.compress(record, 6, mtime=0) if path.suffix == ".gz" else record)


def response_record(
    url: str, date: str, body: bytes, content_type: str = "text/html", status: str = "200 OK", headers: str = ""
) -> bytes:
    """One response as a WARC/1.0 record; `headers` are further lines of HTTP, each ending in CRLF."""
    identity = uuid.uuid5(_NAMESPACE, f"{url} {date}")
    http = f"HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\n{headers}\r\n".encode() + body
    header = (
        f"WARC/1.0\r\nWARC-Type: response\r\nWARC-Record-ID: <urn:uuid:{identity}>\r\nWARC-Date: {date}\r\n"
        f"WARC-Target-URI: {url}\r\nContent-Type: application/http; msgtype=response\r\n"
        f"Content-Length: {len(http)}\r\n\r\n"
    )
    return header.encode() + http + b"\r\n\r\n"


def _outcome(raw: RawRecord, warc: Any, piece: Piece, settings: FormatSettings, counts: Counts) -> Outcome | None:
    """What becomes of a whole record; None if it is skipped, and counted so."""
    kinds = warc.WarcRecordType
    try:
        record, skipped, body = _opened(raw, warc, settings.max_item_bytes)
    except (OSError, ValueError, EOFError):
        counts.add_input(raw.size)
        return quarantined(piece, raw.place, Reason.DAMAGED_RECORD, raw.data)
    if record.record_type not in (kinds.response, kinds.resource, kinds.conversion):
        counts.add_input(raw.size, documents=0)
        counts.note("records about records")
        return None
    if skipped:
        skip(counts, skipped, raw.size)
        return None
    counts.add_input(raw.size)
    plain = record.record_type == kinds.conversion
    try:
        text = _plain_text(body) if plain else page_text(body, record.http_charset or "", settings, counts)
    except QuarantineError as error:
        sample = body[:SAMPLE_BYTES].decode("utf-8", "replace")
        return Dropped(_document(record, sample, raw, piece, settings), error.reason.value)
    return _document(record, text, raw, piece, settings)


def _opened(raw: RawRecord, warc: Any, limit: int) -> tuple[Any, str, bytes]:
    """The record, why it is skipped (or nothing), and its payload as the HTTP header says that it is coded.

    Raises:
        OSError: It is damaged. A page that declares a coding and has none is not: some servers send such.
    """
    try:
        return _open(raw, warc, limit, "all")
    except OSError:
        record, skipped, body = _open(raw, warc, limit, "none")
        if skipped or not _looks_like_page(body):
            raise
        return record, skipped, body


def _open(raw: RawRecord, warc: Any, limit: int, decode: str) -> tuple[Any, str, bytes]:
    record, kinds = warc.WarcRecord.from_bytes(raw.data), warc.WarcRecordType
    wanted: tuple[str, ...] = PAGE_TYPES
    if record.record_type == kinds.response:
        if record.is_http:
            record.parse_http(auto_decode=decode)
            if record.http_headers.status_code != 200:
                return record, "status other than 200", b""
        text = record.http_content_type
    elif record.record_type in (kinds.resource, kinds.conversion):
        text = record.headers.get("Content-Type")
        wanted = ("text/plain",) if record.record_type == kinds.conversion else PAGE_TYPES
    else:
        return record, "", b""
    kind = (text or "").partition(";")[0].strip().lower()
    if kind and kind not in wanted:
        return record, "not a page", b""
    body = _read(record, limit)
    return record, "" if kind or _looks_like_page(body) else "not a page", body


def _read(record: Any, limit: int) -> bytes:
    """The payload, at most one byte longer than `limit`."""
    parts: list[bytes] = []
    size = 0
    while size <= limit and (part := record.reader.read(min(limit + 1 - size, 1 << 20))):
        parts.append(part)
        size += len(part)
    return b"".join(parts)


def _looks_like_page(body: bytes) -> bool:
    head = body[:1024].lstrip().lower()
    return head.startswith((b"<!doctype html", b"<html")) or b"<html" in head


def _plain_text(body: bytes) -> str:
    text = decode_text(body).strip()
    if not text:
        raise QuarantineError(Reason.EMPTY_TEXT)
    return text


def _document(record: Any, text: str, raw: RawRecord, piece: Piece, settings: FormatSettings) -> Document:
    given = settings.inputs[piece.input]
    url, date = record.headers.get("WARC-Target-URI") or "", record.headers.get("WARC-Date") or ""
    url = url.strip("<>")
    truncated = record.headers.get("WARC-Truncated")
    return Document(
        id=f"{piece.source}:{_identity(record.record_id or '', url, date) or piece.name + raw.place}", text=text,
        language=given.language, source=piece.source, url=url, date=date or given.date, licence=given.licence,
        metadata={"truncated": truncated} if truncated else {},
    )  # fmt: skip


def _identity(record_id: str, url: str, date: str) -> str:
    """The record's own name, or a hash of address and date: the same in whatever file the record stands."""
    name = record_id.strip().strip("<>").removeprefix("urn:uuid:")
    if name:
        return name
    return hashlib.blake2b(f"{url} {date}".encode(), digest_size=16).hexdigest() if url and date else ""
