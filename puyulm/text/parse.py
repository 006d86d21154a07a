"""Answers back into messages: text, reasoning, tool calls and code, in one piece or token by token.

Markers are recognised by id, so text that merely spells one stays text. Nothing that a model writes raises an error: a
call that cannot be understood stays in the text as it was written, and the message says why (`Message.parse_error`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from puyulm.text.call_json import CallScanner, read_calls
from puyulm.text.formats import (
    ACTION_END,
    ACTION_START,
    INTERPRETER,
    PLUGIN,
    THINK_CLOSE,
    THINK_OPEN,
    ChatFormat,
    Marker,
)
from puyulm.text.messages import Message, ToolCall
from puyulm.text.stream import StreamDecoder

if TYPE_CHECKING:
    from puyulm.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True)
class TextDelta:
    """More text; all of them together are `Message.content`."""

    text: str


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    """More reasoning; all of them together are `Message.reasoning`."""

    text: str


@dataclass(frozen=True, slots=True)
class CodeDelta:
    """More code for the interpreter; all of them together are `Message.code`."""

    text: str


@dataclass(frozen=True, slots=True)
class CallBegin:
    """A tool call has begun and its name is known. `index` counts the calls of an answer from 0."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """More of a call's arguments, as JSON text; all of them together are the JSON object."""

    index: int
    text: str


@dataclass(frozen=True, slots=True)
class CallEnd:
    """A call is complete; or, where `call` is None, it was not understood and is followed by its raw text."""

    index: int
    call: ToolCall | None
    error: str | None = None


Event = TextDelta | ReasoningDelta | CodeDelta | CallBegin | CallArguments | CallEnd


def parse_answer(
    answer: Iterable[int] | str, tokenizer: Tokenizer, chat_format: ChatFormat, *, in_reasoning: bool = False
) -> Message:
    """The message that a model wrote.

    Args:
        answer: The generated ids, up to or beyond the end of the turn; or text with literal markers, as programs
            that keep no ids hand it on.
        in_reasoning: The prompt ended inside the reasoning (with `<think>`), so the answer starts there.
    """
    parser = AnswerParser(tokenizer, chat_format, in_reasoning=in_reasoning)
    for token_id in tokenizer.encode_markup(answer) if isinstance(answer, str) else answer:
        parser.push(token_id)
    parser.finish()
    return parser.message


def message_of(events: Iterable[Event]) -> Message:
    """The message that events, or the first of them, sum up to."""
    events = list(events)
    reasoning = [event.text for event in events if isinstance(event, ReasoningDelta)]
    code = [event.text for event in events if isinstance(event, CodeDelta)]
    ended = [event for event in events if isinstance(event, CallEnd)]
    return Message(
        "assistant",
        "".join(event.text for event in events if isinstance(event, TextDelta)),
        tool_calls=tuple(event.call for event in ended if event.call is not None),
        reasoning="".join(reasoning) if reasoning else None,
        code="".join(code) if code else None,
        parse_error="; ".join(event.error for event in ended if event.error) or None,
    )


class AnswerParser:
    """Reads an answer token by token.

    The same ids give the same message however the text is split into tokens, and every field of the message is the
    sum of the events of its kind.

    Args:
        in_reasoning: The prompt ended inside the reasoning (with `<think>`), so the answer starts there.
    """

    def __init__(self, tokenizer: Tokenizer, chat_format: ChatFormat, *, in_reasoning: bool = False) -> None:
        self._decoder = StreamDecoder(tokenizer, skip_special=True)
        self._stop_ids = chat_format.stop_ids(tokenizer)
        actions = (ACTION_START, ACTION_END, PLUGIN, INTERPRETER) if chat_format.actions else ()
        self._markers = {found: marker for marker in actions if (found := marker.find(tokenizer)) is not None}
        # where a tokenizer counts the tags as special, decoding would leave them out
        tags = (THINK_OPEN, THINK_CLOSE) if chat_format.reasoning else ()
        self._tags = {found: str(tag) for tag in tags if (found := tag.find(tokenizer)) is not None}
        start: _Place = "reasoning line" if in_reasoning else "start" if chat_format.reasoning else "text"
        self._answer = _Answer(start)
        self._finished = False

    @property
    def finished(self) -> bool:
        """An end-of-turn token has come, or `finish` was called; further tokens are ignored."""
        return self._finished

    @property
    def message(self) -> Message:
        """What is settled so far; after `finish`, the whole answer."""
        return self._answer.message()

    def push(self, token_id: int) -> list[Event]:
        """Takes one token and returns what it settles."""
        if self._finished:
            return []
        if token_id in self._stop_ids:
            return self.finish()
        if token_id not in self._markers and token_id not in self._tags:
            return self._answer.text(self._decoder.push(token_id))
        text = self._decoder.flush() + self._decoder.push(token_id)  # so the decoder knows what the next text follows
        if token_id in self._tags:
            return self._answer.text(text + self._tags[token_id])
        return self._answer.text(text) + self._answer.marker(self._markers[token_id])

    def finish(self) -> list[Event]:
        """Ends the answer and returns what was still held back."""
        if self._finished:
            return []
        self._finished = True
        return self._answer.text(self._decoder.flush()) + self._answer.close()


class _Answer:
    """The parser proper, fed with text in any portions and with markers."""

    def __init__(self, start: _Place) -> None:
        self._part: _Prose | _Action | _Call | _Code = _Prose(start)
        self._calls_ended = 0
        self._events: list[Event] = []

    def text(self, text: str) -> list[Event]:
        return self._record(self._part.feed(text)) if text else []

    def marker(self, marker: Marker) -> list[Event]:
        part = self._part
        if marker == ACTION_END:
            return self.close(str(marker)) if not isinstance(part, _Prose) else []
        if marker == ACTION_START:
            events = self.close()
            self._part = _Action(self._calls_ended)
            return events
        if isinstance(part, _Action) and part.is_blank():
            self._part = _Call(self._calls_ended) if marker == PLUGIN else _Code(again=self._has_code())
            return self._record(self._part.feed(""))
        return []  # a kind without an action

    def close(self, ending: str = "") -> list[Event]:
        """Ends the part that is open; only white space is dropped from what follows an action."""
        events = self._record(self._part.close(ending))
        self._part = _Prose("after action")
        return events

    def message(self) -> Message:
        return message_of(self._events)

    def _has_code(self) -> bool:
        return any(isinstance(event, CodeDelta) for event in self._events)

    def _record(self, events: list[Event]) -> list[Event]:
        self._events += events
        self._calls_ended += sum(isinstance(event, CallEnd) for event in events)
        return events


_Place = Literal["start", "reasoning line", "reasoning", "reasoning end", "text", "after action"]


_OPEN, _CLOSE = str(THINK_OPEN), str(THINK_CLOSE)


class _Prose:
    """Text, with reasoning before it.

    One line break after `<think>`, one before `</think>` and two after it are the renderer's, and are dropped.
    """

    def __init__(self, place: _Place) -> None:
        self._place: _Place = place
        self._held = ""
        self._breaks = 2

    def feed(self, text: str) -> list[Event]:
        self._held += text
        events: list[Event] = []
        while self._held:
            place, held = self._place, self._held
            if place == "start":
                self._start(events)
            elif place == "reasoning line":
                self._held, self._place = held.removeprefix("\n"), "reasoning"
            elif place == "reasoning":
                self._reason(events)
            elif place == "reasoning end":
                while self._breaks and self._held.startswith("\n"):
                    self._held, self._breaks = self._held[1:], self._breaks - 1
                self._place = "text" if self._held else place
            elif place == "text" or held.strip():
                self._held, self._place = "", "text"
                events.append(TextDelta(held))
            if (self._place, self._held) == (place, held):  # nothing more is settled
                break
        return events

    def close(self, ending: str = "") -> list[Event]:
        held, self._held = self._held, ""
        if not held or self._place == "after action":
            return []
        return [ReasoningDelta(held) if self._place == "reasoning" else TextDelta(held)]

    def _start(self, events: list[Event]) -> None:
        begun = self._held.lstrip()
        if begun.startswith(_OPEN):
            self._held, self._place = begun.removeprefix(_OPEN), "reasoning line"
            events.append(ReasoningDelta(""))
        elif not _OPEN.startswith(begun):
            self._place = "text"

    def _reason(self, events: list[Event]) -> None:
        thoughts, closed, rest = self._held.partition(_CLOSE)
        if closed:
            thoughts, self._held, self._place = thoughts.removesuffix("\n"), rest, "reasoning end"
        else:
            kept = max(_overlap(thoughts, "\n" + _CLOSE), _overlap(thoughts, _CLOSE))
            thoughts, self._held = thoughts[: len(thoughts) - kept], thoughts[len(thoughts) - kept :]
        if thoughts:
            events.append(ReasoningDelta(thoughts))


class _Action:
    """An action whose kind has not been told."""

    def __init__(self, index: int) -> None:
        self._index = index
        self._raw = ""

    def is_blank(self) -> bool:
        return not self._raw.strip()

    def feed(self, text: str) -> list[Event]:
        self._raw += text
        return []

    def close(self, ending: str = "") -> list[Event]:
        error = f"an action that is neither {PLUGIN} nor {INTERPRETER}"
        return [CallEnd(self._index, None, error), TextDelta(f"{ACTION_START}{self._raw}{ending}")]


class _Call:
    """A tool call: JSON."""

    def __init__(self, index: int) -> None:
        self._index = index
        self._raw = ""
        self._scanner = CallScanner()
        self._begun = self._argued = False

    def feed(self, text: str) -> list[Event]:
        self._raw += text
        self._scanner.feed(text)
        events: list[Event] = []
        if self._scanner.name and not self._begun:
            self._begun = True
            events.append(CallBegin(self._index, self._scanner.name))
        if arguments := self._scanner.take_arguments():
            self._argued = True
            events.append(CallArguments(self._index, arguments))
        return events

    def close(self, ending: str = "") -> list[Event]:
        try:
            calls = read_calls(self._raw)
        except ValueError as error:
            raw = f"{ACTION_START}{PLUGIN}{self._raw}{ending}"
            return [CallEnd(self._index, None, f"a tool call that is not understood: {error}"), TextDelta(raw)]
        events: list[Event] = []
        for index, call in enumerate(calls, start=self._index):
            if not self._begun:
                events.append(CallBegin(index, call.name))
            if not self._argued:
                events.append(CallArguments(index, json.dumps(call.arguments, ensure_ascii=False)))
            events.append(CallEnd(index, call))
        return events


_OPENING_FENCE = re.compile(r"\s*```[\w+#.-]*[ \t]*\r?\n")
_CLOSING_FENCE = re.compile(r"\n```\s*\Z")
_HALF_CLOSING_FENCE = re.compile(r"\n(?:`{0,2}|```\s*)\Z")


class _Code:
    """Code for the interpreter, without the fence around it."""

    def __init__(self, again: bool) -> None:
        self._held = ""
        self._fenced: bool | None = None
        self._start = "\n" if again else ""  # a second block goes on below the first, as in a notebook
        self._begun = False
        self._line_break_added = False

    def feed(self, text: str) -> list[Event]:
        self._held += text
        events: list[Event] = [] if self._begun else [CodeDelta(self._start)]
        self._begun = True
        if self._fenced is None:
            self._decide()
        if self._fenced is None:
            return events
        half = _HALF_CLOSING_FENCE.search(self._held) if self._fenced else None
        return events + self._emit(half.start() if half else len(self._held))

    def close(self, ending: str = "") -> list[Event]:
        if self._fenced is None:
            self._held = self._held.removeprefix("\n")
        closing = _CLOSING_FENCE.search(self._held) if self._fenced else None
        return self._emit(closing.start() if closing else len(self._held))

    def _decide(self) -> None:
        begun = self._held.lstrip()
        if match := _OPENING_FENCE.match(self._held):
            # with its line break kept, an empty block's closing fence looks like any other
            self._fenced, self._held, self._line_break_added = True, "\n" + self._held[match.end() :], True
        elif not "```".startswith(begun[:3]) or "\n" in begun:
            self._fenced, self._held = False, self._held.removeprefix("\n")

    def _emit(self, length: int) -> list[Event]:
        text, self._held = self._held[:length], self._held[length:]
        if text and self._line_break_added:
            text, self._line_break_added = text[1:], False
        return [CodeDelta(text)] if text else []


def _overlap(text: str, tag: str) -> int:
    """Length of the longest end of `text` that `tag` starts with."""
    return next((size for size in range(min(len(text), len(tag)), 0, -1) if text.endswith(tag[:size])), 0)
