"""What happens to documents with text of evaluation sets: dropped, cut or marked, with a list of what was found."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from puyulm.data.decontaminate.index import Index, load_index
from puyulm.data.decontaminate.match import Hit, find_hits
from puyulm.data.decontaminate.settings import DecontaminateSettings
from puyulm.data.documents import Document, read_documents
from puyulm.data.pipeline.counts import Counts, Dropped, Outcome
from puyulm.data.pipeline.stage import StageRun, batches, group_by_size, write_outcomes

METADATA = "contamination"
LISTED = 20  # hits of one document that are written down
EXCERPT = 200  # characters of a hit's text
_FIRST_IDEOGRAPH = "\u2e80"


def run_stage(settings: DecontaminateSettings, stage: StageRun) -> None:
    """Runs the stage: as any that looks at one document at a time, with counters of hits by set."""
    groups = group_by_size(stage.inputs, stage.task_bytes)
    index = load_index(settings)  # bad sets are refused here, and not in every worker
    for name, count in index.too_short.items():
        if count:
            print(f"{stage.label}: {count:,} texts of {name} are too short to look for", file=sys.stderr)
    task = partial(_task, settings=settings, folder=stage.folder, suffix=stage.suffix)
    sizes = [sum(path.stat().st_size for path in group) for group in groups]
    stage.map(stage.label, task, list(enumerate(groups)), sizes)


def outcomes(documents: Sequence[Document], settings: DecontaminateSettings, index: Index) -> Iterator[Outcome]:
    """One outcome a document, in order."""
    found = find_hits([document.text for document in documents], index, settings)
    for document, hits in zip(documents, found, strict=True):
        yield _outcome(document, hits, settings) if hits else document


def _task(
    task: tuple[int, Sequence[Path]], settings: DecontaminateSettings, folder: Path, suffix: str
) -> dict[str, Any]:
    number, paths = task
    transform = settings.transform()
    counts = Counts()

    def read() -> Iterator[Outcome]:
        for batch in batches(document for path in paths for document in read_documents(path)):
            counts.add_input(sum(document.num_bytes for document in batch), len(batch))
            for given, outcome in zip(batch, transform(batch), strict=True):
                document = outcome.document if isinstance(outcome, Dropped) else outcome
                # Without a hit it is the document as it came, which may have the mark of an earlier stage.
                hits = document.metadata[METADATA] if document is not given else ()
                for name in dict.fromkeys(hit["set"] for hit in hits):
                    counts.note(f"documents with text of {name}")
                yield outcome

    return write_outcomes(folder, number, read(), counts, suffix)


def _outcome(document: Document, hits: Sequence[Hit], settings: DecontaminateSettings) -> Outcome:
    listed = [_describe(document, hit, settings) for hit in hits[:LISTED]]
    marked = replace(document, metadata={**document.metadata, METADATA: listed})
    worst = max(hits, key=lambda hit: (hit.share, -hit.evaluation))
    reason = f"decontaminate: {settings.sets[worst.evaluation].name}"
    if settings.action == "mark":
        return marked
    if settings.action == "drop":
        return Dropped(marked, reason)
    stretches = _stretches(document.text, hits, settings.margin)
    text = _without(document.text, stretches)
    if len(stretches) > settings.max_cuts or len(text) < settings.min_left:
        return Dropped(marked, reason)
    return replace(marked, text=text)


def _describe(document: Document, hit: Hit, settings: DecontaminateSettings) -> dict[str, Any]:
    return {"set": settings.sets[hit.evaluation].name, "item": hit.item, "share": hit.share,
            "text": document.text[hit.start : min(hit.end, hit.start + EXCERPT)]}  # fmt: skip


def _stretches(text: str, hits: Sequence[Hit], margin: int) -> list[tuple[int, int]]:
    """What to cut: the hits with their margins, up to the next white space outside, joined where they meet."""
    joined: list[tuple[int, int]] = []
    for start, end in sorted((max(hit.start - margin, 0), min(hit.end + margin, len(text))) for hit in hits):
        start, end = _to_space(text, start, -1), _to_space(text, end, 1)
        if joined and start <= joined[-1][1]:
            joined[-1] = (joined[-1][0], max(joined[-1][1], end))
        else:
            joined.append((start, end))
    return joined


def _to_space(text: str, place: int, step: int) -> int:
    """The next end of a word, at most 32 characters away; between Chinese characters, the place itself."""
    for moved in range(place, place + 32 * step, step):
        if not 0 < moved < len(text):
            return moved
        if any(c.isspace() or c >= _FIRST_IDEOGRAPH for c in text[moved - 1 : moved + 1]):
            return moved
    return place


def _without(text: str, stretches: Sequence[tuple[int, int]]) -> str:
    """What is left, a line between the pieces."""
    edges = [0, *(edge for stretch in stretches for edge in stretch), len(text)]
    pieces = [text[start:end].strip("\n") for start, end in zip(edges[::2], edges[1::2], strict=True)]
    return "\n".join(piece for piece in pieces if piece.strip())
