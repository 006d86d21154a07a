"""GSM8K: its four ways of asking."""

from __future__ import annotations

from pathlib import Path

import pytest

from puyulm.errors import DataError
from puyulm.eval.benchmark import Generation, Question
from puyulm.eval.benchmarks.gsm8k import BENCHMARK
from puyulm.eval.model import Output
from puyulm.eval.source import SourceContext
from tests.eval.benchmarks.choice_files import write_jsonl
from tests.eval.fakes import FakeModel, guesser, oracle, task_of, value

ROWS = [
    {"question": f"What is {n} + {n}?", "answer": f"It is <<{n}+{n}={2 * n}>>{2 * n}.\n#### {2 * n:,}"}
    for n in range(600, 620)
]


@pytest.fixture
def context(tmp_path: Path) -> SourceContext:
    for role in ("test", "train"):
        write_jsonl(tmp_path / "data/gsm8k" / f"{role}.jsonl", ROWS)
    return SourceContext(data_dir=tmp_path / "data", offline=True)


@pytest.mark.parametrize(("mode", "shots"), [("chat", 4), ("plain", 4), ("lm-eval", 5), ("lighteval", 5), ("chat", 0)])
def test_known_models(context: SourceContext, tmp_path: Path, mode: str, shots: int) -> None:
    task = task_of(BENCHMARK, context, mode, shots=shots)
    assert value(task, oracle(task), tmp_path / "a") == 1.0
    assert value(task, oracle(task), tmp_path / "a", "strict") == 1.0
    assert value(task, guesser(), tmp_path / "b") == 0.0
    always = FakeModel(lambda prompt: "The answer is 1210\n#### 1210")
    assert value(task, always, tmp_path / "c") == 1 / 20


def test_on_published_rows(shared_dir: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data/gsm8k"
    folder.mkdir(parents=True)
    for role in ("test", "train"):
        (folder / f"{role}.jsonl").symlink_to(shared_dir / f"data/gsm8k_{role}.jsonl")
    context = SourceContext(data_dir=tmp_path / "data", offline=True)
    assert len(task_of(BENCHMARK, context, "chat").questions) == 1319
    for mode, shots in (("chat", 4), ("lm-eval", 5)):
        task = task_of(BENCHMARK, context, mode, shots=shots, limit=300)
        assert value(task, oracle(task), tmp_path / mode) == 1.0
    assert "<<48/2=24>>" in task.shown(task.questions[7])
    task = task_of(BENCHMARK, context, "chat", shots=4, limit=1)
    assert [one.text[:6] for one in task.examples(task.questions[0])] == ["Angelo", "Mark's", "Bella ", "A grou"]
    assert "<<" not in task.shown(task.questions[0])


@pytest.mark.parametrize(
    ("mode", "text", "accuracy", "strict"),
    [
        ("chat", "5 + 5 = 10. The answer is 1,000", 1, 1),
        ("chat", "So it is **$1,000.00**.", 1, 0),
        ("chat", "The answer is $1000.\n\nQuestion: What is 3?", 1, 1),
        ("chat", "\\boxed{1000}", 1, 0),
        ("chat", "The answer is 1000, not 999", 0, 1),
        ("chat", "I cannot say.", 0, 0),
        ("chat", "", 0, 0),
        ("lm-eval", "It is.\n#### 1,000", 1, 1),
        ("lm-eval", "It is $1,000.", 1, 0),
        ("lm-eval", "It is 1000.00", 0, 0),
        ("lm-eval", "#### 1000 of 5", 0, 1),
        ("lighteval", "It is 1000.", 0, 0),
        ("lighteval", "#### 1000\nmore 7", 1, 1),
    ],
)
def test_answers(mode: str, text: str, accuracy: int, strict: int) -> None:
    generation = BENCHMARK.mode(mode)
    assert isinstance(generation, Generation) and generation.verdict is not None
    found = generation.verdict(Question("0", "?", "1000"), [Output(text=text)])
    assert found.scores == {"accuracy": accuracy, "strict": strict}


@pytest.mark.parametrize(
    "row", [{"question": "x"}, {"question": "x", "answer": "no mark"}, {"question": "x", "answer": "#### y"}]
)
def test_damaged_rows(tmp_path: Path, row: dict[str, str]) -> None:
    write_jsonl(tmp_path / "gsm8k/test.jsonl", [row])
    with pytest.raises(DataError, match="gsm8k: 'test' row 0 is not as published"):
        task_of(BENCHMARK, SourceContext(data_dir=tmp_path, offline=True), "chat")
