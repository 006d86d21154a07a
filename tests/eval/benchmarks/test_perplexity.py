"""Perplexity by domain, and the contamination test: sums against direct computations."""

from __future__ import annotations

import gzip
import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from puyulm.engine.load import load_chat_model
from puyulm.errors import DataError
from puyulm.eval.benchmarks import contamination, perplexity
from puyulm.eval.engine_model import EngineModel
from puyulm.eval.longtext.prose import sentences
from puyulm.eval.model import Continuation
from puyulm.eval.results import score
from puyulm.eval.run import run_task
from puyulm.eval.source import SourceContext
from puyulm.model.attention import PackedAttention
from puyulm.model.checkpoint import save_model
from tests.conftest import tiny_decoder
from tests.eval.fakes import FakeModel, scored, task_of
from tests.text.small_tokenizers import CHATML, small_tokenizer

TEXTS = {
    "prose": [" ".join(itertools.islice(sentences("en", seed), 6)) for seed in range(3)],
    "散文": ["".join(itertools.islice(sentences("zh"), 12)) + "\n\n  end "],
}


def next_logprob(before: str, letter: str) -> float:
    """A made language model that looks three characters back."""
    return -1 - (sum(map(ord, before[-3:])) * 31 + ord(letter)) % 17 / 10


def logprob(one: Continuation) -> float:
    whole = one.context + one.text
    return sum(next_logprob(whole[:place], whole[place]) for place in range(len(one.context), len(whole)))


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    rows = [{"text": text, "domain": domain} for domain, texts in TEXTS.items() for text in texts]
    (tmp_path / "all.jsonl.gz").write_bytes(gzip.compress("".join(map(_line, rows)).encode()))
    (tmp_path / "story.txt").write_text("Once. " * 20)
    return [tmp_path / "all.jsonl.gz", tmp_path / "story.txt"]


def _line(row: object) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"


def context(files: list[Path], **options: Any) -> SourceContext:
    return SourceContext(model=FakeModel(), options={"text": [str(file) for file in files], **options})


@pytest.mark.parametrize(("window", "stride"), [(4000, 2000), (100, 50), (80, 40)])
def test_windows_add_up_to_the_whole_text(files: list[Path], tmp_path: Path, window: int, stride: int) -> None:
    task = task_of(perplexity.BENCHMARK, context(files, window=window, stride=stride), "reading")
    found = scored(task, FakeModel(likelihood=logprob), tmp_path / "run")
    texts = [text for own in TEXTS.values() for text in own] + ["Once. " * 20]
    nats = -sum(logprob(Continuation("", text)) for text in texts)
    size, letters, words = (sum(f(text) for text in texts) for f in (lambda t: len(t.encode()), len, _words))
    assert found.metrics["perplexity"].value == pytest.approx(math.exp(nats / letters))  # a token is a character
    assert found.metrics["bits_per_byte"].value == pytest.approx(nats / math.log(2) / size)
    assert found.metrics["byte_perplexity"].value == pytest.approx(math.exp(nats / size))
    assert found.metrics["word_perplexity"].value == pytest.approx(math.exp(nats / words))
    assert list(found.subsets) == ["prose", "散文", "story"]
    own = TEXTS["prose"]
    mean = -sum(logprob(Continuation("", text)) for text in own) / sum(map(len, own))
    assert found.subsets["prose"].value == pytest.approx(math.exp(mean))


def _words(text: str) -> int:
    return len(text.split())


def test_an_engine_gives_the_losses_of_the_model(tmp_path: Path) -> None:
    """A text longer than the window, against logits of each window computed directly."""
    tokenizer = small_tokenizer(tmp_path / "tokenizer", CHATML)
    decoder = tiny_decoder(family="internlm3", vocab_size=tokenizer.vocab_size, max_position_embeddings=256)
    save_model(decoder, tmp_path / "model", write_extra=tokenizer.save)
    text = " ".join(itertools.islice(sentences("en"), 5))
    (tmp_path / "a.txt").write_text(text)
    model = EngineModel(load_chat_model(str(tmp_path / "model"), device="cpu"), "tiny")
    options = {"text": [tmp_path / "a.txt"], "window": 128, "stride": 64}
    task = task_of(perplexity.BENCHMARK, SourceContext(model=model, options=options), "reading")
    samples = list(run_task(task, model, tmp_path / "run").values())
    found = score(task.benchmark, samples)
    model.close()
    nats, count = 0.0, 0
    for question in task.questions:
        before = question.extra["context"]
        ids, start = tokenizer.encode(before + question.text), len(tokenizer.encode(before))
        if not before and tokenizer.bos_id is not None:  # something has to stand before the first token
            ids, start = [tokenizer.bos_id, *ids], 1
        assert len(ids) <= 128
        attention = PackedAttention([len(ids)])
        with torch.inference_mode():
            logits = decoder.logits(decoder(torch.tensor(ids), attention.positions, attention))
        logprobs = logits.float().log_softmax(-1)
        nats -= sum(float(logprobs[place - 1, ids[place]]) for place in range(start, len(ids)))
        count += len(ids) - start
    assert len(task.questions) > 3 and count == sum(sample.scores["tokens"] for sample in samples)
    assert found.metrics["perplexity"].value == pytest.approx(math.exp(nats / count), rel=1e-4)
    assert found.metrics["bits_per_byte"].value == pytest.approx(nats / math.log(2) / len(text.encode()), rel=1e-4)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"body": "x"}\n', "row 0 has no 'text'"),
        ("a.jsonl", b'{"text": "x", "domain": 3}\n', "row 0 has no 'text'"),
        ("a.txt", b"\xff\xff", "cannot read"),
        ("a.txt", None, "cannot read"),
        ("a.pdf", b"x", "rows are read from"),
        ("a.txt", b"  \n", "no questions"),
    ],
)
def test_damaged_files(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        task_of(perplexity.BENCHMARK, context([tmp_path / name]), "reading")


def test_options_that_make_no_sense(files: list[Path]) -> None:
    with pytest.raises(DataError, match="no text: name"):
        task_of(perplexity.BENCHMARK, context([]), "reading")
    with pytest.raises(DataError, match="leaves no context"):
        task_of(perplexity.BENCHMARK, context(files, window=64, stride=64), "reading")
    with pytest.raises(DataError, match="no model"):
        task_of(perplexity.BENCHMARK, SourceContext(options={"text": [str(files[1])]}), "reading")


# Contamination


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    rows = [{"question": f"How many are {n}?", "answer": f"There are {n}.\n#### {n}"} for n in range(12)]
    for role in ("train", "test"):
        (tmp_path / "gsm8k").mkdir(exist_ok=True)
        (tmp_path / "gsm8k" / f"{role}.jsonl").write_text("".join(map(_line, rows)).replace("many", role))
    (tmp_path / "contamination").mkdir()
    (tmp_path / "contamination" / "mock_gsm8k_test.jsonl").write_text("".join(map(_line, rows[:5])))
    return tmp_path


def test_differences_of_losses(data_dir: Path, tmp_path: Path) -> None:
    task = task_of(contamination.BENCHMARK, SourceContext(data_dir=data_dir, offline=True), "reading")
    assert len(task.questions) == 29
    assert task.questions[0].text == "How test are 0? There are 0.\n#### 0"
    losses = {"train": 1.17, "test": 1.52, "many": 1.48}  # InternLM2-20B's

    def likelihood(one: Continuation) -> float:
        return -len(one.text) * next(loss for word, loss in losses.items() if word in one.text)

    found = scored(task, FakeModel(likelihood=likelihood), tmp_path / "run")
    assert found.metrics["d1"].value == pytest.approx(0.04) and found.metrics["d2"].value == pytest.approx(0.35)
    values = {name: one.value for name, one in found.subsets.items()}
    assert values == pytest.approx({"test": 1.52, "train": 1.17, "reference": 1.48})


def test_published_rows(shared_dir: Path) -> None:
    folder = shared_dir / "data"
    rows = (folder / "gsm8k_test.jsonl").read_text().splitlines()
    question = contamination.read(json.loads(rows[0]), "test", 0)
    assert question.text.count("####") == 1 and "<<" in question.text


@pytest.mark.parametrize(
    ("line", "ok"), [('{"text": "both"}', True), ('{"text": ""}', False), ('{"question": "?"}', False)]
)
def test_reference_rows(data_dir: Path, line: str, ok: bool) -> None:
    (data_dir / "contamination" / "mock_gsm8k_test.jsonl").write_text(line + "\n")
    context = SourceContext(data_dir=data_dir, offline=True)
    if ok:
        [question] = task_of(contamination.BENCHMARK, context, "reading", subsets=["reference"]).questions
        assert question.text == "both"
    else:
        with pytest.raises(DataError, match="contamination: 'test' row 0 of 'reference'"):
            task_of(contamination.BENCHMARK, context, "reading", subsets=["reference"])
