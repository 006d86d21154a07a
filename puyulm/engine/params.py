"""What a caller may ask of generation."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from puyulm.errors import GenerationError

MIN_TEMPERATURE = 1e-4  # of draws


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How one completion is chosen, and when it ends.

    The logits of a step pass through the repetition penalty, then temperature, top-k, top-p, and min-p; a token is
    then drawn from what is left. (`transformers` has the same order.)

    Attributes:
        temperature: Divides the logits; 0 takes the most likely token (greedy, after the repetition penalty). Others
            begin at 1e-4: quotients by less may be too large for float32.
        top_k: Keep the k most likely tokens; 0 keeps all. Tokens tied with the k-th stay.
        top_p: Keep the most likely tokens up to this probability mass, the one that reaches it included; 1 keeps all.
        min_p: Keep tokens at least this fraction as likely as the most likely one; 0 keeps all.
        repetition_penalty: Of tokens already in the prompt or answer, positive logits are divided by this and negative
            ones multiplied; 1 does nothing.
        seed: Makes the draws repeatable, whatever else is in the batch. None takes a seed from torch's default
            generator.
        stop: Texts that end the answer; they are not part of it. They may span tokens.
        stop_ids: Token ids that end the answer, besides the model's own end-of-sequence ids.
        max_new_tokens: Longest answer, in tokens.
        min_new_tokens: No token may end the answer, and no stop text counts, before so many tokens.
        ignore_eos: Do not end at the model's own end-of-sequence ids (`stop_ids` still end).
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    stop_ids: tuple[int, ...] = ()
    max_new_tokens: int = 1024
    min_new_tokens: int = 0
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        _check("temperature", self.temperature, self.temperature == 0 or MIN_TEMPERATURE <= self.temperature < math.inf,
               f"0 (greedy), or {MIN_TEMPERATURE} or more")  # fmt: skip
        _check("top_k", self.top_k, self.top_k >= 0, "0 (off) or a positive whole number", whole=True)
        _check("top_p", self.top_p, 0 < self.top_p <= 1, "above 0 and at most 1")
        _check("min_p", self.min_p, 0 <= self.min_p <= 1, "between 0 and 1")
        _check("repetition_penalty", self.repetition_penalty, 0 < self.repetition_penalty < math.inf, "above 0")
        _check("max_new_tokens", self.max_new_tokens, self.max_new_tokens >= 1, "1 or more", whole=True)
        _check("min_new_tokens", self.min_new_tokens, 0 <= self.min_new_tokens <= self.max_new_tokens,
               f"between 0 and max_new_tokens ({self.max_new_tokens})", whole=True)  # fmt: skip
        if self.seed is not None:
            _check("seed", self.seed, 0 <= self.seed < 2**63, "between 0 and 2^63 - 1", whole=True)
        if isinstance(self.stop, str) or not all(isinstance(text, str) and text for text in self.stop):
            raise GenerationError(f"stop must be a tuple of non-empty texts, not {self.stop!r}")
        if not all(isinstance(id, int) and id >= 0 for id in self.stop_ids):
            raise GenerationError(f"stop_ids must be a tuple of token ids (0 or more), not {self.stop_ids!r}")

    def evolve(self, **changes: object) -> SamplingParams:
        """A copy with some fields changed."""
        return replace(self, **changes)  # type: ignore[arg-type]


def _check(name: str, value: float, allowed: bool, allowed_range: str, whole: bool = False) -> None:
    if not allowed or (whole and (not isinstance(value, int) or isinstance(value, bool))):
        raise GenerationError(f"{name} must be {allowed_range}, not {value!r}")
