"""Float linear layers on this CPU: how near to its memory and its arithmetic each way comes.

    python -m benchmarks.cpu_kernels [--threads 2] [--rows 1,4,8,512]

Weights are used in turn until they are read from memory, not from a cache. Each figure is the best of several rounds
in which all ways take turns.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as `puyu` does; read when PyTorch is loaded

import torch
from torch import Tensor, nn

from benchmarks.harness import machine
from puyulm.engine.cpu import DenseLinear, PackedLinear, dense, native, onednn

SHAPES = ((2048, 8192), (5632, 2048), (2048, 32000), (768, 4096), (2048, 768))
"""Inputs and outputs of layers of models of 1.1 B and 110 M parameters."""

BEYOND_CACHES = 256 << 20
"""Bytes of weights to go through."""

PIECE = 32 << 20
"""Bytes read at once to see how fast memory is, about as many as a layer has."""

ROUNDS = 5


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cpu_kernels", description=__doc__.partition("\n")[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rows", default="1,2,4,8,16,64,512", help="row counts, with commas")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(" ".join(f"{key}={value}" for key, value in machine().items()))
    limit = read_limit()
    with torch.inference_mode():
        for inputs, outputs in SHAPES:
            print(f"\n{inputs} -> {outputs}, float32 activations")
            ways = ways_of(inputs, outputs)
            print(f"{'rows':>5} " + "".join(f"{name:>32}" for name in ways))
            for rows in map(int, args.rows.split(",")):
                print(f"{rows:5d} " + "".join(f"{cell:>32}" for cell in cells(ways, inputs, outputs, rows)), flush=True)
            limit = max(limit, read_limit())
    print(f"\nmemory can be read at {limit:.1f} GB/s (the best seen before, between and after, with 1 to 8 streams)")


def read_limit() -> float:
    """GB/s at which all threads together add up memory."""
    compiler = native.find_compiler()
    if compiler is None:
        return float("nan")
    library = native.build(Path(__file__).with_name("cpu_read.c"), compiler)
    pieces = torch.ones(BEYOND_CACHES // 4).split(PIECE // 4)
    seconds = float("inf")
    for streams in (1, 2, 4, 8) * ROUNDS:
        for piece in pieces:
            arguments = ctypes.c_void_p(piece.data_ptr()), ctypes.c_int64(piece.numel()), streams
            seconds = min(seconds, best(partial(library.read_streams, *arguments, torch.get_num_threads()), 1))
    return PIECE / seconds / 1e9


def ways_of(inputs: int, outputs: int) -> dict[str, tuple[int, Sequence[Callable[[Tensor], Tensor]]]]:
    """Of each way: bytes of a weight, and layers enough that none is in a cache when its turn comes again."""
    copies = max(2, BEYOND_CACHES // (inputs * outputs * 4))
    linears = [nn.Linear(inputs, outputs, bias=False) for _ in range(copies)]
    ways: dict[str, tuple[int, Sequence[Callable[[Tensor], Tensor]]]] = {}
    if dense.available():
        ways["ours"] = 4, [DenseLinear(linear) for linear in linears]
        ways["ours, bfloat16 weights"] = 2, [DenseLinear(linear, torch.bfloat16) for linear in linears]
    ways["F.linear"] = 4, linears
    if onednn.available():
        ways["oneDNN, prepacked"] = 4, [PackedLinear(linear) for linear in linears]
    return ways


def cells(
    ways: dict[str, tuple[int, Sequence[Callable[[Tensor], Tensor]]]], inputs: int, outputs: int, rows: int
) -> list[str]:
    x = torch.randn(rows, inputs)
    seconds = dict.fromkeys(ways, float("inf"))
    for _ in range(ROUNDS):
        for name, (_, layers) in ways.items():
            some = layers if rows < 64 else layers[:3]
            seconds[name] = min(seconds[name], min(best(partial(layer, x), 1) for layer in some))
    return [
        f"{seconds[name] * 1e3:.3f} ms {inputs * outputs * size / seconds[name] / 1e9:5.1f} GB/s "
        f"{2 * rows * inputs * outputs / seconds[name] / 1e9:4.0f} GF/s"
        for name, (size, _) in ways.items()
    ]


def best(call: Callable[[], object], times: int) -> float:
    """Seconds of the fastest call."""
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


if __name__ == "__main__":
    main()
