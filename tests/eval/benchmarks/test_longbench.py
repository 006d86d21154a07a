"""LongBench, both versions, on made rows of the published form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from puyulm.errors import DataError
from puyulm.eval.benchmark import Question, Sample
from puyulm.eval.benchmarks import longbench, longbench_v2
from puyulm.eval.model import Output
from puyulm.eval.source import SourceContext
from tests.eval.fakes import FakeModel, oracle, scored, task_of, value

CHINESE = ("multifieldqa_zh", "dureader", "vcsum")
ANSWERS = {
    "passage_count": "7", "passage_retrieval_en": "Paragraph 7", "passage_retrieval_zh": "段落7", "trec": "Number",
    "lsht": "体育", "lcc": "return total", "repobench-p": "return total", "multifieldqa_zh": "上海的冬天",
}  # fmt: skip


def row(task: str, number: int) -> dict[str, Any]:
    answer = ANSWERS.get(task, "the quiet harbor")
    classes = {"trec": ["Number", "Place"], "lsht": ["体育", "财经"]}.get(task)
    return {
        "input": f"input {number}", "context": f"{task} context {number}", "answers": [answer], "length": 3,
        "dataset": task, "language": "zh" if task in CHINESE else "en", "all_classes": classes, "_id": f"{number}",
    }  # fmt: skip


@pytest.fixture
def context(tmp_path: Path) -> SourceContext:
    folder = tmp_path / "data" / "longbench" / "data"
    folder.mkdir(parents=True)
    for task in longbench.TASKS:
        rows = [json.dumps(row(task, number), ensure_ascii=False) + "\n" for number in range(2)]
        (folder / f"{task}.jsonl").write_text("".join(rows))
    return SourceContext(data_dir=tmp_path / "data", model=FakeModel(), offline=True)


def test_known_models_get_the_scores_that_arithmetic_says(context: SourceContext, tmp_path: Path) -> None:
    pytest.importorskip("jieba")
    for mode in ("chat", "plain"):
        task = task_of(longbench.BENCHMARK, context, mode)
        assert len(task.questions) == 42
        known = scored(task, oracle(task), tmp_path / mode)
        assert known.main.value == pytest.approx(1.0, abs=1e-6) and len(known.groups) == 6
        assert value(task, FakeModel(), tmp_path / f"{mode}-none") == 0.0


def test_the_score_is_the_mean_of_groups() -> None:
    def sample(task: str, score: float) -> Sample:
        return Sample(f"{task}{score}", task, 0, "", (), None, {"score": score})

    samples = [sample("narrativeqa", 1.0), sample("qasper", 0.0), sample("qasper", 0.5), sample("lcc", 1.0)]
    assert longbench.summarise(samples)["score"] == pytest.approx(((1.0 + 0.25) / 2 + 1.0) / 2)


def test_tasks_are_the_published_ones() -> None:
    groups: dict[str, int] = {}
    for task in longbench.TASKS.values():
        groups[task.group] = groups.get(task.group, 0) + 1
        assert "{context}" in task.prompt
        task.prompt.format(context="", input="")
    assert list(groups.values()) == [4, 4, 4, 4, 3, 2]


@pytest.mark.parametrize(
    ("task", "output", "score"),
    [
        ("narrativeqa", "quiet harbor", 1.0),
        ("triviaqa", "The quiet harbor\nQuestion: what", 1.0),
        ("narrativeqa", "The quiet harbor\nQuestion: what", 2 * 2 / 6),
        ("trec", "Number\nQuestion", 1.0),
        ("trec", "Place", 0.0),
        ("passage_retrieval_zh", "是段落7", 1.0),
        ("passage_retrieval_en", "Paragraph 17", 0.0),
        ("passage_count", "7 or 8", 0.5),
        ("lcc", "\n# sum\nreturn total", 1.0),
        ("gov_report", "", 0.0),
    ],
)
def test_metrics_of_tasks(task: str, output: str, score: float) -> None:
    question = longbench.read({**row(task, 0), "prompt": "?"}, task, 0)
    assert longbench.verdict(question, [Output(text=output)]).scores["score"] == pytest.approx(score)


def test_the_best_reference_counts() -> None:
    question = longbench.read({**row("hotpotqa", 0), "answers": ["no", "yes"], "prompt": "?"}, "hotpotqa", 0)
    assert longbench.verdict(question, [Output(text="Yes.")]).scores["score"] == 1.0


def test_long_prompts_lose_their_middle(context: SourceContext, tmp_path: Path) -> None:
    file = tmp_path / "data" / "longbench" / "data" / "lcc.jsonl"
    file.write_text(json.dumps({**row("lcc", 0), "context": "abcde" * 1000}) + "\n")
    cut = SourceContext(data_dir=context.data_dir, model=FakeModel(), options={"max_length": 400}, offline=True)
    [question] = task_of(longbench.BENCHMARK, cut, "chat", subsets=["lcc"]).questions
    assert len(question.text) == 400
    assert question.text.startswith("Go on with the code") and question.text.endswith("Next line of code:\n")
    prompt = task_of(longbench.BENCHMARK, context, "chat", subsets=["lcc"])
    assert len(prompt.questions[0].text) > 5000 and prompt.prompt(prompt.questions[0]).max_new_tokens == 64


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answers": "x"}, "answers are not a list"),
        ({"answers": []}, "answers are not a list"),
        ({"context": 3}, "no text in context"),
        ({"input": None}, "no text in input"),
    ],
)
def test_damaged_rows(context: SourceContext, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    (tmp_path / "data" / "longbench" / "data" / "lcc.jsonl").write_text(json.dumps({**row("lcc", 0), **change}) + "\n")
    with pytest.raises(DataError, match=f"longbench: 'test' row 0 of 'lcc'.*{message}"):
        task_of(longbench.BENCHMARK, context, "chat", subsets=["lcc"])


# Version 2


def choice_row(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "_id": f"id{number}", "domain": "Single-Document QA", "sub_domain": "Legal",
        "difficulty": "easy" if number % 2 else "hard", "length": longbench_v2.LENGTHS[number % 3],
        "question": f"Which one? {number}", "choice_A": "first", "choice_B": "second", "choice_C": "third",
        "choice_D": "fourth", "answer": "ABCD"[number % 4], "context": f"long text {number}", **changes,
    }  # fmt: skip


def second(tmp_path: Path, rows: list[dict[str, Any]], **options: Any) -> SourceContext:
    folder = tmp_path / "data" / "longbench_v2"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "data.json").write_text(json.dumps(rows))
    return SourceContext(data_dir=tmp_path / "data", model=FakeModel(), options=options, offline=True)


def test_version_2_on_known_models(tmp_path: Path) -> None:
    task = task_of(longbench_v2.BENCHMARK, second(tmp_path, [choice_row(number) for number in range(24)]), "chat")
    known = scored(task, oracle(task), tmp_path / "a")
    assert known.main.value == 1.0 and set(known.subsets) == set(longbench_v2.LENGTHS)
    assert value(task, FakeModel(lambda prompt: "The correct answer is (A)"), tmp_path / "b") == 0.25
    assert value(task, FakeModel(), tmp_path / "c") == 0.0
    assert "(D) fourth" in task.questions[0].text and "long text 0" in task.questions[0].text


@pytest.mark.parametrize(
    ("output", "strict", "lenient"),
    [
        ("The correct answer is (B)", 1, 1),
        ("The correct answer is B.", 1, 1),
        ("**The correct answer is (B)**", 1, 1),
        ("The correct answer is Berlin", 0, 0),
        ("Answer: (B)", 0, 1),
        ("答案是B", 0, 1),
        ("B", 0, 1),
        ("(B).", 0, 1),
        ("The correct answer is (C)", 0, 0),
        ("I cannot tell A from B", 0, 0),
        ("", 0, 0),
    ],
)
def test_version_2_extraction(output: str, strict: float, lenient: float) -> None:
    scores = longbench_v2.verdict(Question("1", "?", "B"), [Output(text=output)]).scores
    assert (scores["accuracy"], scores["lenient"]) == (strict, lenient)


@pytest.mark.parametrize("change", [{"answer": "E"}, {"length": "huge"}, {"choice_C": None}, {"context": None}])
def test_version_2_damaged_rows(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="longbench_v2: 'test' row 0"):
        task_of(longbench_v2.BENCHMARK, second(tmp_path, [choice_row(0, **change)]), "chat")


def test_version_2_cuts_the_middle(tmp_path: Path) -> None:
    context = second(tmp_path, [choice_row(0, context="word " * 1000)], max_length=700)
    [question] = task_of(longbench_v2.BENCHMARK, context, "plain").questions
    assert len(question.text) == 700 and "Which one? 0" in question.text
