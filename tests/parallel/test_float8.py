"""Matrix products in 8 bits, emulated: real ones need a GPU."""

from __future__ import annotations

import functools
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from puyulm.errors import TrainError
from puyulm.parallel import float8
from puyulm.parallel.float8 import apply_float8
from puyulm.parallel.stage import Stage
from tests.conftest import tiny_decoder
from tests.parallel.ranks import random_batch, run_ranks, whole_weights
from tests.parallel.test_recompute import CONFIG, built, gradients


@pytest.fixture
def emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torchao", reason="torchao is not installed: pip install 'puyulm[float8]'")
    monkeypatch.setattr(float8, "apply_float8", functools.partial(apply_float8, emulate=True))


def test_a_missing_torchao_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "torchao.float8", None)
    with pytest.raises(TrainError, match=r"needs torchao: pip install 'puyulm\[float8\]'"):
        apply_float8(Stage(tiny_decoder()), emulate=True)


def test_a_gpu_without_8_bit_floats_is_refused(monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("torchao")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(TrainError, match="needs a GPU with 8-bit floats"):
        apply_float8(Stage(tiny_decoder()))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA A100-SXM4-80GB")
    for capability, refused in (((8, 0), True), ((8, 6), True), ((8, 9), False), ((9, 0), False), ((12, 0), False)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda capability=capability: capability)
        stage = Stage(tiny_decoder())
        if not refused:
            apply_float8(stage)
            continue
        with pytest.raises(TrainError, match="NVIDIA A100-SXM4-80GB has no 8-bit floats"):
            apply_float8(stage)


def rounded(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What is left of a tensor in 8 bits with one scale for all of it."""
    scale = torch.finfo(dtype).max / x.abs().amax()
    return (x * scale).to(dtype).float() / scale


def test_products_are_those_of_rounded_factors(emulated: None):
    model = built(CONFIG, float8=True)
    linear = model.stages[0].layer(0).mlp.gate_up  # type: ignore[union-attr]
    x, grad = torch.randn(48, 64, requires_grad=True), torch.randn(48, 192)
    result = linear(x)
    result.backward(grad)
    inputs, weight = rounded(x.detach(), torch.float8_e4m3fn), rounded(linear.weight.detach(), torch.float8_e4m3fn)
    gradient = rounded(grad, torch.float8_e5m2)
    torch.testing.assert_close(result, inputs @ weight.T, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(x.grad, gradient @ weight, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(linear.weight.grad, gradient.T @ inputs, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(result, x @ linear.weight.T, rtol=1e-3, atol=1e-3)


def test_layers_alone_are_turned_and_keep_their_names(emulated: None):
    plain, model = built(CONFIG), built(CONFIG, float8=True)
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in plain.named_parameters()]
    turned = [name for name, module in model.decoder.named_modules() if type(module).__name__ == "Float8Linear"]
    assert len(turned) == 4 * CONFIG.num_layers and all(name.startswith("layers.") for name in turned)
    for (name, one), (_, other) in zip(model.named_parameters(), plain.named_parameters(), strict=True):
        assert one.dtype == torch.float32 and torch.equal(one, other), name
    expected, found = gradients(plain), gradients(model)
    for name, grad in found.items():
        likeness = torch.cosine_similarity(grad.flatten(), expected[name].flatten(), dim=0)
        assert 0.9 < likeness < 1 - 1e-7, (name, likeness)


@pytest.mark.parametrize("how", ["selective", "full"])
def test_what_is_made_again_is_the_same(emulated: None, how: str):
    expected, found = gradients(built(CONFIG, float8=True)), gradients(built(CONFIG, float8=True, recompute=how))
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_sizes_that_the_kernel_does_not_take_stay(emulated: None):
    model = built(CONFIG.evolve(hidden_size=72), float8=True)
    assert not any(type(module).__name__ == "Float8Linear" for module in model.decoder.modules())


def test_tokens_are_padded_to_what_the_kernel_takes(emulated: None):
    """The gradient of a matrix is a product over tokens, which the kernel takes 16 at a time."""
    from puyulm.train.step import to_device

    (batch,) = to_device(built(CONFIG, float8=True), [random_batch(128, 0, tokens=50)])
    assert len(batch.tokens) == 64
    assert batch.num_targets == to_device(built(CONFIG), [random_batch(128, 0, tokens=50)])[0].num_targets


def _over_ranks(alone: dict[str, np.ndarray]) -> list[str]:
    float8.apply_float8 = functools.partial(apply_float8, emulate=True)  # type: ignore[assignment]
    wrong = []
    for sizes, batches, tolerance in (
        (dict(shard=2), 2, 1e-5),  # both ranks read the same
        (dict(tensor=2), 1, 0.02),  # one scale for all parts of a tensor, but a last bit more or less is another value
        (dict(tensor=2, recompute="selective"), 1, 0.02),
        (dict(context=2), 1, None),  # each rank has a scale for its tokens: other roundings
    ):
        model = built(CONFIG, float8=True, **sizes)
        gradients(model, batches=1)
        found = whole_weights((name, parameter.grad) for name, parameter in model.named_parameters())
        for name, grad in found.items():
            expected = batches * alone[name]
            error = np.abs(grad - expected).max() / np.abs(expected).max()
            likeness = np.vdot(grad, expected) / np.linalg.norm(grad) / np.linalg.norm(expected)
            if error > tolerance if tolerance is not None else likeness < 0.9:
                wrong.append(f"{sizes} {name}: error {error}, likeness {likeness}")
    return wrong


def test_with_every_kind_of_sharing_among_ranks(emulated: None, tmp_path: Path):
    alone = {name: grad.numpy() for name, grad in gradients(built(CONFIG, float8=True), batches=1).items()}
    assert run_ranks(2, _over_ranks, tmp_path, alone) == [[], []]
