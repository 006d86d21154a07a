"""HumanEval and HumanEval+."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from puyulm.errors import DataError, SandboxError
from puyulm.eval.benchmark import Benchmark
from puyulm.eval.benchmarks import humaneval
from puyulm.eval.benchmarks.humaneval import HUMANEVAL, HUMANEVAL_PLUS
from puyulm.eval.model import Prompt
from puyulm.eval.results import score
from puyulm.eval.run import run_task
from puyulm.eval.source import SourceContext
from puyulm.eval.task import Setting, make_task
from puyulm.sandbox import Limits, Program, run_many
from tests.eval.fakes import FakeModel, oracle, scored, task_of, value

ROWS = [
    {
        "task_id": f"HumanEval/{n}",
        "prompt": f'from math import pi\n\n\ndef times_{n}(x: int) -> int:\n    """ x times {n}.\n    """\n',
        "entry_point": f"times_{n}",
        "canonical_solution": f"    return x * {n}\n",
        "test": f"\ndef check(candidate):\n    assert candidate(3) == {3 * n}\n    assert candidate(0) == 0\n",
    }
    for n in range(1, 5)
]
PLUS = [
    {
        **ROWS[0], "canonical_solution": "    return x * 1.0\n", "contract": "", "atol": 0, "base_input": [[3], [0]],
        "plus_input": [[7], [1e300]],
    },
    {
        "task_id": "HumanEval/32", "entry_point": "find_zero", "contract": "", "atol": 0.0001,
        "prompt": "def poly(xs, x):\n    return xs[0] + xs[1] * x\n\n\ndef find_zero(xs):\n    ''' A root. '''\n",
        "canonical_solution": "    return -xs[0] / xs[1]\n", "base_input": [[[1, 2]]], "plus_input": [[[3, -4]]],
    },
]  # fmt: skip


def place(folder: Path, benchmark: Benchmark, rows: list[dict[str, Any]]) -> SourceContext:
    (folder / "data" / benchmark.name).mkdir(parents=True, exist_ok=True)
    name = "HumanEval.jsonl" if benchmark is HUMANEVAL else "HumanEvalPlus.jsonl"
    (folder / "data" / benchmark.name / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return SourceContext(data_dir=folder / "data", offline=True)


@pytest.mark.parametrize("benchmark", [HUMANEVAL, HUMANEVAL_PLUS])
@pytest.mark.parametrize("mode", ["plain", "chat"])
def test_known_models(benchmark: Benchmark, mode: str, tmp_path: Path) -> None:
    context = place(tmp_path, benchmark, ROWS if benchmark is HUMANEVAL else PLUS)
    task = task_of(benchmark, context, mode)
    for metric in benchmark.metrics:
        assert value(task, oracle(task), tmp_path / "right", metric) == 1.0
        assert value(task, FakeModel(lambda prompt: "    return None"), tmp_path / "wrong", metric) == 0.0
    if benchmark is HUMANEVAL:
        assert value(task, FakeModel(lambda prompt: "    return x * 2"), tmp_path / "one") == 0.25


def test_the_prompt_and_what_counts(tmp_path: Path) -> None:
    context = place(tmp_path, HUMANEVAL, ROWS)
    plain, chat = task_of(HUMANEVAL, context, "plain"), task_of(HUMANEVAL, context, "chat")
    assert plain.prompt(plain.questions[0]).text == ROWS[0]["prompt"]
    [message] = chat.prompt(chat.questions[0]).messages
    assert message.content == f"Complete the following python code:\n{ROWS[0]['prompt']}"
    lenient_only = FakeModel(lambda prompt: "Sure:\n```python\nreturn x * 1\n```")
    found = scored(chat, lenient_only, tmp_path / "lenient").metrics
    assert found["pass@1"].value == 0.0 and found["lenient pass@1"].value == 0.25


def test_several_answers_give_pass_at_10(tmp_path: Path) -> None:
    context = place(tmp_path, HUMANEVAL, ROWS[:2])
    answers = iter([f"    return x * {1 if n % 10 == 0 else 9}" for n in range(20)])
    setting = Setting(mode="plain", repeats=10)
    task = make_task(HUMANEVAL, setting, context)
    samples = run_task(task, FakeModel(lambda prompt: next(answers)), tmp_path / "s")
    found = score(HUMANEVAL, list(samples.values())).metrics
    assert found["pass@1"].value == pytest.approx(1 / 20)  # one of ten, and none
    assert found["pass@10"].value == pytest.approx(1 / 2)
    assert list(found) == ["pass@1", "lenient pass@1", "pass@10", "lenient pass@10"]


def test_a_tolerance_and_any_root(tmp_path: Path) -> None:
    task = task_of(HUMANEVAL_PLUS, place(tmp_path, HUMANEVAL_PLUS, PLUS), "plain")
    close = {"times_1": "    return x * (1 + 1e-9)", "find_zero": "    return -xs[0] / xs[1] + 1e-7"}
    off = {"times_1": "    return x * 1.01 if x != 3 else 3", "find_zero": "    return 1e9"}
    for answers, expected in ((close, 1.0), (off, 0.0)):

        def answer(prompt: Prompt, answers: dict[str, str] = answers) -> str:
            return next(answers[name] for name in answers if f"def {name}" in prompt.text)

        assert value(task, FakeModel(answer), tmp_path / str(expected)) == expected


@pytest.mark.parametrize(
    ("reference", "answer", "right"),
    [
        ("[x, 1.0]", "[x, 1.0 + 1e-9]", True), ("[x, 1.0]", "[x, 1.1]", False), ("[x]", "(x,)", False),
        ("[x]", "[x, x]", False), ("1.0", "True", True), ("x", "str(x)", False), ("None", "0", False),
        ("'a'", "'a'", True), ("0.0", "'0.0'", False), ("(x, [0.5])", "(x, [0.5000000001])", True),
        ("x", "x + 1e-9", False),
    ],
)  # fmt: skip
def test_results_are_compared_as_evalplus_does(tmp_path: Path, reference: str, answer: str, right: bool) -> None:
    row = {**PLUS[0], "canonical_solution": f"    return {reference}\n", "plus_input": [[0]]}
    task = task_of(HUMANEVAL_PLUS, place(tmp_path, HUMANEVAL_PLUS, [row]), "plain")
    assert value(task, FakeModel(lambda prompt: f"    return {answer}"), tmp_path / "s") == float(right)


@pytest.mark.parametrize("change", [{"prompt": None}, {"entry_point": None}, {"test": None}])
def test_damaged_rows(tmp_path: Path, change: dict[str, Any]) -> None:
    row = {key: value for key, value in ROWS[0].items() if key not in change}
    with pytest.raises(DataError, match="row 0 is not as published: no field"):
        task_of(HUMANEVAL, place(tmp_path, HUMANEVAL, [row]), "plain")


def test_without_a_sandbox_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert HUMANEVAL.needs is not None and HUMANEVAL_PLUS.needs is not None
    with pytest.raises(SandboxError, match="install"):
        HUMANEVAL.needs()


def test_all_published_rows(shared_dir: Path, tmp_path: Path) -> None:
    context = SourceContext(data_dir=shared_dir / "evaldata", offline=True)
    task = task_of(HUMANEVAL, context, "plain")
    assert len(task.questions) == 164
    assert value(task, oracle(task), tmp_path / "right") == 1.0


def test_published_rows_in_chat(shared_dir: Path, tmp_path: Path) -> None:
    context = SourceContext(data_dir=shared_dir / "evaldata", offline=True)
    task = task_of(HUMANEVAL, context, "chat", limit=20)
    for metric in HUMANEVAL.metrics:
        assert value(task, oracle(task), tmp_path / "right", metric) == 1.0


def test_wrong_programs_fail_on_published_rows(shared_dir: Path) -> None:
    context = SourceContext(data_dir=shared_dir / "evaldata", offline=True)
    questions = task_of(HUMANEVAL, context, "plain").questions
    wrong = ["    return None\n", "    exit(0)\n", "    import os\n    os._exit(0)\n", "    raise SystemExit\n"]
    programs = [
        Program(question.text + wrong[place % len(wrong)], (question.extra["test"],))
        for place, question in list(enumerate(questions))[::6]
    ]
    programs += [Program(one.text + "    while True: pass\n", (one.extra["test"],)) for one in questions[:2]]
    assert not [one for one in run_many(programs, limits=Limits(seconds=1)) if one.status == "ok"]


def test_plus_has_more_time() -> None:
    assert humaneval.PLUS_LIMITS.seconds > humaneval.LIMITS.seconds
    assert replace(HUMANEVAL_PLUS, name="humaneval").metrics == HUMANEVAL.metrics
