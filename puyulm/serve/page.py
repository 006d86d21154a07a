"""What stands at `/`: the chat page where Gradio is installed, else a few lines about the server."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import importlib
import importlib.util
import os
import tempfile
from collections.abc import AsyncIterator
from html import escape
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.responses import HTMLResponse
from starlette.routing import Match, Mount
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from puyulm.serve.limits import is_page_path
from puyulm.serve.settings import ServeSettings
from puyulm.serve.state import ServerState

MAX_FILE = 1 << 20  # bytes of a file that is attached to a question
INSTALL = "There is a chat page here once Gradio is installed: <code>pip install 'puyulm[ui]'</code>"
_STREAMS = ("/gradio_api/heartbeat/", "/gradio_api/queue/data")
_LOOK = 0.25  # seconds between two looks whether the server is ending

_PLAIN = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>body {{ font: 1rem/1.5 system-ui, sans-serif; max-width: 40rem; margin: 3rem auto; padding: 0 1rem }}</style>
<h1>{title}</h1>
<p>This server speaks the OpenAI protocol at <code>/v1</code>: see
<a href="/health">health</a>, <a href="/metrics">metrics</a>{docs}.
<p>{note}.
</html>
"""


def has_gradio() -> bool:
    """Whether the page can be built, without importing what takes seconds."""
    return importlib.util.find_spec("gradio") is not None


def add_root(app: FastAPI, state: ServerState, settings: ServeSettings, *, page: bool) -> bool:
    """Puts the chat page at `/`, or a plain page that says why there is none.

    Args:
        page: A chat page is wanted.

    Returns:
        Whether there is one.
    """
    if state.config.head != "lm":
        add_plain_page(app, "This is a reward model: it scores conversations and writes none")
    elif not page:
        add_plain_page(app, "Its chat page is switched off")
    elif not has_gradio():
        add_plain_page(app, INSTALL)
    else:
        _mount_chat(app, state, settings)
        return True
    return False


def add_plain_page(app: FastAPI, note: str) -> None:
    """A few lines about the server at `/`.

    Args:
        note: HTML of one sentence, without its full stop.
    """
    docs = "" if app.openapi_url is None else ', <a href="/docs">all endpoints</a>'
    text = _PLAIN.format(title=escape(app.title), docs=docs, note=note)

    @app.get("/", include_in_schema=False)
    async def root() -> HTMLResponse:
        return HTMLResponse(text)


def _mount_chat(app: FastAPI, state: ServerState, settings: ServeSettings) -> None:
    page = _ChatPage(state, settings)
    inner = app.router.lifespan_context

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[Any]:
        async with inner(app) as held:
            try:
                yield held
            finally:
                await page.close()

    app.router.lifespan_context = lifespan
    app.router.routes.append(_PageMount("", page))


class _PageMount(Mount):
    """Takes the page's own paths alone: what else is not there is answered as the protocol has it."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        if scope["type"] != "http" or not is_page_path(scope["path"]):
            return Match.NONE, {}
        return super().matches(scope)


class _ChatPage:
    """The page, built when somebody first looks at it: importing Gradio takes seconds and some 100 MB, and most servers
    are asked by programs alone."""

    def __init__(self, state: ServerState, settings: ServeSettings) -> None:
        self._state, self._settings = state, settings
        self._built: asyncio.Task[ASGIApp] | None = None
        self._life: asyncio.Task[None] | None = None
        self._ending = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._built is None or (self._built.done() and self._built.exception()):
            self._built = asyncio.create_task(self._build())
        page = await asyncio.shield(self._built)  # others wait for it, too
        await page(scope, receive, send)

    async def close(self) -> None:
        """Ends it and removes attached files."""
        self._ending.set()
        if self._built is not None:
            await asyncio.wait({self._built})
        if self._life is not None:
            await self._life

    async def _build(self) -> ASGIApp:
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        await asyncio.to_thread(importlib.import_module, "gradio")
        ready: asyncio.Future[ASGIApp] = asyncio.get_running_loop().create_future()
        self._life = asyncio.create_task(self._live(ready))
        return await ready

    async def _live(self, ready: asyncio.Future[ASGIApp]) -> None:
        """Begins and ends the page in one task, as some contexts want it."""
        try:
            with tempfile.TemporaryDirectory(prefix="puyulm-page-") as files:
                page = _gradio_app(self._state, self._settings, files)
                async with page.router.lifespan_context(page):
                    ready.set_result(_EndingStreams(page, self._state))
                    await self._ending.wait()
        except Exception as error:
            if ready.done():
                raise
            ready.set_exception(error)


def _gradio_app(state: ServerState, settings: ServeSettings, files: str) -> FastAPI:
    """The page as an application of its own.

    Args:
        files: Folder for what is attached.
    """
    os.environ["GRADIO_TEMP_DIR"] = files
    import gradio as gr

    from puyulm.serve.chat_page import ChatPage

    keys = [key.encode() for key in settings.api_keys]

    def is_key(user: str, password: str) -> bool:
        # All are compared, so that the time tells nothing.
        return bool(sum(hmac.compare_digest(password.encode(), key) for key in keys))

    # Fonts of the reader's system: others would be fetched from elsewhere.
    fonts, mono = ["system-ui", "sans-serif"], ["ui-monospace", "Consolas", "monospace"]
    return gr.mount_gradio_app(
        FastAPI(openapi_url=None), ChatPage(state, settings, Path(files)).build(), path="/", footer_links=[],
        auth=is_key if keys else None, auth_message="Any user name; the password is an API key of this server.",
        max_file_size=MAX_FILE, theme=gr.themes.Default(font=fonts, font_mono=mono), css=_CSS, ssr_mode=False,
        show_error=True, run_history=False, enable_monitoring=False, mcp_server=False, pwa=False,
    )  # fmt: skip


class _EndingStreams:
    """Ends the connections over which open pages wait for news, once the server is ending and all answers are there:
    they would hold it up as long as a page is open."""

    def __init__(self, app: ASGIApp, state: ServerState) -> None:
        self._app, self._state = app, state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not scope["path"].startswith(_STREAMS):
            await self._app(scope, receive, send)
            return
        begun = False

        async def noting(message: Message) -> None:
            nonlocal begun
            begun = message["type"] == "http.response.start" or bool(message.get("more_body"))
            await send(message)

        work = asyncio.ensure_future(self._app(scope, receive, noting))
        try:
            idle = False
            while not work.done():
                await asyncio.wait({work}, timeout=_LOOK)
                was_idle, idle = idle, self._state.draining and not self._state.active
                if idle and was_idle and not work.done():  # twice: an answer's last words are on their way
                    work.cancel()
                    await asyncio.wait({work})
                    if begun:
                        await send({"type": "http.response.body", "body": b"", "more_body": False})
                    return
            work.result()
        finally:
            work.cancel()


_CSS = """
.gradio-container { width: 100% !important; max-width: 56rem !important; margin: 0 auto !important; }
#model h3 { margin: 0; }
#chat .edit-textarea { min-width: min(34rem, 70vw) !important; min-height: 6rem; }
#speed { min-height: 1.5rem; opacity: 0.7; }
"""
