"""Tuning thresholds on borderline documents."""

from __future__ import annotations

import argparse
import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from puyulm.cli.data_long import configure_tune_long, run_tune_long
from puyulm.data.documents import Document, write_documents
from puyulm.data.longtext.settings import Bounds, LongTextSettings
from puyulm.data.longtext.tune import (
    borderline,
    read_borderline,
    suggest_threshold,
    tune_thresholds,
    write_borderline,
)
from puyulm.errors import DataError
from puyulm.recipe import recipe_dict


def document(value: float | None, number: int, language: str = "en", source: str = "cc") -> Document:
    scores = {} if value is None else {"long.ppl_delta": value}
    return Document(f"{source}:{number:03d}", f"Text {number}. " * 300, language, source, scores=scores)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run with a stage whose feature goes from -5 to 4.9 in steps of 0.1; below 0 documents were dropped."""
    folder = tmp_path / "run" / "03-long_context"
    settings = LongTextSettings(domains={"cc": "web"}, thresholds={"*/*": {"ppl_delta": Bounds(min=0.0)}})
    documents = [document((i - 50) / 10, i) for i in range(100)]
    others = [document(0.0, 200, "zh"), document(0.0, 201, source="books"), document(None, 202)]
    write_documents(folder / "00000.jsonl.zst", [*documents[75:], *others])
    write_documents(folder / "00001.jsonl.zst", documents[50:75])
    write_documents(folder / "dropped" / "00000.jsonl.zst", documents[:50])
    (folder / "stage.json").write_text(json.dumps({"kind": "long_context", "settings": recipe_dict(settings)}))
    (tmp_path / "run" / "pipeline.json").write_text("{}")
    return tmp_path / "run"


def test_the_nearest_on_both_sides(run):
    tuning = tune_thresholds(run, "ppl_delta", "web/en", count=3)
    assert (tuning.bound, tuning.threshold, tuning.suggestion) == ("min", 0.0, None)
    assert [sample.value for sample in tuning.borderline] == [-0.3, -0.2, -0.1, 0.0, 0.1, 0.2]
    assert [sample.passes for sample in tuning.borderline] == [False] * 3 + [True] * 3
    sample = tuning.borderline[0]
    assert (sample.id, sample.source, sample.language, sample.keep) == ("cc:047", "cc", "en", None)
    assert len(sample.text) < 2000 and sample.text.count("[...]") == 2


def test_the_table_is_harmless_for_a_terminal(run, capsys):
    odd = replace(document(0.05, 300), id="cc:\x1b[2J\ud800", text="\x1b]0;title\x07 \ud800 and words " * 300)
    write_documents(run / "03-long_context" / "00002.jsonl.zst", [odd])
    parser = argparse.ArgumentParser()
    configure_tune_long(parser)
    run_tune_long(parser.parse_args([str(run), "--feature", "ppl_delta", "--domain", "web/en", "--count", "2"]))
    shown = capsys.readouterr().out
    assert "cc:[U+001B][2J[U+D800]" in shown and "\x1b" not in shown
    shown.encode()


@pytest.mark.parametrize("domain, count", [("web/en", 4), ("web/*", 5), ("*/en", 5), ("*/*", 6), ("books/en", 1)])
def test_domains(run, domain, count):
    tuning = tune_thresholds(run / "03-long_context", "ppl_delta", domain, threshold=0.05, count=2)
    near = [sample for sample in tuning.borderline if abs(sample.value - 0.05) < 0.16]
    assert len(near) <= 4
    tuning = tune_thresholds(run, "ppl_delta", domain, threshold=0.05, count=100)
    assert sum(abs(sample.value - 0.05) < 0.16 for sample in tuning.borderline) == count


@given(
    st.lists(st.integers(-20, 20), max_size=30),
    st.integers(-10, 10),
    st.integers(1, 5),
    st.sampled_from(["min", "max"]),
)
def test_borderline_agrees_with_sorting(values, threshold, count, bound):
    documents = [document(float(value), i) for i, value in enumerate(values)]
    found = borderline(documents, "ppl_delta", bound, threshold, count)
    for passes in (True, False):
        side = [v for v in values if (v >= threshold if bound == "min" else v <= threshold) == passes]
        expected = sorted(sorted(abs(v - threshold) for v in side)[:count])
        assert sorted(abs(sample.value - threshold) for sample in found if sample.passes == passes) == expected
    assert found == borderline(documents[::-1], "ppl_delta", bound, threshold, count)


JUDGED = st.lists(st.tuples(st.integers(-9, 9).map(float), st.booleans()), min_size=1, max_size=12)


@given(JUDGED, st.sampled_from(["min", "max"]), st.integers(-12, 12))
def test_suggestions_have_the_fewest_errors(judged, bound, threshold):
    found = suggest_threshold(judged, bound, threshold)

    def errors(cut: float) -> int:
        return sum((value >= cut if bound == "min" else value <= cut) != keep for value, keep in judged)

    assert found.errors == errors(found.threshold) == min(errors(cut / 4) for cut in range(-44, 45))
    assert found.errors_before == errors(threshold) and found.judged == len(judged)
    if found.errors == found.errors_before:
        assert found.threshold == threshold
    values = [value for value, _ in judged]
    assert found.at_edge == (not min(values) < found.threshold < max(values))


def test_a_clear_case():
    judged = [(v / 10, v > 6) for v in range(-10, 20)]
    found = suggest_threshold(judged, "min", 0.0)
    assert found.threshold == pytest.approx(0.65) and (found.errors, found.errors_before) == (0, 7)
    assert not found.at_edge
    assert suggest_threshold([(v / 10, False) for v in range(-10, 20)], "min", 0.0).at_edge


def test_a_round(run, tmp_path, capsys):
    """List, judge, suggest, through the command line."""
    parser = argparse.ArgumentParser()
    configure_tune_long(parser)
    out = tmp_path / "judge.jsonl"
    basic = [str(run), "--feature", "ppl_delta", "--domain", "web/en", "--count", "15"]
    run_tune_long(parser.parse_args([*basic, "--out", str(out)]))
    assert "min 0" in capsys.readouterr().out
    samples = read_borderline(out)
    assert len(samples) == 30 and all(sample.keep is None for sample in samples)
    run_tune_long(parser.parse_args([*basic, "--judged", str(out)]))
    assert "no document is judged" in capsys.readouterr().out
    write_borderline(out, [replace(sample, keep=sample.value > 0.75) for sample in samples])
    run_tune_long(parser.parse_args([*basic, "--judged", str(out)]))
    printed = capsys.readouterr().out
    assert "suggested min of ppl_delta for web/en: 0.75" in printed
    assert "0 of 30 judged documents wrong, 8 before" in printed and "edge" not in printed


def test_the_bound_and_where_to_begin(run):
    with pytest.raises(DataError, match="--threshold"):
        tune_thresholds(run, "ppl_delta", "web/en", bound="max")
    with pytest.raises(DataError, match="--threshold"):
        tune_thresholds(run, "acc_delta", "web/en")
    tuning = tune_thresholds(run, "ppl_delta", "web/en", bound="max", threshold=1.0, count=1)
    assert [(sample.value, sample.passes) for sample in tuning.borderline] == [(1.0, True), (1.1, False)]


def test_errors(run, tmp_path):
    with pytest.raises(DataError, match="no feature"):
        tune_thresholds(run, "beauty", "web/en")
    with pytest.raises(DataError, match="domain/language"):
        tune_thresholds(run, "ppl_delta", "web")
    with pytest.raises(DataError, match="no document of web/fr"):
        tune_thresholds(run, "ppl_delta", "web/fr")
    with pytest.raises(DataError, match="no stage long_context"):
        tune_thresholds(tmp_path, "ppl_delta", "web/en")
    for content in ("[1]", "{}", '{"id": 1}', "x"):
        (tmp_path / "bad.jsonl").write_text(content)
        with pytest.raises(DataError, match=r"bad.jsonl, line 1"):
            read_borderline(tmp_path / "bad.jsonl")
    with pytest.raises(DataError, match="cannot read"):
        read_borderline(tmp_path / "none.jsonl")


def test_files_of_documents_come_back(tmp_path):
    samples = borderline([document(v, i) for i, v in enumerate((0.0, 1.0))], "ppl_delta", "min", 0.5, 3)
    path = tmp_path / "x.jsonl"
    write_borderline(path, itertools.chain(samples))
    assert read_borderline(path) == samples
