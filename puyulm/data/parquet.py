"""Documents in parquet files: the fields as columns, scores and metadata as JSON text."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from puyulm.data.documents import Document, document_from_record
from puyulm.data.extras import needs
from puyulm.errors import DataError

ROW_GROUP_BYTES = 16_000_000  # of text: a group is what a reader holds in memory at once
_TEXTS = ("id", "text", "language", "source", "url", "date", "licence")
_JSON = ("scores", "metadata")


class ParquetWriter:
    """Appends documents, a row group for every 16 MB of text. The same documents give the same bytes."""

    def __init__(self, path: Path) -> None:
        self._arrow = needs("pyarrow", "pyarrow")
        schema = self._arrow.schema([(name, self._arrow.large_string()) for name in _TEXTS + _JSON])
        self._file = needs("pyarrow.parquet", "pyarrow").ParquetWriter(path, schema, compression="zstd")
        self._schema = schema
        self._rows: list[Document] = []
        self._size = 0

    def write(self, document: Document) -> None:
        """Appends one document."""
        self._rows.append(document)
        self._size += len(document.text)
        if self._size >= ROW_GROUP_BYTES:
            self._flush()

    def close(self) -> None:
        """Writes what is left and the file's end."""
        self._flush()
        self._file.close()

    def _flush(self) -> None:
        if not self._rows:
            return
        columns: dict[str, list[Any]] = {name: [_clean(getattr(d, name)) for d in self._rows] for name in _TEXTS}
        columns |= {name: [_dump(getattr(d, name)) for d in self._rows] for name in _JSON}
        self._file.write_table(self._arrow.table(columns, schema=self._schema))
        self._rows, self._size = [], 0


def read_parquet(path: Path, groups: range | None = None) -> Iterator[Document]:
    """Yields the documents of a file, or of some of its row groups, one group in memory at a time.

    Files that others wrote need a column `text`; columns that are no field of a document go into its metadata, and a
    missing id becomes `name#row`.

    Raises:
        DataError: The file is no parquet file, is damaged, or has no column `text`.
    """
    parquet, arrow = needs("pyarrow.parquet", "pyarrow"), needs("pyarrow", "pyarrow")
    try:
        with parquet.ParquetFile(path) as file:
            if "text" not in file.schema_arrow.names:
                raise DataError(f"{path} has no column 'text': its columns are {', '.join(file.schema_arrow.names)}")
            rows = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
            for group in groups if groups is not None else range(len(rows)):
                first = sum(rows[:group])
                for row, record in enumerate(file.read_row_group(group).to_pylist(), start=first):
                    yield _document(record, path, row)
    except (arrow.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read as parquet ({str(error).splitlines()[0]})") from error


def num_row_groups(path: Path) -> int:
    """Row groups of a file: the pieces that it can be split into."""
    parquet, arrow = needs("pyarrow.parquet", "pyarrow"), needs("pyarrow", "pyarrow")
    try:
        with parquet.ParquetFile(path) as file:
            return int(file.num_row_groups)
    except (arrow.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read as parquet ({str(error).splitlines()[0]})") from error


def _document(record: dict[str, Any], path: Path, row: int) -> Document:
    for name in _JSON:
        value = record.get(name)
        if isinstance(value, str):
            try:
                record[name] = json.loads(value) if value else {}
            except ValueError as error:
                raise DataError(f"{path}, row {row}: {name} is not JSON ({error})") from error
        elif not isinstance(value, dict):
            record.pop(name, None)
    known = {name: value for name, value in record.items() if value is not None}
    known["id"] = str(known.get("id") or f"{path.name}#{row}")
    return document_from_record(known, f"{path}, row {row}")


def _clean(text: str) -> str:
    return text.encode("utf-8", "replace").decode()  # parquet holds UTF-8 only; half a surrogate pair becomes "?"


def _dump(value: Any) -> str:
    return json.dumps(dict(value), ensure_ascii=True, separators=(",", ":")) if value else ""
