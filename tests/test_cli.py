"""The command's frame: quick help, one line for bad input, never a traceback."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from puyulm.cli import VERBS, main


def test_help_lists_every_verb(capsys: pytest.CaptureFixture[str]):
    assert main([]) == 0
    shown = capsys.readouterr().out
    assert all(f"\n    {verb}" in shown for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_every_verb(verb: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main([verb, "--help"])
    assert ended.value.code == 0
    assert f"puyu {verb}" in capsys.readouterr().out


def test_help_imports_no_heavy_library():
    code = "import sys; from puyulm.cli import main; main([]); print({'torch', 'numpy', 'yaml'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["info", "no-such-model"], "no-such-model"),
        (["check", "no-such-folder"], "no-such-folder"),
        (["convert", "no-such-folder", "out"], "no-such-folder"),
        (["train", "no-such.yaml"], "no-such.yaml"),
        (["sft", "no-such.yaml"], "no-such.yaml"),
        (["train", "recipes/no-such.yaml"], "recipes/no-such.yaml"),
        (["eval", "no-such-folder", "--items", "x.jsonl"], "x.jsonl"),
        (["eval", "no-such-folder", "--items", "x.jsonl", "--limit", "0"], "--limit"),
        (["eval", "no-such-folder", "--items", "x.jsonl", "--limit=-1"], "--limit"),
        (["demo", "--recipe", "no-such.yaml"], "no-such.yaml"),
        (["generate", "--model", "no-such-folder", "hello"], "no-such-folder"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    words: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith(f"puyu {words[0]}: ")
    assert says in shown.err
    assert shown.err.count("\n") == 1
    assert shown.out == ""
    assert list(tmp_path.iterdir()) == []


def test_what_the_system_refuses_is_one_line_and_status_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    assert main(["data", "collect", "--only", "python-stdlib", "--max-bytes", "20000", "--out", "file/out"]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("puyu data: file/out") and "ot a directory" in last


@pytest.mark.parametrize(("verb", "name"), [("train", "pretrain"), ("sft", "sft")])
def test_recipes_that_come_along_are_found_anywhere(
    verb: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    words = [verb, f"recipes/demo/{name}.yaml", "--settings.seed", "77", "--print-recipe"]
    assert main(words) == 0
    assert "seed: 77" in capsys.readouterr().out
    (tmp_path / "recipes" / "demo").mkdir(parents=True)
    (tmp_path / "recipes" / "demo" / f"{name}.yaml").write_text("seq_lne: 3")  # one that is here wins
    assert main(words) == 2
    assert "seq_lne" in capsys.readouterr().err


def test_an_unknown_verb_is_refused(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main(["tarin"])
    assert ended.value.code == 2
    assert "tarin" in capsys.readouterr().err
