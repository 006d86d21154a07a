"""MMLU: 57 subjects, four choices (Hendrycks et al., 2021). Data: cais/mmlu, or the csv files of hendrycks/test."""

from __future__ import annotations

from puyulm.eval.benchmark import Benchmark, Likelihood, Question, Record
from puyulm.eval.source import Dataset

LETTERS = "ABCD"
STEM, SOCIAL, HUMANITIES, OTHER = "STEM", "social sciences", "humanities", "other"

SUBJECTS = {
    "abstract_algebra": STEM,
    "anatomy": STEM,
    "philosophy": HUMANITIES,
}  # to be completed


def read(record: Record, subset: str, number: int) -> Question:
    """Of the hub (question, choices, answer as a number) or csv (question, the choices, letter or number)."""
    choices = tuple(record["choices"] if "choices" in record else list(record.values())[-5:-1])
    answer = str(record["answer"]).strip()
    target = LETTERS[int(answer)] if answer.isdigit() else answer
    return Question(f"{subset}/{number}", record["question"].strip(), target, subset, choices)


def _header(question: Question) -> str:
    subject = question.subset.replace("_", " ")
    return f"The following are multiple choice questions (with answers) about {subject}."


def _ask(question: Question) -> str:
    options = "".join(f"{letter}. {text}\n" for letter, text in zip(LETTERS, question.choices, strict=True))
    return f"{question.text}\n{options}Answer:"


BENCHMARK = Benchmark(
    name="mmlu",
    title="MMLU",
    dimension="exam",
    source=Dataset(
        hub="cais/mmlu",
        config="{subset}",
        splits={"test": "test", "dev": "dev"},
        files={"test": ["test/{subset}_test.csv"], "dev": ["dev/{subset}_dev.csv"]},
        columns=("question", *LETTERS, "answer"),
        page="https://github.com/hendrycks/test",
    ),
    read=read,
    subsets=SUBJECTS,
    examples="dev",
    average="subsets",
    modes={
        "likelihood": Likelihood(
            header=_header,
            context=_ask,
            answers=lambda question: [f" {letter}" for letter in LETTERS],
            right=lambda question: LETTERS.index(question.target),
        ),
    },
    follows="prompt and rule of lm-evaluation-harness; the mean of subjects as OpenCompass takes it",
)
