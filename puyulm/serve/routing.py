"""Which replica a request goes to: the one whose prefix cache knows most of its beginning, unless that one is busier
than the others by too much.

The router sees texts, not tokens: beginnings are compared in pieces of `PIECE` characters, hashed one upon the other.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

PIECE = 256  # characters
REMEMBERED = 100_000  # pieces
SLACK = 4  # requests that a replica may have more than the idlest, for the sake of its cache
MAX_PIECES = 4096


class PrefixRouter:
    """Remembers who has seen what.

    Args:
        replicas: How many there are.
    """

    def __init__(self, replicas: int) -> None:
        self.active = [0] * replicas
        self._given = [0] * replicas  # requests ever
        self._seen: OrderedDict[bytes, int] = OrderedDict()  # piece -> who saw it last

    def choose(self, beginning: str, available: Sequence[int]) -> int:
        """Takes a request's place at a replica; `done` gives it back.

        Args:
            beginning: The request's text, from its start.
            available: Replicas that work; at least one.
        """
        idlest = min(available, key=lambda replica: (self.active[replica], self._given[replica]))
        pieces = list(_pieces(beginning))
        chosen = idlest
        for piece in reversed(pieces):
            known = self._seen.get(piece)
            if known is not None and known in available:
                if self.active[known] <= self.active[idlest] + SLACK:
                    chosen = known
                break
        for piece in pieces:
            self._seen.pop(piece, None)
            self._seen[piece] = chosen
        while len(self._seen) > REMEMBERED:
            self._seen.popitem(last=False)
        self.active[chosen] += 1
        self._given[chosen] += 1
        return chosen

    def done(self, replica: int) -> None:
        self.active[replica] -= 1

    def forget(self, replica: int) -> None:
        """Its cache is gone."""
        for piece in [piece for piece, known in self._seen.items() if known == replica]:
            del self._seen[piece]


def beginning_of(body: Mapping[str, Any]) -> str:
    """The text of a request that its prompt begins with, as far as caches are concerned: model, tools, messages or
    prompt."""
    parts = [str(body.get("model", "")), _text(body.get("tools"))]
    messages = body.get("messages")
    if isinstance(messages, list):
        for message in messages:
            if isinstance(message, dict):
                parts.append(
                    f"{message.get('role')}\n{_text(message.get('content'))}{_text(message.get('tool_calls'))}"
                )
    else:
        parts += [_text(body.get("instructions")), _text(body.get("prompt") or body.get("input"))]
    return "\0".join(parts)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else repr(value)


def _pieces(text: str) -> Iterator[bytes]:
    """A hash for each whole piece and all before it. What is shorter is as well read anew."""
    digest = b""
    for number in range(min(len(text) // PIECE, MAX_PIECES)):
        piece = text[number * PIECE : (number + 1) * PIECE].encode("utf-8", "surrogatepass")
        digest = hashlib.blake2b(piece, key=digest, digest_size=16).digest()
        yield digest
