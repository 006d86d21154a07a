"""Short answers in words."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from puyulm.eval.extract.answers import (
    _best_alignment,
    after_answer_is,
    answer_line,
    contains,
    drop_scores,
    exact_match,
    normalise,
    normalise_trivia,
    overlaps,
    short_answer,
)


@pytest.mark.parametrize(
    ("text", "squad", "trivia"),
    [
        ("The  Beatles!", "beatles", "beatles"),
        ("a cat, an owl", "cat owl", "cat owl"),
        ("Jean-Luc", "jeanluc", "jean luc"),
        ("rock_n_roll", "rocknroll", "rock n roll"),
        ("O'Neill", "oneill", "o neill"),
        ("théâtre", "théâtre", "théâtre"),
        ("...", "", ""),
    ],
)
def test_normalisation(text: str, squad: str, trivia: str) -> None:
    assert normalise(text) == squad and normalise_trivia(text) == trivia


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" Paris\nQ: And?", "Paris"),
        ("The answer is **Paris**.", "Paris"),
        ("A: Paris", "Paris"),
        ("**Answer: Paris**", "Paris"),
        ("答案是：巴黎", "巴黎"),
        ('"Paris"', "Paris"),
        ("", ""),
    ],
)
def test_short_answers(text: str, expected: str) -> None:
    assert short_answer(text) == expected


@pytest.mark.parametrize(
    ("answer", "exact", "inside"),
    [
        ("The Beatles.", 1, 1),
        ("beatles", 1, 1),
        ("It was the Beatles", 0, 1),
        ("Beatlesmania", 0, 0),
        ("Who", 0, 0),
        ("", 0, 0),
    ],
)
def test_any_right_answer_counts(answer: str, exact: int, inside: int) -> None:
    assert exact_match(answer, ["Fab Four", "The Beatles"]) == bool(exact)
    assert contains(answer, ["Fab Four", "The Beatles"]) == bool(inside)


def test_overlap_goes_both_ways() -> None:
    assert overlaps("Kurt Warner of Arizona", ["Kurt Warner"]) and overlaps("Warner", ["Kurt Warner"])
    assert not overlaps("Wells", ["Kurt Warner"]) and not overlaps("", ["x"]) and not overlaps("x", ["the"])


@pytest.mark.parametrize(
    ("text", "line", "behind"),
    [
        ("So.\nAnswer: 12 yards", "12 yards", None),
        ("**Answer:** 12", "12", None),
        ("Answer: 3\nWait.\nanswer: 4", "4", None),
        ("The answer: 12", None, None),
        ("So the answer is (B).", None, "(B)"),
        ("So the answer is False.\n\nQ: next", None, "False"),
        ("So the answer is **(C)** because", None, "(C)"),
        ("The answer is: ] ] }", None, "] ] }"),
        ("the answer is (A). No, the answer is (D).", None, "(D)"),
        ("答案是 12。", None, "12"),
        ("I do not know", None, None),
        ("", None, None),
        ("So the answer is", None, None),
    ],
)
def test_marked_answers(text: str, line: str | None, behind: str | None) -> None:
    assert answer_line(text) == line and after_answer_is(text) == behind


@pytest.mark.parametrize(
    ("answer", "right", "exact", "f1"),
    [  # the values of the official script
        ("12", [["12"]], 1.0, 1.0),
        ("12.0", [["12"]], 1.0, 1.0),
        ("12 yards", [["12"]], 0.0, 0.67),
        ("13 yards", [["12 yards"]], 0.0, 0.0),  # the number decides
        ("the Giants", [["Giants"]], 1.0, 1.0),
        ("New York Giants", [["Giants"]], 0.0, 0.5),
        ("Jacobs", [["Wells"], ["Jacobs"]], 1.0, 1.0),
        ("Wells, Jacobs", [["Jacobs", "Wells"]], 1.0, 1.0),
        ("Jacobs", [["Jacobs", "Wells"]], 0.0, 0.5),
        ("Jacobs and Smith", [["Jacobs", "Wells"]], 0.0, 0.5),
        ("second-half", [["second half"]], 1.0, 1.0),
        ("", [["x"]], 0.0, 0.0),
        ("x", [[""]], 0.0, 0.0),
    ],
)
def test_drop_scores(answer: str, right: list[list[str]], exact: float, f1: float) -> None:
    assert drop_scores(answer, right) == (exact, f1)


@given(st.integers(1, 5), st.integers(1, 5), st.randoms(use_true_random=False))
def test_the_best_alignment(rows: int, columns: int, draw: object) -> None:
    import itertools
    import random

    assert isinstance(draw, random.Random)
    weights = [[draw.randint(0, 9) for _ in range(columns)] for _ in range(rows)]
    small = min(rows, columns)
    best = max(
        sum(weights[i][j] for i, j in zip(some, others, strict=True))
        for some in itertools.combinations(range(rows), small)
        for others in itertools.permutations(range(columns), small)
    )
    assert _best_alignment(weights) == best


def test_long_lists_are_aligned_too() -> None:
    names = [f"name{n}" for n in range(30)]
    assert drop_scores(", ".join(reversed(names)), [names]) == (1.0, 1.0)


@given(st.text(max_size=80), st.text(max_size=20))
def test_any_text_is_read_without_an_error(text: str, right: str) -> None:
    for rule in (normalise, normalise_trivia, short_answer, answer_line, after_answer_is):
        rule(text)
    exact, f1 = drop_scores(text, [[right], [right, "x"]])
    assert 0 <= f1 <= 1 and exact in (0, 1) and (not exact or f1 == 1)
