"""The chat page, built on Gradio.

It asks the engine directly, as the protocol's endpoints do. The conversation lives in the browser: the server keeps
nothing of it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components import Component

from puyulm.errors import PuyuError
from puyulm.serve.answers import Answers
from puyulm.serve.bubbles import (
    RESULT,
    Bubble,
    Shown,
    messages_of,
    question,
    read_tools,
    settled,
    text_of,
    text_part,
    waiting_call,
)
from puyulm.serve.chat_request import open_chat, read_chat
from puyulm.serve.errors import ApiError, error_body
from puyulm.serve.limits import TokenBuckets
from puyulm.serve.protocol import ChatBody
from puyulm.serve.settings import ServeSettings
from puyulm.serve.state import ServerState

log = logging.getLogger("puyulm.serve")

FORGET = (600, 24 * 3600)  # seconds: how often files that no question was asked with are looked at, how old they may be
_EVERY = 0.05  # seconds between two updates of the page
_LATEX: list[dict[str, str | bool]] = [
    {"left": "$$", "right": "$$", "display": True},
    {"left": "\\[", "right": "\\]", "display": True},
    {"left": "\\(", "right": "\\)", "display": False},
    {"left": "$", "right": "$", "display": False},
]
_QUIET: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}

# What an event changes: the box, the conversation, the line about its speed.
Changes = tuple[Any, Any, Any]


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
        with gr.Blocks(title=self._state.name, fill_height=True, analytics_enabled=False, delete_cache=FORGET) as page:
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
            changed = [textbox, chatbot, speed]
            answering: list[Any] = [
                event(function, [*inputs, *given], changed, concurrency_limit=None, trigger_mode="multiple", **_QUIET)
                for event, function, inputs in (
                    (textbox.submit, self.ask, [textbox, chatbot]),
                    (chatbot.retry, self.retry, [chatbot]),
                    (chatbot.edit, self.edit, [chatbot]),
                )
            ]
            for event in (textbox.stop, chatbot.clear):
                event(self.settle, chatbot, [textbox, chatbot], cancels=answering, queue=False, **_QUIET)
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
            # Not numbers of Gradio's: those turn into 0 where nothing was written.
            longest = gr.Textbox("", label="Longest answer", info="in tokens; empty: what the context has left")
            seed = gr.Textbox("", label="Seed", info="the same one gives the same answer; empty: any")
        think = gr.Checkbox(
            self._state.think, label="Deep thinking", visible=chat_format.thinking_prompt is not None, elem_id="think"
        )
        tools = gr.Textbox(
            "", label="Tools", info="a JSON list, as OpenAI's protocol has it", lines=3,
            visible=chat_format.actions or self._state.own_template,
        )  # fmt: skip
        return [system, temperature, top_p, longest, seed, think, tools]

    async def ask(
        self, typed: Mapping[str, Any], history: list[Bubble], request: gr.Request, *given: Any
    ) -> AsyncGenerator[Changes, None]:
        """What was typed becomes a question, or the result of a call, and is answered."""
        kept, text, files = settled(history), str(typed.get("text") or ""), typed.get("files") or ()
        try:
            asked = question(text, files, kept, self._folder) if text.strip() or files else None
        except Exception as error:
            _toast(error)
            asked = None
        if asked is None:
            yield gr.skip(), gr.skip(), gr.skip()  # what there is stays in the box
            return
        async with aclosing(self._respond([*kept, asked], (asked, kept), request, *given)) as changes:
            async for change in changes:
                yield change

    async def retry(self, history: list[Bubble], request: gr.Request, *given: Any) -> AsyncGenerator[Changes, None]:
        """The last answer is forgotten, and another comes."""
        before = settled(history)
        kept = list(before)
        while kept and kept[-1]["role"] == "assistant":
            kept.pop()
        async with aclosing(self._respond(kept, (None, before), request, *given)) as changes:
            async for change in changes:
                yield change

    async def edit(
        self, history: list[Bubble], edit: gr.EditData, request: gr.Request, *given: Any
    ) -> AsyncGenerator[Changes, None]:
        """A question is asked in other words: what came after it is forgotten."""
        place = edit.index if isinstance(edit.index, int) else edit.index[0]
        before = settled(history)
        if edit.value == edit.previous_value:  # Gradio tells of neighbours that were not changed, too
            yield gr.skip(), gr.skip(), gr.skip()
            return
        before[place] |= {"content": [text_part(str(edit.previous_value))]}
        kept = [*before[:place], before[place] | {"content": [text_part(str(edit.value))]}]
        async with aclosing(self._respond(kept, (None, before), request, *given)) as changes:
            async for change in changes:
                yield change

    async def settle(self, history: list[Bubble]) -> tuple[Any, list[Bubble]]:
        """The answer was stopped: the next question may come."""
        return _box(history), settled(history)

    async def leave(self, request: gr.Request) -> None:
        """The tab was closed."""
        for answers in self._running.pop(str(request.session_hash), ()):
            answers.close()

    async def _respond(
        self, history: list[Bubble], failed: tuple[Bubble | None, list[Bubble]], request: gr.Request, system: str,
        temperature: float, top_p: float, longest: str, seed: str, think: bool, tools: str,
    ) -> AsyncGenerator[Changes, None]:  # fmt: skip
        """The conversation with the answer as it grows.

        Args:
            failed: What is in the box, and what is shown, when no answer comes.
        """
        yield gr.MultimodalTextbox(value=None, interactive=False, submit_btn=False, stop_btn=True), history, ""
        bubbles: list[Bubble] = []
        waits, base = waiting_call(history), self._state.params
        try:
            if waits is None:
                self._admit(request)
                fields = {
                    # What was left alone stays the model's own affair: deep thinking may want other values.
                    "temperature": None if temperature == base.temperature else temperature,
                    "top_p": None if top_p == base.top_p else top_p,
                    "max_tokens": _whole(longest, "Longest answer"),
                    "seed": _whole(seed, "Seed"),
                    "tools": read_tools(tools),
                    "messages": [
                        *([{"role": "system", "content": system}] if system.strip() else []),
                        *messages_of(history),
                    ],
                }
                if self._state.chat_format.thinking_prompt is not None:
                    fields["enable_thinking"] = think
                body = ChatBody.model_validate(fields)
                async with aclosing(self._answer(body, str(request.session_hash))) as growing:
                    async for bubbles, note in growing:
                        yield gr.skip(), [*history, *bubbles], note
        except Exception as error:
            _toast(error)
            if not bubbles:
                asked, before = failed
                yield _box(before, None if asked is None else text_of(asked)), before, gr.skip()
                return
        shown = [*history, *settled(bubbles)]
        yield _box(shown), shown, gr.skip()

    def _admit(self, request: gr.Request) -> None:
        """What the gate does for requests of the protocol."""
        if self._state.draining:
            raise ApiError("the server is about to end and takes no new questions", status=503)
        if self._buckets is not None:
            self._buckets.admit(request.client.host if request.client else "")

    async def _answer(self, body: ChatBody, session: str) -> AsyncGenerator[tuple[list[Bubble], str], None]:
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


def _box(history: Sequence[Bubble], text: str | None = None) -> Any:
    """The box when something may be typed."""
    return gr.MultimodalTextbox(
        value=None if text is None else {"text": text, "files": []}, interactive=True, submit_btn=True, stop_btn=False,
        placeholder=_placeholder(history),
    )  # fmt: skip


def _placeholder(history: Sequence[Bubble]) -> str:
    waits = waiting_call(history)
    return "Ask something" if waits is None else RESULT + waits


def _whole(text: str, label: str) -> int | None:
    """The number in a field of the settings; None: it is empty.

    Raises:
        ApiError: It is none.
    """
    text = text.strip()
    if not (text.isascii() and text.isdigit() and len(text) < 19) and text:
        raise ApiError(f"{label}: must be a whole number, not {text[:50]!r}")
    return int(text) if text else None


def _speed(tokens: int, wait: float, seconds: float, cached: int | None) -> str:
    """A line about an answer: the first token's wait is told by itself, for it is the prompt's."""
    rate = f", {(tokens - 1) / seconds:.1f} a second" if tokens > 1 and seconds > 0 else ""
    spared = f"; {cached:,} tokens of the prompt were in the cache" if cached else ""
    return f"<small>{tokens:,} tokens{rate}; the first after {wait:.2f} s{spared}</small>"


def _toast(error: Exception) -> None:
    """Shows an error on the page; what is not meant for people stays in the log."""
    if not isinstance(error, PuyuError):
        log.error("the chat page failed", exc_info=error)
    # Raised as an error of Gradio's it would cover the whole conversation.
    gr.Warning(escape(error_body(error)["error"]["message"], quote=False))
