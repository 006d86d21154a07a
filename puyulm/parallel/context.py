"""Context parallelism: a group of ranks shares the tokens of each micro-batch, for rows too long for one.

All that a layer does is done token by token, but attention. Before it, the ranks exchange tokens for heads: each gets
all tokens of the row for its share of the heads; after it, they exchange back (DeepSpeed-Ulysses, section 3). The row
is whole where attention runs, so packed documents stay exact wherever they are cut, and all ranks have the same work.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from puyulm.model.attention import Attention
from puyulm.model.loss import VocabularyPart
from puyulm.parallel.batch import MicroBatch
from puyulm.parallel.stage import Split, Stage
from puyulm.parallel.world import World


def apply_context_parallel(stage: Stage, world: World) -> None:
    """Lets a stage work on this rank's share of the tokens: the one at its place in `world.context_mesh["context"]`.

    Tensor parallelism, where there is any, must have been applied before: heads are shared among the context ranks
    after the tensor ranks have had their kv groups.
    """
    assert world.context_mesh is not None
    stage.split = ContextSplit(stage.split, world.context_mesh["context"].get_group())


def exchange_tokens_for_heads(q: Tensor, k: Tensor, v: Tensor, group: dist.ProcessGroup) -> tuple[Tensor, ...]:
    """From this rank's tokens with all heads to all tokens with this rank's share of the heads.

    With C ranks and KV groups, where C does not divide KV, each group becomes `C / gcd(KV, C)` groups with fewer
    queries and a copy each of its key and value; gradients of the copies are summed on the way back.

    Args:
        q: `[T / C, KV, q_per_kv, D]`.
        k, v: `[T / C, KV, D]`.

    Returns:
        `[T, KV', q_per_kv', D]`, `[T, KV', D]` and `[T, KV', D]` of the KV' groups of this rank.
    """
    size = group.size()
    copies = size // math.gcd(k.shape[1], size)
    q = q.unflatten(2, (copies, -1)).flatten(1, 2)
    k, v = (x.repeat_interleave(copies, dim=1) if copies > 1 else x for x in (k, v))
    # [C, T / C, KV', ...]: first what rank 0 is to get. One message for all three.
    parts = [x.unflatten(1, (size, -1)).transpose(0, 1) for x in (q, k[:, :, None], v[:, :, None])]
    whole = _AllToAll.apply(torch.cat(parts, dim=3), group).flatten(0, 1)
    q, k, v = whole.split((q.shape[2], 1, 1), dim=2)
    return q, k[:, :, 0], v[:, :, 0]


def exchange_heads_for_tokens(mixed: Tensor, num_kv_heads: int, group: dist.ProcessGroup) -> Tensor:
    """The way back for the mixed values: `[T, KV', q_per_kv', D]` -> `[T / C, KV, q_per_kv, D]`."""
    parts = _AllToAll.apply(mixed.unflatten(0, (group.size(), -1)), group)  # [C, T / C, KV', q_per_kv', D]
    return parts.transpose(0, 1).flatten(1, 3).unflatten(1, (num_kv_heads, -1))


class ContextSplit:
    """The tokens of a row are cut into one piece a rank, in order; the rest is split as `inner` says."""

    def __init__(self, inner: Split, group: dist.ProcessGroup) -> None:
        self.inner, self.group = inner, group

    def attention(self, batch: MicroBatch) -> Attention:
        return ExchangedAttention(self.inner.attention(batch), self.group)

    def tokens(self, values: Tensor) -> Tensor:
        return self.inner.tokens(values).unflatten(0, (self.group.size(), -1))[self.group.rank()]

    def head(self, hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, VocabularyPart | None]:
        return self.inner.head(hidden, weight)


class ExchangedAttention:
    """Attention over a whole row, called on each rank with its share of the tokens.

    Args:
        whole: Called with all tokens of the row and some of the heads.
    """

    def __init__(self, whole: Attention, group: dist.ProcessGroup) -> None:
        self.whole, self.group = whole, group

    @property
    def seq_lens(self) -> Tensor:
        return self.whole.seq_lens.unflatten(0, (self.group.size(), -1))[self.group.rank()]

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        mixed = self.whole(layer, *exchange_tokens_for_heads(q, k, v, self.group))
        return exchange_heads_for_tokens(mixed, k.shape[1], self.group)


class _AllToAll(torch.autograd.Function):
    """Part i of `[C, ...]` goes to rank i; the gradient goes back the same way."""

    @staticmethod
    def forward(ctx: Any, parts: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return _all_to_all(parts, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _all_to_all(grad, ctx.group), None


def _all_to_all(parts: Tensor, group: dist.ProcessGroup) -> Tensor:
    parts = parts.contiguous()
    received = torch.empty_like(parts)
    dist.all_to_all_single(received, parts, group=group)
    return received
