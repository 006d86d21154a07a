"""Intervals and comparisons: how sure a score is, and whether two models differ."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from puyulm.eval.benchmark import Benchmark, Sample

Z_95 = 1.959963984540054
RESAMPLES = 1000
SUMMARY_RESAMPLES = 200  # of scores that a benchmark's own function computes
FLIPS = 10_000
AT_ONCE = 1 << 22  # random numbers
FEW_VALUES = 64  # so few different scores are drawn by their counts, which is the same and much faster


@dataclass(frozen=True)
class Estimate:
    """A score and its 95 % interval.

    Attributes:
        value, low, high: As the benchmark counts (accuracies between 0 and 1). Bounds are NaN where nothing is known.
        count: Questions.
        how: "binomial" (Wilson), "bootstrap", or "" without an interval.
    """

    value: float
    low: float
    high: float
    count: int
    how: str


def wilson_interval(correct: float, total: float, z: float = Z_95) -> tuple[float, float]:
    """The rates that a binomial count of `correct` in `total` is compatible with.

    Wilson's interval: the rates p with |correct / total - p| <= z sqrt(p (1 - p) / total).
    """
    rate, spread = correct / total, z * z / total
    centre = (rate + spread / 2) / (1 + spread)
    reach = z / (1 + spread) * math.sqrt(rate * (1 - rate) / total + spread / (4 * total))
    return min(max(0.0, centre - reach), rate), max(min(1.0, centre + reach), rate)


def estimates(
    benchmark: Benchmark, strata: Sequence[Sequence[Sample]], *, other_way: bool = False
) -> dict[str, Estimate]:
    """All scores over subsets: the benchmark's metrics that samples have, and what else its own function gives.

    Args:
        strata: Samples of each subset.
        other_way: Average over rows where the benchmark does over subsets, and the reverse.

    Returns:
        By name. The benchmark's first metric is always there, without a value (NaN) where no sample has it.
    """
    summaries = _summarised(benchmark, strata) if benchmark.summarise is not None else {}
    by_row = (benchmark.average == "rows") != other_way
    found = {benchmark.metrics[0]: mean_estimate([])}
    for name in dict.fromkeys((*benchmark.metrics, *summaries)):
        if name in summaries:
            found[name] = summaries[name]
        elif rows := [own for samples in strata if len(own := row_means(samples, name))]:
            found[name] = mean_estimate(rows, by_row=by_row)
    return found


def row_means(samples: Sequence[Sample], metric: str) -> np.ndarray:
    """A score of each question that has it, over its repeats: `[questions]`."""
    values: dict[str, list[float]] = defaultdict(list)
    for sample in samples:
        if metric in sample.scores:
            values[sample.id].append(float(sample.scores[metric]))
    return np.array([sum(own) / len(own) for own in values.values()])


def mean_estimate(strata: Sequence[np.ndarray], *, by_row: bool = True) -> Estimate:
    """The mean of rows, or of the strata's means.

    One stratum of zeros and ones has a binomial interval. Others are resampled within strata (Efron's percentile
    bootstrap), of n rows n - 1, so that small strata do not seem surer than they are (Rao and Wu, 1988); strata of one
    row are resampled as one. Where all is right or all is wrong, resampling sees no spread: there the binomial interval
    of as many rows as would give the strata's variance is taken.

    Args:
        strata: Scores of each stratum, `[rows]`; none of them empty.
    """
    if not strata:
        return Estimate(math.nan, math.nan, math.nan, 0, "")
    rows = [np.concatenate(strata)] if by_row else list(strata)
    value, count = float(np.mean([own.mean() for own in rows])), sum(map(len, rows))
    seen = np.unique(np.concatenate(rows))
    if set(seen.tolist()) <= {0.0, 1.0} and (len(rows) == 1 or len(seen) == 1):
        worth = len(rows) ** 2 / sum(1 / len(own) for own in rows)
        return Estimate(value, *wilson_interval(value * worth, worth), count, "binomial")
    if count == 1:
        return Estimate(value, math.nan, math.nan, 1, "")
    return Estimate(value, *resampled_interval(rows), count, "bootstrap")


def resampled_interval(strata: Sequence[np.ndarray]) -> tuple[float, float]:
    """95 % interval of the mean of strata's means; of paired differences, the paired bootstrap. NaN of a single row."""
    if sum(map(len, strata)) == 1:
        return math.nan, math.nan
    means = _resampled([(own, 1 / len(strata)) for own in strata], np.random.default_rng(0))
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def _resampled(weighted: Sequence[tuple[np.ndarray, float]], random: np.random.Generator) -> np.ndarray:
    """Weighted sums of the means of resampled strata: `[RESAMPLES]`."""
    alone = [(own, weight) for own, weight in weighted if len(own) == 1]
    strata = [(own, weight) for own, weight in weighted if len(own) > 1]
    if alone:  # equal weights: strata are
        strata.append((np.concatenate([own for own, _ in alone]), sum(weight for _, weight in alone)))
    total = np.zeros(RESAMPLES)
    for own, weight in strata:
        total += weight * resampled_means(own, random)
    return total


def resampled_means(rows: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Means of n - 1 rows, drawn with replacement: `[RESAMPLES]`."""
    n = max(len(rows) - 1, 1)
    values, counts = np.unique(rows, return_counts=True)
    if len(values) <= FEW_VALUES:
        return random.multinomial(n, counts / len(rows), size=RESAMPLES) @ values / n
    drawn = [rows[random.integers(len(rows), size=(size, n))].mean(axis=1) for size in _batches(RESAMPLES, n)]
    return np.concatenate(drawn)


def _batches(total: int, each: int) -> Iterator[int]:
    step = max(AT_ONCE // max(each, 1), 1)
    for first, last in pairwise([*range(0, total, step), total]):
        yield last - first


def _summarised(benchmark: Benchmark, strata: Sequence[Sequence[Sample]]) -> dict[str, Estimate]:
    """What the benchmark's own function says."""
    assert benchmark.summarise is not None
    values = benchmark.summarise([sample for own in strata for sample in own])
    count = len({(place, sample.id) for place, own in enumerate(strata) for sample in own})
    drawn = resampled_summaries(benchmark, strata) if values and count > 1 else {}
    found = {}
    for name, value in values.items():
        known = drawn.get(name, np.empty(0))
        known = known[np.isfinite(known)]
        if len(known) and math.isfinite(value):
            low, high = np.quantile(known, [0.025, 0.975])
            found[name] = Estimate(float(value), float(low), float(high), count, "bootstrap")
        else:
            found[name] = Estimate(float(value), math.nan, math.nan, count, "")
    return found


def resampled_summaries(benchmark: Benchmark, strata: Sequence[Sequence[Sample]]) -> dict[str, np.ndarray]:
    """What the benchmark's own function says of resampled questions: `[SUMMARY_RESAMPLES]` of each name.

    Questions are drawn within strata. Two models with the same questions in the same order have the same ones drawn.
    """
    assert benchmark.summarise is not None
    random, questions = np.random.default_rng(0), [_Questions(own) for own in strata]
    found = [
        benchmark.summarise([sample for own in questions for sample in own.drawn(random)])
        for _ in range(SUMMARY_RESAMPLES)
    ]
    return {name: np.array([one.get(name, math.nan) for one in found]) for name in found[0]}


class _Questions:
    """Samples by question. A question that is drawn twice counts as two: its copy has another id."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        by_id: dict[str, list[Sample]] = defaultdict(list)
        for sample in samples:
            by_id[sample.id].append(sample)
        self._copies: list[list[list[Sample]]] = [[own] for own in by_id.values()]

    def __len__(self) -> int:
        return len(self._copies)

    def drawn(self, random: np.random.Generator) -> Iterator[Sample]:
        for place, times in enumerate(random.multinomial(len(self), [1 / len(self)] * len(self))):
            copies = self._copies[place]
            while len(copies) < times:
                copies.append([replace(one, id=f"{one.id}\0{len(copies)}") for one in copies[0]])
            for copy in copies[:times]:
                yield from copy


# Two models on the same questions


def mcnemar_p(only_first: int, only_second: int) -> float:
    """Whether two models are right on different numbers of the same questions: McNemar's exact test, two-sided.

    Args:
        only_first, only_second: Questions that only one of them has right.

    Returns:
        The chance that a fair coin splits them at least so unevenly.
    """
    total, fewer = only_first + only_second, min(only_first, only_second)
    ways = term = 1
    for drawn in range(fewer):
        term = term * (total - drawn) // (drawn + 1)
        ways += term
    return min(1.0, 2 * ways / 2**total)


def paired_interval(only_first: int, only_second: int, total: float) -> tuple[float, float]:
    """95 % interval of the difference of two models' rates (second - first) on the same `total` questions.

    Wald's interval with one more question of each kind (Bonett and Price, 2012).
    """
    first, second, n = (only_first + 1) / (total + 2), (only_second + 1) / (total + 2), total + 2
    centre = second - first
    reach = Z_95 * math.sqrt((first + second - centre * centre) / n)
    return max(-1.0, centre - reach), min(1.0, centre + reach)


def sign_flip_p(differences: np.ndarray) -> float:
    """Whether the sum of paired differences is other than 0: a permutation test, two-sided.

    Were the models alike, each question's difference could as well have the other sign; `FLIPS` draws of all signs say
    how often the sum is as large. Differences of the same size are drawn together.

    Args:
        differences: `[questions]`, weighted as the score weights them.
    """
    sizes = np.abs(differences[differences != 0])
    if not len(sizes):
        return 1.0
    least = 1e-9 * float(sizes.max())
    levels, counts = np.unique(np.round(sizes / least / 10) * least * 10, return_counts=True)
    observed = abs(float(differences.sum()))
    random, reached = np.random.default_rng(0), 0
    flips = int(np.clip(8 * AT_ONCE // len(levels), FLIPS // 10, FLIPS))
    for size in _batches(flips, len(levels)):
        if counts.max() == 1:
            bits = np.frombuffer(random.bytes(-(-size * len(levels) // 8)), np.uint8)
            positive = np.unpackbits(bits)[: size * len(levels)].reshape(size, -1).astype(np.float64)
        else:
            positive = random.binomial(counts, 0.5, size=(size, len(levels))).astype(np.float64)
        sums = 2 * (positive @ levels) - counts @ levels
        reached += int(np.count_nonzero(np.abs(sums) >= observed - len(sizes) * least * 10))
    return (1 + reached) / (1 + flips)


def bootstrap_p(difference: float, resampled: np.ndarray) -> float:
    """Whether a difference is other than 0, judged by the spread of resampled ones: a normal test, two-sided."""
    spread = float(np.nanstd(resampled, ddof=1))
    if not spread > 0:
        return 1.0 if difference == 0 else 0.0
    return math.erfc(abs(difference) / spread / math.sqrt(2))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values of several tests, corrected so that any false alarm among all is as rare as each says (Holm, 1979)."""
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    corrected, so_far = [0.0] * len(p_values), 0.0
    for rank, place in enumerate(order):
        so_far = max(so_far, min(1.0, (len(p_values) - rank) * p_values[place]))
        corrected[place] = so_far
    return corrected
