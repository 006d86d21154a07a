"""AIME 2024 and 2025: 30 problems a year, answers from 0 to 999. Data: copies on the hub, or jsonl like them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from puyulm.eval.benchmark import Benchmark, Generation, Question, Record, Verdict
from puyulm.eval.benchmarks.math import BOXED
from puyulm.eval.extract.mathematics import final_answer, last_boxed
from puyulm.eval.extract.numbers import parse_number
from puyulm.eval.model import Output
from puyulm.eval.source import Dataset


def read(record: Record, subset: str, number: int) -> Question:
    """Copies call the fields problem, Problem, question or origin_prompt, and answer, Answer or gold_answer."""
    text = next((record[one] for one in ("problem", "Problem", "question", "origin_prompt") if one in record), None)
    answer = next((record[one] for one in ("answer", "Answer", "gold_answer") if one in record), None)
    if not text or answer is None:
        raise ValueError("it has no problem or no answer")
    target = int(str(answer).strip().removesuffix("^\\circ"))
    if not 0 <= target <= 999:
        raise ValueError(f"the answer {target} is not from 0 to 999")
    return Question(f"{subset}/{number}" if subset else str(number), text.strip(), target, subset)


def verdict(question: Question, outputs: Sequence[Output]) -> Verdict:
    """The boxed or named number, or else the last one. Strict: only a box counts."""
    answer, boxed = final_answer(outputs[-1].text), last_boxed(outputs[-1].text)
    return Verdict({"accuracy": _right(question, answer), "strict": _right(question, boxed)}, answer)


def _right(question: Question, answer: str | None) -> float:
    said = None if answer is None else parse_number(answer.split("=")[-1])
    return float(said is not None and said.value == question.target)


CHAT = Generation(
    prompt=lambda question: f"{question.text}\n{BOXED}",
    solution=lambda question: f"The answer is $\\boxed{{{question.target}}}$.",
    verdict=verdict,
    max_new_tokens=16_384,
)
_FOLLOWS = "OpenCompass's prompt; integers are compared as such. Scores move by 3 a problem: use repeats (avg@n)"

AIME24 = Benchmark(
    name="aime24",
    title="AIME 2024",
    dimension="mathematics",
    source=Dataset(
        hub="HuggingFaceH4/aime_2024",
        splits={"test": "train"},
        files={"test": ["test.jsonl", "aime.jsonl", "aime2024.jsonl"]},
        page="https://artofproblemsolving.com/wiki/index.php/AIME_Problems_and_Solutions",
    ),
    read=read,
    metrics=("accuracy", "strict"),
    modes={"chat": CHAT, "plain": replace(CHAT, chat=False, max_new_tokens=2048)},
    follows=_FOLLOWS,
)
AIME25 = replace(
    AIME24,
    name="aime25",
    title="AIME 2025",
    source=Dataset(
        hub="opencompass/AIME2025",
        config="AIME2025-{subset}",
        files={"test": ["aime2025-{subset}.jsonl", "AIME2025-{subset}.jsonl"]},
        page="https://artofproblemsolving.com/wiki/index.php/AIME_Problems_and_Solutions",
    ),
    subsets={"I": "", "II": ""},
)

BENCHMARKS = (AIME24, AIME25)
