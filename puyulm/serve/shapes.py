"""Pieces that several answers of the protocol have in common."""

from __future__ import annotations

import codecs
import time
import uuid
from collections.abc import Iterable, Sequence
from typing import Any

from puyulm.engine.request import Request, TopLogprobs
from puyulm.serve.state import ServerState
from puyulm.text.tokenizer import Tokenizer

_NEVER = -9999.0  # the protocol's word for a probability of 0, whose logarithm JSON cannot write


def new_id(prefix: str) -> str:
    return prefix + uuid.uuid4().hex


def head(state: ServerState, kind: str, prefix: str, adapter: str | None) -> dict[str, Any]:
    """What answers begin with."""
    return {"id": new_id(prefix), "object": kind, "created": int(time.time()), "model": adapter or state.name}


def usage(requests: Sequence[Request], prompts: Iterable[int], thoughts: int = 0) -> dict[str, Any]:
    """Tokens that were read and written.

    Args:
        prompts: The numbers of those requests whose prompts count: several answers to one prompt read it once.
        thoughts: How many of the written ones were thoughts.
    """
    asked = [requests[number] for number in prompts]
    read = sum(request.prompt_length for request in asked)
    written = sum(request.answer_length for request in requests)
    return {
        "prompt_tokens": read,
        "completion_tokens": written,
        "total_tokens": read + written,
        "prompt_tokens_details": {"cached_tokens": sum(request.shared or 0 for request in asked)},
        "completion_tokens_details": {"reasoning_tokens": thoughts},
    }


def stop_reason(request: Request, asked: Sequence[int] | None) -> str | int | None:
    """Which stop text, or which of the ids that were `asked` for, ended an answer; None for the model's own end."""
    if request.answer is not None and request.answer.stopped_by is not None:
        return request.answer.stopped_by
    return request.stop_id if asked and request.stop_id in asked else None


def token_bytes(tokenizer: Tokenizer, id: int) -> bytes:
    return tokenizer.visible_bytes(id, False, False)


def token_text(tokenizer: Tokenizer, id: int) -> str:
    return token_bytes(tokenizer, id).decode("utf-8", "replace")


def shown(logprob: float) -> float:
    return max(logprob, _NEVER)


def chat_logprobs(
    tokenizer: Tokenizer, ids: Sequence[int], logprobs: Sequence[float], tops: Sequence[TopLogprobs], top: int
) -> dict[str, Any]:
    """`choices[].logprobs` of a chat answer."""
    content = []
    for number, (id, logprob) in enumerate(zip(ids, logprobs, strict=True)):
        alternatives = tops[number] if top and number < len(tops) else TopLogprobs([], [])
        pairs = list(zip(alternatives.ids, alternatives.logprobs, strict=True))[:top]
        content.append(
            {
                **_token(tokenizer, id, logprob),
                "top_logprobs": [_token(tokenizer, other, value) for other, value in pairs],
            }
        )
    return {"content": content, "refusal": None}


def _token(tokenizer: Tokenizer, id: int, logprob: float) -> dict[str, Any]:
    data = token_bytes(tokenizer, id)
    return {"token": data.decode("utf-8", "replace"), "logprob": shown(logprob), "bytes": list(data)}


class Place:
    """A place in a text that comes token by token, in characters: several tokens may make up one."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._characters = 0

    def before(self, token: bytes) -> int:
        """Whole characters before a token, which it then goes past."""
        here = self._characters
        self._characters += len(self._decoder.decode(token))
        return here


def text_logprobs(
    tokenizer: Tokenizer,
    ids: Sequence[int],
    logprobs: Sequence[float | None],
    tops: Sequence[TopLogprobs | None],
    place: Place,
) -> dict[str, Any]:
    """`choices[].logprobs` of a completion.

    Args:
        logprobs: None for a text's first token, which nothing comes before.
        place: Where the first of these tokens stands; goes on behind the last.
    """
    offsets = [place.before(token_bytes(tokenizer, id)) for id in ids]
    return {
        "tokens": [token_text(tokenizer, id) for id in ids],
        "token_logprobs": [None if value is None else shown(value) for value in logprobs],
        "top_logprobs": [None if top is None else _as_dict(tokenizer, top) for top in tops] if any(tops) else None,
        "text_offset": offsets,
    }


def _as_dict(tokenizer: Tokenizer, top: TopLogprobs) -> dict[str, float]:
    """By text, where the likelier of two tokens with the same text stays."""
    result: dict[str, float] = {}
    for id, logprob in zip(top.ids, top.logprobs, strict=True):
        result.setdefault(token_text(tokenizer, id), shown(logprob))
    return result
