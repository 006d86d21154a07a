"""Exact-answer evaluation: what counts as right, how a model is asked, and what is reported."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from puyulm.engine.engine import Engine
from puyulm.engine.request import Completion
from puyulm.errors import DataError
from puyulm.eval import exact
from puyulm.eval.exact import (
    ExactItem,
    Sample,
    evaluate,
    normalise,
    plain_prompt,
    read_items,
    score,
    wilson_interval,
    write_report,
)
from puyulm.text.chat import chat_format_for
from puyulm.text.tokenizer import Tokenizer
from tests.conftest import tiny_decoder
from tests.text.small_tokenizers import CHATML, small_tokenizer

ITEMS = [
    ExactItem("Say red.", "red", "say", "en"),
    ExactItem("Say blue.", "blue", "say", "en"),
    ExactItem("一加一是几？", "二", "sum", "zh"),
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return small_tokenizer(tmp_path_factory.mktemp("tokenizer"), CHATML)


@pytest.mark.parametrize(
    ("answer", "output", "right"),
    [
        ("apple, river", " Apple,river. ", True),
        ("苹果、小鸟", "苹果， 小鸟。", True),
        ("42", "４２", True),
        ("the garden", "“The  garden”!", True),
        ("the garden", "garden", False),
        ("apple, river", "river, apple", False),
        ("4", "42", False),
        ("apple", "apple apple", False),
        ("apple", "apple\nand pear", False),
    ],
)
def test_what_counts_as_right(answer: str, output: str, right: bool) -> None:
    assert (normalise(answer) == normalise(output)) is right


@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (5, 10, 0.2366, 0.7634), (81, 263, 0.2553, 0.3662)],
)
def test_intervals_against_published_values(correct: int, total: int, low: float, high: float) -> None:
    """The last case is Newcombe's worked example (1998, table I)."""
    assert wilson_interval(correct, total) == pytest.approx((low, high), abs=5e-5)


def test_scores_by_kind_and_in_total() -> None:
    samples = [Sample(kind, "", "", "", right, "stop") for kind, right in (("b", True), ("a", False), ("b", False))]
    by_kind = {entry.kind: (entry.correct, entry.total) for entry in score(samples)}
    assert by_kind == {"b": (1, 2), "a": (0, 1), "total": (1, 3)}
    assert [entry.kind for entry in score(samples)] == ["b", "a", "total"]


def answer_with(texts: list[str], monkeypatch: pytest.MonkeyPatch, tokenizer: Tokenizer) -> list[str]:
    """Replaces generation; returns the list that the prompts, as text, will be put into."""
    asked: list[str] = []

    def canned(engine, prompts, params, progress):  # type: ignore[no-untyped-def]
        assert params.temperature == 0
        asked.extend(tokenizer.decode(prompt) for prompt in prompts)
        return [Completion([], "stop", [], text=text) for text in texts]

    monkeypatch.setattr(Engine, "generate", canned)
    return asked


def test_a_tuned_model_is_asked_in_its_format(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = answer_with(["Red.", "blue and more", "二"], monkeypatch, tokenizer)
    chat_format = chat_format_for("internlm3", tokenizer)
    report = evaluate(tiny_decoder(vocab_size=tokenizer.vocab_size), tokenizer, ITEMS, chat_format)
    assert asked[0] == "<s><|im_start|>user\nSay red.<|im_end|>\n<|im_start|>assistant\n"
    assert [sample.correct for sample in report.samples] == [True, False, True]
    assert (report.total.correct, report.total.total) == (2, 3)
    assert "say        1 of 2       50.0 %" in report.table() and "total      2 of 3" in report.table()


def test_a_base_model_is_asked_in_plain_text(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = answer_with([" red", "no", " 二"], monkeypatch, tokenizer)
    report = evaluate(tiny_decoder(vocab_size=tokenizer.vocab_size), tokenizer, ITEMS, None)
    assert asked[0] == "<s>Question: Say red.\nAnswer:" and asked[2] == "<s>问题：一加一是几？\n答案："
    assert report.total.correct == 2


def test_solved_examples_are_of_the_same_kind_and_language(tokenizer: Tokenizer) -> None:
    ids = plain_prompt(ITEMS[0], tokenizer, [ITEMS[1]])
    assert tokenizer.decode(ids) == "<s>Question: Say blue.\nAnswer: blue\n\nQuestion: Say red.\nAnswer:"
    decoder = tiny_decoder(vocab_size=tokenizer.vocab_size)
    with pytest.raises(DataError, match="1 examples are asked for, but 'sum' in zh has 0"):
        evaluate(decoder, tokenizer, ITEMS, None, examples=ITEMS[:2], shots=1)


def test_no_items_are_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match="no items"):
        evaluate(tiny_decoder(vocab_size=tokenizer.vocab_size), tokenizer, [], None)


def test_base_answers_end_at_the_line(tokenizer: Tokenizer) -> None:
    """Real generation: an untrained model gives some output for each item, never with a line break."""
    report = evaluate(tiny_decoder(vocab_size=tokenizer.vocab_size), tokenizer, ITEMS, None, max_new_tokens=4)
    assert len(report.samples) == 3 and all("\n" not in sample.output for sample in report.samples)


def test_items_and_reports_on_disk(tmp_path: Path) -> None:
    path = tmp_path / "items.jsonl"
    path.write_text('{"prompt": "a", "answer": "b", "more": 1}\n\n{"prompt": "c", "answer": "丁", "kind": "k"}\n')
    assert read_items(path) == [ExactItem("a", "b"), ExactItem("c", "丁", "k")]
    samples = [Sample("k", "c", "丁", "丁。", True, "stop")]
    write_report(exact.ExactReport(score(samples), samples), tmp_path / "out")
    assert json.loads((tmp_path / "out" / "samples.jsonl").read_text())["output"] == "丁。"
    assert json.loads((tmp_path / "out" / "scores.json").read_text())[-1]["rate"] == 1.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"prompt": "a", "answer": "b"}\n{"prompt": "a"}\n', r"items\.jsonl:2: expected"),
        ("[1]\n", r"items\.jsonl:1: expected"),
        ("{not json\n", r"items\.jsonl:1: expected"),
        ('{"prompt": "a", "answer": 3}\n', r"items\.jsonl:1: .* must be text"),
        ('{"prompt": "a", "answer": " . "}\n', r"items\.jsonl:1: .* the answer not empty"),
        ("\n", "no items"),
    ],
)
def test_damaged_items_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "items.jsonl"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_items(path)
