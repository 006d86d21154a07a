"""Server-sent events."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from puyulm.errors import PuyuError
from puyulm.serve.errors import error_body

log = logging.getLogger("puyulm.serve")

DONE = "data: [DONE]\n\n"


def event(data: Mapping[str, Any], kind: str | None = None) -> str:
    """One event."""
    name = "" if kind is None else f"event: {kind}\n"
    return f"{name}data: {json.dumps(data, ensure_ascii=False, separators=(',', ':'))}\n\n"


def response_failed(body: Mapping[str, Any]) -> str:
    """An error within a stream of `/v1/responses`."""
    error = body["error"]
    told = {
        "type": "error",
        "code": error["code"] or error["type"],
        "message": error["message"],
        "param": error["param"],
    }
    return event(told, "error")


class EventStream(StreamingResponse):
    """Sends events until they end, or the client leaves.

    Args:
        events: Text of events. It is closed in either case.
        close: Called at the end, also when `events` was never begun.
        on_error: Text of the events that tell of an error within the stream.
    """

    def __init__(
        self,
        events: AsyncGenerator[str, None],
        close: Callable[[], None],
        on_error: Callable[[Mapping[str, Any]], str] = lambda body: event(body) + DONE,
    ) -> None:
        # Proxies that gather a response before they pass it on are told not to.
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(self._guarded(events, on_error), media_type="text/event-stream", headers=headers)
        self._events, self._close = events, close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._close()
            await self._events.aclose()

    async def _guarded(
        self, events: AsyncGenerator[str, None], on_error: Callable[[Mapping[str, Any]], str]
    ) -> AsyncGenerator[str, None]:
        async with aclosing(events):
            try:
                async for text in events:
                    yield text
            except Exception as error:
                # The status is sent long since: an error can be told as an event alone.
                if not isinstance(error, PuyuError):
                    log.exception("a stream failed")
                yield on_error(error_body(error))
