"""Charts of the demo's report: lines as inline SVG, heat maps as tables."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass, replace

from puyulm.eval.report.charts import Heat, colour
from puyulm.eval.report.terminal import short_length

WIDTH, HEIGHT, LEFT, BOTTOM, EDGE = 760, 300, 56, 28, 12  # pixels


@dataclass(frozen=True)
class Curve:
    """A line of a chart.

    Attributes:
        reach: x and the two ends of an interval, where values have one.
    """

    label: str
    points: Sequence[tuple[float, float]]
    colour: str
    dashed: bool = False
    reach: Sequence[tuple[float, float, float]] = ()


@dataclass(frozen=True)
class Axis:
    """What a chart's axis shows: from one value to another, with labels at some."""

    low: float
    high: float
    ticks: Sequence[tuple[float, str]]


def chart(title: str, curves: Sequence[Curve], *, from_zero: bool = False) -> str:
    """A line chart by step, with a legend and labelled axes."""
    points = [point for curve in curves for point in curve.points]
    if not points:
        return f"<p>{html.escape(title)}: nothing recorded.</p>"
    across = _even(0.0, max(x for x, _ in points) or 1.0)
    return _drawn(title, curves, across, _fitting([y for _, y in points], from_zero))


def chart_by_length(title: str, curves: Sequence[Curve], up: tuple[float, float] | None = None) -> str:
    """A line chart by number of tokens; lengths stand at equal distances.

    Args:
        up: Lowest and highest value; None: those that occur.
    """
    lengths = sorted({x for curve in curves for x, _ in curve.points})
    if len(lengths) < 2:
        return f"<p>{html.escape(title)}: too few lengths for a chart.</p>"
    place = {length: float(number) for number, length in enumerate(lengths)}
    across = Axis(-0.3, len(lengths) - 0.7, [(place[length], short_length(int(length))) for length in lengths])
    placed = [
        replace(
            curve,
            points=[(place[x], y) for x, y in curve.points],
            reach=[(place[x], low, high) for x, low, high in curve.reach],
        )
        for curve in curves
    ]
    values = [y for curve in curves for _, y in curve.points]
    values += [end for curve in curves for _, low, high in curve.reach for end in (low, high)]
    return _drawn(title, placed, across, _fitting(values, False) if up is None else _even(*up))


def heat_map(heat: Heat, corner: str) -> str:
    """Scores between 0 and 1, shown in percent on coloured ground."""
    head = "".join(f"<th>{html.escape(label)}</th>" for label in (corner, *heat.columns))
    rows = []
    for label, scores in zip(heat.rows, heat.cells, strict=True):
        cells = "".join(
            "<td></td>" if score is None else f'<td style="background:{colour(score)}">{100 * score:.0f}</td>'
            for score in scores
        )
        rows.append(f"<tr><th>{html.escape(label)}</th>{cells}</tr>")
    return (
        f"<figure><figcaption>{html.escape(heat.title)}</figcaption><table class='heat'><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(rows)}</tbody></table></figure>"
    )


def _drawn(title: str, curves: Sequence[Curve], across: Axis, up: Axis) -> str:
    def x_of(x: float) -> float:
        return LEFT + (WIDTH - LEFT - EDGE) * (x - across.low) / (across.high - across.low)

    def y_of(y: float) -> float:
        return EDGE + (HEIGHT - BOTTOM - EDGE) * (1 - (y - up.low) / (up.high - up.low))

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(title)}">']
    for y, label in up.ticks:
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - EDGE}" y1="{y_of(y):.1f}" y2="{y_of(y):.1f}" class="grid"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y_of(y) + 4:.1f}" text-anchor="end">{label}</text>')
    for x, label in across.ticks:
        anchor = "start" if x == across.low else "end" if x == across.high else "middle"
        parts.append(f'<text x="{x_of(x):.1f}" y="{HEIGHT - 8}" text-anchor="{anchor}">{label}</text>')
    for curve in curves:
        stroke = f'stroke="{curve.colour}"' + (' stroke-dasharray="6 4"' if curve.dashed else "")
        line = " ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in curve.points)
        parts.append(f'<polyline points="{line}" {stroke}/>')
        parts += [
            f'<line x1="{x_of(x):.1f}" x2="{x_of(x):.1f}" y1="{y_of(low):.1f}" y2="{y_of(high):.1f}" {stroke}/>'
            for x, low, high in curve.reach
        ]
    parts.append("</svg>")
    legend = "".join(
        f'<span><i style="background:{curve.colour}"></i>{html.escape(curve.label)}'
        f"{f' {_number(curve.points[-1][1])}' if curve.points else ''}</span>"
        for curve in curves
    )
    return (
        f"<figure><figcaption>{html.escape(title)}</figcaption>{''.join(parts)}<p class='legend'>{legend}</p></figure>"
    )


def _fitting(values: Sequence[float], from_zero: bool) -> Axis:
    low, high = 0.0 if from_zero else min(values), max(values)
    return _even(low, high if high > low else low + 1)


def _even(low: float, high: float) -> Axis:
    values = [low + (high - low) * place / 4 for place in range(5)]
    return Axis(low, values[-1], [(value, _number(value)) for value in values])


def _number(value: float) -> str:
    whole = value == 0 or abs(value) >= 100 or (abs(value) >= 10 and value == round(value))
    return f"{value:,.0f}" if whole else f"{value:.2f}"
