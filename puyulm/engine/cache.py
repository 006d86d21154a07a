"""The key/value cache, and the attention object that reads it.

One contiguous block a layer, `[slots, KV, capacity, D]`: a head's keys lie one after another, which CPUs read up to
1.5 times faster than keys of all heads interleaved. Live sequences always fill the first slots, so that a decode step
of the whole batch is one batched product over a view.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from puyulm.model.attention import causal_attention
from puyulm.model.config import ModelConfig

# Keys of a decode step are read up to a multiple of this, the rest masked: products of the same width then round the
# same, and a sequence gets the same bits alone as beside a longer one (on the CPUs measured).
WIDTH = 16


class KVCache:
    """Keys and values of up to `slots` sequences.

    Args:
        config: Of the model.
        slots: Sequences at once.
        capacity: Tokens of each to begin with; `reserve` enlarges.
        dtype, device: Of the activations.
    """

    def __init__(
        self, config: ModelConfig, slots: int, capacity: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.slots = slots
        self.capacity = _padded(capacity)
        shape = (slots, config.num_kv_heads, self.capacity, config.head_dim)
        # Zeros, not empty: masked positions are read, and a stray NaN would survive its weight of zero.
        self.keys = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.num_layers)]
        self.values = [torch.zeros(shape, dtype=dtype, device=device) for _ in range(config.num_layers)]

    def reserve(self, length: int) -> None:
        """Makes room for sequences of `length` tokens. At least doubles, so that a token is copied once on average."""
        if length <= self.capacity:
            return
        used, self.capacity = self.capacity, _padded(max(length, 2 * self.capacity))
        for store in (self.keys, self.values):
            for layer, old in enumerate(store):
                new = old.new_zeros(old.shape[0], old.shape[1], self.capacity, old.shape[3])
                new[:, :, :used] = old
                store[layer] = new

    @torch.inference_mode()  # a store that has grown during a forward can be written to in this mode only
    def move(self, source: int, target: int, length: int) -> None:
        """Copies the first `length` tokens of one slot to another."""
        for store in (self.keys, self.values):
            for block in store:
                block[target, :, :length] = block[source, :, :length]


@dataclass(frozen=True, slots=True)
class Span:
    """Some consecutive tokens of one sequence, as they take part in a forward.

    Attributes:
        slot: Where the sequence lives in the cache.
        start: Its tokens already cached: the position of the first of these.
        count: How many these are.
        reach: The length that dynamic NTK takes its base from.
    """

    slot: int
    start: int
    count: int
    reach: int

    @property
    def stop(self) -> int:
        return self.start + self.count


class CachedAttention:
    """Appends a forward's keys and values to the cache and lets each token see its own sequence up to itself.

    Args:
        cache: With room for every span's `stop`.
        spans: The forward's tokens, in order. Either one token for each of the slots 0, 1, 2, ... (a decode step), or
            any pieces of sequences (prefill), also beside single tokens.

    Attributes:
        positions: `[T]`.
        seq_lens: `[T]`.
    """

    def __init__(self, cache: KVCache, spans: Sequence[Span]) -> None:
        self.cache = cache
        self.spans = spans
        device = cache.keys[0].device
        if all(span.count == 1 and span.slot == index for index, span in enumerate(spans)):
            self.positions = torch.tensor([span.start for span in spans], device=device)
            self.seq_lens = torch.tensor([span.reach for span in spans], device=device)
            self._decode: _DecodePlan | None = _DecodePlan(cache, self.positions, [span.stop for span in spans])
            return
        self._decode = None
        self.positions = torch.cat([torch.arange(span.start, span.stop, device=device) for span in spans])
        counts = torch.tensor([span.count for span in spans], device=device)
        self.seq_lens = torch.tensor([span.reach for span in spans], device=device).repeat_interleave(counts)
        self._masks = [_causal_mask(span, cache.keys[0]) for span in spans]

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        keys, values = self.cache.keys[layer], self.cache.values[layer]
        if self._decode is not None:
            return self._decode.attend(q, k, v, keys, values)
        counts = [span.count for span in self.spans]
        parts = zip(self.spans, self._masks, q.split(counts), k.split(counts), v.split(counts), strict=True)
        mixed = []
        for span, mask, q, k, v in parts:
            keys[span.slot, :, span.start : span.stop] = k.transpose(0, 1)
            values[span.slot, :, span.start : span.stop] = v.transpose(0, 1)
            if mask is None:
                mixed.append(causal_attention(q[None], k[None], v[None])[0])
            else:
                seen = slice(0, span.stop)
                mixed.append(_masked_attention(q, keys[span.slot, :, seen], values[span.slot, :, seen], mask))
        return mixed[0] if len(mixed) == 1 else torch.cat(mixed)


class _DecodePlan:
    """What all layers of a decode step share: where to write, and which keys each sequence sees.

    Sequences of similar length share one product over their padded keys; where that would read more than twice the
    keys that exist, each is a product of its own.
    """

    def __init__(self, cache: KVCache, positions: Tensor, lengths: list[int]) -> None:
        kv_heads, capacity = cache.keys[0].shape[1:3]
        batch, device = len(lengths), positions.device
        heads = torch.arange(batch * kv_heads, device=device)
        self._rows = heads * capacity + positions.repeat_interleave(kv_heads)
        widest = _padded(max(lengths))
        together = widest * batch <= 2 * sum(_padded(length) for length in lengths)
        groups = [range(batch)] if together else [range(index, index + 1) for index in range(batch)]
        dtype = cache.keys[0].dtype
        self._groups = []
        for group in groups:
            width = _padded(max(lengths[index] for index in group))
            ends = torch.tensor([lengths[index] for index in group], device=device)[:, None]
            hidden = torch.arange(width, device=device) >= ends
            mask = torch.zeros(hidden.shape, dtype=dtype, device=device).masked_fill_(hidden, -torch.inf)
            mask = mask.repeat_interleave(kv_heads, dim=0)[:, None]  # [B * KV, 1, width]
            self._groups.append((slice(group.start * kv_heads, group.stop * kv_heads), width, mask))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """`[B, KV, q_per_kv, D]`, `[B, KV, D]` twice, and a layer's whole store -> `[B, KV, q_per_kv, D]`."""
        head_dim = q.shape[-1]
        keys.view(-1, head_dim).index_copy_(0, self._rows, k.reshape(-1, head_dim))
        values.view(-1, head_dim).index_copy_(0, self._rows, v.reshape(-1, head_dim))
        queries, keys, values = q.flatten(0, 1), keys.flatten(0, 1), values.flatten(0, 1)
        mixed = [
            _decode_attention(queries[rows], keys[rows, :width], values[rows, :width], mask)
            for rows, width, mask in self._groups
        ]
        return (mixed[0] if len(mixed) == 1 else torch.cat(mixed)).view(q.shape)


def _decode_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """One query position a sequence: `[N, q_per_kv, D]`, `[N, S, D]` twice, `[N, 1, S]` -> `[N, q_per_kv, D]`, where N
    counts key/value heads of all sequences."""
    if q.dtype != torch.float32:  # rounding scores to half precision loses more than a fused kernel does
        return F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None], attn_mask=mask[:, None])[:, 0]
    # Plain products: on CPUs up to a quarter faster than the fused kernel here, and padding does not change the result.
    scores = torch.baddbmm(mask, q, k.transpose(1, 2), alpha=q.shape[-1] ** -0.5)
    return torch.bmm(scores.softmax(-1), v)


def _masked_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """A later piece of a sequence: `[n, KV, q_per_kv, D]`, `[KV, S, D]` twice, `[n, S]` -> `[n, KV, q_per_kv, D]`."""
    groups = q.shape[2]
    k, v = (x[:, None].expand(-1, groups, -1, -1) for x in (k, v))
    mixed = F.scaled_dot_product_attention(q.permute(1, 2, 0, 3), k, v, attn_mask=mask)
    return mixed.permute(2, 0, 1, 3)


def _causal_mask(span: Span, like: Tensor) -> Tensor | None:
    """`[count, stop]` to add to the scores; None for the beginning of a sequence, which needs no cached keys."""
    if span.start == 0:
        return None
    mask = torch.full((span.count, span.stop), -torch.inf, dtype=like.dtype, device=like.device)
    return mask.triu_(span.start + 1)


def _padded(length: int) -> int:
    return -(-length // WIDTH) * WIDTH
