"""Parquet files: their rows as documents, a few at a time."""

from __future__ import annotations

import datetime
import decimal
import json
from collections.abc import Iterator
from typing import Any

from puyulm.data.extras import needs
from puyulm.data.format.lines import document_of_record
from puyulm.data.format.pieces import Piece
from puyulm.data.format.quarantine import QuarantineError, Reason, quarantined
from puyulm.data.format.settings import FormatSettings
from puyulm.data.pipeline.counts import Counts, Outcome

_ROWS = 64  # at a time: of long texts, what a task holds


def read_parquet(piece: Piece, settings: FormatSettings, counts: Counts) -> Iterator[Outcome]:
    """Documents out of the rows of the row groups that begin in a range of a file.

    Columns are taken as the fields of a JSON line are. A row without an id is named by its number in the file.

    Raises:
        DataError: pyarrow is not installed.
    """
    arrow, parquet = needs("pyarrow", "pyarrow"), needs("pyarrow.parquet", "pyarrow")
    given = settings.inputs[piece.input]
    try:
        with parquet.ParquetFile(piece.path) as file:
            groups = _groups(file.metadata, piece.start, piece.stop)
            if given.text_field not in file.schema_arrow.names:
                if piece.start == 0:
                    counts.add_input(piece.size)
                    names = "columns: " + ", ".join(file.schema_arrow.names)
                    yield quarantined(piece, "", Reason.NO_TEXT_FIELD, names)
                return
            for group, first_row in groups:
                yield from _rows(file, group, first_row, piece, settings, counts, arrow)
    except (arrow.ArrowException, OSError) as error:
        if piece.start == 0:  # the other ranges of the file say the same
            counts.add_input(piece.size)
            yield quarantined(piece, "", Reason.DAMAGED_ARCHIVE, str(error))


def _groups(metadata: Any, start: int, stop: int) -> list[tuple[int, int]]:
    """(row group, its first row) of those that begin in a range of the file."""
    found = []
    first_row = 0
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        columns = [group.column(i) for i in range(group.num_columns)]
        begin = min((column.dictionary_page_offset or column.data_page_offset for column in columns), default=0)
        if start <= begin < stop:
            found.append((number, first_row))
        first_row += group.num_rows
    return found


def _rows(
    file: Any, group: int, row: int, piece: Piece, settings: FormatSettings, counts: Counts, arrow: Any
) -> Iterator[Outcome]:
    try:
        for batch in file.iter_batches(batch_size=_ROWS, row_groups=[group]):
            for record in batch.to_pylist():
                yield _row(record, f"#{row}", piece, settings, counts)
                row += 1
    except (arrow.ArrowException, OSError) as error:
        counts.add_input(0)
        yield quarantined(piece, f"#{row}", Reason.DAMAGED_ARCHIVE, str(error))


def _row(record: dict[str, Any], place: str, piece: Piece, settings: FormatSettings, counts: Counts) -> Outcome:
    text = record.get(settings.inputs[piece.input].text_field)
    size = len(text.encode("utf-8", "surrogatepass")) if isinstance(text, str) else 0
    counts.add_input(size)
    try:
        if size > settings.max_item_bytes:
            raise QuarantineError(Reason.TOO_LARGE, str(text))
        plain = {name: value for name, item in record.items() if (value := _plain(item)) is not None}
        for name in ("scores", "metadata"):  # of our own files
            if isinstance(plain.get(name), str):
                plain[name] = _parsed(plain[name])
        return document_of_record(plain, place, piece, settings)
    except QuarantineError as error:
        return quarantined(piece, place, error.reason, error.sample)


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _plain(value: Any) -> Any:
    """A value as JSON can hold it; None of one that it cannot, such as bytes."""
    if isinstance(value, str | int | float) or value is None:
        return value
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, datetime.date | datetime.time | datetime.datetime):
        return value.isoformat()
    return str(value) if isinstance(value, decimal.Decimal) else None
