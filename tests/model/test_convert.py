"""`puyu convert`: other layouts, types and shard sizes, from folders and GGUF files."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from puyulm.cli import main
from puyulm.model.checkpoint import load_model, save_model
from puyulm.text.tokenizer import Tokenizer
from puyulm.text.train import train_tokenizer
from tests.conftest import tiny_decoder
from tests.model.gguf_files import write
from tests.text.conftest import made_text

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


def test_autotokenizer_loads_the_llama_layout_of_a_tokenizer_with_code(
    source: Path, tmp_path: Path, capsys: Captured
) -> None:
    transformers = pytest.importorskip("transformers")
    text = "The first model, 123 tokens.\n今天天气很好。\n"
    train_tokenizer([made_text(200)], 600, tmp_path / "trained", "sentencepiece", max_digits=1)
    trained = Tokenizer.load(tmp_path / "trained")
    (source / "tokenizer.model").write_bytes((tmp_path / "trained" / "tokenizer.model").read_bytes())
    (source / "tokenization_internlm2.py").write_text("raise RuntimeError('code of a checkpoint has run')")
    settings = {
        "tokenizer_class": "InternLM2Tokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>",
        "auto_map": {"AutoTokenizer": ["tokenization_internlm2.InternLM2Tokenizer", None]}, "chat_template": "{{ 1 }}",
    }  # fmt: skip
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    assert main(["convert", str(source), str(tmp_path / "llama"), "--layout", "llama"]) == 0
    assert "note:" not in capsys.readouterr().err
    written = json.loads((tmp_path / "llama" / "tokenizer_config.json").read_text())
    assert written["tokenizer_class"] == "PreTrainedTokenizerFast" and "auto_map" not in written
    peer = transformers.AutoTokenizer.from_pretrained(tmp_path / "llama")
    assert peer.encode(text, add_special_tokens=False) == trained.encode(text)
    assert (peer.bos_token, peer.eos_token, peer.chat_template) == ("<s>", "</s>", "{{ 1 }}")
    assert not list((tmp_path / "llama").glob("*.py"))
    assert main(["convert", str(source), str(tmp_path / "own")]) == 0
    assert json.loads((tmp_path / "own" / "tokenizer_config.json").read_text()) == settings
    assert (tmp_path / "own" / "tokenization_internlm2.py").is_file()


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
