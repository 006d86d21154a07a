"""Books: PDF and EPUB files."""

from __future__ import annotations

import functools
import logging
import posixpath
import re
import zipfile
import zlib
from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote
from xml.etree import ElementTree

from puyulm.data.extras import needs
from puyulm.data.format.encoding import decode_page
from puyulm.data.format.files import parts
from puyulm.data.format.limits import TimeUpError, time_limit
from puyulm.data.format.pages import all_text
from puyulm.data.format.pieces import Piece
from puyulm.data.format.quarantine import QuarantineError, Reason, quarantined
from puyulm.data.format.settings import FormatSettings
from puyulm.data.pipeline.counts import Counts, Outcome

_CONTAINER = "META-INF/container.xml"
_MAX_XML_BYTES = 10_000_000
_WORD_GAP, _SURE_GAP = -180, -475  # thousandths of the font's size
_PDF_DATE = re.compile(r"D:(\d{4})(\d\d)?(\d\d)?")
_DATE = re.compile(r"\d{4}(?:-\d\d(?:-\d\d)?)?")
_PAGE_TYPES = ("application/xhtml+xml", "text/html")


def read_pdf(piece: Piece, settings: FormatSettings, counts: Counts) -> Iterator[Outcome]:
    """The text of a PDF file, its pages one after another; pages that are pictures have none.

    Raises:
        DataError: pypdf is not installed.
    """
    counts.add_input(piece.size)
    try:
        text, metadata, date = _pdf_text(piece, settings)
        yield from parts(piece, settings, counts, text, metadata, date)
    except QuarantineError as error:
        yield quarantined(piece, "", error.reason, error.sample)


def read_epub(piece: Piece, settings: FormatSettings, counts: Counts) -> Iterator[Outcome]:
    """The text of an EPUB book, its chapters in the order of reading, without its table of contents.

    Source: EPUB 3.3, sections 4.2.6.3.1 (container.xml) and 5.7 (the spine).

    Raises:
        DataError: resiliparse is not installed.
    """
    counts.add_input(piece.size)
    try:
        with zipfile.ZipFile(piece.path) as book:
            text, metadata, date = _epub_text(book, settings)
        yield from parts(piece, settings, counts, text, metadata, date)
    except QuarantineError as error:
        yield quarantined(piece, "", error.reason, error.sample)
    except OSError:
        yield quarantined(piece, "", Reason.UNREADABLE)
    except (
        zipfile.BadZipFile,
        zlib.error,
        KeyError,
        ElementTree.ParseError,
        NotImplementedError,
        EOFError,
        ValueError,
    ):
        yield quarantined(piece, "", Reason.DAMAGED_ARCHIVE)
    except RuntimeError:  # a password is needed
        yield quarantined(piece, "", Reason.ENCRYPTED)


def _pdf_text(piece: Piece, settings: FormatSettings) -> tuple[str, dict[str, Any], str]:
    pypdf = _pypdf()
    pages: list[str] = []
    size = 0
    try:
        with time_limit(settings.seconds_per_page):
            file = pypdf.PdfReader(piece.path)
            if file.is_encrypted and not file.decrypt(""):
                raise QuarantineError(Reason.ENCRYPTED)
            count = len(file.pages)
            title, date = _pdf_facts(file)
        for number in range(count):
            with time_limit(settings.seconds_per_page):
                pages.append(file.pages[number].extract_text(visitor_operand_before=_widen_gaps).strip())
            size += len(pages[-1])
            if size > settings.max_item_bytes:
                raise QuarantineError(Reason.TOO_LARGE, pages[0])
    except QuarantineError:
        raise
    except TimeUpError:
        raise QuarantineError(Reason.TIME_IS_UP, "\n\n".join(pages)) from None
    except OSError:
        raise QuarantineError(Reason.UNREADABLE) from None
    except pypdf.errors.DependencyError:
        raise QuarantineError(Reason.ENCRYPTED) from None
    except Exception as error:  # damaged files make pypdf fail in many ways
        raise QuarantineError(Reason.EXTRACTION_FAILED, "\n\n".join(pages)) from error
    text = "\n\n".join(page for page in pages if page)
    if not text:
        raise QuarantineError(Reason.PDF_WITHOUT_TEXT)
    return text, {"pages": count, **({"title": title} if title else {})}, date


def _widen_gaps(operator: bytes, operands: Any, *_: Any) -> None:
    """Makes pypdf see the spaces between words in fonts that have no space, as XeTeX and others embed them.

    There it takes a space to be as wide as the widest character, and for a gap what is at least half as wide. So each
    gap as wide as a narrow space is written as one that it surely sees, and as much back.
    """
    if operator == b"TJ" and operands and isinstance(operands[0], list):
        operands[0][:] = [
            part
            for item in operands[0]
            for part in (
                (_SURE_GAP, item - _SURE_GAP)
                if isinstance(item, int | float) and _SURE_GAP < item <= _WORD_GAP
                else (item,)
            )
        ]


def _pdf_facts(file: Any) -> tuple[str, str]:
    """Title and date of a PDF file; empty where it does not say them."""
    facts = file.metadata or {}
    title, made = facts.get("/Title"), facts.get("/CreationDate")
    match = _PDF_DATE.match(made) if isinstance(made, str) else None
    return (title.strip() if isinstance(title, str) else "",
            "-".join(part for part in match.groups() if part) if match else "")  # fmt: skip


@functools.cache
def _pypdf() -> Any:
    module = needs("pypdf", "pypdf")
    logging.getLogger("pypdf").setLevel(logging.CRITICAL + 1)  # it has much to say about damaged files
    return module


def _epub_text(book: zipfile.ZipFile, settings: FormatSettings) -> tuple[str, dict[str, Any], str]:
    container = _xml(book, _CONTAINER)
    package_path = next((file.attrib["full-path"] for file in container.iter() if _tag(file) == "rootfile"), "")
    package = _xml(book, package_path)
    chapters: list[str] = []
    size = 0
    for name in _chapter_names(package, posixpath.dirname(package_path)):
        info = book.getinfo(name)
        size += info.file_size
        if size > settings.max_item_bytes:
            raise QuarantineError(Reason.TOO_LARGE, "\n\n".join(chapters))
        data = book.read(info)
        chapters.append(all_text(decode_page(data)))
    text = "\n\n".join(chapter for chapter in chapters if chapter)
    if not text:
        raise QuarantineError(Reason.EMPTY_TEXT)
    title, author, date = (_fact(package, name) for name in ("title", "creator", "date"))
    match = _DATE.match(date)
    facts = {"title": title, "author": author}
    return text, {name: value for name, value in facts.items() if value}, match[0] if match else ""


def _chapter_names(package: ElementTree.Element, folder: str) -> Iterator[str]:
    """Names in the archive of the pages that are to be read one after another."""
    items = {item.attrib.get("id", ""): item.attrib for item in package.iter() if _tag(item) == "item"}
    for reference in package.iter():
        if _tag(reference) != "itemref" or reference.attrib.get("linear") == "no":
            continue
        item = items.get(reference.attrib.get("idref", ""), {})
        contents = "nav" in item.get("properties", "").split()
        if item.get("media-type") in _PAGE_TYPES and not contents:
            yield posixpath.normpath(posixpath.join(folder, unquote(item["href"])))


def _xml(book: zipfile.ZipFile, name: str) -> ElementTree.Element:
    info = book.getinfo(name)
    if info.file_size > _MAX_XML_BYTES:
        raise QuarantineError(Reason.TOO_LARGE)
    return ElementTree.fromstring(book.read(info))


def _fact(package: ElementTree.Element, name: str) -> str:
    return next((" ".join((element.text or "").split()) for element in package.iter() if _tag(element) == name), "")


def _tag(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""
