"""What a run costs at another size: core hours, storage and shuffled bytes, scaled from a measured run.

Every stage's work and files grow in proportion to its input, and what it keeps is taken to be the same share; only
duplicates become more frequent in a larger crawl, so that what comes after deduplication is overestimated.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from puyulm.data.pipeline.run import StageResult
from puyulm.data.pipeline.stage import TASKS_FOLDER
from puyulm.errors import DataError

LEAST_SECONDS = 30.0  # of work, below which an estimate says little


@dataclass(frozen=True)
class StageCost:
    """What one stage costs at the asked size.

    Attributes:
        label: The stage.
        documents: That come in.
        core_hours: Of work.
        stored_bytes: Of its shards on disk, those of dropped documents included.
        shuffled_bytes: Of intermediate files, written once and read once.
    """

    label: str
    documents: float
    core_hours: float
    stored_bytes: float
    shuffled_bytes: float


def estimate(results: Sequence[StageResult], input_bytes: float = 0.0, documents: float = 0.0) -> list[StageCost]:
    """Scales a finished run to so many bytes of input files, or to so many documents (pages, records) in them.

    Raises:
        DataError: The run read nothing.
    """
    if not results or not results[0].counts.bytes_in:
        raise DataError("the run has no finished stage that read input: run the pipeline first (puyu data run)")
    first = results[0]
    scale = documents / first.counts.documents_in if documents else input_bytes / _file_bytes(first)
    costs = []
    for result in results:
        stored, shuffled = _sizes(result.folder)
        costs.append(
            StageCost(
                result.label,
                (result.counts.documents_in or result.counts.documents_out) * scale,
                _task_seconds(result.folder) * scale / 3600,
                stored * scale,
                shuffled * scale,
            )
        )
    return costs


def estimate_table(costs: Sequence[StageCost], cores: int) -> str:
    """The estimate as lines of text, with the hours on `cores` cores."""
    lines = [f"{'stage':<18}{'documents':>12}{'core hours':>14}{'hours':>10}{'stored':>12}{'shuffled':>12}"]
    total = StageCost(
        "total", costs[0].documents, *(sum(getattr(c, name) for c in costs)
                                       for name in ("core_hours", "stored_bytes", "shuffled_bytes"))
    )  # fmt: skip
    for cost in [*costs, total]:
        lines.append(
            f"{cost.label:<18}{_short(cost.documents):>12}{cost.core_hours:>14,.1f}{cost.core_hours / cores:>10,.1f}"
            f"{_short(cost.stored_bytes) + 'B':>12}{_short(cost.shuffled_bytes) + 'B':>12}"
        )
    return "\n".join(lines)


def basis(results: Sequence[StageResult]) -> str:
    """What an estimate rests on, and whether that is enough, in one line."""
    read = _file_bytes(results[0])
    seconds = sum(_task_seconds(result.folder) for result in results)
    line = f"scaled from {_short(read)}B of input files and {seconds:,.0f} s of work"
    return line + ("; run it on more, a part of so little is starting up" if seconds < LEAST_SECONDS else "")


def _file_bytes(first: StageResult) -> float:
    """Size of the input's files: a crawl is compressed, while the stage counts what it unpacked."""
    sizes = [task.get("input_bytes", 0) for task in _tasks(first.folder)]
    return float(sum(sizes) or first.counts.bytes_in)


def _task_seconds(folder: Path) -> float:
    return float(sum(task["seconds"] for task in _tasks(folder)))


def _tasks(folder: Path) -> list[dict[str, float]]:
    return [json.loads(path.read_text(encoding="utf-8")) for path in sorted((folder / TASKS_FOLDER).glob("*.json"))]


def _sizes(folder: Path) -> tuple[int, int]:
    """(bytes of shards, bytes of intermediate files) in a stage's folder."""
    stored = shuffled = 0
    for path in folder.rglob("*"):
        if not path.is_file() or TASKS_FOLDER in path.parts or path.suffix == ".json":
            continue
        if path.name.endswith((".jsonl.zst", ".parquet", ".bin", ".idx")) and path.parent.name != "shuffle":
            stored += path.stat().st_size
        else:
            shuffled += path.stat().st_size
    return stored, shuffled


def _short(value: float) -> str:
    for unit in ("", "K", "M", "G", "T"):
        if value < 1000:
            return f"{value:.0f} {unit}" if value >= 100 or not unit else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:,.1f} P"
