"""A run's scores as a table for the terminal."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from rich.cells import cell_len

from puyulm.eval.results import Result, Run
from puyulm.eval.statistics import Estimate

HEAD = ("", "asked", "questions", "score", "95 % interval", "published")
NUMBERS = {"questions", "score", "published", "difference", "better", "worse"}


def table(run: Run, *, subsets: bool = False) -> str:
    """A row a benchmark: how it was asked, questions, score with interval, the published score of this model.

    Below it, indented: other metrics, the other way to average where it differs, groups, lengths.

    Args:
        subsets: Subsets, too.
    """
    rows = [list(HEAD)]
    for result in run.results:
        rows.append([result.title, how(result), *_numbers(result, result.scores.main), _beside(run, result)])
        for name, one in below(result, subsets=subsets):
            metric = name if name in result.scores.metrics else None
            rows.append(
                [f"  {name}", "", *_numbers(result, one, metric), _beside(run, result, metric) if metric else ""]
            )
        if result.scores.lengths and result.name == "ruler":
            rows.append(["  effective length", "", "", effective(result), "", ""])
    return aligned(rows)


def _beside(run: Run, result: Result, metric: str | None = None) -> str:
    published = run.published(result, metric)
    return "" if published is None else published_shown(published)


def below(result: Result, *, subsets: bool = False) -> Iterator[tuple[str, Estimate]]:
    """What a result has beside its score."""
    scores = result.scores
    for name, one in scores.metrics.items():
        if name != scores.metric:
            yield name, one
    if scores.other is not None and result.shown(scores.other.value) != result.shown(scores.main.value):
        yield "mean of rows" if result.average == "subsets" else "mean of subsets", scores.other
    for length, one in scores.lengths.items():
        if len(scores.lengths) > 1:
            yield short_length(length), one
    grouped = bool(scores.groups) and not set(scores.groups) & set(map(short_length, scores.lengths))
    for group, one in scores.groups.items() if grouped else ():
        if group:
            yield group, one
        for subset, part in scores.subsets.items() if subsets else ():
            if scores.members.get(subset, "") == group:
                yield f"  {subset}" if group else subset, part
    if subsets and not grouped:
        yield from scores.subsets.items()


def how(result: Result) -> str:
    """How a benchmark was asked, in a few words."""
    setting = result.setting
    parts = [f"{setting.shots}-shot", setting.mode]
    if setting.think and setting.mode != "thinking":
        parts.append("thinking")
    if setting.repeats > 1:
        parts.append(f"x{setting.repeats}")
    return " ".join(parts)


def interval(result: Result, one: Estimate, metric: str | None = None) -> str:
    """A 95 % interval; "" where there is none.

    Args:
        metric: That it is of; None: the benchmark's first.
    """
    return f"{result.shown(one.low, metric)} to {result.shown(one.high, metric)}" if math.isfinite(one.low) else ""


def published_shown(score: float) -> str:
    """A published score with as many decimals as it was published with, of which one or two."""
    return f"{score:.1f}" if round(score, 1) == score else f"{score:.2f}"


def effective(result: Result) -> str:
    """RULER's effective length."""
    length = result.scores.effective_length()
    return f"<{short_length(min(result.scores.lengths))}" if length is None else short_length(length)


def short_length(tokens: int) -> str:
    """4096 as 4K."""
    for unit, name in ((1 << 20, "M"), (1 << 10, "K")):
        if tokens >= unit:
            return f"{tokens / unit:.1f}".removesuffix(".0") + name
    return str(tokens)


def _numbers(result: Result, one: Estimate, metric: str | None = None) -> list[str]:
    return [f"{one.count:,}", result.shown(one.value, metric), interval(result, one, metric)]


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows under a head, in columns; numbers to the right. Chinese characters are two columns wide."""
    columns = []
    for column in zip(*rows, strict=True):
        width, right = max(map(cell_len, column)), column[0] in NUMBERS
        columns.append([" " * (width - cell_len(cell)) + cell if right else cell + " " * (width - cell_len(cell))
                        for cell in column])  # fmt: skip
    return "\n".join("  ".join(row).rstrip() for row in zip(*columns, strict=True))
