"""HellaSwag: which of four endings goes on (Zellers et al., 2019). Data: Rowan/hellaswag, or the original jsonl.

The test split's answers are not published: validation rows are asked.
"""

from __future__ import annotations

import re

from puyulm.eval.benchmark import Benchmark, Generation, Likelihood, Question, Record
from puyulm.eval.choices import direct_verdict, known_letter, lettered, right_choice
from puyulm.eval.source import Dataset


def read(record: Record, subset: str, number: int) -> Question:
    """The activity and the context are what goes before; the hub has the label as text, the original as a number."""
    context = f"{record['ctx_a']} {record['ctx_b'].capitalize()}"
    choices = tuple(_cleaned(ending) for ending in record["endings"])
    target = known_letter(record["label"], choices)
    return Question(str(number), _cleaned(f"{record['activity_label']}: {context}"), target, "", choices)


def _cleaned(text: str) -> str:
    """Without WikiHow's marks ("[header]", "[step]"); a title ends a sentence. Single spaces are made of pairs."""
    return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")


BENCHMARK = Benchmark(
    name="hellaswag",
    title="HellaSwag",
    dimension="reasoning",
    source=Dataset(
        hub="Rowan/hellaswag",
        splits={"test": "validation", "train": "train"},
        files={"test": ["hellaswag_val.jsonl"], "train": ["hellaswag_train.jsonl"]},
        page="https://github.com/rowanz/hellaswag",
    ),
    read=read,
    examples="train",
    metrics=("accuracy", "unnormalised", "strict"),
    modes={
        "likelihood": Likelihood(
            context=lambda question: f"{question.text} ",
            answers=lambda question: question.choices,
            right=right_choice,
            by="characters",
            others={"unnormalised": "sum"},
        ),
        "chat": Generation(
            prompt=lambda question: (
                f"{question.text}\nQuestion: Which ending makes the most sense?\n{lettered(question.choices)}\n"
                "You may choose from 'A', 'B', 'C', 'D'.\nAnswer:"
            ),
            solution=lambda question: f" {question.target}",
            verdict=direct_verdict,
            max_new_tokens=256,
        ),
    },
    follows=(
        "likelihood of lm-evaluation-harness: 'accuracy' is its acc_norm, the mean over characters, 'unnormalised' its "
        "acc; OpenCompass takes the mean loss over context and ending. chat: OpenCompass"
    ),
)
