"""Messages, and the one renderer that turns them into token ids and the mask of what a model learns.

Structure is written by id and content goes through `Tokenizer.encode`, which never yields a special token, so nothing
that a user types can end a turn or open another role's.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

from puyulm.errors import ChatError
from puyulm.text.formats import (
    ACTION_END,
    ACTION_START,
    INTERPRETER,
    PLUGIN,
    THINK_CLOSE,
    THINK_OPEN,
    ChatFormat,
    Marker,
    chat_format_for,
    find_chat_format,
)
from puyulm.text.messages import Message, ToolCall, message_from_dict, message_to_dict, messages_from_dicts

if TYPE_CHECKING:
    from puyulm.text.tokenizer import Tokenizer

__all__ = [
    "ChatFormat",
    "Message",
    "Rendered",
    "ToolCall",
    "chat_format_for",
    "find_chat_format",
    "message_from_dict",
    "message_to_dict",
    "messages_from_dicts",
    "render",
    "tool_list_json",
]

CODE_FENCE = "```python\n"


@dataclass(frozen=True, slots=True)
class Rendered:
    """A conversation as tokens.

    Attributes:
        ids: `[T]` token ids.
        mask: `[T]`, True where the model is trained to produce this token: an assistant's text, reasoning, calls and
            code with their markers, and the token that ends its turn; not the line break after that token.
    """

    ids: list[int]
    mask: list[bool]


class _Piece(NamedTuple):
    value: str | int  # text, or the id of a structure token
    answer: bool  # stands in an assistant's answer; text is encoded up to this border
    trained: bool


def render(
    messages: Sequence[Message],
    tokenizer: Tokenizer,
    chat_format: ChatFormat,
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = False,
    continue_final: bool = False,
    default_system: bool | str = True,
    think: bool | str = False,
) -> Rendered:
    """Writes a conversation as ids and loss mask.

    Text between two structure tokens is encoded in one piece, as in the published full string, with one exception:
    an answer is encoded apart from the header before it, as the model that wrote it saw it. So the ids of a prompt
    are the first ids of the conversation that it grows into, and the mask cuts between tokens.

    Args:
        tools: OpenAI-style tool definitions; they become a system message after the first one.
        add_generation_prompt: End with the header of an answer.
        continue_final: The last message is an assistant's and stays open: the model goes on writing it.
        default_system: True: a conversation that does not start with a system message gets the format's default;
            False: it gets none; a text: it gets this one.
        think: True: the format's prompt for deep thinking comes first; a text: this one does.

    Raises:
        ChatError: The format cannot express the messages, or the tokenizer lacks the format's tokens.
    """
    if not messages:
        raise ChatError("there are no messages to render")
    if continue_final and (add_generation_prompt or messages[-1].role != "assistant"):
        raise ChatError("continue_final needs an assistant's message at the end and no generation prompt after it")
    if continue_final and (messages[-1].tool_calls or messages[-1].code is not None):
        raise ChatError("continue_final cannot go on after a tool call or code: its message is complete")
    messages = _with_system(messages, chat_format, tools, default_system, think)
    pieces: list[_Piece] = [*_token(tokenizer.bos_id)] if chat_format.bos else []
    for index, message in enumerate(messages):
        is_open = continue_final and index + 1 == len(messages)
        if chat_format.bos_every_turn and _is_answered_or_first(messages, index, continue_final):
            pieces += _token(tokenizer.bos_id)
        pieces += _message_pieces(message, tokenizer, chat_format, is_open=is_open)
    if add_generation_prompt:
        pieces += _header(Message("assistant"), tokenizer, chat_format)
    elif chat_format.eos_after_answer and messages[-1].role == "assistant" and not continue_final:
        pieces += _token(tokenizer.eos_id, trained=messages[-1].loss is not False)
    pieces += _token(chat_format.reward_token_id)
    return _encode(pieces, tokenizer)


def _encode(pieces: Iterable[_Piece], tokenizer: Tokenizer) -> Rendered:
    rendered = Rendered([], [])
    after_text = False
    for (is_text, _), group in groupby(pieces, key=lambda piece: (isinstance(piece.value, str), piece.answer)):
        run = list(group)
        if is_text:
            text = "".join(str(piece.value) for piece in run)
            ids = tokenizer.encode(text, mid_text=after_text)
            rendered.ids.extend(ids)
            rendered.mask.extend([run[0].trained] * len(ids))
            after_text = after_text or bool(text)
        else:
            rendered.ids.extend(int(piece.value) for piece in run)
            rendered.mask.extend(piece.trained for piece in run)
            after_text = False
    return rendered


def _token(token_id: int | None, *, trained: bool = False) -> Iterable[_Piece]:
    return () if token_id is None else (_Piece(token_id, False, trained),)


def _is_answered_or_first(messages: Sequence[Message], index: int, continue_final: bool) -> bool:
    """Whether the user turn at `index` stood in the history (or is the first) when the 2023 code wrote it."""
    if messages[index].role != "user":
        return False
    closed = messages[: len(messages) - continue_final]
    answered = index + 1 < len(closed) and closed[index + 1].role == "assistant"
    return answered or all(earlier.role != "user" for earlier in messages[:index])


def _message_pieces(
    message: Message, tokenizer: Tokenizer, chat_format: ChatFormat, *, is_open: bool
) -> Iterable[_Piece]:
    yield from _header(message, tokenizer, chat_format)
    turn, is_answer = chat_format.turn(message.role), message.role == "assistant"
    trained = is_answer and message.loss is not False
    for part in _content(message, chat_format):
        yield _piece(part, tokenizer, chat_format, is_answer, trained)
    if not is_open:
        for position, part in enumerate(turn.end):
            ends_turn = is_answer and position == 0 and isinstance(part, Marker)
            yield _piece(part, tokenizer, chat_format, ends_turn, ends_turn and trained)


def _header(message: Message, tokenizer: Tokenizer, chat_format: ChatFormat) -> Iterable[_Piece]:
    turn = chat_format.turn(message.role)
    parts: list[str | Marker] = list(turn.head)
    if message.name is not None:
        tool_name = next((marker for marker in (PLUGIN, INTERPRETER) if message.name == str(marker)), None)
        if tool_name is not None and not (chat_format.actions and message.role in ("system", "environment")):
            raise ChatError(
                f"name: {message.name} in a message of role '{message.role}' has no place in the chat format "
                f"'{chat_format.name}'"
            )
        if chat_format.names:
            parts += [" name=", tool_name if tool_name is not None else _plain_name(message.name)]
    parts.append(turn.gap)
    return (_piece(part, tokenizer, chat_format, False, False) for part in parts)


def _piece(part: str | Marker, tokenizer: Tokenizer, chat_format: ChatFormat, answer: bool, trained: bool) -> _Piece:
    if isinstance(part, Marker) and part in (THINK_OPEN, THINK_CLOSE) and part.find(tokenizer) is None:
        part = str(part)  # older vocabularies spell the tags
    return _Piece(part.id(tokenizer, chat_format.name) if isinstance(part, Marker) else part, answer, trained)


def _plain_name(name: str) -> str:
    if not name.strip() or not name.isprintable():
        raise ChatError(f"name: {name!r} must be one line of visible text")
    return name


def _content(message: Message, chat_format: ChatFormat) -> Iterable[str | Marker]:
    if message.reasoning is not None:
        if not chat_format.reasoning:
            raise ChatError(f"reasoning: the chat format '{chat_format.name}' has no place for it")
        yield from (THINK_OPEN, f"\n{message.reasoning}\n", THINK_CLOSE, "\n\n")
    yield message.content
    if (message.tool_calls or message.code is not None) and not chat_format.actions:
        field_name = "tool_calls" if message.tool_calls else "code"
        raise ChatError(f"{field_name}: the chat format '{chat_format.name}' has no tools")
    for call in message.tool_calls:
        body = json.dumps({"name": call.name, "parameters": call.arguments}, ensure_ascii=False)
        yield from (ACTION_START, PLUGIN, f"\n{body}", ACTION_END)
    if message.code is not None:
        yield from (ACTION_START, INTERPRETER, f"\n{CODE_FENCE}{message.code}\n```", ACTION_END)


def _with_system(
    messages: Sequence[Message],
    chat_format: ChatFormat,
    tools: Sequence[Mapping[str, Any]] | None,
    default_system: bool | str,
    think: bool | str,
) -> list[Message]:
    """The messages with the system texts that were asked for at their start."""
    result = list(messages)

    def starts_with_system() -> bool:
        return result[0].role == "system" and result[0].name is None

    if think:
        prompt = chat_format.thinking_prompt if think is True else think
        if prompt is None:
            raise ChatError(f"the chat format '{chat_format.name}' has no thinking mode; it comes with InternLM3")
        result.insert(0, Message("system", prompt))
    elif not starts_with_system():
        text = chat_format.default_system if default_system is True else default_system
        if text:
            result.insert(0, Message("system", text))
    if tools:
        if not chat_format.actions:
            raise ChatError(f"tools: the chat format '{chat_format.name}' has no tools")
        tool_list = Message("system", tool_list_json(tools), name=str(PLUGIN))
        result.insert(1 if starts_with_system() else 0, tool_list)
    return result


def tool_list_json(tools: Sequence[Mapping[str, Any]]) -> str:
    """The JSON list of tools that a model is shown: `name`, `description`, `parameters` (JSON schema) of each.

    Raises:
        ChatError: A tool has no name or its fields are of the wrong kind; the message names it by its index.
    """
    shown = []
    for index, tool in enumerate(tools):
        function = tool.get("function", tool) if isinstance(tool, Mapping) else tool
        where = f"tools[{index}]"
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str) or not function["name"]:
            raise ChatError(f"{where}: must be a function definition with a name")
        if not isinstance(function.get("parameters") or {}, Mapping):
            raise ChatError(f"{where}.parameters: must be a JSON schema (an object)")
        shown.append({key: function[key] for key in ("name", "description", "parameters") if function.get(key)})
    return json.dumps(shown, ensure_ascii=False)
