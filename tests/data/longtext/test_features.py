"""Statistical features against plain counting."""

from __future__ import annotations

import re
import statistics
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from puyulm.data.longtext import features as module
from puyulm.data.longtext.features import TEXT_FEATURES, text_features

ENGLISH = "He came, and she left; but they did not see it.\n\n  However | it was late, so we went home, too.\n"
CHINESE = "我们走了，但是他没有来。因为下雨，所以大家都在家里。\n山高水长。\n"


@given(st.text("ab, |\n，、x1", max_size=300))
def test_counts_agree_with_plain_counting(text):
    features = text_features(text, "en")
    if not text:
        assert features == {}
        return
    assert list(features) == [name for name in TEXT_FEATURES if name in features] and len(features) == 15
    lines = [len(line) for line in text.split("\n") if line.strip()] or [0]
    assert features["characters"] == len(text)
    assert features["lines"] == sum(length > 0 for length in lines)
    assert features["line_mean"] == pytest.approx(statistics.fmean(lines))
    assert features["line_std"] == pytest.approx(statistics.pstdev(lines))
    assert features["line_median"] == statistics.median(lines)
    assert (features["line_max"], features["line_min"]) == (max(lines), min(lines))
    assert features["newline_rate"] == text.count("\n") / len(text)
    assert features["comma_rate"] == sum(c in ",，、" for c in text) / len(text)
    assert features["space_rate"] == text.count(" ") / len(text)
    assert features["bar_rate"] == text.count("|") / len(text)
    words = re.findall(r"[ab1x]+", text)
    assert features["unique_word_rate"] == pytest.approx(len(set(words)) / len(words) if words else 0)


def test_english_words():
    features = text_features(ENGLISH, "en")
    assert features["pronoun_rate"] == pytest.approx(6 / 20)  # he she they it it we
    assert features["conjunction_rate"] == pytest.approx(4 / 20)  # and but however so
    assert text_features(ENGLISH.upper(), "en")["pronoun_rate"] == features["pronoun_rate"]


def test_chinese_phrases():
    """The share of characters in them: 我们 他 大家, and 但是 因为 所以."""
    features = text_features(CHINESE, "zh")
    assert features["pronoun_rate"] == pytest.approx(5 / len(CHINESE))
    assert features["conjunction_rate"] == pytest.approx(6 / len(CHINESE))
    assert text_features("我们的", "zh")["pronoun_rate"] == pytest.approx(2 / 3)  # the longest phrase, once


@pytest.mark.parametrize("language, missing", [
    ("code", {"pronoun_rate", "conjunction_rate", "unique_word_rate"}),
    ("fr", {"pronoun_rate", "conjunction_rate"}), ("en", set()), ("zh", set()),
])  # fmt: skip
def test_features_that_a_language_does_not_have(language, missing):
    assert set(TEXT_FEATURES) - set(text_features(ENGLISH, language)) == missing


def test_unique_words_do_not_fall_with_length():
    names = [f"w{i}" for i in range(500)]
    once = text_features(" ".join(names * 2), "en")["unique_word_rate"]
    assert once == 0.5
    assert text_features(" ".join(names * 20), "en")["unique_word_rate"] == once


def test_pieces_change_little(monkeypatch):
    """Long texts are looked at in pieces; at their joints a word may fall apart."""
    text = ENGLISH * 200 + CHINESE * 200
    whole = {language: text_features(text, language) for language in ("en", "zh")}
    monkeypatch.setattr(module, "PIECE", 7_001)
    for language, expected in whole.items():
        found = text_features(text, language)
        for name in ("pronoun_rate", "conjunction_rate", "line_mean", "comma_rate"):
            assert found[name] == pytest.approx(expected[name], rel=0.01)
        assert found["compression"] == pytest.approx(expected["compression"], rel=0.01)


def test_compression_is_zlibs():
    raw = ENGLISH.encode()
    assert text_features(ENGLISH, "en")["compression"] == len(zlib.compress(raw, 6)) / len(raw)
    assert text_features("a" * 10_000, "en")["compression"] < 0.01


def test_half_surrogates_are_read():
    assert text_features("a\ud800b", "zh")["characters"] == 3
