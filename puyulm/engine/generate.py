"""Generation: prompts in, completions out, in batches of any lengths without padding.

A `Batch` runs forwards over its live sequences: first what is left of prompts (all prompts' pieces side by side, in
chunks of bounded size), then one token a sequence a step. Finished sequences leave at once and waiting prompts take
their places.

Dynamic NTK rotates by a base that depends on a sequence's length, and cached keys keep the rotation they were stored
with. The base of a request is therefore fixed when it is admitted, from the longest length it may reach (prompt plus
`max_new_tokens`): every step then equals a full forward over the tokens so far at that reach, exactly.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from puyulm.engine.cache import CachedAttention, KVCache, Span
from puyulm.engine.context import ntk_length
from puyulm.engine.params import SamplingParams
from puyulm.engine.sampler import RowSampler, sample
from puyulm.engine.text import AnswerText
from puyulm.errors import GenerationError
from puyulm.model.config import ModelConfig
from puyulm.model.decoder import Decoder
from puyulm.text.stream import StreamDecoder
from puyulm.text.tokenizer import Tokenizer

FinishReason = Literal["stop", "length"]

BATCH_SIZE = 32  # sequences at once
PREFILL_TOKENS = 2048  # prompt tokens in one forward: bounds the activations
FIRST_CAPACITY = 256  # tokens of answer the cache has room for before it first grows


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """One token, as it is chosen.

    Attributes:
        index: Which prompt it belongs to.
        token: Its id.
        logprob: See `Completion`.
        text: New text that may be shown; "" without a tokenizer, and while text is held back.
        finish_reason: Set on the last token of an answer.
    """

    index: int
    token: int
    logprob: float
    text: str
    finish_reason: FinishReason | None


@dataclass(frozen=True, slots=True)
class Completion:
    """An answer.

    Attributes:
        ids: Every token chosen, the one that ended the answer included.
        finish_reason: "stop": an end-of-sequence id, a stop id or a stop text; "length": `max_new_tokens`.
        logprobs: Of each of `ids`, the logarithm of its probability under the model itself: softmax of the raw logits,
            before penalty, temperature and filters.
        stop_id: The id at the end of `ids` that ended the answer, if it was an id that did.
        text: The answer without stop id and stop text, special tokens left out; None without a tokenizer.
    """

    ids: list[int]
    finish_reason: FinishReason
    logprobs: list[float]
    stop_id: int | None = None
    text: str | None = None

    @property
    def content_ids(self) -> list[int]:
        """`ids` without the stop id."""
        return self.ids if self.stop_id is None else self.ids[:-1]


class Session:
    """The cache of one conversation, kept between turns: the next prompt prefills only what follows the longest
    beginning it shares with what is cached.

    With dynamic NTK, a turn whose reach (prompt plus `max_new_tokens`) changes the base starts afresh.

    Attributes:
        ids: The tokens whose keys and values are cached.
    """

    def __init__(self, model: Decoder) -> None:
        weight = model.embed.weight
        self.cache = KVCache(model.config, 1, FIRST_CAPACITY, weight.dtype, weight.device)
        self.ids: list[int] = []
        self._ntk_length: int | None = None

    def admit(self, prompt: Sequence[int], ntk_length: int | None) -> int:
        """Drops what the prompt does not share, and returns how many of its tokens are cached (never all of them: the
        last must be run to predict what follows it)."""
        shared = 0
        if ntk_length == self._ntk_length:
            limit = min(len(self.ids), len(prompt) - 1)
            shared = next((i for i in range(limit) if self.ids[i] != prompt[i]), limit)
        self.ids = self.ids[:shared]
        self._ntk_length = ntk_length
        return shared


def generate(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    params: SamplingParams | Sequence[SamplingParams] | None = None,
    *,
    tokenizer: Tokenizer | None = None,
    on_token: Callable[[TokenEvent], None] | None = None,
    on_finish: Callable[[int, Completion], None] | None = None,
    batch_size: int = BATCH_SIZE,
    prefill_tokens: int = PREFILL_TOKENS,
    session: Session | None = None,
) -> list[Completion]:
    """Completes prompts.

    Args:
        prompts: Token ids of each; lengths may differ.
        params: One for all prompts, or one each. Default: `SamplingParams()`.
        tokenizer: Needed for stop texts and for `Completion.text`.
        on_token: Called with every token as it is chosen.
        on_finish: Called with a prompt's index and its completion as soon as it is finished (for progress).
        batch_size: Sequences at once; the cache's memory grows with it.
        prefill_tokens: Prompt tokens in one forward.
        session: Keeps the cache between calls, for a single prompt.

    Returns:
        Completions in the order of the prompts.

    Raises:
        GenerationError: For a prompt or parameters that cannot be served, before anything is run.
    """
    batch = Batch(model, prompts, params, tokenizer, batch_size, prefill_tokens, session)
    completions: dict[int, Completion] = {}
    for event in batch.run():
        if on_token is not None:
            on_token(event)
        if event.finish_reason is not None:
            completions[event.index] = batch.completion(event.index)
            if on_finish is not None:
                on_finish(event.index, completions[event.index])
    return [completions[index] for index in range(len(completions))]


def events(
    model: Decoder,
    prompt: Sequence[int],
    params: SamplingParams | None = None,
    *,
    tokenizer: Tokenizer | None = None,
    session: Session | None = None,
) -> Iterator[TokenEvent]:
    """Completes one prompt token by token; leaving the loop early ends the work. Arguments as in `generate`."""
    return Batch(model, [prompt], params, tokenizer, 1, PREFILL_TOKENS, session).run()


def stream(model: Decoder, prompt: Sequence[int], params: SamplingParams | None = None) -> Iterator[int]:
    """The ids of one completion as they are chosen (see `events` for text)."""
    return (event.token for event in events(model, prompt, params))


class _Request:
    """One sequence on its way."""

    def __init__(
        self, index: int, prompt: Sequence[int], params: SamplingParams, config: ModelConfig, device: torch.device
    ) -> None:
        self.index = index
        self.params = params
        self.tokens = list(prompt)  # and the answer, as it grows
        self.prompt_length = len(self.tokens)
        self.reach = self.prompt_length + params.max_new_tokens
        self.cached = 0  # of `tokens`
        self.stop_ids = frozenset(params.stop_ids + (() if params.ignore_eos else config.eos_token_ids))
        self.sampler = RowSampler(params, self.tokens, sorted(self.stop_ids), config.vocab_size, device)
        self.text: AnswerText | None = None
        self.logprobs: list[float] = []
        self.finish_reason: FinishReason | None = None
        self.stop_id: int | None = None

    @property
    def pending(self) -> int:
        """Tokens to run before the next can be chosen."""
        return len(self.tokens) - self.cached

    @property
    def answer_length(self) -> int:
        return len(self.tokens) - self.prompt_length


class Batch:
    """Prompts being completed together. Arguments as in `generate`."""

    def __init__(
        self,
        model: Decoder,
        prompts: Sequence[Sequence[int]],
        params: SamplingParams | Sequence[SamplingParams] | None,
        tokenizer: Tokenizer | None = None,
        batch_size: int = BATCH_SIZE,
        prefill_tokens: int = PREFILL_TOKENS,
        session: Session | None = None,
    ) -> None:
        self.model = model
        self.config = model.config
        self.device = model.embed.weight.device
        self.prefill_tokens = prefill_tokens
        self.session = session
        each = list(params) if isinstance(params, Sequence) else [params or SamplingParams()] * len(prompts)
        _check(self.config, prompts, each, tokenizer, batch_size, prefill_tokens, session)
        self.requests = [
            _Request(index, prompt, one, self.config, self.device)
            for index, (prompt, one) in enumerate(zip(prompts, each, strict=True))
        ]
        if tokenizer is not None:
            for request in self.requests:
                request.text = AnswerText(StreamDecoder(tokenizer), request.params.stop)
        self.waiting = deque(self.requests)
        self.live: list[_Request] = []  # in the order of their cache slots
        if session is not None:
            self.cache = session.cache
        else:
            slots = min(batch_size, len(self.requests))
            room = max((min(r.reach, r.prompt_length + FIRST_CAPACITY) for r in self.requests), default=0)
            self.cache = KVCache(self.config, slots, room, model.embed.weight.dtype, self.device)

    def run(self) -> Iterator[TokenEvent]:
        """Runs to the end, yielding every token as it is chosen."""
        while self.live or self.waiting:
            yield from self.step()

    def completion(self, index: int) -> Completion:
        """The finished answer to one prompt."""
        request = self.requests[index]
        assert request.finish_reason is not None
        ids = request.tokens[request.prompt_length :]
        text = None if request.text is None else request.text.text
        return Completion(ids, request.finish_reason, request.logprobs, request.stop_id, text)

    def step(self) -> list[TokenEvent]:
        """One forward, and a token for every sequence that it brought to its end."""
        while self.waiting and len(self.live) < self.cache.slots:
            self._admit(self.waiting.popleft())
        pieces = self._pieces()
        logits, ready = self._forward(pieces)
        if not ready:
            return []
        tokens, logprobs = sample(logits, [request.sampler for request in ready])
        chosen = zip(ready, tokens, logprobs, strict=True)
        emitted = [self._accept(request, token, logprob) for request, token, logprob in chosen]
        self._retire()
        return emitted

    def _admit(self, request: _Request) -> None:
        if self.session is not None:
            request.cached = self.session.admit(request.tokens, ntk_length(self.config, request.reach))
        self.live.append(request)

    def _pieces(self) -> list[tuple[int, _Request, int]]:
        """(slot, request, tokens to run) of the next forward: prompts first, within the chunk's size; when none is
        left, one token of every sequence."""
        budget = self.prefill_tokens
        pieces = []
        for slot, request in enumerate(self.live):
            count = min(request.pending, budget)
            if not request.answer_length and count:
                pieces.append((slot, request, count))
                budget -= count
        return pieces or [(slot, request, 1) for slot, request in enumerate(self.live)]

    @torch.inference_mode()
    def _forward(self, pieces: list[tuple[int, _Request, int]]) -> tuple[Tensor, list[_Request]]:
        """Runs pieces of sequences; the logits after those whose last token was among them, `[ready, V]`."""
        spans = [Span(slot, request.cached, count, request.reach) for slot, request, count in pieces]
        self.cache.reserve(max(span.stop for span in spans))
        ids = [id for span, (_, request, _) in zip(spans, pieces, strict=True)
               for id in request.tokens[span.start : span.stop]]  # fmt: skip
        attention = CachedAttention(self.cache, spans)
        hidden = self.model(torch.tensor(ids, device=self.device), attention.positions, attention)
        ready, last, end = [], [], 0
        for span, (_, request, count) in zip(spans, pieces, strict=True):
            request.cached = span.stop
            end += count
            if not request.pending:
                ready.append(request)
                last.append(end - 1)
        if self.session is not None:
            self.session.ids.extend(ids)
        if len(last) < len(ids):
            hidden = hidden[last]
        return (self.model.logits(hidden) if ready else hidden), ready

    def _accept(self, request: _Request, token: int, logprob: float) -> TokenEvent:
        """Adds a chosen token to its sequence and decides whether the answer ends with it."""
        if math.isnan(logprob):
            raise GenerationError(
                f"the model gives no number (NaN) for prompt {request.index} after {len(request.tokens)} tokens: "
                "its weights are damaged or too large for their type; try --dtype float32"
            )
        request.tokens.append(token)
        request.logprobs.append(logprob)
        may_stop = request.answer_length >= request.params.min_new_tokens
        text = ""
        if token in request.stop_ids:
            request.finish_reason, request.stop_id = "stop", token
        elif request.text is not None:
            text = request.text.push(token, may_stop)
            if request.text.stopped:
                request.finish_reason = "stop"
        if request.finish_reason is None and request.answer_length >= request.params.max_new_tokens:
            request.finish_reason = "length"
        if request.finish_reason is not None and request.text is not None:
            text += request.text.finish()
        return TokenEvent(request.index, token, logprob, text, request.finish_reason)

    def _retire(self) -> None:
        """Takes finished sequences out; the last ones move into their slots, so that live slots stay the first."""
        for slot in reversed(range(len(self.live))):
            if self.live[slot].finish_reason is None:
                continue
            last = self.live.pop()
            if slot < len(self.live):
                self.cache.move(len(self.live), slot, last.cached)
                self.live[slot] = last


def _check(
    config: ModelConfig,
    prompts: Sequence[Sequence[int]],
    params: Sequence[SamplingParams],
    tokenizer: Tokenizer | None,
    batch_size: int,
    prefill_tokens: int,
    session: Session | None,
) -> None:
    if config.head != "lm":
        raise GenerationError("a reward model scores texts and cannot generate: load a language model")
    if batch_size < 1 or prefill_tokens < 1:
        raise GenerationError(f"batch_size ({batch_size}) and prefill_tokens ({prefill_tokens}) must be 1 or more")
    if len(params) != len(prompts):
        raise GenerationError(f"{len(prompts)} prompts but {len(params)} sampling parameters: give one, or one each")
    if session is not None and len(prompts) != 1:
        raise GenerationError(f"a session holds one conversation, not {len(prompts)} prompts")
    if tokenizer is None and any(p.stop for p in params):
        raise GenerationError("stop texts need a tokenizer: pass tokenizer=")
    for index, prompt in enumerate(prompts):
        if not prompt:
            raise GenerationError(f"prompt {index} is empty: give at least one token (the beginning-of-sequence id)")
        wrong = next((id for id in prompt if not 0 <= id < config.vocab_size), None)
        if wrong is not None:
            raise GenerationError(f"prompt {index} holds the id {wrong}, but the model has {config.vocab_size} tokens")
