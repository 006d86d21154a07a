"""What the next forward works on. Numbers only: nothing here knows of tensors.

A step is a list of pieces: of every running sequence its next token, or a chunk of what is left of its prompt, under
one budget of tokens. Sequences that wait are admitted in their order as far as blocks and places last; their prompts'
blocks are taken at once, those of the answer as it grows. When none is left, the sequence admitted last gives its own
back and waits again in front; what it had computed may still be found in the prefix cache.
"""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from puyulm.engine.blocks import BlockPool, Digest
from puyulm.engine.request import Request
from puyulm.errors import GenerationError

LOOK_AHEAD = 64  # waiting requests looked at in a step


class Piece(NamedTuple):
    """Consecutive tokens of one sequence that take part in a step: `count` of them from position `start`."""

    request: Request
    start: int
    count: int  # type: ignore[assignment]  # hides a method of tuples that nobody needs here


@dataclass(frozen=True)
class Limits:
    """How much the scheduler may do at once.

    Attributes:
        num_blocks: Of the key/value cache.
        block_size: Tokens a block.
        max_running: Sequences at once.
        step_tokens: Tokens in one forward; at least `max_running`.
        prefix_cache: Whether sequences with the same beginning share its blocks.
    """

    num_blocks: int
    block_size: int
    max_running: int
    step_tokens: int
    prefix_cache: bool = True

    @property
    def tokens(self) -> int:
        """That the cache holds."""
        return self.num_blocks * self.block_size

    def blocks(self, tokens: int) -> int:
        return -(-tokens // self.block_size)


class Scheduler:
    """Decides and keeps the books; the engine calls `schedule`, runs the pieces, and calls `computed` for each.

    Attributes:
        waiting: Requests without blocks, in order.
        running: Requests with blocks, in the order of their admission.
        tables: `[max_running, W]`, int32: the block table of the request with `row`.
        preemptions: How often a request had to give its blocks back.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.pool = BlockPool(limits.num_blocks)
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        self.tables: npt.NDArray[np.int32] = np.zeros((limits.max_running, 16), dtype=np.int32)
        self.preemptions = 0
        self._rows = list(reversed(range(limits.max_running)))
        # Blocks of prompts that a running request is about to fill: whoever needs the same waits for them.
        self._filling: dict[Digest, Request] = {}

    @property
    def unfinished(self) -> int:
        """Requests that run or wait."""
        return len(self.running) + len(self.waiting)

    def add(self, request: Request) -> None:
        """Puts a request at the end of the queue.

        Raises:
            GenerationError: It can never fit.
        """
        # The last token of an answer is never run, so it needs no place.
        most = max(request.reach - 1, request.prompt_length)
        if self.limits.blocks(most) > self.limits.num_blocks:
            asked = f"a prompt of {request.prompt_length:,} tokens"
            if request.reach > request.prompt_length:
                asked += f" and an answer of up to {request.reach - request.prompt_length:,}"
            raise GenerationError(
                f"{asked} can never fit the key/value cache of {self.limits.tokens:,} tokens: "
                "shorten them, or give the cache more memory"
            )
        self.waiting.append(request)

    def schedule(self) -> list[Piece]:
        """The pieces of the next step; [] when there is nothing to do."""
        budget = self.limits.step_tokens
        pieces: list[Piece] = []
        prompts: list[Request] = []
        size = self.limits.block_size
        number = 0
        while number < len(self.running):  # the list loses its end when blocks run out
            request = self.running[number]
            number += 1
            cached = request.cached
            left = len(request.tokens) - cached
            if left > 1:
                prompts.append(request)
                continue
            count = left
            if request.draft:
                # Guesses may take only what the others' single tokens leave of budget and blocks.
                others = len(self.running) - number
                room = (len(request.blocks) + max(self.pool.free - others, 0)) * size - cached
                count = max(min(left + len(request.draft), budget - others, room), 1)
                del request.draft[count - 1 :]
            if (cached + count + size - 1) // size > len(request.blocks) and not self._grow(request, cached + count):
                break  # it was the last, and has given way itself
            pieces.append(Piece(request, cached, count))
            budget -= count
        for request in prompts:
            count = min(request.pending, budget)
            if count and request.row >= 0:
                pieces.append(Piece(request, request.cached, count))
                budget -= count
        if self.waiting and budget:
            self._admit(pieces, budget)
        return pieces

    def computed(self, request: Request, count: int) -> None:
        """Counts tokens whose keys and values are in the cache from now on."""
        size = self.limits.block_size
        before, request.cached = request.cached // size, request.cached + count
        full = request.cached // size
        if full > before and self.limits.prefix_cache:
            digests = request.digests(full, size)
            for number in range(before, full):
                self.pool.seal(request.blocks[number], digests[number])
                self._filling.pop(digests[number], None)

    def remove(self, request: Request) -> None:
        """Takes a request out, wherever it is; its blocks are free."""
        if request.row >= 0:
            self._release(request)
            self.running.remove(request)
        else:
            try:
                self.waiting.remove(request)
            except ValueError:
                return

    def forget_prefixes(self) -> None:
        """Empties the prefix cache. What runs goes on with what it has, and is not shared."""
        self.pool.forget_all()
        self._filling.clear()

    def check(self) -> None:
        """Raises an AssertionError unless the books agree."""
        self.pool.check([request.blocks for request in self.running])
        assert all(not request.blocks and request.row < 0 for request in self.waiting)
        rows = [request.row for request in self.running]
        assert sorted(rows + self._rows) == list(range(self.limits.max_running))

    def _admit(self, pieces: list[Piece], budget: int) -> None:
        size, looked, passed = self.limits.block_size, 0, []
        while self.waiting and budget and self._rows and looked < LOOK_AHEAD:
            request = self.waiting.popleft()
            looked += 1
            shared, waits = self._find_prefix(request)
            if waits:
                passed.append(request)
                continue
            length = len(request.tokens)
            need = self.limits.blocks(length) - len(shared)
            revived = self.pool.idle(shared)
            # Every running sequence may need a block soon: without some to spare, the newcomer would be thrown out.
            spare = len(self.running) if self.running else 0
            if need + revived + spare > self.pool.free:
                passed.append(request)
                break
            self.pool.share(shared)
            request.blocks = shared + self.pool.take(need)
            request.cached = len(shared) * size
            if request.shared is None:
                request.shared = min(request.cached, request.prompt_length)
                request.times.admitted = time.monotonic()
            request.row = self._rows.pop()
            self._write_table(request, 0)
            self.running.append(request)
            if self.limits.prefix_cache:
                for digest in request.digests(length // size, size)[len(shared) :]:
                    self._filling.setdefault(digest, request)
            count = min(request.pending, budget)
            pieces.append(Piece(request, request.cached, count))
            budget -= count
        self.waiting.extendleft(reversed(passed))

    def _find_prefix(self, request: Request) -> tuple[list[int], bool]:
        """Blocks of its beginning that are there; and whether the next is being filled, so that waiting spares work."""
        if not self.limits.prefix_cache:
            return [], False
        usable = request.shareable
        digests = request.digests(usable // self.limits.block_size, self.limits.block_size)
        shared = self.pool.find(digests)
        waits = len(shared) < len(digests) and digests[len(shared)] in self._filling
        return shared, waits

    def _grow(self, request: Request, tokens: int) -> bool:
        """Takes blocks for a running sequence, from the last admitted ones if need be. False: it was itself the last,
        and waits again."""
        need = self.limits.blocks(tokens) - len(request.blocks)
        while need > self.pool.free:
            victim = self.running.pop()
            self._release(victim)
            victim.cached = 0
            victim.draft = []
            self.waiting.appendleft(victim)
            self.preemptions += 1
            if victim is request:
                return False
        first = len(request.blocks)
        request.blocks += self.pool.take(need)
        self._write_table(request, first)
        return True

    def _release(self, request: Request) -> None:
        if self._filling:
            size = self.limits.block_size
            for digest in request.digests(len(request.tokens) // size, size):
                if self._filling.get(digest) is request:
                    del self._filling[digest]
        self.pool.release(request.blocks)
        request.blocks = []
        self._rows.append(request.row)
        request.row = -1

    def _write_table(self, request: Request, first: int) -> None:
        count = len(request.blocks)
        if count > self.tables.shape[1]:
            wider = np.zeros((self.tables.shape[0], max(count, 2 * self.tables.shape[1])), dtype=np.int32)
            wider[:, : self.tables.shape[1]] = self.tables
            self.tables = wider
        self.tables[request.row, first:count] = request.blocks[first:]
