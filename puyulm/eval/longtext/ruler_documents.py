"""RULER's questions on documents: SQuAD and HotpotQA among other paragraphs (Hsieh et al., 2024)."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from puyulm.errors import DataError
from puyulm.eval.longtext.fill import Count, fill
from puyulm.eval.longtext.ruler_niah import RulerSample
from puyulm.eval.source import read_records

INSTRUCTION = (
    "Answer the question based on the given documents. Only give me the answer and do not output any other words."
)


@dataclass(frozen=True)
class Asked:
    """A question of SQuAD or HotpotQA.

    Attributes:
        documents: Places of those that hold the answer.
    """

    text: str
    answers: tuple[str, ...]
    documents: tuple[int, ...]


@dataclass(frozen=True)
class Library:
    """Documents and questions about them."""

    documents: tuple[str, ...]
    questions: tuple[Asked, ...]


def read_squad(file: Path) -> Library:
    """SQuAD 2.0's json: every paragraph is a document; questions without an answer are left out.

    Raises:
        DataError: The file is damaged.
    """
    places: dict[str, int] = {}
    questions: list[Asked] = []
    for article in read_records(file):
        with _as_published(file):
            for paragraph in article["paragraphs"]:
                place = places.setdefault(paragraph["context"], len(places))
                for one in paragraph["qas"]:
                    answers = tuple(dict.fromkeys(answer["text"] for answer in one["answers"]))
                    if answers and not one.get("is_impossible", False):
                        questions.append(Asked(one["question"], answers, (place,)))
    return _library(file, places, questions)


def read_hotpot(file: Path) -> Library:
    """HotpotQA's json (distractor setting): every paragraph with its title is a document; all of a question's count.

    Raises:
        DataError: The file is damaged.
    """
    places: dict[str, int] = {}
    questions: list[Asked] = []
    for row in read_records(file):
        with _as_published(file):
            own = [f"{title}\n{''.join(lines)}" for title, lines in row["context"]]
            questions.append(
                Asked(row["question"], (str(row["answer"]),), tuple(places.setdefault(one, len(places)) for one in own))
            )
    return _library(file, places, questions)


@contextmanager
def _as_published(file: Path) -> Iterator[None]:
    """Turns what a row of another form raises into a DataError."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"no field {error}" if isinstance(error, KeyError) else str(error)
        raise DataError(f"{file} is not as published: {reason}") from None


def _library(file: Path, places: dict[str, int], questions: list[Asked]) -> Library:
    if not questions:
        raise DataError(f"{file}: there are no questions with answers in it")
    return Library(tuple(places), tuple(questions))


def make_documents(
    draw: random.Random, count: Count, room: int, library: Library, asked: Asked, known: dict[str, int], what: str
) -> RulerSample:
    """A question among as many documents as fit.

    Args:
        known: Tokens of documents, so that each is counted once; is added to.
    """
    others = [place for place in range(len(library.documents)) if place not in asked.documents]
    draw.shuffle(others)
    right = [library.documents[place] for place in asked.documents]
    more = [library.documents[place] for place in others] or right
    seed = draw.getrandbits(64)

    def build(number: int) -> str:
        chosen = [*right, *itertools.islice(itertools.cycle(more), number)]
        random.Random(seed).shuffle(chosen)
        text = "\n\n".join(f"Document {place}:\n{one}" for place, one in enumerate(chosen, 1))
        return (
            f"{INSTRUCTION}\n\nThe following are given documents.\n\n{text}\n\n{INSTRUCTION}\n\nQuestion: {asked.text}"
        )

    def whole(text: str) -> int:
        return count(text + " Answer:")

    left, guess = room - whole(build(0)), 0
    for text in itertools.cycle(more):
        if text not in known:
            known[text] = max(count(f"Document 100:\n{text}\n\n"), 1)
        left -= known[text]
        if left < 0:
            break
        guess += 1
    each = sum(known.values()) / len(known)
    filled = fill(build, whole, room, guess, each, what)
    return RulerSample(text=filled.text, prefix=" Answer:", tokens=filled.tokens, answers=asked.answers)
