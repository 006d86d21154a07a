"""A flow diagram: what stays runs from left to right, what is dropped leaves downward; widths are to scale."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from puyulm.data.report.visible import spelled

HEIGHT = 190.0  # of the largest flow
MIN_WIDTH = 1100.0
MAX_FAMILIES = 4  # of drops that a stage shows; smaller ones are "other"
TINY = 0.004  # of the largest flow: smaller drops are "other" too
NODE = 7.0
_RADIUS = 12.0
_GAP = 16.0
_ROW = 31.0
_INDENT = 4.0  # of labels, from the thin ribbon left of them
_TOP = 44.0
_OTHER = "other"


@dataclass(frozen=True)
class Drop:
    """What leaves a stage.

    Attributes:
        name: The family of reasons.
        amount: Documents or bytes.
        colour: Number of its colour; -1 for none of its own.
    """

    name: str
    amount: float
    colour: int


@dataclass(frozen=True)
class FlowStage:
    """One stage: what comes in, what stays, what leaves."""

    name: str
    amount_in: float
    amount_out: float
    drops: tuple[Drop, ...]


@dataclass(frozen=True)
class Ribbon:
    """A drawn flow: its outline, its label's lines and place."""

    path: str
    colour: int
    name: str
    amount: str
    x: float
    y: float
    title: str


@dataclass(frozen=True)
class Node:
    """A drawn stage: a bar with two lines above it."""

    x: float
    height: float
    name: str
    amount: str
    title: str


@dataclass(frozen=True)
class Flow:
    """A diagram, ready to draw; `bands` are the outlines of what stays."""

    width: float
    height: float
    top: float
    nodes: tuple[Node, ...]
    bands: tuple[str, ...]
    ribbons: tuple[Ribbon, ...]


def draw_flow(stages: Sequence[FlowStage], said: Callable[[float], str]) -> Flow:
    """Lays out a diagram.

    Args:
        stages: In order; at least one.
        said: A figure as text ("1.2 M").
    """
    largest = max([*(stage.amount_in for stage in stages), *(stage.amount_out for stage in stages), 1])
    scale = HEIGHT / largest
    shown = [_merge_tiny(stage.drops, TINY * largest) for stage in stages]
    widths = [_column_width(stage, drops, scale, said) for stage, drops in zip(stages, shown, strict=True)]
    end_width = _text_width(max(said(stages[-1].amount_out), "kept", key=_text_width)) + NODE + _GAP
    spare = max(MIN_WIDTH - sum(widths) - end_width, 0) / len(stages)
    nodes, bands, ribbons = [], [], []
    x = 2.0
    for number, (stage, drops, width) in enumerate(zip(stages, shown, widths, strict=True)):
        entering = _thick(stage.amount_in, scale)
        height = max(entering, _thick(stage.amount_out, scale))
        nodes.append(Node(x, height, shortened(stage.name), said(stage.amount_in),
                          f"{stage.name}: {said(stage.amount_in)} in, {said(stage.amount_out)} kept"))  # fmt: skip
        after = stages[number + 1].amount_in if number + 1 < len(stages) else stage.amount_out
        bands.append(_band(x + NODE, x + width + spare, _thick(stage.amount_out, scale), _thick(after, scale)))
        ribbons += _ribbons(stage, drops, x, entering, scale, said)
        x += width + spare
    last = stages[-1].amount_out
    nodes.append(Node(x, _thick(last, scale), "kept", said(last), f"kept in the end: {said(last)}"))
    rows = max((len(drops) for drops in shown), default=0)
    return Flow(x + end_width, _TOP + HEIGHT + _RADIUS + 12 + rows * _ROW + 8, _TOP, tuple(nodes), tuple(bands),
                tuple(ribbons))  # fmt: skip


def shortened(name: str, cells: int = 22) -> str:
    """A name that takes at most about `cells` letters' room, its odd characters spelled out."""
    name = " ".join(spelled(name).split()) or "(no name)"
    if _cells(name) <= cells:
        return name
    while name and _cells(name) > cells - 1:
        name = name[:-1]
    return name + "…"


def _merge_tiny(drops: Sequence[Drop], least: float) -> list[Drop]:
    """The drops to show, smallest first: those that are too small to see, or too many, as one."""
    ordered = sorted((drop for drop in drops if drop.amount > 0), key=lambda drop: (-drop.amount, drop.name))
    large = [drop for drop in ordered[:MAX_FAMILIES] if drop.amount >= least]
    rest = ordered[len(large) :]
    if len(rest) == 1 and len(large) < MAX_FAMILIES:
        large, rest = [*large, *rest], []
    if rest:
        large.append(Drop(_OTHER, sum(drop.amount for drop in rest), -1))
    return sorted(large, key=lambda drop: (drop.amount, drop.name))


def _column_width(stage: FlowStage, drops: Sequence[Drop], scale: float, said: Callable[[float], str]) -> float:
    offset = NODE + 4 + _RADIUS
    width = max(_text_width(shortened(stage.name)) * 1.08, _text_width(said(stage.amount_in))) + _GAP
    for drop in drops:
        label = max(_text_width(shortened(drop.name)), _text_width(_amount(drop, stage, said)))
        width = max(width, offset + max(label + _INDENT, _thick(drop.amount, scale)) + _GAP)
        offset += _thick(drop.amount, scale) + 1
    return max(width, offset + _GAP)


def _ribbons(
    stage: FlowStage, drops: Sequence[Drop], x: float, bottom: float, scale: float, said: Callable[[float], str]
) -> list[Ribbon]:
    """Quarter turns around one centre: the lowest part of the band turns first and ends deepest."""
    centre_x, centre_y = x + NODE + 4, bottom + _RADIUS
    radius = _RADIUS
    ribbons = []
    for position, drop in enumerate(drops):
        thick = _thick(drop.amount, scale)
        outer, left = radius + thick, centre_x + radius
        end = HEIGHT + _RADIUS + 12 + (len(drops) - 1 - position) * _ROW
        path = (
            f"M{x + NODE:.1f} {centre_y - outer:.1f}H{centre_x:.1f}"
            f"A{outer:.1f} {outer:.1f} 0 0 1 {left + thick:.1f} {centre_y:.1f}V{end:.1f}H{left:.1f}V{centre_y:.1f}"
            f"A{radius:.1f} {radius:.1f} 0 0 0 {centre_x:.1f} {centre_y - radius:.1f}H{x + NODE:.1f}Z"
        )
        amount = _amount(drop, stage, said)
        ribbons.append(Ribbon(path, drop.colour, shortened(drop.name), amount,
                              left + (_INDENT if position else 0), end,
                              f"{drop.name}: {amount} of {stage.name}"))  # fmt: skip
        radius = outer + 1
    return ribbons


def _amount(drop: Drop, stage: FlowStage, said: Callable[[float], str]) -> str:
    from puyulm.data.report.numbers import share

    return f"{said(drop.amount)} · {share(drop.amount, stage.amount_in)}"


def _band(left: float, right: float, thick_left: float, thick_right: float) -> str:
    return f"M{left:.1f} 0H{right:.1f}V{thick_right:.1f}L{left:.1f} {thick_left:.1f}Z"


def _thick(amount: float, scale: float) -> float:
    return max(amount * scale, 1.0) if amount > 0 else 0.0


def _text_width(text: str) -> float:
    """Pixels that a text takes at 12 pixels of height, a little too many rather than too few."""
    return _cells(text) * 6.7


def _cells(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(c) in "WF" else 0 if unicodedata.combining(c) else 1 for c in text)
