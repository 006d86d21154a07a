"""Needles in haystacks: any depth and length, one and several, in two languages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from puyulm.errors import DataError
from puyulm.eval.benchmark import Question
from puyulm.eval.benchmarks import needle
from puyulm.eval.model import Output
from puyulm.eval.run import run_task
from puyulm.eval.source import SourceContext
from tests.eval.fakes import FakeModel, oracle, scored, task_of

SUBSETS = list(needle.BENCHMARK.subsets)


def context(data_dir: Path | None = None, **options: Any) -> SourceContext:
    chosen = {"lengths": [2000, 4000], "depths": [0, 50, 100], **options}
    return SourceContext(data_dir=data_dir, model=FakeModel(), options=chosen)


def questions(of: SourceContext, subset: str) -> list[Question]:
    return [needle.read(row, subset, number) for number, row in enumerate(needle.make(subset, of))]


def document(question: Question) -> str:
    return question.text.split(">\n", 1)[1].rsplit("\n</", 1)[0]


@pytest.mark.parametrize("subset", SUBSETS)
def test_a_grid_of_lengths_and_depths(subset: str) -> None:
    found = questions(context(count=2), subset)
    assert len(found) == 2 * 3 * 2
    places = {(one.extra["length"], one.extra["depth"]) for one in found}
    assert places == {(length, depth) for length in (2000, 4000) for depth in (0, 50, 100)}
    for one in found:
        room = one.extra["length"] - needle.RESERVE - needle.NEW_TOKENS
        assert room - 120 < len(one.text + one.extra["prefix"]) == one.extra["tokens"] <= room
        assert all(document(one).count(keyword) == 1 for keyword in one.extra["keywords"])
    assert len({document(one)[-200:] for one in found}) >= 4  # repeats have haystacks of their own


@pytest.mark.parametrize("language", ["en", "zh"])
def test_needles_lie_at_their_depth(language: str) -> None:
    text = needle.TEXTS[language]
    for one in questions(context(lengths=[8000], depths=[0, 25, 60.5, 100]), f"single_{language}"):
        before, behind = document(one).split(text.needle)
        assert len(before) / (len(before) + len(behind)) * 100 == pytest.approx(one.extra["depth"], abs=2)
        assert before.strip() == "" or before.rstrip()[-1] in ".。"  # between two sentences


def test_several_needles_are_spread_to_the_end() -> None:
    [one] = questions(context(lengths=[8000], depths=[40], needles=3), "multi_en")
    body = document(one)
    places = [100 * body.index(keyword) / len(body) for keyword in one.extra["keywords"]]
    assert places == pytest.approx([40, 60, 80], abs=4)
    assert one.target.endswith(f"are {', '.join(one.extra['keywords'])}.")


def test_known_models_get_the_scores_that_arithmetic_says(tmp_path: Path) -> None:
    for mode in ("chat", "plain"):
        task = task_of(needle.BENCHMARK, context(), mode)
        known = scored(task, oracle(task), tmp_path / mode)
        assert known.metrics["similarity"].value == known.metrics["found"].value == 1.0
        nothing = scored(task, FakeModel(), tmp_path / f"{mode}-none")
        assert nothing.metrics["similarity"].value == nothing.metrics["found"].value == 0.0


def test_samples_keep_what_a_heat_map_needs(tmp_path: Path) -> None:
    task = task_of(needle.BENCHMARK, context(), "chat", subsets=["English"])
    knows = oracle(task)
    deep = {task.prompt(one).shown() for one in task.questions if one.extra["depth"] == 100}
    model = FakeModel(lambda prompt: knows.answer(prompt) if prompt.shown() in deep else "")
    samples = run_task(task, model, tmp_path).values()
    assert {one.subset for one in samples} == {"single_en", "multi_en"}
    for sample in samples:
        assert sample.scores["found"] == (sample.extra["depth"] == 100)
        assert sample.extra["length"] in (2000, 4000) and sample.extra["haystack"] == "made prose"


def test_scores_are_those_of_the_report() -> None:
    [one] = questions(context(lengths=[4000], depths=[50]), "single_zh")

    def score(text: str) -> dict[str, float]:
        return dict(needle.verdict(one, [Output(text=text)]).scores)

    assert score("小明最喜欢的实习地点就是 上海人工智能实验室。\n") == {"similarity": 1.0, "found": 1.0}
    # Four characters are missing of 22.
    assert score("小明最喜欢的实习地点就是上海实验室。") == {"similarity": pytest.approx(1 - 4 / 22), "found": 0.0}
    assert score("上海人工智能实验室")["found"] == 1.0


def test_the_users_texts_are_the_haystack(tmp_path: Path) -> None:
    folder = tmp_path / "needle"
    folder.mkdir()
    (folder / "zh_finance.jsonl").write_text(json.dumps({"text": "股市上涨。债市平稳。"}, ensure_ascii=False) + "\n")
    [one] = questions(context(tmp_path, lengths=[4000], depths=[50]), "single_zh")
    assert "股市上涨。债市平稳。股市上涨。" in one.text and one.extra["haystack"] == "zh_finance.jsonl"
    [other] = questions(context(tmp_path, lengths=[4000], depths=[50]), "single_en")
    assert other.extra["haystack"] == "made prose"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depths": [101]}, "depths"),
        ({"depths": []}, "depths"),
        ({"lengths": [500]}, "too short"),
        ({"needles": 99}, "at most"),
        ({"count": 0}, "count"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        questions(context(**options), "multi_en")
