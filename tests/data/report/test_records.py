"""Records by number: in every format, forward and back, as far as asked and no further."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest

from puyulm.data.documents import Document, write_documents
from puyulm.data.report.record_text import header, metadata_text, print_records
from puyulm.data.report.records import LineShard, Records, open_records
from puyulm.data.shards import tokenize_documents
from puyulm.errors import DataError
from tests.data.conftest import ByteTokenizer
from tests.data.report.fake_run import make_run

FORMATS = ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.parquet"]


def documents(number: int, name: str = "d") -> list[Document]:
    return [
        Document(f"{name}{i}", f"text {i} 文字\n" * (i % 7 + 1), "en", "web", metadata={"i": i}) for i in range(number)
    ]


class ByteDecoder(ByteTokenizer):
    def decode(self, ids: list[int]) -> str:
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", "replace")


@pytest.mark.parametrize("name", FORMATS)
def test_any_order_gives_the_documents(tmp_path: Path, name: str) -> None:
    made = documents(90)
    write_documents(tmp_path / name, made)
    records = open_records(tmp_path / name)
    generator = random.Random(1)
    for number in [*generator.sample(range(1, 91), 40), *range(90, 0, -9), *range(1, 91)]:
        record = records.get(number)
        assert record is not None and record.document == made[number - 1] and record.number == number
    assert records.get(91) is None and records.get(0) is None and records.complete and records.seen == 90


def test_parquet_groups_are_read_alone(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("puyulm.data.parquet.ROW_GROUP_BYTES", 40)
    made = documents(40)
    write_documents(tmp_path / "a.parquet", made)
    read: list[range] = []
    from puyulm.data import parquet

    original = parquet.read_parquet

    def counting(path: Path, groups: range | None = None):
        read.append(groups if groups is not None else range(0))
        return original(path, groups)

    monkeypatch.setattr(parquet, "read_parquet", counting)
    records = open_records(tmp_path / "a.parquet")
    record = records.get(39)
    assert record is not None and record.document == made[38] and record.place == "a.parquet, row 38"
    assert len(read) == 1 and read[0].start > 10  # the groups before were left out
    assert records.get(2).document == made[1]  # type: ignore[union-attr]


def test_only_what_is_asked_for_is_read(tmp_path: Path) -> None:
    lines = [json.dumps({"id": str(i), "text": "x" * 1000}) for i in range(5000)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    records = open_records(tmp_path / "a.jsonl")
    assert records.get(3).document.id == "2"  # type: ignore[union-attr]
    assert (records.seen, records.complete) == (3, False)
    for number in range(1, 1001):
        records.get(number)
    assert len(records._cache) <= 64  # whatever was looked at


def test_going_on_reads_each_line_once(tmp_path: Path, monkeypatch) -> None:
    write_documents(tmp_path / "a.jsonl.gz", documents(200))
    looked = []
    original = LineShard.read
    monkeypatch.setattr(
        LineShard, "read", lambda self, position, number: looked.append(position) or original(self, position, number)
    )
    records = open_records(tmp_path / "a.jsonl.gz")
    shard = records._shard(0)
    assert isinstance(shard, LineShard)
    for number in range(1, 201):
        records.get(number)
    assert len(looked) == 200 and shard._read._file is None  # the second handle was never needed
    records.get(1)
    assert shard._read._file is not None


def test_lines_that_are_no_documents(tmp_path: Path) -> None:
    lines = [b'{"id":"a","text":"one"}', b"", b"not json", b'{"text":5,"id":"x"}', b'["a"]', b"\xff\xfe",
             b'{"id":"z","text":"","metadata":7,"other":1}', b"[" * 100_000, b'{"id":"b","text":"two"}']  # fmt: skip
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
    records = open_records(tmp_path / "a.jsonl")
    found = [record for number in range(1, 9) if (record := records.get(number)) is not None]
    assert [record.document.text for record in found if record.document is not None] == ["one", "two"]
    assert [record.place for record in found][1] == "a.jsonl, line 3"
    assert all(record.problem for record in found[1:-1])
    assert "cannot be read: a.jsonl, line 3: not JSON" in header(found[1])[1][1]
    assert "".join(print_records(records)).count("cannot be read") == 6


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst"])
def test_a_truncated_file_gives_what_it_has(tmp_path: Path, name: str) -> None:
    made = [Document(str(i), random.Random(i).randbytes(600).hex(), "en", "web") for i in range(400)]
    write_documents(tmp_path / name, made)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    records = open_records(tmp_path / name)
    while records.more():
        pass
    last = records.get(records.seen)
    assert last is not None and "damaged after line" in last.problem
    before = records.get(records.seen - 1)
    assert records.seen > 50 and before is not None and before.document == made[before.number - 1]


def test_files_that_cannot_be_opened_are_records(tmp_path: Path) -> None:
    (tmp_path / "0.parquet").write_bytes(b"no parquet")
    (tmp_path / "1.jsonl.gz").write_bytes(b"no gzip")
    write_documents(tmp_path / "2.jsonl", documents(1))
    records = open_records(tmp_path)
    problems = [records.get(number).problem for number in (1, 2)]  # type: ignore[union-attr]
    assert "cannot be read as parquet" in problems[0] and problems[1]
    assert records.get(3).document == documents(1)[0]  # type: ignore[union-attr]


def test_reasons(tmp_path: Path) -> None:
    made = [replace(d, metadata={"dropped": f"gopher: {'few words' if i % 3 else 'Symbols'}"})
            for i, d in enumerate(documents(30))]  # fmt: skip
    write_documents(tmp_path / "01-clean" / "dropped" / "00000.jsonl.zst", made)
    write_documents(tmp_path / "01-clean" / "00000.jsonl.zst", documents(2, "kept"))
    records = open_records(tmp_path / "01-clean", reason="symbols")
    assert records.get(10).document == made[27] and records.get(11) is None  # type: ignore[union-attr]
    assert records.get(2).reason == "gopher: Symbols"  # type: ignore[union-attr]
    assert open_records(tmp_path / "01-clean", dropped=True).get(30).document == made[29]  # type: ignore[union-attr]
    assert open_records(tmp_path / "01-clean").get(1).document.id == "kept0"  # type: ignore[union-attr]


def test_runs_and_token_shards(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "corpus", 200, 2)
    first = open_records(folder).get(1)
    assert first is not None and first.place.startswith("06-decontaminate/00000.jsonl.zst")
    dropped = open_records(folder, dropped=True)
    while dropped.more():
        pass
    reasons = {dropped.get(number).reason.partition(":")[0] for number in range(1, dropped.seen + 1)}  # type: ignore[union-attr]
    assert {"language", "gopher", "dedup", "quality"} <= reasons
    ids = open_records(folder / "07-tokenize").get(1)
    text = open_records(folder / "07-tokenize", tokenizer=ByteDecoder()).get(1)  # type: ignore[arg-type]
    assert ids is not None and text is not None and ids.document is not None and text.document is not None
    assert ids.place == "tokens/code/train, document 0" and ids.document.text.startswith("1 105 117")
    assert text.document.text.startswith("from __future__")
    assert text.document.metadata["tokens"] == len(text.document.text.encode()) + 1
    with pytest.raises(DataError, match="token shards, which have none"):
        open_records(folder / "07-tokenize", dropped=True)


def test_another_tokenizer_is_refused(tmp_path: Path) -> None:
    tokenize_documents(documents(3), ByteTokenizer(), tmp_path / "tokens")
    with pytest.raises(DataError, match="another tokenizer"):
        open_records(tmp_path / "tokens", tokenizer=ByteDecoder(300))  # type: ignore[arg-type]


def test_nothing_to_look_at(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    for path, message in (
        (tmp_path / "b", "nothing at"),
        (tmp_path / "a.txt", "no shard of documents"),
        (tmp_path, "no doc"),
    ):
        with pytest.raises(DataError, match=message):
            open_records(path)
    with pytest.raises(DataError, match="no dropped documents"):
        open_records(tmp_path, reason="x")


def test_records_as_text() -> None:
    document = Document(
        "a\x1b[2J", "x\x07y\u202ez", "en", "we\nb", "http://x", "2020", "CC0", {"fluency": 0.98765, "n": 3},
        {"dropped": "gopher: few\x9b words", "k": "\ud800"},
    )  # fmt: skip
    from puyulm.data.report.records import Record

    record = Record(7, "00000.jsonl", document)
    lines = [line for _, line in header(record)]
    assert lines == [
        "00000.jsonl", "a[U+001B][2J", "we b · en · 2020 · CC0 · 5 characters · 7 B", "http://x",
        "fluency 0.988 n 3", "dropped: gopher: few[U+009B] words",
    ]  # fmt: skip
    assert json.loads(metadata_text(record))["metadata"]["dropped"] == "gopher: few\x9b words"

    class One:
        def scan(self):
            yield 0, 0

        def read(self, position: int, number: int) -> Record:
            return record

        def close(self) -> None:
            pass

    [text] = print_records(Records([One]))
    assert "x[U+0007]y[U+202E]z" in text and "\x1b" not in text
