"""What a caller may ask of generation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from puyulm.engine.grammar import Grammar
from puyulm.engine.uniform import seed_of_sample
from puyulm.errors import GenerationError

MIN_TEMPERATURE = 1e-4  # of draws


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How one completion is chosen, and when it ends.

    The logits of a step pass through, in this order: repetition penalty, presence and frequency penalty, logit bias,
    grammar, temperature, top-k, top-p, and min-p; a token is then drawn from what is left. (`transformers` has the
    same order, as far as it goes.) So presence and frequency penalties are plain differences in logits, as OpenAI
    documents them, whatever the repetition penalty has done before.

    Attributes:
        temperature: Divides the logits; 0 takes the most likely token (greedy, after penalties, bias and grammar).
            Others begin at 1e-4: quotients by less may be too large for float32.
        top_k: Keep the k most likely tokens; 0 keeps all. Tokens tied with the k-th stay.
        top_p: Keep the most likely tokens up to this probability mass, the one that reaches it included; 1 keeps all.
        min_p: Keep tokens at least this fraction as likely as the most likely one; 0 keeps all.
        repetition_penalty: Of tokens already in the prompt or answer, positive logits are divided by this and negative
            ones multiplied; 1 does nothing.
        presence_penalty: Subtracted from the logits of tokens already in the answer (the prompt does not count).
        frequency_penalty: Subtracted once for every time that a token stands in the answer.
        logit_bias: Added to the logits of these ids: pairs of id and bias. A mapping is taken too.
        seed: Makes the draws repeatable, whatever else is in the batch. None takes a seed from torch's default
            generator.
        n: Completions of the same prompt; `samples` gives the parameters of each.
        stop: Texts that end the answer; they are not part of it. They may span tokens. They do not count in thoughts.
        stop_ids: Token ids that end the answer, besides the model's own end-of-sequence ids.
        max_new_tokens: Longest answer, in tokens.
        min_new_tokens: No token may end the answer, and no stop text counts, before so many tokens.
        ignore_eos: Do not end at the model's own end-of-sequence ids (`stop_ids` still end).
        logprobs: Return so many of the most likely tokens at each place of the answer; 0: the chosen one alone.
        prompt_logprobs: The same of the prompt's tokens.
        grammar: What the answer must be: JSON by a schema, one of some choices, ... It begins after the thoughts.
        thinking_budget: Tokens that thoughts may take before they are closed for the model; None:
            `puyulm.engine.thinking.THINKING_BUDGET`. It counts only where the answer has thoughts.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int | None = None
    n: int = 1
    stop: tuple[str, ...] = ()
    stop_ids: tuple[int, ...] = ()
    max_new_tokens: int = 1024
    min_new_tokens: int = 0
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    grammar: Grammar | None = None
    thinking_budget: int | None = None

    def __post_init__(self) -> None:
        self._check_choice()
        _check("max_new_tokens", self.max_new_tokens, lambda x: x >= 1, "1 or more", whole=True)
        _check("min_new_tokens", self.min_new_tokens, lambda x: 0 <= x <= self.max_new_tokens,
               f"between 0 and max_new_tokens ({self.max_new_tokens})", whole=True)  # fmt: skip
        _check("n", self.n, lambda x: x >= 1, "1 or more", whole=True)
        for name in ("logprobs", "prompt_logprobs", "thinking_budget"):
            if (value := getattr(self, name)) is not None:
                _check(name, value, lambda x: x >= 0, "None, or 0 or more", whole=True)
        if isinstance(self.stop, str) or not all(isinstance(text, str) and text for text in self.stop):
            raise GenerationError(f"stop must be a tuple of non-empty texts, not {self.stop!r}")
        if not all(_is_id(id) for id in self.stop_ids):
            raise GenerationError(f"stop_ids must be a tuple of token ids (0 or more), not {self.stop_ids!r}")
        if self.grammar is not None and not isinstance(self.grammar, Grammar):
            raise GenerationError(
                f"grammar must be a Grammar (Grammar.json_schema(...) makes one), not {self.grammar!r}"
            )
        object.__setattr__(self, "logit_bias", _pairs(self.logit_bias))
        # A list of texts or ids, as JSON has it, would make the parameters unhashable.
        object.__setattr__(self, "stop", tuple(self.stop))
        object.__setattr__(self, "stop_ids", tuple(self.stop_ids))

    def _check_choice(self) -> None:
        _check("temperature", self.temperature, lambda x: x == 0 or MIN_TEMPERATURE <= x < math.inf,
               f"0 (greedy), or {MIN_TEMPERATURE} or more")  # fmt: skip
        _check("top_k", self.top_k, lambda x: x >= 0, "0 (off) or a positive whole number", whole=True)
        _check("top_p", self.top_p, lambda x: 0 < x <= 1, "above 0 and at most 1")
        _check("min_p", self.min_p, lambda x: 0 <= x <= 1, "between 0 and 1")
        _check("repetition_penalty", self.repetition_penalty, lambda x: 0 < x < math.inf, "above 0")
        _check("presence_penalty", self.presence_penalty, math.isfinite, "a finite number")
        _check("frequency_penalty", self.frequency_penalty, math.isfinite, "a finite number")
        if self.seed is not None:
            _check("seed", self.seed, lambda x: 0 <= x < 2**63, "between 0 and 2^63 - 1", whole=True)

    def evolve(self, **changes: object) -> SamplingParams:
        """A copy with some fields changed."""
        return replace(self, **changes)  # type: ignore[arg-type]

    def samples(self) -> list[SamplingParams]:
        """The parameters of each of the `n` completions. The first keeps the seed, so that asking for more changes
        nothing about it; the others' seeds follow from it."""
        seeds = [None if self.seed is None else seed_of_sample(self.seed, index) for index in range(self.n)]
        return [self.evolve(n=1, seed=seed) for seed in seeds]


def _check(name: str, value: float, allowed: Callable[[float], bool], allowed_range: str, whole: bool = False) -> None:
    kind = int if whole else (int, float)
    if not isinstance(value, kind) or isinstance(value, bool) or not allowed(value):
        raise GenerationError(f"{name} must be {allowed_range}, not {value!r}")


def _pairs(bias: Mapping[int, float] | Iterable[tuple[int, float]]) -> tuple[tuple[int, float], ...]:
    """The bias in the order of ids, hashable."""
    try:
        pairs = dict(bias.items() if isinstance(bias, Mapping) else bias)
    except (TypeError, ValueError):
        raise GenerationError(f"logit_bias must map token ids to numbers, not {bias!r}") from None
    for id, value in pairs.items():
        if not _is_id(id) or isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise GenerationError(
                f"logit_bias must map token ids (0 or more) to finite numbers, not {id!r} to {value!r}"
            )
    return tuple(sorted((id, float(value)) for id, value in pairs.items()))


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
