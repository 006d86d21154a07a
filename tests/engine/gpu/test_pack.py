"""A decoder with the parts for CUDA devices gives what the plain one gives."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from puyulm.engine.gpu import products
from puyulm.engine.gpu.pack import GpuBlock, GpuLinear, GpuQuantLinear, pack_for_gpu
from puyulm.engine.quant.linear import QuantWeightLinear, quantize_in_place, set_linear
from puyulm.engine.quant.rounding import quantize
from puyulm.engine.quant.tensor import Bits
from puyulm.model.attention import PackedAttention
from puyulm.model.decoder import Decoder
from tests.conftest import tiny_decoder
from tests.engine.quant.models import with_biases


def logits(model: Decoder, count: int, device: torch.device) -> Tensor:
    tokens = torch.arange(3, 3 + count, device=device)
    attention = PackedAttention([count], device)
    with torch.inference_mode():
        return model.logits(model(tokens, attention.positions, attention))


@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_same_logits(count: int, dtype: torch.dtype, device: torch.device) -> None:
    biased = with_biases(tiny_decoder(qkv_bias=True, out_bias=True, mlp_bias=True))
    model = biased.to(device, dtype)
    packed = pack_for_gpu(copy.deepcopy(model))
    assert isinstance(packed.layers[0], GpuBlock) and isinstance(packed.head, GpuLinear)
    assert packed.state_dict().keys() == model.state_dict().keys()
    tolerance = 1e-4 if dtype == torch.float32 else 0.1
    torch.testing.assert_close(logits(packed, count, device), logits(model, count, device), atol=tolerance, rtol=0)


@pytest.mark.parametrize("bits", [4, 8])
def test_the_same_logits_of_quantised_weights(bits: Bits, device: torch.device) -> None:
    model = quantize_in_place(tiny_decoder(), bits, 32).to(device)
    packed = pack_for_gpu(copy.deepcopy(model))
    assert isinstance(packed.layers[0].mlp.down, GpuQuantLinear)
    for count in (1, 3):
        torch.testing.assert_close(logits(packed, count, device), logits(model, count, device), atol=1e-4, rtol=0)


def test_odd_groups_stay_as_they_are(device: torch.device) -> None:
    model = tiny_decoder()
    set_linear(model, "layers.0.mlp.down", quantize(model.layers[0].mlp.down.weight.detach(), 8, 8))
    model = pack_for_gpu(model.to(device))
    assert type(model.layers[0].mlp.down) is QuantWeightLinear
    assert not products.suits(model.layers[0].mlp.down.weight)
    assert logits(model, 3, device).isfinite().all()
