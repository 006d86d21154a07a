"""`puyu data report` and `puyu data look` as a user calls them."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from puyulm.cli.data_report import configure_look, configure_report, run_look, run_report
from puyulm.errors import DataError, TokenizerError
from tests.data.report.fake_run import make_run


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("run") / "corpus", 120, 2)


def report(*arguments: object) -> None:
    parser = argparse.ArgumentParser()
    configure_report(parser)
    run_report(parser.parse_args([str(argument) for argument in arguments]))


def look(*arguments: object) -> None:
    parser = argparse.ArgumentParser()
    configure_look(parser)
    run_look(parser.parse_args([str(argument) for argument in arguments]))


def test_report(run_folder: Path, tmp_path: Path, capsys) -> None:
    report(run_folder, "--out", tmp_path / "new" / "page.html")
    assert capsys.readouterr().out.startswith(f"written to {tmp_path / 'new' / 'page.html'} (")
    assert (tmp_path / "new" / "page.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


def test_report_errors(run_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is a folder: give the name of a file"):
        report(run_folder, "--out", tmp_path)
    with pytest.raises(DataError, match=r"pipeline\.json is missing"):
        report(tmp_path)
    assert not (tmp_path / "report.html").exists()
    with pytest.raises(TokenizerError):
        report(run_folder, "--out", tmp_path / "x.html", "--tokenizer", tmp_path / "none")


def test_look_prints_where_there_is_no_terminal(run_folder: Path, capsys) -> None:
    look(run_folder / "02-clean", "--head", 2)
    printed = capsys.readouterr().out
    assert printed.startswith("── 1 ── 00000.jsonl.zst, line 1\n") and "── 2 ──" in printed and "── 3 ──" not in printed
    look(run_folder / "02-clean", "--reason", "too few words")
    printed = capsys.readouterr().out
    dropped = printed.count("dropped: gopher: too few words")
    assert dropped == printed.count("── ") // 2 > 0


def test_look_says_when_there_is_nothing(run_folder: Path, capsys) -> None:
    look(run_folder, "--reason", "no such reason")
    captured = capsys.readouterr()
    assert captured.out == "" and "no records at" in captured.err and "'no such reason'" in captured.err
    with pytest.raises(DataError, match="give 1 or more"):
        look(run_folder, "--head", 0)
    with pytest.raises(DataError, match="nothing at"):
        look(run_folder / "none")
