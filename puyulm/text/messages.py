"""Messages of a conversation, and their OpenAI-style form."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from puyulm.errors import ChatError
from puyulm.text.formats import PLUGIN, Role


@dataclass(frozen=True, slots=True)
class ToolCall:
    """One call of a tool.

    Attributes:
        id: The caller's handle, which the result repeats; it is not shown to the model.
    """

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    id: str | None = None


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation.

    Attributes:
        name: Written into the header where the format has names. `<|plugin|>` and `<|interpreter|>` mark tool lists
            and code instructions (system) and the results of calls and code (environment).
        tool_calls, code, reasoning: Of an assistant, besides its text: calls, Python for the interpreter, thoughts.
        tool_call_id: In a tool's result, the call that it answers.
        loss: False keeps an assistant's message out of the loss; None and True take it in.
        parse_error: Set by the parser: why a part of the answer that looked like a call stands in `content`.

    Raises:
        ChatError: A role is unknown, or a field does not fit the role.
    """

    role: Role
    content: str = ""
    name: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    loss: bool | None = None
    reasoning: str | None = None
    code: str | None = None
    parse_error: str | None = None

    def __post_init__(self) -> None:
        if self.role not in get_args(Role):
            raise ChatError(f"role: '{self.role}' is unknown; known: {', '.join(get_args(Role))}, tool")
        if self.role == "assistant":
            return
        for name, given in (
            ("tool_calls", self.tool_calls),
            ("reasoning", self.reasoning is not None),
            ("code", self.code is not None),
            ("loss", self.loss is True),
        ):
            if given:
                raise ChatError(f"{name}: only an assistant's message can have it, not one of role '{self.role}'")


_ROLE_ALIASES: dict[str, Role] = {"tool": "environment", "function": "environment", "developer": "system"}
_FIELDS = ("role", "content", "name", "tool_calls", "tool_call_id", "loss", "reasoning_content", "reasoning", "code")


def message_from_dict(data: Mapping[str, Any], index: int = 0) -> Message:
    """A message from its OpenAI-style form.

    Role `tool` becomes `environment` named `<|plugin|>` (the tool's own name is dropped: the format has no place for
    it), `developer` becomes `system`. Content may be a list of text parts, which are joined as they are. Calls carry
    their arguments as a JSON string or an object. Besides the protocol: `reasoning_content`, `code` and `loss`.

    Args:
        index: Place in the conversation, for error messages.

    Raises:
        ChatError: Names the message and its field.
    """
    where = f"messages[{index}]"
    if not isinstance(data, Mapping):
        raise ChatError(f"{where}: must be an object with role and content, not {type(data).__name__}")
    unknown = [key for key, value in data.items() if key not in _FIELDS and value not in (None, [], {}, "")]
    if unknown:
        raise ChatError(f"{where}.{unknown[0]}: unknown field; known: {', '.join(_FIELDS)}")
    given_role = data.get("role")
    if not isinstance(given_role, str):
        raise ChatError(f"{where}.role: missing; known: {', '.join(get_args(Role))}, tool")
    role = _ROLE_ALIASES.get(given_role, given_role)
    name = _optional(data, "name", str, where)
    if given_role in ("tool", "function"):
        name = str(PLUGIN)
    elif role in ("system", "environment") and name in ("plugin", "interpreter"):
        name = f"<|{name}|>"
    reasoning = _optional(data, "reasoning_content", str, where)
    if reasoning is None:
        reasoning = _optional(data, "reasoning", str, where)
    calls = _calls(data.get("tool_calls"), where)
    code = _optional(data, "code", str, where)
    try:
        return Message(
            role=role,  # type: ignore[arg-type]  # checked by Message
            content=_text(data.get("content"), where, may_be_empty=bool(calls or code or reasoning)),
            name=name,
            tool_calls=calls,
            tool_call_id=_optional(data, "tool_call_id", str, where),
            loss=_optional(data, "loss", bool, where),
            reasoning=reasoning,
            code=code,
        )
    except ChatError as error:
        message = str(error)
        raise error if message.startswith(where) else ChatError(f"{where}.{message}") from None


def messages_from_dicts(data: Sequence[Mapping[str, Any]]) -> list[Message]:
    """A conversation from its OpenAI-style form; see `message_from_dict`."""
    return [message_from_dict(item, index) for index, item in enumerate(data)]


def message_to_dict(message: Message, *, tool_role: Literal["tool", "environment"] = "tool") -> dict[str, Any]:
    """The OpenAI-style form of a message, which `message_from_dict` reads back.

    Args:
        tool_role: What a tool's result is called.
    """
    is_result = message.role == "environment" and message.name == str(PLUGIN)
    data: dict[str, Any] = {"role": tool_role if is_result else message.role, "content": message.content}
    if message.name is not None and not (is_result and tool_role == "tool"):
        data["name"] = message.name
    if message.tool_calls:
        data["tool_calls"] = [
            {
                "id": call.id or f"call_{index}",
                "type": "function",
                "function": {"name": call.name, "arguments": json.dumps(call.arguments, ensure_ascii=False)},
            }
            for index, call in enumerate(message.tool_calls)
        ]
    extras = {
        "tool_call_id": message.tool_call_id,
        "loss": message.loss,
        "reasoning_content": message.reasoning,
        "code": message.code,
    }
    return data | {key: value for key, value in extras.items() if value is not None}


def _optional(data: Mapping[str, Any], key: str, kind: type, where: str) -> Any:
    value = data.get(key)
    if value is not None and not isinstance(value, kind):
        raise ChatError(f"{where}.{key}: must be {kind.__name__}, not {type(value).__name__}")
    return value


def _text(content: object, where: str, *, may_be_empty: bool) -> str:
    if isinstance(content, str):
        return content
    if content is None and may_be_empty:
        return ""
    if not isinstance(content, list):
        kind = "missing" if content is None else f"must be text or a list of text parts, not {type(content).__name__}"
        raise ChatError(f"{where}.content: {kind}")
    texts = []
    for number, part in enumerate(content):
        kind = part.get("type", "text") if isinstance(part, Mapping) else type(part).__name__
        text = part.get("text") if isinstance(part, Mapping) and kind == "text" else part
        if not isinstance(text, str):
            raise ChatError(f"{where}.content[{number}]: only text parts are understood, not '{kind}'")
        texts.append(text)
    return "".join(texts)


def _calls(calls: object, where: str) -> tuple[ToolCall, ...]:
    if calls is None:
        return ()
    if not isinstance(calls, list):
        raise ChatError(f"{where}.tool_calls: must be a list, not {type(calls).__name__}")
    return tuple(_call(call, f"{where}.tool_calls[{number}]") for number, call in enumerate(calls))


def _call(data: object, where: str) -> ToolCall:
    function = data.get("function", data) if isinstance(data, Mapping) else None
    if not isinstance(data, Mapping) or not isinstance(function, Mapping):
        raise ChatError(f"{where}: must be an object with a function")
    name = function.get("name")
    if not isinstance(name, str) or not name:
        raise ChatError(f"{where}.function.name: missing")
    arguments = function.get("arguments", function.get("parameters"))
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments) if arguments.strip() else {}
        except (ValueError, RecursionError) as error:
            raise ChatError(f"{where}.function.arguments: not JSON ({error})") from None
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, Mapping):
        raise ChatError(f"{where}.function.arguments: must be a JSON object, not {type(arguments).__name__}")
    return ToolCall(name, dict(arguments), _optional(data, "id", str, where))
