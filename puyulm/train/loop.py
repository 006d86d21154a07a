"""The one training loop, for pretraining and fine-tuning alike.

It is handed a decoder, a source of packed batches found by number, and settings. Everything that could differ between
two runs of the same recipe (batches, learning rates) is a function of the step's number, so a resumed run goes on with
the very numbers of an uninterrupted one.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import torch
from torch import Tensor

from puyulm.data.packing import PackedBatch
from puyulm.errors import TrainError
from puyulm.model.attention import PackedAttention
from puyulm.model.decoder import Decoder
from puyulm.model.loss import IGNORE, linear_cross_entropy
from puyulm.progress import Progress
from puyulm.train.checkpoint import TrainState, latest_checkpoint, load_checkpoint, save_checkpoint
from puyulm.train.metrics import JsonLines, StepLog
from puyulm.train.optimizer import adamw, clip_gradients, set_learning_rate
from puyulm.train.schedule import learning_rate
from puyulm.train.settings import TrainSettings

METRICS_FILE, VALIDATION_FILE = "metrics.jsonl", "validation.jsonl"

SPARSE = 0.9
"""Below this share of target tokens (fine-tuning) the head, a large matrix, is spared the other tokens."""

Validate = Callable[[Decoder], Mapping[str, float]]
"""Measures a model; the names and values go to `validation.jsonl`."""


class BatchSource(Protocol):
    """Micro-batches found by number: the same number always gives the same batch."""

    def batch(self, step: int) -> PackedBatch: ...


@dataclass(frozen=True)
class TrainResult:
    """How a run ended: steps and tokens in all, and what the last validation measured (empty without one)."""

    steps: int
    tokens: int
    validation: Mapping[str, float]


def train(
    decoder: Decoder,
    source: BatchSource,
    settings: TrainSettings,
    folder: Path,
    *,
    steps: int,
    identity: Mapping[str, Any],
    validate: Validate | None = None,
    bits_per_byte_factor: float | None = None,
    label: str = "training",
) -> TrainResult:
    """Trains in place, from the newest checkpoint in `folder` where there is one.

    Writes `metrics.jsonl` (a line a step: loss in nats per target token, learning rate, gradient norm, speed),
    `validation.jsonl`, and `checkpoints/`. Ctrl-C and SIGTERM let the step finish and write a checkpoint first.

    Args:
        source: Step s takes micro-batches `s * accumulation` to `(s + 1) * accumulation - 1`.
        folder: The run's, made ready by `open_run`.
        steps: Optimizer steps of the whole run.
        identity: Stored in the checkpoints, see `open_run`.
        validate: Called every `eval_every` steps and after the last.
        bits_per_byte_factor: What a loss is multiplied with to give bits per byte of text, where that is known.

    Raises:
        TrainError: A loss or gradient is not finite, or a checkpoint cannot be read or written.
        KeyboardInterrupt: After the checkpoint that an interruption asked for.
    """
    device = pick_device(settings.device)
    decoder.to(device).train()
    optimizer = adamw(decoder, settings)
    state, checkpoint = TrainState(step=0, tokens=0, identity=dict(identity)), latest_checkpoint(folder)
    if checkpoint is not None:
        state = load_checkpoint(checkpoint, decoder, optimizer)
        where = f"resuming at step {state.step:,} of {steps:,}" if state.step < steps else "already trained"
        print(f"{label}: {where} ({folder})", file=sys.stderr, flush=True)
    metrics = JsonLines(folder / METRICS_FILE, state.step)
    validations = JsonLines(folder / VALIDATION_FILE, state.step)

    def due(every: int | None) -> bool:
        return state.step == steps or (every is not None and state.step > 0 and state.step % every == 0)

    def validate_if_due() -> None:
        if validate is None or not due(settings.eval_every) or validations.last.get("step") == state.step:
            return
        measured = validate(decoder)
        if not all(map(math.isfinite, measured.values())):
            raise TrainError(f"step {state.step}: the validation is not finite: {dict(measured)}")
        validations.append([{"step": state.step, "tokens": state.tokens, **measured}])
        shown = ", ".join(f"{name.replace('_', ' ')} {value:.4f}" for name, value in measured.items())
        progress.write(f"{label}: step {state.step:,}: validation {shown}")

    with Progress(label, total=steps, unit="step", initial=state.step) as progress, _stop_signals() as stop:
        validate_if_due()  # a run killed between a checkpoint and its validation does it now
        log = StepLog(decoder.config, metrics, progress, bits_per_byte_factor)
        while state.step < steps:
            batches = [source.batch(state.step * settings.accumulation + i) for i in range(settings.accumulation)]
            lr = learning_rate(state.step, steps, settings)
            set_learning_rate(optimizer, lr)
            loss, norm = train_step(decoder, optimizer, batches, settings, device)
            state = state.after(tokens=sum(len(batch.tokens) for batch in batches))
            log.add(state, batches, lr, loss, norm)

            save = stop.is_set() or due(settings.checkpoint_every)
            if save or due(settings.eval_every) or due(settings.log_every):
                log.flush(checkpoint)
            if save:
                checkpoint = save_checkpoint(folder, decoder, optimizer, state, settings.keep_checkpoints)
            if stop.is_set() and state.step < steps:
                progress.write(f"{label}: stopped after step {state.step:,}; the same command goes on from there")
                raise KeyboardInterrupt
            validate_if_due()
            log.restart_clock_if_flushed()
        if stop.is_set():  # in the last step or its validation: what follows the run is not wanted either
            progress.write(f"{label}: all {steps:,} steps are done; the same command only saves the model")
            raise KeyboardInterrupt
    decoder.eval()
    measured = {name: value for name, value in validations.last.items() if name not in ("step", "tokens")}
    return TrainResult(state.step, state.tokens, measured)


def train_step(
    decoder: Decoder,
    optimizer: torch.optim.Optimizer,
    batches: Sequence[PackedBatch],
    settings: TrainSettings,
    device: torch.device,
) -> tuple[Tensor, Tensor]:
    """One optimizer step over micro-batches.

    The loss is the sum over all target tokens of the step, divided by their number: it does not depend on how the
    tokens are split into micro-batches.

    Returns:
        Loss in nats per target token and gradient norm before clipping: scalars on the device, not waited for.
    """
    count = sum(batch.num_targets for batch in batches)
    if count == 0:
        raise TrainError("a step's batches hold no token to learn from; look at the data, or make batches larger")
    total = torch.zeros((), device=device)
    for batch in batches:
        loss = batch_loss(decoder, batch, count, device, getattr(torch, settings.dtype))
        loss.backward()
        total += loss.detach()
    norm = clip_gradients(decoder.parameters(), settings.clip_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return total, norm


def batch_loss(
    decoder: Decoder, batch: PackedBatch, denominator: float, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """Summed next-token loss of packed documents over `denominator`, a scalar with a gradient."""
    attention = PackedAttention(batch.lengths, device)
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        hidden = decoder(torch.from_numpy(batch.tokens).to(device), attention.positions, attention)
    targets = torch.from_numpy(batch.targets)
    if batch.num_targets < SPARSE * len(targets):
        counted = (targets != IGNORE).nonzero().squeeze(-1)
        hidden, targets = hidden.index_select(0, counted.to(device)), targets[counted]
    return linear_cross_entropy(hidden.to(dtype), decoder.head.weight.to(dtype), targets.to(device), denominator)


def pick_device(name: str) -> torch.device:
    """`"auto"` is CUDA where there is one, else the CPU.

    Raises:
        TrainError: CUDA is asked for and missing.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        raise TrainError("settings.device is cuda, but PyTorch finds no CUDA device; use --settings.device cpu")
    return torch.device(name)


@contextlib.contextmanager
def _stop_signals() -> Iterator[threading.Event]:
    """Turns the first Ctrl-C or SIGTERM into a set event; a second one interrupts at once."""
    stop = threading.Event()

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()
        # Not print: the signal may arrive in the middle of one.
        os.write(2, b"\nstopping after this step, with a checkpoint (again to stop at once)\n")

    if threading.current_thread() is not threading.main_thread():  # only there may handlers be set
        yield stop
        return
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
