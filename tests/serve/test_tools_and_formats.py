"""Tool calls and answers with a format, through the official client."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.engine.checkpoints import write_checkpoint
from tests.serve.servers import Running, running

ASK: dict[str, Any] = {"model": "model", "messages": [{"role": "user", "content": "What is the weather?"}]}
WEATHER = {
    "type": "object",
    "properties": {"city": {"enum": ["上海", "Paris"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"],
}
TIME = {"type": "object", "properties": {"zone": {"enum": ["UTC", "CET"]}}, "required": ["zone"]}
TOOLS: list[Any] = [
    {"type": "function", "function": {"name": "get_weather", "description": "Weather.", "parameters": WEATHER}},
    {"type": "function", "function": {"name": "get_time", "parameters": TIME}},
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    model = write_checkpoint(tmp_path_factory.mktemp("tools"), max_position_embeddings=2048)
    with running(model) as started:
        yield started


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[openai.OpenAI]:
    with server.client() as made:
        yield made


def two_calls(server: Running) -> dict[str, Any]:
    """Fields that make the model write two calls with text before them."""
    ids = {
        name: server.state.tokenizer.special_tokens[name]
        for name in ("<|action_start|>", "<|action_end|>", "<|plugin|>")
    }
    start, end, plugin = (f"<[{ids[name]}]>" for name in ("<|action_start|>", "<|action_end|>", "<|plugin|>"))
    first = json.dumps('\n{"name": "get_weather", "parameters": {"city": "上海", "days": 2}}', ensure_ascii=False)
    second = json.dumps('\n{"name": "get_time", "parameters": {"zone": "UTC"}}')
    grammar = f'start: "Let me look." {start} {plugin} {first} {end} {start} {plugin} {second} {end}'
    return {"extra_body": {"grammar": grammar}}


def test_a_call_that_is_required_is_made_with_arguments_that_fit(client: openai.OpenAI) -> None:
    for seed in range(3):
        answer = client.chat.completions.create(
            **ASK, tools=TOOLS, tool_choice="required", seed=seed, parallel_tool_calls=False
        )
        [choice] = answer.choices
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content is None
        [call] = choice.message.tool_calls or []
        assert call.type == "function" and call.id.startswith("call_")
        arguments = json.loads(call.function.arguments)
        assert set(arguments) == ({"city", "days"} if call.function.name == "get_weather" else {"zone"})


def test_the_named_tool_is_called(client: openai.OpenAI) -> None:
    choice: Any = {"type": "function", "function": {"name": "get_time"}}
    answer = client.chat.completions.create(**ASK, tools=TOOLS, tool_choice=choice)
    [call] = answer.choices[0].message.tool_calls or []
    assert call.type == "function" and call.function.name == "get_time"
    assert json.loads(call.function.arguments)["zone"] in ("UTC", "CET")


def test_calls_and_text_are_told_apart(server: Running, client: openai.OpenAI) -> None:
    message = client.chat.completions.create(**ASK, **two_calls(server)).choices[0].message
    assert message.content == "Let me look."
    calls = [(call.function.name, json.loads(call.function.arguments)) for call in message.tool_calls or []]  # type: ignore[union-attr]
    assert calls == [("get_weather", {"city": "上海", "days": 2}), ("get_time", {"zone": "UTC"})]
    assert len({call.id for call in message.tool_calls or []}) == 2


def test_parallel_calls_stream_piece_by_piece(server: Running, client: openai.OpenAI) -> None:
    text, names, arguments, pieces, ends = "", {}, {0: "", 1: ""}, {0: 0, 1: 0}, []
    for chunk in client.chat.completions.create(**ASK, stream=True, **two_calls(server)):
        choice = chunk.choices[0]
        text += choice.delta.content or ""
        for call in choice.delta.tool_calls or []:
            assert call.function is not None
            if call.id:
                names[call.index] = call.function.name
            arguments[call.index] += call.function.arguments or ""
            pieces[call.index] += bool(call.function.arguments)
        ends += [choice.finish_reason] if choice.finish_reason else []
    assert text == "Let me look."
    assert names == {0: "get_weather", 1: "get_time"}
    assert [json.loads(arguments[index]) for index in (0, 1)] == [{"city": "上海", "days": 2}, {"zone": "UTC"}]
    assert pieces[0] > 1  # not all at once
    assert ends == ["tool_calls"]


def test_a_call_cut_short_is_told_as_cut(client: openai.OpenAI) -> None:
    chunks = client.chat.completions.create(
        **ASK, tools=TOOLS, tool_choice="required", max_tokens=30, seed=1, stream=True
    )
    last = list(chunks)[-1]
    assert last.choices[0].finish_reason == "length"


def test_a_result_goes_back_into_the_conversation(server: Running, client: openai.OpenAI) -> None:
    message = client.chat.completions.create(**ASK, **two_calls(server)).choices[0].message
    messages: list[Any] = [*ASK["messages"], message.model_dump()]
    messages += [{"role": "tool", "tool_call_id": call.id, "content": "sunny"} for call in message.tool_calls or []]
    answer = client.chat.completions.create(
        model="model", messages=messages, tools=TOOLS, tool_choice="none", max_tokens=3
    )
    assert answer.choices[0].message.tool_calls is None


def test_tools_that_nobody_may_call_are_not_shown(client: openai.OpenAI) -> None:
    plain = client.chat.completions.create(**ASK, max_tokens=1)
    hidden = client.chat.completions.create(**ASK, tools=TOOLS, tool_choice="none", max_tokens=1)
    shown = client.chat.completions.create(**ASK, tools=TOOLS, max_tokens=1)
    assert plain.usage is not None and hidden.usage is not None and shown.usage is not None
    assert hidden.usage.prompt_tokens == plain.usage.prompt_tokens < shown.usage.prompt_tokens


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "nobody"}}}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "function"}}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0]"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": "x"}}]}, "tools[0].parameters"),
        ({"tools": TOOLS, "response_format": {"type": "json_object"}}, "tools"),
        ({"extra_body": {"functions": [{"name": "f"}]}}, "functions"),
    ],
)
def test_what_is_wrong_with_tools_is_named(client: openai.OpenAI, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        client.chat.completions.create(**ASK, **fields)
    assert raised.value.param == param


def test_json_follows_its_schema(client: openai.OpenAI) -> None:
    wanted: Any = {"type": "json_schema", "json_schema": {"name": "weather", "schema": WEATHER, "strict": True}}
    for stream in (False, True):
        if stream:
            chunks = client.chat.completions.create(**ASK, response_format=wanted, seed=5, stream=True)
            text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        else:
            answer = client.chat.completions.create(**ASK, response_format=wanted, seed=5)
            assert answer.choices[0].finish_reason == "stop"
            text = answer.choices[0].message.content or ""
        value = json.loads(text)
        assert value["city"] in ("上海", "Paris") and 1 <= value["days"] <= 9


def test_a_json_object_is_one(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(**ASK, response_format={"type": "json_object"}, seed=2, max_tokens=600)
    text = answer.choices[0].message.content or ""
    assert text.startswith("{")
    if answer.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(text), dict)


def test_regex_and_choice(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(**ASK, extra_body={"regex": r"\d{3}-[ab]+!"})
    assert re.fullmatch(r"\d{3}-[ab]+!", answer.choices[0].message.content or "")
    answer = client.chat.completions.create(**ASK, extra_body={"choice": ["yes", "no"]})
    assert answer.choices[0].message.content in ("yes", "no")
    answer = client.chat.completions.create(**ASK, extra_body={"grammar": 'root ::= "a" [0-9] "b"'})
    assert re.fullmatch("a[0-9]b", answer.choices[0].message.content or "")
    text = client.completions.create(model="model", prompt="It is ", extra_body={"choice": ["so", "not"]})
    assert text.choices[0].text in ("so", "not")


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema: missing"),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, "json_schema.schema: missing"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "nothing"}}}}, "JSON schema"),
        ({"response_format": {"type": "yaml"}}, "response_format.type"),
        ({"extra_body": {"regex": "("}}, "regular expression"),
        ({"extra_body": {"choice": []}}, "choice"),
        ({"extra_body": {"choice": ["a", ""]}}, "choice"),
        ({"extra_body": {"grammar": "nonsense"}}, "grammar"),
        ({"extra_body": {"regex": "a", "choice": ["b"]}}, "regex and choice"),
        ({"extra_body": {"regex": "a", "ignore_eos": True}}, "ignore_eos"),
    ],
)
def test_a_format_that_cannot_be_is_refused(client: openai.OpenAI, fields: dict[str, Any], says: str) -> None:
    with pytest.raises(openai.BadRequestError, match=re.escape(says)):
        client.chat.completions.create(**ASK, **fields)
