"""The linear scorer, against a computation with Python's own integers and strings; its files."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puyulm.data.score import linear
from puyulm.data.score.linear import LinearScorer, ScorerFacts, bucket_names, grams
from puyulm.data.words import words_of
from puyulm.errors import DataError

MASK = (1 << 64) - 1
TEXTS = st.lists(st.text("ab Z19，好词。\n\t", max_size=12), min_size=1, max_size=5)


def plain_buckets(text: str, facts: ScorerFacts) -> list[int]:
    """The buckets of a text's n-grams, one n-gram at a time."""

    def spread_code(code: int) -> int:
        value = (code + 1) * 0xD6E8FEB86659FD93 & MASK
        return value ^ value >> 32

    def bucket(values: list[int], family: int) -> int:
        value = 0
        for item in values:
            value = (value * 0x9E3779B97F4A7C15 + item) & MASK
        value = (value + family) * 0xFF51AFD7ED558CCD & MASK
        return ((value ^ value >> 32) * 0x9E3779B97F4A7C15 & MASK) >> (64 - facts.bits)

    normal = " " + " ".join(text.lower().split()) + " "
    codes = [spread_code(ord("0") if c in "0123456789" else ord(c)) for c in normal]
    low, high = facts.char_ngrams
    found = [bucket(codes[i : i + n], n)
             for n in range(max(low, 1), high + 1) for i in range(len(codes) - n + 1)]  # fmt: skip
    words = [int(value) for value in words_of([text]).hashes]
    return found + [bucket(words[i : i + n], 16 + n)
                    for n in range(1, facts.word_ngrams + 1) for i in range(len(words) - n + 1)]  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(TEXTS, st.sampled_from([((1, 3), 0), ((2, 4), 2), ((0, 0), 3), ((5, 5), 1)]))
def test_ngrams_are_those_of_a_plain_search(texts: list[str], kind: tuple[tuple[int, int], int]) -> None:
    facts = ScorerFacts(("n", "p"), *kind, bits=12)
    found = grams(texts, facts)
    for i, text in enumerate(texts):
        expected = plain_buckets(text, facts)
        assert sorted(found.buckets[found.owners == i].tolist()) == sorted(expected)
        assert found.scale[i] == pytest.approx(1 / math.sqrt(max(len(expected), 1)))


def make(labels: tuple[str, ...] = ("n", "p"), bits: int = 12) -> LinearScorer:
    generator = np.random.default_rng(0)
    columns = 1 if len(labels) == 2 else len(labels)
    weight = generator.normal(size=(1 << bits, columns)).astype(np.float32)
    return LinearScorer(ScorerFacts(labels, (1, 3), 2, bits), weight, generator.normal(size=columns))


@settings(deadline=None)
@given(st.text(max_size=30))
def test_scores_are_the_logistic_function_of_weight_sums(text: str) -> None:
    scorer = make()
    found = plain_buckets(text, scorer.facts)
    logit = sum(float(scorer.weight[0, b]) for b in found) / math.sqrt(max(len(found), 1)) + float(scorer.bias[0])
    assert scorer.score([text])[0] == pytest.approx(1 / (1 + math.exp(-logit)), abs=1e-9)


def test_several_labels_share_one() -> None:
    scorer = make(("a", "b", "c"))
    texts = ["one text", "另一个文本", ""]
    rows = scorer.probabilities(texts)
    logits = scorer.logits(texts)
    assert rows.shape == (3, 3) and np.allclose(rows.sum(axis=1), 1)
    assert np.allclose(rows, np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True))
    for i, label in enumerate("abc"):
        assert (scorer.for_label(label).score(texts) == rows[:, i]).all()
    assert (scorer.score(texts) == rows[:, 2]).all()  # the last, where no label is asked for
    two = make()
    assert np.allclose(two.for_label("n").score(texts), 1 - two.for_label("p").score(texts))


def test_a_score_does_not_depend_on_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = make()
    texts = ["short", "", "a longer text with 中文 in it " * 20, "x" * 300, "𠮷\ud800 odd İ", "1234 5678"]
    alone = [scorer.score([text])[0] for text in texts]
    assert scorer.score(texts).tolist() == alone
    assert scorer.score(texts[::-1]).tolist() == alone[::-1]
    monkeypatch.setattr(linear, "BLOCK_CHARACTERS", 7)
    assert scorer.score(texts).tolist() == alone
    assert scorer.score([]).shape == (0,)


def test_names_of_buckets() -> None:
    facts = ScorerFacts(("n", "p"), (2, 2), 2, 20)
    texts = ["Good morning, good MORNING 12", "good 早上"]
    names = set(bucket_names(texts, facts, np.unique(grams(texts, facts).buckets)).values())
    assert {"go", "od", "d ", "00", "早上", "good", "good morning", "morning good", "早 上", "morning"} <= names
    assert "good good" not in names


def test_equal_scorers_are_equal_files(tmp_path: Path) -> None:
    scorer = make().with_facts(languages=("en", "zh"), training={"texts": {"train": 3}, "accuracy": 0.5})
    scorer.save(tmp_path / "a" / "scorer.safetensors")
    scorer.save(tmp_path / "b.safetensors")
    assert (tmp_path / "a" / "scorer.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    for path in (tmp_path / "a", tmp_path / "b.safetensors"):
        again = LinearScorer.load(path)
        assert again.facts == scorer.facts
        assert (again.weight == scorer.weight).all() and np.allclose(again.bias, scorer.bias)
    assert LinearScorer.load(tmp_path / "a").facts.languages == ("en", "zh")


def test_files_that_are_no_scorers(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    good = tmp_path / "good"
    make().save(good)
    (tmp_path / "cut").write_bytes(good.read_bytes()[:-100])
    (tmp_path / "text").write_text("no scorer")
    save_file({"weight": np.zeros((4, 1), np.float32)}, tmp_path / "other")
    save_file({"weight": np.zeros((4, 1), np.float32), "bias": np.zeros(1, np.float32)}, tmp_path / "old")
    for name in ("missing", "cut", "text", "other", "old"):
        with pytest.raises(DataError, match=name):
            LinearScorer.load(tmp_path / name)
    with pytest.raises(DataError, match="tells n, p apart"):
        make().for_label("q")


def test_bad_facts_are_refused() -> None:
    bad: list[tuple[tuple[str, ...], tuple[int, int], int, int]] = [
        (("a",), (1, 3), 0, 18), (("a", "a"), (1, 3), 0, 18), (("a", "b"), (3, 1), 0, 18), (("a", "b"), (0, 0), 0, 18),
        (("a", "b"), (1, 9), 0, 18), (("a", "b"), (1, 3), 6, 18), (("a", "b"), (1, 3), 0, 30),
    ]  # fmt: skip
    for labels, chars, words, bits in bad:
        with pytest.raises(DataError):
            ScorerFacts(labels, chars, words, bits)


def test_buckets_are_spread_evenly() -> None:
    """Of 20,000 different words, buckets hold as many as if each were drawn at random (chi-squared within 5 sigma)."""
    words = ["".join(letters) for letters in itertools.islice(itertools.product("abcdefghijklm", repeat=4), 20_000)]
    facts = ScorerFacts(("a", "b"), (0, 0), 1, 10)
    counts = np.bincount(grams([" ".join(words)], facts).buckets, minlength=1024)
    chi = float(((counts - counts.mean()) ** 2 / counts.mean()).sum())
    assert abs(chi - 1023) < 5 * math.sqrt(2 * 1023)
