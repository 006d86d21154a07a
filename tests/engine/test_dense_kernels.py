"""Float linear layers in C: exact against integers, tight against float64, the same bits however they are computed."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from puyulm.engine.cpu.dense import DenseLinear, PanelEmbedding, WideEmbedding, panels_of
from tests.engine.kernel_builds import BUILDS, needs_compiler, use_build

pytestmark = needs_compiler
ROWS = (1, 2, 3, 5, 6, 7, 8, 15, 16, 17, 64, 300)


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def linear_of(inputs: int, outputs: int, *, bias: bool = True, dtype: torch.dtype = torch.float32) -> nn.Linear:
    generator = torch.Generator().manual_seed(inputs * 1000 + outputs)
    linear = nn.Linear(inputs, outputs, bias=bias)
    with torch.no_grad():
        for parameter in linear.parameters():
            parameter.normal_(generator=generator)
    return linear.to(dtype)


def rows_of(count: int, inputs: int) -> Tensor:
    return torch.randn(count, inputs, generator=torch.Generator().manual_seed(count))


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("outputs", [1, 15, 16, 17, 33, 100, 128])
@pytest.mark.parametrize("inputs", [1, 15, 256, 257, 700])
def test_products_of_whole_numbers_are_exact(
    inputs: int, outputs: int, build: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_build(monkeypatch, build)
    linear = linear_of(inputs, outputs)
    with torch.no_grad():
        for parameter in linear.parameters():
            parameter.mul_(8).round_()
    dense = DenseLinear(linear)
    for count in (1, 4, 9, 20, 171):
        x = (rows_of(count, inputs) * 8).round()
        expected = (x.double() @ linear.weight.double().T + linear.bias.double()).float()
        assert torch.equal(dense(x), expected)


@pytest.mark.parametrize(("inputs", "outputs"), [(64, 48), (768, 512), (2048, 320), (5632, 64)])
def test_errors_are_those_of_short_chains(inputs: int, outputs: int) -> None:
    """A chain of n products of independent rounding errors is off by about 0.2 eps n standard deviations of a product;
    chains of 256 keep that from growing with n. One chain over all would be three times off at 2048."""
    linear, x = linear_of(inputs, outputs, bias=False), rows_of(200, inputs)
    exact = x.double() @ linear.weight.double().T
    error = (DenseLinear(linear)(x) - exact).square().mean().sqrt().item()
    chains = max(inputs / 256, 1.0)
    assert error < 0.25 * 2**-24 * 2 * min(inputs, 256) * chains**0.5 * (1 + chains**0.5 / 20)
    assert error <= 2 * (nn.functional.linear(x, linear.weight) - exact).square().mean().sqrt().item()


@pytest.mark.skipif(np.finfo(np.longdouble).nmant < 63, reason="longdouble is no wider than float64 here")
@pytest.mark.parametrize("build", BUILDS[:2])
def test_the_order_is_the_documented_one(build: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use_build(monkeypatch, build)
    linear, x = linear_of(600, 20), rows_of(10, 600)
    wide_x, wide_w = (t.detach().numpy().astype(np.longdouble) for t in (x, linear.weight))
    total = np.zeros((10, 20), np.float32)
    for start in range(0, 600, 256):
        chain = np.zeros((10, 20), np.float32)
        for k in range(start, min(start + 256, 600)):
            chain = (wide_x[:, k, None] * wide_w[None, :, k] + chain).astype(np.float32)
        total += chain
    total += linear.bias.detach().numpy()
    assert torch.equal(DenseLinear(linear)(x), torch.from_numpy(total))
    residual = rows_of(10, 20)
    expected = residual + torch.from_numpy(total)
    assert torch.equal(DenseLinear(linear).add_to(residual, x), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("inputs", "outputs"), [(64, 320), (300, 40), (2048, 96), (96, 1000)])
def test_a_row_is_the_same_among_any_others(inputs: int, outputs: int, dtype: torch.dtype, threads: None) -> None:
    dense, x = DenseLinear(linear_of(inputs, outputs, dtype=dtype)), rows_of(300, inputs)
    torch.set_num_threads(1)
    expected, base = dense(x), rows_of(300, outputs)
    added = dense.add_to(base.clone(), x)
    for count in ROWS:
        for number in (1, 2):
            torch.set_num_threads(number)
            assert torch.equal(dense(x[-count:]), expected[-count:])
            assert torch.equal(dense.add_to(base[-count:].clone(), x[-count:]), added[-count:])


@pytest.mark.parametrize("inputs", [40, 600])
def test_every_processor_gives_the_same_bits(inputs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    linear, x = linear_of(inputs, 75), rows_of(40, inputs)
    found = []
    for build in BUILDS:
        with monkeypatch.context() as patch:
            use_build(patch, build)
            dense = DenseLinear(linear)
            found.append([dense(x[:count]) for count in (1, 2, 3, 7, 40)])
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("build", BUILDS)
def test_bfloat16_weights_give_the_bits_of_float32(build: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use_build(monkeypatch, build)
    linear = linear_of(300, 70, dtype=torch.bfloat16)
    half, wide, x = DenseLinear(linear), DenseLinear(linear, torch.float32), rows_of(40, 300)
    assert half.panels.dtype == torch.bfloat16 and wide.panels.dtype == torch.float32
    for count in (1, 2, 3, 8, 9, 40):
        assert torch.equal(half(x[:count]), wide(x[:count]))
    assert torch.equal(DenseLinear(linear_of(300, 70), torch.bfloat16).panels, half.panels)


def test_any_view_is_read_and_no_rows_give_none() -> None:
    dense, x = DenseLinear(linear_of(48, 20)), rows_of(24, 96)
    expected = dense(x[:, :48].contiguous())
    assert torch.equal(dense(x[:, :48]), expected)
    assert torch.equal(dense(x[:, :48].unflatten(0, (4, 6))), expected.unflatten(0, (4, 6)))
    assert torch.equal(dense(x[7, :48]), expected[7])
    assert torch.equal(dense(x[:, :48].contiguous().T.contiguous().T), expected)
    assert torch.equal(dense(x.double()[:, :48]), expected)
    assert dense(x[:0, :48]).shape == (0, 20)
    assert dense.add_to(torch.empty(0, 20), x[:0, :48]).shape == (0, 20)
    residual = torch.zeros(20, 24).T
    assert dense.add_to(residual, x[:, :48]) is residual and torch.equal(residual, expected)
    with pytest.raises(ValueError, match="48 to 20, not 96"):
        dense(x)


@pytest.mark.parametrize("count", [3, 8, 20])
def test_a_broken_row_breaks_no_other(count: int) -> None:
    dense, x = DenseLinear(linear_of(100, 40)), rows_of(count, 100)
    expected = dense(x)
    x[1, 50] = torch.nan
    found = dense(x)
    assert found[1].isnan().all()
    others = torch.arange(count) != 1
    assert torch.equal(found[others], expected[others])


def test_nothing_is_written_beside_the_result() -> None:
    """The last panel of 16 outputs holds three, so whole vectors would reach beyond the end of a row."""
    dense = DenseLinear(linear_of(32, 19))
    for count in (1, 5, 30):
        memory = torch.full((count * 19 + 64,), 7.0)
        dense.add_to(memory[: count * 19].view(count, 19), rows_of(count, 32))
        assert (memory[count * 19 :] == 7).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_are_looked_up_in_panels(dtype: torch.dtype) -> None:
    head = linear_of(40, 37, bias=False, dtype=dtype)
    embedding, tokens = PanelEmbedding(DenseLinear(head)), torch.tensor([[0, 36, 16], [15, 3, 3]])
    assert torch.equal(embedding(tokens), head.weight[tokens].float())
    assert torch.equal(embedding(tokens.int()[:, :0]), torch.empty(2, 0, 40))
    assert embedding.weight.dtype == torch.float32
    for wrong in (37, -1):
        with pytest.raises(IndexError, match=f"token id {wrong} "):
            embedding(torch.tensor([1, wrong]))


def test_half_embeddings_give_float32() -> None:
    rows = nn.Embedding(10, 6, dtype=torch.bfloat16)
    wide = WideEmbedding(rows)
    assert torch.equal(wide(torch.tensor([3, 9])), rows.weight[[3, 9]].float())
    assert wide.weight.dtype == torch.float32


def test_panels_hold_each_weight_once() -> None:
    weight = torch.arange(37 * 5.0).view(37, 5)
    panels = panels_of(weight)
    assert panels.shape == (3, 5, 16)
    assert torch.equal(panels.transpose(1, 2).flatten(0, 1)[:37], weight)
    assert panels[2, :, 5:].count_nonzero() == 0
