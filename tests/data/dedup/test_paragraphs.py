"""Paragraphs that occur before, against a slow computation over the whole corpus in memory."""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from puyulm.data.dedup.index import date_key
from puyulm.data.dedup.paragraphs import split_paragraphs
from puyulm.data.dedup.settings import DedupSettings, ParagraphSettings
from puyulm.data.documents import Document
from puyulm.errors import DataError
from tests.data.dedup.helpers import Result, prepare, prose, run

ANY = {"min_characters": 1, "min_left": 0, "max_removed": 1.0}


def corpus(seed: int, count: int) -> list[Document]:
    source = random.Random(seed)
    pool = [prose(source, source.randrange(2, 30)).replace("\n", " ") for _ in range(count)]
    boilerplate = "Share this page with your friends and subscribe to our letter."
    documents = []
    for number in range(count):
        parts = [*source.choices(pool, k=source.randrange(0, 6)), boilerplate.upper() if number % 2 else boilerplate]
        source.shuffle(parts)
        text = source.choice(["\n\n", "\n \n", "\n\n\n"]).join(parts)
        documents.append(Document(f"{number}", text, "en", "t", date=source.choice(["", "2020", "2021-05"])))
    return documents


def expected_texts(documents: list[Document], settings: DedupSettings) -> dict[str, list[str]]:
    """Paragraphs that stay in each document."""
    places: dict[str, list[tuple[int, int, int]]] = defaultdict(list)
    split = [[part.strip() for part in document.text.replace("\n \n", "\n\n").split("\n\n")] for document in documents]
    for number, (document, parts) in enumerate(zip(documents, split, strict=True)):
        rank = {"newest": -date_key(document.date), "first": 0, "longest": -len(document.text)}[settings.keep]
        for place, part in enumerate(parts):
            if len(part) >= settings.paragraphs.min_characters:
                places[" ".join(part.lower().split())].append((rank, number, place))
    gone = {place[1:] for copies in places.values() if len(copies) >= settings.paragraphs.min_copies
            for place in sorted(copies)[1:]}  # fmt: skip
    return {
        document.id: [part for place, part in enumerate(parts) if part and (number, place) not in gone]
        for number, (document, parts) in enumerate(zip(documents, split, strict=True))
    }


def texts_of(result: Result) -> dict[str, list[str]]:
    return {d.id: [part.strip() for part in d.text.replace("\n \n", "\n\n").split("\n\n") if part] for d in result.kept}


@pytest.mark.parametrize("keep", ["newest", "first", "longest"])
@pytest.mark.parametrize(("min_characters", "min_copies", "memory"), [(1, 2, 1.0), (60, 2, 0.02), (1, 4, 0.02)])
def test_one_copy_of_each_paragraph_stays(
    tmp_path: Path, keep: str, min_characters: int, min_copies: int, memory: float
) -> None:
    documents = corpus(2, 150)
    given = ParagraphSettings(**{**ANY, "min_characters": min_characters, "min_copies": min_copies})
    settings = DedupSettings(method="paragraphs", keep=keep, paragraphs=given)
    expected = {name: parts for name, parts in expected_texts(documents, settings).items() if parts}
    object.__setattr__(settings, "memory_mb", memory)
    result = run(settings, prepare(tmp_path, documents, shards=4))
    assert texts_of(result) == expected
    assert {document.id for document in result.dropped} == {d.id for d in documents} - set(expected)
    before = {d.id: d for d in documents}
    assert all(document == before[document.id] for document in result.kept
               if len(document.text) == len(before[document.id].text))  # fmt: skip
    notes = result.counts.notes
    cut = [document for document in result.kept if document.text != before[document.id].text]
    assert notes["documents cut"] == len(cut) > 10
    assert notes["characters removed"] == sum(len(before[d.id].text) - len(d.text) for d in cut)


def test_what_a_cut_looks_like(tmp_path: Path) -> None:
    header, footer = "All rights reserved by the authors of this page.", "Click here to read the next page of the text."
    body = ["  An indented first paragraph.\nWith two lines.", "Another one, which is not like it."]
    one = Document("1", f"{header}\n\n{body[0]}\n\n{footer}\n", "en", "t")
    other = Document("2", f"{header}\n\n\n{body[1]}\n  \n{body[0][2:]}", "en", "t")
    third = Document("3", f"{header}\n\n{footer}\n\nshort\n\nshort", "en", "t")
    given = ParagraphSettings(min_characters=20, min_left=0, max_removed=0.8)
    settings = DedupSettings(method="paragraphs", keep="first", paragraphs=given)
    result = run(settings, prepare(tmp_path, [one, other, third], shards=3))
    assert [d.text for d in result.kept] == [one.text, body[1]]
    assert result.reasons == {"3": "dedup: paragraphs"} and result.dropped[0].text == third.text
    assert result.counts.notes == {"documents cut": 1, "paragraphs removed": 2,
                                   "characters removed": len(other.text) - len(body[1])}  # fmt: skip
    assert result.json("paragraphs.json") == [
        {"copies": 3, "id": "1", "characters": len(header), "text": header},
        {"copies": 2, "id": "1", "characters": len(body[0]) - 2, "text": body[0].strip()},
        {"copies": 2, "id": "1", "characters": len(footer), "text": footer},
    ]
    lines = replace(settings, paragraphs=replace(given, unit="line", max_removed=1.0))
    by_line = run(lines, prepare(tmp_path / "lines", [one, other, third], shards=1))
    assert [d.text for d in by_line.kept] == [one.text, f"\n\n{body[1]}\n  \nWith two lines.", "\n\nshort\n\nshort"]


def test_limits_of_what_is_lost(tmp_path: Path) -> None:
    shared = "x" * 60
    documents = [Document(f"{place}", f"{shared}\n\n{chr(97 + place) * length}", "en", "t")
                 for place, length in enumerate([10, 57, 59, 150])]  # fmt: skip
    for min_left, max_removed, kept in ((0, 1.0, "0123"), (58, 1.0, "023"), (0, 0.5, "03"), (0, 0.52, "023")):
        given = ParagraphSettings(min_left=min_left, max_removed=max_removed)
        settings = DedupSettings(method="paragraphs", paragraphs=given)
        result = run(settings, prepare(tmp_path / f"{min_left}{max_removed}", documents))
        assert "".join(result.kept_ids) == kept  # the first, as short as it is, loses nothing


def test_resume(tmp_path: Path) -> None:
    stage, settings = prepare(tmp_path, corpus(3, 60), shards=3), DedupSettings(method="paragraphs")
    expected = run(settings, stage).files()
    for mark in sorted((stage.folder / "tasks").iterdir())[::2]:
        mark.unlink()
    assert run(settings, stage).files() == expected
    other = prepare(tmp_path / "other", corpus(3, 60), shards=1)
    assert run(settings, other).kept == run(settings, stage).kept


@given(st.text(st.sampled_from("ab \n\t\r"), max_size=60), st.sampled_from(["paragraph", "line"]))
def test_paragraphs_make_up_the_text(text: str, unit: str) -> None:
    parts = split_paragraphs(text, unit)
    assert "".join(parts) == text and all(parts)
    if unit == "line":
        assert parts == text.splitlines(keepends=True) or "\r" in text
    else:
        assert all("\n\n" not in part.rstrip() for part in parts)


def test_bad_settings_are_refused() -> None:
    for values, message in (
        ({"min_characters": 0}, "min_characters is 0"), ({"min_copies": 1}, "min_copies is 1"),
        ({"min_left": -1}, "min_left is -1"), ({"max_removed": 0.0}, "max_removed is 0.0"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=message):
            ParagraphSettings(**values)
