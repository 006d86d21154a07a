"""Batches read ahead in a thread, so that a step does not wait for them."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Self

from puyulm.data.packing import PackedBatch
from puyulm.train.course import Course, Skips


class Feed:
    """A context manager that hands out one rank's micro-batches step by step.

    What goes wrong while a step is read ahead is raised, as it is, when that step is asked for.

    Args:
        part, parts: Which part of each global batch.
        ahead: Steps that are read before they are asked for; 0 reads when asked.
    """

    def __init__(self, course: Course, part: int, parts: int, ahead: int) -> None:
        self._course, self._part, self._parts, self._ahead = course, part, parts, ahead
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="feed")
        self._waiting: dict[tuple[int, Skips], Future[list[PackedBatch]]] = {}

    def batches(self, step: int, skips: Skips) -> list[PackedBatch]:
        """The micro-batches of a step; those of the next ones are read from then on."""
        wanted = [(number, skips) for number in range(step, min(step + self._ahead + 1, self._course.steps))]
        for key in self._waiting.keys() - wanted:  # after going back
            self._waiting.pop(key).cancel()
        for key in wanted:
            if key not in self._waiting:
                self._waiting[key] = self._pool.submit(self._course.batches, key[0], self._part, self._parts, skips)
        return self._waiting.pop((step, skips)).result()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)
