"""Batches: the same ids as one text at a time, for texts of all lengths, on as many threads as are wanted."""

from __future__ import annotations

import random
import threading
from pathlib import Path

import pytest

from puyulm.text import sentencepiece_model
from puyulm.text.tokenizer import Tokenizer
from tests.text.conftest import made_text


@pytest.mark.parametrize("kind", ["sentencepiece", "bytelevel"])
@pytest.mark.parametrize(
    "lengths", [(5, 0, 90), (255, 256, 257), (1023, 1024, 1025), (4, 5000, 0, 20_000, 7), (), (0,)]
)
def test_batches_are_texts_one_by_one(request: pytest.FixtureRequest, kind: str, lengths: tuple[int, ...]) -> None:
    tokenizer = Tokenizer.load(request.getfixturevalue(f"{kind}_folder"))
    text, rng = made_text(600), random.Random(0)
    texts = []
    for length in lengths:
        start = rng.randrange(max(len(text) - length, 1))
        texts.append(text[start : start + length])
    found = tokenizer.encode_batch(texts)
    assert found == [tokenizer.encode(text) for text in texts]
    assert all(isinstance(ids, list) for ids in found)


def test_texts_with_the_same_beginning_have_lists_of_their_own(sentencepiece_folder: Path) -> None:
    """Stretches that several texts have in common are encoded once."""
    tokenizer = Tokenizer.load(sentencepiece_folder)
    beginning = made_text(600)[:3000]
    texts = [beginning + end for end in ("water", "fire", "water", "今天")] + ["water", "water"]
    found = tokenizer.encode_batch(texts)
    assert found == [tokenizer.encode(text) for text in texts]
    assert len(set(map(id, found))) == len(texts)


@pytest.mark.parametrize(("said", "threads"), [("3", 3), ("", -1), ("0", -1), ("x", -1), (None, -1)])
def test_threads_are_what_the_environment_says(
    sentencepiece_folder: Path, monkeypatch: pytest.MonkeyPatch, said: str | None, threads: int
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if said is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", said)
    assert sentencepiece_model._threads() == threads
    tokenizer = Tokenizer.load(sentencepiece_folder)
    assert tokenizer.encode_batch(["water", "今天"]) == [tokenizer.encode("water"), tokenizer.encode("今天")]


@pytest.mark.parametrize("kind", ["sentencepiece", "bytelevel"])
def test_other_threads_run_while_a_long_text_is_encoded(request: pytest.FixtureRequest, kind: str) -> None:
    """A server's other clients would wait for seconds if a library kept Python's lock."""
    tokenizer = Tokenizer.load(request.getfixturevalue(f"{kind}_folder"))
    text = made_text(600) * 20
    turns, done = [0], threading.Event()

    def count() -> None:
        while not done.wait(0.0005):
            turns[0] += 1

    counter = threading.Thread(target=count)
    counter.start()
    try:
        before = turns[0]
        ids = tokenizer.encode(text)
        meanwhile = turns[0] - before
    finally:
        done.set()
        counter.join()
    assert meanwhile > 10
    assert tokenizer.decode(ids) == text
