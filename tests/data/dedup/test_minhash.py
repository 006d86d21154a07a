"""Signatures against true Jaccard similarities and a slow computation in plain Python."""

from __future__ import annotations

import random
from math import comb

import numpy as np
import pytest

from puyulm.data.dedup.minhash import LONGEST, band_keys, s_curve, shingles, sign, signatures
from puyulm.data.documents import Document
from tests.data.dedup.helpers import prose, words


def text(words: str, language: str = "en") -> Document:
    return Document("d", words, language, "t")


def similarity(one: Document, other: Document, n: int = 5) -> float:
    first, second = sign([one, other], n, 128)
    return float((first == second).mean())


def test_signatures_are_the_least_hashes() -> None:
    """Against the definition, without blocks and arrays."""
    source = np.random.default_rng(3)
    hashes = source.integers(0, 1 << 64, 60_000, dtype=np.uint64)
    first = np.array([0, 1, 3, 40_000, 40_010, 60_000])
    found = signatures(hashes, first, 8)
    assert found.shape == (5, 8) and found.dtype == np.uint16
    for document in (0, 1, 3):
        mine = hashes[first[document] : first[document + 1]].tolist()
        assert found[document].tolist() == [_least(mine, function, 8) for function in range(8)]


def _least(hashes: list[int], function: int, count: int) -> int:
    mask = (1 << 32) - 1
    multiplier, increment = _murmur(function + 1) & mask | 1, _murmur(count + function + 1) & mask
    half = [(value >> 32 if function % 2 else value) & mask for value in hashes]
    least = min((value * multiplier + increment) & mask for value in half)
    least ^= least >> 16
    least = least * 0x85EBCA6B & mask
    least ^= least >> 13
    return (least * 0xC2B2AE35 & mask) >> 16


def _murmur(value: int) -> int:
    """The finaliser of MurmurHash3, 64 bits."""
    mask = (1 << 64) - 1
    value = (value ^ value >> 33) * 0xFF51AFD7ED558CCD & mask
    value = (value ^ value >> 33) * 0xC4CEB9FE1A85EC53 & mask
    return value ^ value >> 33


def test_estimates_agree_with_true_similarity() -> None:
    """Sets of shingles with known similarities: no bias, and the spread of a binomial."""
    source = np.random.default_rng(1)
    for true in (0.1, 0.5, 0.9):
        errors = []
        for _ in range(150):
            both = round(400 * true)
            pool = source.integers(0, 1 << 64, 400, dtype=np.uint64)
            alone = (400 - both) // 2
            one, other = pool[: both + alone], np.concatenate([pool[:both], pool[both + alone :]])
            signed = signatures(np.concatenate([one, other]), np.array([0, len(one), len(one) + len(other)]), 128)
            errors.append((signed[0] == signed[1]).mean() - both / 400)
        spread = (true * (1 - true) / 128) ** 0.5
        assert abs(np.mean(errors)) < 4 * spread / 150**0.5
        assert 0.8 * spread < np.std(errors) < 1.2 * spread


def test_a_signature_does_not_depend_on_its_neighbours() -> None:
    source = random.Random(2)
    documents = [text(prose(source, source.choice([0, 1, 3, 5, 50, 9000]))) for _ in range(60)]
    documents[7] = text("中文" * 3000, "zh")
    together = sign(documents, 5, 32)
    alone = np.concatenate([sign([document], 5, 32) for document in documents])
    assert np.array_equal(together, alone)


def test_case_space_and_punctuation_do_not_count() -> None:
    assert (
        similarity(text("The quick, brown fox jumps over dogs."), text("the QUICK brown\n\nfox - jumps over dogs")) == 1
    )
    assert similarity(text("春眠不觉晓，处处闻啼鸟。", "zh"), text("春眠不觉晓 处处闻啼鸟", "zh")) == 1


def test_short_documents_are_not_all_alike() -> None:
    """Documents of fewer words than n are one shingle each, documents without words their text."""
    short = ["one", "two", "one two", "two one", "one two three four", "...", "!!!", "", "词"]
    keys = band_keys(sign([text(t) for t in short], 5, 128), 25, 5)
    assert len(np.unique(keys)) == keys.size
    assert similarity(text("One two"), text("one, two")) == 1
    assert similarity(text("..."), text("...")) == 1


def test_a_very_long_text_is_taken_in_pieces() -> None:
    long = prose(random.Random(5), LONGEST // 7 + 1000)
    assert LONGEST < len(long) < 2 * LONGEST
    _, first = shingles([text(long), text("a b c d e f")], 5)
    whole = len(long.split())
    assert whole - 4 - 6 <= first[1] <= whole - 4 and first[2] - first[1] == 2
    assert similarity(text(long), text(long)) == 1


CODE = """def area(shapes, scale=1.0):
    total = 0
    for shape in shapes:
        if shape.kind == "circle":
            total += 3.14159 * shape.radius ** 2
        else:
            total += shape.width * shape.height
    return total * scale
"""


@pytest.mark.parametrize("indent", ["  ", "\t", "        "])
def test_indentation_of_code_does_not_count(indent: str) -> None:
    changed = CODE.replace("    ", indent).replace(" = ", "=").replace("\n", "\r\n")
    assert similarity(text(CODE, "code"), text(changed, "code")) == 1


def test_punctuation_of_code_counts() -> None:
    changed = CODE.replace("+=", "-=").replace("*", "/").replace('"', "'").replace("(", "[").replace(")", "]")
    assert similarity(text(CODE, "code"), text(changed, "code")) < 0.7
    assert similarity(text(CODE, "en"), text(changed, "en")) == 1
    snake = text("a_b c_d e_f g_h i_j", "code"), text("a b_c d_e f_g h_i j", "code")
    assert similarity(*snake) == 0  # "_" joins


def test_band_keys_are_equal_where_all_rows_are() -> None:
    source = np.random.default_rng(0)
    signed = source.integers(0, 2, (300, 12)).astype(np.uint16)  # few values, so that bands agree often
    keys = band_keys(signed, 3, 4)
    assert keys.shape == (300, 4)
    for band in range(4):
        rows = signed if band == 3 else signed[:, band * 4 : band * 4 + 4]
        same_rows = (rows[:, None] == rows[None]).all(axis=2)
        assert np.array_equal(keys[:, None, band] == keys[None, :, band], same_rows)
    for band, other in ((0, 1), (1, 2), (2, 3)):
        assert not np.isin(keys[:, band], keys[:, other]).any()  # the same rows in another band are another key


def test_s_curve() -> None:
    """Against the sum over the number of bands that agree, and the book's table for 20 bands of 5 rows (3.4.2)."""
    book = {0.2: 0.006, 0.3: 0.047, 0.4: 0.186, 0.5: 0.470, 0.6: 0.802, 0.7: 0.975, 0.8: 0.9996}
    curve = dict(s_curve(20, 5))
    assert {s: round(curve[s], 4 if s == 0.8 else 3) for s in (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8)} == book
    for s, probability in s_curve(25, 5):
        whole = sum(comb(25, k) * (s**5) ** k * (1 - s**5) ** (25 - k) for k in range(1, 26))
        assert probability == pytest.approx(whole, abs=1e-9)
    assert dict(s_curve(25, 5))[0.7] > 0.98


def test_different_texts_of_equal_words_in_other_order() -> None:
    source = random.Random(9)
    tokens = words(source, 200)
    shuffled = tokens[:]
    source.shuffle(shuffled)
    assert similarity(text(" ".join(tokens)), text(" ".join(shuffled))) < 0.1
