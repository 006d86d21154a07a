"""Texts that just fit a length, counted in a model's tokens.

Pieces are encoded one by one, once, and their counts added up: that tells how many fit. Counts of pieces do not add up
exactly in every tokenizer, so the finished text is counted as a whole, and a few pieces are put on or taken off.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from puyulm.errors import DataError
from puyulm.eval.source import SourceContext

Count = Callable[[str], int]
PROBES = 24


def counter(context: SourceContext, name: str) -> Count:
    """Counts a text's tokens.

    Raises:
        DataError: There is no model to count with.
    """
    model = context.model
    if model is None:
        raise DataError(f"{name}: its texts are measured in a model's tokens, but there is no model")
    return lambda text: len(model.encode(text))


def number_options(context: SourceContext, name: str, option: str, default: Sequence[int], least: int = 1) -> list[int]:
    """An option that is a list of whole numbers, or one.

    Raises:
        DataError: It is not.
    """
    value = context.options.get(option, default)
    values = list(value) if isinstance(value, Sequence) and not isinstance(value, str) else [value]
    if not values or any(not isinstance(one, int) or isinstance(one, bool) or one < least for one in values):
        raise DataError(f"{name}: {option} must be whole numbers from {least} on, not {value!r}")
    if len(set(values)) < len(values):
        raise DataError(f"{name}: {option} has a number twice: {value!r}")
    return values


def number_option(context: SourceContext, name: str, option: str, default: int, least: int = 1) -> int:
    """An option that is a whole number."""
    values = number_options(context, name, option, [default], least)
    if len(values) != 1:
        raise DataError(f"{name}: {option} must be one number, not {values}")
    return values[0]


class Pieces:
    """Texts laid end to end, taken from a source as they are needed, each counted once.

    Args:
        source: Pieces without end.
        joint: What is between them.
    """

    def __init__(self, source: Iterator[str], count: Count, joint: str) -> None:
        self.joint = joint
        self._source, self._count = source, count
        self._texts: list[str] = []
        self._ends: list[int] = []  # tokens up to the end of each
        self._known: dict[str, int] = {}

    def fitting(self, room: int) -> int:
        """How many have at most `room` tokens together."""
        self._take(lambda: bool(self._ends) and self._ends[-1] > room)
        return bisect.bisect_right(self._ends, room)

    def first(self, number: int) -> list[str]:
        """The first ones."""
        self._take(lambda: len(self._texts) >= number)
        return self._texts[:number]

    def mean(self) -> float:
        """Tokens of a piece, on average."""
        self.first(1)
        return self._ends[-1] / len(self._ends)

    def _take(self, enough: Callable[[], bool]) -> None:
        while not enough():
            text = next(self._source)
            if text not in self._known:
                extra = self._count(self.joint) if self.joint.strip(" ") else 0
                self._known[text] = max(self._count(text) + extra, 1)
            self._texts.append(text)
            self._ends.append((self._ends[-1] if self._ends else 0) + self._known[text])


@dataclass(frozen=True)
class Filled:
    """A text, how many pieces are in it, and its tokens."""

    text: str
    pieces: int
    tokens: int


def fill(build: Callable[[int], str], count: Count, room: int, guess: int, each: float, what: str) -> Filled:
    """The text of the most pieces that fit, or nearly so (a piece, or 0.2 % of the room, may be left free).

    Args:
        build: Number of pieces -> text; more pieces never make it shorter.
        room: Tokens.
        guess: Pieces that should fit.
        each: Tokens of a piece, about.
        what: For the error message.

    Returns:
        Never more than `room` tokens.

    Raises:
        DataError: Not even the text without pieces fits.
    """
    best: Filled | None = None
    low, high, number, before = -1, math.inf, max(guess, 0), (0, 0)
    for _ in range(PROBES):
        text = build(number)
        used = count(text)
        if used <= room:
            best, low = Filled(text, number, used), number
            if room - used < max(each, room / 500):
                break
        else:
            high = number
        if before[0] and number != before[0] and used != before[1]:
            each = (used - before[1]) / (number - before[0])
        before = (number, used)
        number = int(min(max(number + math.floor((room - used) / each), low + 1), high - 1))
        if number <= low or number < 0:
            break
    if best is None:
        text = build(0)
        if (used := count(text)) > room:
            raise DataError(f"{what}: the length is too short: {used} tokens are needed, and {room} are there")
        return Filled(text, 0, used)
    return best


def insert(pieces: Sequence[str], needles: Sequence[str], depths: Sequence[float]) -> list[str]:
    """Pieces with each needle at its depth, in percent of the pieces; needles at one place keep their order."""
    placed: list[str] = []
    start = 0
    for depth, _, needle in sorted(zip(depths, range(len(needles)), needles, strict=True)):
        place = round(len(pieces) * depth / 100)
        placed += [*pieces[start:place], needle]
        start = place
    return [*placed, *pieces[start:]]
