"""The process: a socket, uvicorn, and an end in good order."""

from __future__ import annotations

import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType

import uvicorn
from fastapi import FastAPI

from puyulm.errors import GenerationError
from puyulm.serve.settings import ServeSettings
from puyulm.serve.state import ServerState

_LAST_WORDS = 2  # seconds for what was cut short to say so


@dataclass(frozen=True, kw_only=True)
class Address:
    """Where a server listens.

    Attributes:
        port: 0: any that is free.
        certfile, keyfile: For TLS.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    certfile: str | None = None
    keyfile: str | None = None


class DrainingServer(uvicorn.Server):
    """Ends in good order: after SIGTERM or Ctrl-C it takes no new requests (503), finishes those that it has, for a
    while, and ends with status 0. A second Ctrl-C ends it at once."""

    def __init__(
        self, config: uvicorn.Config, state: ServerState, settings: ServeSettings, on_ready: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._state, self._settings, self._on_ready = state, settings, on_ready
        self._deadline: float | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._on_ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._state.draining and sig == signal.SIGINT:
            self._deadline = 0.0
        self._state.draining = True

    async def on_tick(self, counter: int) -> bool:
        if self._state.draining:
            now = time.monotonic()
            if self._deadline is None:
                self._deadline = now + self._settings.drain_seconds
                if self._state.active:
                    print(f"ending: {len(self._state.active)} requests are still running", file=sys.stderr)
            if not self._state.active or now > self._deadline:
                self._state.engine.close()  # ends what is left; those streams say that they were cut short
                self.should_exit = True
        return await super().on_tick(counter)


def open_socket(address: Address) -> socket.socket:
    """Takes the port.

    Raises:
        GenerationError: It is taken, or there is no such address.
    """
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    try:
        return socket.create_server((address.host, address.port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise GenerationError(
            f"cannot listen at {address.host}:{address.port} ({reason}): choose another --host or --port"
        ) from None


def url_of(address: Address, listener: socket.socket) -> str:
    """What to give to clients."""
    host = f"[{address.host}]" if ":" in address.host else address.host
    return f"http{'s' if address.certfile else ''}://{host}:{listener.getsockname()[1]}"


def serve(
    app: FastAPI,
    state: ServerState,
    settings: ServeSettings,
    address: Address,
    listener: socket.socket,
    on_ready: Callable[[], None],
) -> None:
    """Serves until a signal ends it.

    Raises:
        GenerationError: The certificate cannot be used.
    """
    try:
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, timeout_graceful_shutdown=_LAST_WORDS, server_header=False,
            ssl_certfile=address.certfile, ssl_keyfile=address.keyfile, lifespan="on",
        )  # fmt: skip
        config.load()
    except OSError as error:  # ssl.SSLError is one
        raise GenerationError(
            f"--ssl-certfile {address.certfile}: cannot be used ({error.strerror or error})"
        ) from None
    DrainingServer(config, state, settings, on_ready).run(sockets=[listener])
