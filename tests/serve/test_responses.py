"""`/v1/responses` through the official client."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.engine.checkpoints import write_checkpoint
from tests.serve.servers import Running, running

TOOL: Any = {
    "type": "function",
    "name": "get_time",
    "parameters": {"type": "object", "properties": {"zone": {"enum": ["UTC", "CET"]}}, "required": ["zone"]},
}
YES: Any = {"format": {"type": "json_schema", "name": "yes", "schema": {"enum": ["yes"]}}}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    model = write_checkpoint(tmp_path_factory.mktemp("responses"), max_position_embeddings=1024)
    with running(model) as started:
        yield started


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[openai.OpenAI]:
    with server.client() as made:
        yield made


def test_an_answer_follows_its_format(client: openai.OpenAI) -> None:
    answer = client.responses.create(model="model", input="Is it?", instructions="Be brief.", text=YES)
    assert (answer.status, answer.output_text, answer.model) == ("completed", '"yes"', "model")
    assert answer.usage is not None and answer.usage.output_tokens > 0


def test_an_answer_that_is_cut_says_so(client: openai.OpenAI) -> None:
    answer = client.responses.create(model="model", input="Is it?", max_output_tokens=3)
    assert answer.status == "incomplete"
    assert answer.incomplete_details is not None and answer.incomplete_details.reason == "max_output_tokens"
    assert answer.usage is not None and answer.usage.output_tokens == 3


def test_the_events_of_a_stream_come_in_order_and_sum_up(client: openai.OpenAI) -> None:
    events = list(client.responses.create(model="model", input="Is it?", text=YES, stream=True))
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added"
    ]  # fmt: skip
    assert kinds[-4:] == [
        "response.output_text.done", "response.content_part.done", "response.output_item.done", "response.completed"
    ]  # fmt: skip
    assert set(kinds[4:-4]) == {"response.output_text.delta"}
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == '"yes"'
    assert events[-1].type == "response.completed" and events[-1].response.output_text == '"yes"'


def test_the_clients_own_accumulator_understands_the_stream(client: openai.OpenAI) -> None:
    with client.responses.stream(model="model", input="Is it?", text=YES) as stream:
        for _ in stream:
            pass
        assert stream.get_final_response().output_text == '"yes"'


@pytest.mark.parametrize("stream", [False, True])
def test_a_tool_is_called_and_its_result_goes_back(client: openai.OpenAI, stream: bool) -> None:
    fields: dict[str, Any] = {
        "model": "model",
        "tools": [TOOL],
        "tool_choice": {"type": "function", "name": "get_time"},
    }
    question: Any = {"role": "user", "content": [{"type": "input_text", "text": "What time is it?"}]}
    if stream:
        events = list(client.responses.create(**fields, input=[question], stream=True))
        told = "".join(event.delta for event in events if event.type == "response.function_call_arguments.delta")
        assert events[-1].type == "response.completed"
        [call] = events[-1].response.output
        assert call.type == "function_call" and call.arguments == told
    else:
        [call] = client.responses.create(**fields, input=[question]).output
    assert call.type == "function_call" and call.name == "get_time"
    assert json.loads(call.arguments)["zone"] in ("UTC", "CET")
    result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "noon"}
    items: Any = [question, call.model_dump(), result]
    answer = client.responses.create(model="model", input=items, tools=[TOOL], tool_choice="none", text=YES)
    assert answer.output_text == '"yes"'


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0]"),
        ({"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]}, "input[0]"),
        ({"text": {"format": {"type": "yaml"}}}, "text"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
    ],
)
def test_what_is_not_done_is_named(client: openai.OpenAI, fields: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        client.responses.create(**({"model": "model", "input": "a"} | fields))
    assert raised.value.param == param
