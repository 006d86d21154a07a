"""WinoGrande: who or what the blank is (Sakaguchi et al., 2020). Data: winogrande, or the original jsonl.

Partial evaluation (Trinh and Le, 2018): with either option in the blank, how likely is the rest of the sentence? The
test split's answers are not published: validation rows are asked.
"""

from __future__ import annotations

from puyulm.eval.benchmark import Benchmark, Generation, Likelihood, Question, Record
from puyulm.eval.choices import direct_verdict, lettered
from puyulm.eval.source import Dataset


def read(record: Record, subset: str, number: int) -> Question:
    before, blank, after = record["sentence"].partition("_")
    if not blank:
        raise ValueError("the sentence has no blank")
    choices = (record["option1"], record["option2"])
    if str(record["answer"]) not in ("1", "2"):
        raise ValueError(f"the answer '{record['answer']}' is neither 1 nor 2")
    target = "AB"[int(record["answer"]) - 1]
    extra = {"before": before, "after": after.strip()}
    return Question(str(record.get("qID", number)), record["sentence"], target, "", choices, extra)


def _context(question: Question, choice: str) -> str:
    return f"{question.extra['before']}{choice} "


BENCHMARK = Benchmark(
    name="winogrande",
    title="WinoGrande",
    dimension="reasoning",
    source=Dataset(
        hub="allenai/winogrande",
        config="winogrande_xl",
        splits={"test": "validation", "train": "train"},
        files={
            "test": ["dev.jsonl", "winogrande_1.1/dev.jsonl"],
            "train": ["train_xl.jsonl", "winogrande_1.1/train_xl.jsonl"],
        },
        page="https://winogrande.allenai.org",
    ),
    read=read,
    examples="train",
    metrics=("accuracy", "strict"),
    modes={
        "likelihood": Likelihood(
            context=lambda question: question.text,
            contexts=lambda question: [_context(question, choice) for choice in question.choices],
            answers=lambda question: [question.extra["after"]] * 2,
            right=lambda question: "AB".index(question.target),
        ),
        "chat": Generation(
            prompt=lambda question: f"Question: {question.text}\n{lettered(question.choices)}\nAnswer:",
            solution=lambda question: f" {question.target}",
            verdict=direct_verdict,
            max_new_tokens=256,
        ),
    },
    follows="likelihood: lm-evaluation-harness and OpenCompass ('ll') are the same; chat: OpenCompass",
)
