"""Repeated runs of words: the share of a text in its most frequent n-gram, and in all n-grams that occur twice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from puyulm.data.clean.characters import Mask
from puyulm.data.words import Hashes, Integers, Words, mix

Shares = npt.NDArray[np.float64]

_BASE = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class NgramShares:
    """Shares of the words' characters that repeated n-grams take; each n -> `[D]`.

    Attributes:
        top: Of the most frequent n-gram; of several as frequent, the one with the most characters.
        duplicate: Of all n-grams that occur more than once.
        later: The same without their first occurrences.
    """

    top: dict[int, Shares]
    duplicate: dict[int, Shares]
    later: dict[int, Shares]


def ngram_shares(words: Words, top: Sequence[int], duplicate: Sequence[int]) -> NgramShares:
    """Measures repetition as Gopher does (Rae et al. 2021, section A.1.1).

    A character in two overlapping n-grams counts once. An n-gram that occurs once is no repetition: without a second
    one, the shares are 0.

    Args:
        words: Of D texts.
        top: Which n for the most frequent n-gram.
        duplicate: Which n for all repeated n-grams.
    """
    texts, count = len(words.counts), len(words.starts)
    covered = np.concatenate([[0], np.cumsum(words.ends - words.starts)]).astype(np.int64)
    total = np.maximum(np.diff(covered[words.first]), 1)
    owner = np.repeat(np.arange(texts), words.counts)
    rest = words.first[owner + 1] - np.arange(count)  # words from here to the end of the text
    repeated, hashes, size = np.ones(count, dtype=bool), words.hashes, 1
    shares = NgramShares({}, {}, {})
    for n in sorted({*top, *duplicate}):
        # n words can only occur twice if all shorter runs in them do: few places are left for a large n.
        where = np.flatnonzero(_runs(repeated, n - size + 1) & (rest >= n))
        hashes = _extend(hashes, words.hashes, where, size, n)
        groups, places = _repeats(hashes[where], where, owner, words)
        first = np.concatenate([[True], groups[1:] != groups[:-1]])[: len(groups)]
        repeated, size = np.zeros(count, dtype=bool), n
        repeated[places] = True
        if n in top:
            shares.top[n] = _most_frequent(first, places, n, covered, owner, texts) / total
        if n in duplicate:
            for part, chosen in ((shares.duplicate, np.flatnonzero(repeated)), (shares.later, np.sort(places[~first]))):
                part[n] = np.bincount(owner[chosen], _new_characters(chosen, n, covered), texts) / total
    return shares


def _runs(flags: Mask, length: int) -> Mask:
    """Where a run of `length` flags begins."""
    found = flags.copy()
    for step in range(1, length):
        found[:-step] &= flags[step:]
        found[-step:] = False
    return found


def _extend(hashes: Hashes, words: Hashes, where: Integers, size: int, n: int) -> Hashes:
    """Hashes of the n-grams at `where`, `[W]`, out of those of shorter ones; elsewhere they mean nothing."""
    longer = hashes[where]
    with np.errstate(over="ignore"):
        for offset in range(size, n):
            longer = longer * _BASE + words[where + offset]
    result = np.zeros(len(words), dtype=np.uint64)
    result[where] = longer
    return result


def _repeats(hashes: Hashes, where: Integers, owner: Integers, words: Words) -> tuple[Hashes, Integers]:
    """The n-grams that occur more than once in their text: a number for each kind, and places, sorted by both.

    Text, hash and place are packed into one integer, since NumPy sorts plain integers many times faster than it sorts
    indices. What is left for the hash is 40 bits or more in common batches; two kinds of n-grams of one text share
    them with a probability of about words^2 / 2^41.
    """
    text_bits = max(len(words.counts) - 1, 1).bit_length()
    place_bits = max(int(words.counts.max(initial=1)), 1).bit_length()
    texts = owner[where]
    local = (where - words.first[texts]).astype(np.uint64)
    kinds = mix(hashes) >> np.uint64(text_bits + place_bits) << np.uint64(place_bits)
    keys = texts.astype(np.uint64) << np.uint64(64 - text_bits) | kinds | local
    keys.sort()
    groups = keys >> np.uint64(place_bits)
    same = groups[1:] == groups[:-1]
    twice = np.zeros(len(keys), dtype=bool)
    twice[1:] = same
    twice[:-1] |= same
    keys, groups = keys[twice], groups[twice]
    texts = (keys >> np.uint64(64 - text_bits)).astype(np.int64)
    local = keys & np.uint64((1 << place_bits) - 1)
    return groups, words.first[texts] + local.astype(np.int64)


def _new_characters(places: Integers, n: int, covered: Integers) -> Integers:
    """Characters of the n-gram at each place that the one at the place before does not have; places rise."""
    begin = places.copy()
    np.maximum(begin[1:], places[:-1] + n, out=begin[1:])
    return covered[places + n] - covered[begin]


def _most_frequent(first: Mask, places: Integers, n: int, covered: Integers, owner: Integers, texts: int) -> Integers:
    """Characters of each text's most frequent n-gram, `[D]`; `first` says where another kind of n-gram begins."""
    best = np.zeros(texts, dtype=np.int64)
    if not len(places):
        return best
    starts = np.flatnonzero(first)
    begin = places.copy()
    begin[1:] = np.where(first[1:], places[1:], np.maximum(places[1:], places[:-1] + n))
    characters = np.add.reduceat(covered[places + n] - covered[begin], starts)
    counts = np.diff(np.append(starts, len(places)))
    kind_owner = owner[places[starts]]
    text_starts = np.flatnonzero(np.concatenate([[True], kind_owner[1:] != kind_owner[:-1]]))
    most = np.repeat(np.maximum.reduceat(counts, text_starts), np.diff(np.append(text_starts, len(starts))))
    best[kind_owner[text_starts]] = np.maximum.reduceat(np.where(counts == most, characters, 0), text_starts)
    return best
