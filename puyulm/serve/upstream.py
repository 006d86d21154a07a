"""HTTP to a server on this machine, through a unix socket: how the router asks its replicas.

One connection for each request. Making one costs next to nothing, and a kept one may end just when it is used again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import h11

_BUFFER = 1 << 16  # bytes

Headers = Sequence[tuple[bytes, bytes]]


class UpstreamLost(Exception):
    """The server is not there, or ended before its answer did."""


class Answer:
    """A response whose body is still to come. Must be closed, which also ends the work on it.

    Attributes:
        headers: As they came, names in lower case.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, http: h11.Connection) -> None:
        self.status, self.headers = 0, list[tuple[bytes, bytes]]()
        self._reader, self._writer, self._http = reader, writer, http

    async def begin(self) -> None:
        """Reads status and headers.

        Raises:
            UpstreamLost: There are none.
        """
        while isinstance(event := await self._event(), h11.InformationalResponse):
            pass
        if not isinstance(event, h11.Response):
            raise UpstreamLost("the connection ended")
        self.status, self.headers = event.status_code, list(event.headers)

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body, as it comes.

        Raises:
            UpstreamLost: It is cut short.
        """
        while isinstance(event := await self._event(), h11.Data):
            yield bytes(event.data)

    async def whole(self) -> bytes:
        """The body, all of it. Errors as in `chunks`."""
        return b"".join([chunk async for chunk in self.chunks()])

    def close(self) -> None:
        self._writer.close()

    async def _event(self) -> h11.Event | type[h11.PAUSED]:
        try:
            while (event := self._http.next_event()) is h11.NEED_DATA:
                self._http.receive_data(await self._reader.read(_BUFFER))
        except (OSError, h11.RemoteProtocolError) as error:
            raise UpstreamLost(str(error)) from None
        return event  # type: ignore[return-value]  # not NEED_DATA


async def ask(socket: Path, method: str, target: bytes, headers: Headers = (), body: bytes = b"") -> Answer:
    """Sends a request.

    Args:
        target: Path and query.
        headers: Without those of a connection and of the body's length.

    Returns:
        The answer, once its headers are there.

    Raises:
        UpstreamLost: Nobody answers.
        h11.LocalProtocolError: Such headers cannot be sent.
    """
    http = h11.Connection(h11.CLIENT)
    own = [(b"connection", b"close"), (b"content-length", b"%d" % len(body))]
    if not any(name == b"host" for name, _ in headers):
        own.append((b"host", b"replica"))
    request = h11.Request(method=method, target=target, headers=[*headers, *own])
    data = b"".join(http.send(event) or b"" for event in (request, h11.Data(data=body), h11.EndOfMessage()))
    try:
        reader, writer = await asyncio.open_unix_connection(str(socket))
    except OSError as error:
        raise UpstreamLost(str(error)) from None
    answer = Answer(reader, writer, http)
    try:
        writer.write(data)
        await answer.begin()
    except BaseException:
        answer.close()
        raise
    return answer
