"""`puyu info`: presets, folders and GGUF files, for people and as JSON."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from puyulm.cli import main
from puyulm.model.checkpoint import save_model
from puyulm.model.memory import count_parameters
from puyulm.model.presets import PRESETS
from tests.conftest import tiny_decoder

Captured = pytest.CaptureFixture[str]


def test_without_a_name_all_presets_are_listed(capsys: Captured) -> None:
    assert main(["info"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = {line.split()[0]: line for line in lines[1 : 1 + len(PRESETS)]}
    assert rows.keys() == {preset.name for preset in PRESETS}
    assert "7,737,708,544" in rows["internlm2_5-7b-chat"]
    assert "(unreleased)" in rows["internlm-104b"]
    assert max(len(line) for line in lines) <= 120


def test_one_preset_in_full(capsys: Captured) -> None:
    assert main(["info", "internlm/internlm2-chat-7b", "--memory", "24GiB"]) == 0
    out = capsys.readouterr().out
    for part in (
        "internlm2-chat-7b  internlm/internlm2-chat-7b",
        "7,737,708,544 (218,112,000 a layer",
        "131,072 bytes",
    ):
        assert part in out
    weights = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line.startswith(("bf16", "int"))}
    assert weights["bf16"] == ["15,475,417,088", "14.41", "GiB", "58,879", "110,831", "209,348"]
    assert "10% of the memory is kept" in out
    assert "own limit is 32,768 tokens" in out


def test_what_does_not_fit_and_what_is_unconfirmed_is_said(capsys: Captured) -> None:
    assert main(["info", "internlm-104b"]) == 0
    out = capsys.readouterr().out
    assert "unreleased" in out
    assert "UNCONFIRMED" in out
    assert out.count("does not fit") == 2  # in 80 GiB only int4 does


def test_json_holds_the_same_numbers(capsys: Captured) -> None:
    assert main(["info", "internlm3-8b-instruct", "--memory", "16GiB", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["repository"] == "internlm/internlm3-8b-instruct"
    assert facts["parameters"]["total"] == 8_804_241_408
    assert facts["kv_bytes_per_token"] == 49_152
    assert facts["memory"] == 16 * 2**30
    assert (facts["weights"]["bf16"]["bytes"], facts["weights"]["bf16"]["longest_context"]) == (17_608_482_816, 0)
    assert facts["weights"]["int8"]["longest_context"] > 50_000
    assert facts["config"]["rope"] == {"theta": 5e7, "scaling": "dynamic", "factor": 6.0}
    assert main(["info", "--json"]) == 0
    assert [entry["name"] for entry in json.loads(capsys.readouterr().out)] == [preset.name for preset in PRESETS]


@pytest.mark.parametrize("family", ["internlm2", "internlm", "llama"])
def test_local_checkpoints_are_described_by_their_configuration(tmp_path: Path, capsys: Captured, family: str) -> None:
    decoder = tiny_decoder(family=family)
    save_model(decoder, tmp_path / "mine")
    assert main(["info", str(tmp_path / "mine"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["name"], facts["config"]["family"]) == ("mine", family)
    assert facts["parameters"]["total"] == count_parameters(decoder.config).total


def test_a_folder_goes_before_a_preset_of_its_name(
    tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_model(tiny_decoder(), tmp_path / "internlm2-7b")
    monkeypatch.chdir(tmp_path)
    assert main(["info", "internlm2-7b"]) == 0
    assert "hidden size   64\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["internlm2-7bb"], "unknown model 'internlm2-7bb': did you mean internlm2-7b"),
        (["internlm2-7b", "--memory", "much"], "'much' is not a size: write a number with a unit, like 80GiB"),
        (["."], "no config.json"),
    ],
)
def test_errors_are_one_line(
    tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["info", *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_info_does_without_pytorch(tmp_path: Path) -> None:
    save_model(tiny_decoder(), tmp_path / "mine")
    script = "import sys; from puyulm.cli import main; code = main(sys.argv[1:]); assert 'torch' not in sys.modules"
    for name in ("internlm2-7b", str(tmp_path / "mine")):
        subprocess.run([sys.executable, "-c", script, "info", name], check=True, stdout=subprocess.DEVNULL)
