"""What a scorer does on texts that it was not trained on: measures, as numbers and as text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from puyulm.data.report.visible import spelled
from puyulm.data.score.labelled import Labelled
from puyulm.data.score.linear import Floats

THRESHOLDS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)
ERRORS = 40
ERROR_CHARACTERS = 400


@dataclass(frozen=True)
class ScorerReport:
    """Figures of a scorer on held-out texts.

    Attributes:
        labels: In the order of the scorer's classes; `positive` is the one whose probability is the score.
        texts: Part ("train", "calibration", "held_out") -> label -> texts.
        left_out: Why texts were not used -> how many.
        accuracy: Share whose most probable label is right.
        by_label: Label -> precision, recall, f1.
        roc_auc: Area under the ROC curve of the score: the chance that a text of the positive label scores higher
            than another.
        calibration_error: Mean distance of score and share of positives over ten bins of score, weighted by texts.
        confusion: Rows true labels, columns found ones.
        thresholds: For each threshold the share of texts with a score of at least that, the share of positives among
            them (precision), and the share of all positives that are among them (recall).
        by_language: Language -> texts, accuracy.
        ngrams: Label -> n-grams that speak for it most, the strongest first.
        errors: Texts that are taken for another label, the surest first: text, label, found, score.
    """

    labels: tuple[str, ...]
    positive: str
    texts: dict[str, dict[str, int]]
    left_out: dict[str, int]
    accuracy: float
    by_label: dict[str, dict[str, float]]
    roc_auc: float
    calibration_error: float
    confusion: list[list[int]]
    thresholds: list[dict[str, float]]
    by_language: dict[str, dict[str, float]]
    ngrams: dict[str, list[str]]
    errors: list[dict[str, Any]]

    def text(self) -> str:
        """The report to read."""
        lines = [f"score: probability of {self.positive!r}", ""]
        for part, counts in self.texts.items():
            lines.append(f"{part:<12} " + ", ".join(f"{count:,} {label}" for label, count in counts.items()))
        lines += [f"left out     {count:,} {reason}" for reason, count in self.left_out.items() if count]
        lines += ["", f"On the held-out texts: accuracy {self.accuracy:.4f}, ROC AUC {self.roc_auc:.4f}, "
                  f"calibration error {self.calibration_error:.4f}", ""]  # fmt: skip
        width = max(12, *(len(label) + 2 for label in self.labels))
        lines.append(f"{'label':<{width}}{'precision':>10}{'recall':>10}{'f1':>10}   found as "
                     + " / ".join(self.labels))  # fmt: skip
        for label, row in zip(self.labels, self.confusion, strict=True):
            figures = "".join(f"{self.by_label[label][name]:>10.4f}" for name in ("precision", "recall", "f1"))
            lines.append(f"{label:<{width}}{figures}   " + " / ".join(f"{count:,}" for count in row))
        if len(self.by_language) > 1:
            lines += ["", "language         texts  accuracy"]
            lines += [f"{name:<14}{f['texts']:>8,.0f}{f['accuracy']:>10.4f}" for name, f in self.by_language.items()]
        lines += ["", "score >=   share of texts   precision    recall"]
        lines += [f"{t['threshold']:>8.2f}{t['share']:>17.4f}{t['precision']:>12.4f}{t['recall']:>10.4f}"
                  for t in self.thresholds]  # fmt: skip
        for label, found in self.ngrams.items():
            lines += ["", f"speaks for {label!r}: " + " ".join(repr(gram) for gram in found)]
        lines += ["", f"Errors ({len(self.errors)} shown):"]
        lines += [f"  {e['label']} taken for {e['found']} (score {e['score']:.3f}): "
                  f"{spelled(' '.join(e['text'].split())[:200])}"
                  for e in self.errors]  # fmt: skip
        return "\n".join(lines) + "\n"


def measure(
    rows: Sequence[Labelled], probabilities: Floats, labels: tuple[str, ...], positive: str,
    texts: dict[str, dict[str, int]], left_out: dict[str, int], ngrams: dict[str, list[str]],
) -> ScorerReport:  # fmt: skip
    """Compares probabilities with labels.

    Args:
        rows: The held-out texts, `[N]`.
        probabilities: Of the labels, `[N, labels]`.
        labels: Names of the columns.
        positive: The label that the score stands for.
        texts, left_out, ngrams: For the report.
    """
    truth = np.array([labels.index(row.label) for row in rows])
    found = probabilities.argmax(axis=1)
    confusion = np.zeros((len(labels), len(labels)), dtype=np.int64)
    np.add.at(confusion, (truth, found), 1)
    scores, is_positive = probabilities[:, labels.index(positive)], truth == labels.index(positive)
    return ScorerReport(
        labels, positive, texts, left_out,
        accuracy=float((truth == found).mean()),
        by_label={label: _by_label(confusion, i) for i, label in enumerate(labels)},
        roc_auc=roc_auc(scores, is_positive),
        calibration_error=calibration_error(scores, is_positive),
        confusion=confusion.tolist(),
        thresholds=[_threshold(scores, is_positive, t) for t in THRESHOLDS],
        by_language=_by_language(rows, truth == found),
        ngrams=ngrams,
        errors=_errors(rows, probabilities, found, truth, scores, labels),
    )  # fmt: skip


def roc_auc(scores: Floats, positive: npt.NDArray[np.bool_]) -> float:
    """Area under the ROC curve, ties counting half (Mann-Whitney's U); NaN if all texts are of one class."""
    positives, negatives = int(positive.sum()), int((~positive).sum())
    if not positives or not negatives:
        return float("nan")
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return float((ranks[positive].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def calibration_error(scores: Floats, positive: npt.NDArray[np.bool_], bins: int = 10) -> float:
    """Expected calibration error over bins of equal width (Guo et al. 2017)."""
    places = np.minimum((scores * bins).astype(int), bins - 1)
    gaps = np.bincount(places, scores - positive, bins)
    return float(np.abs(gaps).sum() / max(len(scores), 1))


def _by_label(confusion: npt.NDArray[np.int64], i: int) -> dict[str, float]:
    right = float(confusion[i, i])
    precision = right / max(float(confusion[:, i].sum()), 1.0)
    recall = right / max(float(confusion[i].sum()), 1.0)
    return {"precision": precision, "recall": recall, "f1": 2 * precision * recall / max(precision + recall, 1e-12)}


def _threshold(scores: Floats, positive: npt.NDArray[np.bool_], threshold: float) -> dict[str, float]:
    above = scores >= threshold
    hits = float((above & positive).sum())
    return {"threshold": threshold, "share": float(above.mean()), "precision": hits / max(float(above.sum()), 1.0),
            "recall": hits / max(float(positive.sum()), 1.0)}  # fmt: skip


def _by_language(rows: Sequence[Labelled], right: npt.NDArray[np.bool_]) -> dict[str, dict[str, float]]:
    languages = sorted({row.language for row in rows})
    of = np.array([languages.index(row.language) for row in rows])
    return {name or "unknown": {"texts": float((of == i).sum()), "accuracy": float(right[of == i].mean())}
            for i, name in enumerate(languages)}  # fmt: skip


def _errors(
    rows: Sequence[Labelled], probabilities: Floats, found: npt.NDArray[np.int64], truth: npt.NDArray[np.int64],
    scores: Floats, labels: tuple[str, ...],
) -> list[dict[str, Any]]:  # fmt: skip
    wrong = np.flatnonzero(found != truth)
    surest = wrong[np.argsort(-probabilities[wrong, found[wrong]], kind="stable")][:ERRORS]
    return [{"id": rows[i].id, "text": rows[i].text[:ERROR_CHARACTERS], "label": rows[i].label,
             "found": labels[found[i]], "score": round(float(scores[i]), 4)} for i in surest]  # fmt: skip
