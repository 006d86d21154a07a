"""Input that is no document: why, and what could be read of it.

Every item of raw input is counted once with `Counts.add_input` and then becomes a document, a dropped one with one of
the reasons below, or a note that begins with "skipped: ". So, in a stage's figures, documents in are documents kept,
dropped and skipped.
"""

from __future__ import annotations

from enum import StrEnum

from puyulm.data.documents import Document
from puyulm.data.format.pieces import Piece
from puyulm.data.pipeline.counts import Counts, Dropped

SAMPLE_BYTES = 4096
SKIPPED = "skipped: "


class Reason(StrEnum):
    """Why an item cannot become a document."""

    BROKEN_ENCODING = "quarantine: broken encoding"
    TRUNCATED_COMPRESSION = "quarantine: truncated compression"
    DAMAGED_COMPRESSION = "quarantine: damaged compression"
    DAMAGED_RECORD = "quarantine: damaged WARC record"
    DAMAGED_ARCHIVE = "quarantine: damaged archive"
    NO_MAIN_TEXT = "quarantine: no main text"
    EMPTY_TEXT = "quarantine: empty text"
    NO_TEXT_FIELD = "quarantine: no text field"
    NO_TOKENS = "quarantine: no tokens"
    UNKNOWN_TOKEN = "quarantine: token outside the vocabulary"
    WRONG_META = "quarantine: does not fit its meta file"
    NOT_JSON = "quarantine: not JSON"
    TOO_LARGE = "quarantine: too large"
    MARKUP_OUT_OF_HAND = "quarantine: markup out of hand"
    EXTRACTION_FAILED = "quarantine: extraction failed"
    TIME_IS_UP = "quarantine: time is up"
    PDF_WITHOUT_TEXT = "quarantine: PDF without text"
    ENCRYPTED = "quarantine: encrypted"
    UNREADABLE = "quarantine: unreadable file"
    UNSUPPORTED = "quarantine: unsupported file"


class QuarantineError(Exception):
    """An item cannot become a document.

    Args:
        reason: Why.
        sample: What could be read of it.
    """

    def __init__(self, reason: Reason, sample: bytes | str = b"") -> None:
        super().__init__(reason)
        self.reason, self.sample = reason, sample


def quarantined(piece: Piece, place: str, reason: Reason, sample: bytes | str = b"") -> Dropped:
    """An item that cannot become a document.

    Args:
        piece: Where it was found.
        place: Where in the file, such as "#120" for a byte; empty for the file itself.
        reason: Why.
        sample: What could be read of it; its first 4 KB are kept.
    """
    head = sample[:SAMPLE_BYTES]
    text = head if isinstance(head, str) else head.decode("utf-8", "replace")
    document = Document(f"{piece.source}:{piece.name}{place}", text, "und", piece.source, url=piece.name)
    return Dropped(document, reason.value)


def skip(counts: Counts, what: str, size: int) -> None:
    """Counts an item that is no text and was never meant to be, such as an image in a crawl."""
    counts.add_input(size)
    counts.note(SKIPPED + what)
