"""The runner on made rows and known models."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from puyulm.errors import DataError
from puyulm.eval.benchmarks import gsm8k, mmlu
from puyulm.eval.run import Part, run_task
from puyulm.eval.source import SourceContext
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


def test_missing_rows_say_which_files_to_place_where(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"place dev/anatomy_dev.csv or anatomy/dev/\*.parquet in .*mmlu"):
        list(mmlu.BENCHMARK.source.records("mmlu", "anatomy", "dev", SourceContext(data_dir=tmp_path, offline=True)))


def test_choices_on_published_rows(shared_dir: Path, tmp_path: Path) -> None:
    context = SourceContext(data_dir=shared_dir / "evaldata", offline=True)
    task = task_of(mmlu.BENCHMARK, context, "likelihood", shots=5, subsets=["anatomy", "philosophy"])
    assert value(task, oracle(task), tmp_path / "a") == 1.0
    assert 0.15 < value(task, guesser(), tmp_path / "b") < 0.35
