"""Web pages: the main text out of the markup."""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Iterator
from typing import Any

from puyulm.data.extras import needs
from puyulm.data.format.encoding import decode_page
from puyulm.data.format.files import file_document, read_file
from puyulm.data.format.limits import TimeUpError, time_limit
from puyulm.data.format.pieces import Piece
from puyulm.data.format.quarantine import QuarantineError, Reason, quarantined
from puyulm.data.format.settings import FormatSettings
from puyulm.data.pipeline.counts import Counts, Outcome

MAX_DEPTH = 5000  # of elements in each other: resiliparse's time grows with its square
MAX_ATTRIBUTES = 10_000  # of one element: the same
_LONG_PAGE = 200_000  # characters; in a shorter one, attributes cost seconds at most

_NESTING = re.compile(r"<(/?)(?:div|article)\b", re.I)


def read_html(piece: Piece, settings: FormatSettings, counts: Counts) -> Iterator[Outcome]:
    """The main text of one HTML file.

    Raises:
        DataError: The extractor is not installed.
    """
    try:
        text = page_text(read_file(piece, settings, counts), "", settings, counts)
    except QuarantineError as error:
        yield quarantined(piece, "", error.reason, error.sample)
    else:
        yield file_document(piece, settings, text)


def page_text(data: bytes, charset: str, settings: FormatSettings, counts: Counts) -> str:
    """The main text of a page.

    Args:
        data: Its bytes.
        charset: What the HTTP header says, or empty.
        settings: Which extractor, and the limits.
        counts: Receives a note where the time was up.

    Raises:
        QuarantineError: There is no text, the page is too large, or it cannot be read.
        DataError: The extractor is not installed.
    """
    if len(data) > settings.max_page_bytes:
        raise QuarantineError(Reason.TOO_LARGE, data)
    if not data.strip():
        raise QuarantineError(Reason.NO_MAIN_TEXT)
    html = decode_page(data, charset)
    if _out_of_hand(html):
        raise QuarantineError(Reason.MARKUP_OUT_OF_HAND, html)
    text = _main_text(html, settings, counts)
    if not text:
        raise QuarantineError(Reason.NO_MAIN_TEXT, html)
    return text


def all_text(html: str) -> str:
    """All the text of a page that is one text throughout, such as a chapter of a book; may be empty.

    Raises:
        QuarantineError: It cannot be read.
        DataError: resiliparse is not installed.
    """
    if _out_of_hand(html):
        raise QuarantineError(Reason.MARKUP_OUT_OF_HAND, html)
    return _with_resiliparse(html, alt_texts=False)


def _main_text(html: str, settings: FormatSettings, counts: Counts) -> str:
    if settings.extractor == "trafilatura":
        extract = _trafilatura()
        try:
            with time_limit(settings.seconds_per_page):
                # Tables are text, comments below an article are not. `fast` was 1.4 times as fast on 884 labelled pages
                # and lost 1 % of the recall.
                return (extract(html, include_comments=False, include_tables=True) or "").strip()
        except TimeUpError:
            counts.note("pages for which trafilatura's time was up")
        except Exception as error:
            raise QuarantineError(Reason.EXTRACTION_FAILED, html) from error
    return _with_resiliparse(html, main_content=True, alt_texts=False, comments=False)


def _with_resiliparse(html: str, **options: bool) -> str:
    extract = _resiliparse()
    try:
        return str(extract(html, **options)).strip()
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # a panic of its Rust code is no Exception
        raise QuarantineError(Reason.EXTRACTION_FAILED, html) from error


@functools.cache
def _trafilatura() -> Any:
    module = needs("trafilatura", "trafilatura")
    for name in ("trafilatura", "htmldate", "justext"):  # every page without text would be a line on the terminal
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    return module.extract


@functools.cache
def _resiliparse() -> Any:
    return needs("resiliparse.extract.html2text", "resiliparse").extract_plain_text


def _out_of_hand(html: str) -> bool:
    """Whether the markup is such that an extractor's time grows with the square of its length, for minutes."""
    if html.count("<") > MAX_DEPTH:
        depth = 0
        for match in _NESTING.finditer(html):
            depth = max(depth - 1, 0) if match[1] else depth + 1
            if depth > MAX_DEPTH:
                return True
    if len(html) < _LONG_PAGE:
        return False
    return any(
        tag.partition(">")[0].count("=") > MAX_ATTRIBUTES for tag in html.split("<") if len(tag) > MAX_ATTRIBUTES
    )
