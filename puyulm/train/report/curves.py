"""Curves with fewer points than steps: smoothed, and thinned so that what stands out stays."""

from __future__ import annotations

import itertools

import numpy as np

POINTS = 2000


def smooth(values: np.ndarray, weights: np.ndarray | None = None, share: float = 0.01, least: int = 5) -> np.ndarray:
    """Weighted means over the steps around each; where a curve begins, and falls steeply, over few.

    Args:
        values: `[N]`; NaN counts as absent.
        weights: `[N]`, such as target tokens; None takes all steps alike.
        share: Half of the width, as a share of N.
        least: Half of the width, at least.

    Returns:
        `[N]`, NaN where there is nothing around.
    """
    n = len(values)
    known = np.isfinite(values)
    weight = np.where(known, 1.0 if weights is None else weights, 0.0)
    sums = np.concatenate(([0.0], np.cumsum(np.where(known, values, 0.0) * weight)))
    counts = np.concatenate(([0.0], np.cumsum(weight)))
    middle = np.arange(n)
    half = np.minimum(max(int(n * share), least), middle // 4)
    first, last = middle - half, np.minimum(middle + half, n - 1) + 1
    total = counts[last] - counts[first]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(total > 0, (sums[last] - sums[first]) / total, np.nan)


def thin(values: np.ndarray, points: int = POINTS) -> np.ndarray:
    """Which of many points to draw: of each stretch the lowest and the highest, and the first and last of all.

    Args:
        values: `[N]`; what is not finite is never drawn.

    Returns:
        Indices in order, about `points` of them at most.
    """
    (known,) = np.nonzero(np.isfinite(values))
    if len(known) <= points:
        return known
    edges = np.linspace(0, len(known), max(points // 2, 1) + 1).astype(np.int64)
    kept = {0, len(known) - 1}
    for first, last in itertools.pairwise(edges.tolist()):
        part = values[known[first:last]]
        kept |= {first + int(part.argmin()), first + int(part.argmax())}
    return known[sorted(kept)]


def rounded(values: np.ndarray, digits: int = 5) -> list[float]:
    """Numbers with so many digits, for a page."""
    return [float(f"{value:.{digits}g}") for value in values.tolist()]
