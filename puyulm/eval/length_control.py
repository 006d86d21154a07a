"""Win rates without the influence of length (Dubois et al., 2024, "Length-Controlled AlpacaEval").

A judge's preference is modelled as sigmoid(a + b tanh(d / std(d)) + c g), where d is by how many characters the
other answer is longer and g how difficult the instruction is. The length-controlled win rate is the mean of what this
says with d = 0. As published: an L1 penalty whose strength is chosen by cross-validation, and as further data, weighed
with 0.1 each, two answers to each instruction by models told to be terse or verbose, which play against themselves and
therefore have no `a`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

STRENGTHS = np.logspace(-4, 4, 10)  # of the data against the penalty
FOLDS = 5
GAMED_WEIGHT = 0.1
NEWTON_STEPS, SWEEPS = 100, 30
ROUGHLY = 1e-4  # for fits that only choose the strength


@dataclass(frozen=True)
class GamedAnswers:
    """Answers of known length by one model told to be terse or verbose, against its own.

    Attributes:
        longer: d / std(d) of each, `[N]`.
        preference: Between 0 and 1, `[N]`.
        difficulty: Of its instruction, `[N]`.
    """

    longer: np.ndarray
    preference: np.ndarray
    difficulty: np.ndarray


def length_controlled(
    preference: np.ndarray,
    longer: np.ndarray,
    difficulty: np.ndarray | None = None,
    gamed: GamedAnswers | None = None,
) -> float:
    """The length-controlled win rate.

    Args:
        preference: How likely the model's answer is the better one, `[N]`, between 0 and 1.
        longer: By how many characters the other answer is longer, `[N]`.
        difficulty: Of each instruction, `[N]`; None: a regression on length alone (the published "minimal" form).
        gamed: Further data; needs `difficulty`.
    """
    columns = [np.tanh(_standardised(longer)), np.ones(len(preference))]
    features, labels, weights = np.stack(columns, 1), preference, np.ones(len(preference))
    if difficulty is not None:
        features = np.column_stack([features, difficulty])
    at_equal_length = features.copy()
    at_equal_length[:, 0] = 0
    if gamed is not None and difficulty is not None:
        further = np.stack([np.tanh(gamed.longer), np.zeros(len(gamed.longer)), gamed.difficulty], 1)
        features, labels = np.concatenate([features, further]), np.concatenate([labels, gamed.preference])
        weights = np.concatenate([weights, np.full(len(further), GAMED_WEIGHT)])
    return float(_sigmoid(at_equal_length @ fit_cross_validated(features, labels, weights)).mean())


def fit_cross_validated(features: np.ndarray, labels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Coefficients `[F]` at the strength that predicts left-out fifths best.

    Args:
        features: `[N, F]`; there is no intercept besides them.
        labels: `[N]`, probabilities.
        weights: `[N]`.
    """
    folds = np.arange(len(labels)) % FOLDS
    losses = np.zeros(len(STRENGTHS))
    for fold in range(min(FOLDS, len(labels)) if len(labels) > 1 else 0):
        left, out = folds != fold, folds == fold
        start = np.zeros(features.shape[1])
        for place, strength in enumerate(STRENGTHS):
            start = fit_logistic(features[left], labels[left], weights[left], strength, start, tolerance=ROUGHLY)
            losses[place] += (weights[out] * _losses(features[out] @ start, labels[out])).mean()
    return fit_logistic(features, labels, weights, float(STRENGTHS[losses.argmin()]))


def fit_logistic(
    features: np.ndarray, labels: np.ndarray, weights: np.ndarray, strength: float, start: np.ndarray | None = None,
    *, tolerance: float = 1e-9,
) -> np.ndarray:  # fmt: skip
    """The coefficients that minimise sum |coefficient| + strength * sum weight * cross-entropy, `[F]`.

    By Newton's method: in each step the penalty stays exact and the cross-entropy is taken as quadratic.

    Args:
        start: Where to begin.
        tolerance: Steps shorter than this end it.
    """
    found = np.zeros(features.shape[1]) if start is None else start
    best = _objective(features, labels, weights, strength, found)
    for _ in range(NEWTON_STEPS):
        predicted = _sigmoid(features @ found)
        slope = strength * features.T @ (weights * (predicted - labels))
        curvature = strength * (features.T * (weights * predicted * (1 - predicted))) @ features
        step = _step(found, slope, curvature + 1e-9 * np.eye(len(found)))
        if np.abs(step).max(initial=0.0) < tolerance:
            break
        length = 1.0
        while (value := _objective(features, labels, weights, strength, found + length * step)) > best:
            length /= 2
            if length < 1e-8:
                return found
        found, best = found + length * step, value
    return found


def _step(now: np.ndarray, slope: np.ndarray, curvature: np.ndarray) -> np.ndarray:
    """Minimises sum |now + step| + slope step + step curvature step / 2.

    One coordinate after the other finds which are zero and the signs of the others; these given, it is solved exactly.
    """
    aim = now.copy()
    for _ in range(SWEEPS):
        for i in range(len(now)):
            at = curvature[i, i]
            free = aim[i] - (slope[i] + curvature[i] @ (aim - now)) / at
            aim[i] = np.sign(free) * max(abs(free) - 1 / at, 0.0)
        signs = np.sign(aim)
        active = signs != 0
        exact = np.zeros(len(now))
        exact[active] = np.linalg.solve(
            curvature[np.ix_(active, active)], curvature[active] @ now - slope[active] - signs[active]
        )
        pull = slope + curvature @ (exact - now)
        if (np.sign(exact) == signs).all() and (np.abs(pull[~active]) <= 1).all():
            return exact - now
    return aim - now


def _objective(features: np.ndarray, labels: np.ndarray, weights: np.ndarray, strength: float, at: np.ndarray) -> float:
    return float(np.abs(at).sum() + strength * (weights @ _losses(features @ at, labels)))


def _losses(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return np.logaddexp(0, logits) - labels * logits


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0, -x))


def _standardised(values: np.ndarray) -> np.ndarray:
    spread = values.std(ddof=1) if len(values) > 1 else 0.0
    return values / spread if spread > 0 else np.zeros(len(values))
