"""LongBench v2: 503 multiple-choice questions on texts of 8K to 2M words (Bai et al., 2025). Data: THUDM/LongBench-v2.

Option: `max_length`, the longest prompt in tokens; longer ones lose their middle.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from puyulm.eval.benchmark import Benchmark, Generation, Question, Record, Verdict
from puyulm.eval.longtext.truncate import cut_middle, longest_prompt
from puyulm.eval.model import Output
from puyulm.eval.source import Dataset, Made, SourceContext

MAX_LENGTH = 120_000  # LongBench v2's own, for models of 128K
LETTERS = "ABCD"
LENGTHS = ("short", "medium", "long")
_ANSWERS = (
    re.compile(r"The correct answer is \(([A-D])\)"),
    re.compile(r"The correct answer is ([A-D])\b"),
)
_LENIENT = re.compile(r"(?:answer is|answer:|答案是|答案：)\s*[(（\[]?([A-D])\b", re.IGNORECASE)

_DATASET = Dataset(
    hub="THUDM/LongBench-v2",
    splits={"test": "train"},
    files={"test": ["data.json", "longbench_v2.json"]},
    page="https://huggingface.co/datasets/THUDM/LongBench-v2/resolve/main/data.json",
)
_PROMPT = (
    "Read the following text and answer the question below it.\n\n<text>\n{text}\n</text>\n\nWhat is the correct "
    'answer to this question: {question}\nChoices:\n{choices}\n\nFormat your response as follows: "The correct answer '
    'is (insert answer here)".'
)


def make(subset: str, context: SourceContext) -> Iterator[dict[str, Any]]:
    """The published rows, with prompts that fit."""
    limit = longest_prompt(context, "longbench_v2", MAX_LENGTH)
    for row in _DATASET.records("longbench_v2", subset, "test", context):
        texts = {name: row.get(name) for name in ("context", "question", *(f"choice_{one}" for one in LETTERS))}
        if all(isinstance(text, str) for text in texts.values()):
            choices = "\n".join(f"({one}) {str(texts[f'choice_{one}']).strip()}" for one in LETTERS)
            prompt = _PROMPT.format(
                text=str(texts["context"]).strip(), question=str(texts["question"]).strip(), choices=choices
            )
            row = {**row, "prompt": cut_middle(prompt, limit, context)}
        yield dict(row)


def read(record: Record, subset: str, number: int) -> Question:
    """A row: _id, domain, sub_domain, difficulty, length, question, choice_A..D, answer, context. Its subset is the
    length."""
    if "prompt" not in record:
        raise ValueError("context, question and choices are not all there as texts")
    if record["answer"] not in tuple(LETTERS) or record["length"] not in LENGTHS:
        raise ValueError(f"an answer '{record['answer']}' or a length '{record['length']}'")
    return Question(
        str(record.get("_id") or number), record["prompt"], record["answer"], record["length"],
        tuple(record[f"choice_{one}"] for one in LETTERS),
        extra={name: record.get(name) for name in ("difficulty", "domain", "sub_domain")},
    )  # fmt: skip


def verdict(question: Question, outputs: Sequence[Output]) -> Verdict:
    """The letter in the asked-for sentence. "lenient" also takes other ways of saying it."""
    text = outputs[-1].text.replace("*", "")
    found = next((match[1] for rule in _ANSWERS if (match := rule.search(text))), None)
    others = _LENIENT.findall(text)
    lenient = found or (
        others[-1].upper() if others else text.strip(" ().\n") if len(text.strip(" ().\n")) == 1 else None
    )
    right = question.target
    return Verdict({"accuracy": float(found == right), "lenient": float(lenient == right)}, found or lenient)


CHAT = Generation(
    prompt=lambda question: question.text,
    solution=lambda question: f"The correct answer is ({question.target})",
    verdict=verdict,
    max_new_tokens=128,
)

BENCHMARK = Benchmark(
    name="longbench_v2",
    title="LongBench v2",
    dimension="long context",
    source=Made(make, data="THUDM/LongBench-v2"),
    read=read,
    modes={"chat": CHAT, "thinking": replace(CHAT, max_new_tokens=8192), "plain": replace(CHAT, chat=False)},
    metrics=("accuracy", "lenient"),
    keep=("difficulty", "domain"),
    follows="LongBench v2's own script without chain of thought: its extraction rule, the mean of all rows; greedy "
    "instead of its temperature of 0.1",
)
