"""L-Eval: made rows, published rows, and what is read from answers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from puyulm.errors import DataError
from puyulm.eval.benchmark import Question
from puyulm.eval.benchmarks import leval
from puyulm.eval.model import Output
from puyulm.eval.source import SourceContext
from tests.eval.fakes import FakeModel, oracle, scored, task_of, value

OUTPUTS = {
    "tpo": "B", "quality": "(B) Because it rained.", "coursera": "BD", "sci_fi": "True [fact: False]",
    "gsm100": "3 + 4 = 7. The answer is 7", "codeU": "[1, 2]", "topic_retrieval_longchat": "The sea",
}  # fmt: skip


@pytest.fixture
def context(tmp_path: Path) -> SourceContext:
    for kind, tasks in (("Closed", leval.CLOSED), ("Open", leval.OPEN)):
        folder = tmp_path / "leval" / f"{kind}-ended-tasks"
        folder.mkdir(parents=True)
        for task in tasks:
            output = OUTPUTS.get(task, "A short account of the harbor.")
            row = {"input": f"{task} text", "instructions": ["First?", "Second?"], "outputs": [output] * 2,
                   "source": task, "evaluation": "exam"}  # fmt: skip
            (folder / f"{task}.jsonl").write_text(json.dumps(row) + "\n")
    return SourceContext(data_dir=tmp_path, model=FakeModel(), offline=True)


def test_known_models_get_the_scores_that_arithmetic_says(context: SourceContext, tmp_path: Path) -> None:
    for mode in ("chat", "plain"):
        task = task_of(leval.BENCHMARK, context, mode)
        assert len(task.questions) == 40
        known = scored(task, oracle(task), tmp_path / mode)
        assert known.main.value == 1.0 and set(known.groups) == {"closed", "open"}
        assert value(task, FakeModel(), tmp_path / f"{mode}-none") == 0.0
    always_b = scored(task, FakeModel(lambda prompt: "B"), tmp_path / "b")
    assert always_b.groups["closed"].value == pytest.approx(2 / 7) and always_b.groups["open"].value == 0.0


def test_published_rows(shared_dir: Path, tmp_path: Path) -> None:
    context = SourceContext(data_dir=shared_dir / "evaldata", model=FakeModel(), offline=True)
    task = task_of(leval.BENCHMARK, context, "chat", subsets=["tpo", "quality"])
    assert len(task.questions) == 269 + 202
    assert {question.target for question in task.questions} == set("ABCD")
    assert value(task, oracle(task), tmp_path / "a") == 1.0
    rights = [sum(q.target == "A" for q in task.questions if q.subset == name) for name in ("tpo", "quality")]
    always_a = value(task, FakeModel(lambda prompt: "A"), tmp_path / "b")
    assert always_a == pytest.approx((rights[0] / 269 + rights[1] / 202) / 2)
    assert 0.1 < always_a < 0.4


@pytest.mark.parametrize(
    ("text", "one", "several"),
    [
        ("B", "B", "B"),
        ("(B) Because it rained.", "B", "B"),
        ("**B**", "B", "B"),
        ("B. Because A was wrong", "B", "B"),
        ("The answer is C.", "C", "C"),
        ("A good question. The answer is (C)", "C", "C"),
        ("Answer: D", "D", "D"),
        ("BD", None, "BD"),
        ("B, D", "B", "BD"),
        ("B and D", "B", "BD"),
        ("D、B", "D", "BD"),
        ("The correct options are A, C and D.", "A", "ACD"),
        ("A. Arrive early\nB. Engage with all\nC. Keep it short", "A", "ABC"),
        ("B. Answer the question A friend asked", "B", "B"),
        ("A. Asterisk (*) and B. Forward slash (/)", "A", "AB"),
        ("D, B, C", "D", "BCD"),
        ("- A) one\n- C) two", "A", "AC"),
        ("A fair question: none of them", "A", "A"),  # an article alone is not told from a letter
        ("Because of the rain", None, None),
        ("", None, None),
        ("It can't be said", None, None),
    ],
)
def test_letters(text: str, one: str | None, several: str | None) -> None:
    assert leval.letters(text) == one
    assert leval.letters(text, several=True) == several


def judged(task: str, target: str, output: str) -> float:
    return leval.verdict(Question("1", "?", target, task), [Output(text=output)]).scores["score"]


@pytest.mark.parametrize(
    ("output", "score"),
    [
        ("3 + 4 = 7\nThe answer is 7", 1.0),
        ("The answer is $7.00.", 1.0),
        ("**The answer is 7**", 1.0),
        ("3 + 4 = 7\n\nQuestion: 5 + 5?", 1.0),
        ("it is 1,007", 0.0),
        ("seven", 0.0),
    ],
)
def test_numbers(output: str, score: float) -> None:
    assert judged("gsm100", "So there are 7. The answer is 7", output) == score


@pytest.mark.parametrize(
    ("output", "score"),
    [
        ("True [fact: False]", 1.0),
        ("true. [Fact: false]", 1.0),
        ("True [fact: True]", 0.5),
        ("False", 0.0),
        ("I do not know", 0.0),
    ],
)
def test_truths(output: str, score: float) -> None:
    assert judged("sci_fi", "True [fact: False]", output) == score


def test_programs_and_topics() -> None:
    assert judged("codeU", "[1, 2]", "It adds up. The printed result: the final output: [1, 2]") == 1.0
    assert judged("codeU", "[1, 2]", "So the result will be [1, 2]") == 1.0
    assert judged("codeU", "[1, 2]", "[2, 1]") == 0.0
    assert judged("topic_retrieval_longchat", "The future of the sea", "the future of sea.") == 1.0
    assert judged("topic_retrieval_longchat", "The future of the sea", "The past of the sea") == 0.0
    assert judged("news_summ", "a b c d", "a c d e") == pytest.approx(0.75)


@pytest.mark.parametrize(
    "change",
    [
        {"instructions": "one"},
        {"outputs": ["B"]},
        {"input": None},
        {"outputs": ["B", 3]},
        {"outputs": ["B", "  "]},
        {"outputs": ["B", "nothing"]},
    ],
)
def test_damaged_rows(context: SourceContext, tmp_path: Path, change: dict[str, Any]) -> None:
    row = {"input": "text", "instructions": ["First?", "Second?"], "outputs": ["A", "B"], **change}
    (tmp_path / "leval" / "tpo.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError, match=r"leval: 'test' row [01] of 'tpo' is not as published"):
        task_of(leval.BENCHMARK, context, "chat", subsets=["tpo"])
