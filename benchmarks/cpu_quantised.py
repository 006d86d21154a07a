"""Linear layers of 4 and 8 bits on this CPU: how near to its memory they come, and what they compute.

    python -m benchmarks.cpu_quantised [--threads 2] [--rows 1,4,8,32,512] [--group-size 32]

Float16 scales. Layers are used in turn until weights are read from memory, not from a cache. Each figure is the best of
several rounds in which the kernels take turns: GB/s of codes and scales for few rows, products for many.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from itertools import islice

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as `puyu` does; read when PyTorch is loaded

import torch
from torch import Tensor

from benchmarks.cpu_kernels import read_limit
from benchmarks.harness import installed, machine
from puyulm.engine.cpu import native
from puyulm.engine.cpu.quantised import NativeKernel, QuantLinear, quantize_activations_natively
from puyulm.engine.quant.rounding import quantize
from puyulm.engine.quant.tensor import Bits, QuantizedWeight

SHAPES = ((2048, 8192), (5632, 2048), (2048, 32000))
"""Inputs and outputs of layers of a model of 1.1 B parameters."""

BEYOND_CACHES = 128 << 20
"""Bytes of weights to go through."""

ROUNDS = 5
MOST_CALLS = 8  # in a round, of many rows, which are bound by arithmetic


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cpu_quantised", description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rows", default="1,4,8,32,512", help="row counts, with commas")
    parser.add_argument("--group-size", type=int, default=32)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(" ".join(f"{key}={value}" for key, value in machine().items()))
    print(f"memory can be read at {read_limit():.1f} GB/s")
    rows = [int(count) for count in args.rows.split(",")]
    bits: Sequence[Bits] = (8, 4)
    with torch.inference_mode():
        for inputs, outputs in SHAPES:
            for width in bits:
                measure(quantize(torch.randn(outputs, inputs), width, args.group_size), rows)
        if native.load("quantised") is not None:
            rounding(5632, args.threads)


def measure(weight: QuantizedWeight, rows: Sequence[int]) -> None:
    outputs, inputs = weight.shape
    copies = max(2, BEYOND_CACHES // weight.nbytes)
    layers = {name: [QuantLinear(weight, None, kernel) for _ in range(copies)] for name, kernel in kernels().items()}
    print(f"\n{inputs} -> {outputs}, {weight.bits} bits, {weight.nbytes / outputs / inputs:.3f} bytes a weight")
    for count in rows:
        x = torch.randn(count, inputs)
        seconds = best_of(layers, x)
        figures = (
            f"{name} {time * 1e3:8.3f} ms {weight.nbytes / time / 1e9:5.1f} GB/s "
            f"{outputs * inputs / time / 1e9:5.1f} G weights/s {count * outputs * inputs / time / 1e9:6.1f} GMAC/s"
            for name, time in seconds.items()
        )
        print(f"{count:5d} rows   " + "   ".join(figures), flush=True)


def kernels() -> dict[str, type]:
    found: dict[str, type] = {}
    if native.load("quantised") is not None:
        found["C"] = NativeKernel
    if installed("numba"):
        from puyulm.engine.cpu.quantised_numba import NumbaKernel

        found["numba"] = NumbaKernel
    return found


def best_of(layers: dict[str, list[QuantLinear]], x: Tensor) -> dict[str, float]:
    """Seconds of the fastest call of each kernel."""
    fastest = dict.fromkeys(layers, float("inf"))
    for _ in range(ROUNDS):
        for name, copies in layers.items():
            for layer in islice(copies, MOST_CALLS if x.shape[0] > 8 else None):
                started = time.perf_counter()
                layer(x)
                fastest[name] = min(fastest[name], time.perf_counter() - started)
    return fastest


def rounding(inputs: int, threads: int) -> None:
    print()
    for count in (1, 512):
        x, fastest = torch.randn(count, inputs), float("inf")
        for _ in range(20 * ROUNDS):
            started = time.perf_counter()
            quantize_activations_natively(x, threads)
            fastest = min(fastest, time.perf_counter() - started)
        print(f"rounding {count} x {inputs} activations: {fastest * 1e6:.1f} us")


if __name__ == "__main__":
    main()
