"""The engine's thread: many askers at once, some of whom leave, ask nonsense, or meet a failure."""

from __future__ import annotations

import asyncio
import gc
import random
import threading
import weakref
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from puyulm.engine.async_engine import AsyncEngine
from puyulm.engine.config import EngineConfig
from puyulm.engine.engine import Engine
from puyulm.engine.params import SamplingParams
from puyulm.engine.request import Request
from puyulm.errors import EngineLost, GenerationError, QueueFull
from puyulm.model.decoder import Decoder
from tests.conftest import tiny_decoder
from tests.waiting import wait_until

GREEDY = SamplingParams(temperature=0, max_new_tokens=12, ignore_eos=True)
MEMORY = 1 << 20


def prompt_of(length: int, seed: int = 0) -> list[int]:
    return torch.randint(3, 128, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.fixture(scope="module")
def model() -> Decoder:
    return tiny_decoder()


@pytest.fixture
def served(model: Decoder) -> Iterator[AsyncEngine]:
    engine = AsyncEngine(Engine(model, config=EngineConfig(memory=MEMORY)), max_waiting=64)
    yield engine
    engine.close()


async def settled(served: AsyncEngine) -> None:
    """Waits until the engine has nothing to do; then no block may be held."""

    def idle() -> bool:
        served.engine.scheduler.check()
        return served.engine.idle

    while not await served.call(idle):
        await asyncio.sleep(0)
    assert await served.call(lambda: served.engine.scheduler.pool.held) == 0
    assert not served._tickets and not served._fresh


def test_everybody_gets_their_own_answer(served: AsyncEngine, model: Decoder) -> None:
    prompts = [prompt_of(length, seed=length) for length in range(1, 40)]
    expected = Engine(model, config=EngineConfig(memory=MEMORY)).generate(prompts, GREEDY)

    async def streamed(prompt: list[int]) -> list[int]:
        return [event.token async for event in served.stream(prompt, GREEDY)]

    async def main() -> None:
        wholes = asyncio.gather(*(served.generate(prompt, GREEDY) for prompt in prompts))
        streams = asyncio.gather(*(streamed(prompt) for prompt in prompts))
        assert [one.ids for one in await wholes] == [one.ids for one in expected]
        assert await streams == [one.ids for one in expected]
        await settled(served)

    asyncio.run(main())


def test_leaving_in_any_way_frees_everything(served: AsyncEngine, model: Decoder) -> None:
    long = GREEDY.evolve(max_new_tokens=400)
    chance = random.Random(0)

    async def impatient(number: int) -> None:
        stream = served.stream(prompt_of(30, number), long)
        async for _ in stream:
            if chance.random() < 0.2:
                break
        await stream.aclose()

    async def cancelled(number: int) -> None:
        task = asyncio.create_task(served.generate(prompt_of(30, number), long))
        for _ in range(chance.randrange(20)):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    async def main() -> None:
        patient = asyncio.create_task(served.generate(prompt_of(9), GREEDY))
        await asyncio.gather(*(impatient(n) for n in range(30)), *(cancelled(n) for n in range(30)))
        alone = Engine(model, config=EngineConfig(memory=MEMORY)).generate([prompt_of(9)], GREEDY)[0]
        assert (await patient).ids == alone.ids
        await settled(served)

    asyncio.run(main())


def test_nonsense_is_refused_and_disturbs_nobody(served: AsyncEngine) -> None:
    async def main() -> None:
        good = asyncio.create_task(served.generate(prompt_of(9), GREEDY))
        for prompt, params, message in (
            ([], GREEDY, "is empty"),
            ([500], GREEDY, "holds the id 500"),
            ([5], GREEDY.evolve(max_new_tokens=10**6), "can never fit"),
        ):
            with pytest.raises(GenerationError, match=message):
                await served.generate(prompt, params)
        assert len((await good).ids) == 12
        await settled(served)

    asyncio.run(main())


def test_too_many_waiting_are_refused(model: Decoder) -> None:
    served = AsyncEngine(Engine(model, config=EngineConfig(memory=MEMORY, max_running=1)), max_waiting=2)

    async def main() -> None:
        results = await asyncio.gather(
            *(served.generate(prompt_of(5, n), GREEDY) for n in range(8)), return_exceptions=True
        )
        refused = [one for one in results if isinstance(one, QueueFull)]
        assert 0 < len(refused) < 8 and len(refused) + sum(not isinstance(one, Exception) for one in results) == 8
        await settled(served)

    asyncio.run(main())
    served.close()


def test_a_failing_step_ends_what_it_worked_on_and_the_engine_goes_on(
    served: AsyncEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = served.engine.runner.run

    def failing(pieces, tables) -> Tensor:  # type: ignore[no-untyped-def]
        if any(piece.request.tokens[0] == 77 for piece in pieces):
            raise RuntimeError("out of memory")
        return run(pieces, tables)

    monkeypatch.setattr(served.engine.runner, "run", failing)

    async def main() -> None:
        with pytest.raises(GenerationError, match="out of memory"):
            await served.generate([77, 5], GREEDY)
        assert len((await served.generate([5], GREEDY)).ids) == 12
        await settled(served)

    asyncio.run(main())


class BadReader:
    """Fails at its third token."""

    text, stopped, stopped_by = "", False, None

    def __init__(self) -> None:
        self.count = 0

    def push(self, id: int, may_stop: bool = True) -> str:
        self.count += 1
        if self.count == 3:
            raise ValueError("cannot read this")
        return ""

    def finish(self) -> str:
        return ""


def test_a_reader_that_fails_ends_its_own_request_alone(served: AsyncEngine) -> None:
    async def main() -> None:
        good = asyncio.create_task(served.generate(prompt_of(9), GREEDY))
        with pytest.raises(GenerationError, match="cannot read this"):
            await served.generate(prompt_of(9), GREEDY, answer=BadReader())
        assert len((await good).ids) == 12
        await settled(served)

    asyncio.run(main())


def test_reading_and_calls_between_steps(served: AsyncEngine) -> None:
    async def main() -> None:
        request = await served.read(prompt_of(5), "logprobs", first_logprob=2)
        assert len(request.prompt_logprobs) == 3
        assert (await served.read([5], "logprobs", first_logprob=1)).prompt_logprobs == []
        assert (await served.read(prompt_of(5), "last")).pooled is not None
        with pytest.raises(ZeroDivisionError):
            await served.call(lambda: 1 // 0)
        await settled(served)

    asyncio.run(main())


def test_closing_ends_what_runs(model: Decoder) -> None:
    served = AsyncEngine(Engine(model, config=EngineConfig(memory=MEMORY)))

    async def main() -> None:
        ticket = await served.open(prompt_of(5), GREEDY.evolve(max_new_tokens=400))
        assert await ticket.next() is not None
        served.close()
        while await ticket.next() is not None:
            pass
        assert ticket.request is not None and ticket.request.finish_reason == "aborted"
        with pytest.raises(GenerationError, match="closed"):
            await served.generate([5], GREEDY)

    asyncio.run(main())


class Occupied:
    """Keeps the engine's thread in a call until it is let go."""

    def __init__(self, served: AsyncEngine) -> None:
        self.inside, self.go_on = threading.Event(), threading.Event()
        self.served = served

    def __call__(self) -> None:
        self.inside.set()
        assert self.go_on.wait(30)

    async def begin(self) -> asyncio.Task[None]:
        task = asyncio.create_task(self.served.call(self))
        await asyncio.to_thread(self.inside.wait, 30)
        return task

    async def close(self) -> asyncio.Task[None]:
        """Closes the engine, which has to wait."""
        closing = asyncio.create_task(asyncio.to_thread(self.served.close))
        while not self.served._closing:
            await asyncio.sleep(0)
        return closing


def test_what_is_asked_while_the_engine_closes_is_refused(model: Decoder) -> None:
    served = AsyncEngine(Engine(model, config=EngineConfig(memory=MEMORY)))
    occupied = Occupied(served)

    async def main() -> None:
        await occupied.begin()
        asked = [asyncio.create_task(served.call(lambda: 5)), asyncio.create_task(served.generate([5], GREEDY))]
        cancelled = asyncio.create_task(served.generate([5], GREEDY))
        await asyncio.sleep(0)
        closing = await occupied.close()
        cancelled.cancel()
        occupied.go_on.set()
        for task in asked:
            with pytest.raises(GenerationError, match="closed"):
                await asyncio.wait_for(task, 30)
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        await closing

    asyncio.run(main())
    served.close()


def test_an_event_loop_that_ends_does_not_end_the_engine(served: AsyncEngine) -> None:
    occupied = Occupied(served)

    async def leave() -> None:
        tasks = [await occupied.begin(), asyncio.create_task(served.generate([5], GREEDY))]
        await asyncio.sleep(0)
        assert not any(task.done() for task in tasks)

    asyncio.run(leave())
    occupied.go_on.set()

    async def main() -> None:
        assert len((await served.generate([5], GREEDY)).ids) == 12
        await settled(served)

    asyncio.run(main())


def test_nobody_waits_for_a_thread_that_has_died(model: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    served = AsyncEngine(Engine(model, config=EngineConfig(memory=MEMORY)))

    async def main() -> None:
        ticket = await served.open(prompt_of(5), GREEDY.evolve(max_new_tokens=400))
        monkeypatch.setattr(served, "_deliver", lambda done: 1 // 0)
        while await ticket.next() is not None:
            pass
        assert ticket.request is not None and ticket.request.finish_reason == "aborted"
        await asyncio.to_thread(wait_until, lambda: not served.alive)
        with pytest.raises(GenerationError, match="closed"):
            await served.generate([5], GREEDY)
        served.give_up(ticket)

    asyncio.run(main())


def test_a_finished_request_is_free_without_the_garbage_collector(served: AsyncEngine) -> None:
    async def main() -> None:
        ticket = await served.open(prompt_of(5), GREEDY)
        while await ticket.next() is not None:
            pass
        request = weakref.ref(ticket.request)
        del ticket
        await served.call(lambda: None)
        assert request() is None

    gc.disable()
    try:
        asyncio.run(main())
    finally:
        gc.enable()


def test_leaving_what_needed_no_step_leaves_others_alone(served: AsyncEngine) -> None:
    async def main() -> None:
        occupied = Occupied(served)
        begun = await occupied.begin()
        nothing = asyncio.create_task(served.read([5], "logprobs", first_logprob=1))
        answer = asyncio.create_task(served.generate([5], GREEDY))
        await asyncio.sleep(0)
        nothing.cancel()
        await asyncio.sleep(0)
        occupied.go_on.set()
        await begun
        assert len((await asyncio.wait_for(answer, 30)).ids) == 12
        await settled(served)

    asyncio.run(main())


def test_a_request_that_cannot_be_taken_out_does_not_end_the_engine(
    served: AsyncEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    abort, failed = served.engine.abort, []

    def failing(request: Request) -> None:
        abort(request)
        if not failed:
            failed.append(request)
            raise KeyError("no such block")

    monkeypatch.setattr(served.engine, "abort", failing)

    async def main() -> None:
        ticket = await served.open(prompt_of(5), GREEDY.evolve(max_new_tokens=400))
        patient = asyncio.create_task(served.generate(prompt_of(9), GREEDY))
        served.give_up(ticket)
        while await ticket.next() is not None:
            pass
        assert len((await asyncio.wait_for(patient, 30)).ids) == 12
        await settled(served)

    asyncio.run(main())
    assert failed and served.alive and "no such block" in caplog.text


def test_those_who_wait_hear_of_an_engine_that_is_lost(model: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    served = AsyncEngine(Engine(model, config=EngineConfig(memory=MEMORY, max_running=1)))
    occupied = Occupied(served)

    def lost() -> None:
        raise EngineLost("a process has ended")

    async def main() -> None:
        running = await served.open(prompt_of(5), GREEDY.evolve(max_new_tokens=400))
        assert await running.next() is not None
        waiting = await served.open(prompt_of(5), GREEDY)
        await occupied.begin()
        monkeypatch.setattr(served.engine, "step", lost)
        late = asyncio.create_task(served.call(lambda: None))
        await asyncio.sleep(0)
        occupied.go_on.set()
        for ticket in (running, waiting):
            while await asyncio.wait_for(ticket.next(), 30) is not None:
                pass
        await asyncio.wait({late}, timeout=30)
        assert late.done()
        with pytest.raises(EngineLost, match="closed"):
            await served.generate([5], GREEDY)

    asyncio.run(main())
