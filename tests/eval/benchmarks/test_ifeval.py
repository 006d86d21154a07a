"""IFEval: rows, metrics, and models whose score is known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from puyulm.errors import DataError
from puyulm.eval.benchmarks.ifeval import BENCHMARK, read
from puyulm.eval.source import SourceContext
from puyulm.eval.task import Task
from tests.eval.fakes import FakeModel, scored, task_of
from tests.eval.responses import obedient

ROWS: list[dict[str, Any]] = [
    {"key": 7, "prompt": "Write no comma.", "instruction_id_list": ["punctuation:no_comma"], "kwargs": [{}]},
    {
        "key": 8,
        "prompt": "Write three words at least, and a title.",
        "instruction_id_list": ["length_constraints:number_words", "detectable_format:title"],
        "kwargs": [{"num_words": 3, "relation": "at least", "keyword": None}, {"num_words": None}],  # as on the hub
    },
]
CONTRADICTORY = {"1627", "3718", "3369", "3371", "374"}  # the request to be repeated breaks another instruction


def context_of(folder: Path, rows: list[dict[str, Any]]) -> SourceContext:
    (folder / "ifeval").mkdir(parents=True)
    (folder / "ifeval" / "input_data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return SourceContext(data_dir=folder, offline=True)


def follower(task: Task) -> FakeModel:
    texts = {task.prompt(question).shown(): obedient(question.target) for question in task.questions}
    return FakeModel(lambda prompt: texts[prompt.shown()])


def test_metrics_are_what_arithmetic_says(tmp_path: Path) -> None:
    """One model follows everything, one the first prompt and half of the second."""
    task = task_of(BENCHMARK, context_of(tmp_path, ROWS), "chat")
    answers = {"Write no comma.": "fine", ROWS[1]["prompt"]: "<<on seas>>\na b c"}
    scores = scored(task, FakeModel(lambda prompt: answers[prompt.messages[0].content]), tmp_path / "s").metrics
    assert {name: one.value for name, one in scores.items()} == {
        "prompt_strict": 1.0, "instruction_strict": 1.0, "prompt_loose": 1.0, "instruction_loose": 1.0, "strict": 1.0,
        "mean": 1.0,
    }  # fmt: skip
    answers[ROWS[1]["prompt"]] = "<<seas>>"
    scores = scored(task, FakeModel(lambda prompt: answers[prompt.messages[0].content]), tmp_path / "t").metrics
    assert scores["prompt_strict"].value == 0.5
    assert scores["instruction_strict"].value == pytest.approx(2 / 3)
    assert scores["strict"].value == pytest.approx((1 / 2 + 2 / 3) / 2)


def test_loose_scores_count_each_instruction_by_its_own_variant(tmp_path: Path) -> None:
    task = task_of(BENCHMARK, context_of(tmp_path, ROWS), "chat")
    answers = {"Write no comma.": "Sure, here:\nfine", ROWS[1]["prompt"]: "a b"}
    scores = scored(task, FakeModel(lambda prompt: answers[prompt.messages[0].content]), tmp_path / "s").metrics
    found = {name: one.value for name, one in scores.items()}
    assert found == pytest.approx({
        "prompt_strict": 0.0, "instruction_strict": 0.0, "prompt_loose": 0.5, "instruction_loose": 1 / 3,
        "strict": 0.0, "mean": (1 / 2 + 1 / 3) / 4,
    })  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kwargs": []}, "row 0 is not as published"),
        ({"instruction_id_list": ["punctuation:none"]}, "unknown instruction 'punctuation:none'"),
        ({"instruction_id_list": [], "kwargs": []}, "no instructions"),
        ({"kwargs": [None]}, "not as published"),
    ],
)
def test_damaged_rows(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        task_of(BENCHMARK, context_of(tmp_path, [ROWS[0] | change]), "chat")


def test_published_rows(shared_dir: Path, tmp_path: Path) -> None:
    for package in ("langdetect", "nltk", "punkt"):
        pytest.importorskip(package, reason="needs the extra eval")
    task = task_of(BENCHMARK, SourceContext(data_dir=shared_dir / "evaldata", offline=True), "chat")
    assert len(task.questions) == 541
    assert sum(len(question.target) for question in task.questions) == 834
    scores = scored(task, follower(task), tmp_path / "a").metrics
    assert scores["prompt_strict"].value == (541 - len(CONTRADICTORY)) / 541
    assert scores["instruction_strict"].value == (834 - len(CONTRADICTORY)) / 834
    silent = scored(task, FakeModel(), tmp_path / "b").metrics
    assert {one.value for one in silent.values()} == {0.0}
    short = scored(task, FakeModel(lambda prompt: "ok"), tmp_path / "c").metrics
    commas = [q for q in task.questions if [kind for kind, _ in q.target] == ["punctuation:no_comma"]]
    assert len(commas) / 541 <= short["prompt_strict"].value < 0.3


def test_hub_rows_name_all_arguments() -> None:
    question = read(ROWS[1], "", 0)
    assert question.target == [
        ["length_constraints:number_words", {"num_words": 3, "relation": "at least"}],
        ["detectable_format:title", {}],
    ]
