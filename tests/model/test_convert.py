"""`puyu convert`: other layouts, types and shard sizes, from folders and GGUF files."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from puyulm.cli import main
from puyulm.model.checkpoint import load_model, save_model
from puyulm.text.tokenizer import Tokenizer
from tests.conftest import tiny_decoder
from tests.model.gguf_files import write

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    save_model(tiny_decoder(), tmp_path / "source")
    (tmp_path / "source" / "tokenizer_config.json").write_text('{"made": "here"}')
    return tmp_path / "source"


def test_the_llama_layout_and_back_is_bit_exact(source: Path, tmp_path: Path, capsys: Captured) -> None:
    assert main(["convert", str(source), str(tmp_path / "llama"), "--layout", "llama"]) == 0
    captured = capsys.readouterr().out
    assert "model.safetensors" in captured
    assert captured.endswith(f"wrote {tmp_path / 'llama'}: llama layout, float32\n")
    assert (tmp_path / "llama" / "tokenizer_config.json").read_text() == '{"made": "here"}'
    assert load_model(tmp_path / "llama").config.family == "llama"
    ours, theirs = load_model(source).state_dict(), load_model(tmp_path / "llama").state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_own_layout_keeps_every_tensor(source: Path, tmp_path: Path) -> None:
    assert main(["convert", str(source), str(tmp_path / "copy")]) == 0
    before, after = (load_file(folder / "model.safetensors") for folder in (source, tmp_path / "copy"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_dtype_and_shard_size(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "half"
    assert main(["convert", str(source), str(target), "--dtype", "bfloat16", "--max-shard-size", "60KB"]) == 0
    shards = sorted(target.glob("model-*-of-*.safetensors"))
    assert len(shards) > 1
    for shard in shards:
        with safe_open(shard, "pt") as file:
            sizes = [file.get_tensor(name).nbytes for name in file.keys()]  # noqa: SIM118
        assert sum(sizes) <= 60_000
    assert load_model(target, torch.bfloat16).embed.weight.dtype == torch.bfloat16
    assert (target / "model.safetensors.index.json").is_file()


def test_an_existing_folder_is_kept_unless_told(source: Path, tmp_path: Path, capsys: Captured) -> None:
    target = tmp_path / "mine"
    target.mkdir()
    (target / "notes.txt").write_text("keep me")
    assert main(["convert", str(source), str(target)]) == 2
    assert "already exists; choose another folder, or add --overwrite" in capsys.readouterr().err
    assert [file.name for file in target.iterdir()] == ["notes.txt"]
    assert main(["convert", str(source), str(target), "--overwrite"]) == 0
    assert (target / "model.safetensors").is_file()
    assert not (target / "notes.txt").exists()


def test_a_failure_leaves_no_destination(tmp_path: Path, source: Path, capsys: Captured) -> None:
    (source / "model.safetensors").write_bytes((source / "model.safetensors").read_bytes()[:-10])
    assert main(["convert", str(source), str(tmp_path / "out")]) == 2
    assert "truncated" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main(["convert", str(source), str(tmp_path / "out"), "--max-shard-size", "big"]) == 2


def test_a_gguf_file_becomes_a_folder_with_its_tokenizer(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", tiny_decoder(family="internlm2"), architecture="internlm2")
    assert main(["convert", str(path), str(tmp_path / "folder")]) == 0
    ours, theirs = load_model(path).state_dict(), load_model(tmp_path / "folder").state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    tokenizer = Tokenizer.load(tmp_path / "folder")
    assert tokenizer.encode("Hi") == Tokenizer.load(path).encode("Hi") == [ord("H"), ord("i")]


def test_a_gguf_file_without_a_tokenizer_is_converted_with_a_note(tmp_path: Path, capsys: Captured) -> None:
    path = write(tmp_path / "m.gguf", tiny_decoder(family="llama"), tokenizer=False)
    assert main(["convert", str(path), str(tmp_path / "folder")]) == 0
    assert "note: no tokenizer is written" in capsys.readouterr().err
    assert load_model(tmp_path / "folder").config.family == "llama"
