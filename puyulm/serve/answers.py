"""Sequences on their way through the engine, for one request of a client."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

from puyulm.engine.async_engine import Ticket
from puyulm.engine.engine import READING
from puyulm.engine.params import SamplingParams
from puyulm.engine.request import Request, Task, TokenEvent
from puyulm.engine.text import AnswerReader
from puyulm.engine.thinking import ThinkingBudget
from puyulm.serve.errors import ApiError
from puyulm.serve.state import ServerState

_numbers = itertools.count()


class Part(NamedTuple):
    """What has come of one of several answers.

    Attributes:
        number: Which answer.
        tokens: New ones, often one.
        done: Nothing comes after this.
    """

    number: int
    tokens: list[TokenEvent]
    done: bool


@dataclass(frozen=True, kw_only=True)
class Job:
    """A sequence to run; see `Engine.submit`."""

    prompt: Sequence[int]
    params: SamplingParams = READING
    task: Task = "generate"
    first_logprob: int | None = None
    answer: AnswerReader | None = None
    thinking: ThinkingBudget | None = None
    adapter: str | None = None


class Answers:
    """The sequences of one request. Whoever makes it must `close` it, whatever happens: that frees what is unfinished.

    Attributes:
        tickets: In the order in which they were opened.
    """

    def __init__(self, state: ServerState) -> None:
        self.tickets: list[Ticket] = []
        self._state = state
        self._opened: list[Ticket] = []  # in any order, also of an `open` that failed halfway
        self._number = next(_numbers)
        state.active[self._number] = time.monotonic()

    async def open(self, jobs: Sequence[Job]) -> None:
        """Submits sequences, all of them between the same two steps of the engine.

        Raises:
            GenerationError: One cannot be served.
            QueueFull: Too many are waiting.
        """
        tickets = await asyncio.gather(*(self._open(job) for job in jobs), return_exceptions=True)
        for ticket in tickets:
            if isinstance(ticket, BaseException):
                raise ticket
            self.tickets.append(ticket)

    async def _open(self, job: Job) -> Ticket:
        if not self._state.engine.alive:
            raise ApiError("the engine has stopped: the server must be started again", status=503)
        ticket = await self._state.engine.open(
            job.prompt, job.params, task=job.task, first_logprob=job.first_logprob, answer=job.answer,
            thinking=job.thinking, adapter=job.adapter,
        )  # fmt: skip
        self._opened.append(ticket)
        return ticket

    def request(self, index: int) -> Request:
        """One sequence, as the engine knows it."""
        request = self.tickets[index].request
        assert request is not None
        return request

    async def parts(self) -> AsyncIterator[Part]:
        """What comes, of whichever answer.

        Raises:
            ApiError: One of them failed.
        """
        pending = {asyncio.ensure_future(ticket.next()): index for index, ticket in enumerate(self.tickets)}
        try:
            while pending:
                ready, _ = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                for task in ready:
                    index, tokens = pending.pop(task), task.result()
                    if tokens is None:
                        self._raise_error(index)
                    else:
                        pending[asyncio.ensure_future(self.tickets[index].next())] = index
                    yield Part(index, tokens or [], tokens is None)
        finally:
            for task in pending:
                task.cancel()

    async def all(self) -> list[Request]:
        """Waits for all of them. Errors as in `parts`."""
        async for _ in self.parts():
            pass
        return [self.request(index) for index in range(len(self.tickets))]

    def close(self) -> None:
        """Frees what is unfinished, and counts."""
        if self._state.active.pop(self._number, None) is None:
            return
        for ticket in self._opened:
            with suppress(Exception):  # of an engine that is closed: there is nothing to free
                self._state.engine.give_up(ticket)
            if ticket.request is not None:
                self._state.metrics.finished(ticket.request)

    def _raise_error(self, index: int) -> None:
        request = self.request(index)
        if request.error is not None:
            ruled = request.params.grammar is not None and "grammar" in request.error
            raise ApiError(request.error, status=400 if ruled else 500)
        if request.finish_reason == "aborted":
            raise ApiError("the server is ending: the answer was cut short", status=503, retry_after=5)
