"""From samples to scores with intervals."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from puyulm.eval.benchmark import Benchmark, Sample
from puyulm.eval.statistics import Estimate, estimate


@dataclass(frozen=True)
class Scores:
    """A task's scores.

    Attributes:
        metrics: By name; the benchmark's own metric first.
        subsets: The first metric of each subset, and its rows.
        groups: The first metric of each group of subsets, averaged as the benchmark is.
        other: The first metric averaged the other way (over rows instead of subsets, or the reverse), where that
            differs: harnesses disagree here.
    """

    metrics: Mapping[str, Estimate]
    subsets: Mapping[str, Estimate]
    groups: Mapping[str, Estimate]
    other: Estimate | None


def score(benchmark: Benchmark, samples: Sequence[Sample]) -> Scores:
    """Scores of finished samples. Answers to the same question count as one row with their mean.

    Means come with an interval; what `Benchmark.summarise` gives has one by resampling questions.
    """
    by_subset: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        by_subset[sample.subset].append(sample)
    first, strata = benchmark.metrics[0], list(by_subset.values())
    metrics = {name: estimate(benchmark, strata, name) for name in benchmark.metrics}
    by_group: dict[str, list[list[Sample]]] = defaultdict(list)
    for subset, own in by_subset.items():
        by_group[benchmark.subsets.get(subset, "")].append(own)
    several = len(by_subset) > 1
    return Scores(
        metrics=metrics,
        subsets={name: estimate(benchmark, [own], first) for name, own in by_subset.items()} if several else {},
        groups={name: estimate(benchmark, own, first) for name, own in by_group.items()} if len(by_group) > 1 else {},
        other=estimate(benchmark, strata, first, other_way=True) if several and benchmark.summarise is None else None,
    )
