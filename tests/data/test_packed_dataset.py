"""Packed batches: every token once an epoch, targets inside documents; validation in order."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from puyulm.data.packing import IGNORE, PackedBatch, document_batches
from puyulm.data.stream import Mixture, TokenStream

LENGTHS = [5, 1, 300, 17, 64, 2, 90, 33, 31, 32]


def pairs_of(shards) -> Counter[tuple[int, int]]:
    """All (token, next token in the document or IGNORE) of a corpus."""
    pairs: Counter[tuple[int, int]] = Counter()
    for i in range(shards.num_documents):
        ids = shards.document(i).tolist()
        pairs.update(zip(ids, [*ids[1:], IGNORE], strict=True))
    return pairs


def samples_of(batch: PackedBatch) -> list[tuple[list[int], list[int]]]:
    ends = np.cumsum(batch.lengths)
    return [
        (batch.tokens[e - n : e].tolist(), batch.targets[e - n : e].tolist())
        for e, n in zip(ends, batch.lengths, strict=True)
    ]


def check_samples(batch: PackedBatch, seq_len: int) -> None:
    assert batch.tokens.dtype == batch.targets.dtype == np.int64
    assert sum(batch.lengths) == len(batch.tokens) == len(batch.targets)
    assert min(batch.lengths) >= 1 and max(batch.lengths) <= seq_len
    for tokens, targets in samples_of(batch):
        assert targets[:-1] == tokens[1:]  # only the last target may look beyond the sample


@pytest.mark.parametrize(("seq_len", "rows"), [(32, 2), (7, 3), (1, 5), (1000, 1), (585, 1)])
@pytest.mark.parametrize("shard_tokens", [70, 1 << 20])
def test_every_token_once_an_epoch_and_right_targets(make_shards, seq_len: int, rows: int, shard_tokens: int) -> None:
    _, shards = make_shards(LENGTHS, shard_tokens=shard_tokens)
    mixture = Mixture([TokenStream(shards, seed=3)], [1.0], seq_len)
    total = shards.num_tokens
    steps = -(-3 * total // (seq_len * rows))
    batches = [mixture.batch(step * rows, (step + 1) * rows) for step in range(steps)]
    for batch in batches:
        assert len(batch.tokens) == seq_len * rows
        check_samples(batch, seq_len)
    tokens, targets = (np.concatenate([getattr(b, name) for b in batches]) for name in ("tokens", "targets"))
    for epoch in range(3):
        part = slice(epoch * total, (epoch + 1) * total)
        assert Counter(zip(tokens[part].tolist(), targets[part].tolist(), strict=True)) == pairs_of(shards)


def test_bytes_add_up_over_an_epoch(make_shards) -> None:
    _, shards = make_shards(LENGTHS)
    mixture = Mixture([TokenStream(shards)], [1.0], 5)  # 585 tokens: one epoch is exactly 117 rows
    assert shards.num_tokens == 585
    assert [mixture.batch(117 * epoch, 117 * epoch + 117).num_bytes for epoch in range(3)] == [575] * 3


@pytest.mark.parametrize(("seq_len", "rows"), [(32, 2), (7, 30), (1000, 1)])
def test_validation_reads_every_document_once_in_order(make_shards, seq_len: int, rows: int) -> None:
    _, shards = make_shards(LENGTHS, shard_tokens=70)
    batches = list(document_batches(shards, seq_len, rows))
    predicted = []
    for batch in batches:
        assert len(batch.tokens) <= seq_len * rows
        assert sum(batch.lengths) == len(batch.tokens) and max(batch.lengths) <= seq_len
        for tokens, targets in samples_of(batch):
            counted = [i for i, target in enumerate(targets) if target != IGNORE]
            assert all(targets[i] == tokens[i + 1] for i in counted if i + 1 < len(tokens))
            predicted += [targets[i] for i in counted]
            assert not counted or counted[0] == 0 or counted[0] + 1 >= seq_len // 2  # new text is seen with old
    documents = [shards.document(i) for i in range(shards.num_documents)]
    assert predicted == np.concatenate([ids[1:] for ids in documents]).tolist()
    assert sum(b.num_bytes for b in batches) == shards.num_bytes
    assert sum(b.num_targets for b in batches) == shards.num_bytes  # bytes are tokens here, and bos is not predicted


@pytest.mark.parametrize(("max_tokens", "documents"), [(1, 1), (6, 1), (7, 2), (8, 2), (9, 3), (309, 3), (10**9, 10)])
def test_bounded_validation_ends_with_a_whole_document(make_shards, max_tokens: int, documents: int) -> None:
    _, shards = make_shards(LENGTHS)
    batches = list(document_batches(shards, 16, 4, max_tokens=max_tokens))
    assert sum(b.num_targets for b in batches) == shards.token_starts[documents] - documents
    assert sum(b.num_bytes for b in batches) == shards.byte_starts[documents]
