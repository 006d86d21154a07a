"""Lines of JSON and of tokens: every line once in any ranges, and nothing lost silently."""

from __future__ import annotations

import gzip
import json
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from puyulm.data.documents import Document, write_documents
from puyulm.data.format import lines
from puyulm.data.format.lines import read_lines
from puyulm.errors import DataError, TokenizerError
from tests.data.conftest import ByteTokenizer

from .helpers import TEXTS, kept, read_all, read_ranges, reasons, settings_for

relaxed = settings(deadline=None, max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])


def write_lines(path: Path, *records: Any) -> Path:
    raw = b"".join(r if isinstance(r, bytes) else json.dumps(r, ensure_ascii=False).encode() + b"\n" for r in records)
    path.write_bytes(raw)
    return path


@relaxed
@given(
    data=st.lists(st.binary(max_size=30), max_size=8).map(b"\n".join),
    cuts=st.lists(st.integers(0, 300), max_size=6),
    block=st.sampled_from([1, 7, 1 << 20]),
)
def test_any_ranges_give_every_line_once(tmp_path: Path, data: bytes, cuts: list[int], block: int) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lines, "_BLOCK", block)
        ends = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
        found = [line for start, stop in pairwise(ends)
                 for line in read_lines(path, start, stop, 1000)]  # fmt: skip
    expected = []
    start = 0
    for line in data.split(b"\n"):  # what a line is, told otherwise
        content = line.removeprefix(b"\xef\xbb\xbf") if start == 0 else line
        if content.strip():
            expected.append((start, content))
        start += len(line) + 1
    assert [(line.start, line.data) for line in found] == expected


@relaxed
@given(cuts=st.lists(st.integers(0, 2000), max_size=6))
def test_any_ranges_give_the_same_documents(tmp_path: Path, cuts: list[int]) -> None:
    records: list[Any] = [{"text": text, "n": i} for texts in TEXTS.values() for i, text in enumerate(texts)]
    path = write_lines(tmp_path / "a.jsonl", *records[:9], b"{broken\n", b"\n", b"[1]\r\n", *records[9:])
    settings_ = settings_for(path)
    outcomes, counts = read_ranges(settings_, cuts)
    assert outcomes == read_ranges(settings_, [])[0]
    assert counts.documents_in == len(records) + 2 and counts.bytes_in == path.stat().st_size - 1
    assert reasons(outcomes) == ["quarantine: not JSON"] * 2


def test_a_long_line_is_passed_without_being_held(tmp_path: Path) -> None:
    import tracemalloc

    path = tmp_path / "a.jsonl"
    with open(path, "wb") as file:
        file.write(b'{"text": "first"}\n{"text": "')
        for _ in range(60):
            file.write(b"x" * 1_000_000)
        file.write(b'"}\n{"text": "last"}\n')
    tracemalloc.start()
    try:
        outcomes, counts = read_all(settings_for(path, max_document_mb=2.0, detector="none"))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert [document.text for document in kept(outcomes)] == ["first", "last"]
    assert reasons(outcomes) == ["quarantine: too large"] and counts.bytes_in == path.stat().st_size
    assert peak < 12_000_000


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_fields_of_lines(tmp_path: Path, suffix: str) -> None:
    own = Document("poems:1", "春眠不觉晓", "zh", "poems", "a/b", "2020-01-01", "MIT", {"fluent": 0.5}, {"x": 1})
    foreign = {"content": "x", "text": TEXTS["fr"][0], "id": 7, "language": "French", "license": "CC0-1.0", "stars": 3}
    path = tmp_path / f"a.jsonl{suffix}"
    write_documents(path, [own])
    more = json.dumps(foreign).encode() + b"\n" + b'{"text": "no id"}'
    compress = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}[suffix]
    path.write_bytes(path.read_bytes() + compress(more))
    first, second, third = kept(read_all(settings_for(path, source=""))[0])
    assert first == own
    assert (second.id, second.language, second.licence) == ("a:7", "fr", "CC0-1.0")
    assert second.metadata == {"content": "x", "language": "French", "stars": 3}
    assert third.id == f"a:a.jsonl{suffix}#{len(json.dumps(foreign)) + 1 + _length(own, tmp_path)}"


def _length(document: Document, folder: Path) -> int:
    write_documents(folder / "one.jsonl", [document])
    return (folder / "one.jsonl").stat().st_size


def test_the_input_s_settings_win(tmp_path: Path) -> None:
    record = {"body": "text", "name": "n1", "id": "i1", "source": "theirs", "language": "de", "licence": "MIT"}
    path = write_lines(tmp_path / "a.jsonl", record)
    [document] = kept(read_all(settings_for(
        path, source="ours", text_field="body", id_field="name", language="en", licence="CC0-1.0", date="2021"
    ))[0])  # fmt: skip
    assert document == Document("ours:n1", "text", "en", "ours", "a.jsonl", "2021", "CC0-1.0")


def test_bad_lines_are_set_aside_with_their_reasons(tmp_path: Path) -> None:
    deep = b'{"text": ' + b"[" * 200_000 + b"\n"
    path = write_lines(
        tmp_path / "a.jsonl", {"text": 5}, {"x": "y"}, {"text": " "}, b"\xff\xfe{}\n", deep, b"NaN\n", {"text": "good"}
    )
    outcomes, _ = read_all(settings_for(path))
    assert reasons(outcomes) == [
        "quarantine: no text field", "quarantine: no text field", "quarantine: empty text",
        "quarantine: broken encoding", "quarantine: not JSON", "quarantine: not JSON",
    ]  # fmt: skip
    assert [document.text for document in kept(outcomes)] == ["good"]


@pytest.mark.parametrize(
    ("suffix", "damage", "reason"),
    [(".gz", "cut", "truncated compression"), (".zst", "cut", "truncated compression"),
     (".gz", "flip", "damaged compression"), (".zst", "flip", "damaged compression")],
)  # fmt: skip
def test_lines_before_the_damage_are_kept(tmp_path: Path, suffix: str, damage: str, reason: str) -> None:
    noise = np.random.default_rng(0).bytes(1_000_000).hex()
    texts = [noise[i : i + 1000] for i in range(0, len(noise), 1000)]
    raw = [json.dumps({"text": text}).encode() + b"\n" for text in texts]
    compress = gzip.compress if suffix == ".gz" else zstandard.compress
    first, second = (compress(b"".join(half)) for half in (raw[:1200], raw[1200:]))
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(first + (second[:-100_000] if damage == "cut" else b"\x1f\x8b\xff" + second[3:]))
    outcomes, _ = read_all(settings_for(path, detector="none"))
    found = [document.text for document in kept(outcomes)]
    assert found == texts[: len(found)] and (len(found) == 1200 if damage == "flip" else 1600 < len(found) < 2000)
    assert reasons(outcomes) == [f"quarantine: {reason}"]


@relaxed
@given(st.binary(max_size=300))
def test_any_bytes_are_read(tmp_path: Path, data: bytes) -> None:
    for suffix in ("", ".gz", ".zst"):
        path = tmp_path / f"a.jsonl{suffix}"
        path.write_bytes(data)
        read_all(settings_for(path, detector="none"))


@pytest.fixture
def byte_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    class Decoding(ByteTokenizer):
        def decode(self, ids: list[int]) -> str:
            return b"".join(self.token_bytes(token) for token in ids).decode()

    monkeypatch.setattr(lines, "_tokenizer", lambda _: Decoding())


def write_tokens(path: Path, documents: list[list[int]], dtype: str, shift: int = 0) -> Path:
    """A token file as InternEvo's tools write it."""
    meta, position = [], 0
    with open(path, "wb") as file:
        for tokens in documents:
            meta.append((position + shift, len(tokens)))
            position += file.write(json.dumps({"tokens": tokens}).encode() + b"\n")
    with open(f"{path}.meta", "wb") as file:
        np.save(file, np.array(meta, dtype=dtype).reshape(-1, 2))
    return path


@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_token_files_become_texts_again(tmp_path: Path, byte_tokens: None, dtype: str) -> None:
    texts = ["\n".join(texts) for texts in TEXTS.values()]
    documents = [[1, *(byte + 3 for byte in text.encode()), 2] for text in texts]
    documents[3] = [documents[3][0], *(-token for token in documents[3][1:40]), *documents[3][40:]]  # masked
    documents[4] = documents[4][1:-1]  # without bos and eos
    path = write_tokens(tmp_path / "train.bin", documents, dtype)
    settings_ = settings_for(tmp_path, tokenizer=tmp_path)
    outcomes, counts = read_all(settings_)
    assert [document.text for document in kept(outcomes)] == texts
    assert [document.language for document in kept(outcomes)] == list(TEXTS)
    assert kept(outcomes)[3].metadata == {"tokens": len(documents[3]), "masked_tokens": 39}
    assert counts.notes == {"skipped: belongs to another file": 1}
    settings_ = settings_for(path, kind="internevo", tokenizer=tmp_path)
    assert read_ranges(settings_, [5, 100, 999, 1500])[0] == read_ranges(settings_, [])[0]


def test_token_files_that_do_not_fit(tmp_path: Path, byte_tokens: None) -> None:
    path = write_tokens(tmp_path / "a.bin", [[70, 71], [72], [9999], [], [1, 2], [73]], "int32")
    table = np.load(f"{path}.meta")
    table[1, 1] = 5
    with open(f"{path}.meta", "wb") as file:
        np.save(file, table)
    settings_ = settings_for(path, kind="internevo", tokenizer=tmp_path)
    outcomes, counts = read_all(settings_)
    assert [document.text for document in kept(outcomes)] == ["CD", "F"]
    assert reasons(outcomes) == [
        "quarantine: does not fit its meta file", "quarantine: token outside the vocabulary", "quarantine: no tokens",
        "quarantine: empty text",
    ]  # fmt: skip
    Path(f"{path}.meta").write_bytes(b"damaged")
    outcomes, counts = read_all(settings_)
    assert len(kept(outcomes)) == 3 and counts.notes == {"token files without a meta file that can be read": 1}


def test_starts_beyond_two_gigabytes_in_32_bits(tmp_path: Path) -> None:
    starts = np.array([0, 2**31 - 10, 2**31 + 10, 2**32 + 5, 2**32 + 2**31], dtype=np.int64)
    table = np.stack([starts, np.arange(5) + 1], axis=1).astype(np.int64)
    with open(tmp_path / "a.bin.meta", "wb") as file:
        np.save(file, table.astype(np.int32))
    from puyulm.data.pipeline.counts import Counts

    count_at = lines._token_counts(tmp_path / "a.bin", Counts())
    assert [count_at(int(start)) for start in starts] == [1, 2, 3, 4, 5]
    assert count_at(7) is None


def test_tokens_need_a_tokenizer(tmp_path: Path) -> None:
    path = write_tokens(tmp_path / "a.bin", [[70]], "int32")
    with pytest.raises(DataError, match="without their tokenizer"):
        settings_for(path, kind="internevo")
    with pytest.raises(DataError, match=r"a\.bin holds tokens"):
        read_all(settings_for(path))
    with pytest.raises(TokenizerError):
        read_all(settings_for(path, tokenizer=tmp_path / "none"))
    assert sys.modules["puyulm.data.format.lines"] is lines


def test_nesting_beyond_use_is_quarantined(tmp_path: Path) -> None:
    lines = [json.dumps({"id": "a", "text": "fine"})]
    lines += ['{"id": "b", "text": "deep", "x": ' + "[" * n + "]" * n + "}" for n in (90, 150, 900, 100_000)]
    (tmp_path / "d.jsonl").write_text("\n".join(lines) + "\n")
    outcomes, _ = read_all(settings_for(tmp_path / "d.jsonl", detector="none"))
    assert [d.text for d in kept(outcomes)] == ["fine", "deep"]
    assert reasons(outcomes) == ["quarantine: not JSON"] * 3
