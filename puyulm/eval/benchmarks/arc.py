"""ARC: school science, easy and challenge sets (Clark et al., 2018). Data: allenai/ai2_arc, or the original jsonl."""

from __future__ import annotations

from puyulm.eval.benchmark import Benchmark, Generation, Likelihood, Question, Record
from puyulm.eval.choices import LETTERS, direct_verdict, lettered, right_choice
from puyulm.eval.source import Dataset


def read(record: Record, subset: str, number: int) -> Question:
    """Of the hub (choices as lists of texts and labels) or original (question with stem and choices).

    Choices are labelled by letters or by numbers; here all have letters in their order.
    """
    question = record["question"]
    if isinstance(question, str):
        labels, texts, stem = record["choices"]["label"], record["choices"]["text"], question
    else:
        labels = [choice["label"] for choice in question["choices"]]
        texts, stem = [choice["text"] for choice in question["choices"]], question["stem"]
    target = LETTERS[list(labels).index(record["answerKey"])]
    return Question(record["id"], stem, target, "", tuple(texts))


LIKELIHOOD = Likelihood(
    context=lambda question: f"Question: {question.text}\nAnswer: ",
    answers=lambda question: question.choices,
    right=right_choice,
    others={"normalised": "characters"},
)
CHAT = Generation(
    prompt=lambda question: f"Question: {question.text}\n{lettered(question.choices)}\nAnswer:",
    solution=lambda question: f" {question.target}",
    verdict=direct_verdict,
    max_new_tokens=256,
)


def _benchmark(name: str, title: str, config: str) -> Benchmark:
    return Benchmark(
        name=name,
        title=title,
        dimension="reasoning",
        source=Dataset(
            hub="allenai/ai2_arc",
            config=config,
            splits={"test": "test", "train": "train", "dev": "validation"},
            files={
                role: [f"{config}-{split}.jsonl", f"{config}/{config}-{split}.jsonl"]
                for role, split in (("test", "Test"), ("train", "Train"), ("dev", "Dev"))
            },
            page="https://allenai.org/data/arc",
            folder="arc",
        ),
        read=read,
        examples="train",
        metrics=("accuracy", "normalised", "strict"),
        modes={"likelihood": LIKELIHOOD, "chat": CHAT},
        follows=(
            "likelihood of lm-evaluation-harness: 'normalised' is its acc_norm, the mean over characters; OpenCompass "
            "takes the mean loss over question and answer, and the development set. chat: OpenCompass"
        ),
    )


BENCHMARKS = (
    _benchmark("arc_challenge", "ARC-Challenge", "ARC-Challenge"),
    _benchmark("arc_easy", "ARC-Easy", "ARC-Easy"),
)
