"""A real server on a free port, in a thread of the test's process, so that tests can look into its engine."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import openai

from puyulm.engine.async_engine import AsyncEngine
from puyulm.engine.config import EngineConfig
from puyulm.engine.engine import Engine
from puyulm.engine.load import load_chat_model
from puyulm.serve.app import create_app
from puyulm.serve.server import Address, DrainingServer, open_socket, url_of, uvicorn
from puyulm.serve.settings import ServeSettings
from puyulm.serve.state import ServerState
from tests.waiting import wait_until

DEADLINE = 30  # seconds, for whatever a test waits for


@dataclass
class Running:
    """A server and what is behind it."""

    url: str
    state: ServerState
    server: DrainingServer
    thread: threading.Thread

    @property
    def engine(self) -> Engine:
        return self.state.engine.engine

    def client(self, **options: object) -> openai.OpenAI:
        defaults = {"base_url": f"{self.url}/v1", "api_key": "none", "max_retries": 0, "timeout": DEADLINE}
        return openai.OpenAI(**(defaults | options))  # type: ignore[arg-type]

    def http(self, **options: object) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=DEADLINE, **options)  # type: ignore[arg-type]

    def wait_until_free(self) -> None:
        """Until no sequence holds a block."""
        wait_until(lambda: self.engine.scheduler.pool.held == 0 and self.engine.idle and not self.state.active)
        self.engine.scheduler.pool.check([])


@contextlib.contextmanager
def running(
    model: Path,
    settings: ServeSettings | None = None,
    config: EngineConfig | None = None,
    *,
    max_queue: int = 1024,
    chat_format: str | None = None,
    prepare: Callable[[ServerState], None] = lambda state: None,
    page: bool = False,
    **options: object,
) -> Iterator[Running]:
    """Serves a checkpoint until the block ends."""
    settings = settings or ServeSettings()
    loaded = load_chat_model(str(model), device="cpu", chat_format=chat_format)
    engine = Engine(loaded.model, loaded.tokenizer, config or EngineConfig(memory=4 << 20, max_running=16))
    state = ServerState.of(AsyncEngine(engine, max_queue), loaded, **options)  # type: ignore[arg-type]
    prepare(state)
    address, ready = Address(port=0), threading.Event()
    with open_socket(address) as listener:
        uvicorn_config = uvicorn.Config(create_app(state, settings, page=page), log_level="warning", lifespan="on")
        server = DrainingServer(uvicorn_config, state, settings, ready.set)
        thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])), daemon=True)
        thread.start()
        assert ready.wait(DEADLINE)
        try:
            yield Running(url_of(address, listener), state, server, thread)
        finally:
            server.should_exit = True
            thread.join(DEADLINE)
            state.engine.close()
