"""TriviaQA without documents (Joshi et al., 2017). Data: mandarjoshi/trivia_qa, or the original unfiltered json."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from puyulm.eval.benchmark import Benchmark, Generation, Question, Record, Verdict
from puyulm.eval.extract.answers import contains, exact_match, normalise_trivia, short_answer
from puyulm.eval.model import Output
from puyulm.eval.source import Dataset


def read(record: Record, subset: str, number: int) -> Question:
    """Of the hub (answer with value and aliases), original (capitalised), or a plain list of answers."""
    text = str(record["question"] if "question" in record else record["Question"]).strip()
    answer = record["answer"] if "answer" in record else record["Answer"]
    if isinstance(answer, list):
        aliases = answer
    else:
        value = answer["value"] if "value" in answer else answer["Value"]
        aliases = [value, *(answer["aliases"] if "aliases" in answer else answer["Aliases"])]
    target = [one for one in dict.fromkeys(map(str, aliases)) if one.strip()]
    if not target:
        raise ValueError("it has no answer")
    return Question(str(record.get("question_id") or record.get("QuestionId") or number), text, target)


def verdict(question: Question, outputs: Sequence[Output]) -> Verdict:
    """Any alias, after the official normalisation."""
    answer = short_answer(outputs[-1].text)
    return Verdict(
        {
            "exact_match": float(exact_match(answer, question.target, normalise_trivia)),
            "contains": float(contains(answer, question.target, normalise_trivia)),
        },
        answer or None,
    )


CHAT = Generation(
    header=lambda question: (
        "Answer these questions, and keep the answers as short as possible: a name, a date, a number."
    ),
    prompt=lambda question: f"Q: {question.text}",
    solution=lambda question: f"A: {question.target[0]}",
    verdict=verdict,
    max_new_tokens=64,
)
PLAIN = replace(
    CHAT, header=None, prompt=lambda question: f"Question: {question.text}\nAnswer:",
    solution=lambda question: f" {question.target[0]}", chat=False, stop=("\n",), max_new_tokens=32,
)  # fmt: skip

BENCHMARK = Benchmark(
    name="triviaqa",
    title="TriviaQA",
    dimension="knowledge",
    source=Dataset(
        hub="mandarjoshi/trivia_qa",
        config="rc.nocontext",
        splits={"test": "validation", "train": "train"},
        files={
            "test": ["triviaqa-unfiltered/unfiltered-web-dev.json", "unfiltered-web-dev.json",
                     "triviaqa-validation.jsonl"],
            "train": ["triviaqa-unfiltered/unfiltered-web-train.json", "unfiltered-web-train.json",
                      "triviaqa-train.jsonl"],
        },
        page="https://nlp.cs.washington.edu/triviaqa/",
    ),
    read=read,
    examples="train",
    metrics=("exact_match", "contains"),
    modes={"chat": CHAT, "plain": PLAIN},
    follows=(
        "exact match with any alias, as the report has it and lm-evaluation-harness; 'contains' is what today's "
        "OpenCompass counts: an alias stands in the answer"
    ),
)  # fmt: skip
