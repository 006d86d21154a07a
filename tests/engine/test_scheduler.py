"""Blocks and scheduling without a model: after any sequence of events the books agree and everybody is served."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from puyulm.engine.blocks import BlockPool, block_digest, root_digest
from puyulm.engine.params import SamplingParams
from puyulm.engine.request import Request
from puyulm.engine.scheduler import Limits, Scheduler
from puyulm.errors import GenerationError

BLOCK = 4


def request_of(index: int, prompt: list[int], new: int, salt: bytes = b"") -> Request:
    return Request(index, prompt, SamplingParams(max_new_tokens=new), salt=salt)


def limits(num_blocks: int = 12, max_running: int = 3, step_tokens: int = 8, prefix_cache: bool = True) -> Limits:
    return Limits(num_blocks, BLOCK, max_running, step_tokens, prefix_cache)


def next_token(tokens: list[int]) -> int:
    """What the made model says: a function of all tokens before, so that shared blocks must hold the right ones."""
    return hash(tuple(tokens)) % 3


class FakeCache:
    """What a cache would hold: for each slot the tokens up to its own."""

    def __init__(self) -> None:
        self.slots: dict[int, tuple[int, ...]] = {}

    def run(self, scheduler: Scheduler, request: Request, start: int, count: int) -> None:
        for position in range(start, start + count):
            self.slots[self._slot(scheduler, request, position)] = tuple(request.tokens[: position + 1])
        for position in range(start + count):  # all that attention would read is this sequence's own beginning
            assert self.slots[self._slot(scheduler, request, position)] == tuple(request.tokens[: position + 1])

    def _slot(self, scheduler: Scheduler, request: Request, position: int) -> int:
        block = int(scheduler.tables[request.row, position // BLOCK])
        assert block == request.blocks[position // BLOCK]
        return block * BLOCK + position % BLOCK


def run_step(scheduler: Scheduler, cache: FakeCache) -> list[Request]:
    pieces = scheduler.schedule()
    assert sum(piece.count for piece in pieces) <= scheduler.limits.step_tokens
    assert len({piece.request.index for piece in pieces}) == len(pieces)
    finished = []
    for request, start, count in pieces:
        assert count > 0 and start == request.cached
        cache.run(scheduler, request, start, count)
        scheduler.computed(request, count)
        if not request.pending:
            request.accept(next_token(request.tokens), 0.0)
            if request.finished:
                scheduler.remove(request)
                finished.append(request)
    return finished


class Serving(RuleBasedStateMachine):
    """Requests with few different beginnings, steps, and abortions, in any order."""

    @initialize(
        num_blocks=st.integers(6, 14), max_running=st.integers(1, 4), extra=st.integers(0, 8), prefix=st.booleans()
    )
    def begin(self, num_blocks: int, max_running: int, extra: int, prefix: bool) -> None:
        self.scheduler = Scheduler(limits(num_blocks, max_running, max_running + extra, prefix))
        self.cache, self.alive, self.submitted = FakeCache(), {}, 0

    @rule(length=st.integers(1, 30), kind=st.integers(0, 2), new=st.integers(1, 20), salt=st.sampled_from([b"", b"x"]))
    def submit(self, length: int, kind: int, new: int, salt: bytes) -> None:
        request = request_of(self.submitted, [kind] * length, new, salt)
        self.submitted += 1
        fits = -(-max(length + new - 1, length) // BLOCK) <= self.scheduler.limits.num_blocks
        if fits:
            self.scheduler.add(request)
            self.alive[request.index] = request
        else:
            with pytest.raises(GenerationError, match="can never fit"):
                self.scheduler.add(request)

    @rule(times=st.integers(1, 6))
    def step(self, times: int) -> None:
        for _ in range(times):
            for request in run_step(self.scheduler, self.cache):
                del self.alive[request.index]
                self.check_answer(request)

    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        if self.alive:
            request = self.alive.pop(data.draw(st.sampled_from(sorted(self.alive))))
            self.scheduler.remove(request)

    @rule()
    def forget(self) -> None:
        self.scheduler.forget_prefixes()

    @invariant()
    def books_agree(self) -> None:
        if hasattr(self, "scheduler"):
            self.scheduler.check()

    def teardown(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        for _ in range(5000):
            if not self.alive:
                break
            for request in run_step(self.scheduler, self.cache):
                del self.alive[request.index]
                self.check_answer(request)
        assert not self.alive, "some requests are never served"
        assert self.scheduler.pool.held == 0 and not self.scheduler._filling

    def check_answer(self, request: Request) -> None:
        tokens = request.tokens[: request.prompt_length]
        while len(tokens) < request.reach:
            tokens.append(next_token(tokens))
        assert request.tokens == tokens


Serving.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestServing = Serving.TestCase


def test_blocks_are_found_by_all_that_comes_before_them() -> None:
    root = root_digest(0, None)
    assert block_digest(root, [1, 2]) == block_digest(root, [1, 2])
    others = [
        block_digest(root, [1, 3]), block_digest(root_digest(1, None), [1, 2]),
        block_digest(root_digest(0, "a"), [1, 2]), block_digest(block_digest(root, [1, 2]), [1, 2]),
    ]  # fmt: skip
    assert len({block_digest(root, [1, 2]), *others}) == 5


def test_empty_blocks_go_first_then_the_oldest_and_ends_before_beginnings() -> None:
    pool = BlockPool(4)
    first = pool.take(3)
    for number, block in enumerate(first):
        pool.seal(block, bytes([number]))
    pool.release(first)
    assert pool.free == 4 and pool.kept == 3
    assert pool.find([b"\x00", b"\x01", b"\x02"]) == first
    pool.take(2)  # the empty one, and the end of the sequence
    assert pool.find([b"\x00", b"\x01", b"\x02"]) == first[:2]
    pool.share(first[:1])
    assert pool.held == 3 and pool.kept == 1


def test_the_check_finds_a_leak_and_a_double_owner() -> None:
    pool = BlockPool(3)
    blocks = pool.take(2)
    pool.check([blocks])
    with pytest.raises(AssertionError):
        pool.check([])
    with pytest.raises(AssertionError):
        pool.check([blocks, blocks[:1]])


def test_single_tokens_come_before_chunks_of_prompts() -> None:
    scheduler, cache = Scheduler(limits(num_blocks=40)), FakeCache()
    short, long = request_of(0, [1] * 3, 9), request_of(1, [2] * 30, 2)
    scheduler.add(short)
    scheduler.add(long)
    run_step(scheduler, cache)
    assert (short.cached, long.cached) == (3, 5)
    pieces = scheduler.schedule()
    assert [(piece.request.index, piece.count) for piece in pieces] == [(0, 1), (1, 7)]


def test_a_request_is_not_held_up_by_one_that_waits_for_a_prefix() -> None:
    scheduler = Scheduler(limits(num_blocks=40, max_running=4, step_tokens=8))
    for index, prompt in enumerate(([1] * 9, [1] * 9, [2] * 3)):
        scheduler.add(request_of(index, prompt, 2))
    assert [piece.request.index for piece in scheduler.schedule()] == [0]  # takes the whole budget
    scheduler.computed(scheduler.running[0], 8)
    pieces = scheduler.schedule()
    assert [piece.request.index for piece in pieces] == [0, 1, 2]
    assert [piece.start for piece in pieces] == [8, 8, 0]


def test_the_one_admitted_last_gives_way() -> None:
    scheduler, cache = Scheduler(limits(num_blocks=6, step_tokens=20)), FakeCache()
    first, second = request_of(0, [1] * 8, 12), request_of(1, [2] * 7, 10)
    scheduler.add(first)
    scheduler.add(second)
    while not scheduler.preemptions:
        run_step(scheduler, cache)
    assert scheduler.waiting[0] is second and not second.blocks and second.cached == 0 and first.blocks
    while scheduler.running or scheduler.waiting:
        run_step(scheduler, cache)
    assert second.answer_length == 10


@pytest.mark.parametrize("count", [1, 3])
def test_guesses_take_what_others_leave(count: int) -> None:
    scheduler, cache = Scheduler(limits(num_blocks=40, max_running=3, step_tokens=5)), FakeCache()
    requests = [request_of(index, [index], 9) for index in range(count)]
    for request in requests:
        scheduler.add(request)
    run_step(scheduler, cache)
    for request in requests:
        request.draft = [7, 7, 7, 7, 7, 7]
    pieces = scheduler.schedule()
    assert [piece.count for piece in pieces] == {1: [5], 3: [3, 1, 1]}[count]
    assert [len(request.draft) for request in requests] == {1: [4], 3: [2, 0, 0]}[count]


def test_nobody_gives_way_for_guesses() -> None:
    scheduler, cache = Scheduler(limits(num_blocks=6, max_running=2, step_tokens=40, prefix_cache=False)), FakeCache()
    first, second = request_of(0, [1] * 8, 12), request_of(1, [2] * 8, 12)
    for request in (first, second):
        scheduler.add(request)
    run_step(scheduler, cache)
    run_step(scheduler, cache)
    assert (first.cached, second.cached, scheduler.pool.free) == (9, 9, 0)
    first.draft, second.draft = [7] * 6, [7] * 6
    pieces = scheduler.schedule()
    assert [(piece.request.index, piece.count) for piece in pieces] == [(0, 3), (1, 3)]
    assert scheduler.preemptions == 0


def test_guesses_leave_others_a_block_for_their_next_token() -> None:
    scheduler, cache = Scheduler(limits(num_blocks=5, max_running=2, step_tokens=40, prefix_cache=False)), FakeCache()
    first, second = request_of(0, [1] * 7, 12), request_of(1, [2] * 8, 9)
    for request in (first, second):
        scheduler.add(request)
    run_step(scheduler, cache)
    assert scheduler.pool.free == 1
    first.draft = [7] * 6
    assert [(piece.request.index, piece.count) for piece in scheduler.schedule()] == [(0, 1), (1, 1)]
    assert scheduler.preemptions == 0
