"""How a server treats its clients."""

from __future__ import annotations

from dataclasses import dataclass

from puyulm.errors import GenerationError

_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True)
class RateLimit:
    """A bucket of `count` requests that fills up within `seconds`."""

    count: int
    seconds: float

    @classmethod
    def parse(cls, text: str) -> RateLimit:
        """From "60/m" (also /s, /h).

        Raises:
            GenerationError: It is written in another way.
        """
        count, _, unit = text.partition("/")
        if not (count.isascii() and count.isdigit() and int(count) > 0 and unit in _SECONDS):
            raise GenerationError(
                f"a rate limit is a number of requests a second, minute or hour, as 60/m; not {text!r}"
            )
        return cls(int(count), _SECONDS[unit])


@dataclass(frozen=True, kw_only=True)
class ServeSettings:
    """How a server treats its clients.

    Attributes:
        api_keys: Who sends one of them may ask; none: everybody.
        cors_origins: Web pages that may ask from a browser; "*": all.
        rate_limit: Of each key, or of each address where there are no keys.
        max_body: Bytes of one request.
        body_seconds: What a client gets to send one.
        local: Only this machine may ask, and without a key: a web page that has given its own name this machine's
            address is refused.
        max_answers: That one request may ask for (prompts times `n`).
        stall_seconds: A server with work that makes no step for so long is not healthy.
        drain_seconds: What running requests get to finish when the server is told to end.
    """

    api_keys: tuple[str, ...] = ()
    cors_origins: tuple[str, ...] = ()
    rate_limit: RateLimit | None = None
    max_body: int = 16 << 20
    body_seconds: float = 30.0
    local: bool = False
    max_answers: int = 256
    stall_seconds: float = 120.0
    drain_seconds: float = 30.0
