"""Long texts in overlapping windows, so that a model judges each byte of them once, with context."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

_WORD = re.compile(r"\s*\S+(?:\s+\Z)?|\s+")
LONGEST_WORD = 16  # characters, beyond which a word may be cut (texts without spaces)


@dataclass(frozen=True)
class Window:
    """A part of a text.

    Attributes:
        context: What comes before it, of the same text.
        text: What is judged.
        words: Words of it, parted by white space; one that a window's end cuts counts where it begins.
    """

    context: str
    text: str
    words: int


def windows(text: str, window: int, stride: int, encode: Callable[[str], Sequence[int]]) -> Iterator[Window]:
    """Windows of a text whose parts, one after the other, are the text.

    Args:
        window: Tokens that a window has at most, one of them for a text's beginning.
        stride: Tokens of a part, about; the first part has the whole window. Cuts are before white space.
        encode: A text's ids.
    """
    pieces, sizes = _pieces(text, encode)
    ends = [0]
    for size in sizes:
        ends.append(ends[-1] + size)
    start, before = 0, 0  # of the part, and of the context
    while start < len(pieces):
        room = window - 1 if start == 0 else stride
        end = start + 1
        while end < len(pieces) and ends[end + 1] - ends[start] <= room:
            end += 1
        while ends[end] - ends[before] > window - 1 and before < start:
            before += 1
        while end > start + 1 and (over := len(encode("".join(pieces[before:end]))) - (window - 1)) > 0:
            if before < start:  # joined, they have more tokens than one by one
                before = min(before + over, start)
            else:
                end = max(end - over, start + 1)
        judged = "".join(pieces[start:end])
        begins_inside = start > 0 and not judged[0].isspace() and not pieces[start - 1][-1].isspace()
        yield Window("".join(pieces[before:start]), judged, len(judged.split()) - begins_inside)
        start = end


def _pieces(text: str, encode: Callable[[str], Sequence[int]]) -> tuple[list[str], list[int]]:
    """Words with the white space before them, long ones cut, and their tokens; each different one is encoded once."""
    pieces: list[str] = []
    for found in _WORD.finditer(text):
        word = found[0]
        pieces += [word[place : place + LONGEST_WORD] for place in range(0, len(word), LONGEST_WORD)]
    known = {piece: max(len(encode(piece)), 1) for piece in set(pieces)}
    return pieces, [known[piece] for piece in pieces]
