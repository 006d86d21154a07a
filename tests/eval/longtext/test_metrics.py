"""Metrics of texts against the packages that the published scorers use, and by hand."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puyulm.eval.longtext import metrics

WORDS = ["the ", "cat ", "sat. ", "on ", "a ", "mat ", ". ", "Dog. ", "x", "x. y "]
made = st.lists(st.sampled_from(WORDS), max_size=20).map("".join)


@pytest.mark.parametrize(
    ("answer", "reference", "value"),
    [
        ("The cat", "a cat!", 1.0),
        ("black cat", "cat", 2 / 3),
        ("dog", "cat", 0.0),
        ("", "cat", 0.0),
        ("yes, yes", "yes", 2 / 3),
    ],
)
def test_f1(answer: str, reference: str, value: float) -> None:
    assert metrics.f1(answer, reference) == pytest.approx(value)


def test_f1_of_chinese_words() -> None:
    pytest.importorskip("jieba")
    assert metrics.f1("上海，人工智能。", "上海人工智能", "zh") == 1.0
    assert 0 < metrics.f1("我爱北京天安门", "北京天安门", "zh") < 1
    assert metrics.rouge_l_union("我爱北京", "我爱北京", "zh") == pytest.approx(1.0, abs=1e-6)


def test_rouge_by_hand() -> None:
    assert metrics.rouge_l("a b c d", "a c d e") == pytest.approx(2 * 3 / 8)
    assert metrics.rouge_l("", "a") == 0.0
    # Lin's example: the union of "w1 w2" and "w1 w3 w5" has 4 of the reference's 5 words, and of the answer's 8.
    union = metrics.rouge_l_union("w1 w2 w6 w7 w8. w1 w3 w8 w9 w5", "w1 w2 w3 w4 w5")
    assert union == pytest.approx(2 * 4 / (5 + 8), abs=1e-6)
    assert metrics.rouge_l_union("", "a") == metrics.rouge_l_union("...", "a") == 0.0


def test_rouge_equals_the_packages() -> None:
    package = pytest.importorskip("rouge").Rouge()
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer(["rougeL"])
    draw = random.Random(0)
    for _ in range(300):
        answer, reference = ("".join(draw.choices(WORDS, k=draw.randrange(20))) for _ in range(2))
        assert metrics.rouge_l(answer, reference) == pytest.approx(scorer.score(reference, answer)["rougeL"].fmeasure)
        if answer.strip(".") and reference.strip("."):
            expected = package.get_scores([answer], [reference], avg=True)["rouge-l"]["f"]
            assert metrics.rouge_l_union(answer, reference) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("first", "second", "distance"), [("", "", 0), ("", "abc", 3), ("kitten", "sitting", 3), ("上海", "海上", 2)]
)
def test_edit_distance(first: str, second: str, distance: int) -> None:
    assert metrics.edit_distance(first, second) == distance


@settings(deadline=None, derandomize=True)
@given(made, made)
def test_edit_distance_is_a_distance(first: str, second: str) -> None:
    distance = metrics.edit_distance(first, second)
    assert distance == metrics.edit_distance(second, first)
    assert abs(len(first) - len(second)) <= distance <= max(len(first), len(second))
    assert (distance == 0) == (first == second)
    assert metrics.edit_similarity(first, " " + first + "\n") == 1.0


@settings(deadline=None, derandomize=True)
@given(made, made)
def test_overlaps_lie_between_nothing_and_all(first: str, second: str) -> None:
    for metric in (metrics.f1, metrics.rouge_l, metrics.rouge_l_union, metrics.code_similarity):
        assert 0 <= metric(first, second) <= 1
    assert metrics.rouge_l(first, second) == pytest.approx(metrics.rouge_l(second, first))


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("return x + 1", 1.0),
        ("\n\nreturn x + 1\nprint(x)", 1.0),
        ("```python\n# adds\nreturn x + 1\n```", 1.0),
        ("```", 0.0),
        ("return y + 1", 0.92),
    ],
)
def test_code_similarity_takes_the_first_line_of_code(answer: str, value: float) -> None:
    assert metrics.code_similarity(answer, "return x + 1") == pytest.approx(value, abs=0.005)


def test_code_similarity_equals_fuzzywuzzy() -> None:
    fuzz = pytest.importorskip("fuzzywuzzy.fuzz")
    draw = random.Random(0)
    for _ in range(200):
        one, other = ("".join(draw.choices("abc =()+.", k=draw.randrange(1, 40))) for _ in range(2))
        assert metrics.code_similarity(one, other) == fuzz.ratio(one, other) / 100


def test_numbers_and_classes() -> None:
    assert metrics.share_of_numbers("Paragraph 12", "12") == 1.0
    assert metrics.share_of_numbers("Paragraph 12 or 13", "12") == 0.5
    assert metrics.share_of_numbers("none", "12") == 0.0
    classes = ["Individual", "Individual description", "Other number", "number"]
    assert metrics.class_score("Type: Individual description", "Individual description", classes) == 1.0
    assert metrics.class_score("Individual or Other number", "Individual", classes) == pytest.approx(1 / 3)
    assert metrics.class_score("Place", "Individual", classes) == 0.0
