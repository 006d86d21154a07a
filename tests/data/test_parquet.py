"""Parquet files of documents: ours round-trip, those of others are taken as far as they make sense."""

from __future__ import annotations

from pathlib import Path

import pytest

from puyulm.data import parquet
from puyulm.data.documents import Document, read_documents, write_documents
from puyulm.errors import DataError

arrow = pytest.importorskip("pyarrow")

DOCUMENTS = [
    Document("p:1", "春眠不觉晓\n", "zh", "poems", "a/b", "2020-01-01", "MIT", {"fluent": 0.5}, {"script": "Hans"}),
    Document("p:2", 'quoted "text"', "en", "texts"),
]


def test_documents_survive(tmp_path: Path) -> None:
    for name in ("a.parquet", "b.parquet"):
        assert write_documents(tmp_path / name, DOCUMENTS) == 2
    assert list(read_documents(tmp_path / "a.parquet")) == DOCUMENTS
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()


def test_row_groups_are_pieces_of_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "ROW_GROUP_BYTES", 10)
    documents = [Document(f"d{i}", "0123456789"[: i % 7], "en", "s") for i in range(50)]
    path = tmp_path / "d.parquet"
    write_documents(path, documents)
    groups = parquet.num_row_groups(path)
    assert groups > 5
    assert [d for g in range(groups) for d in parquet.read_parquet(path, range(g, g + 1))] == documents


def test_files_of_others(tmp_path: Path) -> None:
    from pyarrow import parquet as writer

    path = tmp_path / "other.parquet"
    writer.write_table(arrow.table({"text": ["a", "b"], "stars": [1, None], "url": ["u", None]}), path)
    first, second = read_documents(path)
    assert (first.id, first.text, first.url, first.metadata) == ("other.parquet#0", "a", "u", {"stars": 1})
    assert (second.id, second.url, second.metadata) == ("other.parquet#1", "", {})


def test_without_text(tmp_path: Path) -> None:
    from pyarrow import parquet as writer

    writer.write_table(arrow.table({"content": ["a"]}), tmp_path / "x.parquet")
    with pytest.raises(DataError, match="no column 'text': its columns are content"):
        list(read_documents(tmp_path / "x.parquet"))
    (tmp_path / "y.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match="cannot be read as parquet"):
        list(read_documents(tmp_path / "y.parquet"))


def test_scores_of_others_that_are_no_json(tmp_path: Path) -> None:
    from pyarrow import parquet as writer

    writer.write_table(arrow.table({"text": ["a", "b"], "scores": ["", "high"]}), tmp_path / "x.parquet")
    with pytest.raises(DataError, match=r"x\.parquet, row 1: scores is not JSON"):
        list(read_documents(tmp_path / "x.parquet"))
