"""The runner on made rows and known models."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from puyulm.errors import DataError, GenerationError
from puyulm.eval.benchmark import Generation, Question
from puyulm.eval.benchmarks import gsm8k, mmlu
from puyulm.eval.model import OnOutput, Prompt, PromptError
from puyulm.eval.run import Part, run_task
from puyulm.eval.source import SourceContext
from puyulm.eval.task import within_context
from tests.eval.fakes import FakeModel, guesser, oracle, task_of, value

ROWS = [
    {"question": f"What is {n} + {n}?", "answer": f"It is <<{n}+{n}={2 * n}>>{2 * n}.\n#### {2 * n}"} for n in range(40)
]


@pytest.fixture
def context(tmp_path: Path) -> SourceContext:
    folder = tmp_path / "data" / "gsm8k"
    folder.mkdir(parents=True)
    for role in ("test", "train"):
        (folder / f"{role}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return SourceContext(data_dir=tmp_path / "data")


def test_known_models_get_the_scores_that_arithmetic_says(context: SourceContext, tmp_path: Path) -> None:
    task = task_of(gsm8k.BENCHMARK, context, "chat", shots=4)
    assert value(task, oracle(task), tmp_path / "a") == 1.0
    assert value(task, FakeModel(lambda prompt: "I think it is 4."), tmp_path / "b") == 0.0 + 1 / 40


def test_a_run_goes_on_where_it_was_interrupted(context: SourceContext, tmp_path: Path) -> None:
    task = task_of(gsm8k.BENCHMARK, context, "chat", shots=4)
    model = oracle(task)
    run_task(task_of(gsm8k.BENCHMARK, context, "chat", shots=4, limit=25), model, tmp_path / "s")
    [file] = (tmp_path / "s").iterdir()
    file.write_text(file.read_text()[:-10])  # killed while it wrote
    model.asked = 0
    samples = run_task(task, model, tmp_path / "s")
    assert model.asked == 16 and len(samples) == 40
    model.asked = 0
    assert run_task(task, model, tmp_path / "s") == samples and model.asked == 0


def test_a_line_may_be_cut_within_a_character(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "gsm8k"
    folder.mkdir(parents=True)
    (folder / "test.jsonl").write_text(json.dumps({"question": "三加三是几？", "answer": "#### 6"}))
    task = task_of(gsm8k.BENCHMARK, SourceContext(data_dir=tmp_path / "data"), "chat")
    model = FakeModel(lambda prompt: "六")
    run_task(task, model, tmp_path / "s")
    [file] = (tmp_path / "s").iterdir()
    content = file.read_bytes()
    file.write_bytes(content[: content.rfind("六".encode()) + 1])
    run_task(task, model, tmp_path / "s")
    assert model.asked == 2 and file.read_bytes() == content


def test_another_prompt_or_other_examples_are_asked_again(context: SourceContext, tmp_path: Path) -> None:
    task = task_of(gsm8k.BENCHMARK, context, "chat", shots=4)
    mode = gsm8k.BENCHMARK.modes["chat"]
    assert isinstance(mode, Generation)
    edited = replace(gsm8k.BENCHMARK, modes={"chat": replace(mode, prompt=lambda question: f"Solve: {question.text}")})

    def last(question: Question) -> Sequence[Question]:
        return task.examples(question)[::-1]

    changed = [task_of(edited, context, "chat", shots=4), replace(task, examples=last)]
    for one in (task, *changed):
        model = oracle(one)
        run_task(one, model, tmp_path / "s")
        assert model.asked == 40


def test_a_question_that_a_model_cannot_take_is_named(context: SourceContext, tmp_path: Path) -> None:
    class Small(FakeModel):
        def generate(self, prompts: Sequence[Prompt], on_output: OnOutput) -> None:
            raise PromptError(7, "too long")

    task = task_of(gsm8k.BENCHMARK, context, "chat")
    with pytest.raises(GenerationError, match=f"^gsm8k: question '{task.questions[7].id}': too long$"):
        run_task(task, Small(), tmp_path / "s")


def test_parts_make_the_whole(context: SourceContext, tmp_path: Path) -> None:
    task = task_of(gsm8k.BENCHMARK, context, "chat", shots=4)
    parts = [run_task(task, oracle(task), tmp_path / "s", part=Part(i, 3)) for i in range(3)]
    assert sum(map(len, parts)) == 40
    model = oracle(task)
    run_task(task, model, tmp_path / "s")
    assert model.asked == 0


def test_a_question_is_no_example_of_itself(context: SourceContext, tmp_path: Path) -> None:
    other = [{"question": f"What is {n} - {n}?", "answer": "#### 0"} for n in range(5)]
    (tmp_path / "data" / "gsm8k" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in other))
    task = task_of(gsm8k.BENCHMARK, context, "chat", shots=4)
    assert [one.text for one in task.examples(task.questions[0])] == [row["question"] for row in other[:4]]
    (tmp_path / "data" / "gsm8k" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    task = task_of(gsm8k.BENCHMARK, context, "chat", shots=4)
    assert [one.text for one in task.examples(task.questions[1])] == [ROWS[n]["question"] for n in (0, 2, 3, 4)]


def test_examples_that_do_not_fit_the_context_are_left_out(context: SourceContext, tmp_path: Path) -> None:
    task = task_of(gsm8k.BENCHMARK, context, "plain", shots=4)
    seen: list[int] = []
    model = FakeModel(lambda prompt: seen.append(prompt.text.count("Question:")) or "")
    model.context = 4 * 1024
    run_task(within_context(task, model), model, tmp_path / "a")
    assert set(seen) == {5}
    seen.clear()
    one = len(task.prompt(task.questions[9]).text) // 5
    model.context = 4 * (3 * one + 64) // 3 + 8  # room for three of five, a quarter for the answer
    run_task(within_context(task, model), model, tmp_path / "b")
    assert set(seen) == {3}


def test_missing_rows_say_which_files_to_place_where(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"place dev/anatomy_dev.csv or anatomy/dev/\*.parquet in .*mmlu"):
        list(mmlu.BENCHMARK.source.records("mmlu", "anatomy", "dev", SourceContext(data_dir=tmp_path, offline=True)))


def test_what_was_downloaded_before_is_read_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    commit, folder = "0" * 40, tmp_path / "datasets--cais--mmlu"
    (folder / "refs" / "refs" / "convert").mkdir(parents=True)
    (folder / "refs" / "refs" / "convert" / "parquet").write_text(commit)
    rows = folder / "snapshots" / commit / "anatomy" / "test"
    rows.mkdir(parents=True)
    row = {"question": "Which?", "choices": list("wxyz"), "answer": 1}
    parquet.write_table(arrow.Table.from_pylist([row]), rows / "0000.parquet")
    source, offline = mmlu.BENCHMARK.source, SourceContext(offline=True)
    assert list(source.records("mmlu", "anatomy", "test", offline)) == [row]
    with pytest.raises(DataError, match="no 'test' rows of 'virology': place"):
        list(source.records("mmlu", "virology", "test", offline))


def test_choices_on_published_rows(shared_dir: Path, tmp_path: Path) -> None:
    context = SourceContext(data_dir=shared_dir / "evaldata", offline=True)
    task = task_of(mmlu.BENCHMARK, context, "likelihood", shots=5, subsets=["anatomy", "philosophy"])
    assert value(task, oracle(task), tmp_path / "a") == 1.0
    assert 0.15 < value(task, guesser(), tmp_path / "b") < 0.35
