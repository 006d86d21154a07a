"""How long a sequence may become."""

from __future__ import annotations

from puyulm.engine.params import SamplingParams
from puyulm.errors import GenerationError
from puyulm.model.config import ModelConfig


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
