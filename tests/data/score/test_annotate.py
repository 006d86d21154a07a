"""Rounds of annotation, with a rule in the place of the people."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import pytest

from puyulm.data.documents import Document
from puyulm.data.score.annotate import cohens_kappa, merge, propose
from puyulm.data.score.labelled import Labelled, read_labelled, write_labelled
from puyulm.data.score.linear import LinearScorer
from puyulm.data.score.train import TrainSettings, train_on
from puyulm.errors import DataError

SETTINGS = TrainSettings("good", (0, 0), 1, 12, 12)
LANGUAGES = ("c", "go", "python")


def code(i: int, language: str, good: bool) -> str:
    generator = random.Random(f"{i} {language}")
    words = [generator.choice(["return", "loop", "index", "value", "class"]) for _ in range(10)]
    return " ".join([*words, "documented" if good else "generated", language, str(i)])


def documents(start: int, count: int = 300) -> list[Document]:
    return [
        Document(f"f{i}", code(i, LANGUAGES[i % 3], i % 2 == 0), "code", "repo",
                 metadata={"programming_language": LANGUAGES[i % 3]})
        for i in range(start, start + count)
    ]  # fmt: skip


def labelled(start: int, count: int = 200) -> list[Labelled]:
    return [Labelled(d.text, "good" if "documented" in d.text else "bad", str(d.metadata["programming_language"]))
            for d in documents(start, count)]  # fmt: skip


def lines(rounds: Path, number: int) -> list[dict[str, object]]:
    return [json.loads(line) for line in (rounds / f"round-{number}" / "annotations.jsonl").read_text().splitlines()]


def annotate(rounds: Path, number: int, wrong: str = "", skip: int = 0) -> None:
    """Labels all but the last `skip` lines; those of the language `wrong` the other way round."""
    records = lines(rounds, number)
    for record in records[: len(records) - skip]:
        good = ("documented" in str(record["text"])) != (record["language"] == wrong)
        record["label"] = "good" if good else "bad"
    path = rounds / f"round-{number}" / "annotations.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.fixture
def first() -> LinearScorer:
    return train_on(labelled(0), SETTINGS)[0]


@pytest.fixture
def seeds(tmp_path: Path) -> Path:
    write_labelled(tmp_path / "seeds.jsonl", labelled(0))
    return tmp_path / "seeds.jsonl"


def test_sure_documents_are_drawn_evenly(tmp_path: Path, first: LinearScorer) -> None:
    rounds = tmp_path / "rounds"
    unsure = Document("u", "documented generated c 1", "code", "repo")
    many = [d for d in documents(1000) if d.metadata["programming_language"] != "go"] + documents(2000, 30) + [unsure]
    counts = propose(rounds, many, first, 25, 12)
    assert counts == {"c": {"high": 10, "low": 4}, "go": {"high": 5, "low": 4}, "python": {"high": 10, "low": 4}}
    records = lines(rounds, 1)
    assert list(records[0]) == ["id", "text", "language", "score", "proposed_label", "label"]
    assert all(record["label"] is None and record["id"] != "u" for record in records)
    assert all((record["proposed_label"] == "good") == (float(str(record["score"])) >= 0.9) for record in records)
    assert {record["proposed_label"] for record in records[:8]} == {"good", "bad"}  # mixed, not one side first
    again = tmp_path / "again"
    propose(again, many[::-1], first, 25, 12)
    assert sorted(map(str, lines(again, 1))) == sorted(map(str, records))


def test_three_rounds(tmp_path: Path, first: LinearScorer, seeds: Path) -> None:
    rounds, validation = tmp_path / "rounds", tmp_path / "validation.jsonl"
    write_labelled(validation, labelled(5000, 120))
    propose(rounds, documents(1000), first, 30, 30)
    with pytest.raises(DataError, match="no line has a label"):
        merge(rounds, [seeds], settings=SETTINGS)
    annotate(rounds, 1, skip=7)
    report = merge(rounds, [seeds], validation, SETTINGS)
    assert (report.round, report.annotated, report.confirmed, report.earlier) == (1, 53, 53, 0)
    assert report.trained_on == 253 and report.languages == LANGUAGES
    assert {p.name for p in (rounds / "round-1").iterdir()} == {
        "annotations.jsonl", "labelled.jsonl", "merge.json", "merge.txt", "report.json", "report.txt",
        "scorer.safetensors",
    }  # fmt: skip
    assert LinearScorer.load(rounds / "round-1").facts.languages == LANGUAGES
    seen = {record["text"] for record in lines(rounds, 1) if record["label"]}
    for number in (2, 3):
        propose(rounds, documents(1000), None, 20, 20)  # by the last round's scorer
        assert not seen & {record["text"] for record in lines(rounds, number)}
        seen |= {record["text"] for record in lines(rounds, number)}
        annotate(rounds, number)
        report = merge(rounds, [seeds], validation, SETTINGS)
        assert report.round == number and report.earlier == 53 + 40 * (number - 2) and report.wrong == []
    assert report.trained_on == 200 + 53 + 40 + 40
    assert len(read_labelled(rounds / "round-3" / "labelled.jsonl")) == report.trained_on


def test_earlier_annotations_that_are_now_classified_otherwise_are_listed(
    tmp_path: Path, first: LinearScorer, seeds: Path
) -> None:
    rounds = tmp_path / "rounds"
    propose(rounds, documents(1000), first, 20, 20)
    annotate(rounds, 1)
    records = lines(rounds, 1)
    records[0]["label"] = "bad" if records[0]["label"] == "good" else "good"  # somebody slipped
    (rounds / "round-1" / "annotations.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    assert merge(rounds, [seeds], settings=SETTINGS).confirmed == 39
    propose(rounds, documents(3000), None, 40, 40)
    annotate(rounds, 2)
    report = merge(rounds, [seeds], settings=SETTINGS)
    assert [(w["round"], w["id"], w["label"]) for w in report.wrong] == [(1, records[0]["id"], records[0]["label"])]
    assert report.wrong[0]["found"] != records[0]["label"]
    assert records[0]["id"] in report.text()
    assert report.languages is None and "all languages" in report.text()


def test_a_language_in_which_people_disagree_is_not_used(tmp_path: Path, first: LinearScorer, seeds: Path) -> None:
    rounds, validation = tmp_path / "rounds", tmp_path / "validation.jsonl"
    checks = labelled(5000, 150)
    turned = [Labelled(row.text, {"good": "bad", "bad": "good"}[row.label], "go") if row.language == "go" else row
              for row in checks]  # fmt: skip
    few = [Labelled(row.text.replace("c ", "lua "), row.label, "lua") for row in checks[:9]]
    write_labelled(validation, turned + few)
    propose(rounds, documents(1000), first, 20, 20)
    annotate(rounds, 1)
    report = merge(rounds, [seeds], validation, SETTINGS)
    assert report.languages == ("c", "python")
    assert report.agreement["go"].kappa < -0.9 and report.agreement["c"].kappa > 0.9
    assert not report.agreement["lua"].used and report.agreement["lua"].texts == 9
    assert LinearScorer.load(rounds / "round-1").facts.languages == ("c", "python")
    stored = json.loads((rounds / "round-1" / "merge.json").read_text())
    assert stored["agreement"]["go"]["used"] is False


def test_validation_texts_are_never_trained_on(tmp_path: Path, first: LinearScorer, seeds: Path) -> None:
    rounds = tmp_path / "rounds"
    propose(rounds, documents(1000), first, 20, 20)
    annotate(rounds, 1)
    report = merge(rounds, [seeds], seeds, SETTINGS, min_texts=10)  # the same file: all seeds are set apart
    assert report.trained_on == 40
    write_labelled(tmp_path / "many.jsonl", labelled(7000))
    assert merge(rounds, [seeds, tmp_path / "many.jsonl"], seeds, SETTINGS).trained_on == 240
    texts = {row.text for row in read_labelled(rounds / "round-1" / "labelled.jsonl")}
    assert not texts & {row.text for row in labelled(0)}


def test_rounds_that_cannot_begin_or_end(tmp_path: Path, first: LinearScorer) -> None:
    rounds = tmp_path / "rounds"
    with pytest.raises(DataError, match="no round yet"):
        propose(rounds, documents(0), None, 1, 1)
    with pytest.raises(DataError, match="holds no round"):
        merge(rounds)
    with pytest.raises(DataError, match="sure of no new document"):
        propose(rounds, [Document("u", "documented generated", "code", "r")], first, 5, 5)
    propose(rounds, documents(0), first, 5, 5)
    with pytest.raises(DataError, match="still to be merged"):
        propose(rounds, documents(0), first, 5, 5)


def test_kappa_of_known_tables() -> None:
    """The example of Cohen's kappa that is taught most: 20 and 15 of 50 agreed, kappa 0.4."""
    pairs = [("y", "y")] * 20 + [("y", "n")] * 5 + [("n", "y")] * 10 + [("n", "n")] * 15
    found, truth = [a for a, _ in pairs], [b for _, b in pairs]
    assert cohens_kappa(found, truth) == pytest.approx(0.4)
    assert cohens_kappa(["a", "b"], ["a", "b"]) == 1 and cohens_kappa(["a", "a"], ["a", "a"]) == 1
    assert cohens_kappa(["a", "b"], ["b", "a"]) == -1
    assert Counter(found)["y"] == 25
