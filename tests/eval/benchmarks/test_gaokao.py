"""GAOKAO-Bench on made rows: the official extraction, and points."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from puyulm.errors import DataError
from puyulm.eval.benchmarks.gaokao import BENCHMARK, PAPERS, extract, verdict
from puyulm.eval.model import Output
from puyulm.eval.source import SourceContext
from tests.eval.fakes import FakeModel, oracle, scored, task_of, value

ANSWERS = {
    "2010-2022_History_MCQs": (4, [["A"], ["B"]]),
    "2010-2022_Physics_MCQs": (6, [["A"], ["AC"], ["BD"]]),
    "2010-2022_Geography_MCQs": (4, [["A", "B", "A"], ["C", "A"]]),
    "2012-2022_English_Cloze_Test": (2, [["G", "A", "F", "B", "C"]]),
}
POINTS = 2 * 4 + 3 * 6 + 5 * 4 + 5 * 2


@pytest.fixture
def context(tmp_path: Path) -> SourceContext:
    folder = tmp_path / "gaokao" / "Objective_Questions"
    folder.mkdir(parents=True)
    for name, (score, answers) in ANSWERS.items():
        rows = [
            {"year": "2010", "category": "c", "question": f"{n}. 问题", "answer": one, "index": n, "score": score}
            for n, one in enumerate(answers)
        ]
        (folder / f"{name}.json").write_text(json.dumps({"keywords": name, "example": rows}))
    return SourceContext(data_dir=tmp_path, offline=True)


@pytest.mark.parametrize("mode", list(BENCHMARK.modes))
def test_known_models_get_the_points_that_arithmetic_says(mode: str, context: SourceContext, tmp_path: Path) -> None:
    task = task_of(BENCHMARK, context, mode, subsets=list(ANSWERS))
    assert value(task, oracle(task), tmp_path / "oracle") == 1.0
    assert value(task, FakeModel(), tmp_path / "silent") == 0.0
    # History 4; physics 6 and half of 6; geography is answered in parts, and one letter is too few.
    first = scored(task, FakeModel(lambda prompt: "【答案】 A <eoa>"), tmp_path / "first")
    assert first.metrics["score"].value == pytest.approx((4 + 6 + 3) / POINTS)
    assert first.groups["physics"].value == pytest.approx(9 / 18) and first.groups["history"].value == 0.5
    parts = scored(task, FakeModel(lambda prompt: "A A A A A"), tmp_path / "parts")
    assert parts.groups["geography"].value == pytest.approx(3 / 5)
    assert parts.groups["English"].value == pytest.approx(1 / 5)


@pytest.mark.parametrize(
    ("text", "kind", "parts", "expected"),
    [
        ("【解析】A 不对。<eoe>\n【答案】 B <eoa>", "one", 1, ["B"]),
        ("答案是C。", "one", 1, ["C"]),
        ("没有答案", "one", 1, []),
        ("【解析】A错 <eoe>【答案】 AB <eoa>", "several", 1, ["AB"]),
        ("【答案】A B D<eoa>", "several", 1, ["ABD"]),
        ("经过长长的分析，A项是错误的，因此最后的答案选BC", "several", 1, ["BC"]),
        ("不知道", "several", 1, []),
        ("（1）【答案】 A <eoa>\n（2）【答案】：C <eoa>", "parts", 2, ["A", "C"]),
        ("A C D", "parts", 2, ["A", "C"]),
        ("【答案】A\nB C", "parts", 3, ["A", "B", "C"]),
        ("【答案】 G A F B C <eoa>", "five of seven", 5, ["G", "A", "F", "B", "C"]),
        ("GAFBCD", "five of seven", 5, ["G", "A", "F", "B", "C"]),
    ],
)
def test_the_official_extraction(text: str, kind: str, parts: int, expected: list[str]) -> None:
    assert extract(text, kind, parts) == expected  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("answer", "share"), [("AC", 1.0), ("A", 0.5), ("C", 0.5), ("AB", 0.0), ("ABC", 0.0), ("", 0.0)]
)
def test_some_of_the_right_choices_are_worth_half(answer: str, share: float) -> None:
    record = {"question": "q", "answer": ["AC"], "score": 6}
    question = BENCHMARK.read(record, "2010-2022_Physics_MCQs", 0)
    assert question is not None and question.extra["points"] == 6.0
    assert verdict(question, [Output(text=f"【答案】{answer}<eoa>")]).scores == {"score": share}


@pytest.mark.parametrize("change", [{"answer": []}, {"answer": ["1"]}, {"answer": None}, {"score": "x"}])
def test_damaged_rows_are_named(change: dict[str, object], tmp_path: Path) -> None:
    row = {"question": "q", "answer": ["A"], "score": 4, **change}
    (tmp_path / "gaokao").mkdir()
    file = tmp_path / "gaokao" / "2010-2022_History_MCQs.json"
    file.write_text(json.dumps({"keywords": "x", "example": [row]}))
    with pytest.raises(DataError, match="'test' row 0 of '2010-2022_History_MCQs' is not as published"):
        task_of(BENCHMARK, SourceContext(data_dir=tmp_path, offline=True), "chat", subsets=[file.stem])


def test_papers_are_all_there() -> None:
    assert len(PAPERS) == 14 and len({paper.subject for paper in PAPERS.values()}) == 9
