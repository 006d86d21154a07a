"""Who may see whom: the attention objects handed to a forward.

An attention object is called once per layer with this layer's rotated queries and keys and its values, and returns
the mixed values. It also says how long the sequence of each token is (for dynamic NTK). `PackedAttention` is the one
for training and scoring; the engine has its own, which reads a key/value cache.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from puyulm.model import kernels


class Attention(Protocol):
    """What a decoder needs to know about who sees whom."""

    @property
    def seq_lens(self) -> Tensor:
        """`[T]`: the length of the sequence each token belongs to."""
        ...

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Mixes values for one layer.

        Args:
            layer: Index of the layer.
            q: `[T, KV, q_per_kv, D]`, rotated.
            k: `[T, KV, D]`, rotated.
            v: `[T, KV, D]`.

        Returns:
            `[T, KV, q_per_kv, D]`.
        """
        ...


class PackedAttention:
    """Documents packed one after another in a row of T tokens; each sees itself only, causally.

    On a GPU in half precision one variable-length kernel serves all documents. Elsewhere each document is a call of
    its own to scaled dot product attention: measured faster on CPUs than any block-diagonal mask, and the work grows
    with the documents' lengths squared, not the row's.

    Args:
        lengths: Tokens of each document, in order; their sum is T.
        device: Where the activations live.

    Attributes:
        cu_seqlens: `[documents + 1]`, int32: where each document starts, and T.
        positions: `[T]`: each token's position in its document.
    """

    def __init__(self, lengths: Sequence[int], device: torch.device | str = "cpu") -> None:
        self.lengths = [int(length) for length in lengths]
        if not self.lengths or min(self.lengths) < 1:
            raise ValueError(f"document lengths must be positive, got {list(lengths)}")
        starts = torch.tensor([0, *itertools.accumulate(self.lengths)])
        lens = torch.tensor(self.lengths)
        positions = torch.arange(int(starts[-1])) - starts[:-1].repeat_interleave(lens)
        self.cu_seqlens, self.seq_lens, self.positions = (
            _to(values, device) for values in (starts.int(), lens.repeat_interleave(lens), positions)
        )

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if len(self.lengths) > 1 and q.is_cuda and q.dtype in (torch.float16, torch.bfloat16):
            return self._variable_length(q, k, v)
        if kernels.suits_causal_attention(q, self.lengths):
            return kernels.causal_attention(q, k, v, self.lengths)
        if len(set(self.lengths)) == 1:  # one call, and nothing to put together afterwards
            parts = (x.unflatten(0, (len(self.lengths), -1)) for x in (q, k, v))
            return causal_attention(*parts).flatten(0, 1)
        documents = zip(*(x[None].split(self.lengths, dim=1) for x in (q, k, v)), strict=True)
        return torch.cat([causal_attention(*document)[0] for document in documents])

    def _variable_length(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        from torch.nn.attention.varlen import varlen_attn

        groups = q.shape[2]
        # Heads are repeated because torch 2.11's kernel has no grouped queries yet.
        k, v = (x.repeat_interleave(groups, dim=1) for x in (k, v))
        longest = max(self.lengths)
        causal = (-1, 0)  # all keys to the left, none to the right
        mixed = varlen_attn(
            q.flatten(1, 2), k, v, self.cu_seqlens, self.cu_seqlens, longest, longest, window_size=causal
        )
        assert isinstance(mixed, Tensor)
        return mixed.view_as(q)


def _to(values: Tensor, device: torch.device | str) -> Tensor:
    if torch.device(device).type == "cuda":  # a copy from pinned memory does not make the host wait for the device
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal grouped-query attention of N sequences of one length.

    Args:
        q: `[N, S, KV, q_per_kv, D]`.
        k, v: `[N, S, KV, D]`.

    Returns:
        `[N, S, KV, q_per_kv, D]`.
    """
    # [N, heads, S, D]; the result's memory is already [N, S, heads, D], so nothing is copied on the way out.
    queries, keys, values = q.flatten(2, 3).transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    mixed = F.scaled_dot_product_attention(queries, keys, values, is_causal=True, enable_gqa=q.shape[3] > 1)
    return mixed.transpose(1, 2).view_as(q)
