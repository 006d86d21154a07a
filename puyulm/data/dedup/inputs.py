"""The input of a stage cut into tasks, and read with the places of its documents."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from puyulm.data.dedup.settings import ParagraphSettings, SubstringSettings
from puyulm.data.documents import Document, read_documents
from puyulm.data.pipeline.counts import Counts, Dropped, Outcome
from puyulm.data.pipeline.stage import StageRun, batches, group_by_size


@dataclass(frozen=True)
class Group:
    """The input of a task.

    Attributes:
        number: Of the task.
        first: Number of its first shard among all of the input.
        paths: Its shards.
    """

    number: int
    first: int
    paths: tuple[Path, ...]


def groups_of(stage: StageRun) -> tuple[list[Group], list[int]]:
    """The input cut into tasks, and the bytes of each."""
    groups: list[Group] = []
    sizes = []
    first = 0
    for number, paths in enumerate(group_by_size(stage.inputs, stage.task_bytes)):
        groups.append(Group(number, first, tuple(paths)))
        sizes.append(sum(path.stat().st_size for path in paths))
        first += len(paths)
    return groups, sizes


def numbered_batches(path: Path) -> Iterator[tuple[int, list[Document]]]:
    """A shard's documents some at a time, with the row of the first."""
    row = 0
    for batch in batches(read_documents(path)):
        yield row, batch
        row += len(batch)


def folded(text: str, ignore_case: bool = True, ignore_space: bool = True) -> str:
    """A text as it is compared: in lower case, and with single spaces between its words."""
    if ignore_case:
        text = text.lower()
    return " ".join(text.split()) if ignore_space else text


def shortened(
    document: Document,
    text: str,
    limits: ParagraphSettings | SubstringSettings,
    counts: Counts,
    what: Literal["paragraphs", "passages"],
    number: int,
) -> Outcome:
    """A document with the text that is left of it, or dropped as it came if that is too little.

    Args:
        document: As it came.
        text: What is left.
        limits: Tell what is too little.
        counts: Receives what was removed from documents that stay.
        what: Was removed.
        number: How many.
    """
    removed = len(document.text) - len(text)
    if len(text) < limits.min_left or removed > limits.max_removed * len(document.text) or not text.strip():
        return Dropped(document, f"dedup: {what}")
    counts.note("documents cut")
    counts.note(f"{what} removed", number)
    counts.note("characters removed", removed)
    return replace(document, text=text)
