"""Parquet: rows as documents, by row groups."""

from __future__ import annotations

import datetime
import decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from puyulm.data.documents import Document, write_documents

from .helpers import TEXTS, kept, read_all, read_ranges, reasons, settings_for

SENTENCES = [text for texts in TEXTS.values() for text in texts]


def table(rows: int) -> pa.Table:
    return pa.table({
        "text": [SENTENCES[i % len(SENTENCES)] for i in range(rows)],
        "stars": list(range(rows)),
        "when": [datetime.datetime(2024, 1, 2)] * rows,
        "price": [decimal.Decimal("1.50")] * rows,
        "raw": [b"\0"] * rows,
        "tags": [["a", None]] * rows,
    })  # fmt: skip


def test_rows_become_documents(tmp_path: Path) -> None:
    pq.write_table(table(3), tmp_path / "a.parquet")
    documents = kept(read_all(settings_for(tmp_path / "a.parquet"))[0])
    assert [document.id for document in documents] == ["s:a.parquet#0", "s:a.parquet#1", "s:a.parquet#2"]
    assert documents[1].metadata == {"stars": 1, "when": "2024-01-02T00:00:00", "price": "1.50", "tags": ["a", None]}
    assert [document.language for document in documents] == ["en"] * 3


def test_documents_survive_their_own_parquet(tmp_path: Path) -> None:
    own = Document("p:1", "春眠不觉晓", "zh", "p", "a/b", "2020-01-01", "MIT", {"fluent": 0.5}, {"x": 1})
    write_documents(tmp_path / "a.parquet", [own])
    assert kept(read_all(settings_for(tmp_path, source=""))[0]) == [own]


@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(0, 40_000), max_size=6))
def test_any_ranges_give_the_same_documents(tmp_path: Path, cuts: list[int]) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(table(50), path, row_group_size=7)
    settings_ = settings_for(path)
    assert read_ranges(settings_, cuts)[0] == read_ranges(settings_, [])[0]
    groups = pq.ParquetFile(path).metadata
    exact = [groups.row_group(i).column(0).dictionary_page_offset for i in range(groups.num_row_groups)]
    assert read_ranges(settings_, exact)[0] == read_ranges(settings_, [])[0]
    assert len(kept(read_ranges(settings_, cuts)[0])) == 50


def test_bad_rows_and_files(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["good", None, " ", "x" * 3000]}), tmp_path / "a.parquet")
    pq.write_table(pa.table({"content": ["x"]}), tmp_path / "b.parquet")
    (tmp_path / "c.parquet").write_bytes(b"PAR1 and nothing else")
    pq.write_table(table(40), tmp_path / "d.parquet", row_group_size=10, compression="zstd")
    data = bytearray((tmp_path / "d.parquet").read_bytes())
    start = pq.ParquetFile(tmp_path / "d.parquet").metadata.row_group(2).column(0).data_page_offset
    data[start - 60 : start + 60] = b"\xff" * 120
    (tmp_path / "d.parquet").write_bytes(data)
    outcomes, _ = read_all(settings_for(tmp_path, max_document_mb=0.002))
    assert reasons(outcomes) == [
        "quarantine: no text field", "quarantine: empty text", "quarantine: too large", "quarantine: no text field",
        "quarantine: damaged archive", "quarantine: damaged archive",
    ]  # fmt: skip
    found = [document.id for document in kept(outcomes)]
    assert found[0] == "s:a.parquet#0" and "s:d.parquet#9" in found and "s:d.parquet#30" in found
    assert "s:d.parquet#25" not in found
    assert len(kept(read_all(settings_for(tmp_path / "b.parquet", text_field="content"))[0])) == 1
