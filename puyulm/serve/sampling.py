"""From a request's fields to `SamplingParams`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from puyulm.engine.context import context_length
from puyulm.engine.grammar import Grammar
from puyulm.engine.params import SamplingParams
from puyulm.serve.errors import ApiError
from puyulm.serve.protocol import ResponseFormat, SamplingBody
from puyulm.serve.state import ServerState

_PLAIN = ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "seed")


def sampling_params(
    state: ServerState,
    body: SamplingBody,
    prompt_length: int,
    *,
    max_tokens: int | None,
    prompt_field: str,
    grammar: Grammar | None = None,
    logprobs: int | None = None,
    prompt_logprobs: int | None = None,
    think: bool = False,
    thinking_budget: int | None = None,
) -> SamplingParams:
    """The checkpoint's own parameters with what a request changes.

    Raises:
        ApiError: A field is out of its range; or prompt and answer are longer than the context.
        GenerationError: Likewise.
    """
    base = state.thinking_params if think else state.params
    given: dict[str, Any] = {name: value for name in _PLAIN if (value := getattr(body, name)) is not None}
    if body.top_k is not None:
        given["top_k"] = max(body.top_k, 0)
    if body.stop is not None:
        given["stop"] = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop)
    if body.stop_token_ids:
        given["stop_ids"] = tuple(sorted({*base.stop_ids, *body.stop_token_ids}))
    if body.ignore_eos:
        given["ignore_eos"] = True
        given["stop_ids"] = tuple(body.stop_token_ids or ())
    if body.logit_bias:
        given["logit_bias"] = _bias(body.logit_bias, state.config.vocab_size)
    room = room_for_answer(state, prompt_length, max_tokens, base.max_new_tokens, prompt_field)
    shortest = min(base.min_new_tokens, room) if body.min_tokens is None else body.min_tokens
    if shortest > room:
        raise ApiError(f"min_tokens: must be at most max_tokens, here {room:,}, not {shortest:,}", param="min_tokens")
    return base.evolve(
        **given, n=body.n or 1, max_new_tokens=room, min_new_tokens=shortest, grammar=grammar, logprobs=logprobs,
        prompt_logprobs=prompt_logprobs, thinking_budget=thinking_budget,
    )  # fmt: skip


def room_for_answer(
    state: ServerState, prompt_length: int, max_tokens: int | None, usual: int, prompt_field: str
) -> int:
    """The longest answer: what was asked for, else what the context has left after the prompt.

    With dynamic NTK the length that a request may reach decides how all its tokens are rotated. Without a wish of its
    own it therefore gets what the unstretched context has left and, where that is less than `usual`, so much.

    Raises:
        ApiError: Prompt and answer do not fit.
    """
    limit = state.max_length
    left = limit - prompt_length
    what = "the key/value cache" if limit > state.cache_tokens else "the context"
    if left < 1:
        raise ApiError(
            f"the prompt has {prompt_length:,} tokens, but {what} has room for {limit:,}, answer included: shorten it",
            code="context_length_exceeded", param=prompt_field,
        )  # fmt: skip
    if max_tokens is None:
        if context_length(state.config) is None:
            return min(left, max(state.config.max_position_embeddings - prompt_length, usual))
        return left
    if max_tokens > left:
        raise ApiError(
            f"the prompt's {prompt_length:,} tokens and an answer of up to {max_tokens:,} make "
            f"{prompt_length + max_tokens:,}, but {what} has room for {limit:,}: shorten it, or ask for at most "
            f"{left:,} (or leave max_tokens out: an answer then gets what is left)",
            code="context_length_exceeded", param="max_tokens",
        )  # fmt: skip
    return max_tokens


def wanted_grammar(body: SamplingBody, response_format: ResponseFormat | None) -> Grammar | None:
    """What the answer must be.

    Raises:
        ApiError: More than one thing was asked for, or a schema is missing.
        GenerationError: It cannot be read.
    """
    wanted: dict[str, Grammar] = {}
    if response_format is not None and response_format.type != "text":
        wanted["response_format"] = _format_grammar(response_format)
    if body.regex is not None:
        wanted["regex"] = Grammar.regex(body.regex)
    if body.choice is not None:
        wanted["choice"] = Grammar.choice(body.choice)
    if body.grammar is not None:
        # The one notation defines rules by "::=", which the other has no use for.
        wanted["grammar"] = (Grammar.ebnf if "::=" in body.grammar else Grammar.lark)(body.grammar)
    if len(wanted) > 1:
        raise ApiError(f"{' and '.join(wanted)}: an answer can follow one of them alone", param=list(wanted)[1])
    return next(iter(wanted.values()), None)


def _format_grammar(response_format: ResponseFormat) -> Grammar:
    if response_format.type == "json_object":
        return Grammar.json_object()
    described = response_format.json_schema
    schema = None if described is None else described.get("schema")
    if not isinstance(schema, Mapping):
        field = "response_format.json_schema" + ("" if described is None else ".schema")
        raise ApiError(f"{field}: missing: give the JSON schema as an object", param=field)
    return Grammar.json_schema(schema)


def _bias(bias: Mapping[str, float], vocab_size: int) -> dict[int, float]:
    result = {}
    for key, value in bias.items():
        if not (key.isascii() and key.isdigit() and len(key) < 19 and int(key) < vocab_size):
            raise ApiError(
                f"logit_bias: {key[:50]!r} is not the id of a token: the model has {vocab_size:,}", param="logit_bias"
            )
        if not -100 <= value <= 100:
            raise ApiError(f"logit_bias: must be between -100 and 100, not {value!r}", param="logit_bias")
        result[int(key)] = value
    return result
