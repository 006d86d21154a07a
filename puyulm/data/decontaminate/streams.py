"""The words in which items and documents are compared: all, those that are no numbers, or a program's tokens."""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from puyulm.data.decontaminate.settings import Kind
from puyulm.data.words import Hashes, Integers, Words, ngram_hashes, words_of

_FULL_WIDTH = re.compile("[０-９Ａ-Ｚａ-ｚ]")
_TO_HALF_WIDTH = {code: code - 0xFEE0 for code in range(0xFF10, 0xFF5B)}
_ESCAPED = re.compile(r"\\[nrt]")
_DIGIT = re.compile("[0-9]")
_NUMBER = re.compile(r"\d+(?:[,，]\d{3})*(?:\.\d+)?")
_WORKINGS = re.compile(r"<<[^<>\n]*>>")  # what GSM8K's answers calculate in passing
_FIRST_IDEOGRAPH = 0x2E80


@dataclass(frozen=True)
class Stream:
    """The words of a batch of texts, as one kind of set looks at them.

    Attributes:
        texts: The texts as they came; positions of words are positions in them.
        words: Their words; the positions count from each text's beginning, see `span`.
    """

    texts: Sequence[str]
    words: Words

    def span(self, text: int, first: int, last: int) -> tuple[int, int]:
        """Where the words `first` to `last` (exclusive; counted within the text) stand in it, in characters."""
        begin = self.words.first[text]
        start = self.words.starts[begin + first] - self.words.text_starts[text]
        end = self.words.ends[begin + last - 1] - self.words.text_starts[text]
        return int(start), int(end)

    def shingles(self, text: int, first: int, last: int, n: int) -> Hashes:
        """Hashes of the n-grams among some words of a text; of fewer than n words, none."""
        begin = self.words.first[text]
        hashes = self.words.hashes[begin + first : begin + last]
        ends = np.array([0, len(hashes)], dtype=np.int64)
        none = np.zeros(0, dtype=np.int64)
        part = Words(np.zeros(0, dtype=np.uint32), ends, none, none, ends, hashes)
        return ngram_hashes(part, n)[0] if len(hashes) >= n else np.zeros(0, dtype=np.uint64)


def read_streams(texts: Sequence[str], kinds: Sequence[Kind]) -> dict[Kind, Stream]:
    """The streams of a batch that the kinds need."""
    prepare = {"text": _plain, "math": _without_digits, "code": _marks_as_words}
    return {kind: Stream(texts, words_of([prepare[kind](text) for text in texts])) for kind in dict.fromkeys(kinds)}


def is_dense(words: Words) -> np.ndarray:
    """Whether most words of each text are single characters of scripts without spaces, `[D]` bool."""
    if not len(words.starts):
        return np.zeros(len(words.counts), dtype=bool)
    sums = np.concatenate([[0], np.cumsum(words.codes[words.starts] >= _FIRST_IDEOGRAPH)])
    return (sums[words.first[1:]] - sums[words.first[:-1]]) * 2 > words.counts


def numbers_in(text: str) -> list[str]:
    """The numbers of a text in one spelling: without thousands separators, and without zeros that say nothing."""
    found = _NUMBER.findall(_WORKINGS.sub("", _plain(text)))
    return [_plain_number(number.replace(",", "").replace("，", "")) for number in found]


def _plain_number(number: str) -> str:
    whole, _, fraction = number.partition(".")
    fraction = fraction.rstrip("0")
    return (whole.lstrip("0") or "0") + (f".{fraction}" if fraction else "")


def _plain(text: str) -> str:
    """Full-width letters and digits as plain ones, no escaped line ends (of JSON inside a text); positions stay."""
    text = _ESCAPED.sub("  ", text) if "\\" in text else text
    text = text.replace("\u0130", "i")  # the only character that grows in lower case
    return text.translate(_TO_HALF_WIDTH) if _FULL_WIDTH.search(text) else text


def _without_digits(text: str) -> str:
    """Spaces in place of digits, so that "2x" and "5x" are the same word; positions stay."""
    return _DIGIT.sub(" ", _plain(text))


def _marks_as_words(text: str) -> str:
    """A program whose punctuation characters are words, and "_" a letter; positions stay."""
    codes = np.frombuffer(_plain(text).encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    return _mark_table()[codes].tobytes().decode("utf-32-le", "surrogatepass")


@functools.cache
def _mark_table() -> np.ndarray:
    table = np.arange(sys.maxunicode + 1, dtype=np.uint32)
    marks = [code for code in range(33, 127) if not chr(code).isalnum()]
    table[marks] = 0x2F00 + np.arange(len(marks))  # Kangxi radicals: words of one character that no program has
    table[ord("_")] = ord("\u00aa")  # a letter, and rare
    table[ord("'")] = table[ord('"')]  # quotes are a matter of style
    table[ord("\\")] = ord(" ")
    return table


def positions(first: Integers, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The text and the place within it of n-grams, given where each text's n-grams begin."""
    owner = np.searchsorted(first, places, side="right") - 1
    return owner, places - first[owner]
