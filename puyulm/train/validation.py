"""How well a model predicts held-out text: nats per token, and bits per byte of whole documents."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from puyulm.data.packing import PackedBatch, document_batches
from puyulm.data.shards import TokenShards
from puyulm.model.attention import PackedAttention
from puyulm.model.decoder import Decoder
from puyulm.model.loss import token_losses

BATCH_TOKENS = 8192


@dataclass(frozen=True)
class TotalLoss:
    """Sums over batches: nats over all target tokens, how many these are, and UTF-8 bytes of text."""

    nats: float
    targets: int
    bytes: int


@torch.no_grad()
def total_loss(decoder: Decoder, batches: Iterable[PackedBatch]) -> TotalLoss:
    """The loss of packed documents, computed in the weights' dtype and summed in float64."""
    device = decoder.embed.weight.device
    nats = torch.zeros((), dtype=torch.float64, device=device)
    targets = size = 0
    for batch in batches:
        attention = PackedAttention(batch.lengths, device)
        hidden = decoder(torch.from_numpy(batch.tokens).to(device), attention.positions, attention)
        losses = token_losses(hidden, decoder.head.weight, torch.from_numpy(batch.targets).to(device))
        nats += losses.sum(dtype=torch.float64)
        targets += batch.num_targets
        size += batch.num_bytes
    return TotalLoss(float(nats), targets, size)


def mean_loss(decoder: Decoder, batches: Iterable[PackedBatch]) -> dict[str, float]:
    """`{"loss": nats per target token}`."""
    total = total_loss(decoder, batches)
    return {"loss": total.nats / max(total.targets, 1)}


def bits_per_byte(
    decoder: Decoder, shards: TokenShards, seq_len: int, max_tokens: int | None = None
) -> dict[str, float]:
    """`{"loss": nats per target token, "bits_per_byte": bits per UTF-8 byte of text}` of whole documents.

    Every token is predicted but the first of each document (the beginning-of-text token, where the shards have one);
    documents longer than `seq_len` are read in windows that overlap by half (`document_batches`). Bits per byte does
    not depend on the tokenizer, so models with different ones can be compared.

    Args:
        max_tokens: Stop after the document that reaches so many tokens; None takes all.
    """
    total = total_loss(decoder, document_batches(shards, seq_len, max(1, BATCH_TOKENS // seq_len), max_tokens))
    return {
        "loss": total.nats / max(total.targets, 1),
        "bits_per_byte": total.nats / math.log(2) / max(total.bytes, 1),
    }
