"""The items that `/v1/responses` takes, as messages of a conversation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from puyulm.serve.errors import ApiError
from puyulm.serve.protocol import ChatBody, ResponseFormat, ResponsesBody

_TEXTS = ("input_text", "output_text", "text")


def as_chat(body: ResponsesBody) -> ChatBody:
    """The same request to `/v1/chat/completions`.

    Raises:
        ApiError: It asks for what this server does not do; the message names the field.
    """
    for name in ("previous_response_id", "conversation", "background"):
        if getattr(body, name):
            raise ApiError(f"{name}: nothing is stored here: send the whole conversation as input", param=name)
    effort = None if body.reasoning is None else body.reasoning.effort
    return ChatBody(
        model=body.model, messages=_messages(body), max_completion_tokens=body.max_output_tokens,
        temperature=body.temperature, top_p=body.top_p, tools=_tools(body.tools), tool_choice=body.tool_choice,
        parallel_tool_calls=body.parallel_tool_calls, response_format=_format(body.text), reasoning_effort=effort,
    )  # fmt: skip


def _messages(body: ResponsesBody) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    if body.instructions:
        messages.append({"role": "system", "content": body.instructions})
    if isinstance(body.input, str):
        return [*messages, {"role": "user", "content": body.input}]
    for index, item in enumerate(body.input):
        _add(messages, item, f"input[{index}]")
    if not messages:
        raise ApiError("input: holds no message", param="input")
    return messages


def _add(messages: list[dict[str, Any]], item: Mapping[str, Any], where: str) -> None:
    kind = item.get("type", "message")
    if kind == "message":
        messages.append({"role": item.get("role"), "content": _content(item.get("content"), where)})
    elif kind == "function_call":
        if not messages or messages[-1]["role"] != "assistant":
            messages.append({"role": "assistant", "content": None, "tool_calls": []})
        function = {"name": item.get("name"), "arguments": item.get("arguments")}
        messages[-1].setdefault("tool_calls", []).append({"id": item.get("call_id"), "function": function})
    elif kind == "function_call_output":
        output = _content(item.get("output"), where)
        messages.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": output})
    elif kind != "reasoning":  # thoughts of earlier answers are not shown to the model again
        raise ApiError(f"{where}.type: {str(kind)[:50]!r} is not understood here", param=where)


def _content(content: object, where: str) -> object:
    if not isinstance(content, list):
        return content
    parts: list[object] = []
    for number, part in enumerate(content):
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind not in _TEXTS:
            raise ApiError(
                f"{where}.content[{number}]: only text parts are understood, not {str(kind)[:50]!r}", param=where
            )
        parts.append({"type": "text", "text": part.get("text")})
    return parts


def _tools(tools: Sequence[Mapping[str, Any]] | None) -> list[dict[str, Any]] | None:
    if not tools:
        return None
    for index, tool in enumerate(tools):
        if tool.get("type", "function") != "function":
            raise ApiError(
                f"tools[{index}].type: only functions are known here, not {str(tool['type'])[:50]!r}", param="tools"
            )
    return [{"type": "function", "function": {key: tool[key] for key in tool if key != "type"}} for tool in tools]


def _format(text: Mapping[str, Any] | None) -> ResponseFormat | None:
    wanted = None if text is None else text.get("format")
    if wanted is None:
        return None
    kind = wanted.get("type") if isinstance(wanted, Mapping) else None
    if kind not in ("text", "json_object", "json_schema"):
        raise ApiError("text.format.type: must be text, json_object or json_schema", param="text")
    schema = {"schema": wanted.get("schema")} if kind == "json_schema" else None
    return ResponseFormat(type=kind, json_schema=schema)
