"""Methods on a whole layer: what they must leave unchanged, and what they must do better than rounding to nearest."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from torch import Tensor

from puyulm.engine.quant.float8 import Float8Linear, quantize_float8
from puyulm.engine.quant.layerwise import MATRICES, Activations, linear_inputs, observe, quantize_block
from puyulm.engine.quant.linear import QuantWeightLinear, pack_quantized, quantize_in_place, round_activations
from puyulm.engine.quant.scaling import awq_scales, scale_block, smoothquant_scales
from puyulm.engine.quant.settings import QuantSettings
from puyulm.engine.quant.statistics import gather
from puyulm.errors import ConfigError
from puyulm.model.attention import PackedAttention
from puyulm.model.decoder import Block, Decoder
from tests.conftest import tiny_decoder
from tests.engine.quant.models import OUTLIERS, activations, logits, outlier_decoder, tokens, with_biases

BIASES = {"family": "internlm3", "qkv_bias": True, "out_bias": True, "mlp_bias": True}


def first_layer(decoder: Decoder) -> Block:
    layer = decoder.layers[0]
    assert isinstance(layer, Block)
    return layer


@torch.no_grad()
def run(block: Block, seen: Activations) -> Tensor:
    return torch.cat([block(x, rope, attention, 0) for x, rope, attention in seen.chunks()])


def test_statistics_are_those_of_the_whole():
    x = torch.randn(37, 8)
    seen = gather(x.split(10), moments=True)
    assert torch.allclose(seen.mean, x.abs().mean(0))
    assert torch.equal(seen.largest, x.abs().amax(0))
    assert torch.allclose(seen.require_moments(), x.T @ x / 37, atol=1e-6)
    scales = torch.rand(8) + 0.5
    scaled, again = seen.scaled(scales), gather([x / scales], moments=True)
    assert torch.allclose(scaled.require_moments(), again.require_moments(), atol=1e-6)
    assert torch.allclose(scaled.largest, again.largest) and torch.allclose(scaled.mean, again.mean)


@torch.no_grad()
def test_inputs_of_the_matrices_are_what_the_layer_multiplies():
    decoder = outlier_decoder(**BIASES)
    block, seen = first_layer(decoder), activations(decoder, tokens(3, 20))
    caught: dict[str, Tensor] = {}

    def catch(name: str, _module: object, inputs: tuple[Tensor], _output: Tensor) -> None:
        caught[name] = inputs[0]

    for name in MATRICES:
        block.get_submodule(name).register_forward_hook(functools.partial(catch, name))
    run(block, seen)
    expected = dict(caught)
    ((x, rope, attention),) = seen.chunks()
    given = dict(linear_inputs(block, x, rope, attention))
    assert list(given) == list(MATRICES)
    for name in MATRICES:
        assert torch.allclose(given[name], expected[name], atol=1e-5), name


@pytest.mark.parametrize("method", ["awq", "smoothquant"])
@pytest.mark.parametrize("shape", [{}, {**BIASES, "num_kv_heads": 1}, {"num_kv_heads": 4}], ids=["v2", "v3", "mha"])
@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_scales_leave_the_float_layer_as_it_was(method: str, shape: dict[str, object], stored: torch.dtype):
    decoder = outlier_decoder(**shape)
    block, seen = first_layer(decoder), activations(decoder, tokens(4, 32))
    before, original = run(block, seen), copy.deepcopy(block)
    settings = QuantSettings(method="awq")
    choose = (
        functools.partial(awq_scales, settings=settings)
        if method == "awq"
        else functools.partial(smoothquant_scales, alpha=0.7)
    )
    statistics = scale_block(block, observe(block, seen, MATRICES, moments=True), choose, stored)
    assert float((run(block, seen) - before).abs().max()) < 1e-5 * float(before.abs().max())
    for name in MATRICES:
        assert not torch.equal(block.get_parameter(f"{name}.weight"), original.get_parameter(f"{name}.weight")), name
    for norm in (block.attention_norm, block.mlp_norm):
        assert torch.equal(norm.weight, norm.weight.to(stored).float())
    again = observe(block, seen, MATRICES, moments=True)
    for name in MATRICES:
        assert torch.allclose(again[name].largest, statistics[name].largest, rtol=1e-3), name


@torch.no_grad()
def test_a_norm_with_zeros_survives_scaling():
    decoder = outlier_decoder()
    block, seen = first_layer(decoder), activations(decoder, tokens(2, 16))
    block.attention_norm.weight[5] = 0
    block.mlp_norm.weight[6] = 1e-30
    before = run(block, seen)
    choose = functools.partial(smoothquant_scales, alpha=1.0)
    scale_block(block, observe(block, seen, MATRICES, moments=False), choose, torch.float16)
    assert float((run(block, seen) - before).abs().max()) < 1e-4 * float(before.abs().max())


@torch.no_grad()
def layer_error(settings: QuantSettings, activations_too: bool = False) -> float:
    """Error of a layer's output on text that it was not calibrated on, beside the size of what the layer adds."""
    decoder = outlier_decoder()
    block, seen = first_layer(decoder), activations(decoder, tokens(16, 64))
    unseen = activations(decoder, tokens(4, 64, seed=9))
    before = run(block, unseen)
    quantize_block(block, seen, settings, torch.float32)
    if activations_too:
        for name in MATRICES:
            linear = block.get_submodule(name)
            assert isinstance(linear, QuantWeightLinear)
            linear.activations = "int8"
    added = before - unseen.hidden.flatten(0, 1)
    return float((run(block, unseen) - before).square().mean() / added.square().mean())


@pytest.mark.parametrize("group_size", [32, None])
@pytest.mark.parametrize("zero_point", [False, True])
def test_awq_and_gptq_beat_rounding_to_nearest(group_size: int | None, zero_point: bool):
    common = {"group_size": group_size, "zero_point": zero_point}
    nearest, awq, gptq = (
        layer_error(QuantSettings(method=method, **common))  # type: ignore[arg-type]
        for method in ("rtn", "awq", "gptq")
    )
    assert awq < 0.8 * nearest
    assert gptq < 0.8 * nearest


def test_smoothquant_beats_rounding_to_nearest_where_activations_have_eight_bits():
    nearest = layer_error(QuantSettings(bits=8, group_size=None), activations_too=True)
    smooth = layer_error(QuantSettings(method="smoothquant", bits=8, group_size=None))
    assert smooth < 0.5 * nearest


@torch.no_grad()
def test_outliers_are_there_to_begin_with():
    decoder = outlier_decoder()
    seen = observe(first_layer(decoder), activations(decoder, tokens(4, 64)), ("attention.qkv",), moments=False)
    largest = seen["attention.qkv"].largest
    assert float(largest[list(OUTLIERS)].min()) > 5 * float(largest.median())


@torch.no_grad()
def test_smoothquant_marks_its_layers_and_rounds_each_row_for_itself():
    decoder = outlier_decoder()
    block = first_layer(decoder)
    quantize_block(
        block, activations(decoder, tokens(4, 32)), QuantSettings(method="smoothquant", bits=8, group_size=None),
        torch.float32,
    )  # fmt: skip
    linear = block.mlp.down
    assert isinstance(linear, QuantWeightLinear) and linear.activations == "int8"
    x = torch.randn(5, 96) * torch.tensor([1e-3, 1, 1e3, 0, 1])[:, None]
    rounded = round_activations(x)
    assert bool(((rounded - x).abs() <= x.abs().amax(1, keepdim=True) / 254 * 1.001).all())
    assert torch.equal(round_activations(x[2:3]), rounded[2:3])


@torch.no_grad()
def test_float8_weights_keep_four_bits_of_precision_in_every_row():
    weight = torch.randn(32, 64) * torch.logspace(-6, 6, 32)[:, None]
    weight[3] = 0
    made = quantize_float8(weight)
    assert made.codes.dtype == torch.float8_e4m3fn and made.shape == (32, 64)
    largest = weight.abs().amax(1, keepdim=True)
    # Three stored bits of mantissa: half a step is a 16th; below 2^-6 of e4m3's own range numbers are subnormal.
    allowed = torch.maximum(weight.abs() / 16, largest * 2**-10 / 448)
    assert bool(((made.dequantize() - weight).abs() <= allowed * 1.001).all())
    linear = Float8Linear(made, torch.ones(32))
    x = torch.randn(3, 64)
    assert torch.allclose(linear(x), x @ made.dequantize().T + 1)
    weight[0, 0] = float("inf")
    with pytest.raises(ConfigError, match="infinities"):
        quantize_float8(weight)


@pytest.mark.parametrize(("bits", "tolerance"), [(8, 0.05), (4, 0.5)])
@pytest.mark.parametrize("shape", [{}, BIASES, {"tie_embeddings": True}], ids=["plain", "biases", "tied"])
def test_quantising_in_place_and_packing(bits: int, tolerance: float, shape: dict[str, object]):
    decoder, rows = with_biases(tiny_decoder(seed=3, **shape)), tokens(2, 24)
    before = logits(decoder, rows)
    quantize_in_place(decoder, bits)  # type: ignore[arg-type]
    assert [name for name, module in decoder.named_modules() if isinstance(module, torch.nn.Linear)] == []
    plain = logits(decoder, rows)
    size = float(before.square().mean().sqrt())
    assert float((plain - before).square().mean().sqrt()) < tolerance * size
    assert decoder.embed.weight.dtype == torch.float32
    assert pack_quantized(decoder) is decoder
    assert not any(isinstance(module, QuantWeightLinear) for module in decoder.modules())
    assert float((logits(decoder, rows) - plain).square().mean().sqrt()) < 0.05 * size


def test_a_reward_head_stays_and_groups_must_fit():
    decoder = tiny_decoder(head="reward")
    quantize_in_place(decoder, 8, None)
    assert isinstance(decoder.head, torch.nn.Linear)
    with pytest.raises(ConfigError, match="groups of 64"):
        quantize_in_place(tiny_decoder(), 4, 64)


@torch.no_grad()
def test_packed_float8_is_dequantised_once():
    decoder, rows = tiny_decoder(), tokens(1, 8)
    for layer in decoder.layers:
        assert isinstance(layer, Block)
        layer.mlp.down = Float8Linear(quantize_float8(layer.mlp.down.weight), None)  # type: ignore[assignment]
    plain = logits(decoder, rows)
    pack_quantized(decoder)
    assert not any(isinstance(module, Float8Linear) for module in decoder.modules())
    assert torch.allclose(logits(decoder, rows), plain, atol=1e-5)


def test_layers_of_a_quantised_model_run_on_any_attention():
    decoder = quantize_in_place(tiny_decoder(), 4)
    rows = tokens(2, 10)
    attention = PackedAttention([20])
    with torch.no_grad():
        one = decoder.logits(decoder(rows.flatten(), attention.positions, attention))
    assert torch.allclose(one[:10], logits(decoder, rows)[0], atol=1e-4)
