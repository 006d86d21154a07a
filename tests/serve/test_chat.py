"""Conversations through the official client and a real server. Grammars spell answers out where a test needs to know
them: the model's weights are random."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.engine.checkpoints import write_checkpoint
from tests.serve.servers import Running, running

ASK: dict[str, Any] = {"model": "model", "messages": [{"role": "user", "content": "What is the weather?"}]}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    model = write_checkpoint(tmp_path_factory.mktemp("chat"), max_position_embeddings=1024)
    with running(model) as started:
        yield started


@pytest.fixture(scope="module")
def client(server: Running) -> Iterator[openai.OpenAI]:
    with server.client() as made:
        yield made


def spelled(text: str, **more: object) -> dict[str, Any]:
    """Fields that make the model write a text."""
    return {"extra_body": {"grammar": "start: " + json.dumps(text), **more}}


def streamed(client: openai.OpenAI, **fields: Any) -> tuple[str, str, list[Any]]:
    """A streamed answer's content, its thoughts, and its chunks."""
    chunks = list(client.chat.completions.create(**ASK, stream=True, **fields))
    deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
    thoughts = "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas)
    return "".join(delta.content or "" for delta in deltas), thoughts, chunks


def test_an_answer_names_its_model_and_counts_its_tokens(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(**ASK, max_tokens=7, temperature=0)
    choice, usage = answer.choices[0], answer.usage
    assert (answer.model, choice.finish_reason, choice.message.role) == ("model", "length", "assistant")
    assert choice.message.content
    assert usage is not None and usage.completion_tokens == 7
    assert usage.total_tokens == usage.prompt_tokens + 7


def test_a_stream_is_the_whole_answer_in_pieces(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(**ASK, max_tokens=40, seed=4, temperature=1.0)
    content, _, chunks = streamed(client, max_tokens=40, seed=4, temperature=1.0)
    assert content == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices[0].finish_reason == whole.choices[0].finish_reason
    assert {chunk.id for chunk in chunks} == {chunks[0].id}
    assert all(chunk.usage is None for chunk in chunks)


def test_a_stream_ends_with_its_usage_where_that_is_asked_for(client: openai.OpenAI) -> None:
    *_, chunks = streamed(client, max_tokens=5, temperature=0, stream_options={"include_usage": True})
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 5
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_the_same_seed_gives_the_same_answers_and_several_differ(client: openai.OpenAI) -> None:
    def contents() -> list[str | None]:
        answer = client.chat.completions.create(**ASK, n=3, seed=11, temperature=1.0, max_tokens=12)
        assert [choice.index for choice in answer.choices] == [0, 1, 2]
        assert answer.usage is not None and answer.usage.completion_tokens == 36
        return [choice.message.content for choice in answer.choices]

    first = contents()
    assert contents() == first
    assert len(set(first)) == 3


def test_several_answers_stream_side_by_side(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(**ASK, n=2, seed=11, temperature=1.0, max_tokens=12)
    texts, ends = ["", ""], {}
    for chunk in client.chat.completions.create(**ASK, n=2, seed=11, temperature=1.0, max_tokens=12, stream=True):
        choice = chunk.choices[0]
        texts[choice.index] += choice.delta.content or ""
        if choice.finish_reason:
            ends[choice.index] = choice.finish_reason
    assert texts == [choice.message.content for choice in whole.choices]
    assert ends == {0: "length", 1: "length"}


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_text_of_several_tokens_ends_the_answer_and_no_part_of_it_shows(
    client: openai.OpenAI, stream: bool
) -> None:
    fields = {"stop": ["\n\n"], **spelled("one\ntwo\n\nthree")}
    if stream:
        content, _, chunks = streamed(client, **fields)
        last = chunks[-1].choices[0]
    else:
        last = client.chat.completions.create(**ASK, **fields).choices[0]
        content = last.message.content or ""
    assert content == "one\ntwo"
    assert (last.finish_reason, last.stop_reason) == ("stop", "\n\n")


@pytest.mark.parametrize("path", ["chat", "text"])
def test_the_end_of_a_turn_ends_the_answer_and_does_not_show(server: Running, client: openai.OpenAI, path: str) -> None:
    end = server.state.tokenizer.special_tokens["<|im_end|>"]  # not the tokenizer's own end of text
    fields: dict[str, Any] = {"temperature": 0, "logit_bias": {str(end): 100}, "max_tokens": 50}
    if path == "chat":
        choice: Any = client.chat.completions.create(**ASK, **fields).choices[0]
        text = choice.message.content
    else:
        choice = client.completions.create(model="model", prompt="a", **fields).choices[0]
        text = choice.text
    assert (text, choice.finish_reason, choice.stop_reason) == ("", "stop", None)


def test_text_held_back_for_a_stop_text_that_does_not_come_is_shown(client: openai.OpenAI) -> None:
    content, _, chunks = streamed(client, stop="!?#", **spelled("wait!?"))
    assert content == "wait!?"
    assert chunks[-1].choices[0].finish_reason == "stop"


@pytest.mark.parametrize("stream", [False, True])
def test_thoughts_are_told_apart_and_a_stop_text_does_not_count_in_them(client: openai.OpenAI, stream: bool) -> None:
    fields = {"stop": ["END"], **spelled("<think>\nlet me END see\n</think>\n\nyes END no")}
    if stream:
        content, thoughts, _ = streamed(client, **fields)
    else:
        message = client.chat.completions.create(**ASK, **fields).choices[0].message
        content, thoughts = message.content or "", message.reasoning_content  # type: ignore[attr-defined]
    assert (thoughts, content) == ("let me END see", "yes ")


def test_thoughts_are_counted(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(**ASK, **spelled("<think>\nhmm\n</think>\n\nyes"))
    assert answer.usage is not None and answer.usage.completion_tokens_details is not None
    assert 0 < (answer.usage.completion_tokens_details.reasoning_tokens or 0) < answer.usage.completion_tokens


def test_logprobs_are_those_of_the_tokens_that_were_written(server: Running, client: openai.OpenAI) -> None:
    markers = {str(id): -100 for id in server.state.tokenizer.special_tokens.values()}  # text does not show them
    answer = client.chat.completions.create(
        **ASK, max_tokens=6, temperature=0, logprobs=True, top_logprobs=3, logit_bias=markers
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None and len(logprobs.content) == 6
    for token in logprobs.content:
        assert token.logprob < 0  # not 0.0, as of a distribution that only the best token is left in
        assert len(token.top_logprobs) == 3
        assert token.top_logprobs[0].logprob >= token.logprob
        assert bytes(token.bytes or []).decode("utf-8", "replace") == token.token
    text = b"".join(bytes(token.bytes or []) for token in logprobs.content).decode("utf-8", "replace")
    assert text == answer.choices[0].message.content


def test_streamed_logprobs_are_the_same(client: openai.OpenAI) -> None:
    fields: dict[str, Any] = {"max_tokens": 6, "temperature": 0, "logprobs": True, "top_logprobs": 1}
    whole = client.chat.completions.create(**ASK, **fields).choices[0].logprobs
    *_, chunks = streamed(client, **fields)
    told = [token for chunk in chunks if chunk.choices[0].logprobs for token in chunk.choices[0].logprobs.content]
    assert whole is not None and told == whole.content


def test_bias_and_penalties_change_what_is_drawn(server: Running, client: openai.OpenAI) -> None:
    [wanted] = server.state.tokenizer.encode("Q")
    answer = client.chat.completions.create(**ASK, max_tokens=4, temperature=0, logit_bias={str(wanted): 100})
    assert answer.choices[0].message.content == "QQQQ"
    answer = client.chat.completions.create(
        **ASK, max_tokens=4, temperature=0, logit_bias={str(wanted): 100}, presence_penalty=2.0, frequency_penalty=200.0
    )
    assert (answer.choices[0].message.content or "").count("Q") < 4


def test_the_extra_fields_of_the_engine_count(server: Running, client: openai.OpenAI) -> None:
    alike = {
        client.chat.completions.create(
            **ASK, max_tokens=8, temperature=1.0, seed=seed, extra_body={"top_k": 1}
        ).choices[0].message.content
        for seed in range(3)
    }  # fmt: skip
    assert len(alike) == 1
    [end] = server.state.tokenizer.encode("Z")
    answer = client.chat.completions.create(
        **ASK, max_tokens=8, temperature=0, logit_bias={str(end): 100},
        extra_body={"stop_token_ids": [end], "return_token_ids": True},
    )  # fmt: skip
    choice = answer.choices[0]
    assert (choice.finish_reason, choice.stop_reason, choice.token_ids) == ("stop", end, [end])  # type: ignore[attr-defined]
    assert answer.prompt_token_ids  # type: ignore[attr-defined]


def test_an_answer_may_take_what_the_context_has_left_and_no_more(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(**ASK, temperature=0, extra_body={"ignore_eos": True})
    assert answer.usage is not None and answer.usage.total_tokens == 1024
    assert answer.choices[0].finish_reason == "length"
    assert answer.choices[0].message.content


def test_too_long_an_answer_is_refused_with_the_numbers(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        client.chat.completions.create(**ASK, max_completion_tokens=1020)
    assert raised.value.code == "context_length_exceeded"
    assert all(number in raised.value.message for number in ("1,020", "1,024"))


def test_too_long_a_prompt_is_refused_with_the_numbers(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="1,024") as raised:
        client.chat.completions.create(model="model", messages=[{"role": "user", "content": "x" * 3000}])
    assert raised.value.param == "messages"


def test_every_role_and_form_of_content_is_understood(client: openai.OpenAI) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "上海"}'}}
    messages: list[Any] = [
        {"role": "developer", "content": "Be brief."},
        {
            "role": "user",
            "name": "Li",
            "content": [{"type": "text", "text": "What is "}, {"type": "text", "text": "it?"}],
        },
        {"role": "assistant", "content": None, "tool_calls": [call], "refusal": None, "annotations": [], "audio": None},
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
        {"role": "assistant", "content": "Sunny.", "reasoning_content": "It says so."},
        {"role": "environment", "name": "<|plugin|>", "content": "still sunny"},
        {"role": "user", "content": "And now?"},
    ]
    answer = client.chat.completions.create(model="model", messages=messages, max_tokens=2)
    assert answer.choices[0].finish_reason == "length"


def test_an_answer_that_was_begun_is_gone_on_with(server: Running, client: openai.OpenAI) -> None:
    messages: list[Any] = [{"role": "user", "content": "Say it."}, {"role": "assistant", "content": "It is"}]
    answer = client.chat.completions.create(
        model="model", messages=messages, max_tokens=1,
        extra_body={"continue_final_message": True, "return_token_ids": True},
    )  # fmt: skip
    tokenizer = server.state.tokenizer
    assert tokenizer.decode(answer.prompt_token_ids).endswith("It is")  # type: ignore[attr-defined]


def test_a_shared_beginning_is_found_in_the_cache_and_changes_nothing(client: openai.OpenAI) -> None:
    messages: list[Any] = [{"role": "system", "content": "s" * 100}, {"role": "user", "content": "once"}]
    answers = [
        client.chat.completions.create(model="model", messages=messages, temperature=0, max_tokens=8) for _ in range(2)
    ]
    cached = [answer.usage.prompt_tokens_details.cached_tokens for answer in answers]  # type: ignore[union-attr]
    assert cached[0] == 0 and cached[1] > 90
    assert answers[0].choices[0].message.content == answers[1].choices[0].message.content


def test_models_are_listed_with_their_lengths(server: Running, client: openai.OpenAI) -> None:
    [model] = client.models.list().data
    assert (model.id, model.max_model_len) == ("model", 1024)  # type: ignore[attr-defined]
    assert client.models.retrieve("model").id == "model"
    with pytest.raises(openai.NotFoundError, match="this server has model"):
        client.chat.completions.create(model="gpt-9", messages=ASK["messages"])


def test_names_are_those_that_were_given(tmp_path: Path) -> None:
    with running(write_checkpoint(tmp_path), names=("mine", "also-mine")) as server, server.client() as client:
        assert [model.id for model in client.models.list()] == ["mine", "also-mine"]
        for name in ("mine", "also-mine"):
            answer = client.chat.completions.create(model=name, messages=ASK["messages"], max_tokens=1)
            assert answer.model == "mine"
