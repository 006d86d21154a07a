"""What a run writes down: one JSON line a step, and the floating-point operations behind its speed."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from puyulm.data.packing import PackedBatch
from puyulm.errors import TrainError
from puyulm.model.config import ModelConfig
from puyulm.progress import Progress
from puyulm.train.checkpoint import TrainState


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


class StepLog:
    """The steps since the last look at the device: their losses are read, checked and written together."""

    def __init__(
        self, config: ModelConfig, metrics: JsonLines, progress: Progress, bits_per_byte_factor: float | None
    ) -> None:
        self._config, self._metrics, self._progress = config, metrics, progress
        self._bits_per_byte_factor = bits_per_byte_factor
        self._rows: list[dict[str, Any]] = []
        self._scalars: list[Tensor] = []
        self._tokens = self._flops = 0.0
        self._started = time.perf_counter()

    def add(self, state: TrainState, batches: Sequence[PackedBatch], lr: float, loss: Tensor, norm: Tensor) -> None:
        """Notes one step, without waiting for the device."""
        self._rows.append({"step": state.step, "tokens": state.tokens, "lr": lr})
        self._scalars += [loss, norm]
        self._tokens += sum(len(batch.tokens) for batch in batches)
        self._flops += sum(training_flops(self._config, batch.lengths) for batch in batches)

    def restart_clock_if_flushed(self) -> None:
        """Leaves what followed the last flush (validation, saving) out of the next speed."""
        if not self._rows:
            self._started = time.perf_counter()

    def flush(self, checkpoint: Path | None) -> None:
        """Waits for the device and writes the steps' metrics.

        Raises:
            TrainError: A loss or gradient norm is not finite; the message says where the last checkpoint is.
        """
        values = torch.stack(self._scalars).tolist()
        seconds = max(time.perf_counter() - self._started, 1e-9)
        speed = {"tokens_per_second": self._tokens / seconds, "gflop_per_second": self._flops / seconds / 1e9}
        rows, self._rows, self._scalars, self._tokens, self._flops = self._rows, [], [], 0.0, 0.0
        for index, (loss, norm) in enumerate(zip(values[::2], values[1::2], strict=True)):
            if not (math.isfinite(loss) and math.isfinite(norm)):
                self._metrics.append(rows[:index])
                raise TrainError(_not_finite(rows[index], loss, norm, checkpoint))
            rows[index] |= {"loss": loss, "grad_norm": norm}
            if self._bits_per_byte_factor is not None:
                rows[index]["bits_per_byte"] = loss * self._bits_per_byte_factor
            rows[index] |= speed
        self._metrics.append(rows)
        self._progress.advance(len(rows), f"loss {values[-2]:.4f}, {speed['tokens_per_second']:,.0f} tokens/s")


def _not_finite(row: Mapping[str, Any], loss: float, norm: float, checkpoint: Path | None) -> str:
    kept = f"the last good checkpoint is {checkpoint}" if checkpoint else "there is no checkpoint yet"
    return (
        f"step {row['step']}: the loss is {loss:g} and the gradient norm {norm:g} at learning rate {row['lr']:.3g}; "
        f"{kept}; lower settings.lr or settings.clip_norm, or lengthen settings.warmup_ratio"
    )


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
