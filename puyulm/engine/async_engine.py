"""The engine for servers: one thread runs it, any number of asyncio tasks ask."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TypeVar

from puyulm.engine.engine import READING, Engine, Prompt
from puyulm.engine.params import SamplingParams
from puyulm.engine.request import Completion, Request, Task, TokenEvent
from puyulm.engine.text import AnswerReader
from puyulm.engine.thinking import ThinkingBudget
from puyulm.errors import EngineLost, GenerationError, QueueFull

T = TypeVar("T")

CLOSED = "the engine is closed"
log = logging.getLogger("puyulm.engine")


class Ticket:
    """One request as a task sees it: events to wait for, and the request itself once it is finished.

    Everything here happens on the event loop.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.request: Request | None = None
        self._events: deque[TokenEvent] = deque()
        self._arrived = asyncio.Event()
        self._done = False

    def deliver(self, events: Sequence[TokenEvent], done: bool) -> None:
        self._events.extend(events)
        self._done = self._done or done
        self._arrived.set()

    async def next(self) -> list[TokenEvent] | None:
        """What has come since the last call; None when nothing comes any more."""
        while not self._events:
            if self._done:
                return None
            self._arrived.clear()
            await self._arrived.wait()
        events = list(self._events)
        self._events.clear()
        return events


class AsyncEngine:
    """Wraps an engine. All methods but `close` are for tasks of event loops.

    Args:
        engine: Nobody else may touch it from now on.
        max_waiting: Requests beyond those that can run at once; more are refused.

    Attributes:
        last_step: When the last step ended, in seconds of `time.monotonic`.
    """

    def __init__(self, engine: Engine, max_waiting: int = 1024) -> None:
        self.engine = engine
        self.max_waiting = max_waiting
        self.last_step = time.monotonic()
        self._commands: deque[Callable[[], None]] = deque()
        self._wake = threading.Condition()
        self._closing = False
        # By the request's number. Its own `on_event` must not hold it, or it would outlive its end.
        self._tickets: dict[int, Ticket] = {}
        self._fresh: dict[int, list[TokenEvent]] = {}
        self._thread = threading.Thread(target=self._work, name="puyulm-engine", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether its thread runs."""
        return self._thread.is_alive()

    async def stream(
        self, prompt: Prompt, params: SamplingParams, *, answer: AnswerReader | None = None, adapter: str | None = None
    ) -> AsyncIterator[TokenEvent]:
        """The tokens of one answer as they come. Whoever leaves early, or is cancelled, ends the work.

        Raises:
            GenerationError: It cannot be served, or failed.
            QueueFull: Too many are waiting.
        """
        ticket = await self.open(prompt, params, answer=answer, adapter=adapter)
        try:
            while (events := await ticket.next()) is not None:
                for event in events:
                    yield event
            _raise_error(ticket)
        finally:
            self.give_up(ticket)

    async def generate(
        self, prompt: Prompt, params: SamplingParams, *, answer: AnswerReader | None = None, adapter: str | None = None
    ) -> Completion:
        """One whole answer (`n` is not looked at: see `SamplingParams.samples`). Errors as in `stream`."""
        return (await self._finish(await self.open(prompt, params, answer=answer, adapter=adapter))).completion()

    async def read(
        self, sequence: Prompt, task: Task, *, first_logprob: int | None = None, adapter: str | None = None
    ) -> Request:
        """Runs a sequence that nothing is sampled from; see `Engine.submit`. Errors as in `stream`."""
        ticket = await self.open(sequence, READING, task=task, first_logprob=first_logprob, adapter=adapter)
        return await self._finish(ticket)

    async def open(
        self, prompt: Prompt, params: SamplingParams, *, task: Task = "generate", first_logprob: int | None = None,
        answer: AnswerReader | None = None, thinking: ThinkingBudget | None = None, adapter: str | None = None,
    ) -> Ticket:  # fmt: skip
        """Submits a request. The caller must end with `give_up`, whatever happens."""
        ticket = Ticket(asyncio.get_running_loop())

        def submit() -> None:
            # Not the queue's length: what has come since the last step may find a place in the next.
            if self.engine.scheduler.unfinished >= self.engine.scheduler.limits.max_running + self.max_waiting:
                raise QueueFull(f"{self.max_waiting} requests are waiting already: try again in a moment")
            request = self.engine.submit(
                prompt, params, task=task, first_logprob=first_logprob, answer=answer,
                thinking=thinking, adapter=adapter, on_event=self._note,
            )  # fmt: skip
            ticket.request = request
            if request.finished:
                _tell(ticket.loop, ticket.deliver, [], True)
            else:
                self._tickets[request.index] = ticket

        try:
            await self.call(submit)
        except asyncio.CancelledError:
            self._put(lambda: self._abort(ticket))
            raise
        return ticket

    def give_up(self, ticket: Ticket) -> None:
        """Frees what a request holds; nothing happens to one that is finished."""
        if ticket.request is None or not ticket.request.finished:
            self._put(lambda: self._abort(ticket))

    async def call(self, function: Callable[[], T]) -> T:
        """Runs a function between two steps, in the engine's thread (to load an adapter, change weights, count).

        Raises:
            EngineLost: The engine is closed, or its thread has died.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def run() -> None:
            try:
                if self._closing:
                    raise EngineLost(CLOSED)
                result = function()
            except BaseException as error:
                _tell(loop, _fail, future, error)
            else:
                _tell(loop, _settle, future, result)

        if not self._put(run):
            raise EngineLost(CLOSED)
        return await future

    def close(self) -> None:
        """Ends the thread after the step in progress; what is unfinished is aborted."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()

    async def _finish(self, ticket: Ticket) -> Request:
        try:
            while await ticket.next() is not None:
                pass
        finally:
            self.give_up(ticket)
        _raise_error(ticket)
        assert ticket.request is not None
        return ticket.request

    # In the engine's thread

    def _work(self) -> None:
        try:
            while self._turn():
                pass
        finally:
            self._end()

    def _turn(self) -> bool:
        """What was asked for, and a step; False once there is no other turn."""
        with self._wake:
            while not self._commands and self.engine.idle and not self._closing:
                self._wake.wait()
            if self._closing:
                return False
            count = len(self._commands)
        for _ in range(count):
            self._obey(self._commands.popleft())
        if not self.engine.idle:
            self._step()
        return True

    def _obey(self, command: Callable[[], None]) -> None:
        """What is asked for in one request's name must not end all the others."""
        try:
            command()
        except EngineLost:
            raise
        except Exception:
            log.exception("a request could not be taken out of the engine")

    def _end(self) -> None:
        """Leaves nobody waiting, be it closed or dying of an error."""
        with self._wake:
            self._closing = True
        left = [lambda ticket=ticket: self._abort(ticket) for ticket in self._tickets.values()]
        for command in (*self._commands, *left):
            with contextlib.suppress(Exception):  # whatever is wrong with the books of an engine that dies
                command()

    def _step(self) -> None:
        try:
            done = self.engine.step()
        except EngineLost:
            raise
        except Exception:  # which is told to those that it ended
            requests = [ticket.request for ticket in self._tickets.values()]
            done = [request for request in requests if request is not None and request.finished]
        self.last_step = time.monotonic()
        self._deliver(done)

    def _note(self, event: TokenEvent) -> None:
        self._fresh.setdefault(event.index, []).append(event)

    def _deliver(self, done: Sequence[Request]) -> None:
        """One message for each event loop, not one for each token."""
        ended = {request.index for request in done}
        messages: dict[asyncio.AbstractEventLoop, list[tuple[Ticket, list[TokenEvent], bool]]] = {}
        for key in {*self._fresh, *ended}:
            ticket = self._tickets.get(key)
            if ticket is not None:
                messages.setdefault(ticket.loop, []).append((ticket, self._fresh.get(key, []), key in ended))
        self._fresh.clear()
        for key in ended:
            self._tickets.pop(key, None)
        for loop, message in messages.items():
            _tell(loop, _deliver_all, message)

    def _abort(self, ticket: Ticket) -> None:
        request = ticket.request
        if request is not None:
            try:
                self.engine.abort(request)
            finally:
                self._fresh.pop(request.index, None)
                self._tickets.pop(request.index, None)
                _tell(ticket.loop, ticket.deliver, [], True)

    def _put(self, command: Callable[[], None]) -> bool:
        """Leaves something to the engine's thread. False: it is closed, and ends all there is by itself."""
        with self._wake:
            if not self._closing:
                self._commands.append(command)
                self._wake.notify()
            return not self._closing


def _tell(loop: asyncio.AbstractEventLoop, function: Callable[..., None], *arguments: object) -> None:
    """Calls a function in an event loop; where that has ended, so has everybody who waited in it."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(function, *arguments)


def _deliver_all(message: Sequence[tuple[Ticket, list[TokenEvent], bool]]) -> None:
    for ticket, events, done in message:
        ticket.deliver(events, done)


def _settle(future: asyncio.Future[T], result: T) -> None:
    if not future.cancelled():
        future.set_result(result)


def _fail(future: asyncio.Future[T], error: BaseException) -> None:
    if not future.cancelled():
        future.set_exception(error)


def _raise_error(ticket: Ticket) -> None:
    if ticket.request is not None and ticket.request.error is not None:
        raise GenerationError(ticket.request.error)
