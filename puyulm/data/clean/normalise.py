"""Text in one form: what two copies of a text differ in without meaning to. Normalising twice changes nothing more."""

from __future__ import annotations

import re
import unicodedata

_SURROGATE = re.compile("[\ud800-\udfff]")
_LINE_ENDS = re.compile("\r\n?|[\x0b\x0c\x85\u2028\u2029]")
# C0 controls and DEL; soft hyphens; zero-width space and word joiner; marks of writing direction; the byte order mark.
# C1 controls stay: they tell of a wrong encoding, which the rules look for.
_INVISIBLE = re.compile(
    "[\0-\x08\x0e-\x1f\x7f\xad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufeff]"
)
# Joiners shape Persian, Indic scripts and emoji; beside Latin or Chinese letters they do nothing.
_PLAIN = "\n -\u024f\u3000-\u9fff\uff00-\uffef"
_JOINERS = re.compile(f"(?:(?<=[{_PLAIN}])|^)[\u200c\u200d]+|[\u200c\u200d]+(?:(?=[{_PLAIN}])|$)")
_SPACES = re.compile("[\xa0\u1680\u2000-\u200a\u202f\u205f]")
_UNUSUAL = re.compile("|".join(p.pattern for p in (_SURROGATE, _INVISIBLE, _SPACES)) + "|[\r\x0b\x0c\x85\u2028\u2029]")
# Two spaces behind a character that is none: the literal beginning lets the search skip what holds no double space.
_DOUBLE_SPACE = re.compile("  (?<=[^\n \t\u3000]  ) *")
_DOUBLE_WIDE = re.compile("\u3000\u3000(?<=[^\n \t\u3000]\u3000\u3000)\u3000*")
_BLANK_LINES = re.compile(r"\n{3,}")

# What is left of HTML after one decoding, because it was encoded twice. Only with its semicolon, and only these.
_ENTITIES = {
    "amp": "&", "lt": "<", "gt": ">", "quot": '"', "apos": "'", "nbsp": " ", "ensp": " ", "emsp": " ", "ldquo": "“",
    "rdquo": "”", "lsquo": "‘", "rsquo": "’", "mdash": "—", "ndash": "–", "hellip": "…", "middot": "·", "bull": "•",
    "copy": "©", "reg": "®", "times": "×", "laquo": "«", "raquo": "»", "#34": '"', "#39": "'", "#038": "&",
    "#160": " ", "#8211": "–", "#8212": "—", "#8216": "‘", "#8217": "’", "#8220": "“", "#8221": "”", "#8230": "…",
}  # fmt: skip
_ENTITY = re.compile(f"&({'|'.join(map(re.escape, _ENTITIES))});")

_HALF_WIDTH = {
    code: code - 0xFEE0 for low, high in ((0xFF10, 0xFF19), (0xFF21, 0xFF3A), (0xFF41, 0xFF5A))
    for code in range(low, high + 1)
}  # fmt: skip


def normalise_text(text: str, half_width: bool = False) -> str:
    """A text in a natural language in one form.

    Unicode form NFC (NFKC would turn Chinese punctuation into ASCII); LF line ends; no control, zero-width or direction
    characters; one kind of space, and one between words (a line's indentation stays); no spaces at line ends; at most
    one blank line in a row and none around; common HTML entities decoded; half surrogate
    pairs are U+FFFD. Idempotent.

    Args:
        text: Any.
        half_width: Also turn full-width Latin letters and digits into ASCII.
    """
    while True:  # one step can make room for another (&amp;lt;): until nothing changes, almost always after one round
        changed = _once(text, half_width)
        if changed == text:
            return text
        text = changed


def normalise_code(text: str) -> str:
    """Source code with LF line ends, no byte order mark and no NUL; nothing else is touched. Idempotent."""
    text = unify(text)
    return text.replace("\0", "").lstrip("\ufeff")


def unify(text: str) -> str:
    """No byte order mark, LF line ends, and U+FFFD for half surrogate pairs, which no encoding can hold."""
    text = _SURROGATE.sub("\ufffd", text)
    return text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")


def _once(text: str, half_width: bool) -> str:
    """Each step; the slow ones only where a fast search says that there is something to do."""
    if "&" in text:
        text = _ENTITY.sub(lambda match: _ENTITIES[match[1]], text)
    if _UNUSUAL.search(text):
        text = _LINE_ENDS.sub("\n", _SURROGATE.sub("\ufffd", text))
        text = _SPACES.sub(" ", _INVISIBLE.sub("", text))
    if not text.isascii():
        if "\u200c" in text or "\u200d" in text:
            text = _JOINERS.sub("", text)
        text = unicodedata.normalize("NFC", text)
        if half_width:
            text = text.translate(_HALF_WIDTH)
        if "\u3000\u3000" in text:
            text = _DOUBLE_WIDE.sub("\u3000", text)
    text = "\n".join([line.rstrip(" \t\u3000") for line in text.split("\n")])
    if "  " in text:
        text = _DOUBLE_SPACE.sub(" ", text)
    if "\n\n\n" in text:
        text = _BLANK_LINES.sub("\n\n", text)
    return text.strip("\n")
