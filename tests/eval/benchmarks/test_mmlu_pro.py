"""MMLU-Pro: made rows, and the official extraction on recorded outputs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from puyulm.errors import DataError
from puyulm.eval.benchmark import Question
from puyulm.eval.benchmarks.mmlu_pro import BENCHMARK, CATEGORIES, official_letter, verdict
from puyulm.eval.model import Output
from puyulm.eval.source import SourceContext
from puyulm.eval.task import read_questions
from tests.eval.fakes import FakeModel, oracle, task_of, value

OPTIONS = ["zero", "one", "two", "three", "N/A", "four", "five", "six", "seven", "eight"]
SUBSETS = ["math", "computer science"]


def row(n: int, category: str = "math", **changes: object) -> dict[str, object]:
    letter = "ABCDEFGHI"[n % 9]
    return {
        "question_id": n, "question": f"Which is the {n}th?", "options": OPTIONS, "answer": letter,
        "cot_content": f"A: Let's think step by step. We count. The answer is ({letter}).", "category": category,
        **changes,
    }  # fmt: skip


@pytest.fixture
def context(tmp_path: Path) -> SourceContext:
    folder = tmp_path / "mmlu_pro"
    folder.mkdir()
    rows = [row(n, SUBSETS[n % 2]) for n in range(36)]
    (folder / "mmlu_pro_test_data.json").write_text(json.dumps(rows))
    (folder / "mmlu_pro_val_data.json").write_text(json.dumps(rows[:12]))
    return SourceContext(data_dir=tmp_path, offline=True)


@pytest.mark.parametrize("mode", list(BENCHMARK.modes))
def test_known_models_get_the_scores_that_arithmetic_says(mode: str, context: SourceContext, tmp_path: Path) -> None:
    for shots in (0, 5):
        task = task_of(BENCHMARK, context, mode, shots=shots, subsets=SUBSETS)
        assert len(task.questions) == 36
        assert value(task, oracle(task), tmp_path / f"oracle{shots}") == 1.0
    task = task_of(BENCHMARK, context, mode, subsets=SUBSETS)
    assert value(task, FakeModel(lambda prompt: "So the answer is (C)."), tmp_path / "always") == pytest.approx(1 / 9)


def test_examples_are_of_the_same_category_in_the_published_form(context: SourceContext) -> None:
    task = task_of(BENCHMARK, context, "plain", shots=1, subsets=["computer science"])
    shown = task.shown(task.questions[3])
    assert shown.startswith(
        "The following are multiple choice questions (with answers) about computer science. Think step by step and "
        'then finish your answer with "the answer is (X)" where X is the correct letter choice.\n\n'
        "Question:\nWhich is the 1th?\nOptions:\nA. zero\n"
    )
    assert (
        "I. eight\nAnswer: Let's think step by step. We count. The answer is (B).\n\nQuestion:\nWhich is the 7th"
        in shown
    )
    assert shown.endswith("Answer: Let's think step by step.") and "N/A" not in shown


@pytest.mark.parametrize(
    ("text", "official", "answer", "note"),
    [
        ("We see that the answer is (C).", "C", "C", ""),
        ("the answer is C. No, the answer is D.", "C", "C", ""),
        ("Answer: D", "D", "D", ""),
        ("answer:\nE", "E", "E", ""),
        ("Clearly B, then F is true", None, "F", "the last letter"),
        ("The answer is **C**", None, "C", "the last letter"),
    ],
)
def test_the_official_extraction(text: str, official: str | None, answer: str, note: str) -> None:
    question = Question("7", "q", "C", "math", tuple("abcdefghij"))
    found = verdict(question, [Output(text=text)])
    assert (official_letter(text), found.answer, found.note) == (official, answer, note)
    assert found.scores["accuracy"] == float(answer == "C") and found.scores["strict"] == float(official == "C")


def test_the_last_resort_is_drawn_from_the_id() -> None:
    questions = [Question(str(n), "q", "A", "math", tuple("abcde")) for n in range(2000)]
    drawn = [verdict(one, [Output(text="no idea")]).answer for one in questions]
    assert drawn == [verdict(one, [Output(text="")]).answer for one in questions]
    assert all(350 < drawn.count(letter) < 450 for letter in "ABCDE")
    assert verdict(questions[0], [Output(text="no idea")]).scores["strict"] == 0.0


def test_recorded_predictions_are_the_same_row_by_row(shared_dir: Path) -> None:
    """The recorded run drew a random choice where neither pattern fits, and recorded null: all rows must agree."""
    [file] = (shared_dir / "evaldata" / "mmlu_pro").glob("model_outputs_*.jsonl")
    rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    assert len(rows) == 600 and sum(one["pred"] is not None for one in rows) == 493
    assert [official_letter(one["generated_text"]) for one in rows] == [one["pred"] for one in rows]
    for one in rows:
        question = BENCHMARK.read(one, one["category"], 0)
        assert question is not None
        found = verdict(question, [Output(text=one["generated_text"])])
        if one["pred"] is not None:
            assert found.answer == one["pred"] and found.scores["accuracy"] == float(one["pred"] == one["answer"])


def test_published_examples(shared_dir: Path) -> None:
    context = SourceContext(data_dir=shared_dir / "evaldata", offline=True)
    for category in CATEGORIES:
        examples = read_questions(BENCHMARK, category, "dev", context)
        assert len(examples) == 5
        for one in examples:
            assert official_letter(one.extra["solution"]) == one.target


@pytest.mark.parametrize(
    "damaged",
    [row(0, "alchemy"), row(0, answer="K"), row(0, answer="J"), row(0, options=None), row(0, question=None)],
)
def test_damaged_rows_are_named(damaged: dict[str, object], tmp_path: Path) -> None:
    (tmp_path / "mmlu_pro").mkdir()
    (tmp_path / "mmlu_pro" / "test.jsonl").write_text(json.dumps(damaged))
    with pytest.raises(DataError, match="'test' row 0 of 'math' is not as published"):
        task_of(BENCHMARK, SourceContext(data_dir=tmp_path, offline=True), "plain", subsets=["math"])
