"""N-gram references: proper distributions, the textbook's numbers, and sane orders of magnitude."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from puyulm.data.ngram import IdStream, NgramModel, byte_stream, ngram_bits_per_byte, token_stream
from puyulm.errors import DataError


def stream(documents: list[list[int]]) -> IdStream:
    return IdStream(np.array([i for d in documents for i in d], dtype=np.int64), np.cumsum([0, *map(len, documents)]))


def markov_documents(vocab_size: int, count: int, length: int, seed: int = 0) -> list[list[int]]:
    """Documents of a random second-order chain with few continuations each."""
    generator = np.random.default_rng(seed)
    table = np.random.default_rng(7).integers(0, vocab_size, size=(vocab_size, vocab_size, 3))
    documents = []
    for _ in range(count):
        ids = generator.integers(0, vocab_size, size=2).tolist()
        while len(ids) < length:
            ids.append(int(table[ids[-2], ids[-1], generator.integers(3)]))
        documents.append(ids)
    return documents


@pytest.mark.parametrize("order", [1, 2, 3, 5])
@pytest.mark.parametrize(("vocab_size", "documents"), [(11, 60), (200, 20), (11, 1)])
def test_probabilities_of_all_continuations_sum_to_one(order: int, vocab_size: int, documents: int) -> None:
    train = markov_documents(vocab_size, documents, 40)
    model = NgramModel(stream(train), order, vocab_size)
    generator = np.random.default_rng(1)
    contexts = [train[0][:n] for n in (0, 1, 2, 7)]  # seen, from the start of a document on
    contexts += [generator.integers(0, vocab_size, size=n).tolist() for n in (1, 2, 4, 6)]
    for context in contexts:
        probed = stream([[*context, i] for i in range(vocab_size)])
        last = model.log2_probabilities(probed)[len(context) :: len(context) + 1]
        assert np.exp2(last).sum() == pytest.approx(1.0, abs=1e-9)
        assert last.max() < 0


def written_out(counts: Counter) -> list[float]:
    """Discounts of counts 0, 1, 2, 3+ by the formula, or the fall-back where one of the counts of counts is zero."""
    n = Counter(counts.values())
    if not all(n[k] for k in (1, 2, 3, 4)):
        return [0, 0.5, 1.0, 1.5]
    y = n[1] / (n[1] + 2 * n[2])
    return [0, 1 - 2 * y * n[2] / n[1], 2 - 3 * y * n[3] / n[2], 3 - 4 * y * n[4] / n[3]]


def test_bigrams_agree_with_the_formula_written_out() -> None:
    train = markov_documents(40, 60, 12)
    pairs = Counter((a, b) for d in train for a, b in zip([-1, *d], d, strict=False))
    left = Counter(b for _, b in pairs)  # distinct left neighbours
    discounts = [written_out(pairs), written_out(left)]
    assert discounts[0] != [0, 0.5, 1.0, 1.5] and all(0.1 < d < 2.95 for d in discounts[0][1:])

    def unigram(w: int) -> float:
        mass = sum(discounts[1][min(c, 3)] for c in left.values())
        return (left[w] - discounts[1][min(left[w], 3)] + mass / 40) / sum(left.values())

    def bigram(h: int, w: int) -> float:
        own = {b: c for (a, b), c in pairs.items() if a == h}
        mass = sum(discounts[0][min(c, 3)] for c in own.values())
        c = own.get(w, 0)
        return (c - discounts[0][min(c, 3)] + mass * unigram(w)) / sum(own.values())

    test = [*train[3][:6], 30, 1, 1, 39]
    expected = [np.log2(bigram(h, w)) for h, w in zip([-1, *test], test, strict=False)]
    assert NgramModel(stream(train), 2, 40).log2_probabilities(stream([test])).tolist() == pytest.approx(expected)


def test_documents_do_not_see_each_other() -> None:
    train, valid = markov_documents(9, 30, 20), markov_documents(9, 4, 20, seed=5)
    model = NgramModel(stream(train), 4, 9)
    together = model.log2_probabilities(stream(valid))
    apart = np.concatenate([model.log2_probabilities(stream([document])) for document in valid])
    assert np.array_equal(together, apart)
    joined = NgramModel(stream([[i for d in train for i in d]]), 4, 9)
    assert not np.allclose(joined.log2_probabilities(stream(valid)), together)


def test_order_of_training_documents_does_not_matter() -> None:
    train, valid = markov_documents(9, 30, 20), stream(markov_documents(9, 4, 20, seed=5))
    a = NgramModel(stream(train), 3, 9).log2_probabilities(valid)
    b = NgramModel(stream(train[::-1]), 3, 9).log2_probabilities(valid)
    assert np.allclose(a, b, atol=1e-12)


def test_uniform_noise_costs_its_entropy_and_a_chain_less() -> None:
    generator = np.random.default_rng(0)
    noise = [generator.integers(0, 16, size=5000).tolist() for _ in range(5)]
    assert ngram_bits_per_byte(stream(noise[:4]), stream(noise[4:]), 1, 16, 5000) == pytest.approx(4.0, abs=0.01)
    train, valid = stream(markov_documents(16, 400, 60)), stream(markov_documents(16, 20, 60, seed=5))
    bits = [ngram_bits_per_byte(train, valid, order, 16, 1200) for order in (1, 2, 3)]
    assert bits[0] > 3.8 > bits[1] > 3.0 > 2.1 > bits[2] > np.log2(3) * 58 / 60


def test_bytes_of_texts() -> None:
    texts = ["浦语", "", "ab"]
    found = byte_stream(texts)
    assert bytes(found.ids) == "浦语ab".encode() and found.starts.tolist() == [0, 6, 6, 8]
    assert np.isfinite(NgramModel(found, 5, 256).log2_probabilities(byte_stream(["b浦", "", "z"]))).all()


def test_token_stream_leaves_bos_out(make_shards) -> None:
    documents, shards = make_shards([5, 3, 9])
    found = token_stream(shards)
    assert found.starts.tolist() == [0, 5, 8, 17]
    assert bytes((found.ids - 3).astype(np.uint8)) == "".join(d.text for d in documents).encode()
    _, plain = make_shards([5, 3, 9], name="plain", bos=False)
    assert np.array_equal(token_stream(plain).ids, found.ids)


def test_bad_input_is_refused() -> None:
    with pytest.raises(DataError, match="order of at least 1"):
        NgramModel(stream([[1]]), 0, 4)
    with pytest.raises(DataError, match="outside the vocabulary of 4"):
        NgramModel(stream([[1, 4]]), 2, 4)
