"""Guesses from a small model.

The draft model reads the same blocks as the model itself: block number n of its own cache holds its keys of the tokens
whose keys lie in block n of the model's. So the scheduler, the prefix cache and preemption serve both.
"""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakKeyDictionary

import numpy as np
from torch import Tensor

from puyulm.engine.config import EngineConfig
from puyulm.engine.paged import KVCache
from puyulm.engine.request import Request
from puyulm.engine.runner import Runner
from puyulm.engine.sampler import sample
from puyulm.engine.scheduler import Piece
from puyulm.engine.speculate import NgramSpeculator, Paces, Speculation, Speculator
from puyulm.errors import GenerationError
from puyulm.model.decoder import Decoder


def speculator_for(config: EngineConfig, model: Decoder, num_blocks: int) -> Speculator | None:
    """What an engine of this configuration guesses with.

    Raises:
        GenerationError: The draft model does not fit the model.
    """
    settings = config.speculation
    if settings is None:
        return None
    draft = settings.draft
    if draft is None:
        return NgramSpeculator(settings)
    check_draft(draft, model)
    weight = draft.embed.weight
    cache = KVCache(draft.config, num_blocks, weight.dtype, weight.device, config.kv_type)
    return DraftSpeculator(Runner(draft, cache), settings)


def check_draft(draft: Decoder, model: Decoder) -> None:
    """Raises a GenerationError unless a model can draft for another."""
    own, other = draft.config, model.config
    if own.head != "lm":
        raise GenerationError("the draft model is a reward model, which cannot guess tokens: give a language model")
    if own.vocab_size != other.vocab_size:
        raise GenerationError(
            f"the draft model has {own.vocab_size:,} tokens and the model {other.vocab_size:,}: "
            "they must have the same tokenizer"
        )
    devices = draft.embed.weight.device, model.embed.weight.device
    if devices[0] != devices[1]:
        raise GenerationError(f"the draft model is on {devices[0]} and the model on {devices[1]}: put them on one")


class DraftSpeculator:
    """Guesses what a small model would choose with the same parameters and the same random numbers.

    Its cache may lag behind: while a request gets no guesses, and by the last guess of a step, which is never run.

    Args:
        runner: Of the draft model.
    """

    def __init__(self, runner: Runner, settings: Speculation) -> None:
        self.runner = runner
        self._paces = Paces(settings)
        self._held: WeakKeyDictionary[Request, int] = WeakKeyDictionary()  # tokens whose keys are in the cache

    def propose(self, running: Sequence[Request]) -> None:
        for request, count in self._paces.shares(running):
            request.draft = [0] * count  # to be replaced once the blocks for them are there

    def complete(self, pieces: Sequence[Piece], tables: np.ndarray) -> None:
        behind = [piece for piece in map(self._catching_up, pieces) if piece.count]
        if not behind:
            return
        hidden = self.runner.run(behind, tables)
        ends = np.cumsum([piece.count for piece in behind])
        guessing = [
            (piece.request, int(end) - 1) for piece, end in zip(behind, ends, strict=True) if piece.request.draft
        ]
        if guessing:
            requests, rows = map(list, zip(*guessing, strict=True))
            self._guess(requests, hidden[rows], tables)

    def observe(self, request: Request, proposed: int, accepted: int) -> None:
        self._paces.observe(request, proposed, accepted)

    def _catching_up(self, piece: Piece) -> Piece:
        """What the draft model must run before it can guess: all known tokens that are not in its cache."""
        request, start, count = piece
        held = min(self._held.get(request, start), start)
        end = start + count - len(request.draft)
        # What gets no guesses goes block by block: a forward for each token is what speculation is to save.
        if not request.draft and count == 1 and end - held < self.runner.cache.block_size:
            end = held
        self._held[request] = end
        return Piece(request, held, end - held)

    def _guess(self, requests: list[Request], hidden: Tensor, tables: np.ndarray) -> None:
        """Fills the drafts, one guess for each request at a time. `hidden` is `[len(requests), H]`."""
        samplers = {request: request.sampler.fork() for request in requests if request.sampler is not None}
        depth = 0
        while requests:
            chosen = sample(self.runner.logits(hidden), [samplers[request] for request in requests])
            going_on = []
            for row, request in enumerate(requests):
                if row in chosen.errors:
                    continue  # what is left of the draft is wrong; its rows have been planned for
                request.draft[depth] = chosen.tokens[row]
                if depth + 1 < len(request.draft):
                    going_on.append(request)
            requests = going_on
            if requests:
                step = [Piece(request, len(request.tokens) + depth, 1) for request in requests]
                hidden = self.runner.run(step, tables)
                for request, start, _ in step:
                    self._held[request] = start + 1
            depth += 1
