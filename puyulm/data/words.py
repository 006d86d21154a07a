"""Words of many texts at once, as arrays: what filters count, what deduplication hashes, what decontamination looks up.

A word is a run of letters and digits; a Chinese character, a kana or a Hangul syllable is a word of its own, since no
spaces stand between such words. Everything else separates. Case does not count. All texts of a batch are one array of
code points, so that the work is done by NumPy and its cost is a few passes over memory.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Integers = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]

SEPARATOR, LETTER, IDEOGRAPH = 0, 1, 2

# Scripts that are written without spaces between words, or whose syllables are long enough to stand alone.
_IDEOGRAPHS = (
    (0x2E80, 0x2FDF), (0x3005, 0x3007), (0x3021, 0x3029), (0x3041, 0x30FF), (0x3105, 0x312F), (0x31A0, 0x31FF),
    (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0xF900, 0xFAFF), (0x20000, 0x323AF),
)  # fmt: skip

_BLOCK_CHARACTERS = 1 << 16

_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd, so that its powers can be undone modulo 2^64


@dataclass(frozen=True)
class Words:
    """The words of a batch of D texts, W in all.

    Attributes:
        codes: Code points of all texts, lower-cased, each text followed by one separator, `[C]` uint32.
        text_starts: Where in `codes` each text begins, and the end of the last, `[D + 1]`.
        starts: Where each word begins in `codes`, `[W]`.
        ends: Where it ends, exclusive, `[W]`.
        first: Index of each text's first word, and W, `[D + 1]`.
        hashes: A hash of each word's characters, the same in every run and process, `[W]` uint64.
    """

    codes: npt.NDArray[np.uint32]
    text_starts: Integers
    starts: Integers
    ends: Integers
    first: Integers
    hashes: Hashes

    @property
    def counts(self) -> Integers:
        """Words in each text, `[D]`."""
        return np.diff(self.first)

    def text(self, word: int) -> str:
        """One word's characters, lower-cased."""
        return self.codes[self.starts[word] : self.ends[word]].tobytes().decode("utf-32-le", "surrogatepass")


def words_of(texts: Sequence[str]) -> Words:
    """Finds and hashes the words of a batch of texts.

    Hold a few megabytes of text in a batch: the arrays take about 40 bytes a word and 4 a character.
    """
    parts = [_block(block) for block in _blocks(texts)] or [_block(texts)]
    if len(parts) == 1:
        return parts[0]
    codes = np.concatenate([part.codes for part in parts])
    offsets = np.cumsum([0, *(len(part.codes) for part in parts)])
    word_offsets = np.cumsum([0, *(len(part.starts) for part in parts)])

    def joined(name: str, shifts: Integers) -> Integers:
        arrays = [getattr(part, name) + shift for part, shift in zip(parts, shifts, strict=False)]
        if name in ("text_starts", "first"):  # the end of one block is the start of the next
            arrays = [array[:-1] for array in arrays[:-1]] + arrays[-1:]
        return np.concatenate(arrays)

    return Words(
        codes, joined("text_starts", offsets), joined("starts", offsets), joined("ends", offsets),
        joined("first", word_offsets), np.concatenate([part.hashes for part in parts]),
    )  # fmt: skip


def _blocks(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """Texts in runs of about 64 thousand characters, whose arrays stay in the processor's cache."""
    start = size = 0
    for end, text in enumerate(texts, start=1):
        size += len(text)
        if size >= _BLOCK_CHARACTERS or end == len(texts):
            yield texts[start:end]
            start, size = end, 0


def _block(texts: Sequence[str]) -> Words:
    raw = ("\n".join(texts) + "\n").lower() if texts else ""
    codes = np.frombuffer(raw.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    lengths = np.fromiter((len(text) for text in texts), dtype=np.int64, count=len(texts))
    if int(lengths.sum()) + len(texts) != len(codes):  # a few characters get longer in lower case (U+0130)
        lengths = np.fromiter((len(text.lower()) for text in texts), dtype=np.int64, count=len(texts))
    text_starts = np.concatenate([[0], np.cumsum(lengths + 1)]).astype(np.int64)
    classes = _class_table()[codes]
    before = np.concatenate([[np.uint8(SEPARATOR)], classes[:-1]])
    begins = ((classes == LETTER) & (before != LETTER)) | (classes == IDEOGRAPH)
    starts = np.flatnonzero(begins)
    after = np.concatenate([classes[1:], [np.uint8(SEPARATOR)]]) if len(classes) else classes
    ends = np.flatnonzero(((classes == LETTER) & (after != LETTER)) | (classes == IDEOGRAPH)) + 1
    first = np.searchsorted(starts, text_starts)
    return Words(codes, text_starts, starts, ends, first, _word_hashes(codes, starts, ends))


def ngram_hashes(words: Words, n: int) -> tuple[Hashes, Integers]:
    """Hashes of all runs of `n` words within each text.

    A text of fewer than `n` words, but at least one, has a single n-gram: all its words. (Otherwise all short texts
    would have no n-gram and be alike.)

    Returns:
        hashes: `[N]` uint64, in the texts' order.
        first: Index of each text's first n-gram, and N, `[D + 1]` int64.
    """
    counts = words.counts
    grams = np.where(counts >= n, counts - n + 1, (counts > 0).astype(np.int64))
    first = np.concatenate([[0], np.cumsum(grams)]).astype(np.int64)
    owner = np.repeat(np.arange(len(counts)), grams)
    begin = words.first[owner] + np.arange(first[-1]) - first[owner]
    hashes = np.zeros(len(begin), dtype=np.uint64)
    padded = np.concatenate([words.hashes, np.zeros(n, dtype=np.uint64)])
    short = (counts < n)[owner]
    end = words.first[owner + 1] if len(owner) else begin
    with np.errstate(over="ignore"):
        for offset in range(n):
            word = padded[begin + offset]
            if short.any():
                word = np.where(short & (begin + offset >= end), np.uint64(0), word)
            hashes = hashes * _BASE + word
        return mix(hashes), first


def mix(values: Hashes) -> Hashes:
    """Spreads the bits of hashes (the finaliser of MurmurHash3, a bijection)."""
    with np.errstate(over="ignore"):
        values = (values ^ (values >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
        values = (values ^ (values >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
    return values ^ (values >> np.uint64(33))


def _word_hashes(codes: npt.NDArray[np.uint32], starts: Integers, ends: Integers) -> Hashes:
    """Polynomial hashes of the slices `codes[start:end]`, out of differences of one prefix sum modulo 2^64."""
    if not len(starts):
        return np.zeros(0, dtype=np.uint64)
    powers, inverses = base_powers(1 << max(len(codes) - 1, 1).bit_length())
    with np.errstate(over="ignore"):
        sums = np.zeros(len(codes) + 1, dtype=np.uint64)
        np.cumsum(mix_codes(codes) * powers[: len(codes)], out=sums[1:])
        return mix((sums[ends] - sums[starts]) * inverses[starts])


def mix_codes(codes: npt.NDArray[np.uint32]) -> Hashes:
    """Code points as well-spread 64-bit numbers, never zero."""
    with np.errstate(over="ignore"):
        values = (codes.astype(np.uint64) + np.uint64(1)) * np.uint64(0xD6E8FEB86659FD93)
    return values ^ (values >> np.uint64(32))


@functools.lru_cache(maxsize=2)
def base_powers(count: int) -> tuple[Hashes, Hashes]:
    """Powers of the base of these hashes and of its inverse modulo 2^64, `[count]` each."""
    inverse = np.uint64(pow(int(_BASE), -1, 1 << 64))
    with np.errstate(over="ignore"):
        both = [np.cumprod(np.concatenate([[np.uint64(1)], np.full(count - 1, base)]), dtype=np.uint64)
                for base in (_BASE, inverse)]  # fmt: skip
    return both[0], both[1]


@functools.cache
def _class_table() -> npt.NDArray[np.uint8]:
    """Class of every code point: SEPARATOR, LETTER or IDEOGRAPH."""
    table = np.zeros(sys.maxunicode + 1, dtype=np.uint8)
    # Above the ideographs come no letters, and no marks but the variation selectors of plane 14.
    for code in (*range(_IDEOGRAPHS[-1][1] + 1), *range(0xE0000, 0xE0200)):
        character = chr(code)
        # Combining marks belong to their word: Hindi and Arabic words would fall apart without them.
        if character.isalnum() or (code > 0x2FF and _is_mark(character)):
            table[code] = LETTER
    for low, high in _IDEOGRAPHS:
        table[low : high + 1] = IDEOGRAPH
    return table


def _is_mark(character: str) -> bool:
    import unicodedata

    return unicodedata.category(character)[0] == "M"
