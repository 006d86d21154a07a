"""How long a sequence may become."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal, cast

from puyulm.engine.params import SamplingParams
from puyulm.errors import GenerationError
from puyulm.model.config import ModelConfig, RopeConfig


def scaled_rope(rope: RopeConfig, scaling: str) -> RopeConfig:
    """Rotary embedding with another scaling: "none", "dynamic:2.5" (NTK) or "linear:4", each with its factor.

    Raises:
        GenerationError: The text says something else.
    """
    kind, _, factor = scaling.partition(":")
    try:
        if kind == "none" and not factor:
            return replace(rope, scaling="none", factor=1.0)
        if kind in ("dynamic", "linear") and 1 <= float(factor) < math.inf:
            return replace(rope, scaling=cast(Literal["dynamic", "linear"], kind), factor=float(factor))
    except ValueError:
        pass
    raise GenerationError(
        f"rope scaling {scaling!r} is not known: write none, dynamic:2.5 or linear:4 (factor 1 or more)"
    )


def ntk_length(config: ModelConfig, reach: int) -> int | None:
    """The length that sets the rotary base of a sequence which may grow to `reach` tokens; None where the plain base
    holds."""
    return reach if config.rope.scaling == "dynamic" and reach > config.max_position_embeddings else None


def context_length(config: ModelConfig) -> int | None:
    """Tokens that the positions of a model are good for: `max_position_embeddings`, times the factor of linear
    scaling. None with dynamic NTK, which stretches with the sequence and is bounded by memory alone."""
    if config.rope.scaling == "dynamic":
        return None
    stretch = config.rope.factor if config.rope.scaling == "linear" else 1.0
    return int(config.max_position_embeddings * stretch)


def fit_to_context(config: ModelConfig, prompt_length: int, params: SamplingParams) -> SamplingParams:
    """The parameters with `max_new_tokens` cut to what the context has left after the prompt.

    Raises:
        GenerationError: The prompt alone fills the context.
    """
    limit = context_length(config)
    if limit is None or prompt_length + params.max_new_tokens <= limit:
        return params
    if prompt_length >= limit:
        raise GenerationError(
            f"the prompt has {prompt_length:,} tokens, but the model's context is {limit:,}: shorten it"
        )
    room = limit - prompt_length
    return params.evolve(max_new_tokens=room, min_new_tokens=min(params.min_new_tokens, room))
