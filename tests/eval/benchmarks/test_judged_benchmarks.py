"""Benchmarks that a model judges: with judges whose taste is known, arithmetic says the score."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from puyulm.errors import DataError, GenerationError
from puyulm.eval.benchmark import Benchmark
from puyulm.eval.benchmarks import alignbench, judged, mt_bench
from puyulm.eval.model import Output, Prompt
from puyulm.eval.results import Scores
from puyulm.eval.run import run_task
from puyulm.eval.source import SourceContext
from tests.eval.fakes import FakeModel, scored, task_of

COMPARED, JUDGED = judged.BENCHMARKS[1], judged.BENCHMARKS[0]
OWN = [
    {"prompt": f"Question {n}?", "output": f"their answer {n}", "reference": None if n % 2 else f"right {n}"}
    for n in range(10)
]
CHINESE = [
    {"question_id": 1, "category": "数学计算", "subcategory": "证明", "question": "一加一？", "reference": "二"},
    {"question_id": 2, "category": "数学计算", "subcategory": "初等数学", "question": "二加二？", "reference": "四"},
    {"question_id": 3, "category": "文本写作", "subcategory": "创意文体写作", "question": "写诗。", "reference": "诗"},
    {"question_id": 4, "category": "综合问答", "subcategory": "寻求建议", "question": "吃什么？", "reference": "饭"},
]  # fmt: skip
TURNS = [
    {"question_id": 81, "category": "writing", "turns": ["Write.", "Again."], "reference": ["unused", "unused"]},
    {
        "question_id": 111,
        "category": "math",
        "turns": ["One and one?", "And one?"],
        "reference": ["It is 2", "It is 3"],
    },
]


def context_of(folder: Path, name: str, file: str, rows: list[dict[str, Any]]) -> SourceContext:
    (folder / name).mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / name / file).write_text(lines, "utf-8")
    return SourceContext(data_dir=folder, offline=True)


def judged_by(benchmark: Benchmark, context: SourceContext, folder: Path, model: Callable[[Prompt], str],
              judge: Callable[[Prompt], str], mode: str = "chat") -> Scores:  # fmt: skip
    return scored(task_of(benchmark, context, mode), FakeModel(model), folder, judge=FakeModel(judge))


def values(scores: Scores) -> dict[str, float]:
    return {name: one.value for name, one in scores.metrics.items()}


# Comparisons with recorded answers


def right_one(prompt: Prompt) -> str:
    """Knows which answer is "ours"."""
    shown = prompt.messages[-1].content
    return "[[A]]" if shown.index("our answer") < shown.index("their answer") else "I compared them.\n\n[[B]]"


@pytest.mark.parametrize(
    ("judge", "expected"),
    [
        (lambda prompt: "[[A]]", {"win_rate": 0.5, "ties": 1, "position_bias": 1, "first_place": 1}),
        (lambda prompt: "[[B]]", {"win_rate": 0.5, "ties": 1, "position_bias": 1, "first_place": 0}),
        (right_one, {"win_rate": 1, "wins": 1, "ties": 0, "position_bias": 0, "first_place": 0.5}),
        (lambda prompt: "[[C]]", {"win_rate": 0.5, "ties": 1, "position_bias": 0, "unread": 0}),
        (lambda prompt: "I would rather not say.", {"win_rate": 0.5, "ties": 1, "position_bias": 0, "unread": 1}),
    ],
)
def test_judges_of_pairs(tmp_path: Path, judge: Callable[[Prompt], str], expected: Mapping[str, float]) -> None:
    context = context_of(tmp_path, "compared", "questions.jsonl", OWN)
    for mode in ("chat", "averaged"):
        found = values(judged_by(COMPARED, context, tmp_path / mode, lambda prompt: "our answer", judge, mode))
        if mode == "averaged" and expected["position_bias"] == 1:
            assert (found["win_rate"], found["wins"], found["losses"], found["ties"]) == (0.5, 0.5, 0.5, 0)
        else:
            assert {name: found[name] for name in expected} == expected
        assert found["position_bias"] == expected["position_bias"]


def test_losing_is_winning_with_the_roles_swapped(tmp_path: Path) -> None:
    context = context_of(tmp_path, "compared", "questions.jsonl", OWN)
    swapped = {"[[A]]": "[[B]]", "[[B]]": "[[A]]"}

    def wrong_one(prompt: Prompt) -> str:
        return re.sub(r"\[\[.\]\]", lambda found: swapped[found[0]], right_one(prompt))

    found = values(judged_by(COMPARED, context, tmp_path / "s", lambda prompt: "our answer", wrong_one))
    assert (found["win_rate"], found["losses"]) == (0, 1)


def test_a_judge_is_needed(tmp_path: Path) -> None:
    task = task_of(COMPARED, context_of(tmp_path, "compared", "questions.jsonl", OWN), "chat")
    with pytest.raises(GenerationError, match="--judge"):
        run_task(task, FakeModel(), tmp_path / "s")


# Scores


def test_scores_of_single_answers(tmp_path: Path) -> None:
    """An answer that repeats the reference gets 10; a judgement that cannot be read does not count."""
    context = context_of(tmp_path, "judged", "questions.jsonl", OWN)

    def judge(prompt: Prompt) -> str:
        shown = prompt.messages[-1].content
        if "[Reference answer]" not in shown:
            return "Rating: [[4]]"
        return "Rating: [[10]]" if shown.count("right 4") == 2 else "no"

    scores = judged_by(JUDGED, context, tmp_path / "s", lambda prompt: "right 4", judge)
    assert scores.metrics["score"].value == pytest.approx((5 * 4 + 10) / 6) and scores.metrics["score"].count == 6
    assert scores.metrics["unread"].value == pytest.approx(4 / 10)


@pytest.mark.parametrize(
    ("benchmark", "row", "message"),
    [
        (JUDGED, {"question": "?"}, "no field 'prompt'"),
        (JUDGED, {"prompt": ["?"]}, "prompt must be a text"),
        (JUDGED, {"prompt": " "}, "an empty prompt"),
        (COMPARED, {"prompt": "?"}, "no field 'output'"),
    ],
)
def test_damaged_rows_of_ones_own(tmp_path: Path, benchmark: Benchmark, row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        task_of(benchmark, context_of(tmp_path, benchmark.name, "questions.jsonl", [row]), "chat")


# MT-Bench


def test_mt_bench_turns_and_references(tmp_path: Path) -> None:
    context = context_of(tmp_path, "mt_bench", "question.jsonl", TURNS)
    seen: list[str] = []

    def model(prompt: Prompt) -> str:
        return f"reply {len(prompt.messages)} to {prompt.messages[-1].content}"

    def judge(prompt: Prompt) -> str:
        seen.append(prompt.messages[-1].content)
        return "Rating: [[9]]" if "reply 3" in seen[-1] else "Rating: [[4]]"

    scores = judged_by(mt_bench.BENCHMARK, context, tmp_path / "s", model, judge)
    assert values(scores) == {"score": 6.5, "turn_1": 4, "turn_2": 9, "unread": 0}
    assert len(seen) == 4 and not any("unused" in text for text in seen)
    assert sum("It is 2" in text for text in seen) == 2 and sum("It is 3" in text for text in seen) == 1
    both = [text for text in seen if "reply 3" in text]
    assert all("reply 1" in text for text in both) and len(both) == 2


def test_mt_bench_judgements_that_cannot_be_read_do_not_count(tmp_path: Path) -> None:
    context = context_of(tmp_path, "mt_bench", "question.jsonl", TURNS)

    def judge(prompt: Prompt) -> str:
        return "[[8]]" if "One and one?" not in prompt.messages[-1].content else "I cannot."

    scores = judged_by(mt_bench.BENCHMARK, context, tmp_path / "s", lambda prompt: "x", judge)
    assert scores.metrics["score"].value == 8 and scores.metrics["score"].count == 1
    assert scores.metrics["unread"].value == 0.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"category": "sports"}, "unknown category"),
        ({"turns": ["one"]}, "not two turns"),
        ({"turns": [1, 2]}, "two turns"),
    ],
)
def test_mt_bench_damaged_rows(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        task_of(mt_bench.BENCHMARK, context_of(tmp_path, "mt_bench", "question.jsonl", [TURNS[0] | change]), "chat")


def test_mt_bench_published_rows(shared_dir: Path, tmp_path: Path) -> None:
    context = SourceContext(data_dir=shared_dir / "evaldata", offline=True)
    task = task_of(mt_bench.BENCHMARK, context, "chat")
    assert len(task.questions) == 80
    assert {one.subset for one in task.questions if one.target} == {"reasoning", "math", "coding"}
    scores = scored(
        task, FakeModel(lambda prompt: "x"), tmp_path / "s", judge=FakeModel(lambda prompt: "Rating: [[7]]")
    )
    assert values(scores) == {"score": 7, "turn_1": 7, "turn_2": 7, "unread": 0}
    assert {name: one.count for name, one in scores.subsets.items()} == dict.fromkeys(mt_bench.CATEGORIES, 10)


def test_mt_bench_hub_rows(tmp_path: Path) -> None:
    row = {"prompt_id": 5, "category": "math", "prompt": ["a", "b"], "reference": []}
    question = mt_bench.read(row, "math", 0)
    assert question is not None and (question.id, question.text, question.target) == ("5", "a", None)
    assert mt_bench.read(row, "coding", 0) is None


# AlignBench


def test_alignbench_groups_weigh_the_same(tmp_path: Path) -> None:
    """Reasoning: (10 + 4) / 2 = 7. Language: the mean of writing's 3 and advice's (8 + 8) / 2. Overall: of the two."""
    context = context_of(tmp_path, "alignbench", "data_v1.1_release.jsonl", [*CHINESE, CHINESE[3] | {"question_id": 5}])
    ratings = {"一加一": 10, "二加二": 4, "写诗": 3, "吃什么": 8}

    def judge(prompt: Prompt) -> str:
        shown = prompt.messages[-1].content
        score = next(rating for part, rating in ratings.items() if part in shown)
        return f"总分必须是1到10。\n{{'事实正确性': 2, '满足用户需求': 1, '综合得分': {score}}}"

    scores = judged_by(alignbench.BENCHMARK, context, tmp_path / "s", lambda prompt: "答", judge)
    assert scores.metrics["score"].value == pytest.approx((7 + 5.5) / 2)
    assert {name: one.value for name, one in scores.groups.items()} == {"推理": 7.0, "语言": 5.5}
    assert scores.metrics["unread"].value == 0


def test_alignbench_judges_look_at_what_the_kind_of_question_needs() -> None:
    shown = {}
    for row in CHINESE:
        question = alignbench.read(row, str(row["category"]), 0)
        assert question is not None
        [prompt] = alignbench.ask(question, [Output(text="答")])
        shown[row["subcategory"]] = prompt.messages[-1].content
    assert "- 逻辑连贯性：" in shown["证明"] and "- 丰富度：" not in shown["证明"]
    assert "- 丰富度：" in shown["创意文体写作"] and "- 公平与可负责程度：" in shown["寻求建议"]


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("{'事实正确性': 9, '综合得分': 7}", 7), ('{"综合得分": 10}', 10), ("{‘综合得分’：6}", 6), ("综合得分: 5", 5),
        ("例如 {'综合得分': 9}。\n{'事实正确性': 1, '综合得分': 2}", 2), ("Rating: [[8]]", 8), ("综合得分：8分", 8),
        ("{'综合得分': 11}", None), ("", None), ("回答很好。", None), ("{'综合得分': 0}", None),
    ],
)  # fmt: skip
def test_alignbench_scores_are_read(text: str, score: float | None) -> None:
    assert alignbench.read_score(text) == score


def test_alignbench_damaged_rows(tmp_path: Path) -> None:
    for row, message in (({"category": "x"}, "unknown category"), ({"question": None}, "not as published")):
        context = context_of(tmp_path, "alignbench", "data_v1.1_release.jsonl", [CHINESE[0] | row])
        with pytest.raises(DataError, match=message):
            task_of(alignbench.BENCHMARK, context, "chat")


def test_nothing_read_is_no_score(tmp_path: Path) -> None:
    context = context_of(tmp_path, "alignbench", "data_v1.1_release.jsonl", CHINESE)
    scores = judged_by(alignbench.BENCHMARK, context, tmp_path / "s", lambda prompt: "答", lambda prompt: "")
    assert math.isnan(scores.metrics["score"].value) and scores.metrics["unread"].value == 1
