"""Puts keys and values into the paged cache. The plain way is `KVCache.write`."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from puyulm.engine import kv_types
from puyulm.engine.kv_types import KVType
from puyulm.engine.paged import KVCache

KINDS: dict[KVType, int] = {"model": 0, "int8": 1, "int4": 2, "fp8": 3}
"""The numbers by which kernels know the ways of storing."""

MODEL: Any = tl.constexpr(0)
INT8: Any = tl.constexpr(1)
INT4: Any = tl.constexpr(2)
FP8: Any = tl.constexpr(3)

_ROUNDING: Any = tl.constexpr(12582912.0)  # 1.5 * 2^23: float32 has no digits behind the point from here on


def store(cache: KVCache, layer: int, slots: Tensor, k: Tensor, v: Tensor) -> None:
    """Stores keys and values `[T, KV, D]` at `slots` `[T]`; those of a negative slot are left out."""
    assert not cache.transposed and k.stride(2) == v.stride(2) == 1
    heads, dim = k.shape[1:]
    quantised = cache.kv_type != "model"
    width = kv_types.code_bytes(dim, cache.kv_type)
    _store[(k.shape[0],)](
        k, v, cache.keys[layer], cache.values[layer],
        cache.key_scales[layer] if quantised else k, cache.value_scales[layer] if quantised else v,
        slots, k.stride(0), k.stride(1), v.stride(0), v.stride(1),
        KIND=KINDS[cache.kv_type], HEADS=heads, HEADS_PAD=triton.next_power_of_2(heads),
        DIM=dim, WIDTH=width, WIDTH_PAD=triton.next_power_of_2(width), BLOCK=cache.block_size,
    )  # fmt: skip


@triton.jit
def _store(
    k, v, keys, values, key_scales, value_scales, slots, k_token, k_head, v_token, v_head,
    KIND: tl.constexpr, HEADS: tl.constexpr, HEADS_PAD: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr,
    WIDTH_PAD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One program a token, all its heads."""
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + token)
    if slot >= 0:
        _store_one(
            k + token * k_token, keys, key_scales, slot, k_head, KIND, HEADS, HEADS_PAD, DIM, WIDTH, WIDTH_PAD, BLOCK
        )  # fmt: skip
        _store_one(
            v + token * v_token, values, value_scales, slot, v_head, KIND, HEADS, HEADS_PAD, DIM, WIDTH, WIDTH_PAD, BLOCK  # noqa: E501
        )  # fmt: skip


@triton.jit
def _store_one(
    x, codes, scales, slot, head_stride,
    KIND: tl.constexpr, HEADS: tl.constexpr, HEADS_PAD: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr,
    WIDTH_PAD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    block, place = slot // BLOCK, slot % BLOCK
    heads, columns = tl.arange(0, HEADS_PAD), tl.arange(0, WIDTH_PAD)
    source = x + heads[:, None] * head_stride + columns[None, :]
    target = codes + ((block * HEADS + heads)[:, None] * BLOCK + place) * WIDTH + columns[None, :]
    there = (heads < HEADS)[:, None] & (columns < WIDTH)[None, :]
    wanted = there & (columns < DIM)[None, :]
    loaded = tl.load(source, mask=wanted, other=0.0)
    if KIND == MODEL:
        tl.store(target, loaded, mask=there)
    elif KIND == FP8:
        low = loaded.to(tl.float32)
        scale = tl.div_rn(tl.max(tl.abs(low), axis=1), 448.0)
        divisor = tl.where(scale > 0, scale, 1.0)
        tl.store(target, _to_fp8(tl.div_rn(low, divisor[:, None])), mask=there)
        tl.store(scales + (block * HEADS + heads) * BLOCK + place, scale, mask=heads < HEADS)
    else:
        low = loaded.to(tl.float32)
        least = tl.min(tl.where(wanted, low, float("inf")), axis=1)
        most = tl.max(tl.where(wanted, low, float("-inf")), axis=1)
        if KIND == INT4:  # codes of the second half of a head lie in the high bits of the first half's
            behind = there & (columns + WIDTH < DIM)[None, :]
            high = tl.load(source + WIDTH, mask=behind, other=0.0).to(tl.float32)
            least = tl.minimum(least, tl.min(tl.where(behind, high, float("inf")), axis=1))
            most = tl.maximum(most, tl.max(tl.where(behind, high, float("-inf")), axis=1))
            scale = tl.div_rn(most - least, 15.0)
            divisor = tl.where(scale > 0, scale, 1.0)
            packed = _to_int(tl.div_rn(low - least[:, None], divisor[:, None]), 15)
            packed = tl.where(wanted, packed, 0)
            packed |= tl.where(behind, _to_int(tl.div_rn(high - least[:, None], divisor[:, None]), 15), 0) << 4
        else:
            scale = tl.div_rn(most - least, 255.0)
            divisor = tl.where(scale > 0, scale, 1.0)
            packed = _to_int(tl.div_rn(low - least[:, None], divisor[:, None]), 255)
        tl.store(target, packed.to(tl.uint8), mask=there)
        place_of_scale = scales + (block * HEADS + heads) * 2 * BLOCK + place
        tl.store(place_of_scale, scale, mask=heads < HEADS)
        tl.store(place_of_scale + BLOCK, least, mask=heads < HEADS)


@triton.jit
def _to_int(x, most: tl.constexpr):
    """To the nearest whole number, halves to the even one, at most `most`."""
    return tl.minimum((x + _ROUNDING) - _ROUNDING, most * 1.0).to(tl.int32)


@triton.jit
def _to_fp8(x):
    """float32 of at most 448 -> e4m3 as uint8, halves to even: by its bits, since only Hopper knows the type."""
    bits = tl.abs(x).to(tl.int32, bitcast=True)
    bits = bits + 0x7FFFF + ((bits >> 20) & 1)
    normal = (bits >> 20) - (120 << 3)  # 120: the difference of the exponents' biases
    small = ((tl.abs(x) * 512.0 + _ROUNDING) - _ROUNDING).to(tl.int32)  # below 2^-6 in steps of 2^-9
    code = tl.where(tl.abs(x) < 0.015625, small, normal)
    return (code | ((x.to(tl.int32, bitcast=True) >> 24) & 0x80)).to(tl.uint8)
