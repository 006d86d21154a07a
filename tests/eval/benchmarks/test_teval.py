"""T-Eval, on made rows in the published form."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from puyulm.errors import DataError, PuyuError
from puyulm.eval.benchmark import Question, Sample
from puyulm.eval.benchmarks import teval
from puyulm.eval.model import Output, Prompt
from puyulm.eval.source import SourceContext
from puyulm.eval.task import Task
from puyulm.text.messages import Message, ToolCall
from tests.eval.fakes import FakeModel, scored, task_of

BENCHMARK = teval.BENCHMARKS[0]
STEPS: list[dict[str, Any]] = [
    {"id": 0, "prev": [], "name": "Rooms.search", "args": {"place": "Berlin"}},
    {"id": 1, "prev": [0], "name": "Rooms.price", "args": {"id": 7, "date": "2023-10-20"}},
    {"id": 2, "prev": [1], "name": "FinishAction", "args": {}},
]
ACTION = {"thought": "Look for rooms in Berlin.", "name": "Rooms.search", "args": {"place": "Berlin", "limit": 3}}
MARKS = {
    "thought_start": "goal: ", "thought_end": "\n\n", "action_start": "name: ", "action_end": "\n\n",
    "args_start": "args: ", "args_end": "\n",
}  # fmt: skip


def row(user: str, truth: Any, **fields: Any) -> dict[str, Any]:
    prompt = [{"role": "system", "content": "You have access to: Rooms"}, {"role": "user", "content": user}]
    return {"origin_prompt": prompt, "ground_truth": truth, **fields}


def instruct(form: str, template: dict[str, str], city: str) -> dict[str, Any]:
    truth = {"action": "Rooms.search", "args": {"place": city, "limit": 3}}
    return row(f"Call it for {city} as {form}", truth, meta_data={"response_format": form}, template=template)


FILES: dict[str, dict[str, Any]] = {
    "instruct": {
        "a": instruct("json", {"thought": "why", "action": "tool", "args": "with"}, "Berlin"),
        "b": instruct("string", MARKS, "Berlin"),
        "c": instruct("string", MARKS, "Jena"),
    },
    "plan_json": {"a": row("Plan, in JSON", STEPS, meta={"prompt_type": "json", "API_list": ["Rooms.search"]})},
    "plan_str": {
        "a": row("Plan, in words", STEPS, meta={"prompt_type": "str", "API_list": ["Rooms.search", "Rooms.price"]})
    },
    "reason_retrieve_understand_json": {"a": row("Next, in JSON", ACTION, meta_data={"response_format": "json"})},
    "reason_str": {"a": row("Your thought", ACTION, meta_data={"response_format": "str"})},
    "retrieve_str": {"a": row("Which tool", ACTION, meta_data={"response_format": "str"})},
    "understand_str": {"a": row("Which arguments", ACTION, meta_data={"response_format": "str"})},
    "review_str": {
        "1": row("Goal: x", {"answer": "B", "thought": "It failed."}, meta_data={"response_format": "str"}, template="")
    },
}


def place(folder: Path, files: dict[str, dict[str, Any]] = FILES) -> SourceContext:
    (folder / "teval").mkdir(parents=True, exist_ok=True)
    for name, rows in files.items():
        (folder / "teval" / f"{name}_v2.json").write_text(json.dumps(rows))
    return SourceContext(data_dir=folder, offline=True)


def knowing(task: Task) -> FakeModel:
    def shown(question: Question) -> str:
        return next(teval.play(question, Prompt())).shown()

    answers = {shown(question): teval.solution(question) for question in task.questions}
    return FakeModel(lambda prompt: answers[prompt.shown()])


def test_known_models(tmp_path: Path) -> None:
    task = task_of(BENCHMARK, place(tmp_path), "chat")
    found = scored(task, knowing(task), tmp_path / "right").metrics
    assert {name: round(one.value, 9) for name, one in found.items()} == dict.fromkeys(found, 1.0)
    assert list(found) == ["score", *teval.DIMENSIONS]
    none = scored(task, FakeModel(lambda prompt: "I do not know"), tmp_path / "none").metrics
    exact = {name: one.value for name, one in none.items() if name in ("instruct", "retrieve", "review")}
    assert exact == dict.fromkeys(exact, 0.0) and none["score"].value < 0.25


def test_the_published_conversation_is_asked(tmp_path: Path) -> None:
    conversation = [
        {"role": "system", "content": "Tools"}, {"role": "user", "content": "Go"},
        {"role": "assistant", "content": "{}"}, {"role": "function", "content": "done"},
    ]  # fmt: skip
    rows = {"a": {**FILES["reason_str"]["a"], "origin_prompt": json.dumps(conversation)}}
    task = task_of(BENCHMARK, place(tmp_path, {"reason_str": rows}), "chat", subsets=["reason_str"])
    question = task.questions[0]
    for role, name in (("user", "user"), ("tool", "environment")):
        asked = next(teval.play(question, task.prompt(question), role))
        assert [one.role for one in asked.messages] == ["system", "user", "assistant", name]
        assert [one.content for one in asked.messages] == [one["content"] for one in conversation]
    assert set(BENCHMARK.modes) == {"chat", "tools"}


def question_of(subset: str, key: str = "a") -> Question:
    return teval.read({"_key": key, **FILES[subset][key]}, subset, 0)


def scores(subset: str, text: str, key: str = "a", calls: tuple[ToolCall, ...] = ()) -> dict[str, float]:
    message = Message("assistant", text, tool_calls=calls)
    return dict(teval.verdict(question_of(subset, key), [Output(text=text, message=message)]).scores)


@pytest.mark.parametrize(
    ("key", "text", "instruct"),
    [
        ("a", '{"why": "x", "tool": "Rooms.search", "with": {"place": "Berlin", "limit": 3}}', 1.0),
        ("a", '```json\n{"why": "x", "tool": "Rooms.search", "with": {"place": "Berlin", "limit": 3}}\n```', 1.0),
        ("a", "{'why': 'x', 'tool': 'Rooms.search', 'with': {'place': 'Berlin', 'limit': 3}}", 1.0),
        ("a", '{"why": "x", "tool": "Rooms.search", "with": {"place": "Bonn", "limit": 3}}', (1 + 2 / 3) / 2),
        ("a", '{"why": "x", "tool": "Rooms.search", "with": "Berlin"}', (1 + 1 / 3) / 2),
        ("a", '{"tool": "Rooms.search", "with": {"place": "Berlin", "limit": 3}}', 0.0),
        ("a", 'Sure: {"why": "x", "tool": "Rooms.search", "with": {}}', 0.0),
        ("a", "[" * 50_000, 0.0),
        ("b", "goal: rooms\n\nname: Rooms.search\n\nargs: {'place': 'Berlin', 'limit': 3}\n", 1.0),
        ("b", 'goal: rooms\n\nname: Rooms.search\n\nargs: {"place": "Berlin", "limit": 3}', 1.0),
        ("b", "goal: rooms\n\nname: Rooms.search\n\nargs: place is Berlin", (1 + 1 / 3) / 2),
        ("b", "name: Rooms.search\n\nargs: {'place': 'Berlin', 'limit': 3}", 0.0),
        ("b", "Rooms.search", 0.0),
    ],
)
def test_instructions(key: str, text: str, instruct: float) -> None:
    assert scores("instruct", text, key)["instruct"] == pytest.approx(instruct)
    assert scores("instruct", text, key)["format"] == float(instruct > 0)


def test_calls_of_the_chat_format_count() -> None:
    right = (ToolCall("Rooms.search", {"place": "Berlin", "limit": 3}),)
    assert scores("instruct", "x", calls=right) == {"instruct": 1.0, "format": 1.0}
    found = scores("reason_retrieve_understand_json", "Look for rooms in Berlin.", calls=right)
    assert found == {"reason": 1.0, "retrieve": 1.0, "understand": 1.0}
    wrong = (ToolCall("Rooms.price", {"place": "Berlin"}),)
    found = scores("reason_retrieve_understand_json", "", calls=wrong)
    assert found == {"reason": 0.0, "retrieve": 0.0, "understand": pytest.approx(2 / 3)}
    calls = tuple(ToolCall(one["name"], one["args"]) for one in STEPS[:2])
    assert scores("plan_json", "", calls=calls)["plan"] == 1.0


@pytest.mark.parametrize(
    ("text", "retrieve"),
    [
        ("Rooms.search", 1), ("I use Rooms.search here", 1), ("Rooms.search, then Rooms.price", 0), ("rooms", 0),
        ("Rooms.search or FinishAction", 0), ("", 0),
    ],
)  # fmt: skip
def test_the_tool_s_name(text: str, retrieve: int) -> None:
    assert scores("retrieve_str", text)["retrieve"] == retrieve


@pytest.mark.parametrize(
    ("text", "review"),
    [("Answer: B", 1), ("B", 1), ("B: Internal error", 0), ("答案: B", 1), ("Answer: A", 0), ("b", 0), ("", 0)],
)
def test_the_review(text: str, review: int) -> None:
    assert scores("review_str", text, "1")["review"] == review


def test_arguments() -> None:
    assert teval.arguments_f1({}, {}) == 1.0
    assert teval.arguments_f1({}, {"a": 1}) == teval.arguments_f1({"a": 1}, {}) == 0.0
    assert teval.arguments_f1({"a": "1"}, {"a": 1}) == 1.0
    assert teval.arguments_f1({"a": 1, "b": 2, "c": 3}, {"a": 1, "b": 3}) == pytest.approx(2 / 5)


def same(one: str, other: str) -> float:
    return float(one == other)


def test_plans() -> None:
    a, b, c = ("a", "{}"), ("b", "{}"), ("c", "{}")
    assert teval.plan_f1([a, b, c], [a, b, c], same) == 1.0
    assert teval.plan_f1([a, c], [a, b, c], same) == pytest.approx(2 * 2 / 5)
    assert teval.plan_f1([c, b, a], [a, b, c], same) == pytest.approx(1 / 3)  # one in order
    assert teval.plan_f1([a, b, ("FinishAction", "{}")], [a, b], same) == 1.0
    assert teval.plan_f1([("x", ""), ("y", "")], [a, b], same) == pytest.approx(1 / 2)  # the official scorer's gift
    assert teval.plan_f1([], [a], same) == teval.plan_f1([("FinishAction", "")], [a], same) == 0.0
    assert teval.plan_f1([("a", "other")], [a], same) == 1.0  # the gift again: 0.75 is below the threshold
    assert teval.plan_f1([("a", "other"), b], [a, b], same) == pytest.approx(1 / 2)
    assert teval.plan_f1([a, a], [a, b], lambda one, other: -1.0) == pytest.approx(1 / 2)


@pytest.mark.parametrize(
    ("text", "plan"),
    [
        (json.dumps(STEPS), 1.0),
        (f"My plan:\n```json\n{json.dumps(STEPS, indent=1)}\n```", 1.0),
        (json.dumps([{**one, "args": str(one["args"])} for one in reversed(STEPS)]), 1.0),
        (json.dumps(STEPS[:1]), pytest.approx(2 / 3)),
        (json.dumps([{"id": 0, "name": "Rooms.search"}]), 0.0),
        ('{"id": 0}', 0.0), ("no plan", 0.0), ("[[]]", 0.0), ("", 0.0),
    ],
)  # fmt: skip
def test_plans_in_json(text: str, plan: float) -> None:
    assert scores("plan_json", text)["plan"] == plan


def test_formats_weigh_the_same() -> None:
    samples = [
        Sample(str(n), "instruct", 0, "", (), None, {"instruct": value, "format": value}, extra={"format": form})
        for n, (value, form) in enumerate([(1.0, "json"), (0.0, "string"), (0.0, "string"), (1.0, "string")])
    ]
    samples.append(Sample("x", "review_str", 0, "", (), None, {"review": 0.0}, extra={"format": "str"}))
    assert teval.summarise(samples) == {
        "score": pytest.approx((2 / 3 + 0) / 2), "instruct": pytest.approx(2 / 3), "review": 0.0,
    }  # fmt: skip
    assert teval.summarise([]) == {}


def test_damaged_rows(tmp_path: Path) -> None:
    good = FILES["reason_str"]["a"]
    damaged: list[Any] = [
        {key: value for key, value in good.items() if key != "origin_prompt"},
        {key: value for key, value in good.items() if key != "ground_truth"},
        {**good, "ground_truth": {"name": "x"}}, {**good, "ground_truth": "{"}, {**good, "origin_prompt": []},
        {**good, "origin_prompt": "["}, {**good, "origin_prompt": [3]}, {**good, "origin_prompt": [{"role": "x"}]},
    ]  # fmt: skip
    for one in damaged:
        with pytest.raises(PuyuError):
            task_of(BENCHMARK, place(tmp_path, {"reason_str": {"a": one}}), "chat", subsets=["reason_str"])
    rows = {"a": {**FILES["plan_json"]["a"], "ground_truth": [{"name": "x"}]}}
    with pytest.raises(DataError, match="no plan"):
        task_of(BENCHMARK, place(tmp_path, {"plan_json": rows}), "chat", subsets=["plan_json"])


pieces = st.sampled_from([
    "{", "}", "[", "]", '"', "'", ":", ",", "goal: ", "\n\n", "name: ", "args: ", "Rooms.search", "```json", "1",
    "null", "True", '{"id": 0, "name": 1, "args": 2}', "B", "\0", "\ud800",
])  # fmt: skip


@given(st.one_of(st.text(), st.lists(pieces).map("".join)), st.sampled_from([*FILES]))
def test_nothing_raises(text: str, subset: str) -> None:
    for key in FILES[subset]:
        assert all(0.0 <= value <= 1.0 + 1e-9 for value in scores(subset, text, key).values())
