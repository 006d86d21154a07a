"""Streams and mixtures: every row against a reference that lays all tokens out, shares exact, any row by its number."""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puyulm.data.packing import IGNORE, PackedBatch
from puyulm.data.shards import TokenShards
from puyulm.data.shares import Shares
from puyulm.data.stream import BLOCK, Mixture, TokenStream
from puyulm.errors import DataError

LENGTHS = [5, 1, 300, 17, 64, 2, 90, 33, 31, 32]


def laid_out(stream: TokenStream, size: int) -> list[tuple[int, int, int, int, int]]:
    """The reference: (token, target in the document, next token, document, bytes ending) for all tokens of a stream."""
    shards, rows, epoch = stream.shards, [], 0
    while len(rows) <= size:
        order = np.random.default_rng([*stream._seed, epoch]).permutation(
            np.arange(shards.num_documents, dtype=np.int32)
        )
        for document in order.tolist():
            ids = shards.document(document).tolist()
            text = int(shards.byte_starts[document + 1] - shards.byte_starts[document])
            for i, token in enumerate(ids):
                last = i + 1 == len(ids)
                rows.append([token, IGNORE if last else ids[i + 1], None, document, text * last])
        epoch += 1
    for now, after in itertools.pairwise(rows):
        now[2] = after[0]
    return [tuple(row) for row in rows[:size]]


def reference(mixture: Mixture, rows: int) -> list[tuple[int, list[tuple[int, int, int, int, int]]]]:
    """(stream, what is laid out) of each row, with the streams read one row after another."""
    positions, found = list(mixture.starts), []
    streams = [laid_out(stream, start + rows * mixture.seq_len)
               for stream, start in zip(mixture.streams, positions, strict=True)]  # fmt: skip
    for row in range(rows):
        before, after = mixture.counts(row), mixture.counts(row + 1)
        (source,) = [i for i, (a, b) in enumerate(zip(before, after, strict=True)) if a != b]
        found.append((source, streams[source][positions[source] : positions[source] + mixture.seq_len]))
        positions[source] += mixture.seq_len
    return found


def lengths_of(row: list[tuple[int, int, int, int, int]]) -> list[int]:
    """Tokens of each sample: a document's end is the only place where a target is ignored."""
    ends = [i + 1 for i, (_, target, *_) in enumerate(row) if target == IGNORE]
    if not ends or ends[-1] < len(row):
        ends.append(len(row))
    return np.diff([0, *ends]).tolist()


def check(batch: PackedBatch, rows: list[tuple[int, list[tuple[int, int, int, int, int]]]], boundaries: bool) -> None:
    flat = [token for _, row in rows for token in row]
    assert batch.tokens.dtype == batch.targets.dtype == np.int64
    assert batch.tokens.tolist() == [token[0] for token in flat]
    assert batch.targets.tolist() == [token[1 if boundaries else 2] for token in flat]
    assert batch.lengths == [n for _, row in rows for n in (lengths_of(row) if boundaries else [len(row)])]
    assert batch.num_bytes == sum(token[4] for token in flat)


CORPORA = (LENGTHS, [1, 1, 1], [2000], [3, 50] * BLOCK)  # mixed; smaller than a row; one document longer than a row


@pytest.mark.parametrize("boundaries", [True, False])
@pytest.mark.parametrize("seq_len", [1, 7, 32, 585, 1000])
def test_rows_are_those_of_the_reference(make_shards, seq_len: int, boundaries: bool) -> None:
    shards = [make_shards(lengths, str(i), shard_tokens=90)[1] for i, lengths in enumerate(CORPORA)]
    streams = [TokenStream(part, seed=3) for part in shards]
    starts = [0, 17, 5, 5 * shards[3].num_tokens - 3]
    mixture = Mixture(streams, [0.45, 0.1, 0.2, 0.25], seq_len, starts, boundaries=boundaries)
    rows = min(3000 // seq_len, 40)
    expected = reference(mixture, rows)
    for first, last in ((0, rows), (rows - 1, rows), (1, 3)):
        check(mixture.batch(first, last), expected[first:last], boundaries)
    assert mixture.batch(0, rows).sources is None
    read = Counter(source for source, _ in expected)
    assert mixture.positions(rows) == [start + read[i] * seq_len for i, start in enumerate(starts)]


def test_any_row_in_any_order_from_any_stream_object(make_shards) -> None:
    """Also with the epochs that are kept long gone."""
    _, shards = make_shards(LENGTHS)
    _, other = make_shards([40, 9, 9], "other")

    def mixture(seed: int = 1) -> Mixture:
        return Mixture([TokenStream(shards, seed), TokenStream(other, seed)], [3, 1], 32)

    whole = mixture().batch(0, 80)
    jumping = mixture()
    for row in [79, 0, 41, 3, 78, 41, 1, 60, 2]:
        assert np.array_equal(jumping.batch(row, row + 1).tokens, whole.tokens[32 * row : 32 * row + 32])
    assert len(jumping.streams[0]._orders) == 2
    assert not np.array_equal(mixture(seed=2).batch(0, 80).tokens, whole.tokens)


def test_documents_are_whole_and_in_another_order_each_epoch(make_shards) -> None:
    _, shards = make_shards(LENGTHS)
    mixture = Mixture([TokenStream(shards)], [1.0], shards.num_tokens)
    orders = [mixture.batch(epoch, epoch + 1).lengths for epoch in range(3)]
    assert all(sorted(order) == sorted(n + 1 for n in LENGTHS) for order in orders)
    assert orders[0] != orders[1] != orders[2]


def test_long_documents_go_on_in_the_next_row(make_shards) -> None:
    _, shards = make_shards([300], bos=False)
    batch = Mixture([TokenStream(shards)], [1.0], 128).batch(0, 3)
    assert batch.lengths == [128, 128, 44, 84]  # the fourth begins the second epoch
    ids = shards.document(0).tolist()
    assert batch.tokens[:300].tolist() == ids
    assert batch.targets[:300].tolist() == [*ids[1:], IGNORE]


def test_the_order_depends_on_content_alone(make_shards, tmp_path) -> None:
    _, shards = make_shards(LENGTHS)
    shards.folder.rename(tmp_path / "elsewhere")
    moved = TokenShards.open(tmp_path / "elsewhere")
    _, longer = make_shards([*LENGTHS, 3], "longer")
    assert moved.content_hash == shards.content_hash != longer.content_hash
    assert TokenStream(moved).pieces(100, 400) == TokenStream(shards).pieces(100, 400)
    assert TokenStream(longer)._seed != TokenStream(shards)._seed
    assert TokenStream(shards, seed=-1).pieces(0, 9)


def test_sources_of_tokens(make_shards) -> None:
    """The fixture's document i is of source s(i % 3), in two languages."""
    documents, shards = make_shards(LENGTHS)
    named = [int(source.source[1:]) for source in shards.sources]
    plain, labelled = TokenStream(shards), TokenStream(shards, source_ids=named)
    _, other = make_shards([11], "other")
    for boundaries in (True, False):
        mixture = Mixture([labelled, TokenStream(other, source_ids=[7])], [2, 1], 29, boundaries=boundaries)
        batch = mixture.batch(0, 40)
        assert batch.sources is not None and batch.sources.dtype == np.int64
        text = {document.text[0:8]: int(document.source[1:]) for document in documents}
        assert len(text) == len(documents)
        wanted = [
            7 if source else int(documents[token[3]].source[1:])
            for source, row in reference(mixture, 40)
            for token in row
        ]
        assert batch.sources.tolist() == wanted and set(wanted) == {0, 1, 2, 7}
    assert Mixture([plain], [1.0], 29).batch(0, 4).sources is None


def test_an_order_is_made_once_for_several_threads(make_shards, monkeypatch: pytest.MonkeyPatch) -> None:
    _, shards = make_shards(LENGTHS)
    stream, made = TokenStream(shards), []
    generator = np.random.default_rng
    monkeypatch.setattr("numpy.random.default_rng", lambda seed: made.append(seed) or generator(seed))
    threads = [threading.Thread(target=stream.pieces, args=(0, 300)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1


def test_an_order_keeps_four_bytes_a_document(make_shards) -> None:
    _, shards = make_shards([2] * 1000)
    stream = TokenStream(shards)
    stream.pieces(0, 1)
    (order,) = stream._orders.values()
    assert order.documents.nbytes + order._ends.nbytes == 4 * 1000 + 8 * -(-1000 // BLOCK)


WEIGHTS = st.one_of(
    st.integers(1, 10**6).map(float),
    st.floats(1e-9, 1e9, allow_nan=False),
    st.sampled_from([0.0, 1 / 3, 2 / 3, 0.1, 1e-6, 1.0]),
)


def exact(weights: list[float]) -> list[Fraction]:
    written = [Fraction(repr(weight)) for weight in weights]
    return [weight / sum(written) for weight in written]


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(WEIGHTS, min_size=1, max_size=12).filter(any), st.integers(0, 2**40))
def test_shares_are_exact_at_every_length(weights: list[float], rows: int) -> None:
    shares = Shares(weights, [f"{i:02d}" for i in range(len(weights))])
    for n in (rows, rows % 1000):
        counts = shares.counts(n)
        assert sum(counts) == n
        wrong = max(abs(count - n * weight) for count, weight in zip(counts, exact(weights), strict=True))
        assert wrong <= (Fraction(1, 2) if len(weights) < 3 else Fraction(17, 10))
        assert all(count == 0 for count, weight in zip(counts, weights, strict=True) if weight == 0)
        source, before = shares.find(n)
        assert before == counts[source]
        counts[source] += 1
        assert shares.counts(n + 1) == counts


@pytest.mark.parametrize(
    "weights",
    [[0.5, *[0.005] * 100], [1.0, 1e-6], [1 / 3] * 3, [0.6, 0.25, 0.1, 0.05], [1e-9, 1, 1, 2, 3, 5, 8, 13, 21, 34]],
)
def test_shares_of_hard_weights(weights: list[float]) -> None:
    """Many small sources beside a large one; one that comes once in a million rows; equal ones; Fibonacci's."""
    shares, counts = Shares(weights, [f"{i:03d}" for i in range(len(weights))]), [0] * len(weights)
    share, worst = [float(weight) for weight in exact(weights)], 0.0
    for row in range(3000):
        source, before = shares.find(row)
        assert before == counts[source]
        counts[source] += 1
        worst = max(worst, max(abs(count - (row + 1) * part) for count, part in zip(counts, share, strict=True)))
    assert worst < 1.7
    assert counts == shares.counts(3000)
    assert shares.counts(10**6)[-1] == round(10**6 * share[-1])
    assert len(set(shares.counts(10**6 * 3))) == 1 or weights != [1 / 3] * 3


def test_shares_are_whole_numbers_at_any_size() -> None:
    """Where floating point has no halves any more."""
    shares = Shares([1, 2], ["a", "b"])
    for n in (10**18, 2**60, 2**70 + 1):
        assert shares.counts(3 * n) == [n, 2 * n]
        assert sorted(shares.find(3 * n + i) for i in range(3)) == [(0, n), (1, 2 * n), (1, 2 * n + 1)]


def test_shares_do_not_depend_on_the_order_of_sources() -> None:
    weights, keys = [0.3, 0.3, 0.3, 0.1, 0.0], list("abcde")
    first = Shares(weights, keys)
    rows = [keys[first.find(row)[0]] for row in range(200)]
    places = [3, 0, 4, 2, 1]
    second = Shares([weights[i] for i in places], [keys[i] for i in places])
    assert [keys[places[second.find(row)[0]]] for row in range(200)] == rows


def test_impossible_mixtures_are_refused(make_shards) -> None:
    _, shards = make_shards([5])
    stream = TokenStream(shards)
    with pytest.raises(DataError, match="seq_len must be at least 1"):
        Mixture([stream], [1.0], 0)
    for weights in ([0.0], [-1.0], [float("nan")], [float("inf")]):
        with pytest.raises(DataError, match="weights of a mixture must be 0 or more"):
            Mixture([stream], weights, 8)
    with pytest.raises(DataError, match="found none"):
        Mixture([], [], 8)
    shards.num_tokens = 0
    with pytest.raises(DataError, match="holds no tokens: leave it out"):
        TokenStream(shards)
