"""The length-controlled win rate: known coefficients are found again, and the minimum is one."""

from __future__ import annotations

import numpy as np
import pytest

from puyulm.eval.length_control import GamedAnswers, fit_cross_validated, fit_logistic, length_controlled


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def features(rows: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return np.column_stack([np.tanh(random.normal(size=rows)), np.ones(rows), random.normal(size=rows)])


def test_coefficients_are_found_again() -> None:
    x, true = features(805), np.array([1.3, -0.7, 0.4])
    assert fit_cross_validated(x, sigmoid(x @ true), np.ones(805)) == pytest.approx(true, abs=1e-3)
    drawn = (np.random.default_rng(1).random(805) < sigmoid(x @ true)).astype(float)
    assert fit_cross_validated(x, drawn, np.ones(805)) == pytest.approx(true, abs=0.35)


@pytest.mark.parametrize("strength", [1e-4, 0.01, 0.1, 1.0, 1e4])
def test_the_minimum_fulfils_its_conditions(strength: float) -> None:
    """The slope of the cross-entropy is 1 against each coefficient's sign, and at most 1 where it is zero."""
    x, weights = features(200, 2), np.random.default_rng(3).random(200)
    labels = np.random.default_rng(4).random(200)
    found = fit_logistic(x, labels, weights, strength)
    slope = strength * x.T @ (weights * (sigmoid(x @ found) - labels))
    tolerance = 1e-5 * max(1.0, strength)
    for one, at in zip(slope, found, strict=True):
        if at == 0:
            assert abs(one) <= 1 + tolerance
        else:
            assert one == pytest.approx(-np.sign(at), abs=tolerance)


def test_as_scikit_learn_fits() -> None:
    linear = pytest.importorskip("sklearn.linear_model", reason="a peer; comes with lm-eval")
    x, weights = features(300, 5), np.random.default_rng(6).random(300)
    labels = np.random.default_rng(7).random(300)
    for strength in (0.05, 1.0, 100.0):
        peer = linear.LogisticRegression(
            C=strength, l1_ratio=1.0, solver="liblinear", fit_intercept=False, tol=1e-10, max_iter=10_000
        )
        twice = np.concatenate([weights * labels, weights * (1 - labels)])
        peer.fit(np.concatenate([x, x]), np.repeat([1, 0], 300), sample_weight=twice)
        assert fit_logistic(x, labels, weights, strength) == pytest.approx(peer.coef_[0], abs=1e-4)


def test_without_an_effect_of_length_nothing_changes() -> None:
    random = np.random.default_rng(8)
    longer = random.normal(size=805) * 500
    assert length_controlled(np.full(805, 0.3), longer) == pytest.approx(0.3, abs=1e-4)
    assert length_controlled(random.permutation(np.linspace(0, 1, 805)), np.zeros(805)) == pytest.approx(0.5, abs=1e-4)


def test_what_length_wins_is_taken_away() -> None:
    """A model as good as the other, which writes more: half its length-controlled comparisons are won."""
    longer = -600 + 300 * np.random.default_rng(9).normal(size=805)
    wins = sigmoid(-1.5 * np.tanh(longer / longer.std(ddof=1)))
    assert wins.mean() > 0.7
    assert length_controlled(wins, longer) == pytest.approx(0.5, abs=0.02)


def test_difficulty_and_gamed_answers() -> None:
    """With difficulties the model is found exactly; gamed answers settle what length is worth."""
    random = np.random.default_rng(10)
    longer, difficulty = 400 * random.normal(size=805), random.normal(size=805)
    scaled = longer / longer.std(ddof=1)
    wins = sigmoid(0.8 * np.tanh(scaled) - 0.5 + 0.9 * difficulty)
    expected = sigmoid(-0.5 + 0.9 * difficulty).mean()
    assert length_controlled(wins, longer, difficulty) == pytest.approx(expected, abs=1e-3)
    known = random.normal(size=1610)
    gamed = GamedAnswers(known, sigmoid(0.8 * np.tanh(known) + 0.9 * np.tile(difficulty, 2)), np.tile(difficulty, 2))
    assert length_controlled(wins, longer, difficulty, gamed) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("rows", [1, 2, 3, 7])
@pytest.mark.parametrize("worth", [0.0, 0.5, 1.0])
def test_few_rows(rows: int, worth: float) -> None:
    value = length_controlled(np.full(rows, worth), np.arange(rows) * 10.0)
    assert 0 <= value <= 1 and (value - 0.5) * (worth - 0.5) >= 0
