"""MinHash signatures of documents, and the keys under which near duplicates meet.

Broder (1997): of a random hash function, two sets have the same least hash with a probability that is their Jaccard
similarity. The functions are multiply-add modulo 2^32 of the shingles' hashes; half of them take the lower 32 bits of
a shingle and half the upper ones, so that two shingles must agree in 64 bits to look the same to all. Of each least
hash 16 bits are kept (Li and Koenig 2010, b-bit minwise hashing): they agree by chance once in 65,536 times.
"""

from __future__ import annotations

import functools
import hashlib
import sys
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from puyulm.data.documents import Document
from puyulm.data.words import Hashes, Integers, mix, ngram_hashes, words_of

Signatures = npt.NDArray[np.uint16]
Words32 = npt.NDArray[np.uint32]

PIECE = 1 << 16  # characters whose words are found at a time: the arrays stay in the processor's cache
LONGEST = 1 << 20  # characters; a longer text is taken in pieces, which loses n - 1 shingles at each joint
BLOCK = 1 << 15  # shingles hashed at a time, for the same reason


def sign(documents: Sequence[Document], n: int, hashes: int) -> Signatures:
    """Signatures of documents, `[D, hashes]`.

    A document's shingles are its runs of `n` words, where case, punctuation and white space do not count; a document
    of fewer words is one shingle, and one without words is its text. In code, punctuation counts as words, and white
    space still does not, so that indentation by tabs, two or four spaces is the same (InternLM2, section 3.1.2).
    """
    return signatures(*shingles(documents, n), hashes)


def shingles(documents: Sequence[Document], n: int) -> tuple[Hashes, Integers]:
    """Hashes of the documents' shingles, `[N]`, and the index of each document's first and N, `[D + 1]`."""
    texts = [_code_text(document.text) if document.language == "code" else document.text for document in documents]
    found = [np.zeros(0, dtype=np.uint64)]
    counts = np.zeros(len(texts), dtype=np.int64)
    for owners, pieces in _pieces(texts):
        hashes, first = ngram_hashes(words_of(pieces), n)
        np.add.at(counts, owners, np.diff(first))
        found.append(hashes)
    hashes = np.concatenate(found)
    without = np.flatnonzero(counts == 0)
    if len(without):
        whole = [int.from_bytes(_digest(texts[owner]), "little") for owner in without]
        places = (np.cumsum(counts) - counts)[without]
        hashes = np.insert(hashes, places, np.array(whole, dtype=np.uint64))
        counts[without] = 1
    return hashes, np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)


def signatures(hashes: Hashes, first: Integers, count: int) -> Signatures:
    """The least of each function's values over each document's shingles, in 16 bits, `[D, count]`.

    Args:
        hashes: Of shingles, well spread, `[N]`.
        first: Index of each document's first, and N, `[D + 1]`; each document has at least one.
        count: Functions; even.
    """
    multipliers, increments = _functions(count)
    halves = hashes.astype(np.uint32), (hashes >> np.uint64(32)).astype(np.uint32)
    least = np.empty((count, len(first) - 1), dtype=np.uint32)
    for start, end in _blocks(first):
        low, high = first[start], first[end]
        starts = first[start:end] - low
        inputs = halves[0][low:high], halves[1][low:high]
        values = np.empty(high - low, dtype=np.uint32)
        for function in range(count):
            np.multiply(inputs[function % 2], multipliers[function], out=values)
            np.add(values, increments[function], out=values)
            np.minimum.reduceat(values, starts, out=least[function, start:end])
    # The least values lie near zero: spread them before bits are dropped. The lower bits of a multiply-add depend on
    # the lower bits of its input alone, so they could not simply be cut off either.
    least ^= least >> np.uint32(16)
    least *= np.uint32(0x85EBCA6B)
    least ^= least >> np.uint32(13)
    least *= np.uint32(0xC2B2AE35)
    return np.ascontiguousarray((least >> np.uint32(16)).astype(np.uint16).T)


def band_keys(signed: Signatures, bands: int, rows: int) -> Hashes:
    """Keys of documents: equal where all rows of a band agree. The last is of the whole signature, `[D, bands + 1]`.

    The last brings equal documents together on their own, which matters where a band's bucket is so large that not
    all of its pairs are compared.
    """
    values = signed.astype(np.uint64)
    factors = mix(np.arange(1, signed.shape[1] + 1, dtype=np.uint64)) | np.uint64(1)
    names = mix(np.arange(1, bands + 2, dtype=np.uint64) << np.uint64(32))
    with np.errstate(over="ignore"):
        cut = values[:, : bands * rows].reshape(len(values), bands, rows)
        keys = (cut * factors[:rows]).sum(axis=2, dtype=np.uint64)
        whole = (values * factors).sum(axis=1, dtype=np.uint64)
        return mix(np.concatenate([keys, whole[:, None]], axis=1) + names)


def s_curve(bands: int, rows: int) -> list[tuple[float, float]]:
    """Probability that a pair becomes a candidate, by its Jaccard similarity: (s, 1 - (1 - s^rows)^bands).

    Source: Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, section 3.4.2.
    """
    return [(step / 20, 1 - (1 - (step / 20) ** rows) ** bands) for step in range(21)]


def _pieces(texts: Sequence[str]) -> Iterator[tuple[list[int], list[str]]]:
    """Texts with their numbers, some at a time; a very long one in pieces."""
    owners: list[int] = []
    pieces: list[str] = []
    size = 0
    for owner, text in enumerate(texts):
        for start in range(0, len(text), LONGEST):
            owners.append(owner)
            pieces.append(text[start : start + LONGEST])
            size += len(pieces[-1])
            if size >= PIECE:
                yield owners, pieces
                owners, pieces, size = [], [], 0
    if pieces:
        yield owners, pieces


def _blocks(first: Integers) -> Iterator[tuple[int, int]]:
    """Runs of documents that have about BLOCK shingles; a longer document stands alone."""
    start = 0
    while start < len(first) - 1:
        end = int(np.searchsorted(first, first[start] + BLOCK, side="right")) - 1
        end = max(end, start + 1)
        yield start, end
        start = end


@functools.cache
def _functions(count: int) -> tuple[Words32, Words32]:
    """Odd multipliers and increments, the same in every run, `[count]` each."""
    numbers = mix(np.arange(1, 2 * count + 1, dtype=np.uint64))
    return numbers[:count].astype(np.uint32) | np.uint32(1), numbers[count:].astype(np.uint32)


def _code_text(text: str) -> str:
    """A program in which each punctuation character is a word, and "_" a letter."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    return _code_table()[codes].tobytes().decode("utf-32-le", "surrogatepass")


@functools.cache
def _code_table() -> Words32:
    """Code points by code points: punctuation becomes ideographs that no text has (Kangxi radicals)."""
    table = np.arange(sys.maxunicode + 1, dtype=np.uint32)
    marks = [code for code in range(33, 127) if not chr(code).isalnum()]
    table[marks] = 0x2F00 + np.arange(len(marks))
    table[ord("_")] = ord("\u00aa")  # a letter, and rare
    return table


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
