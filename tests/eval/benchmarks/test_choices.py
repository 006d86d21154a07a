"""Benchmarks of lettered choices on made rows in their official files, and on published rows."""

from __future__ import annotations

from pathlib import Path

import pytest

from puyulm.errors import DataError
from puyulm.eval.benchmark import Benchmark, Generation
from puyulm.eval.benchmarks import arc, ceval, cmmlu, gpqa, hellaswag, mmlu, piqa, winogrande
from puyulm.eval.choices import known_letter
from puyulm.eval.source import SourceContext
from puyulm.eval.task import Task, read_questions
from tests.eval.benchmarks.choice_files import WRITERS, sum_row, write_csv, write_jsonl
from tests.eval.fakes import FakeModel, guesser, oracle, task_of, value

BENCHMARKS = {
    one.name: one
    for one in (
        mmlu.BENCHMARK, cmmlu.BENCHMARK, ceval.BENCHMARK, *gpqa.BENCHMARKS, *arc.BENCHMARKS, hellaswag.BENCHMARK,
        winogrande.BENCHMARK, piqa.BENCHMARK,
    )
}  # fmt: skip
CASES = [(name, mode) for name, one in BENCHMARKS.items() for mode in one.modes]
SUBSETS = {"mmlu": ["anatomy", "virology"], "cmmlu": ["anatomy", "virology"], "ceval": ["logic", "law"]}


def made_task(name: str, mode: str, folder: Path, shots: int = 0) -> Task:
    WRITERS[name](folder)
    context = SourceContext(data_dir=folder, offline=True)
    return task_of(BENCHMARKS[name], context, mode, shots=shots, subsets=SUBSETS.get(name, ()))


@pytest.mark.parametrize(("name", "mode"), CASES)
def test_known_models_get_the_scores_that_arithmetic_says(name: str, mode: str, tmp_path: Path) -> None:
    """The n-th answer is letter n mod choices: who always takes the first is right in one of so many rows."""
    task = made_task(name, mode, tmp_path)
    choices = len(task.questions[0].choices)
    knowing, first = oracle(task), FakeModel(lambda prompt: "A")
    generates = isinstance(task.mode, Generation)
    for metric in ("accuracy", "strict") if generates else ("accuracy",):
        assert value(task, knowing, tmp_path / "oracle", metric) == 1.0
    assert value(task, first, tmp_path / "first") == pytest.approx(1 / choices)
    if generates:
        assert value(task, FakeModel(lambda prompt: "I cannot answer this."), tmp_path / "none") == 0.0


@pytest.mark.parametrize("name", [name for name, one in BENCHMARKS.items() if one.examples])
def test_examples_are_solved_and_of_the_same_subset(name: str, tmp_path: Path) -> None:
    for mode in BENCHMARKS[name].modes:
        task = made_task(name, mode, tmp_path, shots=5)
        question = task.questions[7]
        shown, examples = task.shown(question), task.examples(question)
        assert len(examples) == 5 and all(one.subset == question.subset for one in examples)
        assert value(task, oracle(task), tmp_path / mode) == 1.0
        ends = ("Answer:", "答案", "ANSWER", "Adding numbers", "too big", "[assistant]")
        assert max(map(shown.count, ends)) >= 6


def test_prompts_are_the_published_ones(tmp_path: Path) -> None:
    shown = made_task("mmlu", "likelihood", tmp_path, shots=1)
    assert shown.shown(shown.questions[1]) == (
        "The following are multiple choice questions (with answers) about anatomy.\n\n"
        "What is 0 plus 0?\nA. the number 0\nB. the number 1\nC. the number 2\nD. the number 3\nAnswer: A\n\n"
        "What is 1 plus 1?\nA. the number 1\nB. the number 2\nC. the number 3\nD. the number 4\nAnswer: \n"
        "-> A\n-> B\n-> C\n-> D"
    )
    chinese = made_task("cmmlu", "likelihood", tmp_path, shots=1)
    assert chinese.shown(chinese.questions[1]).startswith(
        "以下是关于解剖学的单项选择题，请直接给出正确答案的选项。\n题目：What is 0 plus 0?\nA. the number 0\n"
    )
    story = made_task("hellaswag", "likelihood", tmp_path)
    assert story.shown(story.questions[1]) == (
        "Adding numbers: How to add 1. Take two numbers. The sum \n"
        "-> is the number 1. Write it down\n-> is the number 2. Write it down\n"
        "-> is the number 3. Write it down\n-> is the number 4. Write it down"
    )
    blank = made_task("winogrande", "likelihood", tmp_path)
    assert blank.shown(blank.questions[0]).splitlines()[1] == (
        "The box 0 did not fit into the bag because the bag  -> was too big."
    )


def test_lengths_count_where_choices_are_normalised(tmp_path: Path) -> None:
    """A longer choice with the lower sum may have the higher mean."""
    write_jsonl(tmp_path / "piqa" / "valid.jsonl", [{"goal": "g", "sol1": "ab", "sol2": "abcdefgh", "label": 1}])
    task = task_of(piqa.BENCHMARK, SourceContext(data_dir=tmp_path), "likelihood")
    model = FakeModel(likelihood=lambda one: -2.0 if one.text == "ab" else -4.0)
    assert value(task, model, tmp_path / "s", "accuracy") == 0.0
    assert value(task, model, tmp_path / "s", "normalised") == 1.0


def test_gpqa_turns_choices_so_that_letters_are_right_equally_often(tmp_path: Path) -> None:
    task = made_task("gpqa", "chat", tmp_path)
    assert [one.target for one in task.questions[:4]] == ["D", "C", "B", "A"]
    assert all(one.choices["ABCD".index(one.target)] == "right" for one in task.questions)
    assert len(made_task("gpqa_diamond", "chat", tmp_path).questions) == 4


@pytest.mark.parametrize(
    ("name", "file", "row"),
    [
        ("arc_easy", "arc/ARC-Easy-Test.jsonl", {"id": "1", "question": {"stem": "q"}, "answerKey": "A"}),
        ("arc_easy", "arc/ARC-Easy-Test.jsonl",
         {"id": "1", "question": {"stem": "q", "choices": [{"text": "a", "label": "A"}]}, "answerKey": "B"}),
        ("hellaswag", "hellaswag/hellaswag_val.jsonl",
         {"activity_label": "a", "ctx_a": "b", "ctx_b": "c", "endings": ["x", "y"], "label": "7"}),
        ("hellaswag", "hellaswag/hellaswag_val.jsonl",
         {"activity_label": "a", "ctx_a": "b", "ctx_b": "c", "endings": ["x", "y"], "label": ""}),
        ("winogrande", "winogrande/dev.jsonl", {"sentence": "no blank", "option1": "a", "option2": "b", "answer": "1"}),
        ("winogrande", "winogrande/dev.jsonl", {"sentence": "a _", "option1": "a", "option2": "b", "answer": "3"}),
        ("piqa", "piqa/valid.jsonl", {"goal": "g", "sol1": "a", "sol2": "b", "label": -1}),
        ("piqa", "piqa/valid.jsonl", {"goal": "g", "sol1": "a", "label": 0}),
    ],
)  # fmt: skip
def test_damaged_rows_are_named(name: str, file: str, row: dict[str, object], tmp_path: Path) -> None:
    write_jsonl(tmp_path / file, [row])
    with pytest.raises(DataError, match=f"{name}: 'test' row 0 is not as published"):
        task_of(BENCHMARKS[name], SourceContext(data_dir=tmp_path, offline=True), "likelihood")


@pytest.mark.parametrize("answer", ["E", "", "AB", "4"])
def test_damaged_answers_of_tables_are_named(answer: str, tmp_path: Path) -> None:
    write_csv(tmp_path / "mmlu" / "test" / "anatomy_test.csv", [["q", "a", "b", "c", "d", answer]])
    with pytest.raises(DataError, match=r"'test' row 0 of 'anatomy' is not as published: .* none of its 4 choices"):
        task_of(mmlu.BENCHMARK, SourceContext(data_dir=tmp_path, offline=True), "likelihood", subsets=["anatomy"])


def test_the_hub_has_other_fields_for_the_same_rows() -> None:
    text, choices, right = sum_row(6)
    row = {"question": text, "subject": "anatomy", "choices": choices, "answer": right}
    assert mmlu.read(row, "anatomy", 6).target == "C" and mmlu.read(row, "anatomy", 6).choices == tuple(choices)
    labels = {"text": choices, "label": ["1", "2", "3", "4"]}
    question = arc.read({"id": "x", "question": text, "choices": labels, "answerKey": "3"}, "", 0)
    assert (question.target, question.text, question.choices) == ("C", text, tuple(choices))
    assert known_letter(0, choices) == "A" and known_letter(" D ", choices) == "D"


def test_subjects_are_all_there() -> None:
    counts = {name: len(BENCHMARKS[name].subsets) for name in ("mmlu", "cmmlu", "ceval")}
    assert counts == {"mmlu": 57, "cmmlu": 67, "ceval": 52}

    def groups(benchmark: Benchmark) -> dict[str, int]:
        found = list(benchmark.subsets.values())
        return {group: found.count(group) for group in found}

    assert groups(mmlu.BENCHMARK) == {"STEM": 18, "other": 14, "social sciences": 12, "humanities": 13}
    assert groups(ceval.BENCHMARK) == {"STEM": 20, "social sciences": 10, "humanities": 11, "other": 11}
    assert groups(cmmlu.BENCHMARK)["China-specific"] == 15 and groups(cmmlu.BENCHMARK)["STEM"] == 17


@pytest.mark.parametrize("name", ["mmlu", "cmmlu"])
def test_published_rows(name: str, shared_dir: Path, tmp_path: Path) -> None:
    benchmark, folder = BENCHMARKS[name], shared_dir / "evaldata"
    pattern = "dev/*_dev.csv" if name == "mmlu" else "dev/*.csv"
    subjects = sorted(file.stem.removesuffix("_dev") for file in (folder / name).glob(pattern))
    context = SourceContext(data_dir=folder, offline=True)
    for mode in benchmark.modes:
        task = task_of(benchmark, context, mode, shots=5, subsets=subjects)
        assert len(task.questions) > 900 and value(task, oracle(task), tmp_path / mode) == 1.0
    task = task_of(benchmark, context, "likelihood", shots=5, subsets=subjects)
    assert value(task, guesser(), tmp_path / "guesser") == pytest.approx(0.25, abs=0.05)


def test_published_rows_of_arc(shared_dir: Path) -> None:
    context = SourceContext(data_dir=shared_dir / "evaldata", offline=True)
    questions = read_questions(arc.BENCHMARKS[0], "", "dev", context)
    assert len(questions) == 294 and {len(one.choices) for one in questions} <= {3, 4, 5}
    assert all(one.target in "ABCDE" for one in questions)
