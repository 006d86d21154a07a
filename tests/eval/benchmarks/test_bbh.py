"""BBH: prompts from files, letters and texts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from puyulm.errors import DataError
from puyulm.eval.benchmark import Question
from puyulm.eval.benchmarks import bbh
from puyulm.eval.benchmarks.bbh import BENCHMARK, TASKS
from puyulm.eval.model import Output
from puyulm.eval.source import SourceContext
from puyulm.eval.task import Setting, make_task
from tests.eval.fakes import FakeModel, guesser, oracle, task_of, value

COT = "A NOTE canary GUID\n-----\nSolve it.\n\nQ: One?\nA: Let's think step by step.\nIt is. So the answer is (A).\n"


def write(folder: Path, layout: str, subset: str, rows: list[dict[str, str]], cot: str | None = COT) -> None:
    file, prompt = {
        "flat": (folder / f"{subset}.json", folder / f"{subset}.cot.txt"),
        "original": (folder / f"bbh/{subset}.json", folder / f"cot-prompts/{subset}.txt"),
    }[layout]
    for one in (file, prompt):
        one.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"canary": "x", "examples": rows}))
    if cot is not None:
        prompt.write_text(cot)


def rows_of(subset: str) -> list[dict[str, str]]:
    if TASKS[subset] == bbh.FREE:
        return [{"input": f"Sort {n}", "target": f"word {n}"} for n in range(4)]
    return [{"input": f"Which {n}?\nOptions:\n(A) one\n(B) two", "target": "(A)" if n % 2 else "(B)"} for n in range(4)]


def test_tasks() -> None:
    assert len(TASKS) == 27 and list(TASKS.values()).count(bbh.FREE) == 10


@pytest.mark.parametrize("layout", ["flat", "original"])
@pytest.mark.parametrize("mode", ["chat", "plain"])
def test_known_models(tmp_path: Path, layout: str, mode: str) -> None:
    for subset in TASKS:
        write(tmp_path / "data/bbh", layout, subset, rows_of(subset))
    task = task_of(BENCHMARK, SourceContext(data_dir=tmp_path / "data", offline=True), mode)
    assert len(task.questions) == 27 * 4
    assert value(task, oracle(task), tmp_path / "a") == value(task, oracle(task), tmp_path / "a", "strict") == 1.0
    assert value(task, guesser(), tmp_path / "b") == 0.0
    always = FakeModel(lambda prompt: "So the answer is (A).")
    assert value(task, always, tmp_path / "c") == pytest.approx(17 / 27 / 2)
    shown = task.shown(task.questions[0])
    assert "Follow the given examples and answer the question.\nSolve it.\n\nQ: One?" in shown and "canary" not in shown
    assert shown.endswith("A: Let's think step by step.") == (mode == "plain")


def test_on_published_rows(shared_dir: Path, tmp_path: Path) -> None:
    context = SourceContext(data_dir=shared_dir / "evaldata", offline=True)
    there = [one for one in TASKS if (shared_dir / f"evaldata/bbh/{one}.json").is_file()]
    assert len(there) == 8
    for mode in BENCHMARK.modes:
        task = make_task(BENCHMARK, Setting(mode=mode), context, subsets=there)
        assert len(task.questions) == 2000
        assert value(task, oracle(task), tmp_path / mode) == value(task, oracle(task), tmp_path / mode, "strict") == 1.0
        assert all(task.shown(one).count("\nQ: ") == 4 for one in task.questions[::100])
    always = FakeModel(lambda prompt: "The answer is (A).")
    options = [one for one in there if TASKS[one] == bbh.CHOICE]
    task = make_task(BENCHMARK, Setting(mode="plain"), context, subsets=options)
    assert 0.1 < value(task, always, tmp_path / "c") < 0.45


@pytest.mark.parametrize(
    ("subset", "target", "text", "accuracy", "strict"),
    [
        ("snarks", "(B)", "So the answer is (B).", 1, 1),
        ("snarks", "(B)", "So the answer is **(B) two**.", 1, 0),
        ("snarks", "(B)", "So the answer is B.", 1, 0),
        ("snarks", "(B)", "I think (B) fits.", 1, 0),
        ("snarks", "(B)", "(A) is wrong. So the answer is (B).\n\nQ: next. So the answer is (A).", 1, 1),
        ("snarks", "(B)", "So the answer is (A) or (B).", 0, 0),
        ("snarks", "(B)", "I cannot tell", 0, 0),
        ("snarks", "(B)", "", 0, 0),
        ("navigate", "No", "So the answer is No.", 1, 1),
        ("navigate", "No", "So the answer is no, we do not return.", 1, 0),
        ("navigate", "No", "No", 0, 0),
        ("boolean_expressions", "True", "the answer is **True**", 1, 1),
        ("word_sorting", "ant bee cat", "So the answer is ant, bee, cat.", 1, 0),
        ("word_sorting", "ant bee cat", "So the answer is ant cat bee.", 0, 0),
        ("dyck_languages", "] ] }", "So the answer is ] ] }.", 1, 1),
        ("multistep_arithmetic_two", "-24", "So the answer is -24.", 1, 1),
        ("multistep_arithmetic_two", "-24", "So the answer is 24.", 0, 0),
    ],
)
def test_answers(subset: str, target: str, text: str, accuracy: int, strict: int) -> None:
    found = bbh.verdict(Question("0", "?", target, subset), [Output(text=text)])
    assert found.scores == {"accuracy": accuracy, "strict": strict}


def test_an_option_as_a_text_becomes_its_letter() -> None:
    row = {"input": "Find?\nOptions:\n(A) Up\n(B) Monsters, Inc", "target": "Monsters, Inc", "prompt": COT}
    assert bbh.read(row, "movie_recommendation", 0).target == "(B)"
    assert bbh.read(row | {"target": "Else"}, "movie_recommendation", 0).target == "Else"


@pytest.mark.parametrize(
    ("row", "cot", "message"),
    [
        ({"input": "x"}, COT, "no field 'target'"),
        ({"input": "x", "target": 5}, COT, "not as published"),
        ({"input": "x", "target": "(A)"}, "nothing", "holds no examples"),
        ({"input": "x", "target": "(A)"}, None, r"place snarks.cot.txt or cot-prompts/snarks.txt in .*bbh"),
    ],
)
def test_damaged_rows(tmp_path: Path, row: dict[str, str], cot: str | None, message: str) -> None:
    write(tmp_path / "bbh", "flat", "snarks", [row], cot)
    with pytest.raises(DataError, match=message):
        make_task(BENCHMARK, Setting(mode="chat"), SourceContext(data_dir=tmp_path, offline=True), subsets=["snarks"])
