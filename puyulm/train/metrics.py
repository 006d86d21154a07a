"""What a run writes down: one JSON line a step, and the floating-point operations behind its speed."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from puyulm.model.config import ModelConfig
from puyulm.parallel.world import World
from puyulm.progress import Progress
from puyulm.train.checkpoint import TrainState
from puyulm.train.course import Course
from puyulm.train.settings import TrainSettings

METRICS_FILE, VALIDATION_FILE = "metrics.jsonl", "validation.jsonl"


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
        self._path = path
        kept = [row for row in read_json_lines(path) if row["step"] <= last_step] if path.exists() else []
        self.last: Mapping[str, Any] = kept[-1] if kept else {}
        partial = path.with_name(f".{path.name}.partial")
        partial.write_text("".join(map(_line, kept)), encoding="utf-8")
        os.replace(partial, path)

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Adds lines; they are in the file, whatever happens to this process, when the call returns."""
        if rows:
            self.last = rows[-1]
            with self._path.open("a", encoding="utf-8") as file:
                file.write("".join(map(_line, rows)))


class RunLog:
    """What is written down and shown of a run's steps; only the main process does.

    Args:
        folder: Of the run.
        config: Of the model, for floating-point operations.
        steps: Of the whole run.
        state: Where the run starts; later lines of its files are dropped.
    """

    def __init__(
        self, folder: Path, config: ModelConfig, course: Course, settings: TrainSettings, world: World,
        state: TrainState, label: str,
    ) -> None:  # fmt: skip
        self._course, self._world, self._label, self._settings = course, world, label, settings
        self.config = config
        self._metrics = JsonLines(folder / METRICS_FILE, state.step) if world.main else None
        self.validations = JsonLines(folder / VALIDATION_FILE, state.step) if world.main else None
        self._progress = Progress(label, total=course.steps, unit="step", initial=state.step) if world.main else None
        self._clock = time.perf_counter()

    def step(
        self, state: TrainState, lr: float, values: Sequence[float], sources: Sequence[Sequence[float]], tokens: int,
        flops: float,
    ) -> None:  # fmt: skip
        """Writes one step, in order; called when its values have come from the device.

        Args:
            state: After the step.
            values, sources: Of its `StepResult`.
            tokens, flops: Of the whole global batch.
        """
        now = time.perf_counter()
        seconds, self._clock = max(now - self._clock, 1e-9), now
        if self._metrics is None or self._progress is None:
            return
        loss, norm, targets, skipped = values[:4]
        row: dict[str, Any] = {"step": state.step, "tokens": state.tokens, "lr": lr}
        row |= {"loss": _finite(loss), "grad_norm": _finite(norm), "targets": int(targets)}
        if skipped:
            row["skipped"] = True
        if self._course.bits_per_byte_factor is not None:
            row["bits_per_byte"] = _finite(loss * self._course.bits_per_byte_factor)
        row |= {"tokens_per_second": tokens / seconds, "gflop_per_second": flops / seconds / 1e9}
        self._metrics.append([row])
        self._progress.advance(1, f"loss {loss:.4f}, {row['tokens_per_second']:,.0f} tokens/s")

    def validation(self, state: TrainState, measured: Mapping[str, float]) -> None:
        """Writes a validation."""
        if self.validations is not None:
            self.validations.append([{"step": state.step, "tokens": state.tokens, **measured}])
        shown = ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in measured.items())
        self.say(f"step {state.step:,}: validation {shown}")

    def event(self, step: int, kind: str, text: str) -> None:
        """Something worth a line of its own: a step not taken, going back, stopping."""
        self.say(text)

    def say(self, text: str) -> None:
        """A line above the progress."""
        if self._progress is not None:
            self._progress.write(f"{self._label}: {text}")

    def pause(self) -> None:
        """Leaves what happened since the last step (validation, saving) out of the next speed."""
        self._clock = time.perf_counter()

    def close(self) -> None:
        """Ends the progress line."""
        if self._progress is not None:
            self._progress.__exit__(None, None, None)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """All whole lines of a metrics file; a half-written last one is left out."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            break
    return rows


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, allow_nan=False) + "\n"


def training_flops(config: ModelConfig, lengths: Sequence[int]) -> float:
    """Floating-point operations of a forward and backward pass over packed documents.

    6 per matrix weight and token (the embedding look-up is free, the head counts), and for attention
    `6 * layers * heads * head_dim * S^2` for a document of S tokens: causal, that is half of the full square.
    """
    layer = config.hidden_size * (config.qkv_size + config.num_heads * config.head_dim + 3 * config.intermediate_size)
    weights = config.num_layers * layer + config.hidden_size * (config.vocab_size if config.head == "lm" else 1)
    squares = sum(length * length for length in lengths)
    return 6.0 * weights * sum(lengths) + 6.0 * config.num_layers * config.num_heads * config.head_dim * squares
