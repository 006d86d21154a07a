"""All layers in one call give the bits of the loop, and what it does not know goes through the loop."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from puyulm.engine.config import EngineConfig
from puyulm.engine.cpu import layers as fused
from puyulm.engine.cpu import native, pack_for_inference
from puyulm.engine.engine import Engine
from puyulm.engine.params import SamplingParams
from puyulm.engine.quant.linear import pack_quantized, quantize_in_place
from puyulm.model.decoder import Decoder, run_layers
from tests.conftest import tiny_decoder

pytestmark = pytest.mark.skipif(native.load("layers") is None, reason="no C compiler")

SHAPES = {
    "v1": {"family": "internlm", "num_kv_heads": 4, "qkv_bias": True, "out_bias": True},
    "v3": {"family": "internlm3", "num_heads": 8, "num_kv_heads": 1, "head_dim": 24, "mlp_bias": True},
    "tied": {"family": "llama", "tie_embeddings": True},
}  # fmt: skip
PROMPTS = [torch.randint(3, 120, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in (1, 40, 17)]
PARAMS = SamplingParams(temperature=0, max_new_tokens=12, ignore_eos=True, prompt_logprobs=0)


def packed(name: str, weights: str) -> Decoder:
    model = tiny_decoder(seed=2, hidden_size=64, intermediate_size=96, **SHAPES[name]).eval()
    if weights == "bfloat16":
        model = model.bfloat16()
    elif weights != "float32":
        model = pack_quantized(quantize_in_place(model, 8 if weights == "int8" else 4, 32))
    return pack_for_inference(model)


def answers(model: Decoder, kv_type: str = "model") -> list[object]:
    engine = Engine(model, config=EngineConfig(memory=1 << 22, step_tokens=24, max_running=3, kv_type=kv_type))  # type: ignore[arg-type]
    return [(one.ids, one.logprobs, one.prompt_logprobs) for one in engine.generate(PROMPTS, PARAMS)]


@pytest.mark.parametrize("weights", ["float32", "bfloat16", "int8", "int4"])
@pytest.mark.parametrize("name", SHAPES)
def test_the_bits_are_those_of_the_loop(name: str, weights: str) -> None:
    model = packed(name, weights)
    assert isinstance(model.run_layers, fused.FusedLayers)
    for kv_type in ("model", "int8"):
        model.run_layers = fused.FusedLayers(model)
        together = answers(model, kv_type)
        model.run_layers = run_layers
        assert answers(model, kv_type) == together


def test_two_caches_of_one_model_are_told_apart() -> None:
    model = packed("v1", "float32")
    engines = [Engine(model, config=EngineConfig(memory=1 << 20)) for _ in range(2)]
    streams = [engine.stream(PROMPTS[1], PARAMS) for engine in engines]
    first, second = zip(*((one.token, other.token) for one, other in zip(*streams, strict=True)), strict=True)
    assert first == second == tuple(engines[0].generate([PROMPTS[1]], PARAMS)[0].ids)


class Doubled(nn.Module):
    """Stands for an adapter around a linear layer."""

    def __init__(self, linear: nn.Module) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        return 2 * self.linear(x)

    def add_to(self, residual: Tensor, x: Tensor) -> Tensor:
        return residual.add_(self(x))


def test_a_linear_layer_replaced_later_is_not_passed_over() -> None:
    model = packed("v1", "float32")
    before = answers(model)
    plain = model.layers[1].mlp.down
    model.layers[1].mlp.down = Doubled(plain)
    assert answers(model) != before
    model.layers[1].mlp.down = plain
    assert answers(model) == before


def test_layers_that_c_does_not_know_stay_in_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_decoder().double().eval()
    assert pack_for_inference(model).run_layers is run_layers
    monkeypatch.setattr(fused, "_is_native", lambda linear: False)
    assert pack_for_inference(tiny_decoder().eval()).run_layers is run_layers
