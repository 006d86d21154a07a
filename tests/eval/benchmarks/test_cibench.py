"""CIBench, on made notebooks in the published form."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from puyulm.errors import DataError, SandboxError
from puyulm.eval.benchmark import Question
from puyulm.eval.benchmarks import cibench
from puyulm.eval.model import Output, Prompt
from puyulm.eval.run import run_task
from puyulm.eval.source import SourceContext
from puyulm.eval.task import Task
from puyulm.sandbox import Session
from puyulm.text.messages import Message
from tests.eval.fakes import FakeModel, scored, task_of

BENCHMARK, CHINESE = cibench.BENCHMARKS


def step(text: str, code: str, *outputs: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {"cell_type": "markdown", "source": [text]},
        {"cell_type": "code", "source": code.splitlines(keepends=True), "outputs": list(outputs)},
    ]


def result(text: str) -> dict[str, Any]:
    return {"output_type": "execute_result", "data": {"text/plain": [text]}}


def printed(text: str) -> dict[str, Any]:
    return {"output_type": "stream", "name": "stdout", "text": [text]}


NOTEBOOK: dict[str, Any] = {
    "cells": [
        *step("Load data/ages.csv as `rows`.", "rows = open('data/ages.csv').read().split()"),
        *step("Sum of the ages?", "total = sum(map(int, rows))\ntotal", result("42")),
        *step("Say it in words.", "print('the sum of ages is', total)", printed("the sum of ages is 42\n")),
    ],
    "metadata": {"modules": ["csv", "math & statistics", "builtins"], "step_types": ["exec", "num", "text"]},
}
OTHER: dict[str, Any] = {
    "cells": [
        *step("Make x.", "x = 3"), *step("Square it.", "x ** 2", result("9")),
        *step("Print it.", "print(x)", printed("3\n")),
    ],
    "metadata": {},
}  # fmt: skip


def place(folder: Path, name: str = "cibench", **notebooks: Any) -> SourceContext:
    root = folder / "data" / name
    part = "cibench_template" if name == "cibench" else "cibench_template_chinese"
    (root / "datasources" / "data").mkdir(parents=True, exist_ok=True)
    (root / "datasources" / "data" / "ages.csv").write_text("20\n22\n")
    (root / "datasources" / "data" / "unused.csv").write_text("0\n" * 100)
    for stem, notebook in (notebooks or {"one": NOTEBOOK, "two": OTHER}).items():
        (root / part / "pandas" / "deep").mkdir(parents=True, exist_ok=True)
        text = notebook if isinstance(notebook, str) else json.dumps(notebook)
        (root / part / "pandas" / "deep" / f"{stem}.ipynb").write_text(text)
    return SourceContext(data_dir=folder / "data")


def task_in(folder: Path, mode: str = "chat", **notebooks: Any) -> Task:
    return task_of(BENCHMARK, place(folder, **notebooks), mode, subsets=["pandas"])


def asked_step(prompt: Prompt, task: Task) -> tuple[Question, int]:
    """Which step of which notebook a prompt asks for."""
    texts = [line for one in prompt.messages if one.role == "user" for line in one.content.split("\n")]
    for question in task.questions:
        known = [one["text"] for one in question.extra["steps"]]
        if texts[0] == known[0]:
            return question, max(known.index(text) for text in texts if text in known)
    raise AssertionError(texts)


def coder(task: Task, write: Callable[[str], str] = lambda code: f"Sure:\n```python\n{code}\n```") -> FakeModel:
    """Writes the solutions."""

    def answer(prompt: Prompt) -> str:
        question, place = asked_step(prompt, task)
        return write(question.extra["steps"][place]["code"])

    return FakeModel(answer)


def values(task: Task, model: FakeModel, folder: Path) -> dict[str, float]:
    return {name: round(one.value, 6) for name, one in scored(task, model, folder).metrics.items() if one.count}


@pytest.mark.parametrize("mode", ["chat", "interpreter"])
def test_known_models(mode: str, tmp_path: Path) -> None:
    task = task_in(tmp_path, mode)
    right = values(task, coder(task), tmp_path / "right")
    assert right == {"score": 1.0, "executable": 1.0, "tool_rate": 1.0, "correct": 1.0, "text": 1.0}
    silent = values(task, FakeModel(lambda prompt: "I would use pandas."), tmp_path / "silent")
    assert silent == dict.fromkeys(right, 0.0)
    broken = values(task, FakeModel(lambda prompt: "```python\n1 / 0\n```"), tmp_path / "broken")
    assert broken == {**dict.fromkeys(right, 0.0), "tool_rate": 1.0}
    no_answer = values(task, FakeModel(lambda prompt: "```python\npass\n```"), tmp_path / "pass")
    assert no_answer == {**dict.fromkeys(right, 0.0), "tool_rate": 1.0, "executable": 1.0}


def test_steps_weigh_the_same(tmp_path: Path) -> None:
    task = task_in(tmp_path, only={**NOTEBOOK, "cells": NOTEBOOK["cells"][:4], "metadata": {}}, two=OTHER)
    first = next(one for one in task.questions if one.id.endswith("only.ipynb"))

    def answer(prompt: Prompt) -> str:
        question, place = asked_step(prompt, task)
        return "no" if question is first else f"```python\n{question.extra['steps'][place]['code']}\n```"

    found = values(task, FakeModel(answer), tmp_path / "s")
    assert found == {"score": round(2 / 3, 6), "executable": 0.6, "tool_rate": 0.6, "correct": round(2 / 3, 6)}


def test_a_step_may_be_tried_again(tmp_path: Path) -> None:
    task = task_in(tmp_path, two=OTHER)
    seen: list[Prompt] = []

    def answer(prompt: Prompt) -> str:
        seen.append(prompt)
        question, place = asked_step(prompt, task)
        failed = sum("ZeroDivisionError" in one.content for one in prompt.messages)
        code = question.extra["steps"][place]["code"]
        return f"```python\n{code}\n```" if place != 1 or failed == 2 else "```python\n1 / 0\n```"

    found = values(task, FakeModel(answer), tmp_path / "s")
    assert found["executable"] == found["correct"] == 1.0 and len(seen) == 5
    last = [one.content for one in seen[-1].messages]
    assert sum("ZeroDivisionError" in one for one in last) == 2
    assert last[-1] == "Output:\n```\n9\n```\n\nPrint it."


def test_the_interpreter_s_roles(tmp_path: Path) -> None:
    question = task_in(tmp_path, two=OTHER).questions[0]
    turns = cibench.play(question, Prompt(max_new_tokens=7), roles=True)
    asked = next(turns)
    assert asked.max_new_tokens == 7 and asked.messages[0].name == "<|interpreter|>"
    message = Message("assistant", "I set x.", code="x = 5\nx")
    asked = turns.send(Output(text="I set x.", message=message, tokens=3))
    assert asked.messages[-3:-1] == (message, Message("environment", "5", name="<|interpreter|>"))
    turns.close()
    plain = cibench.play(question, Prompt())
    next(plain)
    asked = plain.send(Output(text="I set x.", message=message))
    assert [one.role for one in asked.messages] == ["system", "user", "assistant", "user"]
    assert asked.messages[2].content == "I set x.\n```python\nx = 5\nx\n```"
    assert asked.messages[3].content == "Output:\n```\n5\n```\n\nSquare it."
    plain.close()


def test_pictures_are_compared(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    draw = "import matplotlib.pyplot as plt\nplt.plot([1, 2, 3])\nplt.show()"
    with Session() as session:
        [drawn] = session.run(draw).images
    cells = step("Draw it.", draw, {"output_type": "display_data", "data": {"image/png": _text(drawn)}})
    task = task_in(tmp_path, one={"cells": cells, "metadata": {}})
    assert task.questions[0].extra["steps"][0]["kind"] == "vis"
    assert values(task, coder(task), tmp_path / "right")["visual"] == pytest.approx(1.0)
    other = FakeModel(lambda prompt: "```python\nimport matplotlib.pyplot as plt\nplt.bar([1, 2], [3, 1])\n```")
    assert 0.0 < values(task, other, tmp_path / "other")["visual"] < 0.98
    assert values(task, FakeModel(lambda prompt: "```python\n1\n```"), tmp_path / "none")["visual"] == 0.0


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


@pytest.fixture
def sessions(monkeypatch: pytest.MonkeyPatch) -> list[Session]:
    opened: list[Session] = []

    def open_session(**options: Any) -> Session:
        opened.append(Session(**options))
        return opened[-1]

    monkeypatch.setattr(cibench, "Session", open_session)
    return opened


def test_sessions_are_closed(tmp_path: Path, sessions: list[Session]) -> None:
    task = task_in(tmp_path)
    run_task(task, coder(task), tmp_path / "s")
    assert len(sessions) == 2 and not any(one.alive for one in sessions)


def test_sessions_are_closed_when_a_run_is_interrupted(tmp_path: Path, sessions: list[Session]) -> None:
    task = task_in(tmp_path)
    model = coder(task)

    def answer(prompt: Prompt) -> str:
        if len(prompt.messages) > 4:
            raise KeyboardInterrupt
        return "```python\nx = 3\n```"

    model.answer = answer
    with pytest.raises(KeyboardInterrupt):
        run_task(task, model, tmp_path / "s")
    assert len(sessions) == 2 and not any(one.alive for one in sessions)


def test_only_so_many_play_at_once(tmp_path: Path, sessions: list[Session]) -> None:
    context = place(tmp_path, **{f"n{n}": OTHER for n in range(cibench.AT_ONCE + 2)})  # type: ignore[arg-type]
    task = task_of(BENCHMARK, context, "chat", subsets=["pandas"])
    most = 0

    def answer(prompt: Prompt) -> str:
        nonlocal most
        most = max(most, sum(one.alive for one in sessions))
        return "no code"

    assert len(run_task(task, FakeModel(answer), tmp_path / "s")) == cibench.AT_ONCE + 2
    assert most == cibench.AT_ONCE


def test_notebooks_are_read(tmp_path: Path) -> None:
    first, second = task_in(tmp_path).questions
    assert first.id == "pandas/deep/one.ipynb" and first.target == [None, "42", "the sum of ages is 42\n"]
    assert [one["kind"] for one in first.extra["steps"]] == ["exec", "num", "text"]
    assert [one["kind"] for one in second.extra["steps"]] == ["exec", "general", "general"]
    assert list(first.extra["files"]) == ["data/ages.csv"] and not second.extra["files"]
    prompt = next(turns := cibench.play(first, Prompt()))
    assert prompt.messages[-1].content == "Load data/ages.csv as `rows`.\nPlease use csv modules."
    turns.close()


def test_where_data_lie_changes_no_question(tmp_path: Path) -> None:
    one, other = task_in(tmp_path / "a"), task_in(tmp_path / "b")
    assert one.data_hash == other.data_hash
    (tmp_path / "b/data/cibench/datasources/data/ages.csv").write_text("1\n")
    assert task_of(BENCHMARK, SourceContext(data_dir=tmp_path / "b/data"), "chat", subsets=["pandas"]).data_hash != (
        one.data_hash
    )


def test_chinese(tmp_path: Path) -> None:
    task = task_of(CHINESE, place(tmp_path, "cibench_zh", one=NOTEBOOK), "chat", subsets=["pandas"])
    assert CHINESE.modes["chat"].play is not None  # type: ignore[union-attr]
    turns = CHINESE.modes["chat"].play(task.questions[0], Prompt())  # type: ignore[union-attr]
    messages = next(turns).messages
    assert "笔记本" in messages[0].content and messages[1].content.endswith("\n请用 csv 模块。")
    turns.close()


@pytest.mark.parametrize(
    "notebook",
    [
        "{", "[]", "{}", json.dumps({"cells": []}), json.dumps({"cells": [{"cell_type": "markdown"}]}),
        json.dumps({"cells": NOTEBOOK["cells"][:-1], "metadata": {}}),
        json.dumps({**NOTEBOOK, "metadata": {"step_types": ["exec"]}}),
        json.dumps({**NOTEBOOK, "metadata": {"step_types": ["exec", "num", "smell"]}}),
    ],
)  # fmt: skip
def test_damaged_notebooks(tmp_path: Path, notebook: str) -> None:
    with pytest.raises(DataError):
        task_in(tmp_path, one=notebook)


def test_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for context in (SourceContext(), SourceContext(data_dir=tmp_path)):
        with pytest.raises(DataError, match=r"place cibench_template/scipy/\*.ipynb in .*cibench"):
            task_of(BENCHMARK, context, "chat", subsets=["scipy"])
    monkeypatch.setenv("PATH", "")
    assert BENCHMARK.needs is not None
    with pytest.raises(SandboxError):
        BENCHMARK.needs()


def test_a_session_that_died_fails_the_steps_behind(tmp_path: Path) -> None:
    task = task_in(tmp_path, two=OTHER)
    found = values(task, FakeModel(lambda prompt: "```python\nimport os\nos._exit(0)\n```"), tmp_path / "s")
    assert found["executable"] == found["correct"] == 0.0 and found["tool_rate"] == 1.0
