"""Documents that hold text of evaluation sets, and personal data that was masked: what two stages leave in metadata."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from puyulm.data.documents import Document
from puyulm.data.pipeline.stage import DROPPED_FOLDER, shards_in
from puyulm.data.report.facts import StageFacts
from puyulm.data.report.scan import Scan

KIND = "decontaminate"
HITS_KEY, MASKED_KEY = "contamination", "masked"
NOTE = "documents with text of "
EXAMPLES = 8
CONTEXT = 140  # characters of a document on either side of what matches
MATCH = 300  # of what matches


@dataclass(frozen=True)
class Example:
    """A document with text of an evaluation set.

    Attributes:
        set, item: What it matches.
        share: Of the item's n-grams that are in the document; None where it is not told.
        id, language: The document's.
        before, match, after: The text that matches, with what stands around it.
    """

    set: str
    item: str
    share: float | None
    id: str
    language: str
    before: str
    match: str
    after: str


@dataclass(frozen=True)
class SetHits:
    """Documents with text of one set, and how many of them were dropped for it."""

    name: str
    documents: int
    dropped: int


@dataclass(frozen=True)
class Hits:
    """What one stage of decontamination found.

    Attributes:
        label: The stage's name.
        action: What is done with such documents; empty where it is not told.
        sets: Most documents first.
        examples: Some documents.
    """

    label: str
    action: str
    sets: tuple[SetHits, ...]
    examples: tuple[Example, ...]


@dataclass(frozen=True)
class Masked:
    """Personal data that was masked in a stage.

    Attributes:
        label: The stage's name.
        kinds: (kind, how often, documents), most first.
        documents: Documents that were looked at.
        complete: These are all that the stage kept.
    """

    label: str
    kinds: tuple[tuple[str, int, int], ...]
    documents: int
    complete: bool


def find_hits(stages: Iterable[StageFacts]) -> list[Hits]:
    """What the stages of decontamination found: counts out of their figures, examples out of their first documents."""
    return [_hits(stage) for stage in stages if stage.result.kind == KIND]


def find_masked(stages: Iterable[StageFacts]) -> list[Masked]:
    """What stages masked, counted from `metadata["masked"]` of the documents that they kept, up to a bound.

    Documents keep these counts through later stages, so only stages that can mask (`safe`) are looked at.
    """
    found = []
    for stage in stages:
        if stage.result.kind != "safe":
            continue
        scan = Scan(shards_in(stage.result.folder))
        kinds: dict[str, list[int]] = {}
        for document in scan:
            masked = _metadata(document).get(MASKED_KEY)
            for kind, number in masked.items() if isinstance(masked, Mapping) else ():
                if isinstance(number, int) and (kind in kinds or len(kinds) < 100):
                    pair = kinds.setdefault(str(kind), [0, 0])
                    pair[0] += number
                    pair[1] += 1
        if kinds:
            rows = [(kind, number, documents) for kind, (number, documents) in kinds.items()]
            rows.sort(key=lambda row: (-row[1], row[0]))
            found.append(Masked(stage.result.label, tuple(rows), scan.documents, scan.complete))
    return found


def _hits(stage: StageFacts) -> Hits:
    counts = stage.result.counts
    documents = {name.removeprefix(NOTE): int(n) for name, n in counts.notes.items() if name.startswith(NOTE)}
    dropped = {reason.partition(": ")[2]: pair[0] for reason, pair in counts.dropped.items()}
    sets = (SetHits(name, documents.get(name, dropped.get(name, 0)), dropped.get(name, 0))
            for name in {*documents, *dropped})  # fmt: skip
    ordered = tuple(sorted(sets, key=lambda hits: (-hits.documents, hits.name)))
    return Hits(stage.result.label, str(stage.settings.get("action", "")), ordered, tuple(_examples(stage)))


def _examples(stage: StageFacts) -> list[Example]:
    """Examples of different sets before more of one."""
    found: dict[str, list[Example]] = {}
    for folder in (stage.result.folder / DROPPED_FOLDER, stage.result.folder):
        for document in Scan(shards_in(folder)):
            example = _example(document)
            if example is not None and (example.set in found or len(found) < EXAMPLES):
                found.setdefault(example.set, []).append(example)
                found[example.set] = found[example.set][:EXAMPLES]
            if len(found) >= EXAMPLES:
                break
    ordered = sorted(
        ((i, name, example) for name, group in found.items() for i, example in enumerate(group)),
        key=lambda item: item[:2],
    )
    return [example for _, _, example in ordered[:EXAMPLES]]


def _example(document: Document) -> Example | None:
    hits = _metadata(document).get(HITS_KEY)
    hit: Any = next((hit for hit in hits if isinstance(hit, Mapping)), None) if isinstance(hits, list) else None
    if hit is None:
        return None
    match = str(hit.get("text", ""))[:MATCH]
    at = document.text.find(match) if match else -1
    before = document.text[max(at - CONTEXT, 0) : at] if at >= 0 else ""
    after = document.text[at + len(match) :][:CONTEXT] if at >= 0 else ""
    share = hit.get("share")
    return Example(
        str(hit.get("set", ""))[:100], str(hit.get("item", ""))[:200],
        float(share) if isinstance(share, int | float) else None, document.id[:200], document.language[:20],
        before, match, after,
    )  # fmt: skip


def _metadata(document: Document) -> Mapping[str, Any]:
    metadata: Any = document.metadata
    return metadata if isinstance(metadata, Mapping) else {}
