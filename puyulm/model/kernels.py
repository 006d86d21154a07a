"""What training does between matrix products, in few passes over memory.

PyTorch's own backward of such chains keeps and writes several tensors as large as the activations. Here each is one
function with a backward of its own. On CPUs these are measurably faster; compiled, and where a tensor is not a plain
one (tensor parallelism), the plain versions are used, which say the same in a line each.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from puyulm.model.rope import RopeTables, rotate

QUERY_BLOCK = 128
"""Queries whose scores are computed together: their keys end with the block, so that half of the square is spared."""

ATTENTION_LENGTHS = range(192, 2049)
"""Lengths of documents that `causal_attention` serves better than PyTorch's kernel, alone and beside shorter ones. For
longer ones the kept probabilities, which grow with the square, are too much memory; shorter ones of one length are as
fast in a single call."""


def plain_rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Normalised in float32, cast back, then scaled by the weight: `[..., H]`, `[H]` -> `[..., H]`."""
    if x.dtype in (torch.float32, torch.float64):
        return F.rms_norm(x, weight.shape, weight, eps)
    wide = x.float()
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return wide.to(x.dtype) * weight.to(x.dtype)  # under autocast the weight is wider


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """As `plain_rms_norm`."""
    if _hand_written(x) and _on_cpu(x) and weight.dtype == x.dtype and torch.is_grad_enabled():
        return _RMSNorm.apply(x, weight, eps)
    return plain_rms_norm(x, weight, eps)


def plain_swiglu(gate_up: Tensor, block: int) -> Tensor:
    """`silu(gate) * up`: `[T, 2 I]`, in which blocks of gate and up alternate, -> `[T, I]`."""
    gate, up = gate_up.unflatten(-1, (-1, 2, block)).unbind(2)
    return (F.silu(gate) * up).flatten(1)


def swiglu(gate_up: Tensor, block: int) -> Tensor:
    """As `plain_swiglu`; keeps nothing but `gate_up` for the backward."""
    if _hand_written(gate_up) and torch.is_grad_enabled():
        return _SwiGLU.apply(gate_up, block)
    return plain_swiglu(gate_up, block)


def plain_rotate_qkv(qkv: Tensor, rope: RopeTables) -> tuple[Tensor, Tensor, Tensor]:
    """Rotates queries and key of each group.

    Args:
        qkv: `[T, KV, q_per_kv + 2, D]`: a group's queries, its key, its value.

    Returns:
        `[T, KV, q_per_kv, D]`, `[T, KV, D]` and `[T, KV, D]`.
    """
    rotated = rotate(qkv[:, :, :-1], rope)
    return rotated[:, :, :-1], rotated[:, :, -1], qkv[:, :, -1]


def rotate_qkv(qkv: Tensor, rope: RopeTables) -> tuple[Tensor, Tensor, Tensor]:
    """As `plain_rotate_qkv`."""
    if _hand_written(qkv):
        return _RotateQKV.apply(qkv, *rope.beside(qkv))
    return plain_rotate_qkv(qkv, rope)


def suits_causal_attention(q: Tensor, lengths: Sequence[int]) -> bool:
    """Whether `causal_attention` is the faster way for these documents."""
    return (
        _hand_written(q) and _on_cpu(q) and q.requires_grad and torch.is_grad_enabled()
        and max(lengths) < ATTENTION_LENGTHS.stop and (max(lengths) in ATTENTION_LENGTHS or len(set(lengths)) > 1)
    )  # fmt: skip


def plain_causal_attention(q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int]) -> Tensor:
    """Each document sees itself only, causally.

    Args:
        q: `[T, KV, q_per_kv, D]`.
        k, v: `[T, KV, D]`.
        lengths: Of the documents; they sum to T.

    Returns:
        `[T, KV, q_per_kv, D]`.
    """
    document = torch.arange(len(lengths), device=q.device).repeat_interleave(torch.tensor(lengths, device=q.device))
    seen = (document[:, None] == document).tril()
    scores = torch.einsum("tkgd,skd->kgts", q, k) * q.shape[-1] ** -0.5
    return torch.einsum("kgts,skd->tkgd", scores.masked_fill(~seen, -torch.inf).softmax(-1), v)


def causal_attention(q: Tensor, k: Tensor, v: Tensor, lengths: Sequence[int]) -> Tensor:
    """As `plain_causal_attention`, block by block of queries; keeps the probabilities for the backward."""
    return _CausalAttention.apply(q, k, v, tuple(lengths))


def _hand_written(x: Tensor) -> bool:
    return type(x) is Tensor and not torch.compiler.is_compiling()


def _on_cpu(x: Tensor) -> bool:
    """Other devices, and half precision, have good kernels for this."""
    return x.is_cpu and x.dtype in (torch.float32, torch.float64)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        scale = scale.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, scale)
        return (x * scale).mul_(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight, scale = ctx.saved_tensors
        product = (grad * x).flatten(0, -2)
        grad_weight = product.T @ scale.flatten() if ctx.needs_input_grad[1] else None
        if not ctx.needs_input_grad[0]:
            return None, grad_weight, None
        # d x = scale (g w - x scale^2 mean(g w x))
        mean = (product @ weight).view_as(scale).mul_(scale).mul_(scale).div_(x.shape[-1])
        grad_x = (grad * weight).addcmul_(x, mean, value=-1).mul_(scale)
        return grad_x, grad_weight, None


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor, block: int) -> Tensor:
        ctx.save_for_backward(gate_up)
        ctx.block = block
        gate, up = gate_up.unflatten(-1, (-1, 2, block)).unbind(2)
        return F.silu(gate).mul_(up).flatten(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (gate_up,) = ctx.saved_tensors
        grads = torch.empty_like(gate_up)
        gate, up = gate_up.unflatten(-1, (-1, 2, ctx.block)).unbind(2)
        grad_gate, grad_up = grads.unflatten(-1, (-1, 2, ctx.block)).unbind(2)
        grad = grad.reshape(gate.shape)
        torch.ops.aten.silu_backward.grad_input(grad * up, gate, grad_input=grad_gate)
        torch.ops.aten.silu.out(gate, out=grad_up).mul_(grad)
        return grads, None


class _RotateQKV(torch.autograd.Function):
    """The transpose of a rotation is the rotation back."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(cos, sin)
        rotated = torch.empty_like(qkv[:, :, :-1], memory_format=torch.contiguous_format)
        _rotate_into(rotated, qkv[:, :, :-1], cos, sin, 1)
        return rotated[:, :, :-1], rotated[:, :, -1], qkv[:, :, -1]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_q: Tensor, grad_k: Tensor, grad_v: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        tokens, groups, queries, size = grad_q.shape
        grads = grad_q.new_empty(tokens, groups, queries + 2, size)
        _rotate_into(grads[:, :, :queries], grad_q, cos, sin, -1)
        _rotate_into(grads[:, :, queries : queries + 1], grad_k[:, :, None], cos, sin, -1)
        grads[:, :, -1] = grad_v
        return grads, None, None


def _rotate_into(out: Tensor, x: Tensor, cos: Tensor, sin: Tensor, sign: int) -> None:
    half = x.shape[-1] // 2
    torch.mul(x, cos, out=out)
    out[..., :half].addcmul_(x[..., half:], sin[..., :half], value=sign)
    out[..., half:].addcmul_(x[..., :half], sin[..., half:], value=sign)


class _CausalAttention(torch.autograd.Function):
    """Scores of a block of queries are `[KV, queries * q_per_kv, keys]`, with keys up to the end of the block."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, lengths: tuple[int, ...]) -> Tensor:
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
        future, kept = _future(q), []
        for first, start, stop in _query_blocks(lengths):
            keys, values = (x[first:stop].transpose(0, 1) for x in (k, v))
            probs = torch.bmm(_rows(q, start, stop), keys.mT).mul_(q.shape[-1] ** -0.5)
            probs[:, :, start - first :] += future[: (stop - start) * q.shape[2], : stop - start]
            torch.softmax(probs, -1, out=probs)
            _set_rows(out, start, stop, torch.bmm(probs, values))
            kept.append(probs)
        ctx.save_for_backward(q, k, v, out, *kept)
        ctx.lengths = lengths
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, out, *kept = ctx.saved_tensors
        grad_q, grad_k, grad_v = (torch.empty_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
        scale = q.shape[-1] ** -0.5
        # sum over keys of P dP, the same as grad . out
        inner = (grad * out).sum(-1, keepdim=True).mul_(-scale)
        blocks = list(_query_blocks(ctx.lengths))
        last = None
        # From the last block of a document to its first: the last one sees, and so sets, all keys.
        for (first, start, stop), probs in zip(reversed(blocks), reversed(kept), strict=True):
            keys, values, into_keys, into_values = (x[first:stop].transpose(0, 1) for x in (k, v, grad_k, grad_v))
            beta = 0 if first != last else 1
            last = first
            grads, queries = _rows(grad, start, stop), _rows(q, start, stop)
            into_values.baddbmm_(probs.mT, grads, beta=beta)
            scores = torch.baddbmm(_rows(inner, start, stop), grads, values.mT, alpha=scale).mul_(probs)
            _set_rows(grad_q, start, stop, torch.bmm(scores, keys))
            into_keys.baddbmm_(scores.mT, queries, beta=beta)
        return grad_q, grad_k, grad_v, None


def _query_blocks(lengths: Sequence[int]) -> list[tuple[int, int, int]]:
    """Of each block of queries: where its document starts, where it starts, where it stops."""
    blocks = []
    for start, length in zip(itertools.accumulate(lengths, initial=0), lengths, strict=False):
        size = -(-length // -(-length // QUERY_BLOCK))
        blocks += [(start, start + at, start + min(at + size, length)) for at in range(0, length, size)]
    return blocks


def _future(q: Tensor) -> Tensor:
    """`[QUERY_BLOCK * q_per_kv, QUERY_BLOCK]`: minus infinity where a key comes after the query."""
    hidden = q.new_full((QUERY_BLOCK, QUERY_BLOCK), -torch.inf).triu_(1)
    return hidden.repeat_interleave(q.shape[2], dim=0)


def _rows(x: Tensor, start: int, stop: int) -> Tensor:
    """Tokens of `[T, KV, q_per_kv, D]` as `[KV, tokens * q_per_kv, D]`; a view where there is one query a group."""
    return x[start:stop].transpose(0, 1).flatten(1, 2)


def _set_rows(x: Tensor, start: int, stop: int, values: Tensor) -> None:
    x[start:stop].transpose(0, 1).copy_(values.unflatten(1, (stop - start, -1)))
