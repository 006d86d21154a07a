"""A batch of texts as arrays: characters and their classes, lines, paragraphs, words; made when asked for.

`D` is the number of texts, `C` of characters (each text has one more, the line feed behind it), `N` of lines that are
not blank, `P` of paragraphs, `W` of words.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from puyulm.data.clean.characters import (
    DIGIT,
    HAN,
    LETTER,
    LOWER,
    NEWLINE,
    NUM_CLASSES,
    SPACE,
    SYLLABLE,
    UPPER,
    Classes,
    Mask,
    class_table,
    members,
)
from puyulm.data.words import Words, mix, words_of

Integers = npt.NDArray[np.int64]

_ODD = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Lines:
    """The lines of a batch that are not blank.

    Attributes:
        owner: Which text a line is of, `[N]`.
        number: Its place among all lines of the batch, blank ones included, `[N]`.
        start: Where it begins, `[N]`.
        end: Where its line feed is, `[N]`.
        first: Its first character that is not white space, `[N]`.
        last: Its last one, `[N]`.
    """

    owner: Integers
    number: Integers
    start: Integers
    end: Integers
    first: Integers
    last: Integers

    @property
    def lengths(self) -> Integers:
        """Characters without the white space around, `[N]`."""
        return self.last - self.first + 1


class Texts:
    """A batch of texts.

    Args:
        texts: Of a few megabytes together; the arrays take about 100 bytes a character.
        languages: Of each text.
    """

    def __init__(self, texts: Sequence[str], languages: Sequence[str]) -> None:
        self.languages = tuple(languages)
        self.strings = tuple(texts)
        # The only letter that gets longer in lower case: without it, positions hold in both cases.
        self._texts = [text.replace("\u0130", "I") for text in texts]
        self.joined = "".join(text + "\n" for text in self._texts)
        self.codes = np.frombuffer(self.joined.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
        lengths = np.fromiter((len(text) + 1 for text in texts), dtype=np.int64, count=len(texts))
        self.bounds: Integers = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        self.classes: Classes = class_table()[self.codes]

    def __len__(self) -> int:
        return len(self._texts)

    @property
    def characters(self) -> Integers:
        """Length of each text, `[D]`."""
        return np.diff(self.bounds) - 1

    @cached_property
    def histogram(self) -> Integers:
        """How many characters of each class a text has, `[D, classes]`."""
        rows = [np.bincount(self.classes[a : b - 1], minlength=NUM_CLASSES)
                for a, b in zip(self.bounds[:-1], self.bounds[1:], strict=True)]  # fmt: skip
        return np.array(rows, dtype=np.int64).reshape(len(self), NUM_CLASSES)

    @cached_property
    def lower(self) -> str:
        """All texts in lower case, each followed by a line feed; positions are those of `codes`."""
        return self.joined.lower()

    @cached_property
    def words(self) -> Words:
        """The words, found and hashed; positions are those of `codes`."""
        return words_of(self._texts)

    @cached_property
    def lines(self) -> Lines:
        """The lines that are not blank."""
        ends = np.flatnonzero(self.classes == NEWLINE)
        starts = np.concatenate([[0], ends[:-1] + 1]).astype(np.int64) if len(ends) else ends
        solid = np.flatnonzero(self.classes > SPACE)
        low, high = np.searchsorted(solid, starts), np.searchsorted(solid, ends)
        kept = np.flatnonzero(low < high)
        owner = np.searchsorted(self.bounds, starts[kept], side="right") - 1
        return Lines(owner, kept, starts[kept], ends[kept], solid[low[kept]], solid[high[kept] - 1])

    @cached_property
    def line_texts(self) -> list[str]:
        """All lines of the batch, blank ones too, as `Lines.number` counts them."""
        return self.joined.split("\n")

    @cached_property
    def line_words(self) -> Integers:
        """Words in each line, `[N]`: what stands between spaces, and each Chinese, Japanese or Korean character.

        Cheaper than `words`, and as C4 counts: "don't" is one word here.
        """
        solid = np.concatenate([[False], self.classes > SPACE])
        single = np.concatenate([[False], members(HAN, SYLLABLE)[self.classes]])
        letter = members(LOWER, UPPER, LETTER, DIGIT)[self.classes]
        begins = single[1:] | (solid[1:] & ~solid[:-1]) | (letter & single[:-1])
        starts = np.flatnonzero(begins)
        return np.searchsorted(starts, self.lines.end) - np.searchsorted(starts, self.lines.start)

    @cached_property
    def line_ids(self) -> Integers:
        """A number for each line's text without the white space around: equal lines, also of two texts, have one."""
        numbers: dict[str, int] = {}
        texts = self.line_texts
        found = [numbers.setdefault(texts[i].strip(), len(numbers)) for i in self.lines.number.tolist()]
        return np.array(found, dtype=np.int64)

    @cached_property
    def paragraphs(self) -> Integers:
        """Index of each paragraph's first line, `[P]`: lines with no blank one between them are a paragraph."""
        lines = self.lines
        if not len(lines.owner):
            return np.zeros(0, dtype=np.int64)
        fresh = (np.diff(lines.number) > 1) | (np.diff(lines.owner) > 0)
        return np.concatenate([[0], np.flatnonzero(fresh) + 1]).astype(np.int64)

    @cached_property
    def paragraph_ids(self) -> Integers:
        """A number for each paragraph's lines, `[P]`, as `line_ids`."""
        starts, ids = self.paragraphs, self.line_ids
        if not len(starts):
            return starts
        place = np.arange(len(ids)) - np.repeat(starts, np.diff(np.append(starts, len(ids))))
        with np.errstate(over="ignore"):
            values = mix(mix(ids.astype(np.uint64) + _ODD) + place.astype(np.uint64) * _ODD)
            hashes = np.add.reduceat(values, starts)
        return np.unique(hashes, return_inverse=True)[1].astype(np.int64)

    def owners(self, positions: Integers) -> Integers:
        """Which text each position is in."""
        return np.searchsorted(self.bounds, positions, side="right") - 1

    def per_text(self, positions: Integers) -> Integers:
        """How many of some positions, in rising order, are in each text, `[D]`."""
        return np.diff(np.searchsorted(positions, self.bounds))

    def find(self, phrase: str) -> Integers:
        """Where a phrase in lower case stands, in any case of the texts; the occurrences do not overlap."""
        found, text = [], self.lower
        place = text.find(phrase)
        while place >= 0:
            found.append(place)
            place = text.find(phrase, place + len(phrase))
        return np.array(found, dtype=np.int64)


def occurred_before(owner: Integers, ids: Integers) -> Mask:
    """Which items came earlier with the same owner and the same id."""
    order = np.lexsort((ids, owner))  # stable: equal items stay in the order of the text
    same = (np.diff(owner[order]) == 0) & (np.diff(ids[order]) == 0)
    found = np.zeros(len(ids), dtype=bool)
    found[order[1:][same]] = True
    return found
