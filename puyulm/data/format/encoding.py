"""Bytes to characters: what pages declare, what bytes look like, and what is too broken to keep."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator

from puyulm.data.extras import needs
from puyulm.data.format.quarantine import QuarantineError, Reason

MAX_BROKEN = 0.1  # share of the characters beyond ASCII that may be lost in the encoding that is taken
MAX_BROKEN_OF_ALL = 0.005  # share of all characters, where no encoding does better
META_BYTES = 4096  # browsers look this far for a declaration, and some further

_META = re.compile(rb"""<meta\s[^>]{0,300}?charset\s*=\s*["']?\s*([\w:.-]{2,40})""", re.I)
_XML = re.compile(rb"""\s*<\?xml\s[^>]{0,100}?encoding\s*=\s*["']([\w:.-]{2,40})""")
_MARKS = (
    (codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF32_LE, "utf-32-le"), (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)  # fmt: skip
# Python's codecs of the standard's names are stricter than browsers: these have the characters that are in use.
_WIDER = {"gbk": "gb18030", "shift_jis": "cp932", "euc_kr": "cp949", "big5": "big5hkscs", "iso8859-11": "cp874"}
_ESCAPE, _NUL = b"\x1b", b"\0"  # of ISO-2022, whose text is valid UTF-8, and of UTF-16


def decode_page(data: bytes, declared: str = "") -> str:
    """Characters of a web page.

    A byte order mark says it; what is valid UTF-8 is UTF-8, whatever is declared; else the charset of the HTTP header,
    that of the page's own declaration, and the one that the bytes look like are tried in this order.

    Args:
        data: The page.
        declared: Charset of the HTTP header, or empty.

    Raises:
        QuarantineError: In none of them does the page make sense.
        DataError: resiliparse is not installed.
    """
    for mark, name in _MARKS:
        if data.startswith(mark):
            return _sound(data[len(mark) :], iter([name]))
    if _ESCAPE not in data and _NUL not in data:
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            pass
    return _sound(data, _guesses(data, declared))


def decode_text(data: bytes) -> str:
    """Characters of a text file: UTF-8 or what its byte order mark says, else the encoding that the bytes look like.

    Raises:
        QuarantineError: It makes no sense in that.
        DataError: The text is not UTF-8, and resiliparse is not installed.
    """
    return decode_page(data, "utf-8")


def _guesses(data: bytes, declared: str) -> Iterator[str]:
    """Names of Python codecs to try, each once."""
    encoding = needs("resiliparse.parse.encoding", "resiliparse")
    seen = set()

    def codec(label: str | None) -> Iterator[str]:
        name = encoding.map_encoding_to_html5(label, fallback_utf8=False) if label else None
        name = _WIDER.get(name, name) if name else None
        if name and name not in seen:
            seen.add(name)
            try:
                codecs.lookup(name)
            except LookupError:
                return
            yield name

    yield from codec(declared)
    head = data[:META_BYTES]
    for match in (_XML.match(head), _META.search(head)):
        yield from codec(match[1].decode("ascii") if match else None)
    yield from codec(encoding.detect_encoding(data))


def _sound(data: bytes, names: Iterator[str]) -> str:
    """The text in the first of the encodings in which little of it is lost, or else in that in which least is."""
    best, least = "", len(data)
    for name in names:
        text = data.decode(name, "replace")
        controls = text.count("\0")
        lost = text.count("\ufffd") + controls
        if not lost or lost <= MAX_BROKEN * (len(text) - len(text.encode("ascii", "ignore")) + controls):
            return text
        if lost < least:
            best, least = text, lost
    if best and least <= MAX_BROKEN_OF_ALL * len(best):
        return best
    raise QuarantineError(Reason.BROKEN_ENCODING, data)
