"""PIQA: which of two ways reaches a goal (Bisk et al., 2020). Data: baber/piqa (a copy of ybisk/piqa), or the original.

The original keeps answers in a file of their own (valid-labels.lst): jsonl rows need them as a field "label".
"""

from __future__ import annotations

from puyulm.eval.benchmark import Benchmark, Generation, Likelihood, Question, Record
from puyulm.eval.choices import direct_verdict, known_letter, lettered, right_choice
from puyulm.eval.source import Dataset


def read(record: Record, subset: str, number: int) -> Question:
    choices = (record["sol1"], record["sol2"])
    return Question(str(number), record["goal"], known_letter(record["label"], choices), "", choices)


BENCHMARK = Benchmark(
    name="piqa",
    title="PIQA",
    dimension="reasoning",
    source=Dataset(
        hub="baber/piqa",
        splits={"test": "validation", "train": "train"},
        files={"test": ["valid.jsonl"], "train": ["train.jsonl"]},
        page="https://yonatanbisk.com/piqa",
    ),
    read=read,
    examples="train",
    metrics=("accuracy", "normalised", "strict"),
    modes={
        "likelihood": Likelihood(
            context=lambda question: f"Question: {question.text}\nAnswer: ",
            answers=lambda question: question.choices,
            right=right_choice,
            others={"normalised": "characters"},
        ),
        "chat": Generation(
            prompt=lambda question: (
                f"{question.text}\n{lettered(question.choices)}\nWhich way is right? Answer with A or B.\nAnswer:"
            ),
            solution=lambda question: f" {question.target}",
            verdict=direct_verdict,
            max_new_tokens=256,
        ),
    },
    follows=(
        "likelihood of lm-evaluation-harness: 'normalised' is its acc_norm, the mean over characters; OpenCompass "
        "writes goal and way in one line and takes the mean loss of both. chat: our own words, as OpenCompass asks"
    ),
)
