"""Packed decoders: the same model, less memory held, answers independent of the batch; with and without a compiler."""

from __future__ import annotations

import weakref
from pathlib import Path

import pytest
import torch
from torch import nn

from puyulm.engine.config import EngineConfig
from puyulm.engine.cpu import CpuBlock, CpuRMSNorm, DenseLinear, PackedLinear, native, onednn, pack_for_inference
from puyulm.engine.engine import Engine
from puyulm.engine.params import SamplingParams
from puyulm.model.attention import PackedAttention
from puyulm.model.checkpoint import load_model, save_model
from puyulm.model.decoder import Block, Decoder, RMSNorm
from tests.conftest import tiny_config, tiny_decoder
from tests.engine.kernel_builds import needs_compiler

needs_onednn = pytest.mark.skipif(not onednn.available(), reason="this build of torch has no oneDNN")
WAYS = [
    pytest.param(DenseLinear, marks=needs_compiler, id="C"),
    pytest.param(PackedLinear, marks=needs_onednn, id="oneDNN"),
]


@pytest.fixture
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> type[nn.Module]:
    """The kind of linear layers that packing makes in this test."""
    if request.param is PackedLinear:
        without_compiler(monkeypatch)
    return request.param


def without_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "load", lambda name: None)


def logits(model: Decoder) -> torch.Tensor:
    attention, tokens = PackedAttention([7, 2]), torch.arange(9)
    with torch.inference_mode():
        return model.logits(model(tokens, attention.positions, attention))


@pytest.mark.parametrize("way", WAYS, indirect=True)
@pytest.mark.parametrize("changes", [{}, {"qkv_bias": True, "mlp_bias": True}, {"tie_embeddings": True}])
def test_a_packed_model_computes_the_same(changes: dict, way: type[nn.Module]) -> None:
    plain, packed = tiny_decoder(**changes), pack_for_inference(tiny_decoder(**changes))
    assert not any(isinstance(module, nn.Linear) for module in packed.modules())
    assert all(isinstance(linear, way) for linear in (packed.head, packed.layers[0].mlp.down))
    assert type(packed.layers[1]) is (CpuBlock if way is DenseLinear else Block)
    assert type(packed.norm) is (CpuRMSNorm if way is DenseLinear else RMSNorm)
    torch.testing.assert_close(logits(packed), logits(plain), atol=1e-4, rtol=1e-5)
    assert pack_for_inference(packed) is packed and isinstance(packed.head, way)


@pytest.mark.parametrize("way", WAYS, indirect=True)
@pytest.mark.parametrize("changes", [{}, {"qkv_bias": True, "mlp_bias": True}, {"tie_embeddings": True}])
def test_a_bfloat16_model_computes_in_float32(changes: dict, way: type[nn.Module]) -> None:
    packed = pack_for_inference(tiny_decoder(**changes).bfloat16())
    expected = logits(pack_for_inference(tiny_decoder(**changes).bfloat16().float()))
    assert packed.embed.weight.dtype == torch.float32
    assert torch.equal(logits(packed), expected)


@needs_compiler
def test_weights_can_be_rounded_or_widened() -> None:
    rounded = pack_for_inference(tiny_decoder(), torch.bfloat16)
    assert rounded.layers[0].mlp.down.panels.dtype == torch.bfloat16
    plain = tiny_decoder()
    with torch.no_grad():
        for module in plain.modules():
            if isinstance(module, nn.Linear):
                module.weight.copy_(module.weight.bfloat16())
    assert torch.equal(logits(rounded), logits(pack_for_inference(plain)))
    widened = pack_for_inference(tiny_decoder().bfloat16(), torch.float32)
    assert widened.head.panels.dtype == torch.float32
    assert torch.equal(logits(widened), logits(pack_for_inference(tiny_decoder().bfloat16())))
    with pytest.raises(ValueError, match="not in torch"):
        pack_for_inference(tiny_decoder(), torch.float16)


@needs_compiler
def test_a_bfloat16_checkpoint_is_never_held_in_float32(tmp_path: Path) -> None:
    save_model(tiny_decoder().bfloat16(), tmp_path / "model")
    packed = pack_for_inference(load_model(tmp_path / "model", torch.bfloat16))
    wide = pack_for_inference(load_model(tmp_path / "model", torch.float32))
    linears = [module for module in packed.modules() if isinstance(module, DenseLinear)]
    assert len(linears) == 2 * 4 + 1 and all(linear.panels.dtype == torch.bfloat16 for linear in linears)
    assert torch.equal(logits(packed), logits(wide))


@pytest.mark.parametrize("way", WAYS, indirect=True)
@pytest.mark.parametrize("tied", [False, True])
def test_originals_are_released(way: type[nn.Module], tied: bool) -> None:
    """But for embeddings that no packed head can look up."""
    decoder = tiny_decoder(tie_embeddings=tied)
    originals = [weakref.ref(m.weight) for m in decoder.modules() if isinstance(m, nn.Linear)]
    pack_for_inference(decoder)
    alive = [ref() for ref in originals if ref() is not None]
    assert len(alive) == (tied and way is PackedLinear)
    assert all(weight is decoder.embed.weight for weight in alive)


@needs_onednn
@pytest.mark.parametrize(("inputs", "outputs"), [(64, 320), (2048, 768), (96, 1000)])
def test_rows_do_not_depend_on_their_neighbours_with_onednn(inputs: int, outputs: int) -> None:
    generator = torch.Generator().manual_seed(0)
    linear = nn.Linear(inputs, outputs)
    with torch.no_grad():
        linear.weight.normal_(generator=generator)
        packed, x = PackedLinear(linear), torch.randn(9, inputs, generator=generator)
        together = packed(x)
        torch.testing.assert_close(together, linear(x), atol=1e-3, rtol=1e-5)
        for count in (1, 2, 5):
            assert torch.equal(packed(x[:count]), together[:count])
        assert torch.equal(packed(x[0]), together[0])
        assert torch.equal(packed.add_to(torch.ones(9, outputs), x), together + 1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_types_are_left_alone(dtype: torch.dtype) -> None:
    decoder = pack_for_inference(tiny_decoder().to(dtype))
    assert isinstance(decoder.head, nn.Linear) and type(decoder.layers[0]) is Block


def test_other_devices_are_left_alone() -> None:
    with torch.device("meta"):
        decoder = pack_for_inference(Decoder(tiny_config()))
    assert isinstance(decoder.head, nn.Linear) and type(decoder.layers[0]) is Block


@needs_compiler
def test_linear_layers_of_other_kinds_stay() -> None:
    """A layer that cannot add to the residual stream keeps its plain block around it."""
    decoder = tiny_decoder()
    decoder.layers[0].mlp.down = kept = nn.Sequential(decoder.layers[0].mlp.down)
    expected = logits(decoder)
    pack_for_inference(decoder)
    assert decoder.layers[0].mlp.down is kept and isinstance(kept[0], DenseLinear)
    assert type(decoder.layers[0]) is Block and isinstance(decoder.layers[1], CpuBlock)
    torch.testing.assert_close(logits(decoder), expected, atol=1e-4, rtol=1e-5)


def test_with_neither_compiler_nor_onednn_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    without_compiler(monkeypatch)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    decoder = tiny_decoder().bfloat16()
    before = {name: type(module) for name, module in decoder.named_modules()}
    assert {name: type(module) for name, module in pack_for_inference(decoder).named_modules()} == before
    assert decoder.embed.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("way", WAYS, indirect=True)
def test_a_packed_model_generates_the_same(way: type[nn.Module]) -> None:
    params = SamplingParams(temperature=0, max_new_tokens=12, ignore_eos=True)
    prompts = [[5, 9, 11], [7], [100, 3, 4, 8, 20]]

    def answers(model: Decoder, prompts: list[list[int]]) -> list[list[int]]:
        engine = Engine(model, config=EngineConfig(memory=1 << 22))
        return [done.ids for done in engine.generate(prompts, params)]

    packed = pack_for_inference(tiny_decoder())
    together = answers(packed, prompts)
    assert together == answers(tiny_decoder(), prompts)
    assert [answers(packed, [prompt])[0] for prompt in prompts] == together
