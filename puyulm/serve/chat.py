"""`/v1/chat/completions`."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from puyulm.engine.chat_answer import ChatAnswer
from puyulm.engine.request import Request, TokenEvent
from puyulm.serve.answers import Answers
from puyulm.serve.chat_request import ChatRequest, count_thoughts, open_chat, read_chat
from puyulm.serve.connection import while_connected
from puyulm.serve.prompts import json_response
from puyulm.serve.protocol import ChatBody
from puyulm.serve.settings import ServeSettings
from puyulm.serve.shapes import chat_logprobs, head, stop_reason, usage
from puyulm.serve.state import ServerState
from puyulm.serve.streaming import DONE, EventStream, event
from puyulm.text.messages import Message, message_to_dict
from puyulm.text.parse import CallArguments, CallBegin, CallEnd, CodeDelta, Event, ReasoningDelta, TextDelta


async def chat(state: ServerState, settings: ServeSettings, body: ChatBody, http: HttpRequest) -> Response:
    """Answers a conversation."""
    if body.stream:
        request = await while_connected(http, read_chat(state, settings, body))
        answers, readers = await open_chat(state, request)
        return EventStream(_stream(state, body, request, answers, readers), answers.close)
    return await while_connected(http, _whole(state, settings, body))


async def _whole(state: ServerState, settings: ServeSettings, body: ChatBody) -> Response:
    request = await read_chat(state, settings, body)
    answers, readers = await open_chat(state, request)
    try:
        done = await answers.all()
    finally:
        answers.close()

    def result() -> dict[str, Any]:
        pairs = enumerate(zip(done, readers, strict=True))
        choices = [_choice(state, body, index, one, reader) for index, (one, reader) in pairs]
        whole = head(state, "chat.completion", "chatcmpl-", request.adapter)
        whole |= {"choices": choices, "usage": _usage(state, request, done)}
        if body.return_token_ids:
            whole["prompt_token_ids"] = request.ids
        return whole

    return await json_response(result)


def _choice(state: ServerState, body: ChatBody, index: int, request: Request, reader: ChatAnswer) -> dict[str, Any]:
    message = reader.message
    choice: dict[str, Any] = {
        "index": index,
        "message": answer_dict(message),
        "logprobs": None,
        "finish_reason": finish_reason(request, bool(message.tool_calls)),
        "stop_reason": stop_reason(request, body.stop_token_ids),
    }
    ids = answer_ids(request)
    if body.logprobs:
        choice["logprobs"] = chat_logprobs(
            state.tokenizer, ids, request.logprobs[: len(ids)], request.top, body.top_logprobs or 0
        )
    if body.return_token_ids:
        choice["token_ids"] = request.tokens[request.prompt_length :]
    return choice


def answer_dict(message: Message) -> dict[str, Any]:
    """An answer as the protocol writes it; `reasoning_content` and `code` besides."""
    result = message_to_dict(message) | {"refusal": None}
    for call in result.get("tool_calls", ()):
        call["id"] = call_id()
    if message.tool_calls and not message.content:
        result["content"] = None
    return result


def call_id() -> str:
    return f"call_{uuid.uuid4().hex[:24]}"


def answer_ids(request: Request) -> list[int]:
    """The answer's tokens without the one that ended it."""
    ids = request.tokens[request.prompt_length :]
    return ids if request.stop_id is None else ids[:-1]


def finish_reason(request: Request, called: bool) -> str:
    """An answer that was cut is cut, whatever it holds."""
    return "length" if request.finish_reason == "length" else "tool_calls" if called else "stop"


def _usage(state: ServerState, request: ChatRequest, done: Sequence[Request]) -> dict[str, Any]:
    thoughts = sum(count_thoughts(state, request, one.tokens[one.prompt_length :]) for one in done)
    return usage(done, [0], thoughts)


class Deltas:
    """The changes of one streamed message.

    Attributes:
        called: A call is complete.
    """

    def __init__(self) -> None:
        self.called = False
        self._ids: dict[int, str] = {}
        self._broken = False

    def of(self, events: Sequence[Event]) -> list[dict[str, Any]]:
        """What some events change, in order; consecutive ones of a kind as one."""
        deltas: list[dict[str, Any]] = []
        for kind, group in itertools.groupby(events, key=_kind):
            run = list(group)
            if kind == "call":
                deltas += self._calls(run)
                continue
            text = "".join(one.text for one in run if isinstance(one, TextDelta | ReasoningDelta | CodeDelta))
            if kind == "content" and self._broken:
                self._broken = False  # the arguments of a call that broke off: they have been sent as such
            elif text:
                deltas.append({kind: text})
        return deltas

    def _calls(self, events: Sequence[Event]) -> list[dict[str, Any]]:
        deltas: list[dict[str, Any]] = []
        for one in events:
            if isinstance(one, CallBegin):
                self._ids[one.index] = call_id()
                function = {"name": one.name, "arguments": ""}
                deltas.append(_call(one.index, id=self._ids[one.index], type="function", function=function))
            elif isinstance(one, CallArguments):
                deltas.append(_call(one.index, function={"arguments": one.text}))
            elif isinstance(one, CallEnd):
                self.called |= one.call is not None
                self._broken = one.call is None and one.index in self._ids
        return deltas


def _kind(event: Event) -> str:
    if isinstance(event, TextDelta):
        return "content"
    return (
        "reasoning_content" if isinstance(event, ReasoningDelta) else "code" if isinstance(event, CodeDelta) else "call"
    )


def _call(index: int, **fields: object) -> dict[str, Any]:
    return {"tool_calls": [{"index": index, **fields}]}


async def _stream(
    state: ServerState, body: ChatBody, request: ChatRequest, answers: Answers, readers: Sequence[ChatAnswer]
) -> AsyncGenerator[str, None]:
    start = head(state, "chat.completion.chunk", "chatcmpl-", request.adapter)
    with_usage = body.stream_options is not None and body.stream_options.include_usage
    if with_usage:
        start["usage"] = None
    changes = [Deltas() for _ in readers]
    for index in range(len(readers)):
        first = {"role": "assistant", "content": ""}
        extra = {"prompt_token_ids": request.ids} if body.return_token_ids and index == 0 else {}
        yield event(start | extra | {"choices": [_change(index, first)]})
    async for index, tokens, done in answers.parts():
        deltas = changes[index].of(readers[index].take_events())
        extras = _extras(state, body, answers.request(index), tokens)
        if extras and not deltas:
            deltas = [{}]  # tokens whose text is held back
        for number, delta in enumerate(deltas):
            yield event(start | {"choices": [_change(index, delta) | (extras if number == 0 else {})]})
        if done:
            one = answers.request(index)
            last = _change(index, {}, finish_reason(one, changes[index].called)) | {
                "stop_reason": stop_reason(one, body.stop_token_ids)
            }
            yield event(start | {"choices": [last]})
    if with_usage:
        done_requests = [answers.request(index) for index in range(len(readers))]
        yield event(start | {"choices": [], "usage": _usage(state, request, done_requests)})
    yield DONE


def _change(index: int, delta: Mapping[str, Any], reason: str | None = None) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}


def _extras(state: ServerState, body: ChatBody, request: Request, tokens: Sequence[TokenEvent]) -> dict[str, Any]:
    """What is told of tokens besides their text."""
    extras: dict[str, Any] = {}
    if body.return_token_ids and tokens:
        extras["token_ids"] = [token.token for token in tokens]
    told = [token for token in tokens if token.token not in request.stop_ids]
    if body.logprobs and told:
        extras["logprobs"] = chat_logprobs(
            state.tokenizer, [token.token for token in told], [token.logprob for token in told],
            [token.top for token in told if token.top is not None], body.top_logprobs or 0,
        )  # fmt: skip
    return extras
