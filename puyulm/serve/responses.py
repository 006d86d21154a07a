"""`/v1/responses`: the same conversations in the form of OpenAI's newer endpoint. Nothing is stored."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response

from puyulm.engine.chat_answer import ChatAnswer
from puyulm.engine.request import Request
from puyulm.serve.answers import Answers
from puyulm.serve.chat import call_id
from puyulm.serve.chat_request import ChatRequest, count_thoughts, open_chat, read_chat
from puyulm.serve.connection import while_connected
from puyulm.serve.protocol import ChatBody, ResponsesBody
from puyulm.serve.responses_input import as_chat
from puyulm.serve.settings import ServeSettings
from puyulm.serve.shapes import new_id
from puyulm.serve.state import ServerState
from puyulm.serve.streaming import EventStream, event, response_failed
from puyulm.text.parse import CallArguments, CallBegin, CallEnd, CodeDelta, Event, ReasoningDelta, TextDelta


async def responses(state: ServerState, settings: ServeSettings, body: ResponsesBody, http: HttpRequest) -> Response:
    """Answers a conversation."""
    asked = as_chat(body)
    if body.stream:
        request = await while_connected(http, read_chat(state, settings, asked))
        answers, [reader] = await open_chat(state, request)
        frame = _frame(state, body, request)
        return EventStream(_stream(state, frame, request, answers, reader), answers.close, response_failed)
    return JSONResponse(await while_connected(http, _whole(state, settings, body, asked)))


async def _whole(state: ServerState, settings: ServeSettings, body: ResponsesBody, asked: ChatBody) -> dict[str, Any]:
    request = await read_chat(state, settings, asked)
    answers, [reader] = await open_chat(state, request)
    try:
        [done] = await answers.all()
    finally:
        answers.close()
    writer = Writer()
    writer.write(reader.take_events())
    writer.end()
    return _finished(state, _frame(state, body, request), request, done, writer)


async def _stream(
    state: ServerState, frame: dict[str, Any], request: ChatRequest, answers: Answers, reader: ChatAnswer
) -> AsyncGenerator[str, None]:
    writer = Writer()
    writer.emit("response.created", response=frame)
    writer.emit("response.in_progress", response=frame)
    yield _text(writer)
    async for _, _, done in answers.parts():
        writer.write(reader.take_events())
        if done:
            writer.end()
            result = _finished(state, frame, request, answers.request(0), writer)
            writer.emit(f"response.{result['status']}", response=result)
        if writer.events:
            yield _text(writer)


def _text(writer: Writer) -> str:
    events, writer.events = writer.events, []
    return "".join(event(one, one["type"]) for one in events)


def _frame(state: ServerState, body: ResponsesBody, request: ChatRequest) -> dict[str, Any]:
    """The response before anything is written."""
    return {
        "id": new_id("resp_"),
        "object": "response",
        "created_at": int(time.time()),
        "status": "in_progress",
        "error": None,
        "incomplete_details": None,
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "model": request.adapter or state.name,
        "output": [],
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "previous_response_id": None,
        "reasoning": {"effort": None if body.reasoning is None else body.reasoning.effort, "summary": None},
        "store": False,
        "temperature": request.params.temperature,
        "text": body.text or {"format": {"type": "text"}},
        "tool_choice": body.tool_choice or "auto",
        "tools": body.tools or [],
        "top_p": request.params.top_p,
        "truncation": "disabled",
        "usage": None,
        "metadata": body.metadata or {},
    }


def _finished(
    state: ServerState, frame: Mapping[str, Any], request: ChatRequest, done: Request, writer: Writer
) -> dict[str, Any]:
    cut = done.finish_reason == "length"
    thoughts = count_thoughts(state, request, done.tokens[done.prompt_length :])
    return {
        **frame,
        "status": "incomplete" if cut else "completed",
        "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
        "output": writer.items,
        "usage": {
            "input_tokens": done.prompt_length,
            "input_tokens_details": {"cached_tokens": done.shared or 0},
            "output_tokens": done.answer_length,
            "output_tokens_details": {"reasoning_tokens": thoughts},
            "total_tokens": done.prompt_length + done.answer_length,
        },
    }


class Writer:
    """Items of an answer as they grow, and the events that tell of it.

    Attributes:
        items: The output so far.
        events: Not sent yet.
    """

    def __init__(self) -> None:
        self.items: list[dict[str, Any]] = []
        self.events: list[dict[str, Any]] = []
        self._sequence = 0
        self._open: dict[str, Any] | None = None
        self._broken = False

    def emit(self, kind: str, **fields: object) -> None:
        self.events.append({"type": kind, "sequence_number": self._sequence, **fields})
        self._sequence += 1

    def write(self, events: Sequence[Event]) -> None:
        """Adds what an answer's reader has found."""
        for one in events:
            if isinstance(one, CallBegin):
                self._begin(
                    {
                        "id": new_id("fc_"),
                        "type": "function_call",
                        "call_id": call_id(),
                        "name": one.name,
                        "arguments": "",
                    }
                )
            elif isinstance(one, CallArguments):
                self._grow("function_call", "arguments", one.text, "response.function_call_arguments")
            elif isinstance(one, CallEnd):
                self._broken = one.call is None and self._open is not None and self._open["type"] == "function_call"
                self._end("incomplete" if one.call is None else "completed")
            elif not one.text:
                continue
            elif isinstance(one, CodeDelta):
                if self._kind() != "code_interpreter_call":
                    fields = {"code": "", "container_id": "", "outputs": None}
                    self._begin({"id": new_id("ci_"), "type": "code_interpreter_call", **fields})
                self._grow("code_interpreter_call", "code", one.text, "response.code_interpreter_call_code")
            elif self._broken and isinstance(one, TextDelta):
                self._broken = False  # the arguments of a call that broke off: they have been sent as such
            else:
                self._prose(one)

    def end(self) -> None:
        """Ends the last item."""
        if self._open is not None:
            self._end("completed")
        if not self.items:  # an empty answer is an answer
            self._begin({"id": new_id("msg_"), "type": "message", "role": "assistant", "content": []})
            self._end("completed")

    def _prose(self, one: TextDelta | ReasoningDelta) -> None:
        kind = "reasoning" if isinstance(one, ReasoningDelta) else "message"
        if self._kind() != kind:
            fields: dict[str, Any] = {"summary": []} if kind == "reasoning" else {"role": "assistant"}
            self._begin({"id": new_id("rs_" if kind == "reasoning" else "msg_"), "type": kind, **fields, "content": []})
            part = _part(kind)
            assert self._open is not None
            self._open["content"].append(part)
            self.emit("response.content_part.added", **self._place(), content_index=0, part=dict(part))
        assert self._open is not None
        self._open["content"][0]["text"] += one.text
        name = "reasoning_text" if kind == "reasoning" else "output_text"
        extra: dict[str, Any] = {} if kind == "reasoning" else {"logprobs": []}
        self.emit(f"response.{name}.delta", **self._place(), content_index=0, delta=one.text, **extra)

    def _kind(self) -> str | None:
        return None if self._open is None else str(self._open["type"])

    def _place(self) -> dict[str, Any]:
        assert self._open is not None
        return {"item_id": self._open["id"], "output_index": len(self.items) - 1}

    def _begin(self, item: dict[str, Any]) -> None:
        if self._open is not None:
            self._end("completed")
        item["status"] = "in_progress"
        self._open = item
        self.items.append(item)
        shown = {**item, "content": []} if "content" in item else dict(item)
        self.emit("response.output_item.added", output_index=len(self.items) - 1, item=shown)

    def _grow(self, kind: str, field: str, text: str, name: str) -> None:
        if self._open is not None and self._kind() == kind:
            self._open[field] += text
            self.emit(f"{name}.delta", **self._place(), delta=text)

    def _end(self, status: str) -> None:
        item = self._open
        if item is None:
            return
        item["status"] = status
        if item["type"] == "function_call":
            fields = {"name": item["name"], "arguments": item["arguments"]}
            self.emit("response.function_call_arguments.done", **self._place(), **fields)
        elif item["type"] == "code_interpreter_call":
            self.emit("response.code_interpreter_call_code.done", **self._place(), code=item["code"])
        elif item["content"]:
            part = item["content"][0]
            name = "reasoning_text" if item["type"] == "reasoning" else "output_text"
            extra: dict[str, Any] = {} if item["type"] == "reasoning" else {"logprobs": []}
            self.emit(f"response.{name}.done", **self._place(), content_index=0, text=part["text"], **extra)
            self.emit("response.content_part.done", **self._place(), content_index=0, part=dict(part))
        self.emit("response.output_item.done", output_index=len(self.items) - 1, item=dict(item))
        self._open = None


def _part(kind: str) -> dict[str, Any]:
    if kind == "reasoning":
        return {"type": "reasoning_text", "text": ""}
    return {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
