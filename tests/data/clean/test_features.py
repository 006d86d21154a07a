"""Features of batches against a slow, plain reference."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puyulm.data.clean.features import DUPLICATE_NGRAMS, TOP_NGRAMS, Features
from puyulm.data.clean.texts import Texts
from tests.data.clean import reference
from tests.data.clean.corpus import CLASSICAL, EDGES, MODERN, PIECES, REAL

random_texts = st.lists(st.lists(st.sampled_from(PIECES), max_size=60).map("".join), max_size=6)


def features_of(texts: list[str], words_per_gram: float = 1.0) -> Features:
    return Features(Texts(texts, ["en"] * len(texts)), words_per_gram)


def compare(texts: list[str], words_per_gram: float = 1.0) -> None:
    features = features_of(texts, words_per_gram)
    for i, text in enumerate(texts):
        for name, value in reference.measure(text).items():
            found = getattr(features, name)
            assert found.shape == (len(texts),)
            assert found[i] == pytest.approx(value, abs=1e-12), (name, text[:200])
        for length in (3, 10):
            assert features.broken_lines(length)[i] == pytest.approx(reference.broken_lines(text, length)), text[:200]
        words = reference.words_in(text)
        for n in TOP_NGRAMS:
            expected = reference.top_ngram(words, round(n * words_per_gram))
            assert features.top_ngram(n)[i] == pytest.approx(expected), (n, text[:200])
        for n in DUPLICATE_NGRAMS:
            for first in (True, False):
                expected = reference.duplicate_ngrams(words, round(n * words_per_gram), first)
                assert features.duplicate_ngrams(n, first)[i] == pytest.approx(expected), (n, first, text[:200])


def test_real_texts() -> None:
    compare(REAL)
    compare(REAL[-3:], words_per_gram=1.6)


def test_edge_cases_alone_and_together() -> None:
    compare(EDGES)
    for text in EDGES:
        compare([text])
    compare([])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(random_texts, st.sampled_from([1.0, 1.6]))
def test_random_texts(texts: list[str], words_per_gram: float) -> None:
    compare(texts, words_per_gram)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(st.lists(st.sampled_from("ab 书"), max_size=80).map("".join), min_size=1, max_size=3))
def test_texts_that_repeat_much(texts: list[str]) -> None:
    compare(texts)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.text(max_size=60), max_size=5))
def test_any_text_gives_finite_shares(texts: list[str]) -> None:
    features = features_of(texts)
    for name in reference.measure(""):
        assert np.isfinite(getattr(features, name)).all()
    assert (features.mojibake_share <= 1).all() and (features.mojibake_share >= 0).all()


def test_a_batch_measures_as_each_text_alone() -> None:
    together = features_of([*REAL, *EDGES])
    for i, text in enumerate([*REAL, *EDGES]):
        alone = features_of([text])
        for name in reference.measure(""):
            assert getattr(together, name)[i] == getattr(alone, name)[0]


def test_a_line_of_a_megabyte() -> None:
    text = "word " * 200_000
    features = features_of([text.strip(), "short."])
    assert features.longest_line.tolist() == [999_999, 6]
    assert features.words.tolist() == [200_000, 1]
    assert features.top_ngram(2).tolist() == [1.0, 0.0]
    assert features.duplicate_ngrams(10).tolist() == [1.0, 0.0]
    assert features.duplicate_ngrams(10, first=False)[0] == pytest.approx(1 - 1 / 200_000)


def test_mojibake() -> None:
    english = "It’s a naïve café — “Grüße”, déjà vu: «Ça va?» São Paulo, ÑANDÚ, NÃO. "
    broken = english.encode().decode("cp1252", "replace")
    chinese = (CLASSICAL + MODERN).encode().decode("latin-1")
    gbk = "你好锟斤拷世界"
    shares = features_of([english, broken, CLASSICAL, chinese, gbk]).mojibake_share
    assert shares[0] == shares[2] == 0
    assert shares[1] > 0.1 and shares[3] > 0.5
    assert shares[4] == pytest.approx(3 / 7)


def test_different_words_by_language() -> None:
    lists = {"en": ("the", "of"), "zh": ("的", "了")}
    texts = ["The the THE of", "的的的", "the of", "OF", "的了"]
    features = Features(Texts(texts, ["en", "zh", "de", "en-GB", "zh-Hant"]))
    assert features.different_words(lists).tolist() == [2, 1, -1, 1, 2]


def test_phrases_are_found_in_any_case_and_by_text() -> None:
    features = features_of(["Lorem IPSUM lorem ipsum", "lorem\nipsum", "İ lorem ipsum"])
    assert features.occurrences("lorem ipsum").tolist() == [2, 0, 1]


def test_line_words() -> None:
    texts = Texts(["don't stop me now\n\n  你好world 3.5\n---", "一二三"], ["en", "zh"])
    assert texts.line_words.tolist() == [4, 4, 1, 3]
    assert texts.lines.number.tolist() == [0, 2, 3, 4]
