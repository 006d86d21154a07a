"""AGIEval on made rows: one answer, several, and cloze."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from puyulm.errors import DataError
from puyulm.eval.benchmark import Question
from puyulm.eval.benchmarks.agieval import BENCHMARK, TASKS, official_verdict, read, verdict
from puyulm.eval.model import Output
from puyulm.eval.source import SourceContext
from tests.eval.fakes import FakeModel, oracle, task_of, value

SUBSETS = ["lsat-ar", "logiqa-zh", "jec-qa-kd", "gaokao-mathcloze", "math"]


def row(n: int, subset: str) -> dict[str, object]:
    label: object = "ABCD"[n % 4]
    if subset == "jec-qa-kd":
        label = ["A"] if n % 4 == 0 else list("ABCD"[: n % 4 + 1])
    options = [f"({letter}){n} {letter.lower()}" for letter in "ABCD"]
    if subset == "logiqa-zh":
        options = [f"{letter} 选{letter.lower()}" for letter in "ABCD"]
    common = {"passage": "Some text. " if subset == "lsat-ar" else None, "question": f"Question {n}?", "other": None}
    if subset in ("math", "gaokao-mathcloze"):
        answer = f"$\\frac{{1}}{{{n + 2}}}$;{n}" if subset != "math" else f"\\frac{{{n}}}{{7}}"
        return {**common, "options": None, "label": None, "answer": answer}
    return {**common, "options": options, "label": label, "answer": None}


@pytest.fixture
def context(tmp_path: Path) -> SourceContext:
    (tmp_path / "agieval" / "v1_1").mkdir(parents=True)
    for subset in SUBSETS:
        lines = [json.dumps(row(n, subset), ensure_ascii=False) + "\n" for n in range(8)]
        (tmp_path / "agieval" / "v1_1" / f"{subset}.jsonl").write_text("".join(lines))
    return SourceContext(data_dir=tmp_path, offline=True)


@pytest.mark.parametrize("mode", list(BENCHMARK.modes))
def test_known_models_get_the_scores_that_arithmetic_says(mode: str, context: SourceContext, tmp_path: Path) -> None:
    task = task_of(BENCHMARK, context, mode, subsets=SUBSETS)
    assert value(task, oracle(task), tmp_path / "oracle") == 1.0
    # Right in a quarter of three tasks of five, and in none of the cloze tasks.
    assert value(task, FakeModel(lambda prompt: "A"), tmp_path / "first") == pytest.approx((1 / 4 * 3) / 5)
    assert value(task, FakeModel(lambda prompt: "ABCD"), tmp_path / "all") < 0.2


def test_the_official_prompt(context: SourceContext) -> None:
    english, chinese, cloze = (
        task.shown(task.questions[1])
        for task in (task_of(BENCHMARK, context, "plain", subsets=[one]) for one in ("lsat-ar", "logiqa-zh", "math"))
    )
    assert english == (
        "Some text.Q: Question 1? Answer Choices: (A)1 a (B)1 b (C)1 c (D)1 d\nA: Among A through D, the answer is"
    )
    assert chinese == "问题：Question 1? 选项：(A)选a (B)选b (C)选c (D)选d\n答案：从A到D, 我们应选择"
    assert cloze == "Q: Question 1?\nA: The answer is"


@pytest.mark.parametrize(
    ("label", "several", "text", "right"),
    [
        ("B", False, "The answer is (B).", True),
        ("B", False, "答案是B", True),
        ("B", False, "B and C", False),
        ("AC", True, "答案是AC", True),
        ("AC", True, "The answer is A and C.", True),
        ("AC", True, "答案：C、A", True),
        ("AC", True, "答案是A", False),
        ("AC", True, "答案是ABC", False),
        ("AC", True, "", False),
    ],
)
def test_all_right_letters_must_be_named(label: str, several: bool, text: str, right: bool) -> None:
    question = Question("1", "q", label, "jec-qa-ca", tuple("wxyz"), {"passage": "", "several": several})
    assert verdict(question, [Output(text=text)]).scores["accuracy"] == float(right)


def test_the_official_rule_takes_the_first_letter() -> None:
    one = Question("1", "q", "C", "sat-math", tuple("wxyz"), {"passage": "", "several": False})
    many = Question("1", "q", "BC", "jec-qa-ca", tuple("wxyz"), {"passage": "", "several": True})
    assert official_verdict(one, [Output(text=" (C) x, not (A)")]).scores["accuracy"] == 1.0
    assert official_verdict(many, [Output(text=" C和B")]).scores["accuracy"] == 1.0
    assert official_verdict(many, [Output(text="")]).answer is None


@pytest.mark.parametrize(
    ("target", "text", "right"),
    [
        ("$5$;$10$", "所以答案是5；10。", True),
        ("$5$;$10$", "答案是：$5$;$10$", True),
        ("$5$;$10$", "答案是 5 和 10", True),
        ("$5$;$10$", "答案是10；5", False),
        ("$5$;$10$", "答案是5", False),
        ("$\\frac{2\\sqrt{5}}{5}$", "故 $\\boxed{\\dfrac{2\\sqrt 5}{5}}$", True),
        ("0.98", "答案是0.98", True),
        ("2", "答案是3", False),
    ],
)
def test_blanks(target: str, text: str, right: bool) -> None:
    question = Question("1", "q", target, "gaokao-mathcloze", (), {"passage": ""})
    assert verdict(question, [Output(text=text)]).scores["accuracy"] == float(right)


def test_rows_as_they_are() -> None:
    """Letters stand before choices in several ways, labels hold spaces and stops, and one row has no answer."""
    fields = {"passage": None, "question": "q", "answer": None}
    options = ["  A．one", "B. two", "(C)three", "four"]
    question = read({**fields, "options": options, "label": "A B D"}, "gaokao-mathqa", 0)
    assert question is not None and question.choices == ("one", "two", "three", "four")
    assert question.target == "ABD" and question.extra["several"]
    stop = read({**fields, "options": options, "label": ["A", "C", "。"]}, "jec-qa-ca", 0)
    assert stop is not None and stop.target == "AC"
    assert read({**fields, "options": options, "label": []}, "jec-qa-kd", 0) is None
    assert len(TASKS) == 21


@pytest.mark.parametrize("change", [{"label": "E"}, {"label": None}, {"options": None}, {"question": 3}])
def test_damaged_rows_are_named(change: dict[str, object], tmp_path: Path) -> None:
    (tmp_path / "agieval").mkdir()
    (tmp_path / "agieval" / "sat-math.jsonl").write_text(json.dumps({**row(0, "sat-math"), **change}))
    with pytest.raises(DataError, match="'test' row 0 of 'sat-math' is not as published"):
        task_of(BENCHMARK, SourceContext(data_dir=tmp_path, offline=True), "chat", subsets=["sat-math"])
