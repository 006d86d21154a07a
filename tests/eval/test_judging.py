"""What is read from a judge's answer, and what both orders of a pair mean."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from puyulm.eval.judging import comparison_prompts, comparison_scores, rating_prompt, read_choice, read_rating
from puyulm.eval.model import Output

RATINGS = [
    ("Rating: [[5]]", 5),
    ("The answer is good.\n\n**Rating: [[7.5]]**", 7.5),
    ("[[10]]", 10),
    ("[[ 3 ]]", 3),
    ("On the scale [[1]] to [[10]] it is [[6]]", 6),
    ("Rating: [4]", 4),
    ("Rating: 8/10", 8),
    ("I rate it 9 out of 10", 9),
    ("**Score:** 7", 7),
    ("Final score: **6**", 6),
    ("评分：[[8]]", 8),
    ("综合得分：8分", 8),
    ("我给这个回答打7分。", 7),
    ("'综合得分': 9", 9),
    ("总分为 6", 6),
    ("5", 5),
    ("**5**", 5),
    ("Rating: [[8/10]]", 8),
    ("Score: 10", 10),
    ("得分：【9】", 9),
    ("[[0]]", None),
    ("[[11]]", None),
    ("", None),
    ("I cannot rate this.", None),
    ("Rating: high", None),
    ("There are 3 errors in it.", None),
    ("Rating: [[", None),
    ("Rating: 100", None),
    ("It was made in 1995", None),
]
CHOICES = [
    ("[[A]]", "A"), ("My verdict: [[B]]", "B"), ("[[C]]", "tie"), ("[[tie]]", "tie"), ("[[平局]]", "tie"),
    ("First I thought [[A]], but: [[B]]", "B"), ("Final verdict: [A]", "A"), ("**[[ a ]]**", "A"), ("B", "B"),
    ("Assistant B is better.", "B"), ("The better answer is A.", "A"), ("Winner: **B**", "B"), ("结论：助手A更好", "A"),
    ("回答B更好。", "B"), ("更好的是A", "A"), ("Verdict: tie", "tie"), ("", None), ("Both are fine.", None),
    ("Assistant A has three errors, assistant B two.", None), ("A good answer was given.", None), ("[[D]]", None),
    ("The winner is Alice", None),
]  # fmt: skip


@pytest.mark.parametrize(("text", "rating"), RATINGS)
def test_ratings(text: str, rating: float | None) -> None:
    assert read_rating(text) == rating


@pytest.mark.parametrize(("text", "choice"), CHOICES)
def test_choices(text: str, choice: str | None) -> None:
    assert read_choice(text) == choice


@given(st.text(alphabet=st.sampled_from("[]ABC0123456789./ 分:评分得rating\n*"), max_size=40))
def test_any_text_is_read(text: str) -> None:
    rating = read_rating(text)
    assert rating is None or 1 <= rating <= 10
    assert read_choice(text) in ("A", "B", "tie", None)
    assert read_rating(f"{text}\nRating: [[7]]") == 7 and read_choice(f"{text}\n[[B]]") == "B"


@pytest.mark.parametrize(
    ("judgements", "consistent", "win_rate", "bias", "first"),
    [
        ("AB", True, 1.0, 0, 0.5), ("BA", True, 0.0, 0, 0.5), ("AA", True, 0.5, 1, 1.0), ("BB", True, 0.5, 1, 0.0),
        ("AC", True, 0.5, 0, 0.75), ("AC", False, 0.75, 0, 0.75), ("AA", False, 0.5, 1, 1.0), ("CC", True, 0.5, 0, 0.5),
        ("??", True, 0.5, 0, 0.5), ("A?", False, 0.75, 0, 0.75),
    ],
)  # fmt: skip
def test_both_orders(judgements: str, consistent: bool, win_rate: float, bias: float, first: float) -> None:
    scores = comparison_scores([Output(text=f"[[{one}]]") for one in judgements], consistent=consistent)
    assert (scores["win_rate"], scores["position_bias"], scores["first_place"]) == (win_rate, bias, first)
    assert scores["wins"] + scores["ties"] + scores["losses"] == 1
    assert scores["wins"] + scores["ties"] / 2 == win_rate
    assert scores["unread"] == judgements.count("?") / 2


def test_prompts_show_each_answer_once() -> None:
    first, second = (one.messages[1].content for one in comparison_prompts("why?", "because", "no idea", "so"))
    assert first.index("because") < first.index("no idea") and second.index("no idea") < second.index("because")
    assert all(text.count(part) == 1 for text in (first, second) for part in ("why?", "because", "no idea", "\nso\n"))
    assert "Reference" in rating_prompt("why?", "because", "so").messages[1].content
    assert "Reference" not in rating_prompt("why?", "because").messages[1].content
