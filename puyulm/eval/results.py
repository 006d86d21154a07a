"""From samples to scores with intervals; and what a run found, on disk.

A run's folder holds `results.json` (all that is needed to compare it, and to run it again), `results.csv`,
`report.html`, and the judged samples of each benchmark.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from puyulm.data.documents import replacing
from puyulm.errors import DataError
from puyulm.eval.benchmark import Benchmark, Sample
from puyulm.eval.model import Sampling
from puyulm.eval.statistics import Estimate, estimates, mean_estimate
from puyulm.eval.task import Setting, Task

RESULTS_FILE, TABLE_FILE, REPORT_FILE = "results.json", "results.csv", "report.html"
FORMAT = 1
SHARES = {"unread", "wins", "ties", "losses", "position_bias", "first_place"}  # of judgements, whatever scores are
RULER_THRESHOLD = 0.856  # Llama2-7B's score at 4K (Hsieh et al., 2024)
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Scores:
    """A task's scores.

    Attributes:
        metrics: By name; the benchmark's own metric first.
        subsets: The first metric of each subset, and its rows.
        groups: The first metric of each group of subsets, averaged as the benchmark is.
        other: The first metric averaged the other way (over rows instead of subsets, or the reverse), where that
            differs: harnesses disagree here.
        members: The group of each subset.
        lengths: The first metric at each length of the prompt in tokens, of benchmarks that have lengths.
    """

    metrics: Mapping[str, Estimate]
    subsets: Mapping[str, Estimate]
    groups: Mapping[str, Estimate]
    other: Estimate | None
    members: Mapping[str, str] = field(default_factory=dict)
    lengths: Mapping[int, Estimate] = field(default_factory=dict)

    @property
    def metric(self) -> str:
        """Name of the benchmark's own score."""
        return next(iter(self.metrics))

    @property
    def main(self) -> Estimate:
        """The benchmark's score."""
        return self.metrics[self.metric]

    def effective_length(self) -> int | None:
        """The longest length up to which RULER's threshold is passed everywhere; None: not even the shortest."""
        passed = None
        for length, found in sorted(self.lengths.items()):
            if found.value < RULER_THRESHOLD:
                break
            passed = length
        return passed


@dataclass(frozen=True, kw_only=True)
class Result:
    """What a model scored on a benchmark.

    Attributes:
        name, title, dimension, percent, average, follows: The benchmark's.
        protocol, setting: How it was run.
        published: Published scores by model, as they are printed (percents).
        data_hash, prompts_hash: Of questions, and of all that the model was shown.
        samples: The file of judged samples, from the run's folder.
        seconds, tokens: It took, and new tokens.
        seed: Of generated rows and of sampling.
    """

    name: str
    title: str
    dimension: str
    percent: bool
    average: str
    follows: str
    protocol: str
    setting: Setting
    scores: Scores
    published: Mapping[str, float]
    data_hash: str
    prompts_hash: str
    samples: str
    seconds: float
    tokens: int
    seed: int = 0

    def is_share(self, metric: str | None = None) -> bool:
        """Whether a metric is between 0 and 1 and shown as percent.

        Args:
            metric: None: the benchmark's first.
        """
        return self.percent or (metric or self.scores.metric) in SHARES

    def shown(self, value: float, metric: str | None = None) -> str:
        """A score as tables have it: percent with one decimal, others with two; "-" of nothing.

        Among scores that are no percentages, a share is marked with a sign.

        Args:
            metric: That it is of; None: the benchmark's first.
        """
        if not math.isfinite(value):
            return "-"
        if not self.is_share(metric):
            return f"{value:.2f}"
        return f"{100 * value:.1f}" + ("" if self.percent else " %")


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a model scored, and what is needed to do it again.

    Attributes:
        model, fingerprint: Its name, and what changes with its weights.
        judge: Name of the model that judged; "": none.
        command: As it was typed.
        versions: Of puyulm, torch, python, ...
        date: When it ended, ISO 8601.
    """

    model: str
    fingerprint: str
    command: str
    versions: Mapping[str, str]
    date: str
    results: tuple[Result, ...]
    judge: str = ""

    def published(self, result: Result, metric: str | None = None) -> float | None:
        """The published score of this model, whichever way its name is written.

        Args:
            metric: None: the benchmark's first.
        """
        known = {_plain(name): value for name, value in result.published.items()}
        main = metric is None or metric == result.scores.metric
        return known.get(_plain(self.model if main else f"{self.model} ({metric})"))


def score(benchmark: Benchmark, samples: Sequence[Sample]) -> Scores:
    """Scores of finished samples. Answers to the same question count as one row with their mean.

    Means come with an interval; what `Benchmark.summarise` gives has one by resampling questions. Metrics that no
    sample has, because the mode gives no such score, are left out.
    """
    by_subset: dict[str, list[Sample]] = defaultdict(list)
    by_length: dict[int, dict[str, list[Sample]]] = defaultdict(lambda: defaultdict(list))
    for sample in samples:
        by_subset[sample.subset].append(sample)
        if isinstance(length := sample.extra.get("length"), int):
            by_length[length][sample.subset].append(sample)
    members = {name: benchmark.subsets.get(name, "") for name in by_subset}
    by_group: dict[str, list[list[Sample]]] = defaultdict(list)
    for subset, own in by_subset.items():
        by_group[members[subset]].append(own)
    strata, several = list(by_subset.values()), len(by_subset) > 1
    metrics = estimates(benchmark, strata)
    first = next(iter(metrics))

    def of(parts: Sequence[Sequence[Sample]]) -> Estimate:
        return estimates(benchmark, parts).get(first) or mean_estimate([])

    other = estimates(benchmark, strata, other_way=True).get(first) if several else None
    return Scores(
        metrics=metrics,
        subsets={name: of([own]) for name, own in by_subset.items()} if several else {},
        groups={name: of(own) for name, own in by_group.items()} if len(by_group) > 1 else {},
        other=None if other == metrics[first] else other,
        members=members if several else {},
        lengths={length: of(list(own.values())) for length, own in sorted(by_length.items())},
    )


def make_result(
    task: Task, samples: Sequence[Sample], file: str, *, published: Mapping[str, float] | None = None,
    seconds: float = 0.0,
) -> Result:  # fmt: skip
    """A finished task's result.

    Args:
        file: What `write_samples` returned.
    """
    known = task.benchmark
    return Result(
        name=known.name, title=known.title, dimension=known.dimension, percent=known.percent, average=known.average,
        follows=known.follows, protocol=task.protocol, setting=task.setting, scores=score(known, samples),
        published=published or {}, data_hash=task.data_hash, prompts_hash=task.prompts_hash, samples=file,
        seconds=seconds, tokens=sum(sample.tokens for sample in samples), seed=task.seed,
    )  # fmt: skip


def write_samples(samples: Sequence[Sample], folder: Path, name: str) -> str:
    """Writes a benchmark's judged samples below a run's folder, and returns the file's place in it."""
    path = folder / "judged" / f"{name}.jsonl"
    with replacing(path) as partial, partial.open("wb") as file:
        for sample in samples:
            file.write(json.dumps(asdict(sample), ensure_ascii=False, default=str).encode("utf-8", "backslashreplace"))
            file.write(b"\n")
    return path.relative_to(folder).as_posix()


def read_samples(folder: Path, result: Result) -> Iterator[Sample]:
    """A result's samples, one by one.

    Raises:
        DataError: The file is missing or damaged.
    """
    path = folder / result.samples
    if not path.is_file():
        raise DataError(f"{path} is missing: it holds the samples of {result.name}; run it again in that folder")
    with path.open(encoding="utf-8", newline="\n") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                row.pop("question", None)
                sample = Sample(**row | {"outputs": tuple(map(str, row["outputs"]))})
                if not isinstance(sample.scores, dict) or not isinstance(sample.extra, dict):
                    raise ValueError
            except (ValueError, TypeError, KeyError, AttributeError):
                raise DataError(f"{path}:{number}: not a sample; run {result.name} again in that folder") from None
            yield sample


def write_results(run: Run, folder: Path) -> None:
    """Writes results.json and results.csv."""
    with replacing(folder / RESULTS_FILE) as partial:
        text = json.dumps(_without_nan(_as_json(run)), ensure_ascii=False, indent=1, allow_nan=False, default=str)
        partial.write_bytes((text + "\n").encode("utf-8", "backslashreplace"))
    with replacing(folder / TABLE_FILE) as partial:
        partial.write_bytes(_as_csv(run).encode("utf-8", "backslashreplace"))


def write_run(run: Run, folder: Path) -> None:
    """Writes results.json, results.csv, report.html and needle maps. Samples are there already (`write_samples`).

    Raises:
        DataError: Samples are missing or damaged.
    """
    from puyulm.eval.report.page import write_report

    write_results(run, folder)
    write_report([folder], folder / REPORT_FILE)


def read_run(folder: Path) -> Run:
    """What `write_run` wrote.

    Raises:
        DataError: There are no results, or they are damaged or of another version.
    """
    path = folder / RESULTS_FILE
    if not path.is_file():
        raise DataError(f"{folder} has no {RESULTS_FILE}: give a folder that `puyu eval` has written results to")
    try:
        row = json.loads(path.read_text("utf-8"))
        if row["format"] != FORMAT:
            raise DataError(f"{path} is of format {row['format']}, this version reads {FORMAT}: run `puyu eval` again")
        return _run(row)
    except (ValueError, TypeError, KeyError, AttributeError, StopIteration) as error:
        reason = f"no field {error}" if isinstance(error, KeyError) else str(error).splitlines()[0][:80]
        raise DataError(f"{path} is damaged ({reason}): run `puyu eval` again with the same folder") from None


def _as_json(run: Run) -> dict[str, Any]:
    return {"format": FORMAT, **asdict(run)}


def _run(row: Row) -> Run:
    facts = {name: str(row[name]) for name in ("model", "fingerprint", "command", "date", "judge")}
    versions = {str(name): str(value) for name, value in row["versions"].items()}
    return Run(**facts, versions=versions, results=tuple(map(_result, row["results"])))


def _result(row: Row) -> Result:
    names = ("name", "title", "dimension", "average", "follows", "protocol", "data_hash", "prompts_hash", "samples")
    return Result(
        **{name: str(row[name]) for name in names}, percent=bool(row["percent"]),
        setting=_setting(row["setting"]), scores=_scores(row["scores"]),
        published={str(name): float(value) for name, value in row["published"].items()},
        seconds=float(row["seconds"]), tokens=int(row["tokens"]), seed=int(row["seed"]),
    )  # fmt: skip


def _setting(row: Row) -> Setting:
    setting = Setting(**{**row, "sampling": Sampling(**row["sampling"])})
    numbers = (setting.shots, setting.repeats, setting.max_new_tokens or 0)
    if not isinstance(setting.mode, str) or not all(isinstance(one, int) for one in numbers):
        raise ValueError("a setting of another kind")
    if not all(one is None or isinstance(one, int | float) for one in vars(setting.sampling).values()):
        raise ValueError("sampling of another kind")
    return setting


def _scores(row: Row) -> Scores:
    if not row["metrics"]:
        raise ValueError("scores without metrics")
    return Scores(
        metrics=_estimates(row["metrics"]), subsets=_estimates(row["subsets"]), groups=_estimates(row["groups"]),
        other=None if row["other"] is None else _estimate(row["other"]),
        members={str(name): str(group) for name, group in row["members"].items()},
        lengths={int(length): _estimate(one) for length, one in row["lengths"].items()},
    )  # fmt: skip


def _estimates(rows: Row) -> dict[str, Estimate]:
    return {str(name): _estimate(one) for name, one in rows.items()}


def _estimate(row: Row) -> Estimate:
    value, low, high = (math.nan if row[name] is None else float(row[name]) for name in ("value", "low", "high"))
    return Estimate(value, low, high, int(row["count"]), str(row["how"]))


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _without_nan(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _as_csv(run: Run) -> str:
    """A row for each score: of the whole, of other metrics, groups, subsets and lengths."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(
        [
            "model",
            "benchmark",
            "dimension",
            "protocol",
            "mode",
            "shots",
            "metric",
            "of",
            "name",
            "n",
            "score",
            "low",
            "high",
            "published",
        ]
    )
    for result in run.results:
        scores, published = result.scores, run.published(result)
        facts = [run.model, result.name, result.dimension, result.protocol, result.setting.mode, result.setting.shots]
        for metric, kind, name, one in _csv_scores(scores):
            times = 100 if result.is_share(metric) else 1
            numbers = ["" if not math.isfinite(x) else f"{times * x:.4f}" for x in (one.value, one.low, one.high)]
            whole = kind == "all" and metric == scores.metric and published is not None
            table.writerow([*facts, metric, kind, name, one.count, *numbers, published if whole else ""])
    return text.getvalue()


def _csv_scores(scores: Scores) -> Iterator[tuple[str, str, object, Estimate]]:
    for metric, one in scores.metrics.items():
        yield metric, "all", "", one
    if scores.other is not None:
        yield scores.metric, "averaged the other way", "", scores.other
    parts: Sequence[tuple[str, Mapping[Any, Estimate]]] = [
        ("group", scores.groups), ("subset", scores.subsets), ("length", scores.lengths),
    ]  # fmt: skip
    for kind, found in parts:
        for name, one in found.items():
            yield scores.metric, kind, name, one


def _plain(name: str) -> str:
    """A model's name without its owner, case and marks."""
    return "".join(one for one in name.rstrip("/").rsplit("/", 1)[-1].lower() if one.isalnum())
