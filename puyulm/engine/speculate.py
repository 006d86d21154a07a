"""Speculative decoding: guesses of the next tokens, verified together in one forward.

A forward of a few tokens takes hardly longer than of one, for it waits for the weights. So a cheap guesser proposes
what follows, and the model says at all these places at once what it would have chosen. Tokens are kept up to the first
that differs from its guess. Every token is drawn from the model's own distribution with the request's own random
numbers, so an answer is the same with and without speculation, greedy or drawn, whatever is guessed.

A guess that is certain (n-grams) is right as often as under rejection sampling (Leviathan et al., "Fast inference from
transformers via speculative decoding", 2023). A draft model draws its guesses with the numbers that the model will draw
with (Daliri et al., "Coupling without communication and drafter-invariant speculative decoding", 2024): these are right
somewhat less often than under rejection sampling, where, however, what a seed gives would depend on the draft model,
and on which guesses found room in a step.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol
from weakref import WeakKeyDictionary

import numpy as np

from puyulm.engine.request import Request
from puyulm.engine.sampler import RowSampler
from puyulm.engine.scheduler import Piece
from puyulm.errors import GenerationError

if TYPE_CHECKING:
    from puyulm.model.decoder import Decoder

LONGEST_REST = 16  # tokens without guesses, after guesses that were all wrong
CANDIDATES = 16  # earlier places that are compared with the end of a sequence


@dataclass(frozen=True, kw_only=True)
class Speculation:
    """How an engine guesses.

    Attributes:
        guesses: At most so many for a sequence and step. It adapts: fewer where they are wrong, and for a while none.
        step_guesses: At most so many for all sequences of a step together: with many sequences a forward has no idle
            time to spend on them.
        longest_match, shortest_match: Without a draft model, what followed the last tokens where they stood before is
            guessed; so many of them are compared, and so many must be equal.
        draft: A small model with the same vocabulary; its guesses are taken instead.
    """

    guesses: int = 6
    step_guesses: int = 24
    longest_match: int = 8
    shortest_match: int = 2
    draft: Decoder | None = None

    def __post_init__(self) -> None:
        for name in ("guesses", "step_guesses", "longest_match", "shortest_match"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise GenerationError(f"speculation: {name} must be a positive whole number, not {value!r}")
        if self.shortest_match > self.longest_match:
            raise GenerationError(
                f"speculation: shortest_match ({self.shortest_match}) is above longest_match ({self.longest_match})"
            )


class Speculator(Protocol):
    """Fills `Request.draft`. An engine calls these in turn in every step."""

    def propose(self, running: Sequence[Request]) -> None:
        """Gives requests whose next token is to be chosen their guesses, or room for guesses."""

    def complete(self, pieces: Sequence[Piece], tables: np.ndarray) -> None:
        """Called once the scheduler has decided (and may have cut or taken away guesses), before the forward: the last
        chance to make the guesses.

        Args:
            tables: The scheduler's block tables.
        """

    def observe(self, request: Request, proposed: int, accepted: int) -> None:
        """Tells how a step's guesses for a request came out."""


class Pace:
    """How many guesses a sequence is worth, by how the last ones came out."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.size = min(most, 2)
        self._rest = 0
        self._next_rest = 1

    def allowed(self) -> int:
        """For the next step."""
        if self._rest:
            self._rest -= 1
            return 0
        return self.size

    def observe(self, proposed: int, accepted: int) -> None:
        if accepted == proposed:
            self.size = min(max(self.size, 2 * proposed), self.most)
        elif accepted:
            self.size = min(accepted + 1, self.most)
        else:
            self.size = max(self.size // 2, 1)
        if accepted:
            self._next_rest = 1
        elif proposed == 1:
            self._rest = self._next_rest
            self._next_rest = min(2 * self._next_rest, LONGEST_REST)


class Paces:
    """The pace of each request, and the share of a step that each gets."""

    def __init__(self, settings: Speculation) -> None:
        self._settings = settings
        self._paces: WeakKeyDictionary[Request, Pace] = WeakKeyDictionary()

    def shares(self, running: Sequence[Request]) -> list[tuple[Request, int]]:
        """Requests that may have guesses in the next step, and how many each."""
        asking = []
        for request in running:
            if request.pending != 1 or request.task != "generate":
                continue
            # What the last token of an answer would predict is never asked for.
            room = request.reach - len(request.tokens) - 1
            if room > 0 and (allowed := self._pace(request).allowed()):
                asking.append((request, min(allowed, room)))
        left = self._settings.step_guesses
        if sum(count for _, count in asking) <= left:
            return asking
        shares = []
        for number, (request, count) in enumerate(asking):
            share = min(count, -(-left // (len(asking) - number)))
            if share:
                shares.append((request, share))
                left -= share
        return shares

    def observe(self, request: Request, proposed: int, accepted: int) -> None:
        self._pace(request).observe(proposed, accepted)

    def _pace(self, request: Request) -> Pace:
        pace = self._paces.get(request)
        if pace is None:
            pace = self._paces[request] = Pace(self._settings.guesses)
        return pace


class NgramIndex:
    """Where the last tokens of a growing sequence stood before.

    Places with the same two tokens are chained, latest first, so that a new token costs one entry and a search a
    bounded number of comparisons, however long the sequence.
    """

    def __init__(self) -> None:
        self._pairs: dict[int, int] = {}  # two tokens -> the last place that they end at
        self._singles: dict[int, int] = {}
        self._earlier = array("q")  # place -> the one before with the same two tokens, or -1

    def find(self, tokens: Sequence[int], longest: int, shortest: int) -> int | None:
        """The place after the longest match with the end of the tokens, the latest among equals; None without one.

        Args:
            tokens: Those of the last call and any number more.
            longest, shortest: Tokens that are compared at most, and that must be equal at least.
        """
        self._extend(tokens)
        if len(tokens) < 2:
            return None
        place = self._pairs.get(tokens[-2] << 32 | tokens[-1], -1)
        best, found, tries = 0, -1, 0
        while place >= 0 and tries < CANDIDATES and best < longest:
            length = 2
            while length < longest and place >= length and tokens[place - length] == tokens[-1 - length]:
                length += 1
            if length > best:
                best, found = length, place
            place, tries = self._earlier[place], tries + 1
        if best < 2 or longest < 2:
            best, found = 1, self._singles.get(tokens[-1], -1)
        return found + 1 if found >= 0 and best >= shortest else None

    def _extend(self, tokens: Sequence[int]) -> None:
        """Enters all places but the last, which would only find itself."""
        for place in range(len(self._earlier), len(tokens) - 1):
            last = tokens[place]
            key = tokens[place - 1] << 32 | last if place else -1
            self._earlier.append(self._pairs.get(key, -1))
            self._pairs[key] = place
            self._singles[last] = place


class NgramSpeculator:
    """Guesses that what followed the last tokens before follows them again (prompt lookup)."""

    def __init__(self, settings: Speculation) -> None:
        self._settings = settings
        self._paces = Paces(settings)
        self._indices: WeakKeyDictionary[Request, NgramIndex] = WeakKeyDictionary()

    def propose(self, running: Sequence[Request]) -> None:
        for request, count in self._paces.shares(running):
            index = self._indices.get(request)
            if index is None:
                index = self._indices[request] = NgramIndex()
            start = index.find(request.tokens, self._settings.longest_match, self._settings.shortest_match)
            if start is not None:
                request.draft = allowed(request.sampler, continuation(request.tokens, start, count))

    def complete(self, pieces: Sequence[Piece], tables: np.ndarray) -> None:
        pass

    def observe(self, request: Request, proposed: int, accepted: int) -> None:
        self._paces.observe(request, proposed, accepted)


def continuation(tokens: Sequence[int], start: int, count: int) -> list[int]:
    """`count` tokens from `start` on; where they reach the end they go on with themselves, as what repeats does."""
    copied = list(tokens[start : start + count])
    while len(copied) < count:
        copied += copied[: count - len(copied)]
    return copied


def allowed(sampler: RowSampler | None, draft: list[int]) -> list[int]:
    """The draft up to the first token that the request's grammar has no place for."""
    if sampler is None or not sampler.constrained:
        return draft
    ahead = sampler.fork()
    for number, token in enumerate(draft):
        try:
            ahead.record(token)
        except GenerationError:
            return draft[:number]
    return draft
