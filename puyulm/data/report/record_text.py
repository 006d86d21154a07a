"""Records as text: what a terminal or a pipe shows of them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from puyulm.data.report.numbers import count, size
from puyulm.data.report.records import Record, Records
from puyulm.data.report.visible import spelled

MAX_METADATA_CHARACTERS = 200_000


def print_records(records: Records, head: int | None = None) -> Iterator[str]:
    """Yields records as plain text to print, with odd characters made visible.

    Args:
        records: Which.
        head: At most so many; None prints all.
    """
    number = 1
    while (head is None or number <= head) and (record := records.get(number)) is not None:
        lines = [f"── {number} ── {spelled(record.place)}", *(text for _, text in header(record)[1:])]
        text = spelled(record.document.text) if record.document is not None else ""
        yield "\n".join([*lines, "", text, ""] if text else [*lines, ""])
        number += 1


def header(record: Record) -> list[tuple[str, str]]:
    """What stands above a text: (style, line), the place first; odd characters spelled out."""
    lines = [("class:place", record.place)]
    document = record.document
    if document is None:
        return [*lines, ("class:dropped", f"cannot be read: {one_line(record.problem)}")]
    lines.append(("class:id", one_line(document.id)))
    facts = [document.source, document.language, document.date, document.licence,
             f"{count(len(document.text))} characters", size(document.num_bytes)]  # fmt: skip
    lines.append(("", one_line("  ·  ".join(fact for fact in facts if fact))))
    if document.url:
        lines.append(("class:url", one_line(document.url)))
    scores: Any = document.scores
    if isinstance(scores, dict) and scores:
        said = (
            f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}" for name, value in scores.items()
        )
        lines.append(("", one_line("  ".join(said))))
    if record.reason:
        lines.append(("class:dropped", one_line(f"dropped: {record.reason}")))
    return lines


def one_line(text: str) -> str:
    """Text as one line, its odd characters spelled out, at most 2,000 characters."""
    return spelled(" ".join(text[:2000].split()))


def metadata_text(record: Record) -> str:
    """Scores and metadata as indented JSON."""
    document = record.document
    if document is None:
        return ""
    content = {"licence": document.licence, "date": document.date, "url": document.url, "scores": document.scores,
               "metadata": document.metadata}  # fmt: skip
    return json.dumps(content, ensure_ascii=False, indent=2, default=str)[:MAX_METADATA_CHARACTERS]
