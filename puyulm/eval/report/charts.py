"""What is drawn: places and colours, as plain data for the page's template."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from puyulm.eval.report.samples import Point
from puyulm.eval.report.terminal import short_length
from puyulm.eval.results import RULER_THRESHOLD, Result

# The six dimensions of the InternLM2 report (section 5), and the benchmarks' that they take in.
DIMENSIONS = {
    "Exams": ("exam",),
    "Language and knowledge": ("knowledge",),
    "Reasoning and mathematics": ("reasoning", "mathematics"),
    "Coding": ("code",),
    "Long context": ("long context",),
    "Tools": ("tools",),
}
OTHERS = {"Instructions": ("instruction",), "Science": ("science",), "Preference": ("preference",), "Text": ("text",)}
SCALE = ((196, 78, 82), (236, 196, 104), (88, 168, 130))  # of nothing, half, all
RADIUS, LINE = 130.0, 17.0
CURVE = (560.0, 250.0)
DEPTH_STEPS = 20  # rows of a heat map, at most


@dataclass(frozen=True)
class Axis:
    """A dimension: the lines of its label, where it ends, where the label begins, and to which side it stands."""

    lines: tuple[str, ...]
    end: tuple[float, float]
    label: tuple[float, float]
    anchor: str


@dataclass(frozen=True)
class Radar:
    """A polygon a run over dimensions.

    Attributes:
        rings: Points of the grid at 25, 50, 75 and 100 %.
        shapes: Points of each run, and its score on each axis (None: none).
    """

    axes: tuple[Axis, ...]
    rings: tuple[str, ...]
    shapes: tuple[tuple[str, tuple[float | None, ...]], ...]


@dataclass(frozen=True)
class Heat:
    """Scores by two things.

    Attributes:
        title: Which part of the benchmark it is; "": all.
        columns, rows: Labels.
        cells: A row of scores (None: nothing was asked there) for each label.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[str, ...]
    cells: tuple[tuple[float | None, ...], ...]


@dataclass(frozen=True)
class Line:
    """A run's scores by length: x, y, and y of the interval's ends of each point, and what to say of it."""

    points: tuple[tuple[float, float, float, float, str], ...]

    @property
    def path(self) -> str:
        return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y, *_ in self.points)


@dataclass(frozen=True)
class Curve:
    """Scores by length of several runs; `threshold` is the height of RULER's."""

    ticks: tuple[tuple[float, str], ...]
    lines: tuple[Line | None, ...]
    threshold: float | None


def dimension_means(results: Sequence[Result]) -> dict[str, float]:
    """Mean score of the benchmarks of each of the report's dimensions; only shares of right answers count."""
    means = {}
    for name, kinds in DIMENSIONS.items():
        found = [one.scores.main.value for one in results if one.dimension in kinds and one.percent]
        if found := [value for value in found if math.isfinite(value)]:
            means[name] = sum(found) / len(found)
    return means


def draw_radar(runs: Sequence[Sequence[Result]]) -> Radar | None:
    """Of runs' results; None where there are fewer than three dimensions."""
    means = [dimension_means(results) for results in runs]
    names = [name for name in DIMENSIONS if any(name in own for own in means)]
    if len(names) < 3:
        return None
    angles = [2 * math.pi * place / len(names) - math.pi / 2 for place in range(len(names))]

    def at(angle: float, share: float) -> tuple[float, float]:
        return RADIUS * share * math.cos(angle), RADIUS * share * math.sin(angle)

    def polygon(shares: Sequence[float]) -> str:
        places = [at(angle, share) for angle, share in zip(angles, shares, strict=True)]
        return " ".join(f"{x:.1f},{y:.1f}" for x, y in places)

    axes = []
    for name, angle in zip(names, angles, strict=True):
        (x, y), (label_x, label_y) = at(angle, 1), at(angle, 1.1)
        anchor = "middle" if abs(label_x) < 20 else "start" if label_x > 0 else "end"
        first, _, rest = name.partition(" and ")
        lines = (first, f"and {rest}") if rest else (name,)
        if label_y < -0.9 * RADIUS:
            label_y -= LINE * len(lines)
        elif label_y > 0.9 * RADIUS:
            label_y += LINE / 2
        axes.append(Axis(lines, (x, y), (label_x, label_y), anchor))
    return Radar(
        axes=tuple(axes), rings=tuple(polygon([share] * len(names)) for share in (0.25, 0.5, 0.75, 1.0)),
        shapes=tuple(
            (polygon([own.get(name, 0.0) for name in names]), tuple(own.get(name) for name in names)) for own in means
        ),
    )  # fmt: skip


def needle_maps(points: Sequence[Point]) -> list[Heat]:
    """Depth (percent) by length, a map for each kind of needle; none where samples have no depth."""
    if not points or any(one.depth is None or one.length is None for one in points):
        return []
    by_kind: dict[str, dict[tuple[float, int], list[float]]] = defaultdict(lambda: defaultdict(list))
    many = len({one.depth for one in points}) > DEPTH_STEPS + 1
    for one in points:
        assert one.depth is not None and one.length is not None
        by_kind[kind_of(one.subset, one.length)][_near(one.depth, many), one.length].append(one.score)
    found = []
    for kind, cells in by_kind.items():
        depths, lengths = sorted({depth for depth, _ in cells}), sorted({length for _, length in cells})
        found.append(Heat(
            kind, tuple(map(short_length, lengths)), tuple(f"{depth:.3g} %" for depth in depths),
            tuple(tuple(_mean(cells.get((depth, length))) for length in lengths) for depth in depths),
        ))  # fmt: skip
    return found


def task_map(points: Sequence[Point]) -> Heat | None:
    """Subset by length; None where samples have no lengths."""
    cells: dict[tuple[str, int], list[float]] = defaultdict(list)
    for one in points:
        if one.length is None:
            return None
        cells[kind_of(one.subset, one.length), one.length].append(one.score)
    if not cells:
        return None
    kinds, lengths = dict.fromkeys(kind for kind, _ in cells), sorted({length for _, length in cells})
    return Heat("", tuple(map(short_length, lengths)), tuple(kind or "all" for kind in kinds),
                tuple(tuple(_mean(cells.get((kind, length))) for length in lengths) for kind in kinds))  # fmt: skip


def draw_curve(results: Sequence[Result | None]) -> Curve | None:
    """Score by length of several runs of one benchmark; None where none has two lengths."""
    lengths = sorted({length for result in results if result is not None for length in result.scores.lengths})
    if len(lengths) < 2:
        return None
    width, height = CURVE
    across = {length: width * (place + 0.5) / len(lengths) for place, length in enumerate(lengths)}

    def line(result: Result | None) -> Line | None:
        if result is None or not result.scores.lengths:
            return None
        places = []
        for length, one in sorted(result.scores.lengths.items()):
            low, high = (one.low, one.high) if math.isfinite(one.low) else (one.value, one.value)
            says = f"{short_length(length)}: {result.shown(one.value)}, {one.count:,} questions"
            y, bottom, top = (height * (1 - share) for share in (one.value, low, high))
            places.append((across[length], y, bottom, top, says))
        return Line(tuple(places))

    ruler = any(result is not None and result.name == "ruler" for result in results)
    return Curve(
        tuple((across[length], short_length(length)) for length in lengths), tuple(map(line, results)),
        height * (1 - RULER_THRESHOLD) if ruler else None,
    )  # fmt: skip


def colour(score: float | None) -> str:
    """Of a score between 0 and 1, as #rrggbb."""
    if score is None or not math.isfinite(score):
        return "transparent"
    red, green, blue = colour_parts(score)
    return f"#{red:02x}{green:02x}{blue:02x}"


def colour_parts(score: float) -> tuple[int, int, int]:
    """Red, green and blue between 0 and 255."""
    place = min(max(score, 0.0), 1.0) * 2
    first = min(int(place), 1)
    pairs = zip(SCALE[first], SCALE[first + 1], strict=True)
    red, green, blue = (round(a + (b - a) * (place - first)) for a, b in pairs)
    return red, green, blue


def kind_of(subset: str, length: int) -> str:
    """A subset's name without its length."""
    ends = (str(length), short_length(length), short_length(length).lower())
    parts = [part for part in subset.replace("@", "/").split("/") if part not in ends]
    return "/".join(parts)


def _near(depth: float, many: bool) -> float:
    """A depth; of very many, the nearest of a few."""
    step = 100 / DEPTH_STEPS
    return step * round(depth / step) if many else depth


def _mean(values: Sequence[float] | None) -> float | None:
    return sum(values) / len(values) if values else None
