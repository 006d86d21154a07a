"""Mathematical answers in what models write."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from puyulm.eval.extract.mathematics import (
    final_answer,
    is_word,
    last_boxed,
    normalise,
    same_text,
    stated_answer,
    tidy,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("so \\boxed{5}.", "5"),
        ("first \\boxed{4}, no: \\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("$\\boxed{\\{1, 2\\}}$", "\\{1, 2\\}"),
        ("\\boxed{\\left\\{ x \\mid x > 0 \\right.}", "\\left\\{ x \\mid x > 0 \\right."),
        ("\\boxed{\\text{(B) } \\sqrt{2}}", "\\text{(B) } \\sqrt{2}"),
        ("\\boxed 7.", "7"),
        ("\\fbox{9}", "9"),
        ("\\boxed {3}", "3"),
        ("\\boxed{\\boxed{8}}", "8"),
        ("\\boxed{6} and then \\boxed{\\frac{1}", "6"),  # cut off
        ("\\boxed{", None),
        ("\\boxed{}", ""),
        ("\\boxedtext", None),
        ("5", None),
    ],
)
def test_the_last_box(text: str, expected: str | None) -> None:
    assert last_boxed(text) == expected


@pytest.mark.parametrize(
    ("text", "strict", "lenient"),
    [
        ("We get \\boxed{12}.", "12", "12"),
        ("Final Answer: The final answer is $[2,5)$. I hope it is correct.", "[2,5)", "[2,5)"),
        ("The final answer is 3.5. Done", "3.5", "3.5"),
        ("The answer is: **42**.", "42", "42"),
        ("**Answer:** $x = 5$", "x = 5", "x = 5"),
        ("**Final Answer**: 17", "17", "17"),
        ("The answer is \\(\\frac{3}{4}\\) cups.", "\\frac{3}{4}", "\\frac{3}{4}"),
        ("The answer is\n\\[ 2\\sqrt{3} \\]", "2\\sqrt{3}", "2\\sqrt{3}"),
        ("所以答案是 12。", "12", "12"),
        ("最终答案为：$\\frac12$", "\\frac12", "\\frac12"),
        ("答案：五", "五", "五"),
        ("answer is 4. But no. The answer is 6.", "6", "6"),
        ("Adding up gives\n$$x = 7$$", None, "x = 7"),
        ("So she pays 30 dollars in total.", None, "30"),
        ("一共是一百二十三个。", None, "123"),
        ("It is half, i.e. 50% of them", None, "50\\%"),
        ("I cannot solve this.", None, None),
        ("", None, None),
    ],
)
def test_strict_and_lenient_answers(text: str, strict: str | None, lenient: str | None) -> None:
    assert stated_answer(text) == strict
    assert final_answer(text) == lenient


@pytest.mark.parametrize(
    ("written", "other"),
    [
        ("\\dfrac{1}{2}", "\\frac12"), ("1/2", "\\frac{1}{2}"), ("\\frac{-1}{2}", "-\\frac{1}{2}"),
        ("\\sqrt2", "\\sqrt{2}"), ("$5$", "5"),
        ("10,000", "10000"), ("10{,}000", "10000"), ("x = 5", "5"), ("5\\text{ cm}", "5"), ("5 cm^2", "5"),
        ("90^\\circ", "90"), ("50\\%", "50"), ("\\$20", "20"), (".5", "0.5"), ("\\left(1, 2\\right)", "(1,2)"),
        ("\\text{Evelyn}", "Evelyn"), ("(1,\\!2)", "(1,2)"), ("5.", "5"), ("2.0", "2"), ("（１，２）", "(1,2)"),
        ("\\begin{bmatrix}1\\\\2\\end{bmatrix}", "\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}"), ("**7**", "7"),
        ("x \\in [1,2]", "[1,2]"), ("1 \\text{ and } 2", "1,2"), ("\\frac{1}{2}\\pi", "\\frac{1}{2} \\pi"),
    ],
)  # fmt: skip
def test_one_form(written: str, other: str) -> None:
    assert normalise(written) == normalise(other)
    assert same_text(written, other)


@pytest.mark.parametrize(
    ("written", "other"),
    [
        ("5", "6"), ("(1,2)", "(2,1)"), ("[1,2)", "[1,2]"), ("x^2", "x_2"), ("\\frac{1}{2}", "\\frac{2}{1}"),
        ("5", "-5"),
        ("east", "west"), ("\\sin x", "\\cos x"), ("2 3", "23a"), ("0.5", "5"), ("", "5"), ("\\pi", "\\phi"),
    ],
)  # fmt: skip
def test_forms_of_different_answers(written: str, other: str) -> None:
    assert not same_text(written, other)


@pytest.mark.parametrize("text", ["\\text{Evelyn}", "east", "even function", "红色", "\\text{No}", "Monday."])
def test_words(text: str) -> None:
    assert is_word(text)


@pytest.mark.parametrize(
    "text", ["5", "x", "xy", "2\\pi", "\\sin x", "\\text{(B)}", "B", "12 cm", "x = y", "", "\\infty"]
)
def test_what_is_not_a_word(text: str) -> None:
    assert not is_word(text)


def test_boxes_of_published_solutions(shared_dir: Path) -> None:
    rows = [json.loads(line) for line in (shared_dir / "evaldata/math500/test.jsonl").read_text().splitlines()]
    assert len(rows) == 500
    for row in rows:
        boxed = last_boxed(row["solution"])
        assert boxed is not None and same_text(row["answer"], boxed)
        assert stated_answer(row["solution"]) == final_answer(row["solution"]) == boxed


@given(st.text(alphabet="\\{}[]()$boxedfracsqrttext0123456789.,-+/% x=是答案为：\n*", max_size=200))
def test_any_text_is_read_without_an_error(text: str) -> None:
    for rule in (last_boxed, stated_answer, final_answer, normalise, tidy, is_word):
        rule(text)
    assert same_text(text, text) or not tidy(text)


def test_hostile_texts_cost_no_more_than_their_length() -> None:
    for piece in ("\\boxed{", "\\[", "$", "{", "answer is ", "\\(", "**", "x ="):
        final_answer(piece * 20_000)
    for head in ("answer", "- ", "5", "\\boxed"):
        for space in " \n":
            final_answer(head + space * 50_000)
