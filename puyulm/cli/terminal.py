"""The terminal side of a chat: reading questions of several lines, showing answers safely."""

from __future__ import annotations

import os
import re
import sys
import time
from pathlib import Path
from typing import Any, Protocol

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def printable(text: str) -> str:
    """Text without control characters when it goes to a terminal, which a model must not steer."""
    return _CONTROL.sub("\ufffd", text) if sys.stdout.isatty() else text


def dim(text: str) -> str:
    """Text in a faint colour, on terminals that have one."""
    return f"\x1b[2m{text}\x1b[0m" if sys.stderr.isatty() and "NO_COLOR" not in os.environ else text


class Speed:
    """Counts the tokens of an answer; as text, how many came how fast."""

    def __init__(self) -> None:
        self._started = self._first = self._last = time.monotonic()
        self.tokens = 0

    def count(self) -> None:
        self._last = time.monotonic()
        if not self.tokens:
            self._first = self._last
        self.tokens += 1

    def __str__(self) -> str:
        parts = [f"{self.tokens:,} token{'s' * (self.tokens != 1)}", f"first after {self._first - self._started:.1f} s"]
        if self.tokens > 1 and self._last > self._first:
            parts.insert(1, f"{(self.tokens - 1) / (self._last - self._first):.1f} tokens/s")
        return ", ".join(parts)


def is_open(text: str) -> bool:
    """Whether a question goes on in the next line: its last line ends with a backslash, or a ``` block is open."""
    lines = text.split("\n")
    fences = sum(line.lstrip().startswith("```") for line in lines)
    return lines[-1].endswith("\\") or fences % 2 == 1


def joined(text: str) -> str:
    """A question as it is meant: line breaks without the backslashes that continued them, and no spaces around it."""
    return text.replace("\\\n", "\n").strip()


class Reader(Protocol):
    """Where questions come from."""

    def read(self) -> str:
        """The next question. Raises EOFError at the end, KeyboardInterrupt when one is given up."""
        ...


class PlainReader:
    """Lines of standard input."""

    def read(self) -> str:
        text = input()
        try:
            while is_open(text):
                text += "\n" + input()
        except EOFError:
            pass  # the last question may be left open
        return joined(text)


class PromptReader:
    """A line editor with history: Enter sends, Alt-Enter or a trailing backslash begins a new line."""

    def __init__(self) -> None:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.formatted_text import FormattedText
        from prompt_toolkit.key_binding import KeyBindings

        keys = KeyBindings()

        @keys.add("enter")
        def _(event: Any) -> None:
            buffer = event.current_buffer
            if is_open(buffer.text) and buffer.document.is_cursor_at_the_end:
                buffer.insert_text("\n")
            else:
                buffer.validate_and_handle()

        @keys.add("escape", "enter")
        def _(event: Any) -> None:
            event.current_buffer.insert_text("\n")

        self._session: PromptSession[str] = PromptSession(
            FormattedText([("bold", "> ")]), multiline=True, key_bindings=keys, history=_history(),
            prompt_continuation="  ",
        )  # fmt: skip

    def read(self) -> str:
        return joined(self._session.prompt())


def open_reader() -> Reader:
    """The line editor on a terminal, plain lines elsewhere."""
    return PromptReader() if sys.stdin.isatty() and sys.stdout.isatty() else PlainReader()


def _history() -> Any:
    """Earlier questions, kept in a file that only the user can read; in memory where it cannot be written."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    path = history_path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_CREAT | os.O_APPEND | os.O_RDWR, 0o600))
    except OSError:
        return InMemoryHistory()
    return FileHistory(path)


def history_path() -> Path:
    """`$XDG_STATE_HOME/puyulm/chat_history`."""
    base = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(base).expanduser() / "puyulm" / "chat_history"
