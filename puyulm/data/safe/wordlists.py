"""Word lists: which listed words and phrases a text holds, found in one pass (Aho-Corasick)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from puyulm.data.extras import needs
from puyulm.errors import DataError

STRETCH = 10_000
"""Characters of a text in which distinct words are counted together: a book may hold a few of them, far apart."""


@dataclass(frozen=True)
class WordHits:
    """What a text holds of a list.

    Attributes:
        occurrences: Listed words in the text; of words that overlap, one.
        distinct: The most different words in any stretch of 10,000 characters.
        density: Occurrences per 1,000 characters.
    """

    occurrences: int
    distinct: int
    density: float


class WordList:
    """Words and phrases, found whatever their case.

    An entry that begins or ends with a letter or digit of an alphabet matches there only at the edge of a word
    ("ass" is not in "class"); Chinese and Japanese characters match anywhere, since no spaces stand between words.

    Args:
        words: Entries; runs of spaces in them count as one.

    Raises:
        DataError: pyahocorasick is not installed.
    """

    def __init__(self, words: Iterable[str]) -> None:
        entries = sorted({" ".join(word.lower().split()) for word in words} - {""})
        automaton = needs("ahocorasick", "pyahocorasick").Automaton()
        for number, entry in enumerate(entries):
            automaton.add_word(_latin(entry), (number, len(entry), _joins(entry[0]), _joins(entry[-1])))
        if entries:
            automaton.make_automaton()
        self._automaton: Any = automaton if entries else None
        self._entries = entries

    def __len__(self) -> int:
        return len(self._entries)

    def hits(self, text: str) -> WordHits:
        """Counts the listed words of a text."""
        found = self._found(text.lower()) if self._automaton is not None else []
        stretches: dict[int, set[int]] = {}
        occurrences = covered = 0
        for start, end, number in found:
            stretches.setdefault(start // STRETCH, set()).add(number)
            if start >= covered:
                occurrences += 1
                covered = end
        distinct = max(map(len, stretches.values()), default=0)
        return WordHits(occurrences, distinct, 1000 * occurrences / max(len(text), 1))

    def _found(self, text: str) -> list[tuple[int, int, int]]:
        """(start, end, number of the entry) of each match, by their ends."""
        found = []
        latin, length = _latin(text), len(text)
        seen = end = 0  # of `latin`, and of the text
        for last, (number, size, joins_before, joins_after) in self._automaton.iter(latin):
            end += _length(latin[seen : last + 1])
            seen = last + 1
            start = end - size
            if joins_before and start > 0 and _joins(text[start - 1]):
                continue
            if joins_after and end < length and _joins(text[end]):
                continue
            found.append((start, end, number))
        return found


def load_words(path: Path) -> WordList:
    """Reads a list: UTF-8 text, one word or phrase a line, `#` begins a comment.

    Raises:
        DataError: The file is missing or is not UTF-8.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        problem = "it is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else error.strerror
        raise DataError(f"cannot read the word list {path}: {problem}") from None
    return WordList(line.partition("#")[0] for line in lines)


def _latin(text: str) -> str:
    """UTF-8 bytes as characters: the automaton tries the children of a node one by one, so they must be few."""
    return text.encode("utf-8", "surrogatepass").decode("latin-1")


def _length(latin: str) -> int:
    return len(latin.encode("latin-1").decode("utf-8", "surrogatepass"))


def _joins(character: str) -> bool:
    """Whether a character makes one word with a letter beside it: letters and digits but those of CJK scripts."""
    if character.isascii():
        return character.isalnum()
    code = ord(character)
    cjk = 0x2E80 <= code <= 0xA4CF or 0xF900 <= code <= 0xFAFF or 0xFF00 <= code <= 0xFFEF or code >= 0x20000
    return character.isalnum() and not cjk and not 0xAC00 <= code <= 0xD7A3
