"""Several models on the same questions: how much they differ, and whether that could be chance.

Models are compared on the questions that all of them were asked: same benchmark, same id, same right answer. Where
scores are 0 or 1 and rows count alike, the test is McNemar's; otherwise signs of the differences are flipped. Scores
that are no means of rows (ratios, weighted means) are compared by the spread that resampled questions give. p-values
are corrected (Holm) for all pairs and benchmarks of one comparison.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from puyulm.errors import DataError
from puyulm.eval import statistics
from puyulm.eval.benchmark import Benchmark, Sample
from puyulm.eval.report.terminal import aligned, how
from puyulm.eval.results import Result, Run, read_run, read_samples
from puyulm.eval.statistics import (
    Estimate,
    bootstrap_p,
    holm,
    mcnemar_p,
    mean_estimate,
    paired_interval,
    resampled_interval,
    sign_flip_p,
)  # fmt: skip

COMPARISON_FILE = "compare.html"
SURE = 0.05


@dataclass(frozen=True)
class Difference:
    """Two models on one benchmark's common questions.

    Attributes:
        first, second: Places of the models.
        value, low, high: second - first, and its 95 % interval.
        p, corrected: The chance of so large a difference between equal models; corrected for all that are compared.
        better, worse: Questions that the second model has answered better, and worse, than the first.
        test: "McNemar", "sign flips", or "bootstrap" (without `better` and `worse`).
    """

    first: int
    second: int
    value: float
    low: float
    high: float
    p: float
    corrected: float
    better: int
    worse: int
    test: str

    @property
    def sure(self) -> bool:
        """Whether it is more than chance, all tests considered."""
        return self.corrected < SURE


@dataclass(frozen=True)
class Compared:
    """One benchmark of several models.

    Attributes:
        results: Of each model.
        estimates: Of each model, on common questions.
        count: Common questions.
        left_out: Questions that not all models were asked.
        differences: Of all pairs.
        warnings: What makes the comparison unfair.
    """

    results: tuple[Result, ...]
    estimates: tuple[Estimate, ...]
    count: int
    left_out: int
    differences: tuple[Difference, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """Several models.

    Attributes:
        names: Of the models; different from one another.
        benchmarks: Those that all models have.
        missing: Titles of those that some lack.
    """

    runs: tuple[Run, ...]
    names: tuple[str, ...]
    benchmarks: tuple[Compared, ...]
    missing: tuple[str, ...]


def compare(folders: Sequence[Path]) -> Comparison:
    """Compares runs.

    Raises:
        DataError: There is only one, a folder is not a run's, or they have no benchmark in common.
    """
    if len(folders) < 2:
        raise DataError("a comparison needs two folders or more that `puyu eval` has written results to")
    runs = tuple(map(read_run, folders))
    by_name = [{result.name: result for result in run.results} for run in runs]
    common = [name for name in by_name[0] if all(name in own for own in by_name)]
    if not common:
        raise DataError(f"{', '.join(map(str, folders))} have no benchmark in common: run the same --tasks for each")
    names = _names(runs, folders)
    found = [_compare_benchmark(folders, names, [own[name] for own in by_name]) for name in common]
    missing = {result.name: result.title for run in runs for result in run.results if result.name not in common}
    return Comparison(runs, names, tuple(_corrected(found)), tuple(missing.values()))


def write_comparison(folders: Sequence[Path], html: Path) -> Comparison:
    """Writes a page that shows runs side by side, and returns what it says.

    Args:
        folders: Of the runs.
        html: The file, or a folder, where it is `page_of` it.

    Raises:
        DataError: As `compare`.
    """
    from puyulm.eval.report.page import write_report

    comparison = compare(folders)
    write_report(folders, page_of(html), comparison)
    return comparison


def page_of(html: Path) -> Path:
    """The page's file: of a folder, `compare.html` in it."""
    return html / COMPARISON_FILE if html.is_dir() else html


def _compare_benchmark(folders: Sequence[Path], names: Sequence[str], results: Sequence[Result]) -> Compared:
    metric = results[0].scores.metric
    asked = [_Asked.read(folder, result, metric) for folder, result in zip(folders, results, strict=True)]
    ids = [id for id in asked[0].targets if all(other.same(id, asked[0]) for other in asked[1:])]
    union = set().union(*(own.targets for own in asked))
    known = _summarising(folders[0], results[0])
    if known is not None:
        estimates, differences = _compare_summaries(known, folders, results, ids)
    else:
        ids = [id for id in ids if all(id in own.values for own in asked)]
        estimates, differences = _compare_rows(asked, ids, by_subset=results[0].average == "subsets")
    return Compared(
        results=tuple(results), estimates=tuple(estimates), count=len(ids), left_out=len(union) - len(ids),
        differences=tuple(differences), warnings=tuple(_warnings(names, results)),
    )  # fmt: skip


@dataclass(frozen=True)
class _Asked:
    """A model's score on each question, by id, with what tells that it was the same question."""

    values: Mapping[str, float]
    subsets: Mapping[str, str]
    targets: Mapping[str, object]

    @classmethod
    def read(cls, folder: Path, result: Result, metric: str) -> _Asked:
        scores: dict[str, list[float]] = defaultdict(list)
        subsets: dict[str, str] = {}
        targets: dict[str, object] = {}
        for sample in read_samples(folder, result):
            subsets[sample.id], targets[sample.id] = sample.subset, sample.target
            if metric in sample.scores:
                scores[sample.id].append(float(sample.scores[metric]))
        return cls({id: sum(own) / len(own) for id, own in scores.items()}, subsets, targets)

    def same(self, id: str, other: _Asked) -> bool:
        """Whether this id is the same question here and there."""
        return id in self.targets and self.targets[id] == other.targets[id]


def _compare_rows(
    asked: Sequence[_Asked], ids: Sequence[str], *, by_subset: bool
) -> tuple[list[Estimate], list[Difference]]:
    """Scores that are means of rows."""
    subsets = [asked[0].subsets[id] if by_subset else "" for id in ids]
    strata = [np.array([place for place, own in enumerate(subsets) if own == name]) for name in dict.fromkeys(subsets)]
    values = [np.array([own.values[id] for id in ids]) for own in asked]
    estimates = [mean_estimate([own[one] for one in strata], by_row=False) for own in values]
    pairs = itertools.combinations(range(len(asked)), 2) if ids else ()
    return estimates, [_difference(a, b, values[a], values[b], strata) for a, b in pairs]


def _difference(first: int, second: int, a: np.ndarray, b: np.ndarray, strata: Sequence[np.ndarray]) -> Difference:
    gaps = b - a
    value = float(np.mean([gaps[one].mean() for one in strata]))
    better, worse = int((gaps > 0).sum()), int((gaps < 0).sum())
    if set(np.unique([a, b]).tolist()) <= {0.0, 1.0} and (len(strata) == 1 or not better + worse):
        worth = len(strata) ** 2 / sum(1 / len(one) for one in strata)  # rows, where no resampling would see a spread
        low, high = paired_interval(worse, better, worth)
        p, test = mcnemar_p(worse, better), "McNemar"
    else:
        low, high = resampled_interval([gaps[one] for one in strata])
        p, test = sign_flip_p(np.concatenate([gaps[one] / len(one) for one in strata]) / len(strata)), "sign flips"
    return Difference(first, second, value, low, high, p, p, better, worse, test)


def _summarising(folder: Path, result: Result) -> Benchmark | None:
    """The benchmark's definition, if its score is not a mean of rows.

    Raises:
        DataError: Its samples lack what the definition needs now.
    """
    from puyulm.eval.benchmarks import all_benchmarks

    known = next((one for one in all_benchmarks() if one.name == result.name), None)
    if known is None or known.summarise is None:
        return None
    try:
        return known if result.scores.metric in known.summarise(list(read_samples(folder, result))) else None
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        raise DataError(
            f"{folder / result.samples} is not what this version needs to compare {result.name}: run it again"
        ) from None


def _compare_summaries(
    known: Benchmark, folders: Sequence[Path], results: Sequence[Result], ids: Sequence[str]
) -> tuple[list[Estimate], list[Difference]]:
    """Scores of the benchmark's own function; the same questions are resampled for all."""
    wanted, metric, by_model = set(ids), results[0].scores.metric, []
    for folder, result in zip(folders, results, strict=True):
        strata: dict[str, dict[str, list[Sample]]] = defaultdict(dict)
        for sample in read_samples(folder, result):
            if sample.id in wanted:
                strata[sample.subset].setdefault(sample.id, []).append(sample)
        # In the same order for all, whichever way their files are written.
        ordered = [[one for id in sorted(own) for one in own[id]] for _, own in sorted(strata.items())]
        by_model.append(ordered)
    if not ids:
        return [result.scores.main for result in results], []
    estimates = [statistics.estimates(known, strata).get(metric) or mean_estimate([]) for strata in by_model]
    drawn = [statistics.resampled_summaries(known, strata).get(metric, np.empty(0)) for strata in by_model]
    differences = []
    for a, b in itertools.combinations(range(len(results)), 2):
        if len(ids) > 1 and len(drawn[a]) == len(drawn[b]) > 0:
            gaps = drawn[b] - drawn[a]
            low, high = np.nanquantile(gaps, [0.025, 0.975])
            value = estimates[b].value - estimates[a].value
            p = bootstrap_p(value, gaps)
            differences.append(Difference(a, b, value, float(low), float(high), p, p, 0, 0, "bootstrap"))
    return estimates, differences


def _corrected(found: Sequence[Compared]) -> list[Compared]:
    corrected = iter(holm([one.p for compared in found for one in compared.differences]))
    return [
        replace(compared, differences=tuple(replace(one, corrected=next(corrected)) for one in compared.differences))
        for compared in found
    ]


def _warnings(names: Sequence[str], results: Sequence[Result]) -> list[str]:
    found = []
    if len({result.prompts_hash for result in results}) > 1:
        ways = [f"{how(one)}, {one.protocol or 'no protocol'}" for one in results]
        each = "; ".join(f"{name} {way}" for name, way in zip(names, ways, strict=True))
        found.append(f"asked in different ways: {each}" if len(set(ways)) > 1 else "prompts are not the same")
    if len({(result.average, result.percent, result.scores.metric) for result in results}) > 1:
        found.append("scored in different ways")
    return found


def _names(runs: Sequence[Run], folders: Sequence[Path]) -> tuple[str, ...]:
    """Models' names; with the folder's where two are the same."""
    names = [run.model for run in runs]
    return tuple(
        name if names.count(name) == 1 else f"{name} ({folder.resolve().name})"
        for name, folder in zip(names, folders, strict=True)
    )


def text(comparison: Comparison) -> str:
    """For the terminal: a row a benchmark with all models' scores, then a row a pair."""
    rows = [["", "questions", *comparison.names]]
    for one in comparison.benchmarks:
        scores = [own.shown(estimate.value) for own, estimate in zip(one.results, one.estimates, strict=True)]
        rows.append([one.results[0].title, f"{one.count:,}", *scores])
    pairs = [["", "", "difference", "95 % interval", "better", "worse", "p", "p (Holm)"]]
    for one in comparison.benchmarks:
        pairs += [_pair_row(comparison, one, gap) for gap in one.differences]
    notes = [f"{one.results[0].title}: {note}" for one in comparison.benchmarks for note in notes_of(one)]
    if comparison.missing:
        notes.append(f"not compared, as some lack it: {', '.join(comparison.missing)}")
    return "\n".join([aligned(rows), "", aligned(pairs), *([""] if notes else []), *notes])


def notes_of(compared: Compared) -> list[str]:
    """What a reader must know of a benchmark's comparison."""
    were = "question was" if compared.left_out == 1 else "questions were"
    out = f"{compared.left_out:,} {were} not asked, or not the same, for all" if compared.left_out else ""
    return [*compared.warnings, *([out] if out else [])]


def asked_alike(compared: Compared) -> bool:
    """Whether one description of how it was asked holds for all models."""
    return len(set(map(how, compared.results))) == 1


def _pair_row(comparison: Comparison, one: Compared, gap: Difference) -> list[str]:
    result, names = one.results[0], comparison.names
    low, high = signed(result, gap.low), signed(result, gap.high)
    counts = [f"{gap.better:,}", f"{gap.worse:,}"] if gap.test != "bootstrap" else ["", ""]
    return [
        result.title, f"{names[gap.second]} - {names[gap.first]}", signed(result, gap.value), f"{low} to {high}",
        *counts, p_shown(gap.p), p_shown(gap.corrected) + (" *" if gap.sure else ""),
    ]  # fmt: skip


def signed(result: Result, value: float) -> str:
    """A difference of scores, with its sign."""
    if not math.isfinite(value):
        return "-"
    return f"{100 * value:+.1f}" if result.is_share() else f"{value:+.2f}"


def p_shown(p: float) -> str:
    """A p-value with about two digits that matter."""
    return "<0.0001" if p < 1e-4 else f"{p:.4f}" if p < 0.01 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"
