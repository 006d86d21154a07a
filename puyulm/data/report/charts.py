"""Small drawings: the lengths of documents, the sizes of clusters, and how likely LSH finds a pair."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from puyulm.data.report.numbers import count

PLOT_HEIGHT = 150.0
BAR_WIDTH, WIDE_BAR = 34.0, 56.0
MAX_BINS = 64
CURVE_SIZE = (300.0, 180.0)


@dataclass(frozen=True)
class Bar:
    """One bar, perhaps with a paler one behind it (what was there before); heights in pixels."""

    x: float
    height: float
    behind: float
    label: str
    title: str


@dataclass(frozen=True)
class Histogram:
    """Bars ready to draw, with what the tallest stands for."""

    width: float
    height: float
    bars: tuple[Bar, ...]
    top: str


@dataclass(frozen=True)
class Curve:
    """The chance that LSH compares a pair of documents, by their similarity.

    Attributes:
        path: Outline, in a box of `CURVE_SIZE`.
        bands, rows: Of the signature.
        half: The similarity that is found half of the time.
        threshold: From which on pairs are duplicates; None where it is not known.
        at_threshold: The chance there.
    """

    path: str
    bands: int
    rows: int
    half: float
    threshold: float | None
    at_threshold: float | None


def draw_lengths(before: Sequence[int], after: Sequence[int]) -> Histogram | None:
    """Documents by length, before and after: each bar takes lengths from its label up to twice that.

    Args:
        before, after: Documents by the bit length of their number of characters, as in `Counts.lengths`.
    """
    used = [bin_ for bin_ in range(len(before)) if before[bin_] or after[bin_]]
    if not used:
        return None
    largest = max(*before, *after)
    bars = []
    for position, bin_ in enumerate(range(used[0], used[-1] + 1)):
        start = 2 ** (bin_ - 1) if bin_ else 0
        bars.append(Bar(
            position * BAR_WIDTH, PLOT_HEIGHT * after[bin_] / largest, PLOT_HEIGHT * before[bin_] / largest,
            _power(start), f"{start:,} to {2**bin_ - 1:,} characters: {before[bin_]:,} documents before, "
            f"{after[bin_]:,} after" if bin_ else f"empty: {before[0]:,} documents before, {after[0]:,} after",
        ))  # fmt: skip
    return Histogram(max(len(bars) * BAR_WIDTH, 240), PLOT_HEIGHT, tuple(bars), f"{count(largest)} documents")


def draw_sizes(bins: Sequence[tuple[int, int, int]]) -> Histogram | None:
    """Clusters by the number of their documents.

    Args:
        bins: (least, greatest, clusters) of each.
    """
    largest = max((clusters for _, _, clusters in bins), default=0)
    if not largest:
        return None
    bars = []
    for position, (least, greatest, clusters) in enumerate(_without_gaps(bins)):
        label = _power(least) if least == greatest else f"{_power(least)}–{_power(greatest)}"
        bars.append(Bar(position * WIDE_BAR, PLOT_HEIGHT * clusters / largest, 0.0, label,
                        f"{clusters:,} clusters of {least:,} to {greatest:,} documents"))  # fmt: skip
    return Histogram(max(len(bars) * WIDE_BAR, 200), PLOT_HEIGHT, tuple(bars), f"{count(largest)} clusters")


def draw_curve(bands: int, rows: int, threshold: float | None) -> Curve | None:
    """The s-curve `1 - (1 - s^rows)^bands` of MinHash LSH (Leskovec, Rajaraman, Ullman, "Mining of Massive Datasets",
    3.4.2)."""
    if bands < 1 or rows < 1:
        return None

    def found(similarity: float) -> float:
        return float(1 - (1 - similarity**rows) ** bands)

    width, height = CURVE_SIZE
    points = [(width * i / 100, height * (1 - found(i / 100))) for i in range(101)]
    half = (1 - 0.5 ** (1 / bands)) ** (1 / rows)
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    known = threshold is not None and 0 <= threshold <= 1
    at = found(threshold) if known and threshold is not None else None
    return Curve(path, bands, rows, half, threshold if known else None, at)


def _without_gaps(bins: Sequence[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """The bins with empty ones between those that do not follow one another; each reaches twice as far as the last."""
    filled: list[tuple[int, int, int]] = []
    for least, greatest, clusters in bins:
        while filled and 0 < filled[-1][1] < least - 1 and len(filled) < MAX_BINS:
            end = filled[-1][1]
            filled.append((end + 1, min(2 * end, least - 1), 0))
        filled.append((least, greatest, clusters))
    return filled[:MAX_BINS]


def _power(number: int) -> str:
    """A number, short: 1 k is 1024 here."""
    for unit in ("", " k", " M", " G", " T"):
        if number < 1024:
            return f"{number}{unit}"
        number //= 1024
    return f"{number} P"
