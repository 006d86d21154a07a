"""The chat page at `/`, built on Gradio and mounted in the server's own application.

It asks the engine directly, as the protocol's endpoints do. What it shows of an answer beside its text (thoughts, calls
of tools) stands in messages of its own with a title, from which the conversation is read back.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from fastapi import FastAPI

from puyulm.errors import PuyuError
from puyulm.serve.chat_request import open_chat, read_chat
from puyulm.serve.errors import ApiError
from puyulm.serve.protocol import ChatBody
from puyulm.serve.settings import ServeSettings
from puyulm.serve.state import ServerState
from puyulm.text.parse import CallArguments, CallBegin, CallEnd, CodeDelta, Event, ReasoningDelta, TextDelta

THOUGHTS, CALL, CODE, RESULT = "Thoughts", "Call of ", "Code", "Result of "
FILE_TYPES = [".txt", ".md", ".csv", ".json", ".py", ".tex", ".log", ".html", ".yaml"]
MAX_FILE = 1 << 20  # bytes of a text file that goes into a question
_EVERY = 0.05  # seconds between two updates of the page
_LATEX = [
    {"left": "$$", "right": "$$", "display": True},
    {"left": "\\[", "right": "\\]", "display": True},
    {"left": "\\(", "right": "\\)", "display": False},
    {"left": "$", "right": "$", "display": False},
]

Bubble = dict[str, Any]  # a message as Gradio shows it


def mount_page(app: FastAPI, state: ServerState, settings: ServeSettings) -> FastAPI:
    """Puts the page at `/`. Where the server has API keys, the page asks for one as the password, of any user."""
    keys = settings.api_keys
    return gr.mount_gradio_app(
        app, build_page(state, settings), path="/", show_error=True, footer_links=[],
        auth=(lambda user, password: password in keys) if keys else None,
        auth_message="The password is an API key of this server.",
        max_file_size=MAX_FILE,
    )  # fmt: skip


def build_page(state: ServerState, settings: ServeSettings) -> gr.Blocks:
    """The page of one model."""
    params = state.params
    with gr.Blocks(title=state.name, fill_height=True, analytics_enabled=False) as page:
        gr.Markdown(f"### {state.name}")
        speed = gr.Markdown(render=False)
        settings_of_answer = [
            gr.Textbox("", label="System message", lines=2, placeholder="the model's own", render=False),
            gr.Slider(0, 2, params.temperature, step=0.05, label="Temperature", info="0: always the most likely",
                      render=False),
            gr.Slider(0.05, 1, params.top_p, step=0.05, label="Top-p", render=False),
            gr.Number(params.max_new_tokens, label="Longest answer, in tokens", precision=0, minimum=1, render=False),
            gr.Number(None, label="Seed", info="the same seed gives the same answer", precision=0, render=False),
            gr.Checkbox(state.think, label="Deep thinking", visible=state.chat_format.thinking_prompt is not None,
                        render=False),
            gr.Textbox("", label="Tools (a JSON list, as in the OpenAI protocol)", lines=3, render=False),
        ]  # fmt: skip

        async def respond(message: Mapping[str, Any], history: list[Bubble], *given: Any) -> AsyncIterator[Any]:
            async for bubbles, note in answer(state, settings, message, history, *given):
                yield bubbles, note

        gr.ChatInterface(
            respond, multimodal=True, editable=True, fill_height=True, concurrency_limit=None, api_name=False,
            chatbot=gr.Chatbot(height="70vh", latex_delimiters=_LATEX, buttons=["copy", "copy_all"], show_label=False,
                               placeholder="Ask something."),
            textbox=gr.MultimodalTextbox(file_types=FILE_TYPES, file_count="multiple", placeholder="Ask something",
                                         show_label=False, autofocus=True),
            additional_inputs=settings_of_answer, additional_inputs_accordion=gr.Accordion("Settings", open=False),
            additional_outputs=[speed],
        )  # fmt: skip
        speed.render()
    return page


async def answer(
    state: ServerState, settings: ServeSettings, message: Mapping[str, Any], history: Sequence[Bubble], system: str,
    temperature: float, top_p: float, max_tokens: int | None, seed: int | None, think: bool, tools: str,
) -> AsyncIterator[tuple[list[Bubble], str]]:  # fmt: skip
    """What the page shows while an answer comes: bubbles, and a line about its speed.

    Raises:
        gradio.Error: The request cannot be served.
    """
    try:
        body = ChatBody.model_validate({
            "messages": [
                *([{"role": "system", "content": system}] if system.strip() else []),
                *messages_of(history), *question_of(message, history),
            ],
            "temperature": temperature, "top_p": top_p, "max_tokens": max_tokens, "seed": seed,
            "tools": read_tools(tools),
            **({"enable_thinking": think} if state.chat_format.thinking_prompt is not None else {}),
        })  # fmt: skip
        request = await read_chat(state, settings, body)
        answers, readers = await open_chat(state, request)
    except (PuyuError, ValueError) as error:
        raise gr.Error(_one_line(error)) from None
    shown, started, last, count = Shown(), time.monotonic(), 0.0, 0
    try:
        async for _, tokens, done in answers.parts():
            count += len(tokens)
            shown.add(readers[0].take_events())
            now = time.monotonic()
            if done or now - last >= _EVERY:
                last = now
                yield shown.bubbles, speed_note(count, now - started, answers.request(0).shared)
    except ApiError as error:
        raise gr.Error(_one_line(error)) from None
    finally:
        answers.close()


class Shown:
    """An answer's parts as bubbles.

    Attributes:
        bubbles: In the order in which they came.
    """

    def __init__(self) -> None:
        self.bubbles: list[Bubble] = []

    def add(self, events: Sequence[Event]) -> None:
        for event in events:
            if isinstance(event, ReasoningDelta):
                self._more(event.text, THOUGHTS)
            elif isinstance(event, CodeDelta):
                self._more(event.text, CODE)
            elif isinstance(event, TextDelta):
                self._more(event.text, None)
            elif isinstance(event, CallBegin):
                self._begin(CALL + event.name)
            elif isinstance(event, CallArguments):
                self._more(event.text, self._title() or CALL)
            elif isinstance(event, CallEnd) and event.call is None and (self._title() or "").startswith(CALL):
                self.bubbles.pop()  # not understood: its raw text follows
        if self.bubbles and self._title() is None and len(self.bubbles) > 1:
            thoughts = self.bubbles[0].get("metadata") or {}
            if thoughts.get("title") == THOUGHTS:
                thoughts["status"] = "done"  # folds them

    def _title(self) -> str | None:
        return (self.bubbles[-1].get("metadata") or {}).get("title") if self.bubbles else None

    def _begin(self, title: str | None) -> None:
        bubble: Bubble = {"role": "assistant", "content": ""}
        if title is not None:
            bubble["metadata"] = {"title": title} | ({"status": "pending"} if title == THOUGHTS else {})
        self.bubbles.append(bubble)

    def _more(self, text: str, title: str | None) -> None:
        if not self.bubbles or self._title() != title:
            self._begin(title)
        self.bubbles[-1]["content"] += text


def messages_of(history: Sequence[Bubble]) -> list[dict[str, Any]]:
    """The conversation that a page's bubbles show, as messages of the protocol. Thoughts are not repeated to a model."""
    messages: list[dict[str, Any]] = []
    calls = 0
    for bubble in history:
        title, text = (bubble.get("metadata") or {}).get("title") or "", text_of(bubble.get("content"))
        if bubble["role"] == "user":
            pending = _open_call(messages)
            if pending is not None:
                messages.append({"role": "tool", "tool_call_id": pending, "content": text})
            elif messages and messages[-1]["role"] == "user":  # a file and the question beside it
                messages[-1]["content"] += "\n\n" + text
            else:
                messages.append({"role": "user", "content": text})
            continue
        if title == THOUGHTS:
            continue
        if not messages or messages[-1]["role"] != "assistant":
            messages.append({"role": "assistant", "content": ""})
        if title.startswith(CALL):
            calls += 1
            function = {"name": title.removeprefix(CALL), "arguments": text or "{}"}
            messages[-1].setdefault("tool_calls", []).append(
                {"id": f"call_{calls}", "type": "function", "function": function}
            )
        else:
            messages[-1]["content"] += text
    return messages


def question_of(message: Mapping[str, Any], history: Sequence[Bubble]) -> list[dict[str, Any]]:
    """What was typed, with the text of files before it; after a call, the result of the tool.

    Raises:
        ApiError: There is nothing, or a file is not text.
    """
    files = [_file_text(Path(file)) for file in message.get("files") or ()]
    text = "\n\n".join([*files, str(message.get("text") or "")]).strip()
    if not text:
        raise ApiError("write a question")
    pending = _open_call(messages_of(history))
    if pending is not None:
        return [{"role": "tool", "tool_call_id": pending, "content": text}]
    return [{"role": "user", "content": text}]


def text_of(content: Any) -> str:
    """The text of a bubble: a string, or a list of parts, of which files are read."""
    if isinstance(content, str):
        return content
    if isinstance(content, Mapping):
        path = content.get("path") or (content.get("file") or {}).get("path")
        return _file_text(Path(path)) if path else str(content.get("text", ""))
    if isinstance(content, Sequence):
        return "\n\n".join(text_of(part) for part in content)
    return ""


def read_tools(text: str) -> list[Any] | None:
    """The tools of the settings.

    Raises:
        ApiError: They are not a JSON list.
    """
    if not text.strip():
        return None
    try:
        tools = json.loads(text)
    except ValueError as error:
        raise ApiError(f"tools: not valid JSON ({error})") from None
    if not isinstance(tools, list):
        raise ApiError("tools: must be a JSON list")
    return tools


def speed_note(tokens: int, seconds: float, cached: int | None) -> str:
    """A line about an answer."""
    spared = f", {cached:,} tokens of the prompt from the cache" if cached else ""
    return f"<small>{tokens:,} tokens, {tokens / max(seconds, 1e-6):.1f} a second{spared}</small>"


def _open_call(messages: Sequence[Mapping[str, Any]]) -> str | None:
    """The first call that has no result yet."""
    answered = {message.get("tool_call_id") for message in messages}
    for message in reversed(messages):
        if message["role"] == "user":
            return None
        if message["role"] == "assistant":
            return next((call["id"] for call in message.get("tool_calls", ()) if call["id"] not in answered), None)
    return None


def _file_text(path: Path) -> str:
    try:
        return f"{path.name}:\n```\n{path.read_text(encoding='utf-8')}\n```"
    except (OSError, UnicodeDecodeError):
        raise ApiError(f"{path.name}: only text files can be read, in UTF-8") from None


def _one_line(error: Exception) -> str:
    return str(error).split("\n")[0] if isinstance(error, PuyuError) else "the settings cannot be used: check them"
