"""`puyu check`: recordings of published code, and recordings made here, sound and spoilt."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from puyulm.cli import main
from puyulm.errors import CheckpointError
from puyulm.model.attention import PackedAttention
from puyulm.model.check import check_model
from puyulm.model.checkpoint import save_model
from puyulm.model.decoder import Decoder
from tests.conftest import tiny_decoder


def record(decoder: Decoder, file: Path, *lengths: int) -> dict[str, torch.Tensor]:
    """Two rows of each length, each computed alone."""
    tensors: dict[str, torch.Tensor] = {}
    for length in lengths:
        ids = torch.arange(2 * length).view(2, length) * 13 % 128
        outputs = []
        for row in ids:
            attention = PackedAttention([length])
            hidden = decoder(row, attention.positions, attention)
            lm = decoder.config.head == "lm"
            outputs.append(decoder.logits(hidden) if lm else decoder.scores(hidden, attention.cu_seqlens))
        tensors[f"input_ids.{length}"] = ids
        tensors[f"{'logits' if lm else 'reward'}.{length}"] = torch.stack(outputs).detach()
    save_file(tensors, file)
    return tensors


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint of a tiny decoder with a recording of two cases."""
    decoder = tiny_decoder()
    save_model(decoder, tmp_path / "model")
    record(decoder, tmp_path / "model" / "expected.safetensors", 6, 80)
    return tmp_path / "model"


@pytest.mark.parametrize("name", ["internlm-tiny", "internlm2-tiny", "internlm2-reward-tiny", "internlm3-tiny"])
def test_published_code_computes_the_same(shared_dir: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    assert main(["check", str(shared_dir / "golden" / name), "--tolerance", "1e-5", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["passed"]
    assert len(report["cases"]) == 2
    assert all(0 < case["max_abs_difference"] <= 1e-5 for case in report["cases"])


def test_a_sound_checkpoint_passes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(folder)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines[1:3]] == [["logits.6", "2", "6"], ["logits.80", "2", "80"]]
    assert lines[-1] == "all 2 cases within 0.0001 (float32)"


def test_a_changed_weight_fails_and_says_by_how_much(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["output.weight"][5] += 0.01
    save_file(weights, folder / "model.safetensors")
    assert main(["check", str(folder), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert not report["passed"]
    assert all(0.001 < case["max_abs_difference"] < 1 for case in report["cases"])
    assert main(["check", str(folder), "--tolerance", "1"]) == 0
    capsys.readouterr()
    assert main(["check", str(folder)]) == 1
    assert "2 of 2 cases above 0.0001" in capsys.readouterr().out


def test_one_wrong_value_in_the_second_row_is_seen(folder: Path) -> None:
    file = folder / "expected.safetensors"
    tensors = load_file(file)
    tensors["logits.6"][1, 3, 7] += 0.5
    save_file(tensors, file)
    by_name = {result.name: result.difference for result in check_model(tiny_decoder(), file)}
    assert by_name["logits.6"] == pytest.approx(0.5, abs=1e-4)
    assert by_name["logits.80"] < 1e-5


def test_a_value_that_is_no_number_fails(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = folder / "expected.safetensors"
    tensors = load_file(file)
    tensors["logits.6"][0, 0, 0] = float("nan")
    save_file(tensors, file)
    assert main(["check", str(folder), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["cases"][0]["max_abs_difference"] is None


def test_rewards_are_compared(tmp_path: Path) -> None:
    decoder = tiny_decoder(head="reward", reward_token_id=127)
    torch.nn.init.normal_(decoder.head.weight, generator=torch.Generator().manual_seed(3))
    tensors = record(decoder, tmp_path / "expected.safetensors", 5, 9)
    assert tensors["reward.5"].shape == (2, 1)
    results = check_model(decoder, tmp_path / "expected.safetensors")
    assert [(result.name, result.within(1e-5)) for result in results] == [("reward.5", True), ("reward.9", True)]
    with torch.no_grad():
        decoder.head.weight *= 1.5
    assert not any(result.within(1e-3) for result in check_model(decoder, tmp_path / "expected.safetensors"))


def test_another_recording_can_be_named(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record(tiny_decoder(seed=1), tmp_path / "other.safetensors", 4)
    assert main(["check", str(folder), "--expected", str(tmp_path / "other.safetensors")]) == 1
    (folder / "expected.safetensors").unlink()
    capsys.readouterr()
    assert main(["check", str(folder)]) == 2
    assert capsys.readouterr().err.endswith("name the recorded inputs and outputs with --expected\n")


IDS = torch.zeros(2, 4, dtype=torch.int64)
LOGITS = torch.zeros(2, 4, 128)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"input_ids.4": IDS}, r"input_ids.4 has no logits.4 beside it"),
        ({"input_ids.4": IDS, "logits.4": LOGITS, "logits.5": LOGITS}, r"logits.5 has no input_ids.5 beside it"),
        ({"input_ids.4": IDS, "logits.4": LOGITS[:, :3]}, r"shape \[2, 3, 128\], the model gives \[2, 4, 128\]"),
        ({"input_ids.4": IDS + 128, "logits.4": LOGITS}, r"token 128, the vocabulary has 128"),
        ({"input_ids.4": IDS[0], "logits.4": LOGITS}, r"must be whole numbers \[rows, length\]"),
        ({"input_ids.4": IDS.float(), "logits.4": LOGITS}, r"must be whole numbers \[rows, length\]"),
        ({"input_ids.4": IDS, "reward.4": LOGITS[0]}, r"input_ids.4 has no logits.4"),
        ({"other": IDS}, r"no input_ids.N with logits.N"),
    ],
)  # fmt: skip
def test_recordings_that_do_not_fit_are_refused(tmp_path: Path, tensors: dict, message: str) -> None:
    save_file(
        {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()},
        tmp_path / "expected.safetensors",
    )
    with pytest.raises(CheckpointError, match=message):
        check_model(tiny_decoder(), tmp_path / "expected.safetensors")
