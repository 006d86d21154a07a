"""The JSON of a tool call, `{"name": ..., "parameters": {...}}`: read whole, and followed while it arrives."""

from __future__ import annotations

import json
from typing import Any

from puyulm.text.messages import ToolCall

ARGUMENT_KEYS = ("parameters", "arguments")  # InternLM2 writes the first, the OpenAI protocol the second


def read_calls(body: str) -> list[ToolCall]:
    """The calls in the text between two action markers: one object, or a list of them.

    Raises:
        ValueError: It is not strict JSON, or not a call; the message says what is wrong.
    """
    try:
        data = json.loads(body, object_pairs_hook=_no_duplicates, parse_constant=_no_constants)
        json.dumps(data, ensure_ascii=False).encode()  # half a surrogate pair cannot be written again
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except UnicodeEncodeError:
        raise ValueError("half a surrogate pair in a string") from None
    calls = [_call(item) for item in (data if isinstance(data, list) else [data])]
    if not calls:
        raise ValueError("an empty list")
    return calls


def _call(data: object) -> ToolCall:
    if not isinstance(data, dict):
        raise ValueError("not an object")
    name = data.get("name")
    if not isinstance(name, str) or not name:
        raise ValueError("no 'name'")
    keys = [key for key in ARGUMENT_KEYS if key in data]
    if len(keys) > 1:
        raise ValueError("both 'parameters' and 'arguments'")
    arguments = data[keys[0]] if keys else None
    if isinstance(arguments, str):  # JSON in JSON, as the OpenAI protocol writes it
        arguments = json.loads(arguments, object_pairs_hook=_no_duplicates, parse_constant=_no_constants)
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, dict):
        raise ValueError(f"'{keys[0]}' is not an object")
    return ToolCall(name, arguments)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) < len(pairs):
        raise ValueError("a key stands twice in one object")
    return result


def _no_constants(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


class CallScanner:
    """Follows a call's JSON as it arrives and finds its name and the raw text of its arguments early.

    It judges nothing: `read_calls` on the whole text has the last word.

    Attributes:
        name: The call's name, once it has been read.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self._arguments = ""  # found and not yet taken
        self._depth = 0
        self._in_string = self._escaped = False
        self._key: object = None
        self._raw = ""  # of the key or value being read at the outermost level
        self._off = False

    def feed(self, text: str) -> None:
        """Takes more of the text."""
        for character in text:
            if self._off:
                return
            self._character(character)

    def take_arguments(self) -> str:
        """The arguments' JSON text that has become known since the last time; "" until the name is known."""
        if self.name is None:
            return ""
        taken, self._arguments = self._arguments, ""
        return taken

    def _character(self, character: str) -> None:
        if self._in_string:
            self._keep(character)
            if self._escaped:
                self._escaped = False
            elif character == "\\":
                self._escaped = True
            elif character == '"':
                self._in_string = False
        elif character in "{[":
            if self._depth:
                self._keep(character)
            elif character == "[":  # a list of calls waits for its end
                self._off = True
            self._depth += 1
        elif character in "}]":
            self._depth -= 1
            if self._depth > 0:
                self._keep(character)
            else:
                self._value_ended()
                self._off = True
        elif self._depth == 1 and character == ":":
            self._key, self._raw = _string(self._raw), ""
        elif self._depth == 1 and character == ",":
            self._value_ended()
        elif self._depth and not (self._depth == 1 and character.isspace()):
            self._in_string = character == '"'
            self._keep(character)

    def _keep(self, character: str) -> None:
        self._raw += character
        if self._key in ARGUMENT_KEYS and self._raw[0] == "{":
            self._arguments += character

    def _value_ended(self) -> None:
        if self._key == "name" and self.name is None:
            self.name = _string(self._raw)
        self._key, self._raw = None, ""


def _string(raw: str) -> str | None:
    try:
        value = json.loads(raw)
    except ValueError:
        return None
    return value if isinstance(value, str) else None
