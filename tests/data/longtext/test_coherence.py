"""Scores of windows: packed against one at a time, and the features made of them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from puyulm.data.longtext.coherence import (
    COHERENCE_FEATURES,
    Windows,
    WindowScores,
    coherence_features,
    score_windows,
    token_features,
)
from puyulm.errors import DataError
from puyulm.model.attention import PackedAttention
from puyulm.model.decoder import Decoder
from tests.conftest import tiny_decoder

SIZES = Windows(size=40, scored=8, context=12)


def one_at_a_time(decoder: Decoder, tokens: np.ndarray, scored: int) -> tuple[float, float]:
    """Mean loss and top-1 accuracy of the last tokens, from the logits of the whole sequence."""
    attention = PackedAttention([len(tokens)])
    hidden = decoder(torch.from_numpy(tokens), attention.positions, attention)
    logits = decoder.logits(hidden)[-1 - scored : -1].double()
    targets = torch.from_numpy(tokens[-scored:])
    return float(F.cross_entropy(logits, targets)), float((logits.argmax(-1) == targets).double().mean())


@pytest.fixture(scope="module")
def windows() -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    rows = [generator.integers(0, 128, size=SIZES.size) for _ in range(5)]
    rows[1][20:] = rows[1][:20]  # a repetition
    return rows


@pytest.mark.parametrize("batch_tokens", [1, 130, 10_000])
def test_packed_windows_score_as_alone(windows, batch_tokens):
    decoder = tiny_decoder()
    scores = score_windows(decoder, windows, SIZES, batch_tokens)
    with torch.no_grad():
        for i, window in enumerate(windows):
            loss, acc = one_at_a_time(decoder, window, SIZES.scored)
            assert scores.loss_with[i] == pytest.approx(loss, abs=1e-5)
            assert scores.acc_with[i] == pytest.approx(acc, abs=1e-9)
            loss, acc = one_at_a_time(decoder, window[-(SIZES.context + SIZES.scored) :], SIZES.scored)
            assert scores.loss_without[i] == pytest.approx(loss, abs=1e-5)
            assert scores.acc_without[i] == pytest.approx(acc, abs=1e-9)
    assert not np.allclose(scores.loss_with, scores.loss_without)


def test_accuracy_counts_first_choices():
    """Windows that end in what the model would say itself."""
    decoder = tiny_decoder(seed=3)
    tokens = list(np.random.default_rng(1).integers(0, 128, size=SIZES.size - SIZES.scored))
    with torch.no_grad():
        for _ in range(SIZES.scored):
            attention = PackedAttention([len(tokens)])
            hidden = decoder(torch.tensor(tokens), attention.positions, attention)
            tokens.append(int(decoder.logits(hidden[-1]).argmax()))
    scores = score_windows(decoder, [np.array(tokens)], SIZES, 100)
    assert scores.acc_with.tolist() == [1.0] and scores.acc_without[0] < 1


def test_a_model_that_copies_needs_the_context():
    """Trained for a moment to say again what stands so far back, a model finds the first part of a window helpful."""
    distance = 24  # beyond the short context's reach
    torch.manual_seed(0)
    decoder = tiny_decoder(seed=1, vocab_size=16, hidden_size=32, head_dim=8, num_layers=1).train()
    optimizer = torch.optim.Adam(decoder.parameters(), lr=1e-2)
    generator = np.random.default_rng(0)

    def sequences(count: int) -> np.ndarray:
        start = generator.integers(0, 16, size=(count, distance))
        return np.concatenate([start, start], axis=1)[:, : SIZES.size]

    for _ in range(150):
        rows = torch.from_numpy(sequences(24))
        attention = PackedAttention([SIZES.size - 1] * len(rows))
        hidden = decoder(rows[:, :-1].reshape(-1), attention.positions, attention)
        losses = F.cross_entropy(decoder.logits(hidden), rows[:, 1:].reshape(-1), reduction="none")
        loss = losses.view(len(rows), -1)[:, distance - 1 :].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    helpful = score_windows(decoder.eval(), list(sequences(8)), SIZES, 1000)
    features = coherence_features(helpful, 0, 8)
    assert features["acc_delta"] > 0.2 and features["loss_delta"] > 0.3 and features["ppl_delta"] > 0.5
    noise = score_windows(decoder, list(generator.integers(0, 16, size=(8, SIZES.size))), SIZES, 1000)
    assert coherence_features(noise, 0, 8)["loss_delta"] < 0.1


def test_features_of_known_scores():
    scores = WindowScores(*(np.array(x) for x in ([1.0, 2.0, 9.0], [1.5, 2.5, 9.0], [0.5, 0.7, 0.0], [0.4, 0.6, 0.0])))
    features = coherence_features(scores, 0, 2)
    ppl_with, ppl_without = (math.e + math.e**2) / 2, (math.e**1.5 + math.e**2.5) / 2
    assert features == pytest.approx({
        "acc_with": 0.6, "acc_without": 0.5, "acc_delta": 0.1, "acc_ratio": 0.1 / 0.60001,
        "ppl_with": ppl_with, "ppl_without": ppl_without, "ppl_delta": ppl_without - ppl_with,
        "ppl_ratio": (ppl_without - ppl_with) / (ppl_without + 1e-5), "loss_delta": 0.5,
    })  # fmt: skip
    assert coherence_features(scores, 2, 2) == {}
    assert set(features) | set(token_features([1], 1)) == set(COHERENCE_FEATURES)


def test_token_features():
    assert token_features([5, 5, 7, 8], 8) == {"tokens_per_character": 0.5, "unique_token_rate": 0.75}
    assert token_features([], 0) == {}


def test_cutting():
    windows = Windows(10, 2, 3).cut(range(25))
    assert [window.tolist() for window in windows] == [list(range(10)), list(range(10, 20))]
    assert Windows(10, 2, 3).cut(range(9)) == []
    assert score_windows(tiny_decoder(), [], SIZES, 100).loss_with.shape == (0,)


@pytest.mark.parametrize("sizes", [(10, 0, 5), (10, 5, 0), (10, 5, 5), (0, 1, 1)])
def test_bad_sizes(sizes):
    with pytest.raises(DataError, match="windows of"):
        Windows(*sizes)
