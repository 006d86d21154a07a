"""MBPP."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from puyulm.errors import DataError
from puyulm.eval.benchmarks.mbpp import BENCHMARK, function_name, read, verdict
from puyulm.eval.model import Output
from puyulm.eval.source import SourceContext
from puyulm.sandbox import Limits, Program, run_many
from tests.eval.fakes import FakeModel, oracle, task_of, value

ROWS: list[dict[str, Any]] = [
    {
        "source_file": "made", "task_id": id, "prompt": f"Write a function to add {id}.",
        "code": f"def helper(x):\r\n  return x\r\ndef add_{id}(x):\r\n  return helper(x) + {id}",
        "test_imports": ["import math"], "test_list": [f"assert add_{id}(0) == {id}", f"assert add_{id}(math.inf) > 0"],
    }
    for id in (2, 3, 4, 6, 11, 12, 510, 511)
]  # fmt: skip


def place(folder: Path, rows: list[dict[str, Any]]) -> SourceContext:
    (folder / "mbpp").mkdir(parents=True, exist_ok=True)
    (folder / "mbpp" / "sanitized-mbpp.json").write_text(json.dumps(rows))
    return SourceContext(data_dir=folder, offline=True)


@pytest.mark.parametrize("mode", ["plain", "chat"])
def test_known_models(mode: str, tmp_path: Path) -> None:
    task = task_of(BENCHMARK, place(tmp_path, ROWS), mode, shots=3)
    assert [one.id for one in task.questions] == ["11", "12", "510"]
    assert value(task, oracle(task), tmp_path / "right") == 1.0
    assert value(task, FakeModel(lambda prompt: "def add_11(x): return x + 11"), tmp_path / "one") == 1 / 3
    assert value(task, FakeModel(lambda prompt: ""), tmp_path / "none") == 0.0


def test_the_prompt_has_three_examples(tmp_path: Path) -> None:
    task = task_of(BENCHMARK, place(tmp_path, ROWS), "plain", shots=3)
    text = task.prompt(task.questions[0]).text
    assert text.count("[BEGIN]\n") == 4 and text.endswith("assert add_11(math.inf) > 0\n[BEGIN]\n")
    assert "add_2(" in text and "add_4(" in text and "add_6(" not in text and "\r" not in text
    chat = task_of(BENCHMARK, place(tmp_path, ROWS), "chat", shots=3)
    messages = chat.prompt(chat.questions[0]).messages
    assert [one.role for one in messages] == ["user", "assistant"] * 3 + ["user"]


@pytest.mark.parametrize(
    ("text", "strict", "lenient"),
    [
        ("[BEGIN]\ndef add_11(x): return x + 11\n[DONE]", 1, 1),
        ("[BEGIN]\n 'def add_11(x):\n  return x + 11' \n[DONE] \n\n ", 1, 1),
        ("def add_11(x): return x + 11\n[DONE]\nYou are an expert", 1, 1),
        ("[BEGIN]\n```python\ndef add_11(x): return x + 11\n```\n[DONE]", 1, 1),
        ("```python\ndef add_11(x): return x + 11\n```\nIt adds 11.", 1, 1),
        ("```python\ndef add_11(x): return x + 11\n```\n```python\nassert add_11(0) == 5\n```", 1, 1),
        ("The function is:\n\ndef add_11(x): return x + 11\n\nIt adds 11.", 0, 1),
        ("Sure:\n```python\ndef add_11(x): return x + 11", 0, 1),
        ("[BEGIN]\ndef add(x): return x + 11\n[DONE]", 0, 0),
        ("[BEGIN]\ndef add_11(x): return x + 10\n[DONE]", 0, 0),
        ("I cannot do that.", 0, 0),
    ],
)
def test_answers(text: str, strict: int, lenient: int) -> None:
    question = read(ROWS[4], "", 0)
    assert verdict(question, [Output(text=text)]).scores == {"pass@1": strict, "lenient pass@1": lenient}


def test_the_function_that_tests_call() -> None:
    assert function_name("def a(): 0\ndef b(): a()", ["assert b() == 1"]) == "b"
    assert function_name("def b(): 0\ndef ab(): 0", ["assert set(b()) == {1}"]) == "b"
    assert function_name("x = 1", ["assert x"]) == ""


@pytest.mark.parametrize("missing", ["task_id", "prompt", "code", "test_list", "test_imports"])
def test_damaged_rows(tmp_path: Path, missing: str) -> None:
    rows = [{key: value for key, value in ROWS[4].items() if key != missing}]
    with pytest.raises(DataError, match=f"no field '{missing}'"):
        task_of(BENCHMARK, place(tmp_path, rows), "plain")
    with pytest.raises(DataError, match="no tests"):
        task_of(BENCHMARK, place(tmp_path, [{**ROWS[4], "test_list": []}]), "plain")


def test_published_rows(shared_dir: Path, tmp_path: Path) -> None:
    context = SourceContext(data_dir=shared_dir / "evaldata", offline=True)
    task = task_of(BENCHMARK, context, "plain", shots=3)
    assert len(task.questions) == 257 and {one.id for one in task.examples(task.questions[0])} == {"2", "3", "4"}
    assert value(task_of(BENCHMARK, context, "chat", shots=3, limit=10), oracle(task), tmp_path / "none") == 0.0


def test_published_solutions_pass(shared_dir: Path) -> None:
    rows = json.loads((shared_dir / "evaldata" / "mbpp" / "sanitized-mbpp.json").read_text())
    questions = [read(row, "", 0) for row in rows]
    tests = ["\n".join([*one.extra["imports"], *one.extra["tests"]]) for one in questions]
    assert len(questions) == 427 and all(one.extra["name"] for one in questions)
    asked = list(zip(questions, tests, strict=True))[::8]
    right = [Program(str(one.target), (test,)) for one, test in asked]
    assert {end.status for end in run_many(right, limits=Limits(seconds=20))} == {"ok"}
    wrong = [Program(f"def {one.extra['name']}(*_): return None", (test,)) for one, test in asked[::3]]
    assert {end.status for end in run_many(wrong, limits=Limits(seconds=20))} == {"failed"}
