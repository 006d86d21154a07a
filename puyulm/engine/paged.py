"""The paged key/value cache, and the attention object that reads it.

Keys and values lie in blocks of `block_size` tokens. A sequence owns a list of blocks, its block table; which blocks
these are is the scheduler's business (`puyulm.engine.blocks`). `PagedAttention` works on any device in plain PyTorch,
and is the reference for the kernels that `attention_for` prefers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from puyulm.engine import kv_types
from puyulm.engine.gpu.available import runs_on
from puyulm.engine.kv_types import KVType
from puyulm.model.attention import Attention
from puyulm.model.config import ModelConfig

BLOCK_SIZE = 16

QUERY_TILE = 256
"""Queries that the plain path takes at once: its scores and masks grow with this, not with the prompt."""


@dataclass(frozen=True)
class StepLayout:
    """The tokens of one forward: R pieces of sequences side by side, T tokens in all.

    Attributes:
        positions: `[T]`, int64: each token's position in its own sequence.
        reaches: `[T]`, int64: the length that dynamic NTK takes the base of each token's sequence from.
        slots: `[T]`, int64: where each token's key and value go: block number * block_size + place in the block.
        query_starts: `[R + 1]`, int32: where each piece begins among the T tokens, and T.
        lengths: `[R]`, int32: tokens of each sequence once this step is cached; the piece's last token is at
            `lengths - 1`.
        block_tables: `[R, W]`, int32: block numbers of each sequence, in order; what is beyond its length is not read.
        counts, ends: The pieces' sizes and `lengths`, as numbers of the host.
    """

    positions: Tensor
    reaches: Tensor
    slots: Tensor
    query_starts: Tensor
    lengths: Tensor
    block_tables: Tensor
    counts: Sequence[int]
    ends: Sequence[int]

    @property
    def decoding(self) -> bool:
        """Every piece is a single token."""
        return len(self.counts) == self.positions.shape[0]


class KVCache:
    """Keys and values of all layers, in blocks.

    Args:
        config: Of the model.
        num_blocks: Blocks, each of `block_size` tokens in every layer.
        dtype, device: Of the activations.
        kv_type: "model": in `dtype`; or codes of fewer bits (`puyulm.engine.kv_types`).
        transposed: Keys lie `[blocks, KV, W, block_size]`, as the kernels for CPUs read them, and not
            `[blocks, KV, block_size, W]`. None: on CPUs.

    Attributes:
        keys, values: Of each layer; values `[blocks, KV, block_size, W]`. W is the head's dimension D, or the bytes of
            its codes (uint8).
        key_scales, value_scales: Of each layer, `[blocks, KV, 2, block_size]` (fp8: 1 for 2), float32: scales, then
            offsets. Empty where `kv_type` is "model".
        pointers: For each layer the addresses of keys, values, and their scales (None without).
    """

    def __init__(
        self,
        config: ModelConfig,
        num_blocks: int,
        dtype: torch.dtype,
        device: torch.device,
        kv_type: KVType = "model",
        block_size: int = BLOCK_SIZE,
        transposed: bool | None = None,
    ) -> None:
        self.config, self.dtype, self.device = config, dtype, torch.device(device)
        self.num_blocks, self.block_size, self.kv_type = num_blocks, block_size, kv_type
        self.transposed = self.device.type == "cpu" if transposed is None else transposed
        width, kind = config.head_dim, dtype
        if kv_type != "model":
            width, kind = kv_types.code_bytes(config.head_dim, kv_type), torch.uint8
        heads = (num_blocks, config.num_kv_heads)
        inner = (width, block_size) if self.transposed else (block_size, width)
        scales = kv_types.num_scales(kv_type)
        layers = range(config.num_layers if scales else 0)
        self.keys = [_zeros((*heads, *inner), kind, self.device) for _ in range(config.num_layers)]
        self.values = [_zeros((*heads, block_size, width), kind, self.device) for _ in range(config.num_layers)]
        self.key_scales = [_zeros((*heads, scales, block_size), torch.float32, self.device) for _ in layers]
        self.value_scales = [_zeros((*heads, scales, block_size), torch.float32, self.device) for _ in layers]
        stores = (self.keys, self.values, self.key_scales, self.value_scales)
        self.pointers = [
            tuple(store[layer].data_ptr() if store else None for store in stores) for layer in range(config.num_layers)
        ]

    def write(self, layer: int, slots: Tensor, k: Tensor, v: Tensor) -> None:
        """Stores keys and values `[T, KV, D]` at `slots`."""
        blocks, places = slots // self.block_size, slots % self.block_size
        if self.kv_type != "model":
            (k, key_scales), (v, value_scales) = (kv_types.encode(x, self.kv_type) for x in (k, v))
            self.key_scales[layer][blocks, :, :, places] = key_scales
            self.value_scales[layer][blocks, :, :, places] = value_scales
        keys = self.keys[layer]
        (keys.transpose(2, 3) if self.transposed else keys)[blocks, :, places] = k
        self.values[layer][blocks, :, places] = v

    def read(self, layer: int, table: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """The first `length` keys and values of a sequence, each `[length, KV, D]`, in the activations' dtype."""
        blocks = table[: -(-length // self.block_size)].long()
        keys, values = self.keys[layer][blocks], self.values[layer][blocks]
        if self.transposed:
            keys = keys.transpose(2, 3)
        if self.kv_type != "model":
            keys = self._decode(keys, self.key_scales[layer][blocks])
            values = self._decode(values, self.value_scales[layer][blocks])
        keys, values = (x.transpose(1, 2).flatten(0, 1)[:length] for x in (keys, values))
        return keys, values

    def _decode(self, codes: Tensor, scales: Tensor) -> Tensor:
        decoded = kv_types.decode(codes.contiguous(), scales.transpose(2, 3), self.config.head_dim, self.kv_type)
        return decoded.to(self.dtype)


def block_bytes(
    config: ModelConfig, dtype: torch.dtype, kv_type: KVType = "model", block_size: int = BLOCK_SIZE
) -> int:
    """Bytes that one block takes in all layers."""
    head = config.head_dim * dtype.itemsize
    if kv_type != "model":
        head = kv_types.code_bytes(config.head_dim, kv_type) + 4 * kv_types.num_scales(kv_type)
    return 2 * config.num_layers * config.num_kv_heads * block_size * head


def attention_for(cache: KVCache, layout: StepLayout) -> Attention:
    """The fastest attention for this cache here: compiled C on CPUs, numba without a compiler, Triton on CUDA
    devices, and plain PyTorch where none of them knows the type or the device."""
    if cache.transposed:
        from puyulm.engine.cpu.attention import cpu_attention

        if (made := cpu_attention(cache, layout)) is not None:
            return made
    elif runs_on(cache.device) and cache.dtype != torch.float64:
        from puyulm.engine.gpu.attend import TritonAttention

        return TritonAttention(cache, layout)
    return PagedAttention(cache, layout)


class PagedAttention:
    """Stores a forward's keys and values and lets each token see its own sequence up to itself.

    Args:
        cache: Where they go.
        layout: Whose tokens these are.
    """

    def __init__(self, cache: KVCache, layout: StepLayout) -> None:
        self.cache, self.layout = cache, layout

    @property
    def positions(self) -> Tensor:
        return self.layout.positions

    @property
    def seq_lens(self) -> Tensor:
        return self.layout.reaches

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.cache.write(layer, self.layout.slots, k, v)
        return paged_attention(q, self.cache, layer, self.layout)


def paged_attention(q: Tensor, cache: KVCache, layer: int, layout: StepLayout) -> Tensor:
    """Each query sees the keys of its sequence up to its own position. `[T, KV, q_per_kv, D]` -> the same shape."""
    mixed = []
    for piece, (queries, end) in enumerate(zip(q.split(list(layout.counts)), layout.ends, strict=True)):
        keys, values = cache.read(layer, layout.block_tables[piece], end)
        k, v = (x.transpose(0, 1) for x in (keys, values))
        seen = end - queries.shape[0]
        for tile in queries.split(QUERY_TILE):
            seen += tile.shape[0]
            mixed.append(_attend(tile, k[:, :seen], v[:, :seen]))
    return mixed[0] if len(mixed) == 1 else torch.cat(mixed)


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Queries `[n, KV, q_per_kv, D]` that stand at the end of the keys and values `[KV, S, D]`; -> shape of q."""
    count, seen = q.shape[0], k.shape[1]
    shape = (k.shape[0], q.shape[2], *k.shape[1:])
    k, v = (x[:, None].expand(shape) for x in (k, v))
    mask = None
    if count > 1:
        mask = torch.ones(count, seen, dtype=torch.bool, device=q.device).tril_(seen - count)
    mixed = F.scaled_dot_product_attention(q.permute(1, 2, 0, 3), k, v, attn_mask=mask)
    return mixed.permute(2, 0, 1, 3)


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """On CPUs memory that the system really gives only once it is written to, aligned to cache lines, and with a vector
    to spare behind, which kernels read beyond the last value where D is not a multiple of 16."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    size, spare = int(np.prod(shape)) * dtype.itemsize, 64
    memory = np.zeros(size + 2 * spare, dtype=np.uint8)
    start = -memory.ctypes.data % spare
    return torch.from_numpy(memory[start : start + size]).view(dtype).view(shape)
