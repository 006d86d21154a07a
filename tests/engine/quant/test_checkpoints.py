"""Quantised folders: written, read back bit for bit, interrupted, damaged."""

from __future__ import annotations

import json
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from puyulm.engine.quant import files
from puyulm.engine.quant.float8 import Float8Linear, Float8Weight
from puyulm.engine.quant.layerwise import LayerwisePass
from puyulm.engine.quant.linear import AnyWeight, QuantWeightLinear
from puyulm.engine.quant.load import is_quantized, load_quantized
from puyulm.engine.quant.report import perplexity
from puyulm.engine.quant.run import quantize_checkpoint
from puyulm.engine.quant.settings import QuantSettings
from puyulm.engine.quant.source import FloatSource
from puyulm.errors import CheckpointError, ConfigError, PuyuError
from puyulm.model.checkpoint import load_model, save_model
from puyulm.model.decoder import Block, Decoder
from tests.engine.quant.models import logits, outlier_decoder, save, tokens

V3 = {"family": "internlm3", "qkv_bias": True, "out_bias": True, "mlp_bias": True, "num_kv_heads": 1}
SETTINGS = {
    "rtn": QuantSettings(),
    "rtn8": QuantSettings(bits=8, group_size=None),
    "rtn8-32": QuantSettings(bits=8, head="keep"),
    "awq": QuantSettings(method="awq", zero_point=True, head="int4"),
    "gptq": QuantSettings(method="gptq", act_order=True),
    "smoothquant": QuantSettings(method="smoothquant", bits=8, group_size=None),
    "fp8": QuantSettings(method="fp8", bits=8, group_size=None, head="keep"),
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(outlier_decoder(), tmp_path_factory.mktemp("float") / "model")


def weights(decoder: Decoder) -> dict[str, Tensor | AnyWeight]:
    """Everything that a decoder holds, by name."""
    held: dict[str, Tensor | AnyWeight] = {name: p.detach() for name, p in decoder.named_parameters()}
    for name, module in decoder.named_modules():
        if isinstance(module, QuantWeightLinear | Float8Linear):
            held[f"{name}.weight"] = module.weight
            if module.bias is not None:
                held[f"{name}.bias"] = module.bias
    return held


def parts(value: Tensor | AnyWeight) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Float8Weight):
        return [value.codes.view(torch.uint8), value.scales]
    zeros = [] if value.zeros is None else [value.zeros]
    return [value.codes, value.scales, *zeros, torch.tensor([value.bits, value.group_size])]


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("shape", [{}, V3, {"tie_embeddings": True, "family": "llama"}], ids=["v2", "v3", "tied"])
def test_what_is_written_is_read_back_bit_for_bit(tmp_path: Path, name: str, shape: dict[str, object]):
    path, settings = save(outlier_decoder(**shape), tmp_path / "float"), SETTINGS[name]
    calibration = tokens(4, 32)
    made = dict(LayerwisePass(FloatSource(path), settings, calibration, None, torch.device("cpu")).parameters())
    report = quantize_checkpoint(path, tmp_path / "q", settings, calibration=calibration, held_out=tokens(2, 32, 7))
    read = load_quantized(tmp_path / "q")
    held = weights(read)
    assert held.keys() == made.keys()
    for parameter, value in made.items():
        assert type(held[parameter]) is type(value), parameter
        for ours, theirs in zip(parts(held[parameter]), parts(value), strict=True):
            assert ours.dtype == theirs.dtype and torch.equal(ours, theirs), parameter
    assert is_quantized(tmp_path / "q") and not is_quantized(path)
    assert report.perplexity is not None and report.perplexity[1] < 3 * report.perplexity[0]
    assert report.bytes[1] < 0.7 * report.bytes[0]
    quantised_rows = [linear for linear in read.modules() if isinstance(linear, QuantWeightLinear)]
    assert {linear.activations for linear in quantised_rows} <= ({"int8"} if name == "smoothquant" else {None})


def test_shards_give_the_same_model_as_one_file(source: Path, tmp_path: Path):
    for folder, limit in (("one", 1 << 30), ("many", 40_000)):
        quantize_checkpoint(source, tmp_path / folder, QuantSettings(), max_shard_bytes=limit)
    shards = sorted((tmp_path / "many").glob("model-*.safetensors"))
    assert len(shards) > 1 and all(shard.stat().st_size < 45_000 for shard in shards)
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {shard.name for shard in shards}
    one, many = (weights(load_quantized(tmp_path / folder)) for folder in ("one", "many"))
    for name, value in one.items():
        for ours, theirs in zip(parts(value), parts(many[name]), strict=True):
            assert torch.equal(ours, theirs), name


def test_the_folder_is_its_family_s_own(tmp_path: Path):
    config = {"model_type": "internlm2", "auto_map": {"AutoModel": "modeling_internlm2.X"}}
    source = save(outlier_decoder(), tmp_path / "float")
    given = json.loads((source / "config.json").read_text()) | config
    (source / "config.json").write_text(json.dumps(given))
    (source / "modeling_internlm2.py").write_text("pass\n")
    (source / "tokenizer.json").write_text("{}")
    quantize_checkpoint(source, tmp_path / "q", QuantSettings(method="awq", zero_point=True), calibration=tokens(4, 32))
    written = json.loads((tmp_path / "q" / "config.json").read_text())
    assert written["auto_map"] == config["auto_map"] and written["hidden_size"] == 64
    assert written["quantization_config"] == {
        "quant_method": "puyulm", "version": 1, "method": "awq", "kind": "integer", "bits": 4, "group_size": 32,
        "zero_point": True, "activations": None,
        "head": {"kind": "integer", "bits": 8, "group_size": 32, "zero_point": False},
    }  # fmt: skip
    assert {"modeling_internlm2.py", "tokenizer.json", "quantization.json"} <= {
        f.name for f in (tmp_path / "q").iterdir()
    }
    stored = load_file(tmp_path / "q" / "model.safetensors")
    base = "model.layers.1.feed_forward.w1"
    assert stored[f"{base}.codes"].shape == (96, 32) and stored[f"{base}.codes"].dtype == torch.uint8
    assert stored[f"{base}.scales"].shape == stored[f"{base}.zeros"].shape == (96, 2)
    assert stored[f"{base}.scales"].dtype == torch.float16
    assert f"{base}.weight" not in stored and stored["output.codes"].dtype == torch.int8
    assert stored["model.tok_embeddings.weight"].dtype == torch.float32


def test_bfloat16_checkpoints_keep_their_type_and_bfloat16_norms_lose_nothing(tmp_path: Path):
    decoder, rows = outlier_decoder().to(torch.bfloat16), tokens(2, 32, 7)
    save_model(decoder, tmp_path / "float")
    plain = logits(load_model(tmp_path / "float"), rows)
    settings = QuantSettings(method="smoothquant", bits=8, group_size=None, alpha=1.0)
    quantize_checkpoint(tmp_path / "float", tmp_path / "q", settings, calibration=tokens(4, 32))
    stored = load_file(tmp_path / "q" / "model.safetensors")
    assert stored["model.norm.weight"].dtype == stored["model.tok_embeddings.weight"].dtype == torch.bfloat16
    read = load_quantized(tmp_path / "q")
    for module in read.modules():
        if isinstance(module, QuantWeightLinear):
            module.activations = None
    assert float((logits(read, rows) - plain).abs().mean()) < 0.1 * float(plain.abs().mean())


def test_perplexity_before_is_that_of_the_float_model(source: Path, tmp_path: Path):
    rows = tokens(3, 40, seed=4)
    report = quantize_checkpoint(source, tmp_path / "q", QuantSettings(bits=8, head="keep"), held_out=rows)
    assert report.perplexity is not None and report.held_out_tokens == 3 * 39
    assert report.perplexity[0] == pytest.approx(perplexity(load_model(source), rows), rel=1e-5)
    expected = torch.nn.functional.cross_entropy(
        logits(load_model(source), rows)[:, :-1].flatten(0, 1), rows[:, 1:].flatten()
    )
    assert report.perplexity[0] == pytest.approx(float(expected.exp()), rel=1e-4)
    written = json.loads((tmp_path / "q" / "quantization.json").read_text())
    assert written["perplexity"] == {"before": report.perplexity[0], "after": report.perplexity[1]}
    assert written["settings"]["bits"] == 8 and written["tokens_per_second"]["after"] > 0
    assert "perplexity" in report.table() and "times smaller" in report.table()


def test_reward_models_keep_their_head(tmp_path: Path):
    source = save(outlier_decoder(head="reward"), tmp_path / "float")
    report = quantize_checkpoint(source, tmp_path / "q", QuantSettings(), held_out=tokens(2, 16))
    assert report.perplexity is None and "perplexity" not in report.table()
    read = load_quantized(tmp_path / "q")
    assert torch.equal(read.head.weight, load_model(source).head.weight)


def test_an_error_leaves_what_was_there(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    target = tmp_path / "q"
    quantize_checkpoint(source, target, QuantSettings())
    before = {file.name: file.read_bytes() for file in target.iterdir()}
    with pytest.raises(CheckpointError, match=r"already exists.*--overwrite"):
        quantize_checkpoint(source, target, QuantSettings())

    for fault in (OSError("disk full"), KeyboardInterrupt()):

        def fail(*_: object, fault: BaseException = fault, **__: object) -> None:
            raise fault

        monkeypatch.setattr(files, "write_tensors", fail)
        with pytest.raises((CheckpointError, KeyboardInterrupt)):
            quantize_checkpoint(source, target, QuantSettings(bits=8), overwrite=True)
        assert {file.name: file.read_bytes() for file in target.iterdir()} == before
        assert [path.name for path in tmp_path.iterdir()] == ["q"]
        monkeypatch.undo()
    quantize_checkpoint(source, target, QuantSettings(bits=8), overwrite=True)
    assert (target / "model.safetensors").read_bytes() != before["model.safetensors"]


def test_a_folder_that_cannot_be_read_back_is_not_published(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    original = files.write_tensors

    def damage(file: Path, *arguments: object) -> None:
        original(file, *arguments)  # type: ignore[arg-type]
        file.write_bytes(file.read_bytes()[:-100])

    monkeypatch.setattr(files, "write_tensors", damage)
    with pytest.raises(CheckpointError, match="truncated"):
        quantize_checkpoint(source, tmp_path / "q", QuantSettings())
    assert not any(tmp_path.iterdir())


def test_neither_the_source_nor_strange_folders_are_replaced(tmp_path: Path):
    source = save(outlier_decoder(), tmp_path / "runs" / "float")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    for folder, message in (
        ("runs/float", "is to be quantised"),
        ("runs", "is to be quantised"),
        ("mine", "no checkpoint"),
    ):
        with pytest.raises(CheckpointError, match=message):
            quantize_checkpoint(source, tmp_path / folder, QuantSettings(), overwrite=True)
    assert (tmp_path / "mine" / "letter.txt").read_text() == "dear"
    assert load_model(source) is not None


def test_sources_that_cannot_be_quantised(source: Path, tmp_path: Path):
    with pytest.raises(PuyuError, match="awq needs calibration text"):
        quantize_checkpoint(source, tmp_path / "q", QuantSettings(method="awq"))
    with pytest.raises(ConfigError, match="groups of 64 do not divide"):
        quantize_checkpoint(source, tmp_path / "q", QuantSettings(group_size=64))
    quantize_checkpoint(source, tmp_path / "q", QuantSettings())
    with pytest.raises(CheckpointError, match=r"quantised \(rtn\); this needs the model it was made from"):
        quantize_checkpoint(tmp_path / "q", tmp_path / "again", QuantSettings())
    with pytest.raises(CheckpointError, match="its weights are quantised"):
        load_model(tmp_path / "q")
    with pytest.raises(CheckpointError, match="no quantization_config"):
        load_quantized(source)
    broken = outlier_decoder()
    with torch.no_grad():
        broken.layers[1].mlp.down.weight[0, 0] = float("nan")  # type: ignore[index, union-attr]
    with pytest.raises(CheckpointError, match="layer 1: a matrix holds infinities or NaN"):
        quantize_checkpoint(save(broken, tmp_path / "nan"), tmp_path / "x", QuantSettings())
    assert not (tmp_path / "x").exists()


def damaged(folder: Path) -> Iterator[tuple[str, dict[str, Tensor], dict[str, object]]]:
    """What may be wrong: expected message, tensors, changes of quantization_config."""
    good = load_file(folder / "model.safetensors")
    w1 = "model.layers.0.feed_forward.w1"
    yield f"1 tensor .{w1}.scales. missing", {k: v for k, v in good.items() if k != f"{w1}.scales"}, {}
    yield r"1 tensor .strange. unexpected", good | {"strange": torch.zeros(2)}, {}
    shape = {f"{w1}.codes": torch.zeros(96, 31, dtype=torch.uint8)}
    yield rf"{w1}.codes has shape \[96, 31\], config.json asks for \[96, 32\]", good | shape, {}
    yield f"{w1}.codes holds int16, which does not fit", good | {f"{w1}.codes": good[f"{w1}.codes"].short()}, {}
    yield "version 2, this PuyuLM reads 1", good, {"version": 2}
    yield "does not say how matrices are stored", good, {"bits": 5}
    yield "groups of 60 do not divide", good, {"group_size": 60}
    yield "weights quantised by 'bitsandbytes' are not supported", good, {"quant_method": "bitsandbytes"}
    yield "unknown activations 'int4'", good, {"activations": "int4"}
    norm = {"model.norm.weight": torch.zeros(64, dtype=torch.int32)}
    yield "model.norm.weight holds int32", good | norm, {}


def test_damaged_folders_are_refused_in_one_line(source: Path, tmp_path: Path):
    quantize_checkpoint(source, tmp_path / "q", QuantSettings(zero_point=True))
    config = json.loads((tmp_path / "q" / "config.json").read_text())
    cases = list(damaged(tmp_path / "q"))
    for message, tensors, changes in cases:
        save_file(tensors, tmp_path / "q" / "model.safetensors")
        changed = config | {"quantization_config": config["quantization_config"] | changes}
        (tmp_path / "q" / "config.json").write_text(json.dumps(changed))
        with pytest.raises(CheckpointError, match=message) as caught:
            load_quantized(tmp_path / "q")
        assert "\n" not in str(caught.value)


def test_half_of_a_fused_matrix_cannot_be_quantised(source: Path, tmp_path: Path):
    quantize_checkpoint(source, tmp_path / "q", QuantSettings())
    tensors = load_file(tmp_path / "q" / "model.safetensors")
    base = "model.layers.0.feed_forward.w3"
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(base)}
    save_file(tensors | {f"{base}.weight": torch.zeros(96, 64)}, tmp_path / "q" / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"of .*w1, .*w3 some are quantised and some are not"):
        load_quantized(tmp_path / "q")


def test_only_one_layer_of_float_weights_is_in_memory_at_a_time(source: Path, monkeypatch: pytest.MonkeyPatch):
    read = FloatSource.block
    alive: list[weakref.ref[torch.nn.Module]] = []

    def block(self: FloatSource, index: int, device: torch.device) -> Block:
        assert not any(linear() is not None for linear in alive)
        layer = read(self, index, device)
        alive.extend(weakref.ref(module) for module in layer.modules() if isinstance(module, torch.nn.Linear))
        return layer

    monkeypatch.setattr(FloatSource, "block", block)
    settings = QuantSettings(method="awq")
    work = LayerwisePass(FloatSource(source), settings, tokens(2, 16), tokens(2, 16), torch.device("cpu"))
    for _ in work.parameters():
        pass
    assert len(alive) == 8
