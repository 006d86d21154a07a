"""How fast this machine reads memory: the bound of decoding, where every weight is read for every token."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import torch

STREAMS = 8  # a thread that reads one stream waits for it; at eight the memory is busy
BYTES = 1 << 29  # many times the caches

_SOURCE = """
#include <stddef.h>
#define STREAMS %d
/* Sums n floats with some threads, each from STREAMS places of its part at once. */
float sum(const float *x, size_t n, int threads) {
    float total = 0;
    #pragma omp parallel for num_threads(threads) schedule(static, 1) reduction(+ : total)
    for (int t = 0; t < threads; t++) {
        const size_t part = n / threads / STREAMS, step = 16;
        const float *own = x + t * part * STREAMS;
        float sums[STREAMS][16] = {{0}};
        for (size_t i = 0; i + step <= part; i += step)
            for (int s = 0; s < STREAMS; s++)
                for (size_t j = 0; j < step; j++) sums[s][j] += own[s * part + i + j];
        for (int s = 0; s < STREAMS; s++)
            for (size_t j = 0; j < step; j++) total += sums[s][j];
    }
    return total;
}
"""


def read_bandwidth(threads: int, rounds: int = 7) -> float:
    """GB/s that `threads` threads read together, the best of some rounds.

    Without a C compiler it is what PyTorch's sum reaches, which is less.
    """
    values = torch.ones(BYTES // 4)
    with tempfile.TemporaryDirectory(prefix="puyulm-bench-") as folder:
        library = _compiled(Path(folder))
        times = []
        for _ in range(rounds):
            started = time.perf_counter()
            if library is None:
                values.sum()
            else:
                library.sum(ctypes.c_void_p(values.data_ptr()), ctypes.c_size_t(len(values)), threads)
            times.append(time.perf_counter() - started)
    return BYTES / min(times) / 1e9


def _compiled(folder: Path) -> ctypes.CDLL | None:
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return None
    (folder / "sum.c").write_text(_SOURCE % STREAMS)
    flags = ["-O3", "-march=native", "-ffast-math", "-fopenmp", "-shared", "-fPIC"]
    subprocess.run([compiler, *flags, "sum.c", "-o", "sum.so"], cwd=folder, check=True, capture_output=True)
    return ctypes.CDLL(str(folder / "sum.so"))
