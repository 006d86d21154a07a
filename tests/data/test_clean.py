"""Cleaning rules on planted problems, and the split."""

from __future__ import annotations

from collections import Counter

import pytest

from puyulm.data.clean.documents import (
    CleanReport,
    abnormal_characters,
    clean_documents,
    lost_characters,
    normalise,
    repeated_lines,
    too_short,
)
from puyulm.data.documents import Document
from puyulm.data.split import is_validation, split_documents, within_bytes

GOOD = "\n".join(f"line number {i} says something of its own" for i in range(20)) + "\n"
QUATRAIN = "相思\n王维\n红豆生南国，春来发几枝。\n愿君多采撷，此物最相思。\n"


def document(text: str, language: str = "en", name: str = "d") -> Document:
    return Document(id=name, text=text, language=language, source="s")


@pytest.mark.parametrize(
    ("raw", "clean"),
    [("\ufeffa\r\nb\rc  \n\n", "a\nb\nc\n"), ("\n\n  x\t\n y\u3000\n", "  x\n y\n"), ("", ""), (" \n\t\n", ""),
     ("a\ud800b", "a\ufffdb\n"), ("a\n\n\nb", "a\n\n\nb\n")],
)  # fmt: skip
def test_normalise(raw: str, clean: str) -> None:
    assert normalise(raw) == clean
    assert normalise(clean) == clean


def test_rules_keep_good_texts() -> None:
    code = "def f(a):\n    if a:\n        return None\n    else:\n        return None\n" * 2 + GOOD
    for good in (document(GOOD), document(QUATRAIN, "zh"), document(code, "code"), document("  [Exit.]\n" * 9 + GOOD)):
        for rule in (too_short, repeated_lines, abnormal_characters, lost_characters):
            assert rule(good) is None


def test_rules_find_planted_problems() -> None:
    assert too_short(document("句\n后主衍\n不缘朝阙去，好此结茅庐。\n", "zh")) == "too short"
    assert repeated_lines(document("Buy our wonderful things now!\n" * 8 + GOOD)) is None
    assert repeated_lines(document("Buy our wonderful things now!\n" * 20 + GOOD)) == "repeated lines"
    assert abnormal_characters(document(GOOD + "\0")) == "abnormal characters"
    assert abnormal_characters(document(GOOD + "\ufffd\ue829")) == "abnormal characters"
    assert abnormal_characters(document("\t\f\n" + GOOD)) is None
    for mark in ("□", "{疒}", "??"):
        assert lost_characters(document(QUATRAIN + mark, "zh")) == "lost characters"
    assert lost_characters(document("set = {1, 2}  # ??\n" + GOOD, "code")) is None


def test_report_counts_everything_and_keeps_samples() -> None:
    documents = [document(GOOD + str(i), name=f"g{i}") for i in range(5)]
    documents += [document(GOOD + f"{i}  \r\n", name=f"copy{i}") for i in range(4)]  # equal once normalised
    documents += [document("x", name=f"short{i}") for i in range(5)]
    report = CleanReport()
    kept = list(clean_documents(documents, report))
    assert [d.id for d in kept] == [f"g{i}" for i in range(5)]
    assert report.dropped == {"too short": 5, "exact duplicate": 4}
    assert (report.documents, report.kept_documents) == (14, 5)
    assert report.bytes == sum(d.num_bytes for d in documents)
    assert report.kept_bytes == sum(d.num_bytes for d in kept)
    assert report.samples["too short"] == ["short0: x\n", "short1: x\n", "short2: x\n"]


def test_split_depends_on_the_id_alone() -> None:
    documents = [document(f"text {i}", name=f"a:{i}") for i in range(4000)]
    train, valid = split_documents(documents, 0.1)
    assert len(train) + len(valid) == 4000
    assert {d.id for d in valid} == {d.id for d in documents if is_validation(d.id, 0.1)}
    again = split_documents(reversed(documents[:500]), 0.1)[1]
    assert {d.id for d in again} == {d.id for d in valid} & {d.id for d in documents[:500]}
    assert {d.id for d in valid} < {d.id for d in split_documents(documents, 0.2)[1]}
    assert {d.id for d in valid} != {d.id for d in split_documents(documents, 0.1, seed=1)[1]}


def test_split_takes_a_like_share_of_every_source_and_mixes_them() -> None:
    documents = [document("t", name=f"{source}:{i}") for source in "abc" for i in range(3000)]
    train, valid = split_documents(documents, 0.1)
    shares = Counter(d.id[0] for d in valid)
    assert all(240 <= shares[source] <= 360 for source in "abc")
    start = Counter(d.id[0] for d in train[:600])
    assert all(140 <= start[source] <= 260 for source in "abc")


def test_within_bytes_is_bounded_spread_and_repeatable() -> None:
    documents = [document("x" * (50 + i % 100), name=f"d{i:03}") for i in range(300)]
    chosen = within_bytes(documents, 10_000)
    assert 9_850 < sum(d.num_bytes for d in chosen) <= 10_000
    assert chosen == within_bytes(reversed(documents), 10_000)
    assert int(chosen[-1].id[1:]) > 270 and int(chosen[0].id[1:]) < 30
    assert within_bytes(documents, 10**9) == documents
