"""Prepacked weights: the same model, less memory held, answers independent of the batch."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import nn

from puyulm.engine.cpu import PackedLinear, pack_for_inference
from puyulm.engine.generate import generate
from puyulm.engine.params import SamplingParams
from puyulm.model.attention import PackedAttention
from tests.conftest import tiny_decoder

packs = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this build of torch has no oneDNN")


@packs
@pytest.mark.parametrize("changes", [{}, {"qkv_bias": True, "mlp_bias": True}, {"tie_embeddings": True}])
def test_a_packed_model_computes_the_same(changes: dict) -> None:
    plain, packed = tiny_decoder(**changes), pack_for_inference(tiny_decoder(**changes))
    assert not any(isinstance(module, nn.Linear) for module in packed.modules())
    attention, tokens = PackedAttention([7, 2]), torch.arange(9)
    with torch.no_grad():
        expected, found = (model.logits(model(tokens, attention.positions, attention)) for model in (plain, packed))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)


@packs
def test_originals_are_released_but_for_the_embeddings() -> None:
    decoder = tiny_decoder(tie_embeddings=True)
    originals = [weakref.ref(m.weight) for m in decoder.modules() if isinstance(m, nn.Linear)]
    pack_for_inference(decoder)
    alive = [ref() for ref in originals if ref() is not None]
    assert len(alive) == 1 and alive[0] is decoder.embed.weight


@packs
@pytest.mark.parametrize(("inputs", "outputs"), [(64, 320), (2048, 768), (96, 1000)])
def test_rows_do_not_depend_on_their_neighbours(inputs: int, outputs: int) -> None:
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


def test_other_types_are_left_alone() -> None:
    decoder = pack_for_inference(tiny_decoder().to(torch.bfloat16))
    assert not any(isinstance(module, PackedLinear) for module in decoder.modules())


def test_without_onednn_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert isinstance(pack_for_inference(tiny_decoder()).head, nn.Linear)


@packs
def test_a_packed_model_generates_the_same() -> None:
    params = SamplingParams(temperature=0, max_new_tokens=12, ignore_eos=True)
    prompts = [[5, 9, 11], [7], [100, 3, 4, 8, 20]]
    packed = pack_for_inference(tiny_decoder())
    together = generate(packed, prompts, params)
    assert [done.ids for done in together] == [done.ids for done in generate(tiny_decoder(), prompts, params)]
    for prompt, done in zip(prompts, together, strict=True):
        (alone,) = generate(packed, [prompt], params)
        assert alone.ids == done.ids
