"""Reading evaluation sets in the forms in which they are published."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from puyulm.data.decontaminate.items import read_items
from puyulm.data.decontaminate.settings import EvalSet
from puyulm.errors import DataError

ROWS = [{"question": "How old is she?", "answer": "42 years\n#### 42"}, {"question": "Und er?", "answer": ""}]


def fields(path: Path, *wanted: str) -> list[tuple[str, ...]]:
    return [item.fields for item in read_items(EvalSet("s", (path,), wanted))]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.parquet", "a.jsonl.gz", "a.json.zst"])
def test_all_kinds_of_files(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    if ".jsonl" in name:
        path.write_bytes(gzip.compress(lines.encode()) if name.endswith("gz") else lines.encode())
    elif name.endswith(".zst"):
        import zstandard

        path.write_bytes(zstandard.compress(json.dumps(ROWS).encode()))
    elif name.endswith(".json"):
        path.write_text(json.dumps(ROWS))
    elif name.endswith(".csv"):
        path.write_text('\ufeffquestion,answer\nHow old is she?,"42 years\n#### 42"\nUnd er?,\n', encoding="utf-8")
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    assert fields(path, "question", "answer") == [("How old is she?", "42 years\n#### 42"), ("Und er?",)]
    assert fields(path) == [("How old is she?",), ("Und er?",)]  # the usual field
    assert [item.name for item in read_items(EvalSet("s", (path,)))] == [f"{name}#0", f"{name}#1"]


def test_nested_fields_lists_and_numbers(tmp_path: Path) -> None:
    row = {
        "q": {"stem": "Why?", "choices": [{"text": "so"}, {"text": "thus"}]},
        "turns": ["one", "two"],
        "n": 7,
        "x": None,
    }
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    assert fields(tmp_path, "q.stem", "q.choices.text", "turns", "n", "x", "none") == [
        ("Why?", "so\nthus", "one\ntwo", "7")
    ]


def test_a_list_inside_an_object(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"canary": "x", "examples": [{"input": "a b"}, {"input": "c d"}]}))
    assert fields(tmp_path) == [("a b",), ("c d",)]
    (tmp_path / "a.json").write_text(json.dumps({"input": "alone"}))
    assert fields(tmp_path) == [("alone",)]


def test_csv_without_a_header(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('"Two, or three?",x\nFour?,y\n')
    assert fields(tmp_path, "0") == [("Two, or three?",), ("Four?",)]


def test_folders_are_read_in_order(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl", "sub/c.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps({"question": name}))
    (tmp_path / "README.md").write_text("no item")
    assert fields(tmp_path) == [("a.jsonl",), ("b.jsonl",), ("sub/c.jsonl",)]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"question": "a"}\n{"quest', "cannot be read as .jsonl"),
        ("a.jsonl", b"[1]\n", "line 1 is no object"),
        ("a.json", b"{", "cannot be read as .json"),
        ("a.json.gz", b"junk", "cannot be read as .json"),
        ("a.csv", b"\xff\xfe", "cannot be read as .csv"),
        ("a.parquet", b"junk", "cannot be read as parquet"),
        ("a.jsonl", b'{"other": "a"}\n', "no record has question, .*they have other"),
        ("a.json", b"[]", "they have nothing"),
        ("a.txt", b"text", "holds no"),
    ],
)
def test_damage_is_one_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        fields(tmp_path)
    assert "\n" not in str(caught.value)


def test_missing_files_and_other_kinds(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is missing"):
        fields(tmp_path / "none.jsonl")
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(DataError, match=r"give \.jsonl"):
        fields(tmp_path / "a.txt")
    with pytest.raises(DataError, match="no files"):
        EvalSet("s", ())
    with pytest.raises(DataError, match="a name"):
        EvalSet(" ", (tmp_path,))


@given(st.binary(max_size=200), st.sampled_from(["a.jsonl", "a.json", "a.csv", "a.jsonl.gz"]))
def test_any_bytes_are_items_or_one_error(tmp_path_factory: pytest.TempPathFactory, content: bytes, name: str) -> None:
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(content)
    try:
        assert all(item.fields for item in read_items(EvalSet("s", (path,))))
    except DataError as error:
        assert "\n" not in str(error)


def test_a_ragged_csv_without_the_fields(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("one,two\nx,y,z\n")
    with pytest.raises(DataError, match="no record has question; they have one, two"):
        fields(tmp_path / "a.csv", "question")
