"""A checkpoint on this machine, run by our own engine."""

from __future__ import annotations

import hashlib
import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from puyulm.engine.config import EngineConfig
from puyulm.engine.context import context_length
from puyulm.engine.conversation import prompt_ids
from puyulm.engine.engine import Engine
from puyulm.engine.load import ChatModel
from puyulm.engine.params import SamplingParams
from puyulm.engine.request import Completion
from puyulm.eval.model import Continuation, Judged, OnJudged, OnOutput, Output, Prompt, PromptError
from puyulm.text.chat import render
from puyulm.text.formats import ChatFormat
from puyulm.text.messages import Message
from puyulm.text.parse import parse_answer
from puyulm.text.tokenizer import Tokenizer

CHARACTERS_AT_ONCE = 32 << 20
BEGINNING = 64  # tokens by which prompts are told to share their examples
SAMPLED = 1 << 16  # bytes of a weight file that its fingerprint reads at each of a few places


class EngineModel:
    """A `puyulm.eval.model.LanguageModel` in this process.

    Prompts with the same beginning share its keys and values; long ones go first, so that the last batches are full.

    Args:
        own_template: Ask by the checkpoint's own jinja template instead of the chat format.
        loaded: In which way the weights were loaded, where that changes answers (rounded, ...); for the fingerprint.
    """

    def __init__(
        self, chat: ChatModel, name: str, config: EngineConfig | None = None, *, own_template: bool = False,
        loaded: str = "",
    ) -> None:  # fmt: skip
        kv_type = (config or EngineConfig()).kv_type
        how = f"{chat.chat_format.name} {own_template} {kv_type} {loaded}"
        self.name, self.fingerprint = name, fingerprint(chat.path, how)
        self.thinks = chat.chat_format.thinking_prompt is not None
        self.context = context_length(chat.model.config)
        self.engine = Engine(chat.model, chat.tokenizer, config)
        self._chat, self._own_template = chat, own_template

    def generate(self, prompts: Sequence[Prompt], on_output: OnOutput) -> None:
        for window in _windows(
            [len(prompt.text) + sum(len(one.content) for one in prompt.messages) for prompt in prompts]
        ):
            self._generate(prompts, window, on_output)

    def judge(self, continuations: Sequence[Continuation], on_judged: OnJudged) -> None:
        for window in _windows([len(one.context) + len(one.text) for one in continuations]):
            own = continuations[window.start : window.stop]
            try:
                self._judge(own, lambda index, judged, first=window.start: on_judged(first + index, judged))  # type: ignore[misc]
            except PromptError as error:
                raise PromptError(window.start + error.index, str(error)) from None

    def reward(self, conversations: Sequence[Sequence[Message]]) -> list[float]:
        ids = [render(messages, self._chat.tokenizer, self._chat.chat_format).ids for messages in conversations]
        return self.engine.score(ids)

    def encode(self, text: str) -> list[int]:
        return self._chat.tokenizer.encode(text)

    def decode(self, ids: Sequence[int]) -> str:
        return self._chat.tokenizer.decode(ids)

    def close(self) -> None:
        self.engine.close()

    def _generate(self, prompts: Sequence[Prompt], window: range, on_output: OnOutput) -> None:
        ids = {index: self._ids(prompts[index]) for index in window}
        order = [window[place] for place in _order(list(ids.values()))]

        def finished(place: int, completion: Completion) -> None:
            on_output(order[place], self._output(prompts[order[place]], completion))

        params = [self._params(prompts[index], index, len(ids[index])) for index in order]
        self.engine.generate([ids[index] for index in order], params, on_finish=finished)

    def _judge(self, continuations: Sequence[Continuation], on_judged: OnJudged) -> None:
        encoded = encode_pairs(self._chat.tokenizer, continuations)
        for index, (_, tokens) in enumerate(encoded):
            self._room(index, len(tokens) - 1)  # nothing is written after the last one
        single: dict[tuple[int, ...], list[int]] = defaultdict(list)  # context -> those of one token after it
        several: list[int] = []
        for index, (start, tokens) in enumerate(encoded):
            if len(tokens) == start:  # nothing to judge
                on_judged(index, Judged(0.0, 0))
            elif len(tokens) == start + 1:
                single[tuple(tokens[:-1])].append(index)
            else:
                several.append(index)
        self._judge_single(single, encoded, on_judged)
        self._judge_several(several, encoded, on_judged)

    def _ids(self, prompt: Prompt) -> list[int]:
        tokenizer = self._chat.tokenizer
        if not prompt.messages:
            return tokenizer.encode(prompt.text + prompt.prefix, bos=True)
        if prompt.tools:
            ids = render(
                prompt.messages, tokenizer, self._chat.chat_format, tools=prompt.tools, think=prompt.think,
                add_generation_prompt=True,
            ).ids  # fmt: skip
        else:
            ids = prompt_ids(self._chat, prompt.messages, think=prompt.think, own_template=self._own_template)
        return ids + (tokenizer.encode(prompt.prefix, mid_text=True) if prompt.prefix else [])

    def _params(self, prompt: Prompt, index: int, length: int) -> SamplingParams:
        wanted = {
            name: value
            for name in ("temperature", "top_p", "top_k", "repetition_penalty", "seed")
            if (value := getattr(prompt.sampling, name)) is not None
        }
        base = self._chat.params if prompt.messages else SamplingParams(stop_ids=self._chat.params.stop_ids)
        if prompt.sampling.temperature == 0:  # greedy is greedy: no penalties of the checkpoint's own
            base = SamplingParams(stop_ids=base.stop_ids)
        room = min(prompt.max_new_tokens, self._room(index, length, prompt.max_new_tokens))
        return base.evolve(
            **wanted, stop=prompt.stop, max_new_tokens=room, min_new_tokens=0, logprobs=prompt.top_logprobs or None,
            thinking_budget=room if prompt.think else None,
        )  # fmt: skip

    def _output(self, prompt: Prompt, completion: Completion) -> Output:
        message, text = split_answer(
            prompt, completion.content_ids, self._chat.tokenizer, self._chat.chat_format, completion.text
        )
        top: dict[str, float] = {}
        if prompt.top_logprobs and completion.top:
            first = completion.top[0]
            tokens = [self._chat.tokenizer.decode([id], mid_text=True) for id in first.ids]
            for token, value in zip(tokens, first.logprobs, strict=True):
                top.setdefault(token, value)  # the most likely one of those that look the same
        return Output(
            text=text, reasoning=message.reasoning or "", message=message,
            finish_reason=str(completion.finish_reason), tokens=len(completion.ids), top_logprobs=top,
        )  # fmt: skip

    def _room(self, index: int, length: int, wanted: int = 1) -> int:
        """Tokens that fit after so many; `wanted` where the context has no end."""
        limit = self.context
        if limit is not None and length >= limit:
            raise PromptError(
                index, f"{length:,} tokens, but the model's context is {limit:,}: fewer --shots, or --rope-scaling"
            )
        return wanted if limit is None else limit - length

    def _judge_single(
        self, contexts: dict[tuple[int, ...], list[int]], encoded: list[tuple[int, list[int]]], on_judged: OnJudged
    ) -> None:
        """Single tokens after the same context need one forward for all of them."""
        keys = list(contexts)
        keys = [keys[i] for i in _order(keys)]

        def judged(place: int, logprobs: torch.Tensor) -> None:
            for index in contexts[keys[place]]:
                on_judged(index, Judged(float(logprobs[encoded[index][1][-1]]), 1))

        self.engine.next_logprobs(keys, judged)

    def _judge_several(self, indices: Sequence[int], encoded: list[tuple[int, list[int]]], on_judged: OnJudged) -> None:
        order = [indices[i] for i in _order([encoded[index][1] for index in indices])]

        def judged(place: int, logprobs: Sequence[float]) -> None:
            on_judged(order[place], Judged(sum(logprobs), len(logprobs)))

        self.engine.logprobs([encoded[i][1] for i in order], [encoded[i][0] for i in order], on_finish=judged)


def encode_pairs(tokenizer: Tokenizer, continuations: Sequence[Continuation]) -> list[tuple[int, list[int]]]:
    """For each, where the judged tokens begin, and all tokens.

    The two texts are encoded together, as they stand in running text; spaces at the end of the context belong to what
    follows. What is judged are the tokens from where the context's own end (lm-evaluation-harness's rule). Where none
    are left, as the context's last token and the text became one ("Answer:" and "A"), those which differ from the
    context's are: nothing would be certain, and beat every other choice.
    """
    bos = tokenizer.encode("", bos=True)
    pairs = [_move_spaces(one) for one in continuations]
    contexts = list(dict.fromkeys(context for context, _ in pairs))
    alone = dict(zip(contexts, tokenizer.encode_batch(contexts), strict=True))
    wholes = tokenizer.encode_batch(context + text for context, text in pairs)
    found = []
    for (context, text), whole in zip(pairs, wholes, strict=True):
        judged = len(alone[context])
        if text and judged >= len(whole):
            same = itertools.takewhile(lambda two: two[0] == two[1], zip(alone[context], whole, strict=False))
            judged = min(sum(1 for _ in same), len(whole) - 1)
        start, tokens = len(bos) + judged, bos + whole
        if start == 0:  # the first token of a text without a beginning has no probability: one is put there
            beginning = tokenizer.bos_id if tokenizer.bos_id is not None else tokenizer.eos_id
            start, tokens = 1, (tokens if beginning is None else [beginning, *tokens])
        found.append((min(start, len(tokens)), tokens))
    return found


def split_answer(
    prompt: Prompt, ids: Sequence[int], tokenizer: Tokenizer, chat_format: ChatFormat, text: str | None = None
) -> tuple[Message, str]:
    """An answer as a message, and its text.

    Args:
        text: Of the ids, where it is known already, cut at stop texts.
    """
    if text is None:
        text = tokenizer.decode(ids, skip_special=True, mid_text=True)
    if not prompt.messages:
        return Message("assistant", text), text
    message = parse_answer(ids, tokenizer, chat_format)
    if message.tool_calls or message.code is not None or message.reasoning is not None:
        text = message.content
        for stop in prompt.stop:
            text = text.split(stop, 1)[0]
        return message, text
    return Message("assistant", text), text


def fingerprint(path: Path, how: str = "") -> str:
    """Changes with `how` a checkpoint is used and when its files do: of names, sizes, and a few places of each file."""
    digest = hashlib.sha256(how.encode())
    files = [path] if path.is_file() else sorted(file for file in path.iterdir() if file.is_file())
    for file in files:
        size = file.stat().st_size
        digest.update(f"{file.name}:{size};".encode())
        with file.open("rb") as opened:
            for place in range(0, size, max(size // 8, SAMPLED)):
                opened.seek(place)
                digest.update(opened.read(SAMPLED))
    return digest.hexdigest()[:16]


def _windows(lengths: Sequence[int]) -> Iterator[range]:
    """Stretches of what is asked that are handed to the engine together: as ids, a hundred prompts of a million tokens
    would not fit in memory."""
    first, total = 0, 0
    for index, length in enumerate(lengths):
        if total and total + length > CHARACTERS_AT_ONCE:
            yield range(first, index)
            first, total = index, 0
        total += length
    if first < len(lengths):
        yield range(first, len(lengths))


def _order(sequences: Sequence[Sequence[int]]) -> list[int]:
    """Those with the same beginning together, so that its keys and values are still there; long ones first."""
    return sorted(range(len(sequences)), key=lambda i: (*sequences[i][:BEGINNING], -len(sequences[i])))


def _move_spaces(one: Continuation) -> tuple[str, str]:
    bare = one.context.rstrip()
    return bare, one.context[len(bare) :] + one.text
