"""Paged attention in C: `attention.c` beside this file, and what it is told of a step."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from puyulm.engine.cpu import native
from puyulm.engine.paged import BLOCK_SIZE, KVCache, StepLayout
from puyulm.model.attention import Attention

MAX_HEAD_DIM = 256

_INTEGERS = ("pieces", "tokens", "table_width", "kv_heads", "q_per_kv", "dim", "kind", "threads")
_POINTERS = ("query_starts", "lengths", "block_tables", "slots")


class _Step(ctypes.Structure):
    """`step` of attention.c."""

    _fields_ = [(name, ctypes.c_int64) for name in _INTEGERS] + [(name, ctypes.c_void_p) for name in _POINTERS]


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled kernel; None without a compiler."""
    made = native.load("attention")
    if made is not None:
        declare(made)
    return made


def declare(made: ctypes.CDLL) -> None:
    """Tells ctypes what `paged_attention` of attention.c takes."""
    pointer: Any = ctypes.c_void_p
    size: Any = ctypes.c_int64
    made.paged_attention.argtypes = (*[pointer] * 5, *[pointer, size, size] * 3, pointer)


def kind_of(cache: KVCache) -> int | None:
    """The number by which attention.c knows a way of storing; None: it does not."""
    if not cache.transposed or cache.block_size != BLOCK_SIZE or cache.config.head_dim > MAX_HEAD_DIM:
        return None
    if cache.kv_type == "model":
        return {torch.float32: 0, torch.bfloat16: 1}.get(cache.dtype)
    return {"int8": 2, "int4": 3}.get(cache.kv_type)


class NativeAttention:
    """As `puyulm.engine.paged.PagedAttention`.

    A query's result has the same bits whatever stands beside it, in whatever chunks its sequence came, with any number
    of threads.
    """

    def __init__(self, cache: KVCache, layout: StepLayout, made: ctypes.CDLL) -> None:
        kind = kind_of(cache)
        assert kind is not None
        self.cache, self.layout = cache, layout
        self._run = made.paged_attention
        parts = (layout.query_starts, layout.lengths, layout.block_tables, layout.slots)
        self._held = [part.contiguous() for part in parts]  # whose memory the kernel reads
        assert [part.dtype for part in self._held] == [torch.int32] * 3 + [torch.int64]
        config = cache.config
        self._step = _Step(
            len(layout.counts), layout.positions.shape[0], layout.block_tables.shape[1],
            config.num_kv_heads, config.q_per_kv, config.head_dim, kind, torch.get_num_threads(),
            *(part.data_ptr() for part in self._held),
        )  # fmt: skip
        self.step_pointer = ctypes.addressof(self._step)

    @property
    def positions(self) -> Tensor:
        return self.layout.positions

    @property
    def seq_lens(self) -> Tensor:
        return self.layout.reaches

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        dtype = q.dtype
        if dtype != torch.float32:
            q, k, v = q.float(), k.float(), v.float()
        dim = q.shape[3]
        if q.stride(3) != 1 or q.stride(2) != dim:
            q = q.contiguous()
        k, v = (x if x.stride(2) == 1 else x.contiguous() for x in (k, v))
        out = torch.empty(q.shape)
        failed = self._run(
            self.step_pointer, *self.cache.pointers[layer],
            q.data_ptr(), q.stride(0), q.stride(1),
            k.data_ptr(), k.stride(0), k.stride(1),
            v.data_ptr(), v.stride(0), v.stride(1),
            out.data_ptr(),
        )  # fmt: skip
        if failed:
            raise MemoryError("no memory for the partial results of attention")
        return out if dtype == torch.float32 else out.to(dtype)


def cpu_attention(cache: KVCache, layout: StepLayout) -> Attention | None:
    """In C; without a compiler by numba, where it is installed; None where neither knows the cache."""
    if (made := native_attention(cache, layout)) is not None:
        return made
    kernels = _numba()
    return kernels.NumbaAttention(cache, layout) if kernels is not None and kernels.knows(cache) else None


def native_attention(cache: KVCache, layout: StepLayout) -> NativeAttention | None:
    """None without a compiler, and for what the kernel does not know: float16, fp8, other blocks."""
    made = library()
    return None if made is None or kind_of(cache) is None else NativeAttention(cache, layout, made)


@functools.cache
def _numba() -> ModuleType | None:
    if importlib.util.find_spec("numba") is None:
        return None
    from puyulm.engine.cpu import attention_numba

    return attention_numba
