"""Runs a checkpoint on recorded inputs and compares what it computes: the test of every port of a model.

A recording is a safetensors file with pairs `input_ids.N` `[B, N]` and `logits.N` `[B, N, V]`, or `reward.N` `[B, 1]`
for a reward model.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from puyulm.errors import CheckpointError
from puyulm.model.attention import PackedAttention
from puyulm.model.config import ModelConfig
from puyulm.model.decoder import Decoder
from puyulm.model.shards import Scratch, StoredTensor, stored_tensors
from puyulm.progress import Progress


@dataclass(frozen=True)
class CaseResult:
    """One recorded case.

    Attributes:
        name: Of the recorded output, "logits.9" or "reward.9".
        rows, length: Shape of its input.
        difference: Largest absolute difference between recorded and computed; NaN where either is not a number.
    """

    name: str
    rows: int
    length: int
    difference: float

    def within(self, tolerance: float) -> bool:
        return self.difference <= tolerance  # a NaN is not


@torch.inference_mode()
def check_model(decoder: Decoder, recording: Path) -> list[CaseResult]:
    """Compares a decoder with a recording, each row run as a document of its own.

    Returns:
        One result a case, in order of length.

    Raises:
        CheckpointError: The recording is missing or damaged, an input has no output or an output no input, a shape
            does not fit the model, or a token is outside its vocabulary.
    """
    device = decoder.embed.weight.device
    cases = _cases(recording, decoder.config)
    results = []
    with Progress("checking", total=len(cases), unit="case") as progress:
        for name, stored_ids, stored_output in cases:
            ids, expected = stored_ids.read(Scratch()), stored_output.read(Scratch()).double()
            if ids.min() < 0 or ids.max() >= decoder.config.vocab_size:
                raise CheckpointError(
                    f"{recording}: the input of {name} has token {int(ids.max())}, "
                    f"the vocabulary has {decoder.config.vocab_size} tokens"
                )
            difference = _difference(decoder, ids.to(device), expected)
            results.append(CaseResult(name, ids.shape[0], ids.shape[1], difference))
            progress.advance()
    return results


def _difference(decoder: Decoder, ids: Tensor, expected: Tensor) -> float:
    rows, length = ids.shape
    attention = PackedAttention([length] * rows, ids.device)
    hidden = decoder(ids.flatten(), attention.positions, attention)
    if decoder.config.head == "reward":
        computed = decoder.scores(hidden, attention.cu_seqlens).view(rows, 1)
        return _largest(computed, expected)
    # Row by row: the logits of all rows together may be far larger than the model.
    parts = [_largest(decoder.logits(h), e) for h, e in zip(hidden.split(length), expected, strict=True)]
    return math.nan if any(math.isnan(part) for part in parts) else max(parts)


def _largest(computed: Tensor, expected: Tensor) -> float:
    return float((computed.double().cpu() - expected).abs().max())  # max propagates NaN


def _cases(recording: Path, config: ModelConfig) -> list[tuple[str, StoredTensor, StoredTensor]]:
    """(name of the output, input, output) of every case, shapes checked."""
    if not recording.is_file():
        raise CheckpointError(f"{recording}: no such file; name the recorded inputs and outputs with --expected")
    stored = stored_tensors(recording)
    kind = "reward" if config.head == "reward" else "logits"
    inputs = {name.partition(".")[2]: name for name in stored if name.startswith("input_ids.")}
    outputs = {name.partition(".")[2]: name for name in stored if name.startswith(f"{kind}.")}
    if not inputs and not outputs:
        raise CheckpointError(f"{recording}: no input_ids.N with {kind}.N in it, which a {config.head} model needs")
    for lonely in sorted(inputs.keys() ^ outputs.keys()):
        has, lacks = (inputs[lonely], kind) if lonely in inputs else (outputs[lonely], "input_ids")
        raise CheckpointError(f"{recording}: {has} has no {lacks}.{lonely} beside it")
    cases = [(outputs[label], stored[inputs[label]], stored[outputs[label]]) for label in inputs]
    for name, ids, output in cases:
        if ids.dtype not in (torch.int32, torch.int64) or len(ids.shape) != 2 or 0 in ids.shape:
            raise CheckpointError(f"{recording}: the input of {name} must be whole numbers [rows, length]")
        wanted = (ids.shape[0], 1) if kind == "reward" else (*ids.shape, config.vocab_size)
        if output.shape != wanted:
            raise CheckpointError(f"{recording}: {name} has shape {list(output.shape)}, the model gives {list(wanted)}")
    return sorted(cases, key=lambda case: (case[1].shape[1], case[0]))
