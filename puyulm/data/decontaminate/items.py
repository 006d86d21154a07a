"""Evaluation sets as they are published: items out of JSON lines, JSON, CSV and parquet files."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from puyulm.data.decontaminate.settings import EvalSet
from puyulm.data.documents import CompressionError, open_compressed
from puyulm.data.extras import needs
from puyulm.errors import DataError

USUAL_FIELDS = ("question", "Question", "problem", "prompt", "input", "instruction", "text")
_SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")


@dataclass(frozen=True)
class Item:
    """One item: where it stands (`file#row`), and the texts of its fields."""

    name: str
    fields: tuple[str, ...]


def read_items(evaluation: EvalSet) -> Iterator[Item]:
    """The items of a set, in the order of its paths and of the files' names.

    Raises:
        DataError: A file is missing, damaged or of another kind, or none of its records has one of the fields.
    """
    for path in files_of(evaluation):
        found = 0
        seen: dict[str, None] = {}
        for row, record in enumerate(_records(path, evaluation.fields)):
            fields = tuple(_fields(record, evaluation.fields))
            seen.update(dict.fromkeys(record))
            found += bool(fields)
            if fields:
                yield Item(f"{path.name}#{row}", fields)
        if not found:
            wanted = ", ".join(evaluation.fields or USUAL_FIELDS)
            found_names = ", ".join(map(str, list(seen)[:12])) or "nothing"
            raise DataError(
                f"{path}: no record has {wanted}; they have {found_names}: give the fields of {evaluation.name}"
            )


def files_of(evaluation: EvalSet) -> list[Path]:
    """The files of a set. Raises DataError when a path is missing or holds none."""
    files: list[Path] = []
    for path in evaluation.paths:
        inside = sorted(p for p in path.rglob("*") if p.is_file() and _kind(p)) if path.is_dir() else [path]
        if not inside or not inside[0].is_file():
            what = "holds no .jsonl, .json, .csv or .parquet file" if path.is_dir() else "is missing"
            raise DataError(f"{path} {what}: give the files of the evaluation set {evaluation.name}")
        files += inside
    return files


def _kind(path: Path) -> str:
    name = path.name.removesuffix(".gz").removesuffix(".zst")
    return next((suffix for suffix in _SUFFIXES if name.endswith(suffix)), "")


def _records(path: Path, fields: tuple[str, ...]) -> Iterator[Mapping[str, Any]]:
    kind = _kind(path)
    if kind == ".parquet":
        yield from _parquet(path)
        return
    if not kind:
        raise DataError(f"{path}: give .jsonl, .json, .csv or .parquet")
    try:
        with open_compressed(path, "rb") as file:
            yield from {".jsonl": _json_lines, ".json": _json}[kind](file) if kind != ".csv" else _csv(file, fields)
    except (ValueError, OSError, EOFError, CompressionError, csv.Error, RecursionError) as error:
        raise DataError(f"{path} cannot be read as {kind} ({error}): check the file") from error


def _json_lines(file: IO[bytes]) -> Iterator[Mapping[str, Any]]:
    for number, line in enumerate(file, start=1):
        if line.strip():
            record = json.loads(line)
            if not isinstance(record, dict):
                raise ValueError(f"line {number} is no object")
            yield record


def _json(file: IO[bytes]) -> Iterator[Mapping[str, Any]]:
    """A list of objects; or an object, of which the lists of objects are taken, or it itself."""
    content = json.load(file)
    lists = [content] if isinstance(content, list) else []
    if isinstance(content, dict):
        lists = [v for v in content.values() if isinstance(v, list) and v and isinstance(v[0], dict)] or [[content]]
    yield from (record for records in lists for record in records if isinstance(record, dict))


def _csv(file: IO[bytes], fields: tuple[str, ...]) -> Iterator[Mapping[str, Any]]:
    text = io.TextIOWrapper(file, encoding="utf-8-sig", newline="")
    csv.field_size_limit(1 << 27)
    if fields and all(field.isdecimal() for field in fields):
        yield from ({str(i): cell for i, cell in enumerate(row)} for row in csv.reader(text))
    else:
        yield from csv.DictReader(text)


def _parquet(path: Path) -> Iterator[Mapping[str, Any]]:
    parquet, arrow = needs("pyarrow.parquet", "pyarrow"), needs("pyarrow", "pyarrow")
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                yield from batch.to_pylist()
    except (arrow.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read as parquet ({str(error).splitlines()[0]})") from error


def _fields(record: Mapping[str, Any], fields: Iterable[str]) -> Iterator[str]:
    wanted = tuple(fields) or tuple(name for name in USUAL_FIELDS if record.get(name))[:1]
    for name in wanted:
        text = "\n".join(_texts(record, name.split(".")))
        if text.strip():
            yield text


def _texts(value: Any, way: list[str]) -> Iterator[str]:
    """The strings and numbers at the end of a way of keys; lists on it are gone through."""
    if isinstance(value, list):
        for item in value:
            yield from _texts(item, way)
    elif way:
        if isinstance(value, Mapping):
            yield from _texts(value.get(way[0]), way[1:])
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _texts(item, [])
    elif value is not None and not isinstance(value, bool):
        yield str(value)
