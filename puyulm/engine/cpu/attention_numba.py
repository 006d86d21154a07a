"""Paged attention compiled by numba, for machines without a C compiler.

The operations of `attention.c` in the same order, so that both give the same bits; written plainly: some 3 to 14 times
slower in decoding, 20 to 30 times in prefill.
"""

# mypy: disable-error-code="call-arg, var-annotated, attr-defined"
# (numba's own annotations describe what its decorators take, not what they make)

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import torch
from numba import njit, prange
from numba.core import types
from numba.extending import intrinsic
from torch import Tensor

from puyulm.engine.paged import BLOCK_SIZE, KVCache, StepLayout

LANES = BLOCK_SIZE
PART = 256
TILE = 16
_F = np.float32
_ONE, _LOWEST, _SHIFT = _F(1.0), _F(-127.0), _F(12582912.0)
_C6, _C5, _C4 = _F(1.5353359e-4), _F(1.3398876e-3), _F(9.6184369e-3)
_C3, _C2, _C1 = _F(5.5503324e-2), _F(2.4022648e-1), _F(6.9314718e-1)


@intrinsic
def _fma(typing: Any, x: Any, y: Any, z: Any) -> Any:
    """x * y + z, rounded once."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fma(*arguments)

    return types.float32(types.float32, types.float32, types.float32), generate


@intrinsic
def _float_of_bits(typing: Any, bits: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], context.get_value_type(types.float32))

    return types.float32(types.int32), generate


@njit
def _exp2(x: Any) -> Any:
    """2^x for x <= 0; `exp2_of` of attention_rows.h."""
    x = x if not (x < _LOWEST) else _LOWEST
    whole = (x + _SHIFT) - _SHIFT
    f = x - whole
    y = _C6
    y = _fma(y, f, _C5)
    y = _fma(y, f, _C4)
    y = _fma(y, f, _C3)
    y = _fma(y, f, _C2)
    y = _fma(y, f, _C1)
    y = _fma(y, f, _ONE)
    return y * _float_of_bits(np.int32((np.int32(whole) + np.int32(127)) << np.int32(23)))


@njit
def _sum(lanes: Any) -> Any:
    """A tree of halves; `v16_sum` of vector.h."""
    width = LANES // 2
    while width:
        for i in range(width):
            lanes[i] += lanes[i + width]
        width //= 2
    return lanes[0]


@njit
def _unpack(stored: Any, out: Any) -> None:
    """A block, `[W, 16]`, as floats `[D, 16]`: 4 bits where W is not D."""
    dim, width = out.shape[0], stored.shape[0]
    for d in range(dim):
        for place in range(LANES):
            if dim == width:
                out[d, place] = _F(stored[d, place])
            else:
                byte = np.int64(stored[d % width, place])
                out[d, place] = _F(byte >> 4 if d >= width else byte & 15)


@njit
def _score(q: Any, keys: Any, scores: Any) -> None:
    """Adds the products of a query `[D]` with a block of keys `[D, 16]`, dimensions ascending, four to a pass."""
    dim = q.shape[0]
    for d in range(0, dim - 3, 4):
        for j in range(LANES):
            x = _fma(q[d], keys[d, j], scores[j])
            x = _fma(q[d + 1], keys[d + 1, j], x)
            x = _fma(q[d + 2], keys[d + 2, j], x)
            scores[j] = _fma(q[d + 3], keys[d + 3, j], x)
    for d in range(dim // 4 * 4, dim):
        for j in range(LANES):
            scores[j] = _fma(q[d], keys[d, j], scores[j])


@njit
def _mix(weights: Any, values: Any, mixed: Any) -> None:
    """Adds values `[n, D]` by weight `[n]`, keys ascending, four to a pass."""
    count = weights.shape[0]
    for j in range(0, count - 3, 4):
        for d in range(mixed.shape[0]):
            x = _fma(weights[j], values[j, d], mixed[d])
            x = _fma(weights[j + 1], values[j + 1, d], x)
            x = _fma(weights[j + 2], values[j + 2, d], x)
            mixed[d] = _fma(weights[j + 3], values[j + 3, d], x)
    for j in range(count // 4 * 4, count):
        for d in range(mixed.shape[0]):
            mixed[d] = _fma(weights[j], values[j, d], mixed[d])


@njit
def _weigh(scores: Any, seen: int, query_sum: Any, key_scales: Any, value_scales: Any, blocks: Any) -> Any:
    """Scores `[blocks, 16]` of a part become weights, times the values' scales. Returns their maximum, their sum, and
    what the offsets of values add. Scales: `[blocks of the cache, 2, 16]`, or none."""
    coded = key_scales.shape[0] > 0
    top = _F(-np.inf)
    for b in range(-(-seen // LANES)):
        for j in range(min(LANES, seen - b * LANES)):
            if coded:
                scale, offset = key_scales[blocks[b], 0, j], key_scales[blocks[b], 1, j]
                scores[b, j] = _fma(scale, scores[b, j], offset * query_sum)
            top = max(top, scores[b, j])
    total, offsets = np.zeros(LANES, np.float32), np.zeros(LANES, np.float32)
    for b in range(-(-seen // LANES)):
        for j in range(min(LANES, seen - b * LANES)):
            weight = _exp2(scores[b, j] - top)
            total[j] += weight
            if coded:
                offsets[j] = _fma(weight, value_scales[blocks[b], 1, j], offsets[j])
                weight *= value_scales[blocks[b], 0, j]
            scores[b, j] = weight
    return top, _sum(total), _sum(offsets)


@njit
def _fold(first: bool, state: Any, mixed: Any, part_most: Any, part_sum: Any, part_mixed: Any) -> None:
    """`fold` of attention.c; `state`: maximum and sum."""
    if first:
        state[0], state[1] = part_most, part_sum
        mixed[:] = part_mixed
        return
    top = max(state[0], part_most)
    kept, added = _exp2(state[0] - top), _exp2(part_most - top)
    state[0], state[1] = top, state[1] * kept + part_sum * added
    for d in range(mixed.shape[0]):
        mixed[d] = _fma(mixed[d], kept, part_mixed[d] * added)


@njit
def _attend_tile(q: Any, seen: Any, table: Any, keys: Any, values: Any, key_scales: Any, value_scales: Any) -> Any:
    """Queries `[n, D]` of one key/value head and how many keys each sees, with the stores of this head."""
    rows, dim = q.shape
    coded = key_scales.shape[0] > 0
    scores = np.empty((rows, PART // LANES, LANES), np.float32)
    state, mixed = np.empty((rows, 2), np.float32), np.empty((rows, dim), np.float32)
    results = np.empty((rows, 3), np.float32)
    key_room, value_room = np.empty((dim, LANES), np.float32), np.empty((LANES, dim), np.float32)
    for part in range(-(-seen[-1] // PART)):
        own = np.minimum(np.maximum(seen - part * PART, 0), PART)
        blocks = table[part * (PART // LANES) : part * (PART // LANES) + -(-own[-1] // LANES)]
        scores[:] = 0
        part_mixed = np.zeros((rows, dim), np.float32)
        for b in range(blocks.shape[0]):
            _unpack(keys[blocks[b]], key_room)
            for r in range(rows):
                if own[r] > b * LANES:
                    _score(q[r], key_room, scores[r, b])
        for r in range(rows):
            if own[r]:
                total = _F(0.0)
                for d in range(dim):
                    total += q[r, d]
                results[r, 0], results[r, 1], results[r, 2] = _weigh(
                    scores[r], own[r], total, key_scales, value_scales, blocks
                )
        for b in range(blocks.shape[0]):
            _unpack(values[blocks[b]].T, value_room.T)
            for r in range(rows):
                if own[r] > b * LANES:
                    count = min(LANES, own[r] - b * LANES)
                    _mix(scores[r, b, :count], value_room, part_mixed[r])
        for r in range(rows):
            if own[r]:
                if coded:
                    part_mixed[r] += results[r, 2]
                _fold(part == 0, state[r], mixed[r], results[r, 0], results[r, 1], part_mixed[r])
    for r in range(rows):
        mixed[r] *= _ONE / state[r, 1]
    return mixed


@njit(parallel=True, cache=True)
def _attend(
    q: Any, scale: Any, starts: Any, lengths: Any, tables: Any, keys: Any, values: Any, key_scales: Any,
    value_scales: Any, out: Any,
) -> None:  # fmt: skip
    """Queries `[T, KV, q_per_kv, D]` into `out`; tiles of queries are shared out to threads."""
    kv_heads, members = q.shape[1], q.shape[2]
    tiles = [
        (piece, row)
        for piece in range(lengths.shape[0])
        for row in range((starts[piece + 1] - starts[piece]) * members - 1, -1, -TILE)
    ]
    for unit in prange(len(tiles) * kv_heads):
        (piece, last), head = tiles[unit // kv_heads], unit % kv_heads
        start = starts[piece]
        first = max(0, last + 1 - TILE)
        queries = np.empty((last + 1 - first, q.shape[3]), np.float32)
        seen = np.empty(last + 1 - first, np.int64)
        for row in range(first, last + 1):
            queries[row - first] = q[start + row // members, head, row % members] * scale
            seen[row - first] = lengths[piece] - (starts[piece + 1] - start) + row // members + 1
        mixed = _attend_tile(
            queries, seen, tables[piece], keys[:, head], values[:, head], key_scales[:, head], value_scales[:, head]
        )
        for row in range(first, last + 1):
            out[start + row // members, head, row % members] = mixed[row - first]


class NumbaAttention:
    """As `puyulm.engine.paged.PagedAttention`; like `NativeAttention`, the same bits whatever stands beside a query."""

    def __init__(self, cache: KVCache, layout: StepLayout) -> None:
        self.cache, self.layout = cache, layout
        self._step = [part.numpy() for part in (layout.query_starts, layout.lengths, layout.block_tables)]
        self._scale = _F(1.4426950408889634 / cache.config.head_dim**0.5)
        self._none = np.empty((0, cache.config.num_kv_heads, 2, LANES), np.float32)
        self._threads = min(torch.get_num_threads(), numba.config.NUMBA_NUM_THREADS)

    @property
    def positions(self) -> Tensor:
        return self.layout.positions

    @property
    def seq_lens(self) -> Tensor:
        return self.layout.reaches

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        cache = self.cache
        cache.write(layer, self.layout.slots, k, v)
        out = torch.empty(q.shape)
        scales = [store[layer].numpy() if store else self._none for store in (cache.key_scales, cache.value_scales)]
        numba.set_num_threads(self._threads)
        _attend(
            q.float().contiguous().numpy(), self._scale, *self._step,
            cache.keys[layer].numpy(), cache.values[layer].numpy(), *scales, out.numpy(),
        )  # fmt: skip
        return out.to(q.dtype)


def knows(cache: KVCache) -> bool:
    """Whether this kernel reads such a cache: floats of 32 bits, or codes of 8 and 4."""
    if not cache.transposed or cache.block_size != BLOCK_SIZE:
        return False
    return cache.kv_type in ("int8", "int4") or (cache.kv_type == "model" and cache.dtype == torch.float32)
