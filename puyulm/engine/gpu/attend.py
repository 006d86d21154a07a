"""Attention over the paged cache in Triton, for prompts and for single tokens. The plain way is `PagedAttention`.

One kernel serves both. A program works on a tile of queries of one sequence with all query heads of one key/value head,
so that keys and values are read once for the group, and goes over the keys with a running maximum (FlashAttention-2,
algorithm 1). Where single tokens would leave the device idle, the keys of each are split among several programs, and a
second kernel puts their parts together (flash-decoding).

Keys and values of fewer bits are multiplied as whole numbers about the middle of their range, which every type of
activation holds exactly; their scales and offsets go to scores and weights:

    q . k = scale (q . code) + offset sum(q)        sum p v = sum (p scale) code + sum p offset
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from puyulm.engine import kv_types
from puyulm.engine.gpu.available import processors
from puyulm.engine.gpu.store import FP8, INT4, INT8, KINDS, MODEL, store
from puyulm.engine.paged import KVCache, StepLayout
from puyulm.engine.transfer import upload

KEY_TILE = 64
SINGLE_ROWS, PROMPT_ROWS = 16, 128  # rows of a product: queries times the query heads of a group
PROGRAMS = 2  # programs of single tokens wanted on each multiprocessor
LONGEST_SHARE = 16_384  # keys that one program goes over for a single token
MOST_SPLITS = 256
SPLITS_AT_ONCE = 32


@dataclass(frozen=True)
class Launch:
    """Tiles of queries that one call of the kernel works on.

    Attributes:
        pieces: `[tiles]`, int32: whose they are.
        queries: `[tiles]`, int32: the first query of each tile within its piece.
        size: Queries of a tile; 1 where the pieces are single tokens.
        splits: Programs that share the keys of a tile.
    """

    pieces: Tensor
    queries: Tensor
    size: int
    splits: int


def splits_for(programs: int, longest: int, multiprocessors: int) -> int:
    """Among how many programs the keys of each single token are split, a power of two.

    Args:
        programs: That there are without: tokens times key/value heads.
        longest: Keys of the longest sequence.
    """
    wanted = max(PROGRAMS * multiprocessors / programs, longest / LONGEST_SHARE, 1)
    return min(1 << math.ceil(math.log2(wanted)), MOST_SPLITS)


class TritonAttention:
    """As `puyulm.engine.paged.PagedAttention`.

    Args:
        cache: Its keys are not transposed.
        layout: Slots below 0 are not stored, and sequences of length 0 give zeros: what fills a recorded step up.
    """

    def __init__(self, cache: KVCache, layout: StepLayout) -> None:
        self.cache, self.layout = cache, layout
        self._launches = list(_launches(cache, layout))

    @property
    def positions(self) -> Tensor:
        return self.layout.positions

    @property
    def seq_lens(self) -> Tensor:
        return self.layout.reaches

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        store(self.cache, layer, self.layout.slots, k, v)
        out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
        for launch in self._launches:
            attend(q, self.cache, layer, self.layout, launch, out)
        return out


def _launches(cache: KVCache, layout: StepLayout) -> list[Launch]:
    kv_heads, device = cache.config.num_kv_heads, layout.positions.device
    counts = np.asarray(layout.counts)
    if layout.decoding:
        splits = splits_for(len(counts) * kv_heads, max(layout.ends), processors(device))
        pieces = torch.arange(len(counts), dtype=torch.int32, device=device)
        return [Launch(pieces, torch.zeros_like(pieces), 1, splits)]
    made = []
    single = np.flatnonzero(counts == 1).astype(np.int32)
    if len(single):
        longest = max(layout.ends[piece] for piece in single)
        splits = splits_for(len(single) * kv_heads, longest, processors(device))
        made.append(Launch(*upload([single, np.zeros_like(single)], device), 1, splits))
    size = max(PROMPT_ROWS // triton.next_power_of_2(cache.config.q_per_kv), 1)
    tiles = np.where(counts > 1, -(-counts // size), 0)
    pieces = np.repeat(np.arange(len(counts), dtype=np.int32), tiles)
    numbers = np.arange(len(pieces)) - np.repeat(tiles.cumsum() - tiles, tiles)
    made.append(Launch(*upload([pieces, (numbers * size).astype(np.int32)], device), size, 1))
    return made


def attend(q: Tensor, cache: KVCache, layer: int, layout: StepLayout, launch: Launch, out: Tensor) -> None:
    """Mixes the values that the queries of some tiles see.

    Args:
        q: `[T, KV, q_per_kv, D]`; the last dimension without gaps.
        out: `[T, KV, q_per_kv, D]`, contiguous: gets the rows of these tiles.
    """
    assert q.stride(3) == 1 and not cache.transposed
    _, kv_heads, group, dim = q.shape
    tiles, splits = len(launch.pieces), launch.splits
    if not tiles:
        return
    rows = SINGLE_ROWS if launch.size == 1 else PROMPT_ROWS
    group_pad = max(triton.next_power_of_2(group), rows // launch.size)
    dim_pad = max(triton.next_power_of_2(dim), 16)
    parts, stats = out, out
    if splits > 1:
        parts = torch.empty(tiles, kv_heads, group, splits, dim, dtype=torch.float32, device=q.device)
        stats = torch.empty(tiles, kv_heads, group, splits, dtype=torch.float32, device=q.device)
    quantised = cache.kv_type != "model"
    _attend[(tiles, kv_heads, splits)](
        q, cache.keys[layer], cache.values[layer],
        cache.key_scales[layer] if quantised else q, cache.value_scales[layer] if quantised else q,
        layout.block_tables, layout.lengths, layout.query_starts, launch.pieces, launch.queries, out, parts, stats,
        dim**-0.5 * math.log2(math.e), layout.block_tables.stride(0), q.stride(0), q.stride(1), q.stride(2),
        KIND=KINDS[cache.kv_type], HEADS=kv_heads, GROUP=group, GROUP_PAD=group_pad, QUERIES=launch.size,
        DIM=dim, DIM_PAD=dim_pad, WIDTH=kv_types.code_bytes(dim, cache.kv_type), BLOCK=cache.block_size,
        TILE=KEY_TILE, SPLITS=splits,
        num_warps=4 if launch.size == 1 else 8, num_stages=3 if launch.size == 1 else 2,
    )  # fmt: skip
    if splits > 1:
        _combine[(tiles, kv_heads, group)](
            parts, stats, layout.query_starts, launch.pieces, out,
            HEADS=kv_heads, GROUP=group, DIM=dim, DIM_PAD=dim_pad, SPLITS=splits, CHUNK=min(splits, SPLITS_AT_ONCE),
        )  # fmt: skip


@triton.jit
def _attend(
    q, keys, values, key_scales, value_scales, tables, lengths, starts, pieces, firsts, out, parts, stats,
    score_scale, table_row, q_token, q_head, q_member,
    KIND: tl.constexpr, HEADS: tl.constexpr, GROUP: tl.constexpr, GROUP_PAD: tl.constexpr, QUERIES: tl.constexpr,
    DIM: tl.constexpr, DIM_PAD: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr,
    SPLITS: tl.constexpr,
):  # fmt: skip
    tile, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    piece, first = tl.load(pieces + tile), tl.load(firsts + tile)
    start = tl.load(starts + piece)
    count = tl.load(starts + piece + 1) - start
    length = tl.load(lengths + piece)

    rows, dims = tl.arange(0, QUERIES * GROUP_PAD), tl.arange(0, DIM_PAD)
    query, member = first + rows // GROUP_PAD, rows % GROUP_PAD
    wanted = ((query < count) & (member < GROUP))[:, None] & (dims < DIM)[None, :]
    token = (start + query).to(tl.int64)
    queries = tl.load(
        q + token[:, None] * q_token + head * q_head + member[:, None] * q_member + dims[None, :],
        mask=wanted,
        other=0.0,
    )
    query_sum = tl.sum(queries.to(tl.float32), axis=1)
    position = length - count + query

    last = length - count + tl.minimum(first + QUERIES, count)  # keys that the last query of the tile sees
    share = tl.cdiv(tl.cdiv(last, SPLITS), TILE) * TILE
    top = tl.full([QUERIES * GROUP_PAD], float("-inf"), tl.float32)
    whole = tl.zeros([QUERIES * GROUP_PAD], tl.float32)
    mixed = tl.zeros([QUERIES * GROUP_PAD, DIM_PAD], tl.float32)
    for begin in range(split * share, tl.minimum(split * share + share, last), TILE):
        place = begin + tl.arange(0, TILE)
        seen = place < last
        block = tl.load(tables + piece.to(tl.int64) * table_row + place // BLOCK, mask=seen, other=0).to(tl.int64)
        row = (block * HEADS + head) * BLOCK + place % BLOCK
        scale_row = row
        if KIND == INT8 or KIND == INT4:  # noqa: SIM109 - Triton knows no `in`
            scale_row = (block * HEADS + head) * 2 * BLOCK + place % BLOCK

        key = _load(keys, row, seen, dims, KIND, DIM, WIDTH, queries.dtype)
        scores = tl.dot(queries, tl.trans(key), input_precision="ieee")
        if KIND != MODEL:
            scale, offset = _scales(key_scales, scale_row, seen, KIND, BLOCK)
            scores = scores * scale[None, :] + query_sum[:, None] * offset[None, :]
        visible = seen[None, :] & (place[None, :] <= position[:, None])
        scores = tl.where(visible, scores * score_scale, float("-inf"))

        higher = tl.maximum(top, tl.max(scores, axis=1))
        base = tl.where(higher == float("-inf"), 0.0, higher)  # a row that sees nothing yet
        weights = tl.exp2(scores - base[:, None])
        shrink = tl.exp2(top - base)
        whole = whole * shrink + tl.sum(weights, axis=1)
        mixed = mixed * shrink[:, None]
        value = _load(values, row, seen, dims, KIND, DIM, WIDTH, queries.dtype)
        if KIND != MODEL:
            scale, offset = _scales(value_scales, scale_row, seen, KIND, BLOCK)
            mixed += tl.sum(weights * offset[None, :], axis=1)[:, None]
            weights = weights * scale[None, :]
        mixed = tl.dot(weights.to(queries.dtype), value, mixed, input_precision="ieee")
        top = higher

    mixed = mixed / tl.where(whole > 0, whole, 1.0)[:, None]
    if SPLITS == 1:
        target = out + ((token[:, None] * HEADS + head) * GROUP + member[:, None]) * DIM + dims[None, :]
        tl.store(target, mixed.to(out.dtype.element_ty), mask=wanted)
    else:
        place_of_part = ((tile.to(tl.int64) * HEADS + head) * GROUP + member) * SPLITS + split
        tl.store(parts + place_of_part[:, None] * DIM + dims[None, :], mixed, mask=wanted)
        tl.store(stats + place_of_part, top + tl.log2(whole), mask=(query < count) & (member < GROUP))


@triton.jit
def _load(codes, row, seen, dims, KIND: tl.constexpr, DIM: tl.constexpr, WIDTH: tl.constexpr, TYPE: tl.constexpr):
    """Keys or values of some places, `[TILE, DIM_PAD]`, but for their scales and offsets."""
    columns = dims
    if KIND == INT4:
        columns = dims % WIDTH  # two codes a byte: the second half of a head in the high bits of the first
    wanted = seen[:, None] & (dims < DIM)[None, :]
    loaded = tl.load(codes + row[:, None] * WIDTH + columns[None, :], mask=wanted, other=0)
    if KIND == MODEL:
        result = loaded
    elif KIND == FP8:  # the bits of e4m3 moved to where float16 has them, which divides by 256
        bits = loaded.to(tl.int16)
        result = (((bits & 0x80) << 8) | ((bits & 0x7F) << 7)).to(tl.float16, bitcast=True).to(TYPE)
    elif KIND == INT8:
        result = (loaded.to(tl.float32) - 128.0).to(TYPE)
    else:
        result = (((loaded >> (dims >= WIDTH).to(tl.uint8)[None, :] * 4) & 15).to(tl.float32) - 8.0).to(TYPE)
    return result


@triton.jit
def _scales(scales, row, seen, KIND: tl.constexpr, BLOCK: tl.constexpr):
    """Scales and offsets for what `_load` gives."""
    scale = tl.load(scales + row, mask=seen, other=0.0)
    if KIND == FP8:
        scale = scale * 256.0
        offset = tl.zeros_like(scale)
    else:
        offset = tl.load(scales + row + BLOCK, mask=seen, other=0.0)
        if KIND == INT8:
            offset += 128.0 * scale
        else:
            offset += 8.0 * scale
    return scale, offset


@triton.jit
def _combine(
    parts, stats, starts, pieces, out,
    HEADS: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr, DIM_PAD: tl.constexpr, SPLITS: tl.constexpr,
    CHUNK: tl.constexpr,
):  # fmt: skip
    """One program a token and query head."""
    tile, head, member = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    token = tl.load(starts + tl.load(pieces + tile)).to(tl.int64)
    row = (tile * HEADS + head) * GROUP + member
    dims = tl.arange(0, DIM_PAD)
    top = tl.full([], float("-inf"), tl.float32)
    whole = tl.full([], 0.0, tl.float32)
    mixed = tl.zeros([DIM_PAD], tl.float32)
    for begin in range(0, SPLITS, CHUNK):
        place = row * SPLITS + begin + tl.arange(0, CHUNK)
        stat = tl.load(stats + place)
        part = tl.load(parts + place[:, None] * DIM + dims[None, :], mask=(dims < DIM)[None, :], other=0.0)
        higher = tl.maximum(top, tl.max(stat, axis=0))
        base = tl.where(higher == float("-inf"), 0.0, higher)
        weights = tl.exp2(stat - base)
        shrink = tl.exp2(top - base)
        whole = whole * shrink + tl.sum(weights, axis=0)
        mixed = mixed * shrink + tl.sum(part * weights[:, None], axis=0)
        top = higher
    mixed = mixed / tl.where(whole > 0, whole, 1.0)
    token_row = ((token * HEADS + head) * GROUP + member) * DIM
    tl.store(out + token_row + dims, mixed.to(out.dtype.element_ty), mask=dims < DIM)
