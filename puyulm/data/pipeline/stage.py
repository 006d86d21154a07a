"""What a stage is, and what it is given to work with.

A stage's settings are a frozen dataclass in a recipe. Most stages look at one document at a time: their settings have a
method `transform()`, called once a task, that gives a function from a batch of documents to outcomes in the same order.
Stages that look at many documents together have `run(stage)` instead, and split their work with `stage.map`.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

from puyulm.data.documents import Document, DocumentWriter, read_documents, replacing
from puyulm.data.pipeline.counts import Counts, Dropped, Outcome
from puyulm.data.pipeline.executor import TICK, Executor
from puyulm.data.pipeline.heartbeat import heard
from puyulm.progress import Progress

T = TypeVar("T")
Transform = Callable[[Sequence[Document]], Iterable[Outcome]]

STAGE_FILE = "stage.json"
DROPPED_FOLDER = "dropped"
TASKS_FOLDER = "tasks"
BATCH_DOCUMENTS = 512
BATCH_CHARACTERS = 2_000_000


@runtime_checkable
class MapStage(Protocol):
    """Settings of a stage that looks at one document at a time."""

    def transform(self) -> Transform:
        """Makes the function that works; called in the worker, once a task."""
        ...


@runtime_checkable
class Stage(Protocol):
    """Settings of a stage that looks at many documents together, or reads raw input."""

    def run(self, stage: StageRun) -> None:
        """Does the stage's work in `stage.folder`, its parts through `stage.map`."""
        ...


@dataclass(frozen=True)
class StageRun:
    """One stage of a run.

    Attributes:
        label: For the progress display ("clean").
        folder: The stage's own; shards go into it as `00000.jsonl.zst`, dropped documents into `dropped/` in it.
        inputs: The shards of the stage before, in order; empty for the first.
        before: The folder of the stage before; None for the first.
        executor: Runs tasks.
        suffix: Of shards: "jsonl.zst" or "parquet".
        task_bytes: How much input (bytes of files) a task should take.
    """

    label: str
    folder: Path
    inputs: Sequence[Path]
    before: Path | None
    executor: Executor
    suffix: str
    task_bytes: int

    def map(
        self,
        phase: str,
        function: Callable[[T], Mapping[str, Any]],
        tasks: Sequence[T],
        sizes: Sequence[int] | None = None,
    ) -> list[dict[str, Any]]:
        """Runs `function(task)` for each task in workers and gives the results in the tasks' order.

        Results are mappings that JSON can hold; each is saved in `tasks/` when its task ends, and a task whose result
        is there already is not run again. A result's entry "files" (path below the stage's folder -> size) is checked
        then: a task whose files are gone or have another size runs again. So a function must write its files whole
        (`replacing`, `write_outcomes`), choose the same contents each time, and change nothing that another reads. A
        result's entry "counts" holds `Counts`, as a mapping; the stage's figures are their sum over all phases. What is
        returned lacks it: samples of documents of a million tasks would fill the memory.

        Args:
            phase: Names the results; one word, different for each call.
            function: A module's own function, or a `partial` of one: it travels to other processes.
            tasks: Anything that pickles.
            sizes: Bytes of input of each task, for the progress display.
        """
        sizes = sizes if sizes is not None else [1] * len(tasks)
        marks = [self.folder / TASKS_FOLDER / f"{phase}-{number:05d}.json" for number in range(len(tasks))]
        results = [self._saved(mark) for mark in marks]
        waiting = [number for number, result in enumerate(results) if result is None]
        done = sum(sizes) - sum(sizes[number] for number in waiting)
        label = self.label if self.label.startswith(phase) else f"{self.label}: {phase}"
        unit = "B" if sum(sizes) > len(tasks) else "task"
        counts = Counts()
        started = time.monotonic()
        with Progress(label, total=sum(sizes), unit=unit, initial=done) as progress:
            before = self.executor.outcomes()
            ran = self.executor.run(partial(_timed, function), [tasks[number] for number in waiting])
            for position, result in ran:
                if position == TICK:
                    progress.advance(0, note=self._note(before, counts, time.monotonic() - started))
                    continue
                number = waiting[position]
                result["input_bytes"] = sizes[number] if unit == "B" else 0
                with replacing(marks[number]) as path:
                    path.write_text(json.dumps(result, ensure_ascii=True), encoding="utf-8")
                if "counts" in result:
                    counts.merge(Counts(**result.pop("counts")))
                results[number] = result
                progress.advance(sizes[number], note=self._note(before, counts, time.monotonic() - started))
        return [result for result in results if result is not None]

    def _note(self, before: tuple[int, int] | None, counts: Counts, seconds: float) -> str:
        """Pace, and what was kept and dropped, by what the workers tell or else by the finished tasks."""
        now = self.executor.outcomes()
        if before is not None and now is not None:
            kept, dropped = now[0] - before[0], now[1] - before[1]
        else:
            kept = counts.documents_out
            dropped = sum(documents for documents, _ in counts.dropped.values())
        if not kept + dropped:
            return ""
        return f"{(kept + dropped) / max(seconds, 1e-9):,.0f} documents/s, kept {kept:,}, dropped {dropped:,}"

    def _saved(self, mark: Path) -> dict[str, Any] | None:
        try:
            result = json.loads(mark.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        for name, size in result.get("files", {}).items():
            path = self.folder / name
            if not path.is_file() or path.stat().st_size != size:
                return None
        return {name: value for name, value in result.items() if name != "counts"}


def run_stage(settings: Any, stage: StageRun) -> None:
    """Runs a stage of either kind."""
    if isinstance(settings, Stage):
        settings.run(stage)
    else:
        map_documents(settings, stage)


def map_documents(settings: MapStage, stage: StageRun) -> None:
    """Runs a stage that looks at one document at a time: a task for every few input shards, an output shard a task."""
    groups = group_by_size(stage.inputs, stage.task_bytes)
    tasks = [(number, group) for number, group in enumerate(groups)]
    function = partial(_map_task, settings=settings, folder=stage.folder, suffix=stage.suffix)
    stage.map(stage.label, function, tasks, [sum(path.stat().st_size for path in group) for group in groups])


def write_outcomes(
    folder: Path, number: int, outcomes: Iterable[Outcome], counts: Counts, suffix: str
) -> dict[str, Any]:
    """Writes kept documents to `folder/00000.SUFFIX` and dropped ones to `folder/dropped/`, and counts both.

    Args:
        folder: The stage's.
        number: The task's; it names the shards.
        outcomes: In the order in which they are written. Dropped documents carry their reason in
            `metadata["dropped"]`.
        counts: Receives the counts of what is written; what came in is counted by whoever reads.
        suffix: Of the shards.

    Returns:
        A task's result: "counts" and "files". Files without documents are not written.
    """
    name = f"{number:05d}.{suffix}"
    kept, dropped = folder / name, folder / DROPPED_FOLDER / name
    written = {}
    started = time.monotonic()
    with replacing(kept) as kept_partial, replacing(dropped) as dropped_partial:
        with DocumentWriter(kept_partial, name) as good, DocumentWriter(dropped_partial, name) as bad:
            for outcome in heard(outcomes):
                counts.add(outcome)
                if isinstance(outcome, Dropped):
                    bad.write(_with_reason(outcome))
                else:
                    good.write(outcome)
        written = {path: writer.count for path, writer in ((kept, good), (dropped, bad))}
    for path, count in written.items():
        if not count:
            path.unlink()
    counts.seconds += time.monotonic() - started
    files = {str(path.relative_to(folder)): path.stat().st_size for path, count in written.items() if count}
    return {"counts": asdict(counts), "files": files}


def shards_in(folder: Path) -> list[Path]:
    """The shards of documents in a stage's folder, in order."""
    found = (p for p in folder.glob("[0-9]*") if p.name.partition(".")[2] in ("jsonl.zst", "parquet", "jsonl.gz"))
    return sorted(found, key=lambda path: (len(path.name), path.name))  # 99999 before 100000


def group_by_size(paths: Sequence[Path], target: int) -> list[list[Path]]:
    """Cuts a sequence of files into runs of about `target` bytes; a larger file stands alone."""
    groups: list[list[Path]] = []
    size = target
    for path in paths:
        length = path.stat().st_size
        if size + length > target:
            groups.append([])
            size = 0
        groups[-1].append(path)
        size += length
    return groups


def batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Cuts a stream into batches of at most 512 documents and about 2 million characters."""
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.text)
        if len(batch) >= BATCH_DOCUMENTS or size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _map_task(task: tuple[int, list[Path]], settings: MapStage, folder: Path, suffix: str) -> dict[str, Any]:
    number, paths = task
    transform = settings.transform()
    counts = Counts()

    def outcomes() -> Iterator[Outcome]:
        for batch in batches(document for path in paths for document in read_documents(path)):
            counts.add_input(sum(document.num_bytes for document in batch), len(batch))
            yield from transform(batch)

    return write_outcomes(folder, number, outcomes(), counts, suffix)


def _with_reason(dropped: Dropped) -> Document:
    document = dropped.document
    values = {name: getattr(document, name) for name in document.__slots__}
    return Document(**{**values, "metadata": {**document.metadata, "dropped": dropped.reason}})


def _timed(function: Callable[[T], Mapping[str, Any]], task: T) -> dict[str, Any]:
    """A task's result with the seconds it took and the process's peak memory so far."""
    started = time.monotonic()
    result = dict(function(task))
    scale = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
    return {**result, "seconds": time.monotonic() - started, "peak_memory": peak, "process": os.getpid()}


def clear_stage(folder: Path) -> None:
    """Removes an earlier run of a stage; only a folder that a run made is touched."""
    if not (folder / STAGE_FILE).is_file():
        return
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != STAGE_FILE:  # last: with it, a run that is killed here is still known for one
            path.unlink()
    shutil.rmtree(folder)
