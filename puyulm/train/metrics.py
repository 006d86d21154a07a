"""The files of a run that grow by a line a step, and losses smoothed over steps."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

from puyulm.errors import TrainError

METRICS_FILE, VALIDATION_FILE, EVENTS_FILE, LOG_FILE = "metrics.jsonl", "validation.jsonl", "events.jsonl", "train.log"
SMOOTHING = 0.98


@dataclass(frozen=True, kw_only=True)
class StepFigures:
    """What is known of a step.

    Attributes:
        step, tokens: Done in all, this step among them.
        steps: Of the whole run.
        phase: Its name; empty where there is but one.
        loss: Nats per target token; smoothed: over the last steps.
        targets: Tokens with a loss.
        tokens_per_second: Of all devices.
        mfu, mfu_causal: Share of the devices' peak, by PaLM's count of operations and by ours (`training_flops`); None
            where the peak is not known.
        memory_gib: Of this process: the most that tensors took on a GPU so far; on a CPU, what is resident.
        seconds: Since the step before; data_seconds: of them, waiting for the batch.
        left: Seconds to the end of the run, as far as one can tell.
        skipped: The step was not taken.
        sources: Loss and target tokens of each source in this step; sources_smoothed: loss over the last steps.
    """

    step: int
    steps: int
    tokens: int
    phase: str
    lr: float
    loss: float
    smoothed: float | None
    grad_norm: float
    targets: int
    bits_per_byte: float | None
    tokens_per_second: float
    mfu: float | None
    mfu_causal: float | None
    memory_gib: float
    seconds: float
    data_seconds: float
    left: float | None
    skipped: bool = False
    sources: Mapping[str, tuple[float, int]] = field(default_factory=dict)
    sources_smoothed: Mapping[str, float] = field(default_factory=dict)

    def row(self) -> dict[str, Any]:
        """A line of `metrics.jsonl`: what belongs to this step alone; without what is not known."""
        row: dict[str, Any] = {
            "step": self.step, "tokens": self.tokens, "lr": self.lr, "loss": finite(self.loss),
            "grad_norm": finite(self.grad_norm), "targets": self.targets,
        }  # fmt: skip
        if self.phase:
            row["phase"] = self.phase
        if self.skipped:
            row["skipped"] = True
        if self.bits_per_byte is not None:
            row["bits_per_byte"] = finite(self.bits_per_byte)
        row["tokens_per_second"] = round(self.tokens_per_second, 1)
        for name, share in (("mfu", self.mfu), ("mfu_causal", self.mfu_causal)):
            if share is not None:
                row[name] = round(share, 5)
        row["memory_gib"] = round(self.memory_gib, 3)
        row["seconds"], row["data_seconds"] = round(self.seconds, 6), round(self.data_seconds, 6)
        if self.sources:
            row["sources"] = {name: finite(loss) for name, (loss, _) in self.sources.items()}
            row["source_targets"] = {name: targets for name, (_, targets) in self.sources.items()}
        return row


class AppendFile:
    """A file that grows; what was written is in it, whatever happens to this process, when `write` returns.

    Args:
        path: Made when missing.
        keep: Bytes of what is there that stay; None keeps all, and ends a half-written line.
    """

    def __init__(self, path: Path, keep: int | None = None) -> None:
        self._path = path
        # Without a buffer: a process that is killed has nothing in hand.
        self._file = path.open("ab", buffering=0)
        if keep is None and _ends_within_line(path):
            self._file.write(b"\n")
        elif keep is not None and keep < path.stat().st_size:
            self._file.truncate(keep)

    def write(self, data: bytes) -> None:
        """Adds bytes.

        Raises:
            TrainError: There is no room.
        """
        try:
            written = self._file.write(data)
        except OSError as error:
            raise TrainError(f"cannot write to {self._path}: {error.strerror or error}") from error
        if written != len(data):
            raise TrainError(f"cannot write to {self._path}: the disk is full")

    def close(self) -> None:
        """Closes it."""
        self._file.close()


class JsonLines:
    """A file of one JSON object a line, ordered by `step`, to which a resumed run appends.

    Args:
        path: Made when missing.
        last_step: Lines of later steps (written after the checkpoint that the run resumes from) and a half-written
            last line are dropped, so that no step appears twice.

    Attributes:
        last: The last line, empty when there is none.
    """

    def __init__(self, path: Path, last_step: int) -> None:
        self.last: Mapping[str, Any] = {}
        keep = 0
        for end, row in _rows(path):
            if row["step"] > last_step:
                break
            self.last, keep = row, end
        self._file = AppendFile(path, keep)

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Adds lines; they are in the file, whatever happens to this process, when the call returns."""
        if rows:
            self.last = rows[-1]
            self._file.write(b"".join(map(json_line, rows)))

    def close(self) -> None:
        """Closes it."""
        self._file.close()


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """All rows of a metrics file; what is half-written or damaged is left out."""
    return [row for _, row in _rows(path)]


def json_line(row: Mapping[str, Any]) -> bytes:
    """A row with the end of its line."""
    return (json.dumps(row, allow_nan=False, ensure_ascii=False) + "\n").encode()


def finite(value: float) -> float | None:
    """The value, or None (JSON has no others)."""
    return value if math.isfinite(value) else None


class Smoothed:
    """A mean over about a tenth of the steps so far, but over no more than fifty; weighted by tokens."""

    def __init__(self) -> None:
        self._steps, self._sum, self._weight = 0, 0.0, 0.0

    def add(self, total: float, weight: float) -> None:
        """Takes in a sum over `weight` tokens; what is not finite is left out."""
        if weight > 0 and math.isfinite(total):
            decay = min(SMOOTHING, self._steps / (self._steps + 10))
            self._steps += 1
            self._sum = decay * self._sum + (1 - decay) * total
            self._weight = decay * self._weight + (1 - decay) * weight

    @property
    def value(self) -> float | None:
        """The mean; None before there is any token."""
        return self._sum / self._weight if self._weight > 0 else None


def short_names(names: Sequence[str]) -> list[str]:
    """Paths as short names, different where the paths are: without the folders that all share, first or last.

    `["mix/web/train", "mix/code/train"]` -> `["web", "code"]`.
    """
    parts = [PurePath(name).parts or (name,) for name in names]
    if len(parts) == 1:
        return [PurePath(names[0]).name or names[0]]
    ends = [list(part) for part in parts]
    for position in (0, -1):
        while len({end[position] for end in ends}) == 1 and all(len(end) > 1 for end in ends):
            for end in ends:
                del end[position]
    short = ["/".join(end) for end in ends]
    return short if len(set(short)) == len(set(names)) else list(names)


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Whole rows of a file, each with where its line ends."""
    if not path.exists():
        return
    end = 0
    with path.open("rb") as file:
        for line in file:
            end += len(line)
            if not line.endswith(b"\n"):  # half-written, even where it looks whole
                return
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict) and isinstance(row.get("step"), int):
                yield end, row


def _ends_within_line(path: Path) -> bool:
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return False
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"
