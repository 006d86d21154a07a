"""A run in figures, and in what the recipes of several runs differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from puyulm.data.report.numbers import count, duration, share
from puyulm.train.metrics import short_names
from puyulm.train.report.curves import smooth
from puyulm.train.report.runs import Run
from puyulm.train.run import flatten

PLACES = ("out",)


def summary(run: Run) -> dict[str, str]:
    """Figures of a run by their names, in order; what is not known is left out."""
    steady = _steady(run)
    seconds, memory = run.column("seconds"), run.column("memory_gib")
    facts = {
        "state": _state(run),
        "steps": f"{run.step[-1]:,}" + ("" if run.steps in (None, run.step[-1]) else f" of {run.steps:,}"),
        "tokens": count(int(run.tokens[-1])),
        "training time": duration(float(np.nansum(seconds))),
        "loss, smoothed": _last(smooth(run.column("loss"), run.column("targets")), "{:.4f}"),
    }
    for name, title in (("bits_per_byte", "bits per byte"), ("loss", "loss")):
        if found := [row for row in run.validations if isinstance(row.get(name), int | float)]:
            best = min(found, key=lambda row: float(row[name]))
            facts[f"best validation, {title}"] = f"{best[name]:.4f} at step {best['step']:,}"
            facts[f"last validation, {title}"] = f"{found[-1][name]:.4f} at step {found[-1]['step']:,}"
    facts |= {
        "tokens/s": _mean(run, "tokens_per_second", steady, lambda value: count(value)),
        "MFU (PaLM)": _mean(run, "mfu", steady, lambda value: f"{100 * value:.1f} %"),
        "MFU (causal)": _mean(run, "mfu_causal", steady, lambda value: f"{100 * value:.1f} %"),
        "waiting for data": _waiting(run, steady),
        "memory, at most": "" if np.isnan(memory).all() else f"{np.nanmax(memory):.1f} GiB",
        "steps not taken": f"{max(_kinds(run, 'skipped'), int(np.nansum(run.column('skipped')))):,}",
        "went back": f"{_kinds(run, 'rollback'):,}",
        "resumed": f"{_kinds(run, 'resume'):,}",
        "epochs": _epochs(run),
        "on": str(_newest(run, "device") or ""),
    }
    return {name: text for name, text in facts.items() if text not in ("", "-")}


def table(runs: Sequence[Run]) -> list[list[str]]:
    """The figures of several runs: a row a figure, a column a run."""
    facts = [summary(run) for run in runs]
    names = list(dict.fromkeys(name for one in facts for name in one))
    return [[name, *(one.get(name, "-") for one in facts)] for name in names]


def differences(runs: Sequence[Run]) -> list[list[str]]:
    """In what the recipes differ: rows of a key and each run's value."""
    settings = [flatten(run.settings()) for run in runs]
    names = list(dict.fromkeys(name for one in settings for name in one if name not in PLACES))
    rows = [[name, *(_shown(one, name) for one in settings)] for name in names]
    return [row for row in rows if len(set(row[1:])) > 1]


def as_text(runs: Sequence[Run]) -> str:
    """The figures, and what differs, for a terminal."""
    rows = [["", *(run.name for run in runs)]] * (len(runs) > 1) + table(runs)
    parts = [_aligned(rows)]
    different = differences(runs) if len(runs) > 1 else []
    if different:
        parts.append("\nrecipes differ in\n" + _aligned(different))
    return "\n".join(parts)


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _state(run: Run) -> str:
    if run.step[-1] == run.steps:
        return "finished"
    return "running" if run.still else "stopped"


def _steady(run: Run) -> np.ndarray:
    """Steps whose speed is telling: not those with which a process began."""
    first = {event.step + 1 for event in run.events if event.kind in ("start", "resume")}
    steady = ~np.isin(run.step, list(first))
    return steady if steady.any() else ~steady


def _mean(run: Run, column: str, chosen: np.ndarray, text: Any) -> str:
    """Over time: each step counts by its seconds."""
    values, seconds = run.column(column)[chosen], run.column("seconds")[chosen]
    known = np.isfinite(values) & np.isfinite(seconds)
    return text(float(np.average(values[known], weights=seconds[known]))) if seconds[known].sum() > 0 else ""


def _waiting(run: Run, chosen: np.ndarray) -> str:
    waited, seconds = (float(np.nansum(run.column(name)[chosen])) for name in ("data_seconds", "seconds"))
    return share(waited, seconds)


def _epochs(run: Run) -> str:
    """Passes over each source up to the last checkpoint."""
    found = _newest(run, "epochs")
    if not isinstance(found, dict) or not found:
        return ""
    names = short_names(list(found))
    return ", ".join(
        f"{passes:.2f}" if len(found) == 1 else f"{name} {passes:.2f}"
        for name, passes in zip(names, found.values(), strict=True)
    )


def _newest(run: Run, fact: str) -> Any:
    return next((event.facts[fact] for event in reversed(run.events) if fact in event.facts), None)


def _last(values: np.ndarray, form: str) -> str:
    known = values[np.isfinite(values)]
    return form.format(known[-1]) if len(known) else ""


def _kinds(run: Run, kind: str) -> int:
    return sum(event.kind == kind for event in run.events)


def _shown(settings: dict[str, Any], name: str) -> str:
    if name not in settings:
        return "-"
    value = settings[name]
    return "none" if value is None else str(value)
