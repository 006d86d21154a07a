"""A language model as a judge: what it is asked, and how its answer is read.

Two forms (Zheng et al., 2023, "Judging LLM-as-a-Judge with MT-Bench and Chatbot Arena"): a score from 1 to 10 for one
answer, and a choice between two. Judges prefer places: a pair is shown in both orders, and a win counts only if it is
won in both. How often a judge chose the same place both times is reported.

The prompts ask for what the paper's prompts ask for, in our words, and for answers in its form: `[[8]]`, `[[A]]`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from puyulm.eval.model import Output, Prompt
from puyulm.text.messages import Message

JUDGE_TOKENS = 2048
Choice = Literal["A", "B", "tie"]

_BRACKETS = r"\[\[\s*{}\s*\]\]"
_NUMBER = r"(?<![\d.])(10(?:\.0+)?|\d(?:\.\d+)?)(?!\d|\.\d)"
_OF_TEN = r"\s*(?:/|out of)\s*10(?!\d)"
_RATINGS = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        _BRACKETS.format(f"{_NUMBER}(?:{_OF_TEN})?"),
        rf"\[\s*{_NUMBER}\s*\]",
        r"(?:rating|score|评分|得分|打分|分数|总分)[\s*\"'”』】]*(?:is|of|为|是)?\s*[:：=]?[\s*\"'“『【\[]*" + _NUMBER,
        rf"{_NUMBER}(?:{_OF_TEN}|\s*分)",
        rf"^\W*{_NUMBER}\W*$",
    )
)
_CHOICES = tuple(
    re.compile(pattern, re.IGNORECASE)
    for pattern in (
        _BRACKETS.format(r"(A|B|C|tie|平局|平手)"),
        r"\[\s*(A|B|C|tie|平局|平手)\s*\]",
        r"(?:verdict|winner|better (?:answer|assistant|response)|结论|判断|结果|胜者|更好的(?:是|回答|答案|助手))"
        r"[\s*\"']*(?:is|为|是)?\s*[:：]?[\s*\"'“]*(?:assistant|answer|response|助手|回答|答案)?"
        r"\s*(A|B|C|tie|平局|平手)(?![A-Za-z])",
        r"(?:assistant|answer|response|助手|回答|答案)\s*(A|B)(?![A-Za-z])[\s*]*"
        r"(?:is (?:clearly |slightly |much )?better|wins|更好|更优|胜)",
        r"^\W*(A|B|C|tie|平局|平手)\W*$",
    )
)  # fmt: skip


def read_rating(text: str) -> float | None:
    """A judge's score from 1 to 10, in the form asked for or in another that leaves no doubt; None: there is none.

    Of several in the same form the last counts: judges speak of the scale first.
    """
    for pattern in _RATINGS:
        values = [float(found) for found in pattern.findall(text.strip())]
        if fitting := [value for value in values if 1 <= value <= 10]:
            return fitting[-1]
    return None


def read_choice(text: str) -> Choice | None:
    """A judge's choice between A and B; None: there is none."""
    for pattern in _CHOICES:
        if found := pattern.findall(text.strip()):
            letter = found[-1].upper()
            return letter if letter in ("A", "B") else "tie"
    return None


def ask_judge(system: str, text: str, *, max_new_tokens: int = JUDGE_TOKENS) -> Prompt:
    """A judge's prompt: greedy, so that it says the same again."""
    return Prompt(messages=(Message("system", system), Message("user", text)), max_new_tokens=max_new_tokens)


# A score for one answer


RATE = (
    "You are an impartial judge. You rate the answer of an AI assistant to a user's question. Consider how helpful, "
    "relevant, accurate, deep, creative and detailed it is. First explain your judgement in short, as objectively as "
    'you can. Then rate the answer from 1 to 10, in exactly this form: "[[rating]]", for example: "Rating: [[5]]".'
)
RATE_BY_REFERENCE = (
    "You are an impartial judge. You rate the answer of an AI assistant to a user's question for correctness and "
    "helpfulness. You are given a reference answer and the assistant's answer. First compare the two, and find and "
    "correct every mistake. Be as objective as you can. Then rate the assistant's answer from 1 to 10, in exactly "
    'this form: "[[rating]]", for example: "Rating: [[5]]".'
)


def rating_prompt(question: str, answer: str, reference: str | None = None) -> Prompt:
    """Asks for a score of one answer; with a reference answer, by comparison with it."""
    parts = [_block("Question", question)]
    if reference is not None:
        parts.append(_block("Reference answer", reference))
    parts.append(_block("The assistant's answer", answer))
    return ask_judge(RATE if reference is None else RATE_BY_REFERENCE, "\n\n".join(parts))


# A choice between two


COMPARE = (
    "You are an impartial judge. Two AI assistants, A and B, have answered a user's question. Decide which of them "
    "follows the user's instructions and answers the question better. Consider how helpful, relevant, accurate, deep, "
    "creative and detailed the answers are. The order in which they are shown, their lengths and the assistants' "
    "names must not influence you. First compare the two in short, as objectively as you can. Then give your verdict "
    'in exactly this form: "[[A]]" if assistant A is better, "[[B]]" if assistant B is better, "[[C]]" for a tie.'
)


def comparison_prompts(question: str, answer: str, other: str, reference: str | None = None) -> tuple[Prompt, Prompt]:
    """Asks which of two answers is better: `answer` as A and `other` as B, and the other way round."""
    before = [_block("Question", question)]
    if reference is not None:
        before.append(_block("Reference answer", reference))
    first, second = (
        ask_judge(COMPARE, "\n\n".join([*before, _block("Assistant A's answer", a), _block("Assistant B's answer", b)]))
        for a, b in ((answer, other), (other, answer))
    )
    return first, second


def comparison_scores(judgements: Sequence[Output], *, consistent: bool = True) -> dict[str, float]:
    """What both orders of `comparison_prompts` say about `answer`.

    Args:
        consistent: A win counts only if it is won in both orders, otherwise it is a tie (the paper's conservative
            way); False: the mean of the two.

    Returns:
        "win_rate": 1 for a win, 0 for a loss, 0.5 for a tie. "wins", "ties", "losses": 0 or 1 (or a half).
        "position_bias": Whether the same place was chosen in both orders; "first_place": how often A was, of the two,
        a tie counts half. "unread": The share of the two judgements in which there is no choice; it counts as a tie.
    """
    worth = {"A": 1.0, "B": 0.0, "tie": 0.5, None: 0.5}
    choices = [read_choice(one.text) for one in judgements]
    first, second = worth[choices[0]], 1 - worth[choices[1]]
    if consistent:
        value = first if first == second else 0.5
        wins, losses = float(value == 1), float(value == 0)
    else:
        value = (first + second) / 2
        wins, losses = ((first == 1) + (second == 1)) / 2, ((first == 0) + (second == 0)) / 2
    return {
        "win_rate": value,
        "wins": wins,
        "ties": 1 - wins - losses,
        "losses": losses,
        "position_bias": float(choices[0] == choices[1] and choices[0] in ("A", "B")),
        "first_place": sum(worth[one] for one in choices) / 2,
        "unread": sum(one is None for one in choices) / 2,
    }


def conversation(turns: Sequence[str], answers: Sequence[str]) -> str:
    """Turns of a user and an assistant as one text, for a judge."""
    return "\n\n".join(
        f"{_block('User', turn)}\n\n{_block('Assistant', answer)}" for turn, answer in zip(turns, answers, strict=True)
    )


def _block(title: str, text: str) -> str:
    return f"[{title}]\n{text.strip()}\n[End of {title[0].lower()}{title[1:]}]"
