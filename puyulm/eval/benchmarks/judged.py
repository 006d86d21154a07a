"""Prompts of your own, judged by a model: each answer by itself, or against recorded answers of another model.

Data: questions.jsonl, a line each: `prompt`; optional `id`, `category`, `reference` (a right answer, for the judge),
and for comparisons `output` (what the other model answered).
"""

from __future__ import annotations

from collections.abc import Sequence

from puyulm.eval.benchmark import Benchmark, Generation, Judge, Question, Record, Verdict
from puyulm.eval.judging import comparison_prompts, comparison_scores, rating_prompt, read_rating
from puyulm.eval.model import Output, Prompt
from puyulm.eval.source import Dataset

FILE = Dataset(files={"test": ["questions.jsonl"]})


def read(record: Record, subset: str, number: int) -> Question:
    """The target is the reference answer; None: there is none."""
    for name in ("prompt", "reference", "output"):
        if name in record and record[name] is not None and not isinstance(record[name], str):
            raise ValueError(f"{name} must be a text")
    if not record["prompt"].strip():
        raise ValueError("an empty prompt")
    extra = {name: record[name] for name in ("category", "output") if record.get(name) is not None}
    return Question(str(record.get("id", number)), record["prompt"], record.get("reference"), extra=extra)


def read_pair(record: Record, subset: str, number: int) -> Question:
    """As `read`, with the other model's answer."""
    question = read(record, subset, number)
    if "output" not in question.extra:
        raise ValueError("no field 'output' with the other model's answer")
    return question


def ask_rating(question: Question, outputs: Sequence[Output]) -> Sequence[Prompt]:
    return [rating_prompt(question.text, outputs[-1].text, question.target)]


def rated(question: Question, outputs: Sequence[Output], judgements: Sequence[Output]) -> Verdict:
    """A score from 1 to 10; a judgement without one does not count."""
    rating = read_rating(judgements[0].text)
    if rating is None:
        return Verdict({"unread": 1.0}, note="the judge gave no rating")
    return Verdict({"score": rating, "unread": 0.0}, f"{rating:g}")


def ask_comparison(question: Question, outputs: Sequence[Output]) -> Sequence[Prompt]:
    return comparison_prompts(question.text, outputs[-1].text, question.extra["output"], question.target)


def consistent(question: Question, outputs: Sequence[Output], judgements: Sequence[Output]) -> Verdict:
    """A win counts if it is won in both orders."""
    return Verdict(comparison_scores(judgements))


def averaged(question: Question, outputs: Sequence[Output], judgements: Sequence[Output]) -> Verdict:
    """The mean of both orders."""
    return Verdict(comparison_scores(judgements, consistent=False))


def _chat(judge: Judge) -> Generation:
    return Generation(
        prompt=lambda question: question.text,
        solution=lambda question: question.target or "",
        judge=judge,
        max_new_tokens=2048,
    )


BENCHMARKS = (
    Benchmark(
        name="judged",
        title="Judged (1-10)",
        dimension="instruction",
        source=FILE,
        read=read,
        modes={"chat": _chat(Judge(prompts=ask_rating, verdict=rated))},
        metrics=("score", "unread"),
        percent=False,
        follows="single-answer grading of Zheng et al. (2023), by reference where there is one",
    ),
    Benchmark(
        name="compared",
        title="Compared",
        dimension="instruction",
        source=FILE,
        read=read_pair,
        modes={
            "chat": _chat(Judge(prompts=ask_comparison, verdict=consistent)),
            "averaged": _chat(Judge(prompts=ask_comparison, verdict=averaged)),
        },
        metrics=("win_rate", "wins", "ties", "losses", "position_bias", "first_place", "unread"),
        follows="pairwise comparison of Zheng et al. (2023) in both orders",
    ),
)
