"""GSM8K: school mathematics in words (Cobbe et al., 2021). Data: openai/gsm8k, or the original jsonl files."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from puyulm.eval.benchmark import Benchmark, Generation, Question, Record, Verdict
from puyulm.eval.extract.numbers import last_number
from puyulm.eval.model import Output
from puyulm.eval.source import Dataset

_CALCULATOR = re.compile(r"<<[^>]*>>")  # annotations of the original solutions


def read(record: Record, subset: str, number: int) -> Question:
    solution, target = record["answer"].split("####")
    return Question(
        str(number), record["question"].strip(), target.strip().replace(",", ""),
        extra={"solution": _CALCULATOR.sub("", solution).strip()},
    )  # fmt: skip


def verdict(question: Question, outputs: Sequence[Output]) -> Verdict:
    """The last number is the answer, as a number."""
    answer = last_number(outputs[-1].text)
    return Verdict({"accuracy": float(answer is not None and float(answer) == float(question.target))}, answer)


CHAT = Generation(
    prompt=lambda question: f"Question: {question.text}\nLet's think step by step\nAnswer:",
    solution=lambda question: f"{question.extra['solution']}\nThe answer is {question.target}",
    verdict=verdict,
    max_new_tokens=512,
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
    modes={"chat": CHAT, "plain": replace(CHAT, chat=False, stop=("Question",))},
    follows="OpenCompass: four examples as turns, the last number counts",
)
