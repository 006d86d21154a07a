"""What every request to a server needs."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from puyulm.engine.async_engine import AsyncEngine
from puyulm.engine.context import context_length
from puyulm.engine.grammar import GrammarCompiler
from puyulm.engine.load import ChatModel, default_params
from puyulm.engine.params import SamplingParams
from puyulm.model.config import ModelConfig
from puyulm.serve.errors import ApiError
from puyulm.serve.metrics import Metrics
from puyulm.text.formats import ChatFormat
from puyulm.text.tokenizer import Tokenizer

COMPILING = 2  # threads


@dataclass
class ServerState:
    """One model behind a server. Belongs to the event loop.

    Attributes:
        params, thinking_params: How the checkpoint wants to be sampled, without and with deep thinking.
        names: What the model is called; the first is the one that answers carry.
        adapters: Names of loaded LoRA adapters, and where they came from.
        context_limit: The longest prompt and answer together, where less than the model's own is wanted.
        own_template: Conversations are written by the checkpoint's own jinja template.
        think: Whether the model thinks where a request does not say.
        draining: No new requests are taken.
        active: When each request came whose answers are being made, oldest first, by a number of its own.
    """

    engine: AsyncEngine
    tokenizer: Tokenizer
    chat_format: ChatFormat
    config: ModelConfig
    params: SamplingParams
    thinking_params: SamplingParams
    names: tuple[str, ...]
    own_template: bool = False
    think: bool = False
    context_limit: int | None = None
    adapters: dict[str, str] = field(default_factory=dict)
    metrics: Metrics = field(default_factory=Metrics)
    created: int = field(default_factory=lambda: int(time.time()))
    draining: bool = False
    active: dict[int, float] = field(default_factory=dict)

    @classmethod
    def of(
        cls, engine: AsyncEngine, model: ChatModel, names: tuple[str, ...] = (), *, own_template: bool = False,
        think: bool = False, context_limit: int | None = None,
    ) -> ServerState:  # fmt: skip
        """The state for a loaded model; without names it is called as its folder or file is."""
        return cls(
            engine=engine, tokenizer=model.tokenizer, chat_format=model.chat_format, config=model.model.config,
            params=model.params, names=names or (Path(model.path).absolute().name,), own_template=own_template,
            thinking_params=default_params(model.path, model.tokenizer, model.chat_format, think=True), think=think,
            context_limit=context_limit,
        )  # fmt: skip

    def __post_init__(self) -> None:
        tokens = range(self.tokenizer.vocab_size)
        self.longest_token = max(len(self.tokenizer.token_bytes(id)) for id in tokens)  # bytes
        self.compiling = ThreadPoolExecutor(COMPILING, "puyulm-grammar")
        self.changing = asyncio.Lock()  # of adapters
        self.grammars: GrammarCompiler = self.engine.engine.grammars or GrammarCompiler(self.tokenizer)

    @property
    def name(self) -> str:
        return self.names[0]

    @property
    def cache_tokens(self) -> int:
        """What the key/value cache holds: no sequence can be longer."""
        return self.engine.engine.scheduler.limits.tokens

    @property
    def max_length(self) -> int:
        """The longest prompt and answer together."""
        # The last token of an answer is never run, so it needs no place in the cache.
        bounds = (self.cache_tokens + 1, context_length(self.config), self.context_limit)
        return min(bound for bound in bounds if bound is not None)

    def drain(self) -> None:
        """Takes no new requests."""
        self.draining = True

    def close(self) -> None:
        """Ends the engine, and what is still running."""
        self.engine.close()

    def adapter_for(self, model: str | None) -> str | None:
        """The adapter that a request's `model` names; None: the model itself, which is meant where none is named.

        Raises:
            ApiError: There is no such model (404).
        """
        if model is None or model in self.names:
            return None
        if model in self.adapters:
            return model
        known = ", ".join([*self.names, *self.adapters])
        raise ApiError(
            f"there is no model {model[:200]!r} here: this server has {known}",
            status=404, param="model", code="model_not_found",
        )  # fmt: skip

    def stalled_for(self) -> float:
        """Seconds since the engine last made a step although there is work; 0 where there is none."""
        if not self.active:
            return 0.0
        waiting_since = max(self.engine.last_step, next(iter(self.active.values())))
        return max(0.0, time.monotonic() - waiting_since)
