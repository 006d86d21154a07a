"""One sequence on its way through the engine, and what comes out of it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from puyulm.engine.blocks import Digest, block_digest
from puyulm.engine.params import SamplingParams
from puyulm.engine.text import AnswerReader

if TYPE_CHECKING:
    from torch import Tensor

    from puyulm.engine.sampler import RowSampler

if TYPE_CHECKING:
    from puyulm.engine.lora import Adapter

FinishReason = Literal["stop", "length", "aborted", "error"]

Task = Literal["generate", "logprobs", "last", "mean"]
"""What is read from a sequence: an answer; the log-probabilities of its own tokens; the final-normed hidden state of
its last token (for a reward or an embedding), or the mean over all its tokens."""


@dataclass(frozen=True, slots=True)
class TopLogprobs:
    """The most likely tokens of one place, most likely first, and their log-probabilities."""

    ids: list[int]
    logprobs: list[float]


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """One token of an answer, as it is chosen.

    Attributes:
        index: Which prompt it belongs to (in `Engine.generate`), else the request's number.
        token: Its id.
        logprob: See `Completion`.
        text: New text that may be shown; "" without a tokenizer, and while text is held back.
        finish_reason: Set on the last token of an answer.
        top: Alternatives, where `SamplingParams.logprobs` asks for them.
    """

    index: int
    token: int
    logprob: float
    text: str
    finish_reason: FinishReason | None
    top: TopLogprobs | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    """An answer.

    Attributes:
        ids: Every token chosen, the one that ended the answer included.
        finish_reason: "stop": an end-of-sequence id, a stop id or a stop text; "length": `max_new_tokens`;
            "aborted": the caller gave it up; "error": see `error`.
        logprobs: Of each of `ids`, the logarithm of its probability under the model itself: softmax of the raw logits,
            before penalty, temperature and filters.
        stop_id: The id at the end of `ids` that ended the answer, if it was an id that did.
        stop_text: The text that ended it, if it was one of `SamplingParams.stop`.
        text: The answer without stop id and stop text, special tokens left out; None without a tokenizer.
        top: Alternatives to each of `ids`, where `SamplingParams.logprobs` asks for them.
        prompt_logprobs: Of each prompt token but the first, where `SamplingParams.prompt_logprobs` asks for them.
        prompt_top: Alternatives to these, likewise.
        cached_tokens: Prompt tokens whose keys and values were there already.
        error: What went wrong.
    """

    ids: list[int]
    finish_reason: FinishReason
    logprobs: list[float]
    stop_id: int | None = None
    text: str | None = None
    stop_text: str | None = None
    top: list[TopLogprobs] = field(default_factory=list)
    prompt_logprobs: list[float] | None = None
    prompt_top: list[TopLogprobs] | None = None
    cached_tokens: int = 0
    error: str | None = None

    @property
    def content_ids(self) -> list[int]:
        """`ids` without the stop id."""
        return self.ids if self.stop_id is None else self.ids[:-1]


@dataclass(slots=True)
class Times:
    """When things happened to a request, in seconds of `time.monotonic`."""

    submitted: float = field(default_factory=time.monotonic)
    admitted: float | None = None
    first_token: float | None = None
    finished: float | None = None


class Request:
    """One sequence. Its life is in four numbers: `cached <= len(tokens) <= reach`, and `prompt_length <= len(tokens)`.

    Attributes:
        tokens: The prompt, and the answer as it grows.
        cached: How many of `tokens` have their keys and values in `blocks`.
        blocks: Its block table.
        draft: Guesses of the tokens that follow, to be verified in the next step.
        reach: The length it may grow to. Dynamic NTK takes its base from it, once and for all.
        first_logprob: The first prompt position whose token is judged; None: no log-probabilities of it are wanted.
        shared: Prompt tokens taken from the prefix cache at its first admission.
    """

    def __init__(
        self,
        index: int,
        prompt: Sequence[int],
        params: SamplingParams,
        *,
        task: Task = "generate",
        salt: Digest = b"",
        stop_ids: frozenset[int] = frozenset(),
        sampler: RowSampler | None = None,
        answer: AnswerReader | None = None,
        adapter: Adapter | None = None,
        first_logprob: int | None = None,
        on_event: Callable[[TokenEvent], None] | None = None,
    ) -> None:
        self.index = index
        self.params = params
        self.task: Task = task
        self.tokens = list(prompt)
        self.prompt_length = len(self.tokens)
        self.reach = self.prompt_length + (params.max_new_tokens if task == "generate" else 0)
        self.stop_ids = stop_ids
        self.sampler = sampler
        self.answer = answer
        self.adapter = adapter
        self.first_logprob = first_logprob
        self.on_event = on_event
        self.times = Times()
        self.cached = 0
        self.row = -1  # of the scheduler's block tables
        self.blocks: list[int] = []
        self.draft: list[int] = []
        self.shared: int | None = None
        self.logprobs: list[float] = []
        self.top: list[TopLogprobs] = []
        self.prompt_logprobs: list[float] = []
        self.prompt_top: list[TopLogprobs] = []
        self.pooled: Tensor | None = None  # [H], float32
        self.finish_reason: FinishReason | None = None
        self.stop_id: int | None = None
        self.error: str | None = None
        self._digests: list[Digest] = [salt]

    @property
    def pending(self) -> int:
        """Tokens to run before the next can be chosen."""
        return len(self.tokens) - self.cached

    @property
    def answer_length(self) -> int:
        return len(self.tokens) - self.prompt_length

    @property
    def unjudged(self) -> int | None:
        """The first prompt position whose token's log-probability is wanted and not there yet."""
        if self.first_logprob is None:
            return None
        position = self.first_logprob + len(self.prompt_logprobs)
        return position if position < self.prompt_length else None

    @property
    def shareable(self) -> int:
        """How many of its first tokens may come from the prefix cache. The last one must be run to predict what
        follows it, and so must the one before a token that is to be judged."""
        if self.task == "mean":
            return 0
        unjudged = self.unjudged
        return len(self.tokens) - 1 if unjudged is None else unjudged - 1

    @property
    def finished(self) -> bool:
        return self.finish_reason is not None

    def digests(self, blocks: int, block_size: int) -> list[Digest]:
        """The hashes of its first full blocks."""
        known = self._digests
        for number in range(len(known) - 1, blocks):
            tokens = self.tokens[number * block_size : (number + 1) * block_size]
            known.append(block_digest(known[-1], tokens))
        return known[1 : blocks + 1]

    def accept(self, token: int, logprob: float, top: TopLogprobs | None = None) -> TokenEvent:
        """Adds a chosen token, which the sampler has recorded, and decides whether the answer ends with it."""
        if math.isnan(logprob):
            return self.fail(
                f"the model gives no number (NaN) after {len(self.tokens)} tokens: "
                "its weights are damaged or too large for their type; try --dtype float32"
            )
        self.tokens.append(token)
        self.logprobs.append(logprob)
        if top is not None:
            self.top.append(top)
        text, answer, sampler = "", self.answer, self.sampler
        thinks = sampler is not None and sampler.thinking is not None and sampler.thinking.inside
        if token in self.stop_ids:
            self.finish_reason, self.stop_id = "stop", token
        elif answer is not None:
            text = answer.push(token, self.answer_length >= self.params.min_new_tokens and not thinks)
            if answer.stopped:
                self.finish_reason = "stop"
        if self.finish_reason is None and sampler is not None and sampler.finished:
            self.finish_reason = "stop"  # the grammar has come to its end
        if self.finish_reason is None and self.answer_length >= self.params.max_new_tokens:
            self.finish_reason = "length"
        if self.finish_reason is not None and answer is not None:
            text += answer.finish()
        return TokenEvent(self.index, token, logprob, text, self.finish_reason, top)

    def fail(self, error: str) -> TokenEvent:
        """Ends it with an error of its own; the event's token is -1."""
        self.finish_reason, self.error = "error", error
        return TokenEvent(self.index, -1, math.nan, "", "error")

    def completion(self) -> Completion:
        """The finished answer."""
        assert self.finish_reason is not None
        wants_prompt = self.params.prompt_logprobs is not None
        return Completion(
            ids=self.tokens[self.prompt_length :],
            finish_reason=self.finish_reason,
            logprobs=self.logprobs,
            stop_id=self.stop_id,
            text=None if self.answer is None else self.answer.text,
            stop_text=None if self.answer is None else self.answer.stopped_by,
            top=self.top,
            prompt_logprobs=self.prompt_logprobs if wants_prompt else None,
            prompt_top=self.prompt_top if wants_prompt else None,
            cached_tokens=self.shared or 0,
            error=self.error,
        )
