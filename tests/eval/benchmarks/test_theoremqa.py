"""TheoremQA: answers of several kinds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from puyulm.errors import DataError
from puyulm.eval.benchmarks import theoremqa
from puyulm.eval.benchmarks.theoremqa import BENCHMARK
from puyulm.eval.model import Output
from puyulm.eval.source import SourceContext
from tests.eval.fakes import FakeModel, guesser, oracle, task_of, value

pytest.importorskip("math_verify")
KINDS: list[tuple[str, Any]] = [
    ("integer", 12), ("float", "0.25"), ("bool", "True"), ("option", "(b)"), ("list of integer", "[1, -2]"),
    ("list of float", [0.5, 2.5]),
]  # fmt: skip


def row(kind: str, answer: Any) -> dict[str, Any]:
    return {"Question": "How much?", "Answer": answer, "Answer_type": kind, "Picture": None}


@pytest.mark.parametrize("mode", ["chat", "plain"])
def test_known_models(tmp_path: Path, mode: str) -> None:
    (tmp_path / "theoremqa").mkdir()
    rows = [row(*one) | {"Question": f"How much {n}?"} for n, one in enumerate(KINDS * 2)]
    (tmp_path / "theoremqa/theoremqa_test.json").write_text(json.dumps(rows))
    task = task_of(BENCHMARK, SourceContext(data_dir=tmp_path, offline=True), mode)
    assert value(task, oracle(task), tmp_path / "a") == value(task, oracle(task), tmp_path / "a", "strict") == 1.0
    assert value(task, guesser(), tmp_path / "b") == 0.0
    assert value(task, FakeModel(lambda prompt: "The answer is 12."), tmp_path / "c") == 1 / 6


@pytest.mark.parametrize(
    ("kind", "target", "text", "accuracy"),
    [
        ("integer", 12, "the answer is 12.3", 1),
        ("integer", 12, "the answer is 12.6", 0),
        ("integer", 1024, "the answer is $x = 2^{10}$.", 1),
        ("integer", 12, "So \\boxed{12}", 1),
        ("integer", 12, "the answer is 12 ways", 1),
        ("float", 0.785, "the answer is \\frac{\\pi}{4}", 1),
        ("float", 0.785, "the answer is 0.8", 1),
        ("float", 0.785, "the answer is 0.9", 0),
        ("float", -2.5, "the answer is x = -2.5 m/s", 1),
        ("float", 0.5, "the answer is 50%", 1),
        ("float", 0.5, "the answer is unknown", 0),
        ("bool", "True", "the answer is True", 1),
        ("bool", "True", "the answer is **yes**.", 1),
        ("bool", "False", "the answer is true", 0),
        ("bool", "True", "the answer is neither true nor false", 0),
        ("option", "(b)", "the answer is (B)", 1),
        ("option", "(b)", "the answer is b.", 1),
        ("option", "(b)", "the answer is (a), not (b)", 0),
        ("list of integer", "[1, 2]", "the answer is [2, 1]", 1),
        ("list of integer", "[1, 2]", "the answer is $(1, 2)$", 1),
        ("list of integer", "[1, 2]", "the answer is [1]", 0),
        ("list of float", "[0.5, 2]", "the answer is \\{\\frac{1}{2}, 2\\}", 1),
        ("float", 1.0, "", 0),
    ],
)
def test_answers(kind: str, target: Any, text: str, accuracy: int) -> None:
    question = theoremqa.read(row(kind, target), "", 0)
    assert theoremqa.verdict(question, [Output(text=text)]).scores["accuracy"] == accuracy


@pytest.mark.parametrize("damaged", [{"Question": "x"}, row("poem", "x"), row("float", "x"), row("bool", "maybe")])
def test_damaged_rows(tmp_path: Path, damaged: dict[str, Any]) -> None:
    (tmp_path / "theoremqa").mkdir()
    (tmp_path / "theoremqa/test.json").write_text(json.dumps([damaged]))
    with pytest.raises(DataError, match="theoremqa: 'test' row 0 is not as published"):
        task_of(BENCHMARK, SourceContext(data_dir=tmp_path, offline=True), "chat")
