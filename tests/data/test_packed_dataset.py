"""Packing: every token once an epoch, targets inside documents, any batch by its number."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from puyulm.data.packing import IGNORE, PackedBatch, PackedDataset, document_batches
from puyulm.errors import DataError

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
    dataset = PackedDataset(shards, seq_len, rows, seed=3)
    total = shards.num_tokens
    steps = -(-3 * total // (seq_len * rows))
    batches = [dataset.batch(step) for step in range(steps)]
    for batch in batches:
        assert len(batch.tokens) == seq_len * rows
        check_samples(batch, seq_len)
    tokens, targets = (np.concatenate([getattr(b, name) for b in batches]) for name in ("tokens", "targets"))
    for epoch in range(3):
        part = slice(epoch * total, (epoch + 1) * total)
        assert Counter(zip(tokens[part].tolist(), targets[part].tolist(), strict=True)) == pairs_of(shards)


def test_documents_are_whole_and_in_another_order_each_epoch(make_shards) -> None:
    _, shards = make_shards(LENGTHS)
    dataset = PackedDataset(shards, shards.num_tokens, 1)
    documents = {tuple(shards.document(i).tolist()) for i in range(shards.num_documents)}
    orders = []
    for epoch in range(3):
        samples = samples_of(dataset.batch(epoch))
        assert {tuple(tokens) for tokens, _ in samples} == documents and len(samples) == len(LENGTHS)
        assert all(targets[-1] == IGNORE for _, targets in samples)
        orders.append([len(tokens) for tokens, _ in samples])
    assert orders[0] != orders[1] != orders[2]


def test_any_batch_by_its_number(make_shards) -> None:
    _, shards = make_shards(LENGTHS)
    forward = PackedDataset(shards, 32, 2, seed=1)
    expected = [forward.batch(step) for step in range(40)]
    other = PackedDataset(shards, 32, 2, seed=1)
    for step in [39, 0, 17, 3, 38, 17, 1]:
        found = other.batch(step)
        assert np.array_equal(found.tokens, expected[step].tokens)
        assert np.array_equal(found.targets, expected[step].targets)
        assert (found.lengths, found.num_bytes) == (expected[step].lengths, expected[step].num_bytes)
    assert not np.array_equal(PackedDataset(shards, 32, 2, seed=2).batch(0).tokens, expected[0].tokens)


def test_rows_do_not_depend_on_how_they_are_batched(make_shards) -> None:
    _, shards = make_shards(LENGTHS)
    one = PackedDataset(shards, 32, 1)
    four = PackedDataset(shards, 32, 4)
    rows = [one.batch(row) for row in range(8)]
    for step in range(2):
        batch = four.batch(step)
        assert np.array_equal(batch.tokens, np.concatenate([r.tokens for r in rows[4 * step : 4 * step + 4]]))
        assert batch.lengths == [n for r in rows[4 * step : 4 * step + 4] for n in r.lengths]


def test_long_documents_are_cut_only_where_rows_end(make_shards) -> None:
    _, shards = make_shards([300], bos=False)
    batch = PackedDataset(shards, 128, 3).batch(0)
    assert batch.lengths == [128, 128, 44, 84]  # the fourth begins the second epoch
    ids = shards.document(0).tolist()
    assert batch.tokens[:300].tolist() == ids
    assert batch.targets[:300].tolist() == [*ids[1:], IGNORE]
    assert batch.num_targets == 383


def test_a_corpus_smaller_than_a_row_repeats(make_shards) -> None:
    _, shards = make_shards([2, 1])
    batch = PackedDataset(shards, 23, 1).batch(0)
    assert len(batch.tokens) == 23 and sum(n == 2 for n in batch.lengths) in (4, 5)
    assert PackedDataset(shards, 23, 1).epoch(10) == 46.0


def test_bytes_add_up_over_an_epoch(make_shards) -> None:
    _, shards = make_shards(LENGTHS)
    dataset = PackedDataset(shards, 5, 117)  # 585 tokens: one epoch is exactly one batch
    assert shards.num_tokens == 585
    assert [dataset.batch(step).num_bytes for step in range(3)] == [575] * 3


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


def test_impossible_sizes_are_refused(make_shards) -> None:
    _, shards = make_shards([5])
    with pytest.raises(DataError, match="at least 1"):
        PackedDataset(shards, 0, 1)
