"""The chat page, built on Gradio.

It asks the engine directly, as the protocol's endpoints do. The conversation lives in the browser: the server keeps
nothing of it but attached files, for a day at most.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components import Component

from puyulm.errors import PuyuError
from puyulm.serve.answers import Answers
from puyulm.serve.bubbles import (
    INTERPRETER,
    RESULT,
    Bubble,
    Shown,
    messages_of,
    question,
    read_tools,
    settled,
    waiting_call,
)
from puyulm.serve.chat_request import open_chat, read_chat
from puyulm.serve.errors import ApiError, error_body
from puyulm.serve.limits import TokenBuckets
from puyulm.serve.protocol import ChatBody
from puyulm.serve.settings import ServeSettings
from puyulm.serve.state import ServerState

log = logging.getLogger("puyulm.serve")

KEEP_FILES = (600, 24 * 3600)  # seconds: how often attached files are looked at, and how old they may be
_EVERY = 0.05  # seconds between two updates of the page
_LATEX = [
    {"left": "$$", "right": "$$", "display": True},
    {"left": "\\[", "right": "\\]", "display": True},
    {"left": "\\(", "right": "\\)", "display": False},
    {"left": "$", "right": "$", "display": False},
]
_OFF: dict[str, Any] = {"queue": False, "api_visibility": "private", "show_progress": "hidden"}


class ChatPage:
    """What the page's events do.

    Args:
        folder: Of attached files.
    """

    def __init__(self, state: ServerState, settings: ServeSettings, folder: Path) -> None:
        self._state, self._settings, self._folder = state, settings, folder
        self._buckets = None if settings.rate_limit is None else TokenBuckets(settings.rate_limit)
        self._running: dict[str, set[Answers]] = {}  # by the browser's tab

    def build(self) -> gr.Blocks:
        """The page."""
        with gr.Blocks(
            title=self._state.name, fill_height=True, analytics_enabled=False, delete_cache=KEEP_FILES
        ) as page:
            gr.Markdown(f"### {self._state.name}", elem_id="model")
            chatbot = gr.Chatbot(
                elem_id="chat", show_label=False, container=False, height="calc(100dvh - 17rem)", min_height=240,
                latex_delimiters=_LATEX, buttons=["copy", "copy_all"], editable="user", feedback_options=None,
                placeholder="Ask something.",
            )  # fmt: skip
            speed = gr.Markdown(elem_id="speed")
            textbox = gr.MultimodalTextbox(
                elem_id="question", file_count="multiple", sources=["upload"], show_label=False, autofocus=True,
                placeholder=_placeholder([]), max_plain_text_length=1 << 20,
            )  # fmt: skip
            with gr.Accordion("Settings", open=False, elem_id="settings"):
                given = self._settings_of_answers()
            both = [textbox, chatbot]
            asked = textbox.submit(self.ask, both, both, **_OFF)
            again = chatbot.retry(self.retry, chatbot, both, **_OFF)
            edited = chatbot.edit(self.edit, chatbot, both, **_OFF)
            answering = [
                event.success(
                    self.respond, [chatbot, *given], [chatbot, speed], concurrency_limit=None, show_progress="hidden",
                    api_visibility="private", trigger_mode="once",
                )
                for event in (asked, again, edited)
            ]  # fmt: skip
            for event in answering:
                event.then(self.settle, chatbot, both, **_OFF)
            textbox.stop(self.settle, chatbot, both, cancels=answering, **_OFF)
            chatbot.clear(self.settle, chatbot, both, cancels=answering, **_OFF)
            page.unload(self.leave)
        return page

    def _settings_of_answers(self) -> list[Component]:
        """The arguments of `respond` after the first."""
        params, chat_format = self._state.params, self._state.chat_format
        system = gr.Textbox("", label="System message", lines=2, placeholder="empty: the model's own")
        with gr.Row():
            temperature = gr.Slider(
                0, 2, params.temperature, step=0.05, label="Temperature", info="0: always the most likely token"
            )
            top_p = gr.Slider(0.05, 1, params.top_p, step=0.05, label="Top-p", info="1: all tokens may be drawn")
        with gr.Row():
            longest = gr.Number(
                None, label="Longest answer", info="in tokens; empty: what the context has left", precision=0, minimum=1
            )
            seed = gr.Number(None, label="Seed", info="the same seed gives the same answer", precision=0)
        think = gr.Checkbox(
            self._state.think, label="Deep thinking", visible=chat_format.thinking_prompt is not None, elem_id="think"
        )
        tools = gr.Textbox(
            "", label="Tools", info="a JSON list, as OpenAI's protocol has it", lines=3,
            visible=chat_format.actions or self._state.own_template,
        )  # fmt: skip
        return [system, temperature, top_p, longest, seed, think, tools]

    async def ask(self, typed: Mapping[str, Any], history: list[Bubble]) -> tuple[Any, list[Bubble]]:
        """What was typed becomes a question, or the result of a call."""
        try:
            asked = question(str(typed.get("text") or ""), typed.get("files") or (), history, self._folder)
        except PuyuError as error:
            raise _toast(error) from None
        return _answering(), [*settled(history), asked]

    async def retry(self, history: list[Bubble]) -> tuple[Any, list[Bubble]]:
        """The last answer is forgotten."""
        kept = settled(history)
        while kept and kept[-1]["role"] == "assistant":
            kept.pop()
        return _answering(), kept

    async def edit(self, history: list[Bubble], edit: gr.EditData) -> tuple[Any, list[Bubble]]:
        """A question is asked in other words: what came after it is forgotten."""
        place = edit.index if isinstance(edit.index, int) else edit.index[0]
        kept = settled(history[:place])
        # What was typed was a question; its files stay with it.
        files = [part for part in history[place]["content"] if "file" in part]
        changed = question(str(edit.value), (), kept, self._folder)
        return _answering(), [*kept, changed | {"content": [*files, *changed["content"]]}]

    async def settle(self, history: list[Bubble]) -> tuple[Any, list[Bubble]]:
        """The answer is there, or was stopped: the next question may come."""
        box = gr.MultimodalTextbox(
            interactive=True, submit_btn=True, stop_btn=False, placeholder=_placeholder(history), autofocus=True
        )
        return box, settled(history)

    async def leave(self, request: gr.Request) -> None:
        """The tab was closed."""
        for answers in self._running.pop(str(request.session_hash), ()):
            answers.close()

    async def respond(
        self, history: list[Bubble], system: str, temperature: float, top_p: float, longest: int | None,
        seed: int | None, think: bool, tools: str, request: gr.Request,
    ) -> AsyncIterator[tuple[list[Bubble], str]]:  # fmt: skip
        """The conversation with the answer as it grows, and a line about its speed."""
        before = settled(history)
        if (waits := waiting_call(before)) is not None:
            yield before, _small(f"{_call_text(waits)} waits for its result, too")
            return
        base = self._state.params
        fields = {
            # What was left alone stays the model's own affair: deep thinking may want other values.
            "temperature": None if temperature == base.temperature else temperature,
            "top_p": None if top_p == base.top_p else top_p,
            "max_tokens": longest, "seed": seed,
        }  # fmt: skip
        if self._state.chat_format.thinking_prompt is not None:
            fields["enable_thinking"] = think
        session = str(request.session_hash)
        try:
            self._admit(request)
            messages = [*([{"role": "system", "content": system}] if system.strip() else []),
                        *messages_of(before, self._folder)]  # fmt: skip
            body = ChatBody.model_validate(fields | {"messages": messages, "tools": read_tools(tools)})
            async for bubbles, note in self._answer(body, session):
                yield [*before, *bubbles], note
        except Exception as error:
            raise _toast(error) from None

    def _admit(self, request: gr.Request) -> None:
        """What the gate does for requests of the protocol."""
        if self._state.draining:
            raise ApiError("the server is about to end and takes no new questions", status=503)
        if self._buckets is not None:
            self._buckets.admit(request.client.host if request.client else "")

    async def _answer(self, body: ChatBody, session: str) -> AsyncIterator[tuple[list[Bubble], str]]:
        request = await read_chat(self._state, self._settings, body)
        answers, readers = await open_chat(self._state, request)
        self._running.setdefault(session, set()).add(answers)
        shown, begun, shown_at, first, count = Shown(), time.monotonic(), 0.0, 0.0, 0
        try:
            async for _, tokens, done in answers.parts():
                now = time.monotonic()
                first = first or now
                count += len(tokens)
                shown.add(readers[0].take_events())
                if done or now - shown_at >= _EVERY:
                    shown_at = now
                    yield shown.bubbles, _speed(count, first - begun, now - first, answers.request(0).shared)
        finally:
            answers.close()
            self._running.get(session, set()).discard(answers)
            if not self._running.get(session, True):
                del self._running[session]


def _answering() -> Any:
    """The box while an answer is written."""
    return gr.MultimodalTextbox(value=None, interactive=False, submit_btn=False, stop_btn=True)


def _placeholder(history: Sequence[Bubble]) -> str:
    waits = waiting_call(history)
    return "Ask something" if waits is None else RESULT + waits


def _call_text(name: str) -> str:
    return "the code" if name == INTERPRETER else f"the call of {name}"


def _speed(tokens: int, wait: float, seconds: float, cached: int | None) -> str:
    """A line about an answer: the first token's wait is told by itself, for it is the prompt's."""
    rate = f", {(tokens - 1) / seconds:.1f} a second" if tokens > 1 and seconds > 0 else ""
    spared = f"; {cached:,} tokens of the prompt were in the cache" if cached else ""
    return _small(f"{tokens:,} tokens{rate}; the first after {wait:.2f} s{spared}")


def _small(text: str) -> str:
    return f"<small>{text}</small>"


def _toast(error: Exception) -> gr.Error:
    """An error as the page shows it: what is not meant for people stays in the log."""
    if not isinstance(error, PuyuError):
        log.error("the chat page failed", exc_info=error)
    return gr.Error(error_body(error)["error"]["message"], title="This cannot be answered", print_exception=False)
