"""What is between a layer's matrix products, one pass over memory each. The plain ways are in `puyulm.model.kernels`.

These are kernels and no compiled PyTorch, so that a server's first answer does not wait for a compiler a minute, and
layers with quantised or adapted matrices get them too.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from puyulm.model.rope import RopeTables

_SPAN = 1024


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`[T, H]`, `[H]` -> `[T, H]`."""
    x = x.contiguous()
    out = torch.empty_like(x)
    size = x.shape[1]
    pad = triton.next_power_of_2(size)
    if x.shape[0]:
        _rms_norm[(x.shape[0],)](x, weight, out, eps, SIZE=size, PAD=pad, num_warps=8 if pad >= 4096 else 4)
    return out


def rotate_qkv(qkv: Tensor, rope: RopeTables) -> tuple[Tensor, Tensor, Tensor]:
    """`[T, KV, q_per_kv + 2, D]` -> `[T, KV, q_per_kv, D]`, `[T, KV, D]` and `[T, KV, D]`, in memory of their own."""
    qkv = qkv.contiguous()
    tokens, groups, heads, dim = qkv.shape
    q = torch.empty(tokens, groups, heads - 2, dim, dtype=qkv.dtype, device=qkv.device)
    k, v = (torch.empty(tokens, groups, dim, dtype=qkv.dtype, device=qkv.device) for _ in range(2))
    if tokens:
        _rotate_qkv[(tokens, groups)](
            qkv, rope.cos, rope.sin, q, k, v,
            GROUPS=groups, HEADS=heads, HEADS_PAD=triton.next_power_of_2(heads), DIM=dim,
            HALF_PAD=triton.next_power_of_2(dim // 2),
        )  # fmt: skip
    return q, k, v


def swiglu(gate_up: Tensor, block: int) -> Tensor:
    """`silu(gate) * up`: `[T, 2 I]`, in which blocks of gate and up alternate, -> `[T, I]`."""
    gate_up = gate_up.contiguous()
    size = gate_up.shape[1] // 2
    out = torch.empty(gate_up.shape[0], size, dtype=gate_up.dtype, device=gate_up.device)
    if gate_up.shape[0]:
        _swiglu[(gate_up.shape[0], triton.cdiv(size, _SPAN))](gate_up, out, SIZE=size, BLOCK=block, SPAN=_SPAN)
    return out


@triton.jit
def _rms_norm(x, weight, out, eps, SIZE: tl.constexpr, PAD: tl.constexpr):
    place = tl.arange(0, PAD)
    row = tl.program_id(0).to(tl.int64) * SIZE
    values = tl.load(x + row + place, mask=place < SIZE, other=0.0).to(tl.float32)
    values *= tl.rsqrt(tl.sum(values * values, axis=0) / SIZE + eps)
    scale = tl.load(weight + place, mask=place < SIZE, other=0.0).to(tl.float32)
    rounded = values.to(out.dtype.element_ty).to(tl.float32)  # before the weight, as published
    tl.store(out + row + place, (rounded * scale).to(out.dtype.element_ty), mask=place < SIZE)


@triton.jit
def _rotate_qkv(
    qkv, cos, sin, q, k, v,
    GROUPS: tl.constexpr, HEADS: tl.constexpr, HEADS_PAD: tl.constexpr, DIM: tl.constexpr, HALF_PAD: tl.constexpr,
):  # fmt: skip
    """One program a token and group: its queries, its key, its value."""
    token, group = tl.program_id(0).to(tl.int64), tl.program_id(1)
    head, half = tl.arange(0, HEADS_PAD), tl.arange(0, HALF_PAD)
    there = half < DIM // 2
    # The tables' second halves say the same again, the sines with the other sign.
    c = tl.load(cos + token * DIM + half, mask=there, other=0.0).to(tl.float32)[None, :]
    s = tl.load(sin + token * DIM + DIM // 2 + half, mask=there, other=0.0).to(tl.float32)[None, :]
    group = token * GROUPS + group
    source = qkv + (group * HEADS + head)[:, None] * DIM + half[None, :]
    wanted = (head < HEADS)[:, None] & there[None, :]
    a = tl.load(source, mask=wanted, other=0.0)
    b = tl.load(source + DIM // 2, mask=wanted, other=0.0)
    turned_a = (a.to(tl.float32) * c - b.to(tl.float32) * s).to(a.dtype)
    turned_b = (b.to(tl.float32) * c + a.to(tl.float32) * s).to(a.dtype)
    query = wanted & (head < HEADS - 2)[:, None]
    target = q + (group * (HEADS - 2) + head)[:, None] * DIM + half[None, :]
    tl.store(target, turned_a, mask=query)
    tl.store(target + DIM // 2, turned_b, mask=query)
    key = wanted & (head == HEADS - 2)[:, None]
    target = k + group * DIM + half[None, :] + head[:, None] * 0
    tl.store(target, turned_a, mask=key)
    tl.store(target + DIM // 2, turned_b, mask=key)
    value = wanted & (head == HEADS - 1)[:, None]
    target = v + group * DIM + half[None, :] + head[:, None] * 0
    tl.store(target, a, mask=value)
    tl.store(target + DIM // 2, b, mask=value)


@triton.jit
def _swiglu(gate_up, out, SIZE: tl.constexpr, BLOCK: tl.constexpr, SPAN: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * SPAN + tl.arange(0, SPAN)
    source = gate_up + row * 2 * SIZE + column // BLOCK * (2 * BLOCK) + column % BLOCK
    gate = tl.load(source, mask=column < SIZE, other=0.0).to(tl.float32)
    up = tl.load(source + BLOCK, mask=column < SIZE, other=0.0).to(tl.float32)
    # Rounded between the two, as two operations of PyTorch would.
    gate = (gate / (1.0 + tl.exp(-gate))).to(out.dtype.element_ty).to(tl.float32)
    tl.store(out + row * SIZE + column, (gate * up).to(out.dtype.element_ty), mask=column < SIZE)
