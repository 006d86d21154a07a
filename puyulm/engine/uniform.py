"""Random numbers as a function of a seed and a count: no state, the same on every device and in any company.

The hash is the finaliser of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators",
OOPSLA 2014), applied to the seed and then to the seed's hash plus a multiple of the golden ratio.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_STREAM = np.uint64(0xD1B54A32D192ED03)  # odd, so that streams of one seed never meet at the same count
_SAMPLE = 1 << 32  # the stream that the seeds of further samples come from: no draw is ever made there


def uniforms(seeds: Sequence[int], counts: Sequence[int], stream: int = 0) -> NDArray[np.float64]:
    """Numbers in [0, 1), one for each seed and count, `[B]`.

    Args:
        seeds: Below 2^63.
        counts: Which number of the seed's sequence, from 0.
        stream: Another sequence of the same seeds, independent of the others.
    """
    bits = _hash(np.asarray(seeds, dtype=np.uint64), np.asarray(counts, dtype=np.uint64), stream)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def seed_of_sample(seed: int, index: int) -> int:
    """The seed of one of several samples; the first (index 0) has the seed itself."""
    if index == 0:
        return seed
    bits = _hash(np.asarray([seed], dtype=np.uint64), np.asarray([index], dtype=np.uint64), _SAMPLE)
    return int(bits[0] >> np.uint64(1))


def _hash(seeds: NDArray[np.uint64], counts: NDArray[np.uint64], stream: int) -> NDArray[np.uint64]:
    start = _mix(seeds + _GOLDEN + np.asarray([stream], dtype=np.uint64) * _STREAM)
    return _mix(start + (counts + np.uint64(1)) * _GOLDEN)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
