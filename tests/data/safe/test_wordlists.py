"""Word lists, against a search that looks at every place."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from puyulm.data.safe.wordlists import STRETCH, WordList, load_words
from puyulm.errors import DataError

WORDS = st.lists(st.text("ab1 坏词", min_size=1, max_size=4), max_size=6)


def places(words: list[str], text: str) -> set[tuple[int, str]]:
    """(start, word) of each match, found by trying every word at every place."""
    entries = {" ".join(word.split()) for word in words} - {""}

    def joins(c: str) -> bool:
        return c.isascii() and c.isalnum()

    return {
        (i, word)
        for word in entries
        for i in range(len(text))
        if text.startswith(word, i)
        and not (joins(word[0]) and i > 0 and joins(text[i - 1]))
        and not (joins(word[-1]) and i + len(word) < len(text) and joins(text[i + len(word)]))
    }


@given(WORDS, st.text("ab1 坏词.", max_size=40))
def test_matches_are_those_of_a_plain_search(words: list[str], text: str) -> None:
    expected = places(words, text)
    hits = WordList(words).hits(text)
    assert hits.distinct == len({word for _, word in expected})
    assert (hits.occurrences > 0) == bool(expected)
    assert hits.occurrences <= len(expected)
    assert hits.density == 1000 * hits.occurrences / max(len(text), 1)


def test_english_words_are_whole_and_chinese_ones_anywhere() -> None:
    words = WordList(["ass", "Hot  Girls", "赌博", "c4"])
    assert len(words) == 4
    assert words.hits("The class passed; assess the bass.").occurrences == 0
    assert words.hits("An ASS. An ass!").occurrences == 2
    assert words.hits("hot girls, hot girlss, shot girls").occurrences == 1
    assert words.hits("禁止网络赌博活动").occurrences == 1
    assert words.hits("在c4处，用c42").occurrences == 1  # a Chinese character is no part of the word
    assert words.hits("naïveass assé").occurrences == 0
    assert WordList([]).hits("anything").occurrences == 0


def test_words_that_overlap_count_once() -> None:
    hits = WordList(["网络赌博", "赌博", "赌博网站"]).hits("网络赌博网站")
    assert (hits.occurrences, hits.distinct) == (1, 3)


def test_distinct_words_count_within_a_stretch() -> None:
    words = WordList(["one", "two", "three"])
    assert words.hits("one two three").distinct == 3
    filler = "x " * (STRETCH // 2)
    assert words.hits("one " + filler + "two " + filler + "three").distinct == 1


def test_reading_a_list(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_bytes("\ufeffBad # a comment\n\n坏话\r\n# nothing\n".encode())
    assert len(load_words(path)) == 2
    assert load_words(path).hits("bad 坏话").distinct == 2
    with pytest.raises(DataError, match="cannot read the word list"):
        load_words(tmp_path / "missing")
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="not UTF-8"):
        load_words(path)
