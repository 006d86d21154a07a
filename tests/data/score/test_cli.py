"""The commands `train-scorer` and `annotate`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from puyulm.cli import data_scorer
from puyulm.data.documents import Document, write_documents
from puyulm.data.score.labelled import Labelled, write_labelled
from puyulm.data.score.linear import LinearScorer
from puyulm.errors import DataError
from tests.data.score.texts import CHINESE_OTHERS, ENGLISH_OTHERS


def run(*words: str | Path) -> None:
    parser = argparse.ArgumentParser()
    steps = parser.add_subparsers(dest="step", required=True)
    data_scorer.configure_train_scorer(steps.add_parser("train-scorer"))
    data_scorer.configure_annotate(steps.add_parser("annotate"))
    args = parser.parse_args([str(word) for word in words])
    {"train-scorer": data_scorer.run_train_scorer, "annotate": data_scorer.run_annotate}[args.step](args)


SMALL = ("--bits", "12", "--chars", "0", "0", "--words", "1", "--epochs", "8")


def texts(start: int, count: int) -> list[Labelled]:
    made = []
    for i in range(start, start + count):
        words = [("no", "yes")[i % 2], "abcdefg"[i % 7], "hijkl"[i % 5], "mno"[i % 3], "pqrstuvwxyz"[i % 11]]
        made.append(Labelled(" ".join(words), "good" if i % 2 else "bad", "en"))
    return made


def test_training_and_a_round(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    labelled = tmp_path / "l.jsonl"
    write_labelled(labelled, texts(0, 200))
    run("train-scorer", labelled, "--out", tmp_path / "scorer", "--positive", "good", *SMALL)
    out = capsys.readouterr().out
    assert "accuracy 1.0000" in out and f"written to {tmp_path / 'scorer'}" in out
    assert LinearScorer.load(tmp_path / "scorer").facts.char_ngrams == (0, 0)
    shards = tmp_path / "stage"
    documents = [Document(f"d{i}", row.text, "en", "web") for i, row in enumerate(texts(300, 100))]
    write_documents(shards / "00000.jsonl.gz", documents[:50])
    write_documents(shards / "00001.jsonl.gz", documents[50:])
    rounds = tmp_path / "rounds"
    run("annotate", "propose", shards, "--rounds", rounds, "--scorer", tmp_path / "scorer", "--high", "5", "--low", "6")
    assert capsys.readouterr().out.splitlines()[1].split() == ["en", "5", "6"]
    path = rounds / "round-1" / "annotations.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps({**r, "label": r["proposed_label"]}) + "\n" for r in records))
    run("annotate", "merge", "--rounds", rounds, "--labelled", labelled, "--positive", "good", *SMALL)
    assert "11 texts annotated, 11 of them as proposed" in capsys.readouterr().out


def test_training_without_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = [Document(f"{i}{j}", f"{text} {other}", "en", "s") for i, text in enumerate(ENGLISH_OTHERS + CHINESE_OTHERS)
            for j, other in enumerate(ENGLISH_OTHERS[:3])]  # fmt: skip
    write_documents(tmp_path / "good.jsonl", good)
    run(
        "train-scorer",
        "--corrupt",
        tmp_path / "good.jsonl",
        "--out",
        tmp_path / "f",
        "--corrupt-documents",
        "60",
        *SMALL,
    )
    assert "probability of 'fluent'" in capsys.readouterr().out
    training = LinearScorer.load(tmp_path / "f").facts.training["texts"]
    assert sum(part["fluent"] for part in training.values()) == 60
    run(
        "train-scorer",
        "--advertisement-seeds",
        "--positive",
        "advertisement",
        "--out",
        tmp_path / "a",
        *SMALL[:-1],
        "1",
    )
    assert LinearScorer.load(tmp_path / "a").facts.labels == ("other", "advertisement")


def test_bad_input_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for words in (
        ("train-scorer", "--out", tmp_path / "x"),
        ("train-scorer", tmp_path / "missing", "--out", tmp_path / "x"),
        ("train-scorer", "--corrupt", tmp_path / "empty", "--out", tmp_path / "x"),
        ("annotate", "merge", "--rounds", tmp_path / "none"),
        ("annotate", "propose", tmp_path / "missing", "--rounds", tmp_path / "none"),
    ):
        with pytest.raises(DataError) as caught:
            run(*words)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "x").exists()
