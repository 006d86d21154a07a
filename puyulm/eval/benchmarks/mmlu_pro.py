"""MMLU-Pro: 14 categories, up to ten choices (Wang et al., 2024). Data: TIGER-Lab/MMLU-Pro, or its rows as json."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence

from puyulm.eval.benchmark import Benchmark, Generation, Question, Record, Verdict
from puyulm.eval.choices import LAST_LINE, LETTERS, last_line_verdict, lettered, letters_of
from puyulm.eval.extract.letters import last_letter, one_letter
from puyulm.eval.model import Output
from puyulm.eval.source import Dataset

CATEGORIES = (
    "biology", "business", "chemistry", "computer science", "economics", "engineering", "health", "history", "law",
    "math", "other", "philosophy", "physics", "psychology",
)  # fmt: skip
_START = "Let's think step by step."


def read(record: Record, subset: str, number: int) -> Question | None:
    """All categories lie in one file: rows of others are passed over."""
    if record["category"] != subset:
        if record["category"] not in CATEGORIES:
            raise ValueError(f"no category '{record['category']}'")
        return None
    choices = tuple(text.strip() for text in record["options"] if text != "N/A")
    target = record["answer"]
    if len(choices) > len(LETTERS) or target not in LETTERS[: len(choices)]:
        raise ValueError(f"the answer '{target}' is none of its {len(choices)} choices")
    thoughts = record.get("cot_content") or f"{_START} The answer is ({target})."
    solution = thoughts.removeprefix("A:").strip().removeprefix(_START).strip()
    return Question(
        str(record["question_id"]), record["question"].strip(), target, subset, choices, {"solution": solution}
    )


def official_letter(text: str) -> str | None:
    """The official extraction: "answer is (B)"; else "Answer: B"; None otherwise."""
    match = re.search(r"answer is \(?([A-J])\)?", text) or re.search(r".*[aA]nswer:\s*([A-J])", text)
    return None if match is None else match[1]


def verdict(question: Question, outputs: Sequence[Output]) -> Verdict:
    """Official: as above, else the last capital letter that stands alone, else a random choice.

    The random choice is drawn from the question's id, so that it is the same in every run.
    """
    text = outputs[-1].text
    strict = official_letter(text)
    answer = strict or last_letter(text)
    note = "" if strict else "the last letter"
    if answer is None:
        digest = int.from_bytes(hashlib.sha256(f"mmlu_pro:{question.id}".encode()).digest()[:8], "big")
        answer, note = LETTERS[digest % len(question.choices)], "drawn by chance"
    scores = {
        "accuracy": float(answer == question.target),
        "strict": float(strict == question.target),
        "lenient": float(one_letter(text, letters_of(question), question.choices) == question.target),
    }
    return Verdict(scores, answer, note)


def _header(question: Question) -> str:
    return (
        f"The following are multiple choice questions (with answers) about {question.subset}. Think step by step and "
        'then finish your answer with "the answer is (X)" where X is the correct letter choice.'
    )


def _ask(question: Question) -> str:
    return f"Question:\n{question.text}\nOptions:\n{lettered(question.choices)}\nAnswer: {_START}"


def _last_line(question: Question) -> str:
    task = LAST_LINE.format(letters=letters_of(question))
    return f"{task}\n\nQuestion:\n{question.text}\n\nOptions:\n{lettered(question.choices)}"


BENCHMARK = Benchmark(
    name="mmlu_pro",
    title="MMLU-Pro",
    dimension="exam",
    source=Dataset(
        hub="TIGER-Lab/MMLU-Pro",
        splits={"test": "test", "dev": "validation"},
        files={
            "test": ["mmlu_pro_test_data.json", "test.jsonl"],
            "dev": ["mmlu_pro_val_data.json", "validation.jsonl"],
        },
        page="https://github.com/TIGER-AI-Lab/MMLU-Pro",
    ),
    read=read,
    subsets=dict.fromkeys(CATEGORIES, ""),
    examples="dev",
    metrics=("accuracy", "strict", "lenient"),
    modes={
        "plain": Generation(
            prompt=_ask, solution=lambda question: f" {question.extra['solution']}", verdict=verdict, chat=False,
            header=_header, stop=("Question:",), max_new_tokens=2048,
        ),
        "chat": Generation(
            prompt=_ask, solution=lambda question: question.extra["solution"], verdict=verdict, header=_header,
            max_new_tokens=2048,
        ),
        "cot": Generation(
            prompt=_last_line, solution=lambda question: f"ANSWER: {question.target}", verdict=last_line_verdict,
            max_new_tokens=2048,
        ),
    },
    follows=(
        "plain and chat: the official prompt and extraction with its random last resort, drawn from the question's id; "
        "lm-evaluation-harness has the first pattern only. cot: simple-evals, as OpenCompass has it for chat models. "
        "The mean of all rows, as published (OpenCompass: of categories)"
    ),
)  # fmt: skip
