"""The stage's work: every piece of input through its reader, then languages, then shards."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from puyulm.data.documents import Document
from puyulm.data.format.books import read_epub, read_pdf
from puyulm.data.format.files import read_skipped, read_text, read_unsupported
from puyulm.data.format.find import find_pieces
from puyulm.data.format.language import UNKNOWN, detect_languages
from puyulm.data.format.lines import read_internevo, read_jsonl
from puyulm.data.format.packages import read_packages
from puyulm.data.format.pages import read_html
from puyulm.data.format.pieces import Piece, cut, group
from puyulm.data.format.quarantine import Reason, quarantined, skip
from puyulm.data.format.settings import FormatSettings
from puyulm.data.format.tables import read_parquet
from puyulm.data.format.trees import read_git, read_tree
from puyulm.data.format.warc import read_warc
from puyulm.data.pipeline.counts import Counts, Dropped, Outcome
from puyulm.data.pipeline.stage import StageRun, write_outcomes

Reader = Callable[[Piece, FormatSettings, Counts], Iterator[Outcome]]

TOO_SHORT = "format: too short"
OTHER_LANGUAGE = "format: another language"

_BATCH_DOCUMENTS = 256
_BATCH_CHARACTERS = 2_000_000

_READERS: Mapping[str, Reader] = {
    "warc": read_warc, "html": read_html, "jsonl": read_jsonl, "parquet": read_parquet, "text": read_text,
    "markdown": read_text, "pdf": read_pdf, "epub": read_epub, "tree": read_tree, "git": read_git,
    "internevo": read_internevo, "packages": read_packages, "skipped": read_skipped, "unsupported": read_unsupported,
}  # fmt: skip


def format_inputs(settings: FormatSettings, stage: StageRun) -> None:
    """Runs the stage: finds the input, cuts it into tasks, and writes a shard of each.

    Raises:
        DataError: A path matches nothing, or something that all documents need is missing.
    """
    tasks = plan_tasks(settings, stage.task_bytes)
    function = partial(_format_task, settings=settings, folder=stage.folder, suffix=stage.suffix)
    stage.map(stage.label, function, list(enumerate(tasks)), [sum(piece.size for piece in task) for task in tasks])


def plan_tasks(settings: FormatSettings, task_bytes: int) -> list[tuple[Piece, ...]]:
    """The pieces of all inputs, in tasks of about `task_bytes`. It depends on the files and on `task_bytes` alone."""
    parts = (part for piece in find_pieces(settings.inputs) for part in cut(piece, task_bytes))
    return group(parts, task_bytes)


def read_piece(piece: Piece, settings: FormatSettings, counts: Counts) -> Iterator[Outcome]:
    """What is in a piece of input: documents, some without a language yet, and what is quarantined."""
    if piece.size == 0 and piece.kind not in ("skipped", "git", "packages"):
        skip(counts, "empty files", 0)
        return
    try:
        yield from _READERS[piece.kind](piece, settings, counts)
    except OSError:
        if piece.start == 0:  # the other ranges of the file say the same
            counts.add_input(piece.size)
            yield quarantined(piece, "", Reason.UNREADABLE)


def with_languages(outcomes: Iterable[Outcome], settings: FormatSettings) -> Iterator[Outcome]:
    """Finds the languages of documents that have none, and drops those that the settings do not want."""
    batch: list[Outcome] = []
    size = 0
    for outcome in outcomes:
        batch.append(outcome)
        size += len(outcome.text) if isinstance(outcome, Document) else 0
        if len(batch) >= _BATCH_DOCUMENTS or size >= _BATCH_CHARACTERS:
            yield from _judged(batch, settings)
            batch, size = [], 0
    yield from _judged(batch, settings)


def _judged(batch: list[Outcome], settings: FormatSettings) -> Iterator[Outcome]:
    unknown = [outcome.text for outcome in batch if isinstance(outcome, Document) and not outcome.language]
    if settings.detector == "none":
        languages = iter([UNKNOWN] * len(unknown))
    else:
        languages = iter(detect_languages(unknown, settings.detector, settings.fasttext_model))
    for outcome in batch:
        if isinstance(outcome, Dropped):
            yield outcome
            continue
        document = outcome if outcome.language else replace(outcome, language=next(languages))
        if settings.languages and document.language not in (*settings.languages, "code"):
            yield Dropped(document, OTHER_LANGUAGE)
        elif len(document.text) < settings.min_characters:
            yield Dropped(document, TOO_SHORT)
        else:
            yield document


def _format_task(
    task: tuple[int, tuple[Piece, ...]], settings: FormatSettings, folder: Path, suffix: str
) -> dict[str, Any]:
    number, pieces = task
    counts = Counts()
    outcomes = (outcome for piece in pieces for outcome in read_piece(piece, settings, counts))
    result = write_outcomes(folder, number, with_languages(outcomes, settings), counts, suffix)
    return {**result, "input_bytes": sum(piece.size for piece in pieces)}
