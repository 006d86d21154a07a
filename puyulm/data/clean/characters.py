"""Classes of characters: every code point has one, so that a text is counted by one look-up and one histogram."""

from __future__ import annotations

import functools
import sys
import unicodedata

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]
Classes = npt.NDArray[np.uint8]

# The order counts where several classes are asked for as a range: white space first, then what words are made of.
(NEWLINE, SPACE, LOWER, UPPER, LETTER, HAN, SYLLABLE, DIGIT,
 STOP, WIDE_STOP, ELLIPSIS, QUOTE, BRACKET, COMMA, HASH, BRACE, BULLET, DASH, PUNCTUATION, SYMBOL,
 ABNORMAL, OTHER) = range(22)  # fmt: skip
NUM_CLASSES = 22

ALPHABETIC = (LOWER, UPPER, LETTER, HAN, SYLLABLE)
MARKS = (STOP, WIDE_STOP, ELLIPSIS, QUOTE, BRACKET, COMMA, HASH, BRACE, BULLET, DASH, PUNCTUATION, SYMBOL)
SENTENCE_END = (STOP, WIDE_STOP, ELLIPSIS)

# Control characters but tab, line feed and form feed; the replacement character; private use; non-characters; halves
# of surrogate pairs. `documents.py` makes its pattern of the same ranges.
ABNORMAL_RANGES = (
    (0x00, 0x08), (0x0B, 0x0B), (0x0E, 0x1F), (0x7F, 0x9F), (0xD800, 0xDFFF), (0xFDD0, 0xFDEF), (0xE000, 0xF8FF),
    (0xFFFD, 0xFFFF), (0xF0000, 0x10FFFF),
)  # fmt: skip

_HAN_RANGES = ((0x3005, 0x3007), (0x3021, 0x3029), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF),
               (0x2E80, 0x2FDF), (0x20000, 0x323AF))  # fmt: skip
_SYLLABLE_RANGES = ((0x3041, 0x3096), (0x309D, 0x309F), (0x30A1, 0x30FA), (0x30FC, 0x30FF), (0x3105, 0x312F),
                    (0x31A0, 0x31FF), (0xAC00, 0xD7A3))  # fmt: skip

_SETS = {
    STOP: ".!?‼⁇⁈⁉؟۔।॥։።፧།។៕။",  # end a sentence where a space or the line's end follows
    WIDE_STOP: "。！？．｡",  # end a sentence wherever they stand
    ELLIPSIS: "…⋯",
    QUOTE: "\"'”’」』»›",
    BRACKET: "()[]<>（）［］【】〔〕〈〉《》｛｝",
    COMMA: ",;:，；：、､،؛",
    HASH: "#＃",
    BRACE: "{}",
    BULLET: "•‣⁃▪▫◦●○◉◆◇■□▶►◀➢➤✓✔★☆·∙",
    DASH: "-*–—",
}


@functools.cache
def class_table() -> Classes:
    """The class of every code point, `[0x110000]`."""
    categories = [unicodedata.category(chr(code)) for code in range(sys.maxunicode + 1)]
    classes = {"Ll": LOWER, "Lu": UPPER, "Lt": UPPER, "Nd": DIGIT, "Nl": DIGIT, "No": DIGIT, "Cc": SPACE, "Cf": OTHER,
               "Cn": OTHER, "Co": ABNORMAL, "Cs": ABNORMAL}  # fmt: skip
    whole = {"L": LETTER, "M": LETTER, "P": PUNCTUATION, "S": SYMBOL, "Z": SPACE}
    by_category = {name: classes.get(name, whole.get(name[0], OTHER)) for name in set(categories)}
    table = np.array([by_category[name] for name in categories], dtype=np.uint8)
    for ranges, number in ((_HAN_RANGES, HAN), (_SYLLABLE_RANGES, SYLLABLE), (ABNORMAL_RANGES, ABNORMAL)):
        for low, high in ranges:
            table[low : high + 1] = number
    for number, characters in _SETS.items():
        table[[ord(character) for character in characters]] = number
    table[0x0A] = NEWLINE
    return table


@functools.cache
def members(*numbers: int) -> Mask:
    """A table `[classes]` that is true for the given ones: `members(STOP, QUOTE)[classes]` is a mask."""
    table = np.zeros(NUM_CLASSES, dtype=bool)
    table[list(numbers)] = True
    return table
