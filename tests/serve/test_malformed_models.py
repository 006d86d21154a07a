"""Checkpoints and adapters that are damaged are refused at the start, in one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from puyulm.cli import main
from puyulm.model.checkpoint import load_config
from puyulm.serve import server
from tests.engine.adapters import write_adapter
from tests.engine.checkpoints import write_checkpoint


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("malformed"))


@pytest.fixture(autouse=True)
def nothing_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> None:
        pytest.fail("it was taken for a good one")

    monkeypatch.setattr(server, "serve", fail)


def serve(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line that it ends with."""
    assert main(["serve", *words, "--port", "0", "--device", "cpu", "--memory", "1MiB"]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err.startswith("puyu serve: ") and len(shown.err.splitlines()) == 1, shown.err
    return shown.err


def write(name: str, content: str | bytes) -> Callable[[Path], None]:
    data = content if isinstance(content, bytes) else content.encode()
    return lambda folder: (folder / name).write_bytes(data) and None


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def cut(name: str, share: float) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(len(data) * share)])

    return damage


def change_config(**changes: object) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return damage


def change_tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / "model.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path)

    return damage


NORM = "model.norm.weight"

DAMAGES: dict[str, Callable[[Path], None]] = {
    "no config": remove("config.json"),
    "config that is no JSON": write("config.json", "{"),
    "config of another kind": write("config.json", "[1]"),
    "empty config": write("config.json", "{}"),
    "config of bytes": write("config.json", b"\xff\xfe\x00"),
    "nested config": write("config.json", "[" * 100_000),
    "unknown model": change_config(model_type="gpt2", architectures=["GPT2LMHeadModel"]),
    "text for a number": change_config(hidden_size="wide"),
    "nested generation settings": write("generation_config.json", "[" * 100_000),
    "negative size": change_config(num_hidden_layers=-1),
    "no heads": change_config(num_attention_heads=0),
    "heads that do not divide": change_config(num_key_value_heads=3),
    "other width": change_config(hidden_size=128),
    "giant width": change_config(hidden_size=2**40, vocab_size=2**40),
    "more layers than tensors": change_config(num_hidden_layers=3),
    "fewer layers than tensors": change_config(num_hidden_layers=1),
    "rope of no kind": change_config(rope_scaling={"type": "spiral", "factor": 2}),
    "no weights": remove("model.safetensors"),
    "empty weights": write("model.safetensors", b""),
    "weights that are no safetensors": write("model.safetensors", b"PK\x03\x04" * 100),
    "header of a giant length": write("model.safetensors", b"\xff" * 7 + b"\x7f" + b"{}"),
    "truncated weights": cut("model.safetensors", 0.5),
    "a tensor short": change_tensors(lambda tensors: tensors.pop(NORM)),
    "a tensor too many": change_tensors(lambda tensors: tensors.update(extra=torch.zeros(2))),
    "a tensor of integers": change_tensors(lambda tensors: tensors.update({NORM: tensors[NORM].to(torch.int32)})),
    "a tensor of another shape": change_tensors(lambda tensors: tensors.update({NORM: tensors[NORM][:-1].clone()})),
    "generation settings that are no JSON": write("generation_config.json", "{"),
    "impossible generation settings": write("generation_config.json", '{"temperature": "hot"}'),
}


@pytest.mark.parametrize("kind", DAMAGES)
def test_a_damaged_checkpoint(kind: str, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "model"
    shutil.copytree(model, folder)
    DAMAGES[kind](folder)
    assert str(folder) in serve(capsys, str(folder)), kind


def test_damaged_tokenizers(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [path.name for path in model.iterdir() if "token" in path.name]
    assert names
    for name in names:
        for number, damage in enumerate((write(name, "{"), write(name, b"\xff\x00"), cut(name, 0.5))):
            folder = tmp_path / f"{name}-{number}"
            shutil.copytree(model, folder)
            damage(folder)
            assert str(folder) in serve(capsys, str(folder)), (name, number)


def test_other_files_are_no_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, content in (
        ("a.gguf", b"GGUF"),
        ("b.gguf", b"GGUF\x03\x00\x00\x00" + b"\xff" * 16),
        ("c.gguf", b""),
        ("d.txt", b"x"),
    ):
        (tmp_path / name).write_bytes(content)
        assert name in serve(capsys, str(tmp_path / name))
    assert "nobody/nothing" in serve(capsys, "nobody/nothing")


@pytest.mark.parametrize(
    "damage",
    [
        remove("adapter_config.json"), remove("adapter_model.safetensors"), write("adapter_config.json", "["),
        write("adapter_config.json", "[]"), write("adapter_model.safetensors", b"no"),
        cut("adapter_model.safetensors", 0.5),
    ],
)  # fmt: skip
def test_a_damaged_adapter(
    damage: Callable[[Path], None], model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_adapter(tmp_path / "adapter", load_config(model))
    damage(folder)
    assert str(folder) in serve(capsys, str(model), "--lora", f"a={folder}")


@pytest.mark.parametrize(
    "settings",
    [
        {"r": 0}, {"r": "four"}, {"r": 10**9}, {"lora_alpha": None}, {"peft_type": "IA3"}, 
        {"bias": "all"}, {"use_dora": True},
    ],
)  # fmt: skip
def test_an_adapter_of_impossible_settings(
    settings: dict[str, Any], model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_adapter(tmp_path / "adapter", load_config(model))
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    assert str(folder) in serve(capsys, str(model), "--lora", f"a={folder}")


def test_an_adapter_of_another_model(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, change in enumerate(({"hidden_size": 32}, {"num_layers": 3})):
        folder = write_adapter(tmp_path / f"adapter-{number}", load_config(model).evolve(**change))
        assert str(folder) in serve(capsys, str(model), "--lora", f"a={folder}")
