"""Documents' files: whole or not there, the same bytes every time, and clear errors for damage."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from puyulm.data.documents import Document, document_from_line, read_documents, replacing, split_text, write_documents
from puyulm.errors import DataError

POEM = Document("p:1", "春眠不觉晓\n", "zh", "poems", "a/b", "2020-01-01", "MIT", {"fluent": 0.5}, {"script": "Hans"})
PLAIN = Document("p:2", 'quoted "text"\u2028\ud800 end', "en", "texts")


@pytest.mark.parametrize("name", ["d.jsonl", "d.jsonl.gz", "d.jsonl.zst"])
def test_documents_survive_the_file(tmp_path: Path, name: str) -> None:
    assert write_documents(tmp_path / name, iter([POEM, PLAIN])) == 2
    assert list(read_documents(tmp_path / name)) == [POEM, PLAIN]


def test_same_documents_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a.jsonl.gz", "b.jsonl.gz"):
        write_documents(tmp_path / name, [POEM, PLAIN])
    assert (tmp_path / "a.jsonl.gz").read_bytes() == (tmp_path / "b.jsonl.gz").read_bytes()


def test_a_failed_write_leaves_the_earlier_file(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl.gz"
    write_documents(path, [POEM])

    def failing():
        yield PLAIN
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        write_documents(path, failing())
    assert list(read_documents(path)) == [POEM]
    assert [p.name for p in tmp_path.iterdir()] == ["d.jsonl.gz"]


def test_truncated_gzip_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl.gz"
    write_documents(path, [POEM] * 50)
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(DataError, match=r"d\.jsonl\.gz is damaged after line \d+"):
        list(read_documents(path))


@pytest.mark.parametrize("line", ["[" * 100_000, '{"id": "a", "metadata": 3}', '{"id": "a", "scores": [1]}'])
def test_lines_that_are_no_document(line: str) -> None:
    with pytest.raises(DataError, match=r"f, line 3: .*(not JSON|must be an object)"):
        document_from_line(line, "f, line 3")


def test_truncated_and_damaged_zstandard(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl.zst"
    write_documents(path, [POEM] * 50)
    whole = path.read_bytes()
    for damaged in (whole[:-5], whole[:20], whole[:30] + b"xxxx" + whole[34:], b"plain text"):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"d\.jsonl\.zst is damaged"):
            list(read_documents(path))


def test_not_gzip_at_all(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl.gz").write_bytes(b"plain text")
    with pytest.raises(DataError, match="damaged"):
        list(read_documents(tmp_path / "d.jsonl.gz"))


@pytest.mark.parametrize(
    ("line", "message"),
    [("{", "line 2: not JSON"), ("[1]", "line 2: .* found list"), ('{"text": "a"}', "line 2: id must be a string"),
     ('{"id": "a", "text": 3}', "line 2: text must be a string")],
)  # fmt: skip
def test_a_bad_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "d.jsonl").write_text('{"id": "ok", "text": "t"}\n' + line + "\n")
    with pytest.raises(DataError, match=message):
        list(read_documents(tmp_path / "d.jsonl"))


def test_missing_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="puyu data collect"):
        list(read_documents(tmp_path / "none.jsonl"))


def test_unknown_keys_are_kept_as_metadata(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_text(json.dumps({"id": "a", "text": "t", "stars": 5, "metadata": {"x": 1}}) + "\n\n")
    [document] = read_documents(tmp_path / "d.jsonl")
    assert document.metadata == {"stars": 5, "x": 1}


def test_gzip_has_no_time_in_it(tmp_path: Path) -> None:
    write_documents(tmp_path / "d.jsonl.gz", [POEM])
    with gzip.open(tmp_path / "d.jsonl.gz") as file:
        file.read()
        assert file.mtime == 0


def test_replacing_removes_what_failed(tmp_path: Path) -> None:
    with pytest.raises(KeyError), replacing(tmp_path / "new" / "file") as partial:
        partial.write_text("half")
        raise KeyError
    assert list((tmp_path / "new").iterdir()) == []


@given(st.text(alphabet="ab\n春 ", max_size=200), st.integers(1, 40))
def test_parts_are_the_work(text: str, max_bytes: int) -> None:
    parts = split_text(text, max_bytes, re.compile("^a", re.MULTILINE))
    assert "".join(parts) == text
    assert all(parts)


def test_parts_begin_at_headings_and_stay_short() -> None:
    scene = "SCENE {}.\n" + "word word word word\n\n" * 20
    parts = split_text(
        "Title\n\nACT I.\n" + "".join(scene.format(i) for i in range(5)), 500, re.compile(r"^SCENE", re.M)
    )
    assert len(parts) == 5
    assert parts[0].startswith("Title") and all(part.startswith("SCENE") for part in parts[1:])
    parts = split_text("word word word word\n\n" * 200, 500)
    assert len(parts) == 9 and max(map(len, parts)) <= 500
