"""What benchmarks of lettered choices share."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from puyulm.eval.benchmark import Likelihood, Question, Verdict
from puyulm.eval.extract.letters import LETTERS, bare_letter, marked_letter, one_letter
from puyulm.eval.model import Output

LAST_LINE = (
    "Answer the following multiple choice question. The last line of your response should be of the following format: "
    "'ANSWER: $LETTER' (without quotes) where LETTER is one of {letters}. Think step by step before answering."
)  # the form of simple-evals; $LETTER is literal


def lettered(choices: Sequence[str], form: str = "{letter}. {text}") -> str:
    """Choices with their letters, a line each."""
    return "\n".join(form.format(letter=letter, text=text) for letter, text in zip(LETTERS, choices, strict=False))


def letters_of(question: Question) -> str:
    """The letters of a question's choices."""
    return LETTERS[: len(question.choices)]


def known_letter(answer: object, choices: Sequence[str]) -> str:
    """A published answer as a letter: a letter already, or the number of the choice from 0 on.

    Raises:
        ValueError: It is neither.
    """
    text = str(answer).strip()
    letter = LETTERS[int(text)] if text.isdecimal() and int(text) < len(LETTERS) else text
    if len(letter) != 1 or letter not in LETTERS[: len(choices)]:
        raise ValueError(f"the answer '{text}' is none of its {len(choices)} choices")
    return letter


def right_choice(question: Question) -> int:
    """Index of the target, a letter."""
    return LETTERS.index(question.target)


def by_letter(header: Callable[[Question], str], context: Callable[[Question], str]) -> Likelihood:
    """The letter that is most likely after the question; the context ends where it begins, with a space or without."""
    return Likelihood(header=header, context=context, answers=letters_of, right=right_choice)


def direct_verdict(question: Question, outputs: Sequence[Output]) -> Verdict:
    """Of an answer that should be a letter, alone, after "Answer:" or after "answer is": as a reader takes it
    ("accuracy"), and exactly so ("strict")."""
    text, letters = outputs[-1].text, letters_of(question)
    marked = marked_letter(text, letters) or marked_letter(text, letters, in_words=True)
    return _verdict(question, text, bare_letter(text, letters) or marked)


def last_line_verdict(question: Question, outputs: Sequence[Output]) -> Verdict:
    """Of an answer that should end with "ANSWER: B": exactly so ("strict"), and as a reader takes it ("accuracy")."""
    text = outputs[-1].text
    return _verdict(question, text, marked_letter(text, letters_of(question)))


def _verdict(question: Question, text: str, strict: str | None) -> Verdict:
    lenient = strict or one_letter(text, letters_of(question), question.choices)
    scores = {"accuracy": float(lenient == question.target), "strict": float(strict == question.target)}
    return Verdict(scores, lenient, "" if strict is not None else "not in the form that was asked for")
