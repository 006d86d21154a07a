"""DROP: reading with arithmetic (Dua et al., 2019). Data: EleutherAI/drop, original json, or simple-evals' jsonl."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from puyulm.eval.benchmark import Benchmark, Generation, Question, Record, Verdict
from puyulm.eval.extract.answers import answer_line, drop_scores, overlaps, short_answer
from puyulm.eval.model import Output
from puyulm.eval.source import Dataset


def unfold(record: Record) -> Iterable[Mapping[str, Any]]:
    """An original record is a passage with its questions."""
    if "qa_pairs" not in record:
        return (record,)
    return [{"passage": record["passage"], **pair} for pair in record["qa_pairs"]]


def read(record: Record, subset: str, number: int) -> Question | None:
    """Of the hub (validated answers as columns), original (as rows), or simple-evals (context, ref_text)."""
    if "ref_text" in record:
        text = record["context"].strip().removesuffix("Answer:").strip()
        return Question(str(number), text, [[one] for one in record["ref_text"].split("|")])
    validated = record.get("validated_answers") or []
    if isinstance(validated, Mapping):
        validated = [dict(zip(validated, values, strict=True)) for values in zip(*validated.values(), strict=True)]
    answers = [_spans(one) for one in [record["answer"], *validated]]
    target = [list(spans) for spans in dict.fromkeys(answers) if any(span.strip() for span in spans)]
    if not target:
        return None
    text = f"Passage: {record['passage'].strip()}\nQuestion: {record['question'].strip()}"
    return Question(str(record.get("query_id", number)), text, target)


def _spans(answer: Mapping[str, Any]) -> tuple[str, ...]:
    if str(answer["number"]).strip():
        return (str(answer["number"]).strip(),)
    if answer["spans"]:
        return tuple(answer["spans"])
    date = answer["date"]
    return (" ".join(date.get(part) or "" for part in ("day", "month", "year")).strip(),)


def verdict(question: Question, outputs: Sequence[Output]) -> Verdict:
    """The line "Answer: ...", or else the answer's last line (of plain prompts, the first)."""
    text = outputs[-1].text.strip()
    lines = [line for line in text.split("\n") if line.strip()]
    answer = answer_line(text) or (short_answer(lines[-1]) if lines else "")
    return _verdict(question, answer)


def plain_verdict(question: Question, outputs: Sequence[Output]) -> Verdict:
    """The first line."""
    return _verdict(question, short_answer(outputs[-1].text))


def _verdict(question: Question, answer: str) -> Verdict:
    """`accuracy`: one text contains the other; `em` and `f1`: official."""
    flat = [span for spans in question.target for span in spans if span.strip()]
    exact, f1 = drop_scores(answer, question.target)
    contained = float(any(overlaps(answer, [one]) for one in flat))
    return Verdict({"accuracy": contained, "f1": f1, "em": exact}, answer or None)


def _header(question: Question) -> str:
    return "You will be asked to read a passage and answer a question."


CHAT = Generation(
    header=_header,
    prompt=lambda question: (
        f"{question.text}\n\nThink step by step, then write a line of the form "
        '"Answer: $ANSWER" at the end of your response.'
    ),
    solution=lambda question: f"Answer: {', '.join(question.target[0])}",
    verdict=verdict,
    max_new_tokens=1024,
)

BENCHMARK = Benchmark(
    name="drop",
    title="DROP",
    dimension="reasoning",
    source=Dataset(
        hub="EleutherAI/drop",
        splits={"test": "validation", "train": "train"},
        files={
            "test": ["drop_dataset_dev.json", "drop_dataset/drop_dataset_dev.json", "dev.jsonl"],
            "train": ["drop_dataset_train.json", "drop_dataset/drop_dataset_train.json", "train.jsonl"],
        },
        unfold=unfold,
        page="https://allenai.org/data/drop",
    ),
    read=read,
    examples="train",
    metrics=("accuracy", "f1", "em"),
    modes={
        "chat": CHAT,
        "plain": replace(
            CHAT,
            prompt=lambda question: f"{question.text}\nAnswer:",
            solution=lambda question: f" {', '.join(question.target[0])}",
            verdict=plain_verdict,
            chat=False,
            stop=("\n", "Passage:"),
            max_new_tokens=64,
        ),
    },
    follows=(
        "simple-evals and OpenCompass: 'accuracy' is that an answer stands in the model's or the reverse; f1 and em "
        "are the official scores, which lm-evaluation-harness shows. Examples are the first of the training set"
    ),
)
