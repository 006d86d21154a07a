"""A server whose model says what a test wrote: real requests through a real engine, whose tokens are exchanged."""

from __future__ import annotations

import threading
from collections import deque
from typing import Any

from puyulm.engine.async_engine import Ticket
from puyulm.engine.params import SamplingParams
from puyulm.engine.text import AnswerReader
from puyulm.serve.state import ServerState

PAUSE = "\f"  # in a script: wait until the test lets the answer go on


class Script:
    """What comes next, for each request one text with literal markers.

    Attributes:
        asked: The prompts, decoded.
        params: Of the requests.
    """

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.params: list[SamplingParams] = []
        self.answers: deque[str] = deque()
        self._go = threading.Semaphore(0)

    def say(self, *answers: str) -> None:
        self.answers.extend(answers)

    def go_on(self, times: int = 1) -> None:
        """Past the next pause."""
        for _ in range(times):
            self._go.release()

    def prepare(self, state: ServerState) -> None:
        """For `servers.running`."""
        tokenizer, really_open = state.tokenizer, state.engine.open

        async def open(prompt: Any, params: SamplingParams, *, answer: AnswerReader, **options: Any) -> Ticket:
            self.asked.append(tokenizer.decode(prompt, skip_special=False))
            self.params.append(params)
            pieces = [tokenizer.encode_markup(piece) for piece in self.answers.popleft().split(PAUSE)]
            spoken = Spoken(answer, pieces, self._go)
            params = params.evolve(ignore_eos=True, stop_ids=(), thinking_budget=None)
            return await really_open(prompt, params, answer=spoken, **(options | {"thinking": None}))

        state.engine.open = open  # type: ignore[method-assign]


class Spoken:
    """Gives its own ids to an answer, whatever was sampled."""

    def __init__(self, answer: AnswerReader, pieces: list[list[int]], go: threading.Semaphore) -> None:
        self._answer, self._pieces, self._go = answer, pieces, go

    @property
    def text(self) -> str:
        return self._answer.text

    @property
    def stopped(self) -> bool:
        return self._answer.stopped or self._pieces == [[]]

    @property
    def stopped_by(self) -> str | None:
        return self._answer.stopped_by

    def push(self, id: int, may_stop: bool = True) -> str:
        if not self._pieces[0]:
            # In the engine's thread. A test that fails must not hold it for ever.
            if not self._go.acquire(timeout=0.02):
                return ""
            self._pieces.pop(0)
        return self._answer.push(self._pieces[0].pop(0), may_stop)

    def finish(self) -> str:
        return self._answer.finish()
