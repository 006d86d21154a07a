"""Intervals and comparisons: how sure a score is, and whether two models differ."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from puyulm.eval.benchmark import Benchmark, Sample

Z_95 = 1.959963984540054
RESAMPLES = 1000


@dataclass(frozen=True)
class Estimate:
    """A score and its 95 % interval.

    Attributes:
        value, low, high: As the benchmark counts (accuracies between 0 and 1).
        count: Questions.
        how: "binomial" (Wilson), "bootstrap".
    """

    value: float
    low: float
    high: float
    count: int
    how: str


def wilson_interval(correct: float, total: int, z: float = Z_95) -> tuple[float, float]:
    """The rates that a binomial count of `correct` in `total` is compatible with.

    Wilson's interval: the rates p with |correct / total - p| <= z sqrt(p (1 - p) / total).
    """
    rate, spread = correct / total, z * z / total
    centre = (rate + spread / 2) / (1 + spread)
    reach = z / (1 + spread) * math.sqrt(rate * (1 - rate) / total + spread / (4 * total))
    return max(0.0, centre - reach), min(1.0, centre + reach)


def estimate(
    benchmark: Benchmark, strata: Sequence[Sequence[Sample]], metric: str, *, other_way: bool = False
) -> Estimate:
    """A metric over subsets.

    Args:
        strata: Samples of each subset.
        other_way: Average over rows where the benchmark does over subsets, and the reverse.
    """
    by_row = (benchmark.average == "rows") != other_way or len(strata) == 1
    if benchmark.summarise is not None:
        return _summarised(benchmark, strata, metric)
    rows = [_row_means(own, metric) for own in strata]
    if by_row:
        rows = [np.concatenate(rows)]
    value = float(np.mean([own.mean() for own in rows]))
    count = sum(map(len, rows))
    if len(rows) == 1 and set(np.unique(rows[0])) <= {0.0, 1.0}:
        return Estimate(value, *wilson_interval(float(rows[0].sum()), count), count, "binomial")
    random = np.random.default_rng(0)
    means = np.mean([_resampled_means(own, random) for own in rows], axis=0)
    low, high = np.quantile(means, [0.025, 0.975])
    return Estimate(value, float(low), float(high), count, "bootstrap")


def _row_means(samples: Sequence[Sample], metric: str) -> np.ndarray:
    """Of each question, over its repeats."""
    values: dict[str, list[float]] = defaultdict(list)
    for sample in samples:
        values[sample.id].append(sample.scores[metric])
    return np.array([np.mean(own) for own in values.values()])


def _resampled_means(rows: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """`[RESAMPLES]`."""
    return np.array([rows[random.integers(len(rows), size=len(rows))].mean() for _ in range(RESAMPLES)])


def _summarised(benchmark: Benchmark, strata: Sequence[Sequence[Sample]], metric: str) -> Estimate:
    assert benchmark.summarise is not None
    samples = [sample for own in strata for sample in own]
    by_id: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        by_id[sample.id].append(sample)
    ids, random = list(by_id), np.random.default_rng(0)
    value = benchmark.summarise(samples)[metric]
    found = []
    for _ in range(RESAMPLES // 5):
        chosen = random.integers(len(ids), size=len(ids))
        found.append(benchmark.summarise([sample for place in chosen for sample in by_id[ids[place]]])[metric])
    low, high = np.nanquantile(found, [0.025, 0.975])
    return Estimate(value, float(low), float(high), len(ids), "bootstrap")
