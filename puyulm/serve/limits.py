"""Who may ask, how often, and how much at once: plain ASGI, in front of everything."""

from __future__ import annotations

import hmac
import re
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from puyulm.serve.errors import ApiError, error_response
from puyulm.serve.settings import RateLimit, ServeSettings

OPEN_PATHS = frozenset({"/", "/health", "/version"})  # of people who look, and of load balancers: they have no key
MAX_BUCKETS = 10_000
# Of the chat page, never of the protocol.
_PAGE = re.compile(
    r"/(gradio_api/.*|assets/.*|static/.*|svelte/.*|config/?|theme\.css|login/?|logout|favicon\.ico|manifest\.json"
    r"|pwa_icon(/.*)?|robots\.txt)?"
)


def is_page_path(path: str) -> bool:
    """Whether a path is one of the chat page's."""
    return _PAGE.fullmatch(path) is not None


class TokenBuckets:
    """One bucket for each client; taking from an empty one tells how long to wait.

    Args:
        clock: Seconds.
    """

    def __init__(self, limit: RateLimit, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit, self._clock = limit, clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # client -> tokens, when

    def take(self, client: str) -> float:
        """Seconds until the client may ask again; 0: it may ask now, and has."""
        now, rate = self._clock(), self._limit.count / self._limit.seconds
        tokens, then = self._buckets.pop(client, (float(self._limit.count), now))
        tokens = min(self._limit.count, tokens + (now - then) * rate)
        wait = 0.0 if tokens >= 1 else (1 - tokens) / rate
        self._buckets[client] = (tokens if wait else tokens - 1, now)
        if len(self._buckets) > MAX_BUCKETS:
            self._buckets.popitem(last=False)
        return wait

    def admit(self, client: str) -> None:
        """Takes from a client's bucket.

        Raises:
            ApiError: It is empty (429).
        """
        if wait := self.take(client):
            raise ApiError(
                f"more than {self._limit.count} requests in {self._limit.seconds:g} seconds: wait {wait:.1f} seconds",
                status=429, code="rate_limit_exceeded", retry_after=wait,
            )  # fmt: skip


def add_cors(app: Starlette, settings: ServeSettings) -> None:
    """Lets web pages of the given origins ask; to be called after the other middleware, so that it stands in front:
    a browser asks first whether it may, without the key."""
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=list(settings.cors_origins), allow_methods=["GET", "POST"],
            allow_headers=["*"], expose_headers=["x-request-id", "retry-after"],
        )  # fmt: skip


class Gate:
    """Lets requests in, or answers them itself.

    Args:
        has_page: The chat page is there, which asks for a key itself.
    """

    def __init__(
        self, app: ASGIApp, settings: ServeSettings, is_draining: Callable[[], bool], has_page: bool = False
    ) -> None:
        self.app = app
        self._has_page = has_page
        self._settings = settings
        self._is_draining = is_draining
        self._keys = [key.encode() for key in settings.api_keys]
        self._buckets = None if settings.rate_limit is None else TokenBuckets(settings.rate_limit)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = Headers(scope=scope).get("x-request-id", "")[:100]
        if not request_id.isascii() or not request_id.isprintable() or not request_id:
            request_id = uuid.uuid4().hex
        marked = _with_header(send, b"x-request-id", request_id.encode())
        try:
            if self._has_page and is_page_path(scope["path"]):
                self._admit_page(scope)
            elif scope["path"] not in OPEN_PATHS:
                self._admit(scope)
        except ApiError as error:
            await error_response(error)(scope, receive, marked)
            return
        await self.app(scope, _bounded(receive, self._settings.max_body), marked)

    def _admit(self, scope: Scope) -> None:
        client = self._client(scope)
        if scope["method"] not in ("POST", "PUT", "PATCH"):
            return
        if self._is_draining():
            raise ApiError("the server is about to end and takes no new requests", status=503, retry_after=5)
        if self._buckets is not None:
            self._buckets.admit(client)

    def _admit_page(self, scope: Scope) -> None:
        """The page counts its questions itself; here, guesses at keys are."""
        if self._buckets is not None and scope["method"] == "POST" and scope["path"].startswith("/login"):
            self._buckets.admit(_address(scope))

    def _client(self, scope: Scope) -> str:
        """Whose request it is: the key, or the address where there are no keys."""
        if not self._keys:
            return _address(scope)
        kind, _, key = Headers(scope=scope).get("authorization", "").partition(" ")
        key = key.strip()  # else blanks would make another client of the same key
        given = key.encode("latin-1", "replace")
        # All are compared, so that the time tells nothing.
        right = sum(hmac.compare_digest(given, known) for known in self._keys)
        if kind.lower() == "bearer" and right:
            return key
        raise ApiError(
            "this server wants an API key: send it as 'Authorization: Bearer KEY'"
            if not key
            else "the API key is not one of this server's",
            status=401, code="invalid_api_key",
        )  # fmt: skip


def _address(scope: Scope) -> str:
    return str((scope.get("client") or ("",))[0])


def _bounded(receive: Receive, most: int) -> Receive:
    """`receive`, which refuses to read on after so many bytes."""
    read = 0

    async def bounded() -> Message:
        nonlocal read
        message = await receive()
        if message["type"] == "http.request":
            read += len(message.get("body", b""))
            if read > most:
                # FastAPI hands on exceptions of this kind alone while it reads a body.
                raise HTTPException(413, f"the request has more than {most:,} bytes: send less at once")
        return message

    return bounded


def _with_header(send: Send, name: bytes, value: bytes) -> Send:
    async def with_header(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), (name, value)]}
        await send(message)

    return with_header
