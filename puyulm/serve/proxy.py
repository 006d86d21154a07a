"""One port for several replicas."""

from __future__ import annotations

import asyncio
import functools
import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from puyulm.serve.errors import ApiError, error_body, error_response
from puyulm.serve.replicas import Replicas
from puyulm.serve.routing import PrefixRouter, beginning_of
from puyulm.serve.settings import ServeSettings

TO_ALL = ("/v1/load_lora_adapter", "/v1/unload_lora_adapter")
_HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade", "host", "content-length"}
_closing: set[asyncio.Future[None]] = set()  # an event loop does not hold on to its tasks
_SAMPLE = re.compile(r"^([a-zA-Z_:][\w:]*)(\{(.*)\})? (.*)$")


def create_proxy(replicas: Replicas, settings: ServeSettings) -> Starlette:
    """The application in front. Keys, limits and errors of requests are the replicas' own business; a request that met
    a dying replica before its first byte is tried at another."""
    router = PrefixRouter(len(replicas.all))

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        watching = asyncio.create_task(replicas.watch())
        yield
        await replicas.end(settings.drain_seconds)
        watching.cancel()

    async def health(request: Request) -> Response:
        states = {replica.number: "ready" if replica.ready else "starting" for replica in replicas.all}
        good = bool(replicas.ready)
        return JSONResponse({"status": "ok" if good else "starting", "replicas": states}, 200 if good else 503)

    async def metrics(request: Request) -> Response:
        texts = {}
        for number in replicas.ready:
            try:
                answer = await replicas.all[number].client.get("/metrics", headers=_headers(request), timeout=5.0)
            except httpx.HTTPError:
                continue
            if answer.status_code != 200:
                return Response(answer.content, answer.status_code, _answer_headers(answer))
            texts[number] = answer.text
        starts = {replica.number: replica.starts for replica in replicas.all}
        return PlainTextResponse(merged_metrics(texts, starts))

    async def everywhere(request: Request) -> Response:
        body, last = await request.body(), None
        for number in replicas.ready:
            answer = await replicas.all[number].client.post(request.url.path, content=body, headers=_headers(request))
            if answer.status_code >= 400 or last is None:
                last = answer
        if last is None:
            return error_response(_nobody())
        return Response(last.content, last.status_code, _answer_headers(last))

    async def forward(request: Request) -> Response:
        for number in replicas.on_restart:
            router.forget(number)
        replicas.on_restart.clear()
        body = await request.body()
        beginning = _beginning(body)
        tried: set[int] = set()
        while available := [number for number in replicas.ready if number not in tried]:
            number = router.choose(beginning, available)
            tried.add(number)
            client = replicas.all[number].client
            target = httpx.URL(path=request.url.path, query=request.url.query.encode())
            asked = client.build_request(request.method, target, content=body, headers=_headers(request))
            try:
                answer = await client.send(asked, stream=True)
            except httpx.HTTPError:
                router.done(number)
                continue
            except BaseException:
                router.done(number)
                raise
            done = functools.partial(router.done, number)
            return StreamingResponse(_relayed(answer, done), answer.status_code, _answer_headers(answer))
        return error_response(_nobody())

    routes = [
        Route("/health", health),
        Route("/metrics", metrics),
        *(Route(path, everywhere, methods=["POST"]) for path in TO_ALL),
        Route("/{path:path}", forward, methods=["GET", "POST", "PUT", "DELETE", "OPTIONS", "HEAD"]),
    ]
    return Starlette(routes=routes, lifespan=lifespan)


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
    lines += ["# HELP puyu_replica_starts How often a replica was started.", "# TYPE puyu_replica_starts counter"]
    lines += [f'puyu_replica_starts_total{{replica="{number}"}} {count}' for number, count in starts.items()]
    return "\n".join(lines) + "\n"


async def _relayed(answer: httpx.Response, done: Callable[[], None]) -> AsyncIterator[bytes]:
    try:
        async for chunk in answer.aiter_raw():
            yield chunk
    except httpx.HTTPError:
        # The answer has begun and cannot be taken back: an event stream can at least say so.
        if answer.headers.get("content-type", "").startswith("text/event-stream"):
            lost = error_body(ApiError("the replica that was answering ended: ask again", status=502))
            yield f"data: {json.dumps(lost)}\n\n".encode()
        else:
            raise
    finally:  # also when the client has left: the replica then sees its own client leave
        done()
        _closing.add(task := asyncio.ensure_future(answer.aclose()))
        task.add_done_callback(_closing.discard)


def _beginning(body: bytes) -> str:
    try:
        parsed = json.loads(body)
    except ValueError:
        return ""
    return beginning_of(parsed) if isinstance(parsed, dict) else ""


def _headers(request: Request) -> dict[str, str]:
    headers = {name: value for name, value in request.headers.items() if name not in _HOP_BY_HOP}
    if request.client is not None:  # whom replicas limit the rate of, where there are no keys
        headers["x-forwarded-for"] = request.client.host
    return headers


def _answer_headers(answer: httpx.Response) -> dict[str, str]:
    return {name: value for name, value in answer.headers.items() if name not in _HOP_BY_HOP}


def _nobody() -> ApiError:
    return ApiError("no replica is ready: try again in a moment", status=503, retry_after=2)
