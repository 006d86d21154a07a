"""Runs a pipeline: each stage once, again where its settings or its input changed, and on after an interruption."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from puyulm.data.documents import replacing
from puyulm.data.pipeline.counts import Counts
from puyulm.data.pipeline.executor import Executor, ProcessExecutor, RayExecutor, SerialExecutor
from puyulm.data.pipeline.recipe import DataRecipe, Step
from puyulm.data.pipeline.stage import STAGE_FILE, TASKS_FOLDER, MapStage, StageRun, clear_stage, run_stage, shards_in
from puyulm.errors import DataError
from puyulm.recipe import dump_recipe, recipe_dict

PIPELINE_FILE = "pipeline.json"
RECIPE_FILE = "recipe.yaml"
VERSION = 1  # of what stages write: a new one makes every stage run again


@dataclass(frozen=True)
class StageResult:
    """What a stage did, as its `stage.json` tells.

    Attributes:
        label, kind: Its name in the recipe, and which stage it is.
        folder: Where its shards are.
        counts: Its figures.
        seconds: From its start to its end; of the last run, if it was interrupted.
        peak_memory: The largest peak of a worker, bytes.
        workers: Processes it ran on.
        reused: It was complete already and did not run.
    """

    label: str
    kind: str
    folder: Path
    counts: Counts
    seconds: float
    peak_memory: int
    workers: int
    reused: bool = False


def run_pipeline(recipe: DataRecipe, executor: Executor | None = None, until: str = "") -> list[StageResult]:
    """Runs the stages of a recipe.

    Args:
        recipe: The whole plan.
        executor: Runs the tasks; made from the recipe if None.
        until: Label of the last stage to run; all if empty.

    Raises:
        DataError: A file that the settings name is missing, another run works in the same folder, or `out` holds
            something else.
    """
    labels = [step.label for step in recipe.stages]
    if until and until not in labels:
        raise DataError(f"there is no stage {until!r} to run until: the stages are {', '.join(labels)}")
    steps = recipe.stages[: labels.index(until) + 1] if until else recipe.stages
    _check_paths(steps)
    if recipe.out.exists() and not recipe.out.is_dir():
        raise DataError(f"{recipe.out} is a file: name a folder for the run's output")
    recipe.out.mkdir(parents=True, exist_ok=True)
    if not (recipe.out / PIPELINE_FILE).exists() and any(p.name != ".lock" for p in recipe.out.iterdir()):
        raise DataError(f"{recipe.out} holds other files than a pipeline's: choose another folder")
    own = make_executor(recipe) if executor is None else executor
    results: list[StageResult] = []
    try:
        with _locked(recipe.out):
            _write_plan(recipe)
            fingerprints = [""]
            for step in steps:
                fingerprints.append(_fingerprint(recipe, step, fingerprints[-1]))
            _check_settings(recipe, steps, fingerprints)
            for number, step in enumerate(steps, start=1):
                before = results[-1] if results else None
                previous, fingerprint = fingerprints[number - 1], fingerprints[number]
                results.append(_run_step(recipe, number, step, fingerprint, previous, before, own))
                print(summary_line(results[-1]), file=sys.stderr, flush=True)
    finally:
        if executor is None:
            own.close()
    return results


def load_results(out: Path) -> list[StageResult]:
    """The finished stages of a run, in order; none that was made from an earlier state of the stage before it.

    Raises:
        DataError: There is no run.
    """
    try:
        names = json.loads((out / PIPELINE_FILE).read_text(encoding="utf-8"))["stages"]
    except (OSError, ValueError, KeyError):
        raise DataError(f"no pipeline at {out} ({PIPELINE_FILE} is missing): run one with puyu data run") from None
    results: list[StageResult] = []
    before: str | None = ""
    for name in names:
        state = _state(out / name)
        stale = before is None or state.get("previous", before) != before
        result = None if stale else _finished(out / name)
        before = state.get("fingerprint", "") if result is not None else None
        results += [result] if result is not None else []
    return results


def summary_line(result: StageResult) -> str:
    """A stage in one line: documents and bytes in and out, and its speed."""
    counts = result.counts
    share = f"{counts.documents_out / counts.documents_in:.1%}" if counts.documents_in else "-"
    flow = (f"{result.label:<16} {counts.documents_in:>10,} -> {counts.documents_out:>10,} documents ({share}), "
            f"{counts.bytes_in / 1e6:,.1f} -> {counts.bytes_out / 1e6:,.1f} MB")  # fmt: skip
    aside = [
        (sum(documents for reason, (documents, _) in counts.dropped.items() if reason.startswith("quarantine: ")),
         "quarantined"),
        (int(sum(amount for name, amount in counts.notes.items() if name.startswith("skipped: "))), "skipped"),
    ]  # fmt: skip
    flow += "".join(f", {amount:,} {what}" for amount, what in aside if amount)
    if result.reused:
        return f"{flow}, unchanged"
    seconds = max(result.seconds, 1e-9)
    return (f"{flow}, {result.seconds:.1f} s, {counts.documents_in / seconds:,.0f} documents/s, "
            f"{counts.bytes_in / 1e6 / seconds:,.1f} MB/s")  # fmt: skip


def make_executor(recipe: DataRecipe) -> Executor:
    """The executor that a recipe asks for."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = recipe.workers or cores
    if recipe.backend == "ray":
        return RayExecutor(workers, recipe.ray_address)
    return ProcessExecutor(workers) if workers > 1 else SerialExecutor()


def _run_step(
    recipe: DataRecipe, number: int, step: Step, fingerprint: str, previous: str, before: StageResult | None,
    executor: Executor,
) -> StageResult:  # fmt: skip
    folder = recipe.out / f"{number:02d}-{step.label}"
    state = _state(folder)
    if state.get("fingerprint") == fingerprint and (result := _finished(folder)) is not None:
        return result
    if before is not None and before.reused:
        _check_shards(before.folder)
    if state.get("fingerprint") != fingerprint:
        clear_stage(folder)
    if folder.exists() and any(folder.iterdir()) and not state:
        raise DataError(f"{folder} holds other files than a stage's: move them away")
    for stale in folder.rglob(".*.partial"):  # of a killed run
        stale.unlink(missing_ok=True)
    facts = {"version": VERSION, "fingerprint": fingerprint, "previous": previous, "label": step.label,
             "kind": step.kind, "settings": recipe_dict(step.settings)}  # fmt: skip
    _write_json(folder / STAGE_FILE, {**facts, "done": False})
    started = time.monotonic()
    inputs = shards_in(before.folder) if before is not None else []
    if before is not None and not inputs and step.kind != "mix":
        raise DataError(f"no documents are left for the stage {step.label!r}: {before.folder} is empty; "
                        "look at what was dropped with puyu data report")  # fmt: skip
    run_stage(
        step.settings,
        StageRun(
            step.label, folder, inputs, before.folder if before is not None else None, executor, recipe.shards,
            int(recipe.task_mb * 1e6),
        ),
    )  # fmt: skip
    peaks = [0]

    def parts() -> Iterator[dict[str, Any]]:
        for path in sorted((folder / TASKS_FOLDER).glob("*.json")):
            task = json.loads(path.read_text(encoding="utf-8"))
            peaks.append(task["peak_memory"])
            if "counts" in task:
                yield task["counts"]

    counts = Counts.merged(parts())
    _write_json(folder / STAGE_FILE, {
        **facts, "done": True, "seconds": time.monotonic() - started, "peak_memory": max(peaks),
        "workers": executor.workers, "counts": asdict(counts),
    })  # fmt: skip
    result = _finished(folder)
    assert result is not None
    return StageResult(**{f.name: getattr(result, f.name) for f in fields(result) if f.name != "reused"})


def _check_shards(folder: Path) -> None:
    """Of a stage that was finished before: are all its shards still there? Its documents would be lost in silence."""
    for mark in sorted((folder / TASKS_FOLDER).glob("*.json")):
        for name, size in json.loads(mark.read_text(encoding="utf-8")).get("files", {}).items():
            path = folder / name
            if path.parent == folder and not (path.is_file() and path.stat().st_size == size):
                raise DataError(f"{path} is gone or has changed: put it back, or remove {folder} to make it again")


def _finished(folder: Path) -> StageResult | None:
    state = _state(folder)
    if not state.get("done"):
        return None
    return StageResult(
        state["label"], state["kind"], folder, Counts(**state["counts"]), state["seconds"], state["peak_memory"],
        state["workers"], reused=True,
    )  # fmt: skip


def _state(folder: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((folder / STAGE_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def _fingerprint(recipe: DataRecipe, step: Step, before: str) -> str:
    """Tells whether a stage would write the same: its settings, the files they name, and everything before it."""
    facts = [VERSION, before, recipe.shards, recipe.task_mb, step.kind, recipe_dict(step.settings),
             list(_file_facts(step.settings))]  # fmt: skip
    return hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=16).hexdigest()


def _check_settings(recipe: DataRecipe, steps: Sequence[Step], fingerprints: Sequence[str]) -> None:
    """Before hours of work: can every stage that will run load what its settings name (scorers, sets, lists)?"""
    for number, step in enumerate(steps, start=1):
        state = _state(recipe.out / f"{number:02d}-{step.label}")
        if state.get("done") and state.get("fingerprint") == fingerprints[number]:
            continue
        if hasattr(step.settings, "check"):
            step.settings.check()
        elif isinstance(step.settings, MapStage):
            step.settings.transform()


def _check_paths(steps: Sequence[Step]) -> None:
    """Before hours of work: is every file there that a later stage needs?"""
    for step in steps:
        for path in _paths(step.settings):
            if not path.exists():
                raise DataError(f"the stage {step.label!r} needs {path}, which is not there")


def _paths(value: Any) -> Iterator[Path]:
    if isinstance(value, Path):
        yield value
    elif is_dataclass(value):
        for field in fields(value):
            yield from _paths(getattr(value, field.name))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _paths(item)
    elif isinstance(value, dict):
        yield from _paths(list(value.values()))


def _file_facts(value: Any) -> Iterator[tuple[str, int, int]]:
    """(path, bytes, time of change) of each file that settings name, and of the files in folders that they name.

    Settings, or parts of them, that name files otherwise than by fields of the type Path have a method `files()` that
    gives the paths.
    """
    paths = list(_paths(value))
    if is_dataclass(value):
        for part in [value, *(getattr(value, field.name) for field in fields(value))]:
            for item in part if isinstance(part, tuple) else [part]:
                if hasattr(item, "files") and callable(item.files):
                    paths += item.files()
    for named in paths:
        for path in sorted(named.rglob("*")) if named.is_dir() else [named]:
            if path.is_file():
                stat = path.stat()
                yield str(path), stat.st_size, stat.st_mtime_ns


def _write_plan(recipe: DataRecipe) -> None:
    names = [f"{number:02d}-{step.label}" for number, step in enumerate(recipe.stages, start=1)]
    _write_json(recipe.out / PIPELINE_FILE, {"version": VERSION, "stages": names})
    for folder in sorted(recipe.out.iterdir()):
        if (folder / STAGE_FILE).is_file() and folder.name not in names:
            print(f"{folder} is no stage of this recipe any more: delete it when you do not need it", file=sys.stderr)
    with replacing(recipe.out / RECIPE_FILE) as path:
        path.write_text(dump_recipe(recipe), encoding="utf-8")


def _write_json(path: Path, content: Any) -> None:
    with replacing(path) as partial:
        partial.write_text(json.dumps(content, ensure_ascii=True, indent=1), encoding="utf-8")


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    with open(folder / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise DataError(f"another run works in {folder}: wait for it, or choose another folder") from None
        yield
