"""Rounds of annotation: a scorer proposes, people check what it is sure of, and it is trained again.

After the loop for code of the InternLM2 report (section 3.1.2): annotators look at confident predictions only, each
round trains again and makes sure that what was annotated before is still classified right, and a scorer is used only
for the languages in which it agrees with a validation set that people labelled.

A folder holds the rounds, `round-1`, `round-2`, ...; in each, `annotations.jsonl` is what `propose` writes and people
fill in, and the rest is what `merge` makes of it.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from puyulm.data.documents import Document, replacing, text_hash
from puyulm.data.pipeline.stage import batches
from puyulm.data.report.visible import spelled
from puyulm.data.score.apply import DECIMALS, language_of
from puyulm.data.score.labelled import Labelled, draw, read_labelled, split, without_repeats, write_labelled
from puyulm.data.score.linear import FILE, LinearScorer
from puyulm.data.score.train import TrainSettings, train_on, write_scorer
from puyulm.errors import DataError

ANNOTATIONS, LABELLED, MERGE_JSON, MERGE_TEXT = "annotations.jsonl", "labelled.jsonl", "merge.json", "merge.txt"
MAX_CHARACTERS = 10_000  # of a document that are scored and shown

Drawn = tuple[int, int, dict[str, Any]]  # minus the number drawn, the place in the stream, the line to label


@dataclass(frozen=True)
class Agreement:
    """How a scorer agrees with people in one language.

    Attributes:
        texts: Validation texts.
        accuracy: Share of equal labels.
        kappa: Cohen's kappa: agreement beyond chance.
        used: Whether the scorer may be used for the language.
    """

    texts: int
    accuracy: float
    kappa: float
    used: bool


@dataclass(frozen=True)
class MergeReport:
    """What a round brought.

    Attributes:
        round: Its number.
        annotated: Texts that were labelled in it, and of these how many as proposed.
        trained_on: Labelled texts in all.
        wrong: Texts annotated in earlier rounds that the new scorer takes for another label: round, id, label, found,
            score, and whether they were among the training texts.
        earlier: Texts annotated in earlier rounds.
        agreement: Language -> agreement with the validation set; empty without one.
        languages: That the scorer may be used for; None for all, where there is no validation set.
    """

    round: int
    annotated: int
    confirmed: int
    trained_on: int
    earlier: int
    wrong: list[dict[str, Any]]
    agreement: dict[str, Agreement]
    languages: tuple[str, ...] | None

    def text(self) -> str:
        """The report to read."""
        lines = [
            f"round {self.round}: {self.annotated:,} texts annotated, {self.confirmed:,} of them as proposed; "
            f"trained on {self.trained_on:,} labelled texts",
            f"of {self.earlier:,} texts annotated in earlier rounds {len(self.wrong):,} are classified otherwise:",
        ]
        lines += [f"  round {w['round']} {spelled(w['id'])}: {w['label']}, found {w['found']} (score {w['score']:.3f})"
                  f"{'' if w['trained_on'] else ', not trained on'}" for w in self.wrong]  # fmt: skip
        lines += [f"{'language':<16}{'texts':>7}{'accuracy':>10}{'kappa':>8}  used" if self.agreement else
                  "no validation set: the scorer may be used for all languages"]  # fmt: skip
        lines += [f"{name:<16}{a.texts:>7,}{a.accuracy:>10.3f}{a.kappa:>8.3f}  {'yes' if a.used else 'no'}"
                  for name, a in self.agreement.items()]  # fmt: skip
        return "\n".join(lines) + "\n"


def propose(
    rounds: Path, documents: Iterable[Document], scorer: LinearScorer | None, n_high: int, n_low: int,
    high: float = 0.9, low: float = 0.1, seed: int = 0,
) -> dict[str, dict[str, int]]:  # fmt: skip
    """Begins a round: chooses documents that a scorer is sure of and writes them for people to label.

    Documents with scores of at least `high` and at most `low` are drawn by the hash of their ids, as evenly from all
    languages as there are any; texts that earlier rounds hold are left out.

    Args:
        rounds: The folder of the rounds.
        documents: To choose from; read once, a few in memory at a time.
        scorer: Whose predictions count; None takes the last round's.
        n_high, n_low: Documents of each side.
        high, low: What counts as sure.
        seed: Of the draw.

    Returns:
        Language -> side ("high", "low") -> documents chosen. The lines of `annotations.jsonl` have "label": null,
        which people replace by the right label, whether it is the proposed one or not.

    Raises:
        DataError: The last round has not been merged, there is no scorer, or it is sure of no document.
    """
    number, done = _last_round(rounds)
    if number and not done:
        raise DataError(f"{_folder(rounds, number)} is still to be merged: label its {ANNOTATIONS} first, or remove it")
    if scorer is None:
        if not number:
            raise DataError(f"{rounds} has no round yet: give a scorer to begin with")
        scorer = LinearScorer.load(_folder(rounds, number))
    seen = {text_hash(row.text) for k in range(1, number + 1) for row in _annotations(rounds, k)}
    sides = {"high": n_high, "low": n_low}
    drawn: dict[tuple[str, str], list[Drawn]] = {}
    for place, record in enumerate(_sure(documents, scorer, high, low)):
        if text_hash(record["text"]) in seen:
            continue
        side = "high" if record["score"] >= high else "low"
        heap = drawn.setdefault((side, record["language"]), [])
        heapq.heappush(heap, (-draw(record["id"], seed), place, record))  # the largest number leaves first
        if len(heap) > sides[side]:
            heapq.heappop(heap)
    chosen = [item for side, count in sides.items() for item in _evenly(drawn, side, count)]
    if not chosen:
        raise DataError(f"the scorer is sure of no new document (score at least {high} or at most {low})")
    records = [record for _, _, record in sorted(chosen, key=lambda item: (-item[0], item[1]))]
    _write_lines(_folder(rounds, number + 1) / ANNOTATIONS, records)
    counts: dict[str, dict[str, int]] = {}
    for record in records:
        side = "high" if record["score"] >= high else "low"
        counts.setdefault(str(record["language"]), {"high": 0, "low": 0})[side] += 1
    return dict(sorted(counts.items()))


def merge(
    rounds: Path, labelled: Sequence[Path] = (), validation: Path | None = None, settings: TrainSettings | None = None,
    min_kappa: float = 0.6, min_texts: int = 30,
) -> MergeReport:  # fmt: skip
    """Ends a round: trains on all that is labelled, looks at earlier annotations again, and decides on languages.

    Args:
        rounds: The folder of the rounds; the last round's annotations are taken, labelled lines only.
        labelled: What was labelled before the first round.
        validation: Texts that people labelled, with languages; never trained on. Without it no language is excluded.
        settings: Of the training.
        min_kappa: Least agreement for a language to be used: 0.6 begins what Landis and Koch (1977) call substantial.
        min_texts: Languages with fewer validation texts are not used.

    Returns:
        The report, which is written to the round's folder with the scorer and its own report.

    Raises:
        DataError: There is no round to merge, nothing is labelled in it, or the texts are too few.
    """
    number, _ = _last_round(rounds)
    if not number:
        raise DataError(f"{rounds} holds no round: make one with puyu data annotate propose")
    annotations = {k: _annotations(rounds, k) for k in range(1, number + 1)}
    if not annotations[number]:
        raise DataError(f"{_folder(rounds, number) / ANNOTATIONS}: no line has a label yet")
    checks = read_labelled(validation) if validation is not None else []
    apart = {text_hash(row.text) for row in checks}
    rows = [row for path in labelled for row in read_labelled(path)]
    rows += [row for k in sorted(annotations) for row in annotations[k]]
    rows = _latest(row for row in rows if text_hash(row.text) not in apart)
    settings = settings or TrainSettings()
    scorer, report = train_on(rows, settings)
    agreement = _agreement(scorer, checks, min_kappa, min_texts)
    languages = tuple(name for name, found in agreement.items() if found.used) if validation is not None else None
    scorer = scorer.with_facts(languages=languages)
    trained = {text_hash(row.text) for row in split(without_repeats(rows)[0], settings.seed).train}
    earlier = [(k, row) for k in range(1, number) for row in annotations[k]]
    folder = _folder(rounds, number)
    proposed = _proposed(folder / ANNOTATIONS)
    confirmed = sum(proposed.get(text_hash(row.text)) == row.label for row in annotations[number])
    result = MergeReport(
        number, len(annotations[number]), confirmed, len(rows), len(earlier), _wrong(scorer, earlier, trained),
        agreement, languages,
    )  # fmt: skip
    write_labelled(folder / LABELLED, rows)
    with replacing(folder / MERGE_JSON) as path:
        text = json.dumps(asdict(result), ensure_ascii=False, indent=1)
        path.write_text(text, encoding="utf-8", errors="backslashreplace")
    with replacing(folder / MERGE_TEXT) as path:
        path.write_text(result.text(), encoding="utf-8")
    write_scorer(folder, scorer, report)  # last: with it the round is merged
    return result


def _sure(documents: Iterable[Document], scorer: LinearScorer, high: float, low: float) -> Iterator[dict[str, Any]]:
    """A line to label for each document whose score is at least `high` or at most `low`."""
    for batch in batches(documents):
        texts = [document.text[:MAX_CHARACTERS] for document in batch]
        for document, text, row in zip(batch, texts, scorer.probabilities(texts), strict=True):
            score = round(float(row[scorer.column]), DECIMALS)
            if low < score < high:
                continue
            best = scorer.column if score >= high else int(np.argmax(row))
            yield {"id": document.id, "text": text, "language": language_of(document), "score": score,
                   "proposed_label": scorer.facts.labels[best], "label": None}  # fmt: skip


def cohens_kappa(found: Sequence[str], truth: Sequence[str]) -> float:
    """Agreement of two raters beyond chance; 1 where both say one and the same thing throughout."""
    labels = sorted({*found, *truth})
    observed = sum(a == b for a, b in zip(found, truth, strict=True)) / len(truth)
    expected = sum(found.count(label) * truth.count(label) for label in labels) / len(truth) ** 2
    return 1.0 if expected == 1 else (observed - expected) / (1 - expected)


def _agreement(
    scorer: LinearScorer, checks: Sequence[Labelled], min_kappa: float, min_texts: int
) -> dict[str, Agreement]:
    agreement = {}
    for language in sorted({row.language for row in checks}):
        rows = [row for row in checks if row.language == language]
        found, truth = _labels(scorer, rows), [row.label for row in rows]
        kappa = cohens_kappa(found, truth)
        accuracy = sum(a == b for a, b in zip(found, truth, strict=True)) / len(rows)
        agreement[language] = Agreement(len(rows), accuracy, kappa, len(rows) >= min_texts and kappa >= min_kappa)
    return agreement


def _wrong(scorer: LinearScorer, rows: Sequence[tuple[int, Labelled]], trained: set[str]) -> list[dict[str, Any]]:
    texts = [row.text for _, row in rows]
    found, scores = _labels(scorer, [row for _, row in rows]), scorer.score(texts)
    return [{"round": number, "id": row.id, "label": row.label, "found": label, "score": round(float(score), DECIMALS),
             "trained_on": text_hash(row.text) in trained}
            for (number, row), label, score in zip(rows, found, scores, strict=True) if label != row.label]  # fmt: skip


def _labels(scorer: LinearScorer, rows: Sequence[Labelled]) -> list[str]:
    best = scorer.probabilities([row.text[:MAX_CHARACTERS] for row in rows]).argmax(axis=1)
    return [scorer.facts.labels[i] for i in best.tolist()]


def _latest(rows: Iterable[Labelled]) -> list[Labelled]:
    """Each text with the label that it got last: a later round corrects an earlier one."""
    return list({text_hash(row.text): row for row in rows}.values())


def _evenly(drawn: dict[tuple[str, str], list[Drawn]], side: str, count: int) -> list[Drawn]:
    """Takes from each language in turn, in the order of the draw, until there are enough or none are left."""
    queues = [sorted(heap, key=lambda item: (-item[0], item[1])) for (s, _), heap in sorted(drawn.items()) if s == side]
    turns = [item for turn in range(max(map(len, queues), default=0)) for queue in queues for item in queue[turn:][:1]]
    return turns[:count]


def _last_round(rounds: Path) -> tuple[int, bool]:
    """The number of the last round, 0 if there is none, and whether it has been merged."""
    number = 0
    while (_folder(rounds, number + 1) / ANNOTATIONS).is_file():
        number += 1
    return number, number > 0 and (_folder(rounds, number) / FILE).is_file()


def _folder(rounds: Path, number: int) -> Path:
    return rounds / f"round-{number}"


def _annotations(rounds: Path, number: int) -> list[Labelled]:
    return read_labelled(_folder(rounds, number) / ANNOTATIONS, unlabelled=True)


def _proposed(path: Path) -> dict[str, str]:
    """Hash of a text -> the label that was proposed for it."""
    records = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line.strip()]
    return {text_hash(record["text"]): record.get("proposed_label", "") for record in records}


def _write_lines(path: Path, records: Iterable[dict[str, Any]]) -> None:
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in records]
    with replacing(path) as partial:
        partial.write_bytes("".join(lines).encode("utf-8", "backslashreplace"))
