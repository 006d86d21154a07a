"""Checkpoints in the layouts of AutoAWQ and AutoGPTQ."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from puyulm.engine.load import load_for_inference
from puyulm.engine.quant.linear import QuantWeightLinear
from puyulm.engine.quant.load import load_quantized
from puyulm.engine.quant.published import AwqLayout, GptqLayout
from puyulm.errors import CheckpointError
from puyulm.model.checkpoint import load_model
from puyulm.model.decoder import Block
from tests.conftest import tiny_decoder
from tests.engine.quant.models import logits, tokens, with_biases
from tests.engine.quant.published_files import Pack, pack_awq, pack_gptq, published_checkpoint

AWQ = {"quant_method": "awq", "version": "gemm", "bits": 4, "group_size": 32, "zero_point": True}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": False}
LLAMA = {"family": "llama", "tie_embeddings": True}
V3 = {"family": "internlm3", "qkv_bias": True, "out_bias": True, "mlp_bias": True}
V2_FORMAT = {**GPTQ, "checkpoint_format": "gptq_v2"}
KINDS: dict[str, tuple[Pack, dict[str, object]]] = {
    "awq": (pack_awq, AWQ),
    "gptq": (pack_gptq, GPTQ),
    "gptq_v2": (functools.partial(pack_gptq, lowered=0), V2_FORMAT),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [{}, LLAMA, V3], ids=["internlm2", "llama", "internlm3"])
def test_they_compute_what_their_float_matrices_compute(tmp_path: Path, kind: str, shape: dict[str, object]):
    pack, config = KINDS[kind]
    folder = published_checkpoint(with_biases(tiny_decoder(**shape)), tmp_path / "model", pack, config)
    read, expected = load_quantized(folder), load_model(folder / "float")
    for index, layer in enumerate(read.layers):
        assert isinstance(layer, Block)
        for name in ("attention.qkv", "attention.out", "mlp.gate_up", "mlp.down"):
            linear = layer.get_submodule(name)
            assert isinstance(linear, QuantWeightLinear)
            assert linear.scales.dtype == torch.float16 and linear.group_size == 32 and linear.zeros is not None
            full = expected.get_parameter(f"layers.{index}.{name}.weight")
            assert torch.equal(linear.weight.dequantize(), full), name
    rows = tokens(2, 16)
    assert torch.allclose(logits(read, rows), logits(expected, rows), atol=1e-4)
    served = logits(load_for_inference(folder), rows)
    assert float((served - logits(expected, rows)).abs().mean()) < 0.05 * float(served.abs().mean())


def test_one_word_of_awq_by_hand():
    layout = AwqLayout(None)
    # Columns 0 to 7 of N hold 0 to 7: places 0, 2, 4, 6, 1, 3, 5, 7 from the lowest bits up.
    word = torch.tensor([[0x75316420], [0x75316420]], dtype=torch.int32)
    made = layout.unpack({"qweight": word, "qzeros": word[:1], "scales": torch.ones(1, 8, dtype=torch.float16)})
    assert made.codes.tolist() == [[n | n << 4] for n in range(8)]
    assert made.zeros is not None and made.zeros.flatten().tolist() == list(range(8))
    assert made.dequantize().eq(0).all()


def test_one_word_of_gptq_by_hand():
    layout = GptqLayout(4, None, 1)
    # Inputs 0 to 7 of a row hold 0 to 7 in order; the zero 7 is stored as 6.
    weight = torch.full((1, 8), 0x76543210, dtype=torch.int32)
    zeros = torch.tensor([[0x66666666]], dtype=torch.int32)
    made = layout.unpack({"qweight": weight, "qzeros": zeros, "scales": torch.full((1, 8), 0.5)})
    assert made.dequantize().tolist() == [[0.5 * (k - 7) for k in range(8)]] * 8
    wrapped = layout.unpack({"qweight": weight, "qzeros": zeros | -1, "scales": torch.ones(1, 8)})
    assert wrapped.dequantize()[0].tolist() == list(range(8))  # 15 stands for 0


def test_whole_rows_and_symmetric_groups(tmp_path: Path):
    config = GPTQ | {"group_size": -1, "sym": True}
    decoder = tiny_decoder(intermediate_size=64)
    folder = published_checkpoint(decoder, tmp_path / "model", pack_gptq, config, group_size=64, symmetric=True)
    read = load_quantized(folder)
    linears = [module for module in read.modules() if isinstance(module, QuantWeightLinear)]
    assert all(linear.zeros is None and linear.group_size == 64 for linear in linears)
    rows = tokens(1, 12)
    assert torch.allclose(logits(read, rows), logits(load_model(folder / "float"), rows), atol=1e-4)


def test_eight_bits_of_gptq(tmp_path: Path):
    pack = functools.partial(pack_gptq, bits=8)
    folder = published_checkpoint(
        tiny_decoder(), tmp_path / "model", pack, GPTQ | {"bits": 8, "sym": True}, bits=8, symmetric=True
    )
    read, expected = load_quantized(folder), load_model(folder / "float")
    linear, full = read.get_submodule("layers.0.mlp.down"), expected.get_parameter("layers.0.mlp.down.weight")
    assert isinstance(linear, QuantWeightLinear) and linear.bits == 8
    steps = (linear.weight.dequantize() - full) / linear.scales.float().repeat_interleave(32, dim=1)
    assert set(steps.round().unique().tolist()) == {0.0, 1.0}  # -128 became -127
    asymmetric = published_checkpoint(tiny_decoder(), tmp_path / "other", pack, GPTQ | {"bits": 8}, bits=8)
    with pytest.raises(CheckpointError, match=r"wqkv: 8 bits with zero points"):
        load_quantized(asymmetric)


def test_biases_of_zeros_rotary_tables_and_matrices_left_alone(tmp_path: Path):
    folder = published_checkpoint(tiny_decoder(), tmp_path / "model", pack_awq, AWQ)
    tensors = load_file(folder / "model.safetensors")
    float_tensors = load_file(folder / "float" / "model.safetensors")
    tensors["model.layers.0.attention.wo.bias"] = torch.zeros(64, dtype=torch.float16)
    tensors["model.layers.0.attention.rotary_emb.inv_freq"] = torch.ones(8)
    left = "model.layers.1.feed_forward.w2"
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(left)}
    kept[f"{left}.weight"] = float_tensors[f"{left}.weight"]
    save_file(kept, folder / "model.safetensors")
    read, rows = load_quantized(folder), tokens(1, 12)
    assert isinstance(read.get_submodule("layers.1.mlp.down"), torch.nn.Linear)
    assert torch.allclose(logits(read, rows), logits(load_model(folder / "float"), rows), atol=1e-4)
    save_file(kept | {"model.layers.0.attention.wo.bias": torch.ones(64)}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model.layers.0.attention.wo.bias. unexpected"):
        load_quantized(folder)


def test_weights_in_pickled_files_and_settings_in_a_file_of_their_own(tmp_path: Path):
    folder = published_checkpoint(tiny_decoder(), tmp_path / "model", pack_awq, AWQ)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    raw = json.loads((folder / "config.json").read_text())
    del raw["quantization_config"]
    (folder / "config.json").write_text(json.dumps(raw))
    old = {"zero_point": True, "q_group_size": 32, "w_bit": 4, "version": "GEMM"}
    (folder / "quant_config.json").write_text(json.dumps(old))
    rows = tokens(1, 12)
    assert torch.allclose(logits(load_quantized(folder), rows), logits(load_model(folder / "float"), rows), atol=1e-4)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (AWQ | {"version": "gemv"}, "version 'gemv' are not supported; gemm is"),
        (AWQ | {"bits": 3}, "with 3 bits are not supported"),
        (AWQ | {"group_size": "many"}, "group_size must be an even number or -1"),
        (AWQ | {"group_size": 40}, "groups of 40 do not divide"),
        (AWQ | {"group_size": 16}, r"qzeros has shape \[2, 16\], config.json asks for \[4, 16\]"),
        (AWQ | {"quant_method": "gptq"}, r"qweight has shape"),
        (GPTQ | {"checkpoint_format": "marlin"}, "format 'marlin' are not supported"),
        (GPTQ | {"bits": 2}, "with 2 bits are not supported"),
        ([4], "quantization_config must be a JSON object"),
    ],
)
def test_settings_that_are_not_supported(tmp_path: Path, config: dict[str, object], message: str):
    folder = published_checkpoint(tiny_decoder(), tmp_path / "model", pack_awq, config)
    with pytest.raises(Exception, match=message) as caught:
        load_quantized(folder)
    assert type(caught.value).__name__ in ("CheckpointError", "ConfigError") and "\n" not in str(caught.value)


def test_groups_out_of_order_are_refused(tmp_path: Path):
    folder = published_checkpoint(tiny_decoder(), tmp_path / "model", pack_gptq, GPTQ)
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.1.feed_forward.w1.g_idx"
    tensors[name] = torch.from_numpy(np.random.default_rng(0).permutation(tensors[name].numpy()))
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"model.layers.1.feed_forward.w1: its groups are out of order"):
        load_quantized(folder)


def test_matrices_that_do_not_fill_words(tmp_path: Path):
    decoder = tiny_decoder(intermediate_size=96)
    folder = published_checkpoint(decoder, tmp_path / "model", pack_awq, AWQ)
    raw = json.loads((folder / "config.json").read_text()) | {"intermediate_size": 100}
    (folder / "config.json").write_text(json.dumps(raw))
    with pytest.raises(CheckpointError, match="does not fill whole words"):
        load_quantized(folder)
