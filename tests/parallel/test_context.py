"""Context parallelism: attention alone against the whole row in float64, and training curves against one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from puyulm.model.attention import PackedAttention
from puyulm.model.config import RopeConfig
from puyulm.parallel.context import ExchangedAttention
from puyulm.parallel.plan import ParallelPlan
from tests.conftest import tiny_config
from tests.parallel.ragged import Ragged, assert_same_ragged, measure_ragged
from tests.parallel.ranks import Curve, assert_near, assert_same_curve, run_ranks, train_curve

LENGTHS = ([64], [1, 61, 2], [16, 17, 30, 1], [5] * 12 + [4])
"""Rows of 64 tokens: one document over all ranks, very unequal ones, cuts beside and inside documents, many."""

HEADS = {2: ((2, 2), (4, 1), (1, 4), (3, 2)), 4: ((2, 2), (2, 4), (8, 1), (1, 4), (6, 2))}
"""By number of ranks: (kv heads, queries of each); some have fewer kv heads than ranks, or no multiple."""

CONFIGS = (
    tiny_config(),  # 2 kv heads with 2 queries each: with 4 ranks, two share a kv head
    tiny_config(num_heads=8, num_kv_heads=4, head_dim=8, rope=RopeConfig(scaling="dynamic"), max_position_embeddings=8),
)
"""The second one's angles depend on the lengths of whole documents."""


def attend(attention: Any, cut: slice, kv_heads: int, q_per_kv: int) -> list[torch.Tensor]:
    """Mixed values, and gradients of q, k and v, of the tokens in `cut`, in float64."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(64, kv_heads, q_per_kv, 8), (64, kv_heads, 8), (64, kv_heads, 8), (64, kv_heads, q_per_kv, 8)]
    *qkv, grad = (torch.randn(shape, generator=generator, dtype=torch.float64)[cut] for shape in shapes)
    qkv = [x.requires_grad_() for x in qkv]
    mixed = attention(0, *qkv)
    mixed.backward(grad)
    return [mixed.detach(), *(x.grad for x in qkv)]


def attend_to_shares() -> list[tuple[Any, list[np.ndarray]]]:
    size, rank = dist.get_world_size(), dist.get_rank()
    cut = slice(rank * 64 // size, (rank + 1) * 64 // size)
    group = dist.group.WORLD
    assert group is not None
    found = []
    for lengths in LENGTHS:
        for heads in HEADS[size]:
            attention = ExchangedAttention(PackedAttention(lengths), group)
            assert torch.equal(attention.seq_lens, PackedAttention(lengths).seq_lens[cut])
            found.append(((lengths, heads), [x.numpy() for x in attend(attention, cut, *heads)]))
    return found


def run_all() -> tuple[Any, list[Curve], list[Ragged]]:
    plan = ParallelPlan(context=dist.get_world_size())
    return attend_to_shares(), [train_curve(c, plan) for c in CONFIGS], [measure_ragged(c, plan) for c in CONFIGS]


@pytest.mark.parametrize("size", [2, 4])
def test_ranks_that_share_tokens_do_what_one_process_does(tmp_path: Path, size: int) -> None:
    ranks = run_ranks(size, run_all, tmp_path)
    cases = [case for case, _ in ranks[0][0]]
    for (lengths, heads), *parts in zip(cases, *([x for _, x in found] for found, _, _ in ranks), strict=True):
        expected = attend(PackedAttention(lengths), slice(None), *heads)
        for name, value, *pieces in zip(("mixed", "q", "k", "v"), expected, *parts, strict=True):
            assert_near(np.concatenate(pieces), value.numpy(), 1e-14, f"{name} of {lengths}, heads {heads}")
    for config, *curves in zip(CONFIGS, *(curves for _, curves, _ in ranks), strict=True):
        assert_same_curve(curves, train_curve(config, ParallelPlan()))
    for config, *ragged in zip(CONFIGS, *(ragged for _, _, ragged in ranks), strict=True):
        assert_same_ragged(ragged, measure_ragged(config, ParallelPlan()), context=size)
