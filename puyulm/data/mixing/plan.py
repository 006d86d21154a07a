"""How many tokens each phase takes from each group: weights, caps on repetition, and what that leaves short.

Documents of a group are of two lengths, short and long. Group and length have one endless sequence of documents: all of
them in a random order, then all in another, and so on (an epoch each). Phases take consecutive stretches of it. So a
phase's stretch is given by two numbers of tokens, and no document comes a second time before all others have come.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from fractions import Fraction
from typing import Literal

from puyulm.data.mixing.settings import MixSettings, Phase
from puyulm.errors import DataError

Length = Literal["short", "long"]
LENGTHS: tuple[Length, ...] = ("short", "long")


@dataclass(frozen=True)
class Draw:
    """A stretch of the sequence of one group and length, in tokens from its beginning."""

    group: str
    length: Length
    start: int
    stop: int


@dataclass(frozen=True)
class PatternPlan:
    """What one pattern of weights gives: its share, the tokens that makes, and how many it was given in the end."""

    pattern: str
    share: float
    wanted: int
    planned: int


@dataclass(frozen=True)
class PhasePlan:
    """A phase, planned.

    Attributes:
        patterns: In the recipe's order.
        draws: Where the tokens come from, by group and length; none that is empty.
        group_patterns: The pattern of each group that has one.
        shortfall: Tokens that no group may give.
    """

    phase: Phase
    patterns: tuple[PatternPlan, ...]
    draws: tuple[Draw, ...]
    group_patterns: Mapping[str, str]
    shortfall: int


def share_out(total: int, weights: Sequence[float], caps: Sequence[int]) -> list[int]:
    """Divides a number by weights; what is above a cap goes to the others by their weights.

    Returns:
        Whole numbers, none above its cap. Their sum is `total`, or the sum of the caps whose weight is above 0 where
        that is less.
    """
    exact = [Fraction(weight) for weight in weights]
    given = [0] * len(weights)
    open_ = [i for i, weight in enumerate(exact) if weight > 0 and caps[i] > 0]
    left = total
    while open_:
        scale = Fraction(left) / sum(exact[i] for i in open_)
        if not (full := [i for i in open_ if exact[i] * scale >= caps[i]]):
            break
        for i in full:
            given[i] = caps[i]
            left -= caps[i]
        open_ = [i for i in open_ if i not in full]
    if open_:
        shares = {i: exact[i] * scale for i in open_}  # each below its cap, so that rounding up stays within
        for i in open_:
            given[i] = int(shares[i])
        by_fraction = sorted(open_, key=lambda i: (given[i] - shares[i], i))
        for i in by_fraction[: left - sum(given[i] for i in open_)]:
            given[i] += 1
    return given


def plan_phases(settings: MixSettings, available: Mapping[str, Mapping[Length, int]]) -> list[PhasePlan]:
    """Plans all phases, in order.

    Args:
        settings: The phases and the caps.
        available: Group -> tokens of its short and of its long documents.

    Raises:
        DataError: A pattern matches no group.
    """
    used: dict[tuple[str, Length], int] = {(group, length): 0 for group in available for length in LENGTHS}
    plans = []
    for phase in settings.phases:
        members = _members(phase, list(available))
        given = _phase_tokens(phase, members, available, settings, used)
        draws = [Draw(group, length, used[group, length], used[group, length] + tokens)
                 for (group, length), tokens in sorted(given.items()) if tokens]  # fmt: skip
        for draw in draws:
            used[draw.group, draw.length] = draw.stop
        shares = {pattern: weight / sum(phase.weights.values()) for pattern, weight in phase.weights.items()}
        patterns = tuple(
            PatternPlan(pattern, shares[pattern], round(shares[pattern] * phase.tokens),
                        sum(tokens for (group, _), tokens in given.items() if group in groups))
            for pattern, groups in members.items()
        )  # fmt: skip
        by_group = {group: pattern for pattern, groups in members.items() for group in groups}
        plans.append(PhasePlan(phase, patterns, tuple(draws), by_group, phase.tokens - sum(given.values())))
    return plans


def epochs_cap(settings: MixSettings, group: str) -> float:
    """How often a group's documents may be used in all."""
    return next((cap for pattern, cap in settings.max_epochs.items() if fnmatchcase(group, pattern)), 1.0)


def _members(phase: Phase, groups: Sequence[str]) -> dict[str, list[str]]:
    """The groups of each pattern: each belongs to the first that matches it."""
    members: dict[str, list[str]] = {pattern: [] for pattern in phase.weights}
    for group in groups:
        if (first := next((p for p in phase.weights if fnmatchcase(group, p)), None)) is not None:
            members[first].append(group)
    for pattern in phase.weights:
        if not any(fnmatchcase(group, pattern) for group in groups):
            raise DataError(f"phase {phase.name}: no group matches {pattern!r}; the groups are {', '.join(groups)}")
    return members


def _phase_tokens(
    phase: Phase,
    members: Mapping[str, Sequence[str]],
    available: Mapping[str, Mapping[Length, int]],
    settings: MixSettings,
    used: Mapping[tuple[str, Length], int],
) -> dict[tuple[str, Length], int]:
    """Tokens by group and length: the patterns share by weight, a pattern's groups by size, lengths by what is left."""
    given: dict[tuple[str, Length], int] = {}
    for amount, lengths in _amounts(phase):
        left = {
            (group, length): max(int(epochs_cap(settings, group) * available[group][length]) - used[group, length], 0)
            for group in available for length in lengths
        }  # fmt: skip
        room = {group: sum(left[group, length] for length in lengths) for group in available}
        caps = [sum(room[group] for group in groups) for groups in members.values()]
        for (_, groups), tokens in zip(
            members.items(), share_out(amount, [phase.weights[p] for p in members], caps), strict=True
        ):
            sizes = [sum(available[group][length] for length in lengths) for group in groups]
            of_groups = share_out(tokens, sizes, [room[group] for group in groups])
            for group, part in zip(groups, of_groups, strict=True):
                rooms = [left[group, length] for length in lengths]
                for length, number in zip(lengths, share_out(part, rooms, rooms), strict=True):
                    given[group, length] = number
    return given


def _amounts(phase: Phase) -> Iterable[tuple[int, tuple[Length, ...]]]:
    if phase.short_share is None:
        return [(phase.tokens, LENGTHS)]
    short = round(phase.short_share * phase.tokens)
    return [(short, ("short",)), (phase.tokens - short, ("long",))]
