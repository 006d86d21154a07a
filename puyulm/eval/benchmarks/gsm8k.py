"""GSM8K: school mathematics in words (Cobbe et al., 2021). Data: openai/gsm8k, or the original jsonl files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from puyulm.eval.benchmark import Benchmark, Generation, Question, Record, Verdict
from puyulm.eval.extract.numbers import flexible_number, last_number, marked_number, parse_number
from puyulm.eval.model import Output
from puyulm.eval.source import Dataset

_CALCULATOR = re.compile(r"<<[^>]*>>")  # annotations of the original solutions
_STATED = re.compile(r"[Tt]he answer is:? \$?(-?[0-9.,]*[0-9])")
# The four training questions of OpenCompass's prompt, by how they begin.
_OPENINGS = ("Angelo and Melanie want to", "Mark's basketball team scores", "Bella has two times as many marbles",
             "A group of 4 fruit baskets")  # fmt: skip


def read(record: Record, subset: str, number: int) -> Question:
    """Both have the same fields; the answer ends with `#### ` and the number."""
    solution, target = record["answer"].split("####")
    target = target.strip().replace(",", "")
    if parse_number(target, units=False) is None:
        raise ValueError(f"the answer '{target}' is no number")
    return Question(
        str(number), record["question"].strip(), target,
        extra={"solution": _CALCULATOR.sub("", solution).strip(), "published": record["answer"].strip()},
    )  # fmt: skip


def pick(known: Sequence[Question], question: Question, count: int) -> Sequence[Question]:
    """Four are OpenCompass's, where they are there; otherwise the first of the training set."""
    if count == len(_OPENINGS):
        chosen = [one for one in known if one.text.startswith(_OPENINGS)]
        if len(chosen) == count:
            return sorted(chosen, key=lambda one: [one.text.startswith(opening) for opening in _OPENINGS], reverse=True)
    return known[:count]


def verdict(question: Question, outputs: Sequence[Output]) -> Verdict:
    """The last number, as a number. Strict: the one after "the answer is"."""
    text = outputs[-1].text.split("Question:", 1)[0]
    found, stated = last_number(text), _STATED.search(text)
    strict = stated[1].replace(",", "") if stated else None
    return Verdict({"accuracy": _right(question, found), "strict": _right(question, strict)}, found)


def _right(question: Question, answer: str | None) -> float:
    number = None if answer is None else parse_number(answer, units=False)
    target = parse_number(question.target, units=False)
    return float(number is not None and target is not None and number.value == target.value)


def harness_verdict(question: Question, outputs: Sequence[Output]) -> Verdict:
    """flexible-extract and strict-match; digit by digit, so that 18.00 is not 18."""
    found, strict = flexible_number(outputs[-1].text), marked_number(outputs[-1].text)
    return Verdict({"accuracy": float(found == question.target), "strict": float(strict == question.target)}, found)


def marked_verdict(question: Question, outputs: Sequence[Output]) -> Verdict:
    """Only the number after #### counts."""
    found = marked_number(outputs[-1].text)
    right = float(found == question.target)
    return Verdict({"accuracy": right, "strict": right}, found)


CHAT = Generation(
    prompt=lambda question: f"Question: {question.text}\nLet's think step by step\nAnswer:",
    solution=lambda question: f"{question.extra['solution']}\nThe answer is {question.target}",
    verdict=verdict,
    max_new_tokens=512,
)
HARNESS = Generation(
    prompt=lambda question: f"Question: {question.text}\nAnswer:",
    solution=lambda question: f" {question.extra['published']}",
    verdict=harness_verdict,
    chat=False,
    stop=("Question:",),
    max_new_tokens=256,
)

BENCHMARK = Benchmark(
    name="gsm8k",
    title="GSM8K",
    dimension="mathematics",
    source=Dataset(
        hub="openai/gsm8k",
        config="main",
        splits={"test": "test", "train": "train"},
        files={"test": ["test.jsonl", "gsm8k_test.jsonl"], "train": ["train.jsonl", "gsm8k_train.jsonl"]},
        page="https://github.com/openai/grade-school-math",
    ),
    read=read,
    examples="train",
    pick=pick,
    metrics=("accuracy", "strict"),
    modes={
        "chat": CHAT,
        "plain": replace(CHAT, chat=False, stop=("Question",)),
        "lm-eval": HARNESS,
        "lighteval": replace(HARNESS, chat=True, verdict=marked_verdict, stop=("Question",)),
    },
    follows=(
        "chat and plain: OpenCompass, its four questions with the data set's solutions, the last number counts "
        "('strict': the one after \"the answer is\"). lm-eval: lm-evaluation-harness, flexible-extract ('strict': "
        "strict-match), with the first examples instead of random ones. lighteval: the same as turns of a chat, only "
        "the number after #### counts (as SmolLM2's scores were taken)"
    ),
)
