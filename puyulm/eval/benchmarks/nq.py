"""Natural Questions, open (Kwiatkowski et al., 2019; Lee et al., 2019). Data: google-research-datasets/nq_open, or the
original jsonl."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from puyulm.eval.benchmark import Benchmark, Question, Record, Verdict
from puyulm.eval.benchmarks import triviaqa
from puyulm.eval.extract.answers import contains, exact_match, short_answer
from puyulm.eval.model import Output
from puyulm.eval.source import Dataset


def read(record: Record, subset: str, number: int) -> Question:
    """Both have the same fields: a question, without its mark, and the answers."""
    answers = record["answer"]
    target = [answers] if isinstance(answers, str) else [str(one) for one in answers]
    if not any(one.strip() for one in target):
        raise ValueError("it has no answer")
    return Question(str(number), record["question"].strip().removesuffix("?").strip() + "?", target)


def verdict(question: Question, outputs: Sequence[Output]) -> Verdict:
    """Any answer, after SQuAD's normalisation, which is NQ-open's."""
    answer = short_answer(outputs[-1].text)
    exact, contained = exact_match(answer, question.target), contains(answer, question.target)
    return Verdict({"exact_match": float(exact), "contains": float(contained)}, answer or None)


BENCHMARK = Benchmark(
    name="nq",
    title="NaturalQuestions",
    dimension="knowledge",
    source=Dataset(
        hub="google-research-datasets/nq_open",
        config="nq_open",
        splits={"test": "validation", "train": "train"},
        files={
            "test": ["NQ-open.dev.jsonl", "nq-open-validation.jsonl"],
            "train": ["NQ-open.train.jsonl", "nq-open-train.jsonl"],
        },
        page="https://github.com/google-research-datasets/natural-questions/tree/master/nq_open",
    ),
    read=read,
    examples="train",
    metrics=("exact_match", "contains"),
    modes={
        "chat": replace(triviaqa.CHAT, verdict=verdict),
        "plain": replace(triviaqa.PLAIN, verdict=verdict),
    },
    follows=(
        "exact match with any answer, as the report has it and lm-evaluation-harness; 'contains' is what today's "
        "OpenCompass counts: an answer stands in the model's"
    ),
)
