"""Passages that occur before, against a slow search with sets of windows."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from puyulm.data.dedup.settings import DedupSettings, SubstringSettings
from puyulm.data.dedup.substring import SEPARATOR, cut_passages, plan_blocks, repeated
from puyulm.data.documents import Document
from puyulm.data.pipeline.counts import Counts
from puyulm.errors import DataError
from tests.data.dedup.helpers import prepare, prose, run

ANY = {"min_left": 0, "max_removed": 1.0}


def expected(documents: list[bytes], length: int) -> list[bool]:
    """Bytes of windows that are equal to one that begins before; what the first one covers stays."""
    text = b"".join(document + bytes([SEPARATOR]) for document in documents)
    gone, first = [False] * len(text), {}
    for place in range(len(text) - length + 1):
        window = text[place : place + length]
        if SEPARATOR in window:
            continue
        before = first.setdefault(window, place)
        if before != place:
            for byte in range(max(place, before + length), place + length):
                gone[byte] = True
    return gone


@settings(deadline=None)
@given(st.lists(st.text("ab", max_size=30), max_size=6), st.integers(1, 6))
@example(["aaaaaaaaaaaaaaaaaaaa"], 3)
@example(["abcabcabc", "xabcabcabc"], 4)
def test_repeated_windows(documents: list[str], length: int) -> None:
    raw = [document.encode() for document in documents]
    text = np.frombuffer(bytearray(b"".join(d + b"\xff" for d in raw)), dtype=np.uint8)
    assert repeated(text, length).tolist() == expected(raw, length)


def cut(text: str, gone: slice) -> str:
    flags = np.zeros(len(text.encode()), dtype=bool)
    flags[gone] = True
    result = cut_passages(Document("d", text, "zh", "t"), flags, SubstringSettings(**ANY), Counts())
    assert isinstance(result, Document)
    return result.text


def test_characters_stay_whole() -> None:
    text = "ab中文字cd"  # bytes: a 0, b 1, 中 2-4, 文 5-7, 字 8-10, c 11, d 12
    assert cut(text, slice(3, 8)) == "ab中字cd" and cut(text, slice(3, 9)) == "ab中字cd"
    assert cut(text, slice(2, 11)) == "abcd" and cut(text, slice(3, 4)) == text
    assert cut(text, slice(5, None)) == "ab中" and cut(text, slice(0, 2)) == "中文字cd"


def test_the_first_copy_stays(tmp_path: Path) -> None:
    source = random.Random(1)
    passage, chinese = prose(source, 40), "".join(chr(source.randrange(0x4E00, 0x9FA5)) for _ in range(70))
    own = [prose(source, 60) for _ in range(4)]
    documents = [
        Document("0", f"{own[0]}{passage}", "en", "t"),
        Document("1", f"{own[1]}|{passage}|{chinese}", "en", "t"),
        Document("2", f"{passage[3:]}", "en", "t"),
        Document("3", f"{own[2]}{chinese[:60]}", "zh", "t"),
        Document("4", f"{own[3]}前{chinese}{own[0][:100]}", "zh", "t"),
    ]
    settings = DedupSettings(method="substring", substring=SubstringSettings(min_left=50))
    result = run(settings, prepare(tmp_path, documents, shards=2))
    texts = {document.id: document.text for document in result.kept}
    assert texts["0"] == documents[0].text
    assert texts["1"] == f"{own[1]}||{chinese}"
    assert texts["3"] == documents[3].text  # 60 characters are 180 bytes: too few
    assert texts["4"] == f"{own[3]}前{own[0][:100]}"
    assert result.reasons == {"2": "dedup: passages"}
    assert result.counts.notes == {"documents cut": 2, "passages removed": 2, "characters removed": len(passage) + 70}


def test_blocks_are_bounded_and_looked_at_alone(tmp_path: Path) -> None:
    source = random.Random(2)
    text = prose(source, 100)
    documents = [
        Document(str(place), text if place in (0, 1, 9) else prose(source, 100), "en", "t") for place in range(10)
    ]
    given = SubstringSettings(**ANY)
    settings = DedupSettings(method="substring", substring=given)
    whole = run(settings, prepare(tmp_path / "1", documents, shards=3))
    assert set(whole.reasons) == {"1", "9"} and len(list((whole.stage.folder / "tasks").glob("cut-*"))) == 1
    object.__setattr__(settings, "memory_mb", 32 * 3000 / 1e6)
    parts = run(settings, prepare(tmp_path / "2", documents, shards=3))
    assert set(parts.reasons) == {"1"} and len(list((parts.stage.folder / "tasks").glob("cut-*"))) == 3
    object.__setattr__(settings, "memory_mb", 32 * 500 / 1e6)
    none = run(settings, prepare(tmp_path / "3", documents, shards=3))
    assert none.kept == documents and none.counts.notes == {"documents longer than a block": 10}


def test_plan_of_blocks() -> None:
    lengths = [np.array(sizes, dtype=np.int64) for sizes in ([3, 4, 5], [], [20, 1], [6, 4])]
    paths = [Path(name) for name in "abcd"]
    found = [[(path.name, first, end) for path, first, end in block.spans] for block in plan_blocks(paths, lengths, 10)]
    assert found == [[("a", 0, 2)], [("a", 2, 3)], [("c", 0, 1)], [("c", 1, 2), ("d", 0, 1)], [("d", 1, 2)]]
    assert [block.bytes for block in plan_blocks(paths, lengths, 10)] == [7, 5, 20, 7, 4]


def test_resume(tmp_path: Path) -> None:
    source = random.Random(3)
    pool = [prose(source, 50) for _ in range(20)]
    documents = [Document(str(place), "".join(source.choices(pool, k=5)), "en", "t") for place in range(30)]
    stage = prepare(tmp_path, documents)
    settings = DedupSettings(method="substring")
    expected = run(settings, stage).files()
    for mark in sorted((stage.folder / "tasks").iterdir())[::2]:
        mark.unlink()
    assert run(settings, stage).files() == expected


def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pydivsufsort", None)
    with pytest.raises(DataError, match="pydivsufsort is not installed: pip install"):
        run(DedupSettings(method="substring"), prepare(tmp_path, []))
    with pytest.raises(DataError, match="min_bytes is 3"):
        SubstringSettings(min_bytes=3)
