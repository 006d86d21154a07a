"""A linear scorer over hashed n-grams of characters and words: small, fast, and needs NumPy only.

A text's features are its n-grams, hashed into 2^bits buckets; a class's logit is the sum of their weights over the
square root of their number, plus a bias (logistic regression on counts scaled to about unit length; hashing after
Weinberger et al. 2009, Feature Hashing for Large Scale Multitask Learning). `fit` finds the weights.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from puyulm.data.documents import replacing
from puyulm.data.words import Hashes, Integers, Words, mix_codes, words_of
from puyulm.errors import DataError

Floats = npt.NDArray[np.float64]

FILE = "scorer.safetensors"
FORMAT = "puyulm-linear-scorer-1"
BLOCK_CHARACTERS = 50_000  # of texts that are hashed together: their arrays then stay in a processor's cache
_BASE = np.uint64(0x9E3779B97F4A7C15)
_SPREAD = np.uint64(0xFF51AFD7ED558CCD)


@dataclass(frozen=True)
class ScorerFacts:
    """What a linear scorer's file says beside its weights.

    Attributes:
        labels: The last is the one that the score stands for, where no other is asked for.
        char_ngrams: Shortest and longest n-grams of characters; (0, 0) for none.
        word_ngrams: Longest n-grams of words; 0 for none.
        bits: There are 2^bits weights for each class.
        languages: That the scorer may be used for; None for all.
        training: Figures of the training: texts, and what was measured on held-out ones.
    """

    labels: tuple[str, ...]
    char_ngrams: tuple[int, int] = (1, 4)
    word_ngrams: int = 2
    bits: int = 20
    languages: tuple[str, ...] | None = None
    training: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        low, high = self.char_ngrams
        if len(self.labels) < 2 or len(set(self.labels)) != len(self.labels):
            raise DataError(f"a scorer tells at least two labels apart, found {', '.join(self.labels) or 'none'}")
        if not (0 <= low <= high <= 8 and 0 <= self.word_ngrams <= 5 and high + self.word_ngrams > 0):
            raise DataError(f"n-grams of {low} to {high} characters and up to {self.word_ngrams} words: take at most 8 "
                            "characters and 5 words, and not none of both")  # fmt: skip
        if not 8 <= self.bits <= 26:
            raise DataError(f"a scorer has 2^8 to 2^26 weights a class, not 2^{self.bits}")


@dataclass(frozen=True)
class Grams:
    """The n-grams of D texts, N in all, in no particular order.

    Attributes:
        buckets: Of each n-gram, `[N]` int64.
        owners: The text that it stands in, `[N]` int64.
        scale: What to multiply a text's sum of weights by: 1 / sqrt(its number of n-grams), `[D]`.
    """

    buckets: Integers
    owners: Integers
    scale: Floats


class LinearScorer:
    """A scorer with its weights.

    Args:
        facts: What it is.
        weight: `[2^bits, C]` float32; C is 1 for two labels, else the number of labels.
        bias: `[C]` float32.
        column: The label that `score` stands for; the last if negative.
    """

    def __init__(self, facts: ScorerFacts, weight: npt.NDArray[np.float32], bias: Floats, column: int = -1) -> None:
        self.facts, self.column = facts, column % len(facts.labels)
        self.weight = np.ascontiguousarray(weight.T, dtype=np.float32)  # [C, 2^bits]
        self.bias = bias.astype(np.float64)

    @classmethod
    def load(cls, path: Path) -> LinearScorer:
        """Reads a scorer's file, or the one in a folder.

        Raises:
            DataError: It is missing or is no linear scorer.
        """
        from safetensors import SafetensorError, safe_open

        file = path / FILE if path.is_dir() else path
        if not file.is_file():
            raise DataError(f"no linear scorer at {file}: train one with puyu data train-scorer")
        try:
            with safe_open(file, framework="numpy") as tensors:
                stored = json.loads((tensors.metadata() or {}).get("puyulm", "{}"))
                weight, bias = tensors.get_tensor("weight"), tensors.get_tensor("bias")
        except (SafetensorError, ValueError) as error:
            raise DataError(f"{file} is no linear scorer ({error}): train one with puyu data train-scorer") from None
        if stored.pop("format", None) != FORMAT:
            raise DataError(f"{file} is no linear scorer of this version: train it again")
        languages = stored["languages"]
        facts = ScorerFacts(**{**stored, "labels": tuple(stored["labels"]),
                               "char_ngrams": tuple(stored["char_ngrams"]),
                               "languages": None if languages is None else tuple(languages)})  # fmt: skip
        columns = 1 if len(facts.labels) == 2 else len(facts.labels)
        if weight.shape != (1 << facts.bits, columns) or bias.shape != (columns,):
            raise DataError(f"{file} is damaged: weights {weight.shape} do not fit {len(facts.labels)} labels")
        return cls(facts, weight, bias)

    def save(self, path: Path) -> None:
        """Writes the scorer: equal scorers are equal files."""
        from safetensors.numpy import save_file

        described = json.dumps({"format": FORMAT, **asdict(self.facts)}, ensure_ascii=True)
        tensors = {"weight": np.ascontiguousarray(self.weight.T), "bias": self.bias.astype(np.float32)}
        with replacing(path) as partial:
            save_file(tensors, partial, {"puyulm": described})
            partial.chmod(0o644)  # safetensors makes it private

    def for_label(self, label: str) -> LinearScorer:
        """The same scorer, whose score is the probability of `label`; of the last one, if empty.

        Raises:
            DataError: There is no such label.
        """
        labels = self.facts.labels
        if label and label not in labels:
            raise DataError(f"this scorer has no label {label!r}: it tells {', '.join(labels)} apart")
        return LinearScorer(self.facts, self.weight.T, self.bias, labels.index(label) if label else -1)

    def with_facts(self, **changes: Any) -> LinearScorer:
        """The same weights with other facts."""
        return LinearScorer(replace(self.facts, **changes), self.weight.T, self.bias, self.column)

    def logits(self, texts: Sequence[str]) -> Floats:
        """Logits of the classes, `[N, C]`; of two labels, the second one's log-odds, `[N, 1]`."""
        rows = np.empty((len(texts), len(self.weight)))
        for block in blocks(texts):
            found = grams(texts[block], self.facts)
            rows[block] = weighted_sums(self.weight, found).T
        return np.asarray(rows + self.bias)

    def probabilities(self, texts: Sequence[str]) -> Floats:
        """Probabilities of the classes, `[N, labels]`."""
        return softmax(self.logits(texts))

    def score(self, texts: Sequence[str]) -> Floats:
        """The probability of the label that the score stands for, `[N]`."""
        return np.asarray(self.probabilities(texts)[:, self.column])


def blocks(texts: Sequence[str]) -> Iterator[slice]:
    """Cuts texts into runs of about 50,000 characters."""
    start = size = 0
    for end, text in enumerate(texts, start=1):
        size += len(text)
        if size >= BLOCK_CHARACTERS or end == len(texts):
            yield slice(start, end)
            start, size = end, 0


def grams(texts: Sequence[str], facts: ScorerFacts) -> Grams:
    """The n-grams of texts. Case does not count, digits are alike, and runs of white space are one space."""
    found = list(_families(texts, facts))
    owners = np.concatenate([family.owners for family in found])
    counts = np.bincount(owners, minlength=len(texts))
    buckets = np.concatenate([family.buckets for family in found])
    return Grams(buckets, owners, 1.0 / np.sqrt(np.maximum(counts, 1)))


def bucket_names(texts: Sequence[str], facts: ScorerFacts, wanted: Integers) -> dict[int, str]:
    """For each of the wanted buckets the n-gram of these texts that falls into it most often."""
    tallies: dict[int, Counter[str]] = {}
    for block in blocks(texts):
        for family in _families(texts[block], facts):
            for i in np.flatnonzero(np.isin(family.buckets, wanted)).tolist():
                tallies.setdefault(int(family.buckets[i]), Counter())[family.name(int(family.places[i]))] += 1
    return {bucket: min(tally, key=lambda name: (-tally[name], name)) for bucket, tally in tallies.items()}


def weighted_sums(weight: npt.NDArray[Any], found: Grams) -> Floats:
    """Scaled sums of weights, `[C, D]`, for weights `[C, 2^bits]`."""
    rows = [np.bincount(found.owners, row[found.buckets], len(found.scale)) for row in weight]
    return np.stack(rows) * found.scale


def softmax(logits: Floats) -> Floats:
    """Probabilities `[N, labels]` from logits `[N, C]`, where one column is the log-odds of the second of two."""
    if logits.shape[1] == 1:
        logits = np.concatenate([np.zeros_like(logits), logits], axis=1)
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def characters(texts: Sequence[str]) -> tuple[npt.NDArray[np.uint32], Integers]:
    """Normalised code points of texts end to end, with a space before and behind each, and their starts, `[D + 1]`."""
    normal = [f" {' '.join(text.lower().split())} " for text in texts]
    codes = np.frombuffer("".join(normal).encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    codes = np.where((codes >= 48) & (codes <= 57), np.uint32(48), codes)
    return codes, np.cumsum([0, *map(len, normal)])


@dataclass(frozen=True)
class _Family:
    """The n-grams of one length of a batch: buckets, owners, where they begin, and what spells one."""

    buckets: Integers
    owners: Integers
    places: Integers
    name: Callable[[int], str]


def _families(texts: Sequence[str], facts: ScorerFacts) -> Iterator[_Family]:
    shift = np.uint64(64 - facts.bits)
    low, high = facts.char_ngrams
    if high:
        codes, first = characters(texts)
        for order, hashes, places, owners in _ngrams(mix_codes(codes), first, high):
            if order >= low:
                name = partial(_characters_at, codes, order)
                yield _Family(_bucket(hashes[places], order, shift), owners, places, name)
    if facts.word_ngrams:
        words = words_of(texts)
        for order, hashes, places, owners in _ngrams(words.hashes, words.first, facts.word_ngrams):
            name = partial(_words_at, words, order)
            yield _Family(_bucket(hashes[places], 16 + order, shift), owners, places, name)


def _characters_at(codes: npt.NDArray[np.uint32], order: int, place: int) -> str:
    return codes[place : place + order].tobytes().decode("utf-32-le", "replace")


def _words_at(words: Words, order: int, place: int) -> str:
    return " ".join(words.text(i) for i in range(place, place + order))


def _ngrams(values: Hashes, first: Integers, longest: int) -> Iterator[tuple[int, Hashes, Integers, Integers]]:
    """For each order its hashes, the places at which an n-gram of one text begins, and those texts."""
    owner = np.repeat(np.arange(len(first) - 1), np.diff(first))
    left = first[owner + 1] - np.arange(len(values)) if len(values) else owner
    places = np.arange(len(values))
    hashes = values
    with np.errstate(over="ignore"):
        for order in range(1, longest + 1):
            if order > 1:
                hashes = hashes[:-1] * _BASE + values[order - 1 :] if len(hashes) else hashes
                keep = left[places] >= order
                places, owner = places[keep], owner[keep]
            yield order, hashes, places, owner


def _bucket(hashes: Hashes, family: int, shift: np.uint64) -> Integers:
    with np.errstate(over="ignore"):
        spread = (hashes + np.uint64(family)) * _SPREAD
        return np.asarray(((spread ^ (spread >> np.uint64(32))) * _BASE) >> shift, dtype=np.int64)
