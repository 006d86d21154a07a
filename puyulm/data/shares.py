"""Rows divided among sources by weights: whose a row is follows from its number alone, in whole numbers.

The sources are the leaves of a binary tree. Of the first `n` rows of a fork, the nearest whole number to
`n * a / (a + b)` goes to its one side, of weight a, the others to the other side, of weight b; so a row's source is
found by walking down from the root. A fork errs by half a row, and hands down in proportion what it was given too many
or too few. The tree is Huffman's (1952; the two lightest join first): above a leaf of weight w the weights are at least
w, 2w, 3w, 5w, ... So a source is never further than (1 + 1/1 + 1/2 + 1/3 + 1/5 + ...) / 2 < 1.7 rows from its exact
share, however many sources and rows there are; with two sources it is half a row.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from puyulm.errors import DataError


@dataclass(frozen=True)
class _Fork:
    """Two parts of a tree, and the weight of the first among that of both."""

    first: _Fork | int
    second: _Fork | int
    weight: int
    total: int

    def rows_of_first(self, rows: int) -> int:
        """How many of the fork's first `rows` go to its first part: the nearest whole number."""
        return (2 * rows * self.weight + self.total) // (2 * self.total)


class Shares:
    """Whose each row of an endless sequence is.

    Args:
        weights: One a source, 0 or more, as ratios; taken as they are written in decimals, and exactly.
        keys: Different names of the sources: the rows do not depend on the order in which the sources are given.

    Raises:
        DataError: A weight is negative or not finite, or none is above 0.
    """

    def __init__(self, weights: Sequence[float], keys: Sequence[str]) -> None:
        if not weights or not all(math.isfinite(weight) and weight >= 0 for weight in weights) or not any(weights):
            shown = ", ".join(f"{weight:g}" for weight in weights) or "none"
            raise DataError(f"the weights of a mixture must be 0 or more, and one above 0, found {shown}")
        self._count = len(weights)
        self._tree = _tree(_whole(weights), keys)

    def counts(self, rows: int) -> list[int]:
        """Rows of each source among the first `rows`."""
        counts, waiting = [0] * self._count, [(self._tree, rows)]
        while waiting:
            part, number = waiting.pop()
            if isinstance(part, int):
                counts[part] = number
            else:
                of_first = part.rows_of_first(number)
                waiting += [(part.first, of_first), (part.second, number - of_first)]
        return counts

    def find(self, row: int) -> tuple[int, int]:
        """The source of a row, and how many rows of this source come before it."""
        part = self._tree
        while not isinstance(part, int):
            of_first = part.rows_of_first(row)
            if part.rows_of_first(row + 1) > of_first:
                part, row = part.first, of_first
            else:
                part, row = part.second, row - of_first
        return part, row


def _whole(weights: Sequence[float]) -> list[int]:
    """The weights as whole numbers of the same ratios."""
    exact = [Fraction(str(float(weight))) for weight in weights]
    multiple = math.lcm(*(weight.denominator for weight in exact))
    whole = [int(weight * multiple) for weight in exact]
    divisor = math.gcd(*whole)
    return [weight // divisor for weight in whole]


def _tree(weights: Sequence[int], keys: Sequence[str]) -> _Fork | int:
    parts: list[tuple[int, str, _Fork | int]]
    parts = [(weight, key, i) for i, (weight, key) in enumerate(zip(weights, keys, strict=True)) if weight]
    heapq.heapify(parts)
    while len(parts) > 1:
        (light, key, first), (heavy, other, second) = heapq.heappop(parts), heapq.heappop(parts)
        fork = _Fork(first, second, light, light + heavy)
        heapq.heappush(parts, (light + heavy, min(key, other), fork))
    return parts[0][2]
