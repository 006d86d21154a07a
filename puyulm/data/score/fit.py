"""Fitting a linear scorer: logistic regression with AdaGrad, stopped and calibrated on texts kept apart."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from puyulm.data.score.linear import Floats, LinearScorer, ScorerFacts, grams, softmax, weighted_sums
from puyulm.progress import Progress

BATCHES = (8, 128)  # texts of one step, at least and at most: 1/64 of all between these
RATE = 0.1
PATIENCE = 2


def fit(
    train: tuple[Sequence[str], npt.NDArray[np.int64]], calibration: tuple[Sequence[str], npt.NDArray[np.int64]],
    facts: ScorerFacts, epochs: int = 12, seed: int = 0,
) -> LinearScorer:  # fmt: skip
    """Fits a scorer.

    Classes weigh the same in the loss, however many texts they have. After each pass over the texts the loss on the
    calibration texts is taken; the best pass's weights stay, and two passes without a better one end the training.
    Then the logits are scaled and moved so that they give calibrated probabilities (Platt scaling; with more than two
    classes, a temperature and a bias a class).

    Args:
        train: Texts, and the numbers of their labels, `[N]`.
        calibration: The same, of other texts.
        facts: Labels and n-grams.
        epochs: Passes, at most.
        seed: Of the order of the texts.

    Returns:
        The scorer; the same input gives the same weights.
    """
    texts, labels = train
    model = _Model(facts, _class_weights(labels, len(facts.labels)))
    generator = np.random.default_rng(seed)
    size = min(max(len(texts) // 64, BATCHES[0]), BATCHES[1])
    best, stale = (np.inf, model.scorer()), 0
    with Progress("training", total=epochs * len(texts), unit="text") as progress:
        for _ in range(epochs):
            order = generator.permutation(len(texts))
            for start in range(0, len(order), size):
                batch = order[start : start + size]
                model.step([texts[i] for i in batch], labels[batch])
                progress.advance(len(batch))
            loss = model.loss(*calibration)
            stale = 0 if loss < best[0] else stale + 1
            if not stale:
                best = (loss, model.scorer())
            if stale == PATIENCE:
                break
    return _calibrated(best[1], *calibration)


class _Model:
    """Weights under way, and AdaGrad's sums of squared gradients (Duchi et al. 2011)."""

    def __init__(self, facts: ScorerFacts, importance: Floats) -> None:
        self.facts, self.importance = facts, importance
        columns = 1 if len(facts.labels) == 2 else len(facts.labels)
        self.weight, self.bias = np.zeros((columns, 1 << facts.bits), np.float32), np.zeros(columns)
        self.squares, self.bias_squares = np.full_like(self.weight, 1e-6), np.full(columns, 1e-6)
        self.seen = np.zeros(1 << facts.bits, dtype=bool)

    def step(self, texts: Sequence[str], labels: npt.NDArray[np.int64]) -> None:
        """One step on some texts; only weights that occur in them are touched."""
        found = grams(texts, self.facts)
        errors = _errors(weighted_sums(self.weight, found).T + self.bias, labels, self.importance)
        self.seen[found.buckets] = True
        met = np.flatnonzero(self.seen)
        self.seen[met] = False
        for column, (weight, squares) in enumerate(zip(self.weight, self.squares, strict=True)):
            each = (errors[:, column] * found.scale)[found.owners]
            gradient = np.bincount(found.buckets, each, len(weight))[met].astype(np.float32)
            total = squares[met] + gradient * gradient
            squares[met] = total
            weight[met] -= np.float32(RATE) * gradient / np.sqrt(total)
        pull = errors.sum(axis=0)
        self.bias_squares += pull * pull
        self.bias -= RATE * pull / np.sqrt(self.bias_squares)

    def loss(self, texts: Sequence[str], labels: npt.NDArray[np.int64]) -> float:
        """Mean cross-entropy, classes weighing the same."""
        own = LinearScorer(self.facts, self.weight.T, self.bias).probabilities(texts)[np.arange(len(labels)), labels]
        return float(-(np.log(np.maximum(own, 1e-12)) * self.importance[labels]).mean())

    def scorer(self) -> LinearScorer:
        """A copy of the weights as they are now."""
        return LinearScorer(self.facts, self.weight.T.copy(), self.bias.copy())


def _class_weights(labels: npt.NDArray[np.int64], count: int) -> Floats:
    sizes = np.bincount(labels, minlength=count)
    return np.asarray(len(labels) / (count * np.maximum(sizes, 1)))


def _errors(logits: Floats, labels: npt.NDArray[np.int64], importance: Floats) -> Floats:
    """The loss's gradient by the logits, `[B, C]`."""
    errors = softmax(logits)
    errors[np.arange(len(labels)), labels] -= 1.0
    errors *= (importance[labels] / len(labels))[:, None]
    return errors[:, 1:] if logits.shape[1] == 1 else errors


def _calibrated(scorer: LinearScorer, texts: Sequence[str], labels: npt.NDArray[np.int64]) -> LinearScorer:
    """Scales and moves logits for the least loss on the calibration texts, by gradient descent on few numbers.

    The texts count as they are, without class weights, so that probabilities follow the classes' real shares. A weak
    pull towards the fitted values keeps them finite where few texts are told apart without a mistake.
    """
    logits = scorer.logits(texts)
    log_scale, shift = 0.0, np.zeros(logits.shape[1])
    even = np.ones(len(scorer.facts.labels))
    pull = 1.0 / len(labels)
    for _ in range(500):
        errors = _errors(np.exp(log_scale) * logits + shift, labels, even)
        log_scale -= 0.3 * (float((errors * logits).sum()) * np.exp(log_scale) + pull * log_scale)
        shift -= 0.3 * (errors.sum(axis=0) + pull * shift)
    scale = np.float32(np.exp(log_scale))
    return LinearScorer(scorer.facts, scorer.weight.T * scale, scorer.bias * float(scale) + shift, scorer.column)
