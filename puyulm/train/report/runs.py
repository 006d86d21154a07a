"""What a run has written down, ready to draw: a column of numbers a figure."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from puyulm.errors import TrainError
from puyulm.train.metrics import EVENTS_FILE, METRICS_FILE, VALIDATION_FILE, read_json_lines, short_names

RECIPE_FILE = "recipe.yaml"
STILL_SECONDS = 120.0
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Event:
    """Something that happened, as `events.jsonl` has it; `when` is for people."""

    step: int
    kind: str
    text: str
    when: str
    facts: Row = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """A run's folder, read.

    Attributes:
        name: Short, and different from those of the runs beside it.
        step, tokens: `[N]`, after each step that is in the metrics.
        hours: `[N]`, of training so far, without pauses.
        columns: `[N]` each, by name; NaN where a step has no such value.
        sources: `[2, N]` each, by name: loss and target tokens.
        phases: (name, first step, last step), in order; empty where there is but one.
        validations: Rows as they were written.
        recipe: As it was written; empty without one.
        steps: Of the whole run; None where that is not known.
        still: Whether it seems to be going on.
    """

    name: str
    folder: Path
    step: np.ndarray
    tokens: np.ndarray
    hours: np.ndarray
    columns: Mapping[str, np.ndarray]
    sources: Mapping[str, np.ndarray]
    phases: Sequence[tuple[str, int, int]]
    validations: Sequence[Row]
    events: Sequence[Event]
    recipe: str
    steps: int | None
    still: bool

    def column(self, name: str) -> np.ndarray:
        """A figure of each step; NaN where there is none."""
        return self.columns.get(name, np.full(len(self.step), np.nan))

    def settings(self) -> dict[str, Any]:
        """The recipe's values; empty where it cannot be read."""
        try:
            values = yaml.safe_load(self.recipe)
        except yaml.YAMLError:
            return {}
        return values if isinstance(values, dict) else {}


def load_runs(folders: Sequence[Path]) -> list[Run]:
    """Reads runs, finished or not.

    Raises:
        TrainError: A folder holds no steps.
    """
    names = short_names([str(folder.resolve()) for folder in folders])
    return [_load(folder, name) for folder, name in zip(folders, names, strict=True)]


def _load(folder: Path, name: str) -> Run:
    path = folder / METRICS_FILE
    rows = [row for row in read_json_lines(path) if isinstance(row.get("tokens"), int)]
    if not rows:
        why = f"{METRICS_FILE} has no steps yet" if path.is_file() else f"it has no {METRICS_FILE}"
        raise TrainError(f"{folder} is no run to report on: {why}; give the folder that `puyu train` writes to (out)")
    columns = _columns(rows)
    events = _events(folder / EVENTS_FILE)
    seconds = np.nan_to_num(columns.get("seconds", np.zeros(len(rows))))
    steps = next((int(event.facts["steps"]) for event in reversed(events) if "steps" in event.facts), None)
    idle = time.time() - path.stat().st_mtime
    recipe = folder / RECIPE_FILE
    return Run(
        name=name, folder=folder,
        step=columns["step"].astype(np.int64), tokens=columns["tokens"].astype(np.int64),
        hours=np.cumsum(seconds) / 3600,
        columns={key: values for key, values in columns.items() if key not in ("step", "tokens")},
        sources=_sources(rows), phases=_phases(rows), validations=read_json_lines(folder / VALIDATION_FILE),
        events=events, recipe=recipe.read_text("utf-8", errors="replace") if recipe.is_file() else "",
        steps=steps, still=idle < max(STILL_SECONDS, 10 * float(np.median(seconds))) and rows[-1]["step"] != steps,
    )  # fmt: skip


def _columns(rows: Sequence[Row]) -> dict[str, np.ndarray]:
    columns: dict[str, np.ndarray] = {}
    for number, row in enumerate(rows):
        for name, value in row.items():
            if isinstance(value, int | float):
                if name not in columns:
                    columns[name] = np.full(len(rows), np.nan)
                columns[name][number] = value
    return columns


def _sources(rows: Sequence[Row]) -> dict[str, np.ndarray]:
    sources: dict[str, np.ndarray] = {}
    for number, row in enumerate(rows):
        targets = row.get("source_targets", {})
        for name, loss in row.get("sources", {}).items():
            if name not in sources:
                sources[name] = np.stack((np.full(len(rows), np.nan), np.zeros(len(rows))))
            sources[name][:, number] = np.nan if loss is None else loss, targets.get(name, 1)
    return sources


def _phases(rows: Sequence[Row]) -> list[tuple[str, int, int]]:
    phases: list[tuple[str, int, int]] = []
    for row in rows:
        name = row.get("phase", "")
        if phases and phases[-1][0] == name:
            phases[-1] = (name, phases[-1][1], row["step"])
        else:
            phases.append((name, row["step"], row["step"]))
    return phases if len(phases) > 1 else []


def _events(path: Path) -> list[Event]:
    """What happened since the run began: another one may have been in the folder before."""
    events: list[Event] = []
    for row in read_json_lines(path):
        kind, text, when = (str(row.get(name, "")) for name in ("kind", "text", "time"))
        if kind == "start":
            events = []
        facts = {name: value for name, value in row.items() if name not in ("step", "kind", "text", "time")}
        events.append(Event(row["step"], kind, text, when[:19].replace("T", " "), facts))
    return events
