"""Texts from documents, made harmless to show: control characters, terminal escapes and direction marks in sight.

A document may hold anything: escapes that steer a terminal, marks that turn the direction of what follows, halves of
surrogate pairs that no encoding takes. Here they become signs that only show that they are there.
"""

from __future__ import annotations

import re
from collections.abc import Callable

# C0 and C1 controls without tab and line feed, DEL, soft hyphen, zero-width space, direction marks and overrides,
# invisible operators and fillers, line and paragraph separators, byte order mark, interlinear marks, halves of
# surrogate pairs, non-characters and tags. The joiners U+200C and U+200D stay: Persian, Hindi and emoji need them.
_ODD = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u115f\u1160\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\u3164"
    "\ud800-\udfff\ufdd0-\ufdef\ufeff\uffa0\ufff9-\ufffb\ufffe\uffff\U0001fffe\U0001ffff\U000e0000-\U000e007f]"
)
_RUN = re.compile(f"({_ODD.pattern})\\1*")
_STRETCH = re.compile(f"(?:{_ODD.pattern})+")
_MARKS = re.compile("([\u0300-\u036f\u0483-\u0489\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f]{4})"
                    "[\u0300-\u036f\u0483-\u0489\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f]+")  # fmt: skip


def one_for_one(text: str) -> str:
    """The text with a visible sign for each odd character, so that positions stay: for terminals.

    Tabs and line feeds stay. C0 controls and DEL become their pictures (U+2400 and on), others U+FFFD.
    """
    return _ODD.sub(_picture, text)


def spelled(text: str) -> str:
    """The text with odd characters spelled out, such as [U+202E]; equal ones in a row once, with their number."""
    return _MARKS.sub(r"\1", _RUN.sub(_spelling, text))


def with_marks(text: str, mark: Callable[[str], str]) -> str:
    """The text as `spelled`, each stretch of odd characters through `mark`, which may show it in another colour."""
    return _STRETCH.sub(lambda stretch: mark(_RUN.sub(_spelling, stretch.group())), _MARKS.sub(r"\1", text))


def _picture(match: re.Match[str]) -> str:
    code = ord(match.group())
    if code < 0x20:
        return chr(0x2400 + code)
    return "\u2421" if code == 0x7F else "\ufffd"


def _spelling(run: re.Match[str]) -> str:
    number = len(run.group())
    return f"[U+{ord(run.group(1)):04X}{f' x {number}' if number > 1 else ''}]"
