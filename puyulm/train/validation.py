"""How well a model predicts held-out text: nats per token, and bits per byte of whole documents."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
import torch

from puyulm.data.packing import IGNORE, PackedBatch, document_batches
from puyulm.data.shards import TokenShards
from puyulm.parallel.build import ParallelModel
from puyulm.train.step import to_device

BATCH_TOKENS = 8192


@dataclass(frozen=True)
class TotalLoss:
    """Sums over batches: nats over all target tokens, how many these are, and UTF-8 bytes of text."""

    nats: float
    targets: int
    bytes: int


def total_loss(model: ParallelModel, batches: Iterable[PackedBatch]) -> TotalLoss:
    """The loss of packed documents, computed in the model's dtype and summed in float64.

    Every rank is given all batches and takes its share of them.
    """
    world, targets, size = model.world, 0, 0
    # On some devices there are no wider sums; losses of a batch are summed before they are added up.
    nats = torch.zeros((), dtype=torch.float64, device=world.device)
    model.train(False)
    rest = iter(batches)
    while group := list(islice(rest, world.plan.data_size)):
        targets += sum(batch.num_targets for batch in group)
        size += sum(batch.num_bytes for batch in group)
        mine = _share(group, world.data_rank)
        for losses in model.token_losses(to_device(model, [mine])):
            nats += losses.sum(dtype=torch.float64)
    model.train()
    return TotalLoss(float(world.sum(nats)), targets, size)


def _share(group: Sequence[PackedBatch], rank: int) -> PackedBatch:
    """One rank's batch; where there is none, any, with nothing to predict: ranks must take their steps together."""
    if rank < len(group):
        return group[rank]
    return replace(group[0], targets=np.full_like(group[0].targets, IGNORE))


def mean_loss(model: ParallelModel, batches: Iterable[PackedBatch]) -> dict[str, float]:
    """`{"loss": nats per target token}`."""
    total = total_loss(model, batches)
    return {"loss": total.nats / max(total.targets, 1)}


def bits_per_byte(
    model: ParallelModel, shards: TokenShards, seq_len: int, max_tokens: int | None = None
) -> dict[str, float]:
    """`{"loss": nats per target token, "bits_per_byte": bits per UTF-8 byte of text}` of whole documents.

    Every token is predicted but the first of each document (the beginning-of-text token, where the shards have one);
    documents longer than `seq_len` are read in windows that overlap by half (`document_batches`). Bits per byte does
    not depend on the tokenizer, so models with different ones can be compared.

    Args:
        max_tokens: Stop after the document that reaches so many tokens; None takes all.
    """
    rows = max(1, (model.pad_to or BATCH_TOKENS) // seq_len)
    total = total_loss(model, document_batches(shards, seq_len, rows, max_tokens))
    return {
        "loss": total.nats / max(total.targets, 1),
        "bits_per_byte": total.nats / math.log(2) / max(total.bytes, 1),
    }
