"""Between the chat page's bubbles and messages of the protocol.

What an answer holds beside its text (thoughts, code, calls of tools) stands in bubbles of its own with a title, from
which the conversation is read back: the page keeps nothing else.
"""

from __future__ import annotations

import json
import mimetypes
import re
from collections.abc import Mapping, Sequence
from html import escape, unescape
from pathlib import Path
from typing import Any

from puyulm.serve.errors import ApiError
from puyulm.text.parse import CallArguments, CallBegin, CallEnd, CodeDelta, Event, ReasoningDelta, TextDelta

THOUGHTS, CALL, CODE, RESULT = "Thoughts", "Call of ", "Code", "Result of "
INTERPRETER = "code"  # what the result after code is called; tools have names of their own

_FENCED = re.compile(r"(`{3,})\w*\n(.*?)\n?\1\s*", re.DOTALL)
_FOLD = re.compile(r"<details><summary>(.*?)</summary>\n\n((`{3,})\n.*?\n\3)\n\n</details>\n\n", re.DOTALL)

Bubble = dict[str, Any]  # a message as Gradio shows it: role, content (a list of parts), metadata


class Shown:
    """An answer's parts as bubbles.

    Attributes:
        bubbles: In the order in which they came.
    """

    def __init__(self) -> None:
        self._parts: list[tuple[str | None, str]] = []  # title, text

    @property
    def bubbles(self) -> list[Bubble]:
        last = len(self._parts) - 1
        return [
            _bubble(title, text, growing=place == last)
            for place, (title, text) in enumerate(self._parts)
            if title is not None or text.strip()
        ]

    def add(self, events: Sequence[Event]) -> None:
        """What has come."""
        for event in events:
            if isinstance(event, ReasoningDelta):
                self._more(THOUGHTS, event.text)
            elif isinstance(event, CodeDelta):
                self._more(CODE, event.text)
            elif isinstance(event, TextDelta):
                self._more(None, event.text)
            elif isinstance(event, CallBegin):
                self._parts.append((CALL + event.name, ""))
            elif isinstance(event, CallArguments):
                self._more(self._title, event.text)
            elif isinstance(event, CallEnd) and event.call is None and (self._title or "").startswith(CALL):
                self._parts.pop()  # not understood: its raw text follows

    @property
    def _title(self) -> str | None:
        return self._parts[-1][0] if self._parts else None

    def _more(self, title: str | None, text: str) -> None:
        if self._parts and self._title == title:
            text = self._parts.pop()[1] + text
        self._parts.append((title, text))


def question(text: str, files: Sequence[str], history: Sequence[Bubble], folder: Path) -> Bubble:
    """The bubble of what somebody wrote and attached; after a call, it is the tool's result. Texts of files stand in
    it, folded: Gradio cannot change a text beside a file.

    Args:
        folder: Where files must lie. They are removed from there.

    Raises:
        ApiError: There is nothing; or a file is not text.
    """
    if not text.strip() and not files:
        raise ApiError("write a question first")
    paths = [Path(file) for file in files]
    folds = [_folded(path.name, file_text(path, folder)) for path in paths]
    for path in paths:
        path.unlink(missing_ok=True)
    waits = waiting_call(history)
    metadata = None if waits is None else {"title": RESULT + waits}
    return {"role": "user", "content": [text_part("".join(folds) + text)], "metadata": metadata}


def settled(history: Sequence[Bubble]) -> list[Bubble]:
    """The same without a sign that something is still being written."""
    result = []
    for bubble in history:
        metadata = {key: value for key, value in (bubble.get("metadata") or {}).items() if value is not None}
        if metadata.get("status") == "pending":
            metadata["status"] = "done"
        result.append({"role": bubble["role"], "content": bubble["content"], "metadata": metadata or None})
    return result


def waiting_call(history: Sequence[Bubble]) -> str | None:
    """The name of the tool whose result comes next (`INTERPRETER`: of code); None: a question comes."""
    messages = messages_of(history)
    if messages and messages[-1].get("code") is not None:
        return INTERPRETER
    open_calls = _open_calls(messages)
    return open_calls[0]["function"]["name"] if open_calls else None


def messages_of(history: Sequence[Bubble]) -> list[dict[str, Any]]:
    """The conversation that bubbles show, as messages of the protocol. Thoughts are not repeated to the model."""
    messages: list[dict[str, Any]] = []
    for bubble in history:
        text = text_of(bubble)
        if bubble["role"] == "user":
            messages.append(_asked(_FOLD.sub(_unfolded, text).strip(), messages))
            continue
        title = str((bubble.get("metadata") or {}).get("title") or "")
        if not messages or messages[-1]["role"] != "assistant":
            messages.append({"role": "assistant", "content": ""})
        message = messages[-1]
        if title.startswith(CALL) and _is_json(unfenced(text)):
            function = {"name": title.removeprefix(CALL), "arguments": unfenced(text).strip() or "{}"}
            calls = message.setdefault("tool_calls", [])
            calls.append({"id": f"call_{len(messages)}_{len(calls)}", "type": "function", "function": function})
        elif title == CODE:
            message["code"] = unfenced(text)
        elif title != THOUGHTS:  # also a call that was stopped halfway
            message["content"] += text
    return [message for message in messages if message["role"] != "assistant" or len(message) > 2 or message["content"]]


def text_of(bubble: Bubble) -> str:
    """A bubble's text, as it was written."""
    return "\n\n".join(str(part.get("text") or "") for part in bubble["content"])


def text_part(text: str) -> dict[str, Any]:
    """The only part of a bubble's content."""
    # A bare string would lose its indentation on the way.
    return {"type": "text", "text": text}


def file_text(path: Path, folder: Path) -> str:
    """The text of a file that was attached.

    Raises:
        ApiError: It has none, or is not there any more.
    """
    kind = mimetypes.guess_type(path.name)[0] or ""
    if kind.startswith(("image/", "audio/", "video/")) and kind not in ("image/svg+xml", "video/mp2t"):
        raise ApiError(f"{path.name}: this model reads text alone, no {kind.partition('/')[0]}s")
    if not path.resolve().is_relative_to(folder.resolve()):
        raise ApiError(f"{path.name}: was not attached here")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        text = "\0"
    except OSError:
        raise ApiError(f"{path.name}: is not there any more: attach it again") from None
    if "\0" in text:
        raise ApiError(f"{path.name}: this model reads text alone, and this file is none (in UTF-8)")
    return text


def read_tools(text: str) -> list[Any] | None:
    """The tools of the settings.

    Raises:
        ApiError: They are not a JSON list.
    """
    if not text.strip():
        return None
    try:
        tools = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ApiError(f"tools: not JSON ({error})") from None
    if not isinstance(tools, list):
        raise ApiError("tools: must be a JSON list")
    return tools


def fenced(text: str, language: str) -> str:
    """A text as a block of code, whatever it holds."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def unfenced(text: str) -> str:
    """The text of `fenced`."""
    found = _FENCED.fullmatch(text)
    return text if found is None else found[2]


def _folded(name: str, text: str) -> str:
    return f"<details><summary>{escape(name)}</summary>\n\n{fenced(text, '')}\n\n</details>\n\n"


def _unfolded(fold: re.Match[str]) -> str:
    return f"{unescape(fold[1])}:\n{fold[2]}\n\n"


def _bubble(title: str | None, text: str, *, growing: bool) -> Bubble:
    bubble: Bubble = {"role": "assistant", "metadata": None}
    if title is not None:
        # Gradio folds what is done when it is first shown so, and shows what is pending.
        status = {"status": "pending" if growing else "done"} if title == THOUGHTS else {}
        bubble["metadata"] = {"title": title, **status}
        if title == CODE or title.startswith(CALL):
            text = fenced(text, "python" if title == CODE else "json")
    return bubble | {"content": [text_part(text)]}


def _is_json(text: str) -> bool:
    try:
        json.loads(text or "{}")
    except (ValueError, RecursionError):
        return False
    return True


def _asked(text: str, messages: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    if messages and messages[-1].get("code") is not None:
        return {"role": "environment", "name": "interpreter", "content": text}
    calls = _open_calls(messages)
    if calls:
        return {"role": "tool", "tool_call_id": calls[0]["id"], "content": text}
    return {"role": "user", "content": text}


def _open_calls(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The last answer's calls that have no result yet."""
    answered = set()
    for message in reversed(messages):
        if message["role"] == "tool":
            answered.add(message["tool_call_id"])
        else:
            return [call for call in message.get("tool_calls", ()) if call["id"] not in answered]
    return []
