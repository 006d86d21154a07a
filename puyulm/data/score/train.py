"""Training a scorer from labelled texts, with a report on texts kept apart."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from puyulm.data.documents import replacing
from puyulm.data.score.fit import fit
from puyulm.data.score.labelled import Labelled, read_labelled, split, without_repeats
from puyulm.data.score.linear import FILE, LinearScorer, ScorerFacts, bucket_names, grams
from puyulm.data.score.report import ScorerReport, measure
from puyulm.errors import DataError

REPORT_JSON, REPORT_TEXT = "report.json", "report.txt"
TELLING_TEXTS = 2000  # training texts in which telling n-grams are looked for
TELLING_NGRAMS = 30
TELLING_MIN_COUNT = 3


@dataclass(frozen=True)
class TrainSettings:
    """How a scorer is trained.

    Attributes:
        positive: The label whose probability is the score; the last in the alphabet if empty.
        char_ngrams, word_ngrams, bits: See `ScorerFacts`.
        epochs: Passes over the texts, at most.
        max_characters: Longer texts are cut, as they are when scored.
        seed: Of the split and of the order of the texts.
    """

    positive: str = ""
    char_ngrams: tuple[int, int] = (1, 4)
    word_ngrams: int = 2
    bits: int = 20
    epochs: int = 12
    max_characters: int = 10_000
    seed: int = 0


def train_scorer(labelled: Path, out: Path, settings: TrainSettings = TrainSettings()) -> ScorerReport:
    """Trains a linear scorer and writes it with its report.

    Args:
        labelled: JSON lines with "text" and "label" (see `read_labelled`).
        out: Folder to write `scorer.safetensors`, `report.json` and `report.txt` to.
        settings: How.

    Returns:
        The report.

    Raises:
        DataError: The texts cannot be read, or are too few.
    """
    scorer, report = train_on(read_labelled(labelled), settings)
    write_scorer(out, scorer, report)
    return report


def train_on(rows: Sequence[Labelled], settings: TrainSettings) -> tuple[LinearScorer, ScorerReport]:
    """Trains a scorer on labelled texts in memory.

    Texts that repeat or contradict each other are left out; about a tenth of the rest is held out for the report, and
    another tenth decides when to stop and calibrates the probabilities.

    Raises:
        DataError: The texts are too few, or none has the positive label.
    """
    kept, repeats, contradicting = without_repeats(rows)
    parts = split(kept, settings.seed)
    names = sorted({row.label for row in kept})
    positive = settings.positive or names[-1]
    if positive not in names:
        raise DataError(f"no text is labelled {positive!r}: the labels are {', '.join(names)}")
    labels = (*(name for name in names if name != positive), positive)
    facts = ScorerFacts(labels, settings.char_ngrams, settings.word_ngrams, settings.bits)
    sets = [_arrays(part, labels, settings.max_characters) for part in (parts.train, parts.calibration, parts.held_out)]
    scorer = fit(sets[0], sets[1], facts, settings.epochs, settings.seed).for_label(positive)
    counts = {name: dict(sorted(Counter(row.label for row in part).items()))
              for name, part in (("train", parts.train), ("calibration", parts.calibration),
                                 ("held_out", parts.held_out))}  # fmt: skip
    report = measure(
        parts.held_out, scorer.probabilities(sets[2][0]), labels, positive, counts,
        {"repeats": repeats, "contradicting": contradicting},
        telling_ngrams(scorer, sets[0][0][:TELLING_TEXTS]),
    )  # fmt: skip
    measured = {"texts": counts, "accuracy": report.accuracy, "roc_auc": report.roc_auc,
                "settings": asdict(settings)}  # fmt: skip
    return scorer.with_facts(training=measured), report


def write_scorer(out: Path, scorer: LinearScorer, report: ScorerReport) -> None:
    """Writes a scorer and its report to a folder."""
    scorer.save(out / FILE)
    with replacing(out / REPORT_JSON) as path:
        path.write_text(json.dumps(asdict(report), ensure_ascii=False, indent=1), encoding="utf-8", errors="replace")
    with replacing(out / REPORT_TEXT) as path:
        path.write_text(report.text(), encoding="utf-8", errors="replace")


def telling_ngrams(scorer: LinearScorer, texts: Sequence[str]) -> dict[str, list[str]]:
    """The n-grams that move the score of these texts most, label -> n-grams, the strongest first.

    An n-gram's strength is its weight times the root of how often it occurs; those that occur under three times do
    not count.
    """
    texts = [text[:2000] for text in texts]
    found = grams(texts, scorer.facts)
    counts = np.bincount(found.buckets, minlength=scorer.weight.shape[1])
    counts[counts < TELLING_MIN_COUNT] = 0
    weights = scorer.weight if len(scorer.weight) > 1 else np.concatenate([-scorer.weight, scorer.weight])
    wanted = {
        label: np.argsort(-row * np.sqrt(counts), kind="stable")[: 2 * TELLING_NGRAMS]
        for label, row in zip(scorer.facts.labels, weights, strict=True)
    }
    names = bucket_names(texts, scorer.facts, np.unique(np.concatenate(list(wanted.values()))))
    return {  # a word may be an n-gram of characters, too
        label: list(dict.fromkeys(names[bucket] for bucket in chosen.tolist() if counts[bucket]))[:TELLING_NGRAMS]
        for label, chosen in wanted.items()
    }


def _arrays(rows: Sequence[Labelled], labels: tuple[str, ...], limit: int) -> tuple[list[str], npt.NDArray[Any]]:
    return [row.text[:limit] for row in rows], np.array([labels.index(row.label) for row in rows], dtype=np.int64)
