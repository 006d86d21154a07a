"""DROP, TriviaQA and NaturalQuestions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from puyulm.errors import DataError
from puyulm.eval.benchmark import Benchmark, Question
from puyulm.eval.benchmarks import drop, nq, triviaqa
from puyulm.eval.model import Output
from puyulm.eval.source import SourceContext
from tests.eval.benchmarks.choice_files import write_jsonl
from tests.eval.fakes import FakeModel, guesser, oracle, task_of, value

DATE = {"day": "", "month": "", "year": ""}


def said(number: str = "", spans: tuple[str, ...] = (), **date: str) -> dict[str, Any]:
    return {"number": number, "spans": list(spans), "date": DATE | date}


PAIRS: list[dict[str, Any]] = [
    {"query_id": "a", "question": "How many?", "answer": said("3"), "validated_answers": [said("4")]},
    {"query_id": "b", "question": "Who?", "answer": said(spans=("Ann Lee", "Bob Ray")), "validated_answers": []},
    {"query_id": "c", "question": "When?", "answer": said(month="May", year="1999"), "validated_answers": [said("7")]},
]
DROP_ORIGINAL = {"nfl_1": {"passage": "A game.", "qa_pairs": PAIRS}}
DROP_COLUMNS = [
    pair
    | {"passage": "A game."}
    | {"validated_answers": {key: [one[key] for one in pair["validated_answers"]] for key in said()}}
    for pair in PAIRS
]
TRIVIA = [
    {"question": f"Who is {n}?", "question_id": f"q{n}", "answer": {"value": f"Name {n}", "aliases": [f"N. {n}"]}}
    for n in range(8)
]
TRIVIA_ORIGINAL = {
    "Domain": "web",
    "Data": [
        {"Question": one["question"], "QuestionId": one["question_id"],
         "Answer": {"Value": f"Name {n}", "Aliases": [f"N. {n}"]}}
        for n, one in enumerate(TRIVIA)
    ],
}  # fmt: skip


def write(folder: Path, layout: str) -> SourceContext:
    for split, short in (("validation", "dev"), ("train", "train")):
        (folder / "drop").mkdir(parents=True, exist_ok=True)
        if layout == "original":
            (folder / f"drop/drop_dataset_{short}.json").write_text(json.dumps(DROP_ORIGINAL))
            write_jsonl(folder / f"triviaqa/unfiltered-web-{short}.json", [TRIVIA_ORIGINAL])
            rows = [{"question": f"who is {n}", "answer": [f"Name {n}", f"The {n}"]} for n in range(8)]
            write_jsonl(folder / f"nq/NQ-open.{short}.jsonl", rows)
        else:
            write_jsonl(folder / f"drop/{short}.jsonl", DROP_COLUMNS)
            write_jsonl(folder / f"triviaqa/triviaqa-{split}.jsonl", TRIVIA)
            rows = [{"question": f"who is {n}?", "answer": f"Name {n}"} for n in range(8)]
            write_jsonl(folder / f"nq/nq-open-{split}.jsonl", rows)
    return SourceContext(data_dir=folder, offline=True)


@pytest.mark.parametrize("layout", ["original", "hub"])
@pytest.mark.parametrize("benchmark", [drop.BENCHMARK, triviaqa.BENCHMARK, nq.BENCHMARK], ids=lambda one: one.name)
def test_known_models(tmp_path: Path, layout: str, benchmark: Benchmark) -> None:
    context = write(tmp_path / "data", layout)
    for mode in benchmark.modes:
        for shots in (0, 2):
            task = task_of(benchmark, context, mode, shots=shots)
            assert len(task.questions) == (3 if benchmark.name == "drop" else 8)
            for metric in benchmark.metrics:
                assert value(task, oracle(task), tmp_path / f"{mode}{shots}", metric) == 1.0
            assert value(task, guesser(), tmp_path / f"guess{mode}{shots}") == 0.0
    always = FakeModel(lambda prompt: "The answer is Name 3." if benchmark.name != "drop" else "Answer: 3")
    count = 3 if benchmark.name == "drop" else 8
    assert value(task_of(benchmark, context, "chat"), always, tmp_path / "c") == pytest.approx(1 / count)


def test_both_forms_of_drop_are_the_same_questions(tmp_path: Path) -> None:
    tasks = [task_of(drop.BENCHMARK, write(tmp_path / one, one), "chat") for one in ("original", "hub")]
    assert tasks[0].questions == tasks[1].questions
    assert [one.target for one in tasks[0].questions] == [
        [["3"], ["4"]],
        [["Ann Lee", "Bob Ray"]],
        [["May 1999"], ["7"]],
    ]
    flat = drop.read({"context": "Passage: P\nQuestion: Q\nAnswer:", "ref_text": "3|4"}, "", 0)
    assert flat == Question("0", "Passage: P\nQuestion: Q", [["3"], ["4"]])


@pytest.mark.parametrize(
    ("text", "accuracy", "f1", "em"),
    [
        ("Counting.\nAnswer: Ann Lee and Bob Ray", 1, 1.0, 1),
        ("**Answer: Ann Lee**", 1, 0.5, 0),
        ("Answer: Carl", 0, 0.0, 0),
        ("It was Ann Lee.", 1, 0.33, 0),
        ("", 0, 0.0, 0),
    ],
)
def test_drop_answers(text: str, accuracy: int, f1: float, em: int) -> None:
    found = drop.verdict(Question("0", "?", [["Ann Lee", "Bob Ray"]]), [Output(text=text)])
    assert found.scores == {"accuracy": accuracy, "f1": f1, "em": em}


@pytest.mark.parametrize(
    ("text", "exact", "contained"),
    [
        ("The Beatles", 1, 1),
        ("A: the beatles.\nQ: x", 1, 1),
        ("They are the Beatles", 0, 1),
        ("Stones", 0, 0),
        ("", 0, 0),
    ],
)
def test_short_answers(text: str, exact: int, contained: int) -> None:
    for module in (triviaqa, nq):
        found = module.verdict(Question("0", "?", ["Fab Four", "Beatles"]), [Output(text=text)])
        assert found.scores == {"exact_match": exact, "contains": contained}


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("drop/dev.jsonl", {"passage": "x", "question": "y"}),
        ("drop/dev.jsonl", {"passage": "x", "question": "y", "answer": {"number": ""}}),
        ("drop/drop_dataset_dev.json", {"a": {"qa_pairs": [{"question": "y"}]}}),
        ("triviaqa/triviaqa-validation.jsonl", {"question": "x", "answer": []}),
        ("triviaqa/triviaqa-validation.jsonl", {"question": "x"}),
        ("nq/NQ-open.dev.jsonl", {"question": "x", "answer": []}),
        ("nq/NQ-open.dev.jsonl", {"question": "x", "answer": 5}),
    ],
)
def test_damaged_rows(tmp_path: Path, name: str, row: dict[str, Any]) -> None:
    write_jsonl(tmp_path / name, [row])
    benchmark = {"drop": drop, "triviaqa": triviaqa, "nq": nq}[name.split("/")[0]].BENCHMARK
    with pytest.raises(DataError, match="not as published"):
        task_of(benchmark, SourceContext(data_dir=tmp_path, offline=True), "chat")
