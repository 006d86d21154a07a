"""One's own questions: what counts as right, how a model is asked, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from puyulm.errors import DataError
from puyulm.eval.exact import exact_benchmark, normalise, read_items
from puyulm.eval.source import SourceContext
from puyulm.eval.task import Setting, make_task
from tests.eval.fakes import FakeModel, scored

ITEMS = [
    {"prompt": "Say red.", "answer": "red", "kind": "say"},
    {"prompt": "Say blue.", "answer": "blue", "kind": "say"},
    {"prompt": "一加一是几？", "answer": "二", "kind": "sum", "language": "zh"},
]


@pytest.fixture
def items(tmp_path: Path) -> Path:
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps(item) + "\n" for item in ITEMS))
    return path


@pytest.mark.parametrize(
    ("answer", "output", "right"),
    [
        ("apple, river", " Apple,river. ", True),
        ("苹果、小鸟", "苹果， 小鸟。", True),
        ("42", "４２", True),
        ("the garden", "“The  garden”!", True),
        ("the garden", "garden", False),
        ("apple, river", "river, apple", False),
        ("4", "42", False),
        ("apple", "apple apple", False),
        ("apple", "apple\nand pear", False),
    ],
)
def test_what_counts_as_right(answer: str, output: str, right: bool) -> None:
    assert (normalise(answer) == normalise(output)) is right


def test_a_tuned_model_is_asked_in_its_format(items: Path, tmp_path: Path) -> None:
    task = make_task(exact_benchmark(items), Setting(mode="chat"), SourceContext())
    answers = {"Say red.": "Red.", "Say blue.": "blue and more", "一加一是几？": "二"}
    scores = scored(task, FakeModel(lambda prompt: answers[prompt.messages[-1].content]), tmp_path / "out")
    assert scores.metrics["accuracy"].value == pytest.approx(2 / 3) and scores.metrics["accuracy"].count == 3
    assert {name: one.value for name, one in scores.subsets.items()} == {"say": 0.5, "sum": 1.0}


def test_a_base_model_is_asked_in_plain_text(items: Path) -> None:
    task = make_task(exact_benchmark(items), Setting(mode="plain"), SourceContext())
    prompts = [task.prompt(question) for question in task.questions]
    assert prompts[0].text == "Question: Say red.\nAnswer:" and prompts[2].text == "问题：一加一是几？\n答案："
    assert prompts[0].stop == ("\n",)


def test_solved_examples_are_of_the_same_kind_and_language(items: Path, tmp_path: Path) -> None:
    solved = tmp_path / "solved.jsonl"
    solved.write_text(json.dumps({"prompt": "Say green.", "answer": "green", "kind": "say"}) + "\n")
    benchmark = exact_benchmark(items, solved)
    task = make_task(benchmark, Setting(mode="plain", shots=1), SourceContext(), subsets=["say"])
    text = task.prompt(task.questions[0]).text
    assert text == "Question: Say green.\nAnswer: green\n\nQuestion: Say red.\nAnswer:"
    with pytest.raises(DataError, match="1 examples are asked for, but of 'sum' there are 0"):
        make_task(benchmark, Setting(mode="plain", shots=1), SourceContext())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"prompt": "a", "answer": "b"}\n{"prompt": "a"}\n', r"items\.jsonl: item 2: expected"),
        ("[1]\n", r"items\.jsonl:1: expected an object"),
        ("{not json\n", r"items\.jsonl:1: not valid JSON"),
        ('{"prompt": "a", "answer": 3}\n', r"items\.jsonl: item 1: .* must be text"),
        ('{"prompt": "a", "answer": " . "}\n', r"items\.jsonl: item 1: .* the answer not empty"),
        ("\n", "no items"),
    ],
)
def test_damaged_items_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "items.jsonl"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_items(path)
