"""Products with matrices of 4, 8 and 16 bits. The plain way is `QuantizedWeight.dequantize` and `F.linear`.

What limits them is, in turn, reading the weights (one row of activations), turning codes into numbers (some rows), and
multiplying (many rows); so there are three ways: sums without tensor cores, tensor cores over tiles that are
dequantised on their way, and a whole dequantised matrix for PyTorch's own product.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from puyulm.engine.quant.tensor import QuantizedWeight

TILED_ROWS = 128  # more rows than this are worth the writing of a dequantised matrix
LEAST_GROUP = 16
_SPAN = 1024  # columns that a program of one row adds up at once


def suits(weight: QuantizedWeight) -> bool:
    """Whether the kernels take a weight: groups of a multiple of 16."""
    return group_tile(weight.group_size) >= LEAST_GROUP


def group_tile(group_size: int) -> int:
    """Columns that surely share a scale: the largest power of two that divides a group, at most 128."""
    return min(group_size & -group_size, 128)


def product(x: Tensor, weight: QuantizedWeight, bias: Tensor | None = None, residual: Tensor | None = None) -> Tensor:
    """`x W^T + bias + residual`: `[M, K]` -> `[M, N]`.

    Args:
        residual: `[M, N]`, contiguous: the result is written over it.
    """
    x = x.contiguous()
    if x.shape[0] > TILED_ROWS:
        matrix = dequantize(weight, x.dtype)
        if residual is None:
            return F.linear(x, matrix, bias)
        residual = residual.addmm_(x, matrix.T)
        return residual if bias is None else residual.add_(bias)
    rows, (columns, size) = x.shape[0], weight.shape
    out = torch.empty(rows, columns, dtype=x.dtype, device=x.device) if residual is None else residual
    if rows == 0:
        return out
    zeros = weight.scales if weight.zeros is None else weight.zeros
    given = (x, weight.codes, weight.scales, zeros, x if bias is None else bias, out, columns)
    tile = group_tile(weight.group_size)
    flags = dict(
        K=size, GROUP=weight.group_size, TILE=tile, BITS=weight.bits, HAS_ZEROS=weight.zeros is not None,
        HAS_BIAS=bias is not None, ADDS=residual is not None,
    )  # fmt: skip
    if rows == 1:
        _row_product[(triton.cdiv(columns, 4),)](*given, **flags, TILES=max(_SPAN // tile, 1), COLUMNS=4)
        return out
    block_rows = max(16, triton.next_power_of_2(rows))
    block_columns = 32 if block_rows <= 32 else 64
    _tiled_product[(triton.cdiv(columns, block_columns),)](
        *given, rows, **flags, TILES=max(64 // tile, 1), ROWS=block_rows, COLUMNS=block_columns, num_warps=4,
        num_stages=4,
    )  # fmt: skip
    return out


def row_product(x: Tensor, weight: Tensor, bias: Tensor | None = None, residual: Tensor | None = None) -> Tensor:
    """As `product`, with a matrix `[N, K]` in the type of x, `[1, K]`."""
    x, (columns, size) = x.contiguous(), weight.shape
    out = torch.empty(1, columns, dtype=x.dtype, device=x.device) if residual is None else residual
    _row_product[(triton.cdiv(columns, 4),)](
        x, weight, weight, weight, x if bias is None else bias, out, columns,
        K=size, GROUP=size, TILE=min(size & -size, 128), BITS=16, HAS_ZEROS=False, HAS_BIAS=bias is not None,
        ADDS=residual is not None, TILES=max(_SPAN // min(size & -size, 128), 1), COLUMNS=4,
    )  # fmt: skip
    return out


def dequantize(weight: QuantizedWeight, dtype: torch.dtype) -> Tensor:
    """`[N, K]`."""
    columns, size = weight.shape
    out = torch.empty(columns, size, dtype=dtype, device=weight.codes.device)
    tile = group_tile(weight.group_size)
    tiles = max(_SPAN // tile, 1)
    _dequantize[(columns, triton.cdiv(size, tile * tiles))](
        weight.codes, weight.scales, weight.scales if weight.zeros is None else weight.zeros, out,
        K=size, GROUP=weight.group_size, TILE=tile, BITS=weight.bits, HAS_ZEROS=weight.zeros is not None, TILES=tiles,
    )  # fmt: skip
    return out


@triton.jit
def _group_scales(
    scales, zeros, column, tiles, there, K: tl.constexpr, GROUP: tl.constexpr, TILE: tl.constexpr, BITS: tl.constexpr,
    HAS_ZEROS: tl.constexpr,
):  # fmt: skip
    """Scales and zeros of tiles of columns, `[COLUMNS, TILES]`, float32."""
    place = column * (K // GROUP) + (tiles * TILE // GROUP)[None, :]
    scale = tl.load(scales + place, mask=there, other=0.0).to(tl.float32)
    if HAS_ZEROS:
        zero = tl.load(zeros + place, mask=there, other=0).to(tl.float32)
    elif BITS == 4:
        zero = tl.full(scale.shape, 8.0, tl.float32)
    else:
        zero = tl.zeros_like(scale)
    return scale, zero


@triton.jit
def _row_product(
    x, codes, scales, zeros, bias, out, columns,
    K: tl.constexpr, GROUP: tl.constexpr, TILE: tl.constexpr, BITS: tl.constexpr, HAS_ZEROS: tl.constexpr,
    HAS_BIAS: tl.constexpr, ADDS: tl.constexpr, TILES: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """One row of activations. A program computes some columns; what it reads lies `[COLUMNS, TILES, TILE]`, since the
    values of a tile share a scale. Threads add up what is theirs, and meet at the end only."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    start = column.to(tl.int64)[:, None]
    SIZE: tl.constexpr = TILE // 2 if BITS == 4 else TILE  # numbers that hold a tile's codes
    inside = tl.arange(0, SIZE)
    total = tl.zeros([COLUMNS, TILES, SIZE], tl.float32)
    for first in range(0, K // TILE, TILES):
        tiles = first + tl.arange(0, TILES)
        there = (column < columns)[:, None] & (tiles * TILE < K)[None, :]
        place = (tiles * SIZE)[:, None] + inside[None, :]
        code = tl.load(
            codes + start[:, :, None] * (K // TILE * SIZE) + place[None, :, :], mask=there[:, :, None], other=0
        ).to(tl.float32 if BITS == 16 else codes.dtype.element_ty)
        place = (tiles * TILE)[:, None] + tl.arange(0, TILE)[None, :]
        row = tl.load(x + place, mask=(tiles * TILE < K)[:, None], other=0.0).to(tl.float32)
        if BITS == 16:
            total += code * row[None, :, :]
        else:
            scale, zero = _group_scales(scales, zeros, start, tiles, there, K, GROUP, TILE, BITS, HAS_ZEROS)
            if BITS == 8:
                total += code.to(tl.float32) * scale[:, :, None] * row[None, :, :]
            else:
                even, odd = tl.split(tl.reshape(row, [TILES, SIZE, 2]))
                part = (code & 15).to(tl.float32) * even[None, :, :] + (code >> 4).to(tl.float32) * odd[None, :, :]
                total += (part - zero[:, :, None] * (even + odd)[None, :, :]) * scale[:, :, None]
    result = tl.sum(tl.sum(total, axis=2), axis=1)
    if HAS_BIAS:
        result += tl.load(bias + column, mask=column < columns, other=0.0).to(tl.float32)
    if ADDS:
        result += tl.load(out + column, mask=column < columns, other=0.0).to(tl.float32)
    tl.store(out + column, result.to(out.dtype.element_ty), mask=column < columns)


@triton.jit
def _tiled_product(
    x, codes, scales, zeros, bias, out, columns, rows,
    K: tl.constexpr, GROUP: tl.constexpr, TILE: tl.constexpr, BITS: tl.constexpr, HAS_ZEROS: tl.constexpr,
    HAS_BIAS: tl.constexpr, ADDS: tl.constexpr, TILES: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Some rows, all of them in one tile. Codes of 4 bits are multiplied as two matrices: the even columns, whose codes
    lie in the low halves of the bytes, and the odd ones."""
    column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    row = tl.arange(0, ROWS)
    start = column.to(tl.int64)[:, None]
    total = tl.zeros([ROWS, COLUMNS], tl.float32)
    for first in range(0, K // TILE, TILES):
        tiles = first + tl.arange(0, TILES)
        there = (column < columns)[:, None] & (tiles * TILE < K)[None, :]
        scale, zero = _group_scales(scales, zeros, start, tiles, there, K, GROUP, TILE, BITS, HAS_ZEROS)
        place = first * TILE + tl.arange(0, TILES * TILE)
        given = tl.load(
            x + row[:, None] * K + place[None, :], mask=(row < rows)[:, None] & (place < K)[None, :], other=0.0
        )
        if BITS == 8:
            code = tl.load(
                codes + start * K + place[None, :], mask=(column < columns)[:, None] & (place < K)[None, :], other=0
            )  # fmt: skip
            weight = tl.reshape(code.to(tl.float32), [COLUMNS, TILES, TILE]) * scale[:, :, None]
            weight = tl.reshape(weight, [COLUMNS, TILES * TILE]).to(given.dtype)
            total = tl.dot(given, tl.trans(weight), total, input_precision="ieee")
        else:
            byte = first * (TILE // 2) + tl.arange(0, TILES * TILE // 2)
            code = tl.load(
                codes + start * (K // 2) + byte[None, :], mask=(column < columns)[:, None] & (byte < K // 2)[None, :],
                other=0,
            )  # fmt: skip
            even, odd = tl.split(tl.reshape(given, [ROWS, TILES * TILE // 2, 2]))
            low = _scaled(code & 15, scale, zero, TILES, TILE // 2, COLUMNS).to(given.dtype)
            high = _scaled(code >> 4, scale, zero, TILES, TILE // 2, COLUMNS).to(given.dtype)
            total = tl.dot(even, tl.trans(low), total, input_precision="ieee")
            total = tl.dot(odd, tl.trans(high), total, input_precision="ieee")
    wanted = (row < rows)[:, None] & (column < columns)[None, :]
    if HAS_BIAS:
        total += tl.load(bias + column, mask=column < columns, other=0.0).to(tl.float32)[None, :]
    target = out + row[:, None].to(tl.int64) * columns + column[None, :]
    if ADDS:
        total += tl.load(target, mask=wanted, other=0.0).to(tl.float32)
    tl.store(target, total.to(out.dtype.element_ty), mask=wanted)


@triton.jit
def _scaled(code, scale, zero, TILES: tl.constexpr, SIZE: tl.constexpr, COLUMNS: tl.constexpr):
    wide = tl.reshape(code.to(tl.float32), [COLUMNS, TILES, SIZE])
    return tl.reshape((wide - zero[:, :, None]) * scale[:, :, None], [COLUMNS, TILES * SIZE])


@triton.jit
def _dequantize(
    codes, scales, zeros, out,
    K: tl.constexpr, GROUP: tl.constexpr, TILE: tl.constexpr, BITS: tl.constexpr, HAS_ZEROS: tl.constexpr,
    TILES: tl.constexpr,
):  # fmt: skip
    """One program some groups of a row."""
    start = tl.program_id(0).to(tl.int64)
    tiles = tl.program_id(1) * TILES + tl.arange(0, TILES)
    there = (tiles * TILE < K)[:, None]
    place = (tiles * TILE)[:, None] + tl.arange(0, TILE)[None, :]
    row = start + tl.zeros([1, 1], tl.int64)
    scale, zero = _group_scales(scales, zeros, row, tiles, (tiles * TILE < K)[None, :], K, GROUP, TILE, BITS, HAS_ZEROS)
    scale, zero = tl.reshape(scale, [TILES, 1]), tl.reshape(zero, [TILES, 1])
    if BITS == 8:
        code = tl.load(codes + start * K + place, mask=there, other=0).to(tl.float32)
    else:
        byte = (tiles * (TILE // 2))[:, None] + tl.arange(0, TILE // 2)[None, :]
        packed = tl.load(codes + start * (K // 2) + byte, mask=there, other=0)
        code = tl.reshape(tl.join(packed & 15, packed >> 4), [TILES, TILE]).to(tl.float32)
    tl.store(out + start * K + place, ((code - zero) * scale).to(out.dtype.element_ty), mask=there)
