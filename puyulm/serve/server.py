"""The process: a socket, uvicorn, and an end in good order."""

from __future__ import annotations

import signal
import socket
import ssl
import sys
import time
from collections.abc import Callable, Sized
from dataclasses import dataclass
from types import FrameType
from typing import Protocol

import uvicorn
from fastapi import FastAPI

from puyulm.errors import GenerationError
from puyulm.serve.settings import ServeSettings

_LAST_WORDS = 2  # seconds for what was cut short to say so


@dataclass(frozen=True, kw_only=True)
class Address:
    """Where a server listens.

    Attributes:
        port: 0: any that is free.
        certfile, keyfile: For TLS.
        uds: A unix socket's path, instead of all the others.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    certfile: str | None = None
    keyfile: str | None = None
    uds: str | None = None


class Work(Protocol):
    """What a server does, as far as its end is concerned.

    Attributes:
        draining: No new requests are taken.
        active: Requests in progress.
    """

    draining: bool

    @property
    def active(self) -> Sized: ...

    def drain(self) -> None:
        """Takes no new requests."""

    def close(self) -> None:
        """Ends what is left; those streams say that they were cut short."""


class DrainingServer(uvicorn.Server):
    """Ends in good order: after SIGTERM or Ctrl-C it takes no new requests (503), finishes those that it has, for a
    while, and ends with status 0. A second Ctrl-C ends it at once."""

    def __init__(
        self, config: uvicorn.Config, work: Work, settings: ServeSettings, on_ready: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._work, self._settings, self._on_ready = work, settings, on_ready
        self._deadline: float | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._on_ready()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._work.draining and sig == signal.SIGINT:
            self._deadline = 0.0
        self._work.drain()

    async def on_tick(self, counter: int) -> bool:
        if self._work.draining:
            now = time.monotonic()
            if self._deadline is None:
                self._deadline = now + self._settings.drain_seconds
                if self._work.active:
                    print(f"ending: {len(self._work.active)} requests are still running", file=sys.stderr)
            # Tasks are requests in any state, also those whose texts are still being read.
            if not (self._work.active or self.server_state.tasks) or now > self._deadline:
                self._work.close()
                self.should_exit = True
        return await super().on_tick(counter)


def open_socket(address: Address) -> socket.socket:
    """Takes the port.

    Raises:
        GenerationError: It is taken, or there is no such address; or the certificate cannot be used.
    """
    if address.certfile is not None:
        _check_certificate(address.certfile, address.keyfile)
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    try:
        listener = socket.create_server((address.host, address.port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise GenerationError(
            f"cannot listen at {address.host}:{address.port} ({reason}): choose another --host or --port"
        ) from None
    # Connections inherit it. asyncio sees to it only for sockets that it has made itself, and without it a response's
    # body, and every token of a stream, waits up to 40 ms for the client to confirm what came before.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def url_of(address: Address, listener: socket.socket) -> str:
    """What to give to clients."""
    host = f"[{address.host}]" if ":" in address.host else address.host
    return f"http{'s' if address.certfile else ''}://{host}:{listener.getsockname()[1]}"


def serve(
    app: FastAPI,
    work: Work,
    settings: ServeSettings,
    address: Address,
    listener: socket.socket | None,
    on_ready: Callable[[], None],
) -> None:
    """Serves until a signal ends it.

    Args:
        listener: Of `open_socket`; None for a unix socket.
    """
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, timeout_graceful_shutdown=_LAST_WORDS, server_header=False,
        ssl_certfile=address.certfile, ssl_keyfile=address.keyfile, uds=address.uds, lifespan="on",
    )  # fmt: skip
    DrainingServer(config, work, settings, on_ready).run(sockets=None if listener is None else [listener])


def _check_certificate(certfile: str, keyfile: str | None) -> None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certfile, keyfile)
    except OSError as error:  # ssl.SSLError is one
        raise GenerationError(f"--ssl-certfile {certfile}: cannot be used ({error.strerror or error})") from None
