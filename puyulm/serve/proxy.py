"""One port for several replicas."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import NamedTuple

import h11
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from puyulm.serve.connection import while_connected
from puyulm.serve.errors import ApiError, ClientLeft, add_handlers, error_body
from puyulm.serve.limits import Gate, add_cors
from puyulm.serve.page import add_plain_page
from puyulm.serve.replicas import Replica, Replicas
from puyulm.serve.routing import PrefixRouter, beginning_of
from puyulm.serve.settings import ServeSettings
from puyulm.serve.streaming import DONE, event, response_failed
from puyulm.serve.upstream import Answer, UpstreamLost, ask

LOAD, UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"
_END_SECONDS = 5.0  # for a replica that has nothing left to do
TRIES = 2  # a request that two replicas died of is not given to a third

_HOP_BY_HOP = {
    b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"te", b"trailer", b"upgrade", b"expect"
}  # fmt: skip
_OWN = {*_HOP_BY_HOP, b"date", b"server", b"x-request-id"}  # of responses: those the router sends itself
_SAMPLE = re.compile(r"^([a-zA-Z_:][\w:]*)(\{(.*)\})? (.*)$")


class Begun(NamedTuple):
    """An answer of which something is there already: all of it, or the first part of a stream."""

    answer: Answer
    first: bytes
    rest: AsyncGenerator[bytes, None] | None


class Front:
    """What stands before the replicas. Belongs to the event loop.

    Attributes:
        draining: No new requests are taken.
        adapters: Path and body of the last change of each adapter, for replicas that come later.
    """

    def __init__(self, replicas: Replicas) -> None:
        self.replicas = replicas
        self.router = PrefixRouter(len(replicas.all))
        self.draining = False
        self.adapters: dict[str, tuple[str, bytes]] = {}
        self.changing = asyncio.Lock()  # of adapters

    @property
    def active(self) -> range:
        """As many items as there are requests in progress."""
        return range(sum(self.router.active))

    def drain(self) -> None:
        """Takes no new requests; the replicas finish what they have, or say in their streams that they cannot."""
        self.draining = True
        self.replicas.end()

    def close(self) -> None:
        """Ends what is left."""
        self.replicas.end()

    async def prepare(self, replica: Replica) -> None:
        """Gives a replica the adapters that the others have, and lets requests come to it."""
        async with self.changing:
            try:
                for path, body in self.adapters.values():
                    status, answer = await replica.request("POST", path, body)
                    if path == LOAD and status != 200:
                        print(f"replica {replica.number}: {answer.decode('utf-8', 'replace')}", file=sys.stderr)
            except UpstreamLost:
                return
            replica.open_up()

    async def change_adapters(self, path: str, body: bytes) -> tuple[int, bytes]:
        """Asks all replicas; where one refuses, those that had agreed to load are asked to forget it."""
        async with self.changing:
            agreed: list[Replica] = []
            refused: tuple[int, bytes] | None = None
            said: tuple[int, bytes] | None = None
            for number in self.replicas.ready:
                replica = self.replicas.all[number]
                try:
                    said = await replica.request("POST", path, body)
                except UpstreamLost:
                    continue  # it hears of the change when it comes back
                if said[0] == 200:
                    agreed.append(replica)
                else:
                    refused = said
                    break
            if said is None:
                raise _nobody()
            if refused is None:
                self.adapters[_adapter_name(body)] = path, body
            elif path == LOAD:
                undo = json.dumps({"lora_name": _adapter_name(body)}).encode()
                for replica in agreed:
                    await replica.request("POST", UNLOAD, undo)
            return refused or said


def create_proxy(front: Front, settings: ServeSettings) -> FastAPI:
    """The application in front: keys, rates and sizes are its business, the contents of requests the replicas' own. A
    request that met a dying replica before the first byte of its answer is tried at another."""
    replicas = front.replicas

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        watching = asyncio.create_task(replicas.watch(front.prepare, front.router.forget))
        yield
        watching.cancel()
        await replicas.ended(_END_SECONDS)

    app = FastAPI(title="PuyuLM", openapi_url=None, lifespan=lifespan)
    add_handlers(app)

    add_plain_page(app, "A chat page comes with a single server, without <code>--replicas</code>")

    @app.get("/health")
    async def health() -> Response:
        """200 while one replica works."""
        states = {replica.number: "ready" if replica.ready else "starting" for replica in replicas.all}
        status = "draining" if front.draining else "ok" if replicas.ready else "starting"
        return JSONResponse({"status": status, "replicas": states}, 200 if status == "ok" else 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        """Of all replicas."""
        texts = {}
        for number in replicas.ready:
            try:
                texts[number] = (await replicas.all[number].request("GET", "/metrics"))[1].decode()
            except UpstreamLost:
                continue
        starts = {replica.number: replica.starts for replica in replicas.all}
        text = merged_metrics(texts, starts)
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.post(LOAD)
    @app.post(UNLOAD)
    async def adapters(request: Request) -> Response:
        """Of all replicas."""
        status, answer = await front.change_adapters(request.url.path, await _body(request))
        return Response(answer, status, media_type="text/plain" if status == 200 else "application/json")

    @app.api_route("/{path:path}", methods=["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD"])
    async def forward(request: Request) -> Response:
        """To one replica."""
        body = await _body(request)
        beginning, tried = _beginning(body), set[int]()
        while len(tried) < TRIES and (able := [number for number in replicas.ready if number not in tried]):
            number = front.router.choose(beginning, able if _is_free(request) else able[:1])
            tried.add(number)
            response = None
            try:
                begun = await while_connected(request, _begin(replicas.all[number], request, body, front.draining))
                response = _response(begun, request.url.path, lambda number=number: front.router.done(number))  # type: ignore[misc]
                return response
            except UpstreamLost:
                continue
            except h11.LocalProtocolError as error:
                raise ApiError(f"the request's headers cannot be passed on ({error})") from None
            finally:
                if response is None:
                    front.router.done(number)
        if len(tried) == TRIES:
            raise ApiError("two replicas ended while they worked on this request", status=502)
        raise _nobody()

    app.add_middleware(Gate, settings=settings, is_draining=lambda: front.draining)
    add_cors(app, settings)
    return app


def merged_metrics(texts: dict[int, str], starts: dict[int, int]) -> str:
    """The expositions of all replicas as one, each sample with the label `replica`."""
    comments: dict[str, list[str]] = {}
    samples: dict[str, list[str]] = {}
    for number, text in texts.items():
        family = ""
        for line in text.splitlines():
            if line.startswith("# "):
                family = line.split()[2]
                known = comments.setdefault(family, [])
                if line not in known:
                    known.append(line)
            elif found := _SAMPLE.match(line):
                labels = f'replica="{number}"' + (f",{found[3]}" if found[3] else "")
                samples.setdefault(family, []).append(f"{found[1]}{{{labels}}} {found[4]}")
    lines = [line for family, known in comments.items() for line in (*known, *samples.get(family, ()))]
    lines += [
        "# HELP puyu_replica_starts_total How often a replica was started.",
        "# TYPE puyu_replica_starts_total counter",
    ]
    lines += [f'puyu_replica_starts_total{{replica="{number}"}} {count}' for number, count in starts.items()]
    return "\n".join(lines) + "\n"


async def _begin(replica: Replica, request: Request, body: bytes, draining: bool) -> Begun:
    """Asks a replica until there is something to send: nothing of the answer has left before, so that it may still be
    asked of another."""
    headers = [(name, value) for name, value in request.headers.raw if name not in _HOP_BY_HOP | {b"content-length"}]
    target = request.scope.get("raw_path") or request.url.path.encode()
    if query := request.scope["query_string"]:
        target += b"?" + query
    answer = await ask(replica.socket, request.method, target, headers, body)
    try:
        if answer.status == 503 and not draining:
            raise UpstreamLost("its engine has stopped")
        if not _is_stream(answer):
            return Begun(answer, await answer.whole(), None)
        events = _whole_events(answer)
        return Begun(answer, await anext(events, b""), events)
    except BaseException:
        answer.close()
        raise


def _response(begun: Begun, path: str, done: Callable[[], None]) -> Response:
    """For the client.

    Args:
        done: Called when the answer is sent, or the client has left.
    """
    answer, first, rest = begun
    if rest is None:
        answer.close()
        done()
        response = Response(first, answer.status)
    else:
        response = _Relayed(answer, first, rest, path, done)
    lengths = {b"content-length"} if rest is not None else set[bytes]()
    response.raw_headers = [(name, value) for name, value in answer.headers if name not in _OWN | lengths]
    return response


class _Relayed(StreamingResponse):
    """A replica's event stream. When the client leaves, so does the router, and the replica ends the work."""

    def __init__(
        self, answer: Answer, first: bytes, rest: AsyncGenerator[bytes, None], path: str, done: Callable[[], None]
    ) -> None:
        super().__init__(self._events(first, rest, path), answer.status)
        self._answer, self._done = answer, done

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._answer.close()
            self._done()

    async def _events(self, first: bytes, rest: AsyncGenerator[bytes, None], path: str) -> AsyncGenerator[bytes, None]:
        async with aclosing(rest):
            try:
                yield first
                async for chunk in rest:
                    yield chunk
            except UpstreamLost:
                lost = error_body(ApiError("the replica that was answering has ended: ask again", status=502))
                yield (response_failed(lost) if path == "/v1/responses" else event(lost) + DONE).encode()


async def _whole_events(answer: Answer) -> AsyncGenerator[bytes, None]:
    """The answer's events as they come, cut nowhere but between two: what follows can be an event of our own."""
    held = b""
    async for chunk in answer.chunks():
        whole, end, held = (held + chunk).rpartition(b"\n\n")
        if end:
            yield whole + end
    if held:
        yield held


async def _body(request: Request) -> bytes:
    """All of it.

    Raises:
        ClientLeft: It does not come.
    """
    try:
        return await request.body()
    except ClientDisconnect:
        raise ClientLeft from None


def _is_stream(answer: Answer) -> bool:
    return any(name == b"content-type" and value.startswith(b"text/event-stream") for name, value in answer.headers)


def _is_free(request: Request) -> bool:
    """Whether any replica may answer; what is not of the protocol may be part of a page's session, which one has."""
    return request.url.path.startswith(("/v1/", "/tokenize", "/detokenize", "/pooling"))


def _beginning(body: bytes) -> str:
    try:
        parsed = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    return beginning_of(parsed) if isinstance(parsed, dict) else ""


def _adapter_name(body: bytes) -> str:
    return str(json.loads(body)["lora_name"])


def _nobody() -> ApiError:
    return ApiError("no replica is ready: try again in a moment", status=503, retry_after=2)
