"""Haystacks, texts that fit, windows, and prompts without their middle."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puyulm.errors import DataError
from puyulm.eval.longtext import haystack
from puyulm.eval.longtext.fill import Pieces, fill, insert, number_option, number_options
from puyulm.eval.longtext.prose import sentences
from puyulm.eval.longtext.truncate import cut_middle
from puyulm.eval.longtext.windows import windows
from puyulm.eval.longtext.words import ADJECTIVES, NOUNS, WORDS
from puyulm.eval.source import SourceContext
from tests.eval.fakes import FakeModel


@pytest.mark.parametrize("language", ["en", "zh"])
def test_prose_is_varied_and_the_same_each_time(language: str) -> None:
    first, second, other = (
        list(itertools.islice(sentences(language, seed), 2000)) for seed in (0, 0, 1)
    )  # fmt: skip
    assert first == second != other
    assert len(set(first)) > 1800
    assert not any(letter.isdigit() or letter in "-{}" for one in first for letter in one)


def test_words_are_words() -> None:
    assert len(WORDS) > 1500 and all(one.isalpha() and one.islower() for one in WORDS)
    assert len(NOUNS) * len(ADJECTIVES) > 300_000


@settings(deadline=None, derandomize=True)
@given(st.integers(0, 400), st.integers(0, 60), st.floats(0.3, 3), st.integers(1, 9))
def test_fill_takes_all_that_fits(room: int, guess: int, wrong: float, size: int) -> None:
    """However wrong the guess and the size of a piece."""
    found = fill(lambda number: "x" * (number * size), len, room, guess, size * wrong, "a text")
    assert found.tokens == len(found.text) == found.pieces * size <= room
    assert room - found.tokens < max(size * max(wrong, 1), room / 500)


def test_a_length_without_room_is_refused() -> None:
    with pytest.raises(DataError, match="niah: the length is too short: 10 tokens are needed, and 9 are there"):
        fill(lambda number: "x" * (10 + number), len, 9, 5, 1.0, "niah")


def test_pieces_are_counted_once() -> None:
    counted: list[str] = []

    def count(text: str) -> int:
        counted.append(text)
        return len(text)

    pieces = Pieces(itertools.cycle(["ab", "cde"]), count, "\n")
    assert pieces.fitting(14) == 4 and pieces.first(3) == ["ab", "cde", "ab"]
    assert pieces.mean() == pytest.approx(3.5, abs=0.5) and pieces.fitting(1000) > 200
    assert sorted(set(counted)) == ["\n", "ab", "cde"] and len(counted) == 4


@settings(deadline=None, derandomize=True)
@given(st.integers(0, 50), st.lists(st.integers(0, 100), max_size=5))
def test_needles_lie_at_their_depths(number: int, depths: list[int]) -> None:
    pieces, needles = [f"p{place}" for place in range(number)], [f"needle{place}" for place in range(len(depths))]
    placed = insert(pieces, needles, depths)
    assert [one for one in placed if one not in needles] == pieces
    for needle, depth in zip(needles, depths, strict=True):
        before = sum(one in pieces for one in placed[: placed.index(needle)])
        assert before == round(number * depth / 100)


def test_haystacks_of_files(tmp_path: Path) -> None:
    (tmp_path / "en_a.txt").write_text("One is here. Two is\nthere! And 3.")
    (tmp_path / "en_b.jsonl").write_text(json.dumps({"text": "Four. Five."}) + "\n")
    hay = haystack.load(tmp_path, ["en*.txt", "en*.jsonl"], "en")
    assert hay.name == "en_a.txt, en_b.jsonl"
    expected = ["One is here.", "Two is there!", "And 3.", "Four.", "Five.", "One is here."]
    assert list(itertools.islice(hay.sentences(), 6)) == expected
    orders = {tuple(itertools.islice(hay.sentences(seed), 5)) for seed in range(9)}
    assert len(orders) == 2
    assert haystack.load(tmp_path, ["zh*.txt"], "zh").name == haystack.load(None, ["x"], "zh").name == "made prose"
    assert haystack.split("一句。两句！\n三句", "zh") == ["一句。", "两句！", "三句"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"\xff\xfe\xff", "cannot read"),
        ("a.txt", b"  ", "no text"),
        ("a.jsonl", b'{"words": 1}\n', "row 0 has no 'text'"),
    ],
)
def test_damaged_haystacks(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        haystack.load(tmp_path, ["a.*"], "en")


def test_options_are_checked() -> None:
    def context(value: object) -> SourceContext:
        return SourceContext(options={"lengths": value})

    assert number_options(context([5, 7]), "x", "lengths", [1]) == [5, 7]
    assert number_option(context(5), "x", "lengths", 1) == 5
    for wrong in ([], [0], ["4K"], "4K", [4, 4], [True], 1.5):
        with pytest.raises(DataError, match="x: lengths"):
            number_options(context(wrong), "x", "lengths", [1])
    with pytest.raises(DataError, match="one number"):
        number_option(context([5, 7]), "x", "lengths", 1)


@settings(deadline=None, derandomize=True)
@given(st.text(max_size=300), st.integers(2, 60), st.integers(1, 50))
def test_windows_are_the_text(text: str, window: int, stride: int) -> None:
    stride = min(stride, window - 1)
    found = list(windows(text, window, stride, lambda part: list(part.encode("utf-8", "replace"))))
    assert "".join(one.text for one in found) == text
    assert sum(one.words for one in found) == len(text.split())
    before = ""
    for one in found:
        assert before.endswith(one.context) and one.text
        before += one.text


def test_windows_have_the_size_that_was_asked_for() -> None:
    text = " ".join(itertools.islice(sentences("en"), 200))
    found = list(windows(text, 256, 100, FakeModel().encode))
    assert all(len(one.context) + len(one.text) <= 255 for one in found)
    assert all(80 < len(one.text) <= 100 and len(one.context) > 120 for one in found[1:-1])
    assert found[0].context == "" and len(found[0].text) > 230


def test_the_middle_is_cut() -> None:
    context = SourceContext(model=FakeModel())
    text = "".join(map(str, range(100)))
    assert cut_middle(text, 1000, context) == text == cut_middle(text, 50, SourceContext())
    assert cut_middle(text, 50, context) == text[:25] + text[-25:]


def test_the_middle_is_cut_between_characters(shared_dir: Path) -> None:
    from puyulm.text.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(shared_dir / "tokenizers" / "internlm2.model")
    model = FakeModel()
    model.encode, model.decode = tokenizer.encode, tokenizer.decode  # type: ignore[method-assign]
    text = "".join(itertools.islice(sentences("zh"), 100)) + "𠮷" * 50
    for limit in (100, 101, 333):
        cut = cut_middle(text, limit, SourceContext(model=model))
        assert limit - 8 <= len(tokenizer.encode(cut)) <= limit and "\ufffd" not in cut
        assert text.startswith(cut[:40]) and text.endswith(cut[-10:])
