"""TheoremQA: questions that need a theorem (Chen et al., 2023). Data: TIGER-Lab/TheoremQA, or the original json."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import replace

from puyulm.eval import mathematics
from puyulm.eval.benchmark import Benchmark, Generation, Question, Record, Verdict
from puyulm.eval.extract.answers import after_answer_is
from puyulm.eval.extract.mathematics import final_answer, tidy
from puyulm.eval.model import Output
from puyulm.eval.source import Dataset

TOLERANCE = 0.04  # relative, of the official script
_INSTRUCTION = (
    "You are a mathematician, and answer the question below. Give the answer in your last sentence, as in "
    '"Therefore, the answer is ...". It can only be one of these:\n'
    "1. a number such as 0.1, without symbols and units;\n"
    "2. a list of numbers such as [2, 3, 4];\n"
    "3. True or False;\n"
    "4. an option: (a), (b), (c) or (d).\n"
)


def read(record: Record, subset: str, number: int) -> Question:
    """Both have the same fields; pictures are left out, their questions are asked all the same."""
    kind, answer = record["Answer_type"], record["Answer"]
    target: object = answer if isinstance(answer, str) else json.dumps(answer)
    if kind in ("integer", "float"):
        target = float(str(target))
    elif kind == "bool":
        target = {"true": True, "false": False}[str(target).lower()]
    elif kind.startswith("list"):
        target = [float(one) for one in re.findall(r"[-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?", str(target))]
    elif kind != "option":
        raise ValueError(f"unknown kind of answer '{kind}'")
    return Question(str(record.get("id", number)), record["Question"].strip(), target, extra={"kind": kind})


def verdict(question: Question, outputs: Sequence[Output]) -> Verdict:
    """Integers by rounding, other numbers within 4 %, lists in any order (the official script)."""
    text = outputs[-1].text
    stated = after_answer_is(text)
    answer = stated or final_answer(text)
    scores = {"accuracy": _right(question, answer), "strict": _right(question, stated)}
    return Verdict(scores, answer)


def _right(question: Question, answer: str | None) -> float:
    kind, target = question.extra["kind"], question.target
    if not answer:
        return 0.0
    if kind == "bool":
        truths = {_TRUTH[one.lower()] for one in re.findall(r"\b(?:true|false|yes|no)\b", answer, re.IGNORECASE)}
        return float(truths == {target})
    if kind == "option":
        options = re.findall(r"\(([a-zA-Z])\)", answer) or re.findall(r"^\W*([a-zA-Z])\W*$", answer)
        return float(bool(options) and f"({options[0].lower()})" == str(target).lower())
    if kind.startswith("list"):
        parts = re.sub(r"\\(?:left|right)|[\[\](){}]|\\[{}]", "", tidy(answer)).split(",")
        said = [_number(part) for part in parts]
        if len(said) != len(target) or None in said:
            return 0.0
        pairs = zip(sorted(one for one in said if one is not None), sorted(target), strict=True)
        return float(all(_near(one, known, kind) for one, known in pairs))
    number = _number(answer)
    return float(number is not None and _near(number, target, kind))


_TRUTH = {"true": True, "yes": True, "false": False, "no": False}


def _number(text: str) -> float | None:
    """Its value; of an equation, what is right of the last sign. Words behind a number are units."""
    last = re.split(r"=|\\approx|≈", tidy(text))[-1].strip()
    value = mathematics.value(last)
    if value is None and (found := re.match(r"[-+]?[\d.,]*\d(?:[eE][-+]?\d+)?(?=\s)", last)):
        value = mathematics.value(found[0])
    return value


def _near(said: float, right: float, kind: str) -> bool:
    if "integer" in kind:
        return math.isfinite(said) and round(said) == right
    return abs(said - right) <= TOLERANCE * abs(right)


def _solution(question: Question) -> str:
    target, kind = question.target, question.extra["kind"]
    if isinstance(target, float):
        target = int(target) if kind == "integer" else target
    return f"Therefore, the answer is {target}."


CHAT = Generation(
    prompt=lambda question: f"{_INSTRUCTION}Question: {question.text}\nLet's think step by step.",
    solution=_solution,
    verdict=verdict,
    max_new_tokens=1024,
)

BENCHMARK = Benchmark(
    name="theoremqa",
    title="TheoremQA",
    dimension="mathematics",
    source=Dataset(
        hub="TIGER-Lab/TheoremQA",
        files={"test": ["theoremqa_test.json", "test.json", "test.csv"]},
        page="https://github.com/TIGER-AI-Lab/TheoremQA",
    ),
    read=read,
    metrics=("accuracy", "strict"),
    modes={"chat": CHAT, "plain": replace(CHAT, chat=False, stop=("Question:",), max_new_tokens=512)},
    needs=mathematics.require,
    follows="the official script's comparison; the prompt says what OpenCompass's first one says, in our words",
)
