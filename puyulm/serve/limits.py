"""Who may ask, how often, and how much at once: plain ASGI, in front of everything."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
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
MAX_BODIES = 16  # of the largest size, that all requests in progress may have sent together
# Of the chat page, never of the protocol.
_PAGE = re.compile(
    r"/(gradio_api/.*|assets/.*|static/.*|svelte/.*|config/?|theme\.css|login/?|logout|favicon\.ico|manifest\.json"
    r"|pwa_icon(/.*)?|robots\.txt)?"
)


def is_page_path(path: str) -> bool:
    """Whether a path is one of the chat page's."""
    return _PAGE.fullmatch(path) is not None


def is_local(host: str) -> bool:
    """Whether a host, with or without a port, can be this machine alone, whatever name servers say."""
    name = host[1:].partition("]")[0] if host.startswith("[") else host if host.count(":") > 1 else host.split(":")[0]
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name.lower().rstrip(".") == "localhost"


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
        self._bodies = Bodies(settings)
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
            self._check_host(scope)
            if self._has_page and is_page_path(scope["path"]):
                self._admit_page(scope)
            elif scope["path"] not in OPEN_PATHS:
                self._admit(scope)
        except ApiError as error:
            await error_response(error)(scope, receive, marked)
            return
        body = self._bodies.of(receive)
        try:
            await self.app(scope, body.receive, marked)
        finally:
            body.free()

    def _check_host(self, scope: Scope) -> None:
        """Refuses web pages whose name was given this machine's address to get past the browser's own rules."""
        host = Headers(scope=scope).get("host", "")
        if self._settings.local and host and not is_local(host):
            raise ApiError(
                f"this server answers as localhost alone, not as {host[:100]!r}: to let others in start it with "
                "--api-key, or with another --host", status=403,
            )  # fmt: skip

    def _admit(self, scope: Scope) -> None:
        client = self._client(scope)
        if scope["method"] not in ("POST", "PUT", "PATCH"):
            return
        if self._is_draining():
            raise ApiError("the server is about to end and takes no new requests", status=503, retry_after=5)
        # A web page may send anything else anywhere without asking first.
        if not _is_json(Headers(scope=scope).get("content-type", "")):
            raise ApiError("the body must be JSON, sent with 'Content-Type: application/json'", status=415)
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


def _is_json(content_type: str) -> bool:
    kind = content_type.partition(";")[0].strip().lower()
    return kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))


class Bodies:
    """What requests in progress have sent; of all together there is a limit, too."""

    def __init__(self, settings: ServeSettings) -> None:
        self.settings = settings
        self.held = 0  # bytes

    def of(self, receive: Receive) -> Body:
        return Body(self, receive)


class Body:
    """One request's body. Whoever makes it must `free` it."""

    def __init__(self, bodies: Bodies, receive: Receive) -> None:
        self._bodies, self._receive = bodies, receive
        self._read = 0
        self._deadline: float | None = None
        self._whole = False

    async def receive(self) -> Message:
        """The next message.

        Raises:
            HTTPException: The body is too large, or too slow; or all together are too large. FastAPI hands on
                exceptions of this kind alone while it reads a body.
        """
        if self._whole:
            return await self._receive()
        loop, settings = asyncio.get_running_loop(), self._bodies.settings
        self._deadline = self._deadline or loop.time() + settings.body_seconds
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            detail = f"the body did not arrive within {settings.body_seconds:g} seconds"
            raise HTTPException(408, detail, {"Connection": "close"}) from None
        if message["type"] == "http.request":
            self._count(len(message.get("body", b"")))
            self._whole = not message.get("more_body")
        return message

    def free(self) -> None:
        self._bodies.held -= self._read
        self._read = 0

    def _count(self, length: int) -> None:
        most = self._bodies.settings.max_body
        self._read += length
        self._bodies.held += length
        if self._read > most:
            raise HTTPException(413, f"the request has more than {most:,} bytes: send less at once")
        if self._bodies.held > MAX_BODIES * most:
            raise HTTPException(429, "requests in progress are too large together: try again", {"Retry-After": "1"})


def _with_header(send: Send, name: bytes, value: bytes) -> Send:
    async def with_header(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", ()), (name, value)]}
        await send(message)

    return with_header
