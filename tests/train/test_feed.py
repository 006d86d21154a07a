"""Reading ahead: in order, bounded, errors where they belong, and nothing left running."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from puyulm.data.packing import PackedBatch
from puyulm.errors import DataError
from puyulm.train.course import Skips
from puyulm.train.feed import Feed


class Numbers:
    """A course whose batches tell what was asked for; some steps fail, and one waits for `gate`."""

    sources: Sequence[str] = ()
    bits_per_byte_factor = None

    def __init__(self, steps: int = 10, broken: Sequence[int] = (), held: int | None = None) -> None:
        self.steps, self.broken, self.held = steps, broken, held
        self.asked: list[tuple[int, Skips]] = []
        self.arrived = {step: threading.Event() for step in range(steps)}
        self.gate = threading.Event()

    def batches(self, step: int, part: int, parts: int, skips: Skips = ()) -> list[PackedBatch]:
        self.asked.append((step, skips))
        self.arrived[step].set()
        if step == self.held:
            assert self.gate.wait(30)
        if step in self.broken:
            raise DataError(f"shard {step} is damaged")
        tokens = np.array([step, part, parts, *skips])
        return [PackedBatch(tokens, tokens, [len(tokens)], 0)]


def feed_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("feed")]


def tokens(batches: list[PackedBatch]) -> list[int]:
    return list(batches[0].tokens.tolist())


@pytest.mark.parametrize("ahead", [0, 1, 3, 20])
def test_steps_in_order_each_read_once(ahead: int) -> None:
    course = Numbers()
    with Feed(course, 1, 4, ahead) as feed:
        assert [tokens(feed.batches(step, ())) for step in range(10)] == [[step, 1, 4] for step in range(10)]
    assert course.asked == [(step, ()) for step in range(10)]
    assert not feed_threads()


def test_the_next_steps_are_read_while_one_is_taken_and_no_more() -> None:
    course = Numbers()
    with Feed(course, 0, 1, 2) as feed:
        feed.batches(0, ())
        feed.batches(1, ())
        assert course.arrived[3].wait(30)
    assert course.asked == [(0, ()), (1, ()), (2, ()), (3, ())]


def test_an_error_is_raised_as_it_is_at_its_step() -> None:
    course = Numbers(broken=(2,))
    with pytest.raises(DataError, match=r"^shard 2 is damaged$"), Feed(course, 0, 1, 3) as feed:
        assert tokens(feed.batches(0, ())) == [0, 0, 1]
        assert course.arrived[3].wait(30)  # the error has long happened
        assert tokens(feed.batches(1, ())) == [1, 0, 1]
        feed.batches(2, ())
    assert not feed_threads()


class Lazy:
    """A future that runs when its result is wanted."""

    def __init__(self, call: Callable[..., Any], *arguments: Any) -> None:
        self.call, self.arguments, self.cancelled = call, arguments, False

    def result(self) -> Any:
        assert not self.cancelled
        return self.call(*self.arguments)

    def cancel(self) -> None:
        self.cancelled = True


def test_after_going_back_what_waits_to_be_read_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Lazy] = []

    def submit(call: Callable[..., Any], *arguments: Any) -> Lazy:
        made.append(Lazy(call, *arguments))
        return made[-1]

    with Feed(Numbers(), 0, 1, 3) as feed:
        monkeypatch.setattr(feed._pool, "submit", submit)
        for step in range(5):
            feed.batches(step, ())
        assert tokens(feed.batches(2, (2, 5))) == [2, 0, 1, 2, 5]
        assert tokens(feed.batches(3, (2, 5))) == [3, 0, 1, 2, 5]
    given_up = [(future.arguments[0], future.arguments[3]) for future in made if future.cancelled]
    assert given_up == [(5, ()), (6, ()), (7, ())]


def test_an_error_of_data_that_is_left_out_is_not_raised() -> None:
    course = Numbers(broken=(4,))
    with Feed(course, 0, 1, 3) as feed:
        feed.batches(1, ())
        assert course.arrived[4].wait(30)
        course.broken = ()
        assert [tokens(feed.batches(step, (1, 4)))[0] for step in range(1, 10)] == list(range(1, 10))


@pytest.mark.parametrize("kind", [KeyboardInterrupt, RuntimeError])
def test_nothing_is_left_running_whatever_ends_the_run(kind: type[BaseException]) -> None:
    """It waits for what is being read, and gives up the rest."""
    course = Numbers(held=1)
    with pytest.raises(kind), Feed(course, 0, 1, 5) as feed:
        feed.batches(0, ())
        assert course.arrived[1].wait(30)
        course.gate.set()
        raise kind
    assert not feed_threads()


def test_batches_of_the_last_steps() -> None:
    course = Numbers(steps=3)
    with Feed(course, 0, 1, 5) as feed:
        assert [tokens(feed.batches(step, ()))[0] for step in range(3)] == [0, 1, 2]
    assert course.asked == [(0, ()), (1, ()), (2, ())]
