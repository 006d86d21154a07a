"""Words as arrays agree with words found one by one."""

from __future__ import annotations

import re
import sys
import unicodedata

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from puyulm.data.words import _IDEOGRAPHS, Words, ngram_hashes, words_of

TEXTS = ["Hello, World! 你好abc12 世界", "", "a b c", "HELLO world", "İstanbul Straße", " \n", "नमस्ते, दुनिया"]


def _slow_words(text: str) -> list[str]:
    """The definition, a character at a time."""
    found: list[str] = []
    open_word = False
    for c in text.lower():
        if any(low <= ord(c) <= high for low, high in _IDEOGRAPHS):
            found.append(c)
            open_word = False
        elif c.isalnum() or (ord(c) > 0x2FF and unicodedata.category(c)[0] == "M"):
            found[-1:] = [found[-1] + c] if open_word else [*found[-1:], c]
            open_word = True
        else:
            open_word = False
    return found


def _texts_of(words: Words) -> list[list[str]]:
    return [[words.text(i) for i in range(a, b)] for a, b in zip(words.first[:-1], words.first[1:], strict=True)]


def test_words_of_several_scripts() -> None:
    words = words_of(TEXTS)
    assert _texts_of(words)[0] == ["hello", "world", "你", "好", "abc12", "世", "界"]
    assert _texts_of(words) == [_slow_words(text) for text in TEXTS]


@given(st.lists(st.text(max_size=40), max_size=6))
def test_words_as_the_definition_says(texts: list[str]) -> None:
    assert _texts_of(words_of(texts)) == [_slow_words(text) for text in texts]


@given(st.lists(st.text(alphabet="ab 好\n", max_size=30), min_size=1, max_size=5))
def test_equal_words_and_only_they_have_equal_hashes(texts: list[str]) -> None:
    words = words_of(texts)
    by_hash = {int(h): words.text(i) for i, h in enumerate(words.hashes)}
    assert all(by_hash[int(h)] == words.text(i) for i, h in enumerate(words.hashes))
    assert len(set(by_hash.values())) == len(by_hash)


def test_hashes_do_not_depend_on_the_batch() -> None:
    alone = [words_of([text]).hashes for text in TEXTS]
    assert np.array_equal(np.concatenate(alone), words_of(TEXTS).hashes)


def test_hashes_are_the_same_for_ever() -> None:
    """Signatures on disk are compared with those of later runs."""
    assert [hex(h) for h in words_of(["浦语 puyu"]).hashes] == [
        "0x5cc9ff4002a0b556", "0xfda596354eab3ba7", "0x5fdfc3e2efbbdfc1",
    ]  # fmt: skip


@given(st.lists(st.text(alphabet="abc ", max_size=30), max_size=5), st.integers(1, 6))
def test_ngrams_are_runs_within_a_text(texts: list[str], n: int) -> None:
    words = words_of(texts)
    hashes, first = ngram_hashes(words, n)
    seen: dict[int, tuple[str, ...]] = {}
    for text, a, b in zip(texts, first[:-1], first[1:], strict=True):
        listed = re.findall(r"\w+", text)
        grams = [tuple(listed[i : i + n]) for i in range(len(listed) - n + 1)] or ([tuple(listed)] if listed else [])
        assert b - a == len(grams)
        for h, gram in zip(hashes[a:b].tolist(), grams, strict=True):
            assert seen.setdefault(h, gram) == gram
    assert len(set(seen.values())) == len(seen)


def test_blocks_join(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = words_of(TEXTS * 3)
    monkeypatch.setattr("puyulm.data.words._BLOCK_CHARACTERS", 10)
    for name, value in vars(words_of(TEXTS * 3)).items():
        assert np.array_equal(value, getattr(whole, name)), name


def test_every_letter_and_mark_is_known() -> None:
    from puyulm.data.words import LETTER, SEPARATOR, _class_table

    table = _class_table()
    rest = [c for c in range(0x32000, sys.maxunicode + 1) if table[c] == SEPARATOR]
    assert not [c for c in rest if chr(c).isalnum() or unicodedata.category(chr(c))[0] == "M"]
    assert table[ord("é")] == table[0x0301] == LETTER
