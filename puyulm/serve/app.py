"""The endpoints, put together."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from puyulm import __version__
from puyulm.serve import adapters, scoring, tokens
from puyulm.serve.chat import chat
from puyulm.serve.completions import completions
from puyulm.serve.errors import add_handlers
from puyulm.serve.limits import Gate, add_cors
from puyulm.serve.page import add_root
from puyulm.serve.protocol import (
    ChatBody,
    CompletionBody,
    DetokenizeBody,
    EmbeddingBody,
    LoadAdapterBody,
    PoolingBody,
    RerankBody,
    ResponsesBody,
    ScoreBody,
    TokenizeBody,
    UnloadAdapterBody,
)
from puyulm.serve.responses import responses
from puyulm.serve.settings import ServeSettings
from puyulm.serve.state import ServerState

_ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"description": "The request cannot be served; the message says why."},
    401: {"description": "The API key is missing or wrong."},
    404: {"description": "There is no such model."},
    413: {"description": "The request is too large."},
    429: {"description": "Too many requests: see Retry-After."},
    500: {"description": "The server failed at this request."},
    503: {"description": "The server is ending: see Retry-After."},
}


def create_app(state: ServerState, settings: ServeSettings, *, page: bool = False) -> FastAPI:
    """The server as an ASGI application. More may be mounted in it; its engine is closed when it ends.

    Args:
        page: The chat page stands at `/`, where Gradio is installed.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        state.engine.close()

    app = FastAPI(title="PuyuLM", version=__version__, lifespan=lifespan, responses=_ERRORS)
    app.state.server = state
    add_handlers(app)
    _add_answers(app, state, settings)
    _add_readers(app, state)
    _add_adapters(app, state)
    _add_facts(app, state, settings)
    state.metrics.watch(state.engine.engine)
    has_page = add_root(app, state, settings, page=page)
    app.add_middleware(Gate, settings=settings, is_draining=lambda: state.draining, has_page=has_page)
    app.add_middleware(_Counter, state=state)
    add_cors(app, settings)
    return app


def _add_answers(app: FastAPI, state: ServerState, settings: ServeSettings) -> None:
    @app.post("/v1/chat/completions")
    async def chat_completions(body: ChatBody, http: Request) -> Response:
        """The next message of a conversation."""
        return await chat(state, settings, body, http)

    @app.post("/v1/completions")
    async def text_completions(body: CompletionBody, http: Request) -> Response:
        """How a text goes on."""
        return await completions(state, settings, body, http)

    @app.post("/v1/responses")
    async def create_response(body: ResponsesBody, http: Request) -> Response:
        """The next message of a conversation, in the form of OpenAI's newer endpoint. Nothing is stored."""
        return await responses(state, settings, body, http)


def _add_readers(app: FastAPI, state: ServerState) -> None:
    @app.post("/v1/embeddings")
    async def embeddings(body: EmbeddingBody, http: Request) -> Response:
        """Vectors of texts."""
        return await scoring.embeddings(state, body, http)

    @app.post("/pooling")
    async def pooling(body: PoolingBody, http: Request) -> Response:
        """Rewards of conversations, or vectors of texts."""
        return await scoring.pooling(state, body, http)

    @app.post("/v1/score")
    async def score(body: ScoreBody, http: Request) -> dict[str, Any]:
        """Rewards of conversations."""
        return await scoring.score(state, body, http)

    @app.post("/v1/rerank")
    async def rerank(body: RerankBody, http: Request) -> dict[str, Any]:
        """Answers to a question, the best first."""
        return await scoring.rerank(state, body, http)

    @app.post("/tokenize")
    async def tokenize(body: TokenizeBody) -> Response:
        """Ids of a text or of a conversation."""
        return await tokens.tokenize(state, body)

    @app.post("/detokenize")
    async def detokenize(body: DetokenizeBody) -> dict[str, Any]:
        """The text of ids."""
        return await tokens.detokenize(state, body)


def _add_adapters(app: FastAPI, state: ServerState) -> None:
    @app.post("/v1/load_lora_adapter")
    async def load_lora_adapter(body: LoadAdapterBody) -> PlainTextResponse:
        """Loads a LoRA adapter from a folder of the server."""
        return PlainTextResponse(await adapters.load_adapter(state, body.lora_name, body.lora_path))

    @app.post("/v1/unload_lora_adapter")
    async def unload_lora_adapter(body: UnloadAdapterBody) -> PlainTextResponse:
        """Forgets a LoRA adapter."""
        return PlainTextResponse(await adapters.unload_adapter(state, body.lora_name))


def _add_facts(app: FastAPI, state: ServerState, settings: ServeSettings) -> None:
    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        """What may be asked for as `model`."""
        return {"object": "list", "data": [_model(state, name) for name in (*state.names, *state.adapters)]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        """One model."""
        state.adapter_for(name)
        return _model(state, name)

    @app.get("/health")
    async def health() -> Response:
        """200 while the server works; 503 when it is ending, or its engine has stopped."""
        stalled = state.stalled_for()
        if not state.engine.alive:
            return JSONResponse({"status": "dead"}, 503)
        if state.draining:
            return JSONResponse({"status": "draining", "active": len(state.active)}, 503)
        if stalled > settings.stall_seconds:
            return JSONResponse({"status": "stalled", "seconds": round(stalled, 1)}, 503)
        return JSONResponse({"status": "ok"})

    @app.get("/version")
    async def version() -> dict[str, str]:
        """Of PuyuLM."""
        return {"version": __version__}

    @app.get("/metrics")
    async def metrics() -> Response:
        """For Prometheus."""
        return Response(state.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _model(state: ServerState, name: str) -> dict[str, Any]:
    is_adapter = name in state.adapters
    return {
        "id": name,
        "object": "model",
        "created": state.created,
        "owned_by": "puyulm",
        "root": state.adapters.get(name, state.name),
        "parent": state.name if is_adapter else None,
        "max_model_len": state.max_length,
    }


class _Counter:
    """Counts responses of the endpoints by status."""

    def __init__(self, app: ASGIApp, state: ServerState) -> None:
        self.app, self._state = app, state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def counting(message: Message) -> None:
            if message["type"] == "http.response.start":
                # The path as it was written would make a new counter for everything that a client thinks of.
                path = getattr(scope.get("route"), "path", "other")
                self._state.metrics.responded(path, message["status"])
            await send(message)

        await self.app(scope, receive, counting if scope["type"] == "http" else send)
