"""What is drawn: charts of curves, as plain data for the page's script."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from puyulm.train.report.curves import rounded, smooth, thin
from puyulm.train.report.runs import Run

MAX_SOURCES = 24
MAX_MARKS = 300
SMOOTH_POINTS = 1000
Json = dict[str, Any]


def charts(runs: Sequence[Run]) -> list[Json]:
    """All charts that these runs have something for.

    A chart has `id`, `title`, `unit`, whether it begins at `zero`, whether it may be logarithmic (`log`), and `lines`.
    A line has the number of its `run`, a `label`, a `style` ("raw": faint, "line", "dash", or "dots": a line with
    dots), a colour `c`, and points: steps `x`, values `y`.
    """
    found = [
        _chart("loss", "Loss", "nats per token", [
            *_both(runs, "loss", weights="targets"), *_validations(runs, "loss")], log=True),
        _chart("bits", "Bits per byte of text", "bits per byte", [
            *_both(runs, "bits_per_byte", weights="targets", raw=False), *_validations(runs, "bits_per_byte")]),
        _chart("lr", "Learning rate", "", [*_plain(runs, "lr", "learning rate")], zero=True),
        _chart("norm", "Gradient norm", "before clipping", [*_both(runs, "grad_norm")], log=True),
        _chart("speed", "Throughput", "tokens per second", [*_both(runs, "tokens_per_second")], zero=True),
        _chart("mfu", "MFU", "share of the peak, %", [
            *_both(runs, "mfu", "PaLM", raw=False, scale=100),
            *_both(runs, "mfu_causal", "causal", raw=False, scale=100, style="dash")], zero=True),
        _chart("time", "Time of a step", "seconds", [
            *_both(runs, "seconds"), *_both(runs, "data_seconds", "waiting for data", raw=False, style="dash")],
            zero=True),
        _chart("memory", "Memory", "GiB, of the main process", [*_plain(runs, "memory_gib", "memory")], zero=True),
        *_by_source(runs),
    ]  # fmt: skip
    return [chart for chart in found if chart["lines"]]


def axes(run: Run) -> Json:
    """Where a run's steps are on the other axes: knots between which the script goes straight."""
    kept = thin(run.hours, 400)
    ends = np.concatenate(([0], run.step[kept]))
    return {
        "step": ends.tolist(),
        "tokens": [0, *run.tokens[kept].tolist()],
        "hours": [0.0, *rounded(run.hours[kept], 6)],
    }


def marks(run: Run) -> list[Json]:
    """What happened, for the charts; of very much, some."""
    found = [
        {"step": event.step, "kind": event.kind, "text": event.text}
        for event in run.events
        if event.kind not in ("start", "")
    ]
    for kind in {mark["kind"] for mark in found}:
        same = [mark for mark in found if mark["kind"] == kind]
        if len(same) > MAX_MARKS:
            every = len(same) / MAX_MARKS
            keep = {id(same[int(i * every)]) for i in range(MAX_MARKS)}
            found = [mark for mark in found if mark["kind"] != kind or id(mark) in keep]
    return found


def _chart(id: str, title: str, unit: str, lines: list[Json], *, zero: bool = False, log: bool = False) -> Json:
    return {"id": id, "title": title, "unit": unit, "zero": zero, "log": log, "lines": lines}


def _line(
    run: Run, number: int, label: str, values: np.ndarray, style: str, points: int, colour: int | None = None
) -> Iterator[Json]:
    kept = thin(values, points)
    if len(kept):
        yield {"run": number, "label": label, "style": style, "c": number if colour is None else colour,
               "x": run.step[kept].tolist(), "y": rounded(values[kept])}  # fmt: skip


def _plain(runs: Sequence[Run], column: str, label: str) -> Iterator[Json]:
    for number, run in enumerate(runs):
        yield from _line(run, number, label, run.column(column), "line", SMOOTH_POINTS)


def _both(
    runs: Sequence[Run], column: str, label: str = "smoothed", *, weights: str | None = None, raw: bool = True,
    scale: float = 1.0, style: str = "line",
) -> Iterator[Json]:  # fmt: skip
    """Each run's values, faint, and their means; steps that were not taken are in the values only."""
    for number, run in enumerate(runs):
        values = run.column(column) * scale
        if raw:
            yield from _line(run, number, "each step", values, "raw", 2 * SMOOTH_POINTS)
        taken = np.where(run.column("skipped") == 1, np.nan, values)
        means = smooth(taken, None if weights is None else run.column(weights))
        yield from _line(run, number, label, means, style, SMOOTH_POINTS)


def _validations(runs: Sequence[Run], name: str) -> Iterator[Json]:
    for number, run in enumerate(runs):
        rows = [row for row in run.validations if isinstance(row.get(name), int | float)]
        if rows:
            values = rounded(np.array([float(row[name]) for row in rows]))
            yield {"run": number, "label": "validation", "style": "dots", "c": 3 if len(runs) == 1 else number,
                   "x": [row["step"] for row in rows], "y": values}  # fmt: skip


def _by_source(runs: Sequence[Run]) -> Iterator[Json]:
    """One run's sources in one chart; of several runs, a chart a source."""
    names = list(dict.fromkeys(name for run in runs for name in run.sources))[:MAX_SOURCES]
    lines = {
        name: [
            line
            for number, run in enumerate(runs)
            if name in run.sources
            for line in _line(run, number, name, _source(run, name), "line", SMOOTH_POINTS // 2)
        ]
        for name in names
    }
    if len(runs) == 1:
        together = [line | {"c": number, "label": name} for number, name in enumerate(names) for line in lines[name]]
        yield _chart("sources", "Loss by source", "nats per token, smoothed", together, log=True)
    else:
        for number, name in enumerate(names):
            yield _chart(f"source{number}", f"Loss on {name}", "nats per token, smoothed", lines[name], log=True)


def _source(run: Run, name: str) -> np.ndarray:
    losses, targets = run.sources[name]
    return smooth(np.where(run.column("skipped") == 1, np.nan, losses), targets, share=0.02)
