"""The engine: sequences of any number and length through one model, at once.

Every step runs pieces of many sequences in one forward (continuous batching, chunked prefill): what a sequence gets is
the same alone or among others. `Engine` is for one thread; `puyulm.engine.async_engine` wraps it for servers.

Dynamic NTK rotates by a base that depends on a sequence's length, and cached keys keep the rotation they were stored
with. The base of a request is therefore fixed when it is submitted, from the longest length it may reach (prompt plus
`max_new_tokens`): every step then equals a full forward over the tokens so far at that reach, exactly.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from puyulm.engine.blocks import root_digest
from puyulm.engine.config import EngineConfig
from puyulm.engine.context import ntk_length
from puyulm.engine.draft import speculator_for
from puyulm.engine.gpu.graphs import decode_graphs
from puyulm.engine.grammar import GrammarCompiler, Matcher
from puyulm.engine.judge import judge_prompts, pool
from puyulm.engine.lora import AdapterBank
from puyulm.engine.paged import KVCache
from puyulm.engine.params import SamplingParams
from puyulm.engine.request import Completion, FinishReason, Request, Task, TokenEvent, TopLogprobs
from puyulm.engine.runner import Runner
from puyulm.engine.sampler import RowSampler, Sampled, sample
from puyulm.engine.scheduler import Scheduler
from puyulm.engine.text import AnswerReader, AnswerText
from puyulm.engine.thinking import ThinkingBudget
from puyulm.engine.transfer import upload
from puyulm.errors import GenerationError
from puyulm.model.config import ModelConfig
from puyulm.model.decoder import Decoder
from puyulm.progress import Progress
from puyulm.text.stream import StreamDecoder
from puyulm.text.tokenizer import Tokenizer

Prompt = Sequence[int]
_Job = tuple[Task, Prompt, int | None]  # what to read, from what, from where on


@dataclass(slots=True)
class Counters:
    """What an engine has done since it was made.

    Attributes:
        prompt_tokens: Of finished requests; `cached_tokens` of them were found in the prefix cache.
        new_tokens: Of answers.
        proposed: Tokens guessed ahead and verified; `accepted` of them became part of answers.
    """

    steps: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    new_tokens: int = 0
    proposed: int = 0
    accepted: int = 0


READING = SamplingParams(max_new_tokens=1)  # of a sequence that nothing is sampled from
ROWS_OF_LOGITS = 32  # computed at once by `next_logprobs`: the output matrix is read once for all of them


class Engine:
    """A model that answers, scores and embeds.

    Args:
        model: Decoder in evaluation mode; on CPUs `puyulm.engine.cpu.pack_for_inference` makes it fast.
        tokenizer: Needed for stop texts and for `Completion.text`.
        config: Sizes.
        runner: Runs the steps, over a cache that it brings; None: this process alone.

    Example:
        >>> engine = Engine(model, tokenizer)
        >>> [done] = engine.generate([tokenizer.encode("1 + 1 =")], SamplingParams(temperature=0, max_new_tokens=5))
        >>> done.text
    """

    def __init__(
        self,
        model: Decoder,
        tokenizer: Tokenizer | None = None,
        config: EngineConfig | None = None,
        *,
        runner: Runner | None = None,
    ) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.config = config or EngineConfig()
        self.runner = runner or make_runner(model, self.config)
        self.scheduler = Scheduler(self.config.limits(self.runner.cache.num_blocks, self.runner.device))
        self.speculator = speculator_for(self.config, model, self.runner.cache.num_blocks)
        self.adapters = AdapterBank(model)
        self.counters = Counters()
        self.weights_version = 0
        self.grammars = None if tokenizer is None else GrammarCompiler(tokenizer)
        self._submitted = 0

    # What is asked for, all at once

    def generate(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        adapter: str | None = None,
        on_token: Callable[[TokenEvent], None] | None = None,
        on_finish: Callable[[int, Completion], None] | None = None,
        progress: str | None = None,
    ) -> list[Completion]:
        """Completes prompts.

        Args:
            prompts: Token ids of each; lengths may differ.
            params: One for all prompts, or one each. With `n` above 1 a prompt has n completions in a row.
            adapter: Name of a loaded LoRA adapter.
            on_token: Called with every token as it is chosen; its index counts completions.
            on_finish: Called with the index of a completion and itself as soon as it is finished.
            progress: Label of a progress bar.

        Returns:
            Completions in the order of the prompts.

        Raises:
            GenerationError: For a prompt or parameters that cannot be served, before anything is run; or a request
                failed.
        """
        each = list(params) if isinstance(params, Sequence) else [params or SamplingParams()] * len(prompts)
        if len(each) != len(prompts):
            raise GenerationError(f"{len(prompts)} prompts but {len(each)} sampling parameters: give one, or one each")
        requests: list[Request] = []
        try:
            for number, (prompt, one) in enumerate(zip(prompts, each, strict=True)):
                requests += self._samples(prompt, one, adapter, on_token, f"prompt {number}", len(requests))

            def finished(index: int, request: Request) -> None:
                if on_finish is not None:
                    on_finish(index, request.completion())

            self._run(requests, progress, "answer", finished)
        finally:
            self._drop(requests)
        return [request.completion() for request in requests]

    def stream(
        self, prompt: Prompt, params: SamplingParams | None = None, *, adapter: str | None = None
    ) -> Iterator[TokenEvent]:
        """Completes one prompt token by token; leaving the loop early ends the work. Several streams may be read in
        turn. Arguments as in `generate`."""
        waiting: deque[TokenEvent] = deque()
        request = self.submit(prompt, params or SamplingParams(), adapter=adapter, on_event=waiting.append)
        try:
            while not request.finished:
                self.step()
                while waiting:
                    yield waiting.popleft()
            if request.error is not None:
                raise GenerationError(request.error)
        finally:
            self.abort(request)

    def logprobs(
        self, sequences: Sequence[Prompt], starts: int | Sequence[int] = 1, *, adapter: str | None = None,
        progress: str | None = None, on_finish: Callable[[int, list[float]], None] | None = None,
    ) -> list[list[float]]:  # fmt: skip
        """Log-probabilities of the tokens of sequences.

        Args:
            starts: Of each sequence (or all), the position of the first token that is judged, 1 or more. What comes
                before may be taken from the prefix cache.
            on_finish: Called with the index of a sequence and its log-probabilities as soon as they are known.

        Returns:
            For each sequence those of its tokens from `starts` to the end.
        """
        firsts = [starts] * len(sequences) if isinstance(starts, int) else list(starts)
        if len(firsts) != len(sequences):
            raise GenerationError(f"{len(sequences)} sequences but {len(firsts)} starts: give one, or one each")
        for number, (sequence, first) in enumerate(zip(sequences, firsts, strict=True)):
            if not 1 <= first <= len(sequence):
                raise GenerationError(
                    f"sequence {number}: the first judged position must be between 1 and {len(sequence)}, not {first}"
                )
        jobs: list[_Job] = [("logprobs", sequence, first) for sequence, first in zip(sequences, firsts, strict=True)]

        def finished(index: int, request: Request) -> None:
            if on_finish is not None:
                on_finish(index, request.prompt_logprobs)

        return [request.prompt_logprobs for request in self._read(jobs, adapter, progress, finished)]

    def next_logprobs(
        self, prompts: Sequence[Prompt], on_finish: Callable[[int, Tensor], None], *, adapter: str | None = None
    ) -> None:
        """What the model expects after each prompt.

        Args:
            on_finish: Called with the index of a prompt and the log-probabilities `[V]` of all tokens after it. They
                come in no order, and are not kept.
        """
        known: list[tuple[int, Tensor]] = []

        def give() -> None:
            if not known:
                return
            with torch.inference_mode():
                logprobs = self.runner.logits(torch.stack([row for _, row in known])).log_softmax(-1)
            for (index, _), row in zip(known, logprobs.cpu(), strict=True):
                on_finish(index, row)
            known.clear()

        def finished(index: int, request: Request) -> None:
            if request.pooled is not None:
                known.append((index, request.pooled))
            if len(known) >= ROWS_OF_LOGITS:
                give()

        self._read([("last", prompt, None) for prompt in prompts], adapter, None, finished)
        give()

    def score(self, sequences: Sequence[Prompt], *, progress: str | None = None) -> list[float]:
        """Rewards, read at the last token of each sequence (which a reward model's format has put there).

        Raises:
            GenerationError: The model is not a reward model.
        """
        if self.model.config.head != "reward":
            raise GenerationError("a language model does not score texts: load a reward model")
        jobs: list[_Job] = [("last", sequence, None) for sequence in sequences]
        rows = [request.pooled for request in self._read(jobs, None, progress)]
        with torch.inference_mode():
            return [float(self.model.head(row[None])) for row in rows if row is not None]

    def embed(
        self, sequences: Sequence[Prompt], pooling: Literal["last", "mean"] = "mean", *, progress: str | None = None
    ) -> list[Tensor]:
        """Vectors `[H]` of length 1: the final-normed hidden state of the "last" token, or the "mean" over all."""
        jobs: list[_Job] = [(pooling, sequence, None) for sequence in sequences]
        pooled = [request.pooled for request in self._read(jobs, None, progress)]
        return [torch.nn.functional.normalize(row.float(), dim=0) for row in pooled if row is not None]

    # What is asked for one at a time

    def submit(
        self,
        prompt: Prompt,
        params: SamplingParams,
        *,
        task: Task = "generate",
        first_logprob: int | None = None,
        answer: AnswerReader | None = None,
        thinking: ThinkingBudget | None = None,
        adapter: str | None = None,
        on_event: Callable[[TokenEvent], None] | None = None,
        label: str = "the prompt",
        index: int | None = None,
    ) -> Request:
        """Puts a sequence into the queue; `step` brings it forward.

        Args:
            first_logprob: For the task "logprobs".
            answer: Reads the answer, instead of an `AnswerText`.
            thinking: Follows the thoughts of this one answer; None: it has none.
            on_event: Called with every token.
            label: What messages call the sequence.

        Raises:
            GenerationError: It cannot be served.
        """
        config = self.model.config
        lora = self.adapters.find(adapter)
        _check_prompt(prompt, config.vocab_size, label)
        if task in ("generate", "logprobs") and config.head != "lm":
            raise GenerationError("a reward model scores texts and cannot generate: load a language model")
        if self.tokenizer is None and answer is None and params.stop:
            raise GenerationError("stop texts need a tokenizer: pass tokenizer=")
        stop_ids = frozenset(params.stop_ids + (() if params.ignore_eos else config.eos_token_ids))
        sampler = None
        if task == "generate":
            first_logprob = 1 if params.prompt_logprobs is not None and len(prompt) > 1 else None
            sampler = RowSampler(
                params, prompt, sorted(stop_ids), config.vocab_size, self.runner.device,
                matcher=self._matcher(params), thinking=thinking,
            )  # fmt: skip
            if answer is None and self.tokenizer is not None:
                answer = AnswerText(StreamDecoder(self.tokenizer), params.stop)
        reach = len(prompt) + (params.max_new_tokens if task == "generate" else 0)
        number = self._submitted
        self._submitted += 1
        request = Request(
            number if index is None else index, prompt, params, task=task, sampler=sampler, answer=answer,
            salt=root_digest(self.weights_version, lora and lora.version, ntk_length(config, reach)), stop_ids=stop_ids,
            adapter=lora, first_logprob=first_logprob, on_event=on_event,
        )  # fmt: skip
        if task == "logprobs" and request.unjudged is None:
            request.finish_reason = "stop"  # nothing to judge
            return request
        self.scheduler.add(request)
        return request

    def abort(self, request: Request, reason: FinishReason = "aborted") -> None:
        """Takes a request out; nothing happens to one that is finished."""
        if not request.finished:
            request.finish_reason = reason
            request.times.finished = time.monotonic()
            self.scheduler.remove(request)

    def load_adapter(self, name: str, folder: Path | str) -> None:
        """Loads a LoRA adapter in the format of `peft`; requests may then ask for it by this name.

        Raises:
            CheckpointError: It is missing or damaged, or was not made for this model.
            GenerationError: The name is taken or empty, or the model is split over processes.
        """
        self.adapters.load(name, folder)

    def unload_adapter(self, name: str) -> None:
        """Forgets an adapter. Requests that have begun with it go on with it to their end.

        Raises:
            GenerationError: No adapter has this name.
        """
        self.adapters.unload(name)

    def weights_changed(self) -> None:
        """To be called when the model's parameters were changed in place: what is cached is never used again.

        Raises:
            GenerationError: Sequences are running, half with the old weights.
        """
        # One that had to give its blocks back waits, but part of its answer is of the old weights.
        begun = [one for one in self.scheduler.waiting if one.answer_length or one.prompt_logprobs]
        if count := len(self.scheduler.running) + len(begun):
            raise GenerationError(f"{count} requests are running: finish or abort them first")
        self.weights_version += 1
        self.scheduler.forget_prefixes()

    def close(self) -> None:
        """Ends other processes that work for this engine."""
        self.runner.end()

    @property
    def idle(self) -> bool:
        return not self.scheduler.running and not self.scheduler.waiting

    def step(self) -> list[Request]:
        """One forward, and a token for every sequence that it brought to its end.

        Where it fails or is interrupted, every running request ends with an error, for nobody knows how far each has
        come; those that wait are as they were.

        Returns:
            The requests that are finished by it.
        """
        try:
            return self._step()
        except BaseException as error:
            for request in list(self.scheduler.running):
                self.scheduler.remove(request)
                request.fail(f"{type(error).__name__}: {error}".removesuffix(": "))
                request.times.finished = time.monotonic()
            raise

    def _step(self) -> list[Request]:
        if self.speculator is not None:
            self.speculator.propose(self.scheduler.running)
        pieces = self.scheduler.schedule()
        if not pieces:
            return []
        if self.speculator is not None:
            self.speculator.complete(pieces, self.scheduler.tables)
        if self.adapters.active:
            self.adapters.place([(request.adapter, count) for request, _, count in pieces])
        try:
            hidden = self.runner.run(pieces, self.scheduler.tables)
        finally:
            self.adapters.leave()
        judge_prompts(pieces, hidden, self.runner.logits, self.model.config.vocab_size)
        pool(pieces, hidden)
        rows: list[int] = []
        ready, done, offset = [], [], 0
        for request, start, count in pieces:
            offset += count
            guesses = len(request.draft)
            self.scheduler.computed(request, count - guesses)
            if start + count < len(request.tokens):
                continue
            if request.task == "generate":
                ready.append(request)
                rows += range(offset - 1 - guesses, offset)
            else:
                request.finish_reason = "stop"
                done.append(request)
        if ready:
            done += self._extend(ready, hidden if len(rows) == offset else _rows_of(hidden, rows))
        self._count(done)
        for request in done:
            request.times.finished = time.monotonic()
            self.scheduler.remove(request)
        return done

    def _extend(self, ready: Sequence[Request], hidden: Tensor) -> list[Request]:
        """Draws a token for each of `ready`, and another one as long as the last is what was guessed.

        Args:
            hidden: `[N, H]`: of each request the place of its last token and those of its guesses.

        Returns:
            Those that end with it.
        """
        logits = self.runner.logits(hidden)
        firsts = itertools.accumulate((1 + len(request.draft) for request in ready), initial=0)
        drawing = list(zip(ready, firsts, strict=False))
        depth = 0
        while drawing:
            every = len(drawing) == len(logits)
            chosen = sample(
                logits if every else _rows_of(logits, [first + depth for _, first in drawing]),
                [request.sampler for request, _ in drawing if request.sampler is not None],
            )
            now = time.monotonic()
            going_on = []
            for row, (request, first) in enumerate(drawing):
                if request.finished:
                    continue  # aborted by what was called with an event
                if request.times.first_token is None:
                    request.times.first_token = now
                event = self._accept(request, chosen, row)
                guessed = depth < len(request.draft) and event.token == request.draft[depth]
                if guessed and not request.finished:
                    going_on.append((request, first))
                elif request.draft:
                    self._verified(request, depth + guessed)
                if request.on_event is not None:
                    request.on_event(event)
            self.counters.new_tokens += len(drawing)
            drawing, depth = going_on, depth + 1
        return [request for request in ready if request.finished]

    def _verified(self, request: Request, accepted: int) -> None:
        """Counts the guesses that were right; the others' keys and values will be overwritten."""
        proposed, request.draft = len(request.draft), []
        self.scheduler.computed(request, accepted)
        self.counters.proposed += proposed
        self.counters.accepted += accepted
        if self.speculator is not None:
            self.speculator.observe(request, proposed, accepted)

    def _accept(self, request: Request, chosen: Sampled, row: int) -> TokenEvent:
        if row in chosen.errors:
            return request.fail(str(chosen.errors[row]))
        top = TopLogprobs(*chosen.top[row]) if row in chosen.top else None
        try:
            return request.accept(chosen.tokens[row], chosen.logprobs[row], top)
        except Exception as error:  # of this request's own parser or decoder: it alone ends
            return request.fail(f"{type(error).__name__}: {error}")

    def _matcher(self, params: SamplingParams) -> Matcher | None:
        if params.grammar is None:
            return None
        if self.grammars is None:
            raise GenerationError("a grammar needs a tokenizer: pass tokenizer=")
        return self.grammars.matcher(params.grammar)

    def _count(self, done: Sequence[Request]) -> None:
        counters = self.counters
        counters.steps += 1
        for request in done:
            counters.prompt_tokens += request.prompt_length
            counters.cached_tokens += request.shared or 0

    def _samples(
        self, prompt: Prompt, params: SamplingParams, adapter: str | None,
        on_token: Callable[[TokenEvent], None] | None, label: str, index: int,
    ) -> list[Request]:  # fmt: skip
        return [
            self.submit(prompt, one, adapter=adapter, on_event=on_token, label=label, index=index + number)
            for number, one in enumerate(params.samples())
        ]

    def _read(
        self, jobs: Sequence[_Job], adapter: str | None, progress: str | None,
        on_finish: Callable[[int, Request], None] | None = None,
    ) -> list[Request]:  # fmt: skip
        requests: list[Request] = []
        try:
            for number, (task, sequence, first) in enumerate(jobs):
                label = f"sequence {number}"
                requests.append(
                    self.submit(sequence, READING, task=task, first_logprob=first, adapter=adapter, label=label)
                )
            self._run(requests, progress, "text", on_finish)
        finally:
            self._drop(requests)
        return requests

    def _run(
        self, requests: Sequence[Request], progress: str | None, unit: str,
        on_finish: Callable[[int, Request], None] | None,
    ) -> None:  # fmt: skip
        left = sum(not request.finished for request in requests)
        mine = {id(request): index for index, request in enumerate(requests)}
        bar = Progress(progress, total=len(requests), unit=unit) if progress else None
        with bar or contextlib.nullcontext():
            while left:
                for request in self.step():
                    if id(request) in mine:
                        left -= 1
                        if request.error is not None:
                            raise GenerationError(f"prompt {request.index}: {request.error}")
                        if on_finish is not None:
                            on_finish(mine[id(request)], request)
                        if bar is not None:
                            bar.advance()

    def _drop(self, requests: Sequence[Request]) -> None:
        """After an interruption or an error nothing of a call stays behind."""
        for request in requests:
            self.abort(request)


def _rows_of(values: Tensor, rows: Sequence[int]) -> Tensor:
    return values[upload([np.array(rows)], values.device)[0]]


def make_runner(model: Decoder, config: EngineConfig) -> Runner:
    """This process alone, with a cache for all of the model's heads."""
    cache = make_cache(model, model.config, config)
    graphs = decode_graphs(model, cache, config.max_running) if config.cuda_graphs else None
    return Runner(model, cache, graphs)


def make_cache(model: Decoder, shape: ModelConfig, config: EngineConfig) -> KVCache:
    """A cache for what `shape` says of a model's heads."""
    weight = model.embed.weight
    num_blocks = config.num_blocks(shape, weight.dtype, weight.device)
    return KVCache(shape, num_blocks, weight.dtype, weight.device, config.kv_type)


def _check_prompt(prompt: Prompt, vocab_size: int, label: str) -> None:
    if not prompt:
        raise GenerationError(f"{label} is empty: give at least one token (the beginning-of-sequence id)")
    if min(prompt) < 0 or max(prompt) >= vocab_size:
        wrong = next(id for id in prompt if not 0 <= id < vocab_size)
        raise GenerationError(f"{label} holds the id {wrong}, but the model has {vocab_size} tokens")
