"""Floating-point operations of training, and the most that a device can do of them."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence

import torch

from puyulm.model.config import ModelConfig
from puyulm.parallel.estimate import flops_per_token
from puyulm.parallel.world import World

# Dense bfloat16 TFLOP/s with float32 sums, from the makers' data sheets (often given there with sparsity: twice that).
# The first whose words are all in the device's name counts.
PEAKS: tuple[tuple[str, float], ...] = (
    ("B200", 2250.0),
    ("H200 NVL", 835.0), ("H200", 989.0),
    ("GH200", 989.0),
    ("H100 PCIe", 756.0), ("H100 NVL", 835.0), ("H100", 989.0),
    ("H800 PCIe", 756.0), ("H800", 989.0),
    ("H20", 148.0),
    ("A100", 312.0), ("A800", 312.0),
    ("A40", 149.7), ("A30", 165.0), ("A10", 125.0),
    ("L40S", 362.0), ("L40", 181.0), ("L4", 121.0),
    ("RTX A6000", 154.8), ("RTX 4090", 165.2), ("RTX 3090", 71.0),
)  # fmt: skip

OTHERS = frozenset({"mig", "laptop", "ti", "d", "super"})
"""Words in the names of GPUs that are less, or more, than their namesakes."""

MEASURED_FROM = 2e10
"""A CPU's peak is measured in runs whose steps have at least so many operations: for less it would cost more than a
step."""


def training_flops(config: ModelConfig, lengths: Sequence[int]) -> float:
    """Floating-point operations of a forward and backward pass over packed documents: what has to be computed.

    6 per matrix weight and token, and for attention `6 * layers * heads * head_dim * S^2` for a document of S tokens:
    causal, that is half of the full square. Recomputed activations do not count.
    """
    mixed = config.num_layers * config.num_heads * config.head_dim
    squares = sum(length * length for length in lengths)
    return flops_per_token(config, 0) * sum(lengths) + 6.0 * mixed * squares


def palm_flops(config: ModelConfig, tokens: int, seq_len: int) -> float:
    """The same by the convention of PaLM (Chowdhery et al. 2022, appendix B), in which most publish their MFU.

    `6 * weights + 12 * layers * heads * head_dim * seq_len` per token: attention counts as if every token saw its whole
    row, what follows it and other documents included.
    """
    return flops_per_token(config, seq_len) * tokens


def known_peak(name: str) -> float | None:
    """Dense bfloat16 TFLOP/s of a GPU by the name that CUDA gives it; None where it is not known."""
    words = set(re.split(r"[^A-Za-z0-9]+", name.lower()))
    if words & OTHERS:
        return None
    return next((peak for key, peak in PEAKS if set(key.lower().split()) <= words), None)


def measured_peak(size: int = 1536, rounds: int = 4) -> float:
    """TFLOP/s of this process's threads in float32 products of square matrices: the best of some rounds."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    out = torch.empty(size, size)
    best = float("inf")
    for _ in range(rounds + 1):
        begin = time.perf_counter()
        torch.mm(a, b, out=out)
        best = min(best, time.perf_counter() - begin)
    return 2.0 * size**3 / best / 1e12


def find_peak(world: World, dtype: str, step_flops: float, given: float | None) -> float | None:
    """TFLOP/s of one process's device, against which MFU is measured; None where nothing fair is known.

    Args:
        dtype: What the model computes in: the table of GPUs is of bfloat16.
        step_flops: Operations of a step over all ranks; for small ones, a CPU is not measured. Nor is it for several
            processes, which share its cores.
        given: What a recipe says it is.
    """
    if given is not None:
        return given
    if world.device.type == "cuda":
        return known_peak(torch.cuda.get_device_name(world.device)) if dtype == "bfloat16" else None
    if world.device.type == "cpu" and world.size == 1 and step_flops >= MEASURED_FROM:
        return measured_peak()
    return None
