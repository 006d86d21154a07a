"""From a request's texts and messages to ids, away from the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from starlette.responses import JSONResponse, Response

from puyulm.engine.grammar import Grammar
from puyulm.errors import ChatError
from puyulm.serve.errors import ApiError
from puyulm.serve.state import ServerState
from puyulm.text.chat import Message, render
from puyulm.text.messages import messages_from_dicts
from puyulm.text.template import render_template

T = TypeVar("T")

# Of a message; clients send others besides (`refusal`, `annotations`, `audio` of earlier answers).
_FIELDS = ("role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content", "reasoning", "code")
_IMAGES = ("image_url", "input_image", "image")


async def in_thread(function: Callable[[], T]) -> T:
    """Runs what may take long (a million tokens are encoded in seconds) beside the event loop.

    Raises:
        ApiError: A text holds half a surrogate pair, which JSON can spell and UTF-8 cannot.
    """
    try:
        return await asyncio.to_thread(function)
    except UnicodeEncodeError:
        raise ApiError("a text holds half a surrogate pair (\\ud800 to \\udfff): it is no Unicode text") from None


async def json_response(content: Callable[[], Mapping[str, Any]]) -> Response:
    """A response that may be long: of many vectors it is written in seconds. Errors as in `in_thread`."""
    return await in_thread(lambda: JSONResponse(content()))


async def check_grammar(state: ServerState, grammar: Grammar | None) -> None:
    """Compiles a grammar, in threads of their own: hard ones must not keep the texts of others waiting.

    Raises:
        GenerationError: It cannot be used.
    """
    if grammar is not None:
        await asyncio.get_running_loop().run_in_executor(state.compiling, state.grammars.check, grammar)


def check_text(state: ServerState, length: int, field: str) -> None:
    """Refuses at once what would be encoded for nothing.

    Args:
        length: Bytes of text.

    Raises:
        ApiError: Even in the longest tokens that there are it would be too long.
    """
    least = -(-length // state.longest_token)
    if least > state.max_length:
        raise _too_long(state, f"at least {least:,} tokens", field)


def check_messages(state: ServerState, messages: Sequence[Message], field: str = "messages") -> None:
    """`check_text` of a conversation. A template of the checkpoint's own may leave anything out."""
    if not state.own_template:
        texts = (text for one in messages for text in (one.content, one.reasoning, one.code) if text)
        check_text(state, sum(map(utf8_length, texts)), field)


def utf8_length(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def _too_long(state: ServerState, what: str, field: str) -> ApiError:
    return ApiError(
        f"{field}: has {what}, but there is room for {state.max_length:,}: shorten it",
        param=field, code="context_length_exceeded",
    )  # fmt: skip


def read_messages(dicts: Sequence[Mapping[str, Any]]) -> list[Message]:
    """Messages of a request.

    Raises:
        ChatError: Names the message and its field.
    """
    for index, message in enumerate(dicts):
        content = message.get("content")
        for number, part in enumerate(content if isinstance(content, list) else ()):
            if isinstance(part, Mapping) and part.get("type") in _IMAGES:
                raise ChatError(
                    f"messages[{index}].content[{number}]: an image: this model reads text alone; send text parts"
                )
        if message.get("function_call"):
            raise ChatError(f"messages[{index}].function_call: is of an old protocol: write tool_calls")
    return messages_from_dicts([{key: message[key] for key in _FIELDS if key in message} for message in dicts])


def chat_ids(
    state: ServerState,
    messages: Sequence[Message],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    think: bool = False,
    answer: bool = True,
    continue_final: bool = False,
) -> list[int]:
    """A conversation as ids.

    Args:
        answer: End with the header of an answer.
        continue_final: The last message is an assistant's, and the model goes on writing it.

    Raises:
        ChatError: The format cannot express it.
    """
    if not state.own_template:
        return render(
            messages, state.tokenizer, state.chat_format, tools=tools, think=think,
            add_generation_prompt=answer and not continue_final, continue_final=continue_final,
        ).ids  # fmt: skip
    template = state.tokenizer.chat_template
    if template is None:
        raise ChatError("the checkpoint has no chat template of its own")
    if continue_final:
        raise ChatError("continue_final_message: a checkpoint's own template cannot do that")
    if think and state.chat_format.thinking_prompt is not None:
        messages = [Message("system", state.chat_format.thinking_prompt), *messages]
    return render_template(messages, state.tokenizer, template, tools=tools, add_generation_prompt=answer)


def text_ids(state: ServerState, text: str, *, field: str = "prompt") -> list[int]:
    """A text to go on from, as ids.

    Raises:
        ApiError: There is nothing to go on from.
    """
    check_text(state, utf8_length(text), field)
    ids = state.tokenizer.encode(text, bos=True)
    if not ids:
        raise ApiError(
            f"{field}: is empty, and this model has no token that begins a text: write something", param=field
        )
    return ids


def list_of_inputs(
    given: str | list[str] | list[int] | list[list[int]], most: int, field: str
) -> list[str | list[int]]:
    """One text, several, ids, or several lists of ids: as a list.

    Raises:
        ApiError: There are none, or too many.
    """
    if isinstance(given, str):
        return [given]
    if given and all(isinstance(item, int) for item in given):
        return [given]  # type: ignore[list-item]
    if not 1 <= len(given) <= most:
        raise ApiError(f"{field}: must hold 1 to {most:,} texts, not {len(given):,}", param=field)
    return list(given)  # type: ignore[arg-type]


def check_ids(state: ServerState, ids: Sequence[int], field: str) -> None:
    """Raises an ApiError unless the model has all these tokens."""
    size = state.config.vocab_size
    wrong = next((id for id in ids if not 0 <= id < size), None)
    if wrong is not None:
        raise ApiError(f"{field}: holds the id {wrong}, but the model has {size:,} tokens", param=field)


def input_ids(state: ServerState, text: str | list[int], field: str) -> list[int]:
    """One of `list_of_inputs` as ids."""
    if isinstance(text, str):
        return text_ids(state, text, field=field)
    if len(text) > state.max_length:
        raise _too_long(state, f"{len(text):,} tokens", field)
    check_ids(state, text, field)
    return text
