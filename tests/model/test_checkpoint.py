"""Round trips through published layouts, and what is said about damaged folders."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from puyulm.errors import CheckpointError, ConfigError
from puyulm.model.attention import PackedAttention
from puyulm.model.checkpoint import load_config, load_model, save_model
from puyulm.model.config import ModelConfig, RopeConfig
from puyulm.model.decoder import Decoder
from puyulm.model.hf_config import config_from_json, config_to_json
from puyulm.model.layouts import layout_of, published_tensors
from tests.conftest import tiny_config, tiny_decoder

FAMILIES = {
    "internlm": dict(family="internlm", num_kv_heads=4, qkv_bias=True, out_bias=True, rms_norm_eps=1e-6,
                     rope=RopeConfig(theta=1e4, scaling="dynamic", factor=1.0)),
    "internlm2": dict(family="internlm2", rope=RopeConfig(theta=1e6, scaling="dynamic", factor=2.0)),
    "reward": dict(family="internlm2", head="reward", reward_token_id=7),
    "internlm3": dict(family="internlm3", qkv_bias=True, rope=RopeConfig(theta=5e7, scaling="dynamic", factor=6.0)),
    "internlm3-mlp-bias": dict(family="internlm3", out_bias=True, mlp_bias=True, head_dim=8),
    "llama": dict(family="llama", tie_embeddings=True, rope=RopeConfig(theta=1e5, scaling="linear", factor=2.0)),
}  # fmt: skip


def random_decoder(name: str) -> Decoder:
    decoder = tiny_decoder(**FAMILIES[name])
    with torch.no_grad():  # biases and a reward head start at zero, which would hide a swap
        for parameter in decoder.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)), alpha=0.1)
    return decoder


def hidden(decoder: Decoder) -> torch.Tensor:
    attention = PackedAttention([9, 80])
    with torch.no_grad():
        return decoder.head(decoder(torch.arange(89), attention.positions, attention))


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("shard", [10**9, 20_000])
def test_save_and_load_give_the_same_model_and_the_same_bytes(tmp_path: Path, name: str, shard: int):
    decoder = random_decoder(name)
    save_model(decoder, tmp_path / "a", max_shard_bytes=shard)
    assert (tmp_path / "a" / "model.safetensors.index.json").exists() == (shard == 20_000)
    loaded = load_model(tmp_path / "a")
    assert loaded.config == decoder.config
    assert torch.equal(hidden(loaded), hidden(decoder))
    save_model(loaded, tmp_path / "b", max_shard_bytes=shard)
    files = sorted(path.name for path in (tmp_path / "a").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "b").iterdir())
    assert all((tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes() for file in files)


@pytest.mark.parametrize("name", ["internlm-tiny", "internlm2-tiny", "internlm3-tiny", "internlm2-reward-tiny"])
def test_published_checkpoints_round_trip_to_the_bit(shared_dir: Path, tmp_path: Path, name: str):
    save_model(load_model(shared_dir / "golden" / name), tmp_path / "copy", source=shared_dir / "golden" / name)
    before = load_file(shared_dir / "golden" / name / "model.safetensors")
    after = load_file(tmp_path / "copy" / "model.safetensors")
    before = {key: value for key, value in before.items() if not key.endswith("inv_freq")}
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert load_config(tmp_path / "copy") == load_config(shared_dir / "golden" / name)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_files_are_kept_or_widened(tmp_path: Path, dtype: torch.dtype):
    decoder = random_decoder("internlm3").to(dtype)
    save_model(decoder, tmp_path / "half")
    assert load_config(tmp_path / "half").dtype == str(dtype).removeprefix("torch.")
    kept, widened = load_model(tmp_path / "half", dtype=dtype), load_model(tmp_path / "half")
    for original, same, wide in zip(decoder.parameters(), kept.parameters(), widened.parameters(), strict=True):
        assert torch.equal(original, same)
        assert wide.dtype == torch.float32
        assert torch.equal(original.float(), wide)


@pytest.mark.parametrize("legacy", [False, True])
def test_bin_files_load_without_unpickling_code(tmp_path: Path, legacy: bool):
    decoder = random_decoder("internlm")
    save_model(decoder, tmp_path / "m")
    weights = load_file(tmp_path / "m" / "model.safetensors")
    weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(4)  # early files hold it; it is ignored
    (tmp_path / "m" / "model.safetensors").unlink()
    names = sorted(weights)
    files = {"pytorch_model-00001-of-00002.bin": names[:9], "pytorch_model-00002-of-00002.bin": names[9:]}
    for file, part in files.items():
        state = {name: weights[name] for name in part}
        torch.save(state, tmp_path / "m" / file, _use_new_zipfile_serialization=not legacy)
    index = {"weight_map": {name: file for file, part in files.items() for name in part}}
    (tmp_path / "m" / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert torch.equal(hidden(load_model(tmp_path / "m")), hidden(decoder))


def test_a_bin_file_that_runs_code_is_refused(tmp_path: Path):
    save_model(random_decoder("internlm"), tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").unlink()
    torch.save({"x": Path("anything but a tensor")}, tmp_path / "m" / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin: cannot be read"):
        load_model(tmp_path / "m")


def test_week_one_internlm2_folders_are_recognised_by_their_tensors(tmp_path: Path):
    decoder = random_decoder("internlm2")
    save_model(decoder, tmp_path / "m")
    raw = json.loads((tmp_path / "m" / "config.json").read_text())
    raw["model_type"], raw["architectures"] = "internlm", ["InternLMForCausalLM"]
    (tmp_path / "m" / "config.json").write_text(json.dumps(raw))
    assert load_config(tmp_path / "m").family == "internlm2"
    assert torch.equal(hidden(load_model(tmp_path / "m")), hidden(decoder))


@pytest.mark.parametrize("name", ["internlm", "internlm2", "internlm3-mlp-bias", "llama", "reward"])
def test_transformers_loads_the_llama_layout_and_agrees(tmp_path: Path, name: str):
    transformers = pytest.importorskip("transformers")
    changes = dict(FAMILIES[name])
    if name == "internlm3-mlp-bias":
        changes |= dict(qkv_bias=True)  # Llama has one flag for q, k, v and o
    decoder = random_decoder(name) if changes == FAMILIES[name] else tiny_decoder(**changes)
    save_model(decoder, tmp_path / "m", layout="llama")
    kind = transformers.AutoModelForSequenceClassification if name == "reward" else transformers.AutoModelForCausalLM
    theirs = kind.from_pretrained(tmp_path / "m").eval()
    ids = torch.arange(3, 83)  # longer than the 64 positions: dynamic bases differ from plain ones
    with torch.no_grad():
        expected = theirs(ids[None]).logits[0]
        attention = PackedAttention([80])
        output = decoder(ids, attention.positions, attention)
        ours = decoder.scores(output, attention.cu_seqlens) if name == "reward" else decoder.logits(output)
    torch.testing.assert_close(ours, expected, atol=2e-5, rtol=1e-5)


def test_llama_layout_refuses_what_it_cannot_express(tmp_path: Path):
    with pytest.raises(ConfigError, match="llama layout cannot express qkv_bias=True, out_bias=False"):
        save_model(random_decoder("internlm3"), tmp_path / "m", layout="llama")
    assert not list(tmp_path.iterdir())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    save_model(random_decoder("internlm2"), tmp_path / "m")
    return tmp_path / "m"


def edit_weights(folder: Path, change) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")


def refused(folder: Path, *words: str) -> None:
    with pytest.raises((CheckpointError, ConfigError)) as caught:
        load_model(folder)
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


def test_missing_tensor(folder: Path):
    edit_weights(folder, lambda w: w.pop("model.layers.1.feed_forward.w3.weight"))
    refused(folder, "1 tensor missing", "model.layers.1.feed_forward.w3.weight", str(folder))


def test_unexpected_tensor(folder: Path):
    edit_weights(folder, lambda w: w.update({"model.extra": torch.zeros(2)}))
    refused(folder, "unexpected", "model.extra", "model.safetensors")


def test_wrong_shape(folder: Path):
    edit_weights(folder, lambda w: w.update({"output.weight": torch.zeros(5, 64)}))
    refused(folder, "output.weight", "[5, 64]", "[128, 64]", "model.safetensors")


def test_truncated_file(folder: Path):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    refused(folder, "truncated", str(file))


@pytest.mark.parametrize("head", [b"", b"\x10", struct.pack("<Q", 2**60), struct.pack("<Q", 20) + b"{" * 40])
def test_corrupt_header(folder: Path, head: bytes):
    (folder / "model.safetensors").write_bytes(head)
    refused(folder, "safetensors", str(folder / "model.safetensors"))


def test_header_of_the_wrong_kind(folder: Path):
    for content in (
        b"[1, 2]",
        b'{"a": {"dtype": "F32"}}',
        b'{"a": {"dtype": "Q9", "shape": [1], "data_offsets": [0, 4]}}',
    ):
        (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(content)) + content + bytes(64))
        refused(folder, str(folder / "model.safetensors"))


def test_missing_shard_and_damaged_index(folder: Path):
    (folder / "model.safetensors").unlink()
    refused(folder, "no weights")
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors"}}))
    refused(folder, "model-00001-of-00002.safetensors")
    index.write_text("{")
    refused(folder, "damaged index")


def test_config_of_another_family(folder: Path):
    save_model(random_decoder("internlm3"), folder.with_name("other"))
    shutil.copy(folder.with_name("other") / "config.json", folder / "config.json")
    raw = json.loads((folder / "config.json").read_text()) | {"qkv_bias": False}
    (folder / "config.json").write_text(json.dumps(raw))
    refused(folder, "config.json says internlm3", "internlm2 names")


def test_config_errors_name_the_file_and_the_nearest_model(folder: Path):
    file = folder / "config.json"
    raw = json.loads(file.read_text())
    for change, words in (
        ({"model_type": "internlm4"}, ("unknown model_type 'internlm4'", "did you mean 'internlm")),
        ({"hidden_act": "gelu"}, ("gelu", "silu")),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0}}, ("yarn", "linear and dynamic")),
        ({"num_key_value_heads": 3}, ("num_heads (4)", "num_kv_heads (3)")),
        ({"torch_dtype": "int4"}, ("int4",)),
        ({"num_attention_heads": 0}, ("num_attention_heads must be a positive whole number, not 0",)),
        ({"hidden_size": "64"}, ("hidden_size", "'64'")),
        ({"num_key_value_heads": "2"}, ("num_kv_heads", "'2'")),
        ({"head_dim": 1.5}, ("head_dim", "1.5")),
        ({"rms_norm_eps": "small"}, ("rms_norm_eps must be a number", "'small'")),
        ({"rope_theta": "big"}, ("rope base", "'big'")),
        ({"rope_scaling": "dynamic"}, ("rope_scaling must be a JSON object", "'dynamic'")),
        ({"rope_scaling": {"type": "dynamic", "factor": None}}, ("rope scaling factor", "None")),
        ({"rope_scaling": {"type": ["dynamic"]}}, ("rope scaling ['dynamic']",)),
        ({"architectures": 3}, ("architectures must be a list of names, not 3",)),
        ({"eos_token_id": ["</s>"]}, ("eos_token_id", "'</s>'")),
    ):
        file.write_text(json.dumps(raw | change))
        refused(folder, str(file), *words)
    file.write_text("{")
    refused(folder, "not valid JSON")
    file.unlink()
    refused(folder, "no config.json")


def test_saving_refuses_to_overwrite_and_leaves_nothing_half_written(folder: Path, monkeypatch: pytest.MonkeyPatch):
    before = (folder / "model.safetensors").read_bytes()
    decoder = tiny_decoder(seed=9)
    with pytest.raises(CheckpointError, match="already exists"):
        save_model(decoder, folder)

    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("puyulm.model.weight_writer.write_tensors", fail)
    with pytest.raises(CheckpointError, match=r"m: cannot be written: disk full"):
        save_model(decoder, folder, overwrite=True)
    assert (folder / "model.safetensors").read_bytes() == before
    assert [path.name for path in folder.parent.iterdir()] == ["m"]
    monkeypatch.undo()
    save_model(decoder, folder, overwrite=True)
    assert (folder / "model.safetensors").read_bytes() != before
    assert [path.name for path in folder.parent.iterdir()] == ["m"]


def test_what_killed_processes_left_is_removed(tmp_path: Path):
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True)
    left, running = tmp_path / f".m.partial-{ended.stdout.strip()}", tmp_path / f".m.partial-{os.getppid()}"
    for folder in (left, running):
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"half")
    save_model(random_decoder("internlm2"), tmp_path / "m")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([running.name, "m"])


def test_the_working_folder_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="is the current folder"):
        save_model(tiny_decoder(), Path("."))


def test_code_and_unknown_keys_of_the_source_stay_in_its_own_layout(folder: Path):
    file = folder / "config.json"
    raw = json.loads(file.read_text())
    extra = {"auto_map": {"AutoModel": "modeling_x.M"}, "pretraining_tp": 1}
    file.write_text(json.dumps({**extra, **raw, "torch_dtype": None, "dtype": "bfloat16", "rope_parameters": None}))
    names = ("modeling_x.py", "configuration_x.py", "vocab.json", "merges.txt")
    for name in names:
        (folder / name).write_text(name)
    decoder = load_model(folder)
    save_model(decoder, folder.with_name("own"), source=folder)
    saved = json.loads((folder.with_name("own") / "config.json").read_text())
    assert saved == {**extra, **raw, "torch_dtype": "float32"}
    assert list(saved)[:2] == list(extra)
    assert all((folder.with_name("own") / name).read_text() == name for name in names)
    save_model(decoder, folder.with_name("llama"), source=folder, layout="llama")
    assert "auto_map" not in json.loads((folder.with_name("llama") / "config.json").read_text())
    assert not list(folder.with_name("llama").glob("*.py"))


def test_null_token_ids_are_none_and_missing_ones_take_the_default():
    nulls = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    config = config_from_json({"model_type": "internlm2", **nulls})
    assert (config.bos_token_id, config.eos_token_ids, config.pad_token_id) == (None, (), None)
    missing = config_from_json({"model_type": "internlm2"})
    assert (missing.bos_token_id, missing.eos_token_ids, missing.pad_token_id) == (1, (2,), 0)
    written = json.loads(json.dumps(config_to_json(config)))
    assert nulls.items() <= written.items() and config_from_json(written) == config


def test_rotary_of_the_first_generation_must_be_an_object():
    with pytest.raises(ConfigError, match=r"config\.json: rotary must be a JSON object, not 'dynamic'"):
        config_from_json({"model_type": "internlm", "rotary": "dynamic"})


@pytest.mark.parametrize("family", ["internlm", "internlm3"])
def test_a_reward_head_needs_a_layout_that_has_one(family: str):
    with pytest.raises(ConfigError, match=f"the {family} layout has no reward head"):
        config_to_json(tiny_config(family=family, head="reward"))


def test_missing_keys_take_the_published_class_defaults():
    v1 = config_from_json({"model_type": "internlm"})
    assert (v1.vocab_size, v1.num_kv_heads, v1.qkv_bias, v1.out_bias, v1.mlp_bias) == (103_168, 32, True, True, False)
    assert v1.rope == RopeConfig(theta=10_000.0, scaling="dynamic", factor=1.0)
    v2 = config_from_json({"model_type": "internlm2"})
    assert (v2.vocab_size, v2.intermediate_size, v2.num_kv_heads, v2.qkv_bias) == (103_168, 11_008, 32, True)
    v3 = config_from_json({"model_type": "internlm3", "head_dim": 64})
    assert (v3.vocab_size, v3.head_dim, v3.qkv_bias) == (128_512, 64, False)


def test_rope_keys_of_every_generation():
    def rope(**raw: object) -> RopeConfig:
        return config_from_json(raw).rope

    dynamic = RopeConfig(theta=1e6, scaling="dynamic", factor=2.0)
    assert rope(model_type="internlm", rotary={"base": 7, "type": "origin"}) == RopeConfig(theta=7.0)
    assert rope(model_type="internlm2", rope_theta=1e6, rope_scaling={"type": "dynamic", "factor": 2}) == dynamic
    assert rope(model_type="internlm3", rope_theta=1e6, rope_scaling={"rope_type": "dynamic", "factor": 2.0}) == dynamic
    assert rope(model_type="internlm2", rope_theta=1e6, rope_scaling=None) == RopeConfig(theta=1e6)
    five = {"rope_theta": 1e6, "rope_type": "dynamic", "factor": 2.0}
    assert rope(model_type="llama", rope_parameters=five) == dynamic


@pytest.mark.parametrize("name", FAMILIES)
def test_config_round_trip(name: str):
    config = tiny_config(**FAMILIES[name])
    assert config_from_json(json.loads(json.dumps(config_to_json(config)))) == config


def test_every_published_row_has_exactly_one_place():
    """Slots tile each parameter: writing ones through all of them counts one everywhere."""
    for name in FAMILIES:
        config: ModelConfig = tiny_config(**FAMILIES[name])
        for layout in (layout_of(config), "llama"):
            decoder = Decoder(config)
            counts = {key: torch.zeros_like(p) for key, p in decoder.named_parameters()}
            for slot in published_tensors(config, layout).values():
                slot.rows(counts[slot.parameter]).add_(1)
            assert all(torch.equal(count, torch.ones_like(count)) for count in counts.values()), (name, layout)
