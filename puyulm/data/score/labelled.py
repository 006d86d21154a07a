"""Labelled texts: reading them, and splitting them by their hashes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from puyulm.data.documents import open_compressed, replacing, text_hash
from puyulm.errors import DataError

MIN_TEXTS = 20  # of each label


@dataclass(frozen=True)
class Labelled:
    """A text with what a person, or a rule, says of it.

    Attributes:
        text: The text.
        label: Its class.
        language: As in `Document`; of code, the programming language. Empty when unknown.
        group: Texts of one group stay together when texts are split: a text and what was made out of it. Empty: the
            text stands alone.
        id: Of the document that it comes from; may be empty.
    """

    text: str
    label: str
    language: str = ""
    group: str = ""
    id: str = ""


@dataclass(frozen=True)
class Split:
    """Labelled texts in three parts; about 80, 10 and 10 % of the groups."""

    train: list[Labelled]
    calibration: list[Labelled]
    held_out: list[Labelled]


def read_labelled(path: Path, unlabelled: bool = False) -> list[Labelled]:
    """Reads JSON lines with "text" and "label", and where known "language", "group" and "id"; also .gz and .zst.

    Args:
        path: The file.
        unlabelled: Lines whose label is null are left out; otherwise they are errors.

    Raises:
        DataError: The file is missing, or a line is wrong; the message names it.
    """
    if not path.is_file():
        raise DataError(f"no labelled texts at {path}: check the path")
    rows = []
    with open_compressed(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                record: Any = json.loads(line)
            except ValueError as error:
                raise DataError(f"{path}, line {number}: not JSON ({error})") from None
            if not isinstance(record, dict) or not isinstance(record.get("text"), str):
                raise DataError(f'{path}, line {number}: needs an object with "text" and "label"')
            label = record.get("label")
            if label is None and unlabelled:
                continue
            if isinstance(label, bool) or not isinstance(label, str | int) or label == "":
                raise DataError(f'{path}, line {number}: "label" must be a word or a whole number, found {label!r}')
            rest = {name: str(record.get(name) or "") for name in ("language", "group", "id")}
            rows.append(Labelled(record["text"], str(label), **rest))
    return rows


def write_labelled(path: Path, rows: Iterable[Labelled]) -> None:
    """Writes labelled texts as JSON lines."""
    with replacing(path) as partial, open_compressed(partial, "wb", path.name) as file:
        for row in rows:
            record = {"id": row.id, "text": row.text, "language": row.language, "group": row.group, "label": row.label}
            kept = {name: value for name, value in record.items() if value or name in ("text", "label")}
            file.write(json.dumps(kept, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n")


def without_repeats(rows: Iterable[Labelled]) -> tuple[list[Labelled], int, int]:
    """Each text once, in the order of first appearance; texts with two different labels are left out.

    Repeats would stand on both sides of a split and flatter the held-out figures.

    Returns:
        The texts, the number of repeats left out, and the number of texts with contradicting labels.
    """
    first: dict[str, Labelled] = {}
    contradicting: set[str] = set()
    repeats = 0
    for row in rows:
        key = text_hash(row.text)
        repeats += key in first
        if first.setdefault(key, row).label != row.label:
            contradicting.add(key)
    return [row for key, row in first.items() if key not in contradicting], repeats, len(contradicting)


def split(rows: Sequence[Labelled], seed: int = 0) -> Split:
    """Splits texts by the hash of their group, or of the text: the same text always goes to the same part.

    Every label has texts in each part: where chance gave it none, the part gets the label's text with the lowest hash.

    Raises:
        DataError: A label has under 20 texts, or there are not two labels.
    """
    labels = sorted({row.label for row in rows})
    counts = {label: sum(row.label == label for row in rows) for label in labels}
    if len(labels) < 2:
        raise DataError(f"a scorer learns to tell labels apart, and the texts have {len(labels)} of them: give two")
    for label, count in counts.items():
        if count < MIN_TEXTS:
            raise DataError(f"only {count} texts are labelled {label!r}: give at least {MIN_TEXTS} of each label")
    ordered = sorted(((_fraction(row, seed), text_hash(row.text), row) for row in rows), key=lambda item: item[:2])
    parts = [0 if fraction < 0.1 else 1 if fraction < 0.2 else 2 for fraction, _, _ in ordered]
    for part in (0, 1):
        for label in labels:
            if not any(p == part and row.label == label for p, (_, _, row) in zip(parts, ordered, strict=True)):
                spare = [i for i, (_, _, row) in enumerate(ordered) if parts[i] == 2 and row.label == label]
                parts[spare[0]] = part
    held_out, calibration, train = (
        [row for p, (_, _, row) in zip(parts, ordered, strict=True) if p == part] for part in (0, 1, 2)
    )
    return Split(train, calibration, held_out)


def draw(key: str, seed: int) -> int:
    """A 64-bit number that depends on a key and a seed alone: what is lowest is a random sample."""
    digest = hashlib.blake2b(f"{seed}:{key}".encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def _fraction(row: Labelled, seed: int) -> float:
    """A number in 0..1 that depends on the group (or the text) and the seed alone."""
    return draw(row.group or text_hash(row.text), seed) / 2.0**64
