"""Training steps of InternLM2 on one Hopper GPU, bfloat16: share of the GPU's peak, by the convention of PaLM.

Ours is the whole step of a run (micro-batches, clipping, verdict, fused AdamW) on a compiled model. transformers has
the same shape in the same precision (float32 weights, products in bfloat16), its fastest attention ("sdpa") and a fused
AdamW, and is measured as it is and compiled. Models come one after another, since each fills the memory, and take the
largest micro-batch that fits. On a CPU `--smoke` runs the same code with a tiny model.
"""

from __future__ import annotations

import gc
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.harness import Row, installed, missing
from puyulm.data.packing import PackedBatch
from puyulm.model.config import ModelConfig
from puyulm.model.hf_config import config_to_json
from puyulm.model.loss import IGNORE
from puyulm.model.presets import preset
from puyulm.parallel.build import build_model
from puyulm.parallel.plan import ParallelPlan, Recompute
from puyulm.parallel.world import World
from puyulm.train.flops import known_peak, palm_flops
from puyulm.train.guard import Guard
from puyulm.train.optimizer import Optimizer
from puyulm.train.settings import TrainSettings
from puyulm.train.step import to_device, train_step

PEER = "transformers"
WARM_UPS, STEPS = 3, 8
LR = 1e-5
SMOKE_PEAK = 0.1


@dataclass(frozen=True)
class Case:
    """What is trained, and how.

    Attributes:
        rows: Of a micro-batch, the sizes to try, largest first.
        micro_batches: Of a step.
        target: Share of the peak to be reached, in percent.
        peers: Whether transformers is measured too.
    """

    name: str
    config: ModelConfig
    length: int
    rows: tuple[int, ...]
    micro_batches: int = 1
    recompute: Recompute = "none"
    state_dtype: str = "float32"
    target: float | None = None
    peers: bool = False


@dataclass(frozen=True)
class Found:
    """A contender's result: the rows of its micro-batches, tokens a second, and the most memory that it took."""

    rows: int
    tokens_per_second: float
    gigabytes: float


def cases(smoke: bool) -> list[Case]:
    """What is measured."""
    small, large = preset("internlm2-1_8b").config, preset("internlm2-7b").config
    full = [
        Case("1.8B, 4,096", small, 4096, (8, 6, 4, 3, 2, 1), micro_batches=2, target=50.0, peers=True),
        Case("7B, 4,096, recompute, bf16 states", large, 4096, (8, 4, 2, 1), 2, "full", "bfloat16"),
        Case("1.8B, 32,768, recompute", small, 32_768, (1,), 1, "full"),
        Case("1.8B, 262,144, recompute", small, 262_144, (1,), 1, "full"),
    ]
    if not smoke:
        return full
    tiny = dict(hidden_size=32, intermediate_size=64, num_layers=2, num_heads=4, num_kv_heads=2, head_dim=8)
    return [replace(case, config=case.config.evolve(**tiny, vocab_size=512), length=32, rows=(2,)) for case in full]


def run(only: str = "", smoke: bool = False) -> list[Row]:
    """All rows, or those of the cases whose name holds `only`."""
    device = torch.device("cpu" if smoke else "cuda")
    # Rows of many sizes in turn leave holes in memory otherwise; read when CUDA is first used.
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    if not smoke and not torch.cuda.is_available():
        raise SystemExit("training_gpu needs a CUDA device; --smoke runs it with a tiny model on a CPU")
    peak = SMOKE_PEAK if smoke else known_peak(torch.cuda.get_device_name())
    rows: list[Row] = []
    for case in cases(smoke):
        if only in case.name:
            print(f"{case.name} ...", file=sys.stderr, flush=True)
            rows += case_rows(case, device, peak)
    return rows


def case_rows(case: Case, device: torch.device, peak: float | None) -> list[Row]:
    """Our figures of a case, and against those of the peers."""
    mine = largest(case, partial(ours, case, device), device)
    if mine is None:
        return [Row(f"{case.name} tokens: out of memory", "tok/s", None, None, "", None, None)]
    name = f"{case.name} tokens, rows of {mine.rows}"
    rows = [Row(f"{name}: memory", "GB", mine.gigabytes, None, "", None, None)]
    if peak is not None:
        share = 100 * mine.tokens_per_second * palm_flops(case.config, 1, case.length) / peak / 1e12
        ratio, bound = (share / case.target, f"{case.target:g} % of {peak:g} TFLOP/s") if case.target else (None, "")
        rows.append(Row(f"{name}: MFU (PaLM)", "%", share, case.target, bound, ratio, case.target and 1.0))
    if not case.peers:
        return [Row(name, "tok/s", mine.tokens_per_second, None, "", None, None), *rows]
    if not installed(PEER):
        return [missing(name, "tok/s", "transformers>=5.0", None), *rows]
    for compiled in (False, True) if device.type == "cuda" else (False,):
        theirs = largest(case, partial(peer, case, device, compiled), device)
        label = f"{PEER}{' compiled' if compiled else ''}"
        if theirs is None:
            rows.append(Row(name, "tok/s", mine.tokens_per_second, None, f"{label}: out of memory", None, None))
            continue
        ratio = mine.tokens_per_second / theirs.tokens_per_second
        label = f"{label}, rows of {theirs.rows}, {theirs.gigabytes:.0f} GB"
        rows.append(Row(name, "tok/s", mine.tokens_per_second, theirs.tokens_per_second, label, ratio, None))
    return rows


def largest(case: Case, make: Callable[[int], Callable[[], Tensor]], device: torch.device) -> Found | None:
    """Measures with the largest micro-batch that fits; None where none does."""
    for rows in case.rows:
        try:
            seconds, gigabytes = attempt(make, rows, device)
        except torch.OutOfMemoryError:
            print(f"  {rows} rows do not fit", file=sys.stderr)
            continue
        return Found(rows, rows * case.length * case.micro_batches / seconds, gigabytes)
    return None


def attempt(make: Callable[[int], Callable[[], Tensor]], rows: int, device: torch.device) -> tuple[float, float]:
    """Seconds of a step and the most gigabytes, from a device that holds nothing."""
    torch.compiler.reset()
    gc.collect()
    if device.type != "cuda":
        return timed(make(rows), device), 0.0
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return timed(make(rows), device), torch.cuda.max_memory_allocated() / 1e9


def timed(step: Callable[[], Tensor], device: torch.device) -> float:
    """Seconds of a step, the median of several."""
    found = []
    for number in range(WARM_UPS + STEPS):
        started = time.perf_counter()
        loss = step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        if number >= WARM_UPS:
            found.append(time.perf_counter() - started)
    if not bool(loss.isfinite()):
        raise RuntimeError("the loss is not finite")
    return statistics.median(found)


def ours(case: Case, device: torch.device, rows: int) -> Callable[[], Tensor]:
    """A step as a run takes it."""
    plan = ParallelPlan(recompute=case.recompute, compile=device.type == "cuda")
    model = build_model(case.config, World.alone(device, plan), dtype=torch.bfloat16)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.02) if parameter.dim() > 1 else parameter.fill_(1.0)
    settings = TrainSettings(state_dtype=case.state_dtype, dtype="bfloat16")  # type: ignore[arg-type]
    optimizer = Optimizer(dict(model.named_parameters()), settings, model.config)
    guard = Guard(settings.spikes, device)
    batches = [packed(case, rows, number) for number in range(case.micro_batches)]

    def step() -> Tensor:
        return train_step(model, optimizer, guard, to_device(model, batches), LR, settings).values[0]

    return step


def peer(case: Case, device: torch.device, compiled: bool, rows: int) -> Callable[[], Tensor]:
    """The same by transformers, in a plain loop."""
    import transformers

    # InternLM2 as transformers knows it: a Llama, whose q, k and v are rows of one matrix of ours.
    shape = transformers.LlamaConfig(**config_to_json(case.config, "llama"))
    with device:
        model: Any = transformers.AutoModelForCausalLM.from_config(
            shape, dtype=torch.float32, attn_implementation="sdpa"
        )
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    called = torch.compile(model, dynamic=False) if compiled else model
    batches = [packed(case, rows, number) for number in range(case.micro_batches)]

    def step() -> Tensor:
        total = torch.zeros((), device=device)
        for batch in batches:
            ids, targets = (
                torch.from_numpy(values).view(rows, -1).to(device) for values in (batch.tokens, batch.targets)
            )
            with torch.autocast(device.type, torch.bfloat16):
                loss = called(input_ids=ids, labels=targets, shift_labels=targets, use_cache=False).loss
            (loss / len(batches)).backward()
            total += loss.detach() / len(batches)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return total

    return step


def packed(case: Case, rows: int, seed: int) -> PackedBatch:
    """Rows of one document each."""
    ids = np.random.default_rng(seed).integers(3, case.config.vocab_size, (rows, case.length))
    targets = np.roll(ids, -1, axis=1)
    targets[:, -1] = IGNORE
    return PackedBatch(ids.reshape(-1), targets.reshape(-1), [case.length] * rows, 0)
