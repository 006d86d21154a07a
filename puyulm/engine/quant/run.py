"""From a float checkpoint to a quantised one beside it, with a report."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from puyulm.engine.load import load_for_inference
from puyulm.engine.quant.files import write_quantized_weights
from puyulm.engine.quant.layerwise import LayerwisePass
from puyulm.engine.quant.report import QuantReport, decode_speed, perplexity, weight_file_bytes
from puyulm.engine.quant.scheme import scheme_of, scheme_to_json
from puyulm.engine.quant.settings import QuantSettings
from puyulm.engine.quant.source import FloatSource
from puyulm.errors import CheckpointError
from puyulm.model.checkpoint import new_checkpoint, updated_config, write_companions
from puyulm.model.memory import count_parameters

CHEAP_BYTES = 4 << 30  # of weights in float32, up to which both models are loaded to measure their speed


def quantize_checkpoint(
    source: Path,
    folder: Path,
    settings: QuantSettings,
    *,
    calibration: Tensor | None = None,
    held_out: Tensor | None = None,
    device: str = "cpu",
    overwrite: bool = False,
    max_shard_bytes: int = 5_000_000_000,
    write_extra: Callable[[Path], None] | None = None,
) -> QuantReport:
    """Quantises a checkpoint folder or GGUF file and writes another beside: weights, `config.json`, the tokenizer's
    files and `quantization.json`. What is written is read back before it takes its place.

    Args:
        folder: Made whole or not at all.
        calibration: `[R, L]` tokens, for the methods that look at activations.
        held_out: `[R, L]` other tokens, to measure perplexity on.
        device: Where the layers are run.
        overwrite: Replace an existing checkpoint.
        write_extra: Called with the unfinished folder, to add files of the caller's.

    Raises:
        ConfigError, CheckpointError: The settings do not fit the model, the source cannot be read, is quantised or
            unsound, or the folder cannot be written.
    """
    require_replaceable(source, folder, overwrite)
    weights = FloatSource(source)
    settings.require_fits(weights.config)
    if weights.config.head == "reward":
        held_out = None  # a reward model predicts no tokens
    scheme = scheme_of(settings, weights.config)
    beside = source if source.is_dir() else None
    raw = updated_config(weights.config, "own", beside) | {"quantization_config": scheme_to_json(scheme)}
    started = time.perf_counter()
    with new_checkpoint(folder, overwrite=overwrite) as partial:
        work = LayerwisePass(weights, settings, calibration, held_out, torch.device(device))
        write_quantized_weights(weights.config, scheme, work.parameters(), partial, weights.dtype, max_shard_bytes)
        write_companions(partial, raw, beside, code=True)
        if write_extra is not None:
            write_extra(partial)
        seconds = time.perf_counter() - started
        report = _report(weights, partial, settings, work, calibration, held_out, device, seconds)
        report.write(partial)
    return report


def require_replaceable(source: Path, folder: Path, overwrite: bool) -> None:
    """Raises a CheckpointError where writing `folder` would lose the source or something that is no checkpoint."""
    ours, theirs = folder.resolve(), source.resolve()
    if ours == theirs or ours in theirs.parents:
        raise CheckpointError(f"{folder}: holds the model that is to be quantised; choose another folder")
    if folder.exists() and not overwrite and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"{folder}: already exists; choose another folder, or add --overwrite")
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not (folder / "config.json").is_file())):
        raise CheckpointError(f"{folder}: is no checkpoint folder and will not be replaced; choose another")


def _report(
    weights: FloatSource,
    folder: Path,
    settings: QuantSettings,
    work: LayerwisePass,
    calibration: Tensor | None,
    held_out: Tensor | None,
    device: str,
    seconds: float,
) -> QuantReport:
    cheap = count_parameters(weights.config).total * 4 <= CHEAP_BYTES
    # One after the other: together they may be more than there is.
    before = decode_speed(load_for_inference(weights.path, device=device)) if cheap else None
    quantised = load_for_inference(folder, device=device)
    after = decode_speed(quantised)
    judged = None
    if held_out is not None and work.perplexity is not None:
        judged = (work.perplexity, perplexity(quantised, held_out))
    return QuantReport(
        settings=settings,
        perplexity=judged,
        held_out_tokens=0 if held_out is None else held_out.shape[0] * (held_out.shape[1] - 1),
        calibration_tokens=calibration.numel() if calibration is not None and settings.calibrated else 0,
        bytes=(weight_file_bytes(weights.path), weight_file_bytes(folder)),
        tokens_per_second=None if before is None else (before, after),
        seconds=seconds,
        device=device,
    )
