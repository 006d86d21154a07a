"""Every kernel against the plain way that stands beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from puyulm.engine.gpu import products, rows
from puyulm.engine.gpu.attend import TritonAttention, splits_for
from puyulm.engine.gpu.store import store
from puyulm.engine.kv_types import KVType
from puyulm.engine.paged import KVCache, PagedAttention, StepLayout
from puyulm.engine.quant.rounding import quantize
from puyulm.engine.quant.tensor import Bits, QuantizedWeight
from puyulm.model import kernels
from puyulm.model.config import RopeConfig
from puyulm.model.rope import rope_tables
from tests.engine.test_paged_attention import Sequences, dense, empty_cache, layout_of, sequences

KV_TYPES: list[KVType] = ["model", "int8", "int4", "fp8"]
Steps = Sequence[Sequence[tuple[int, int, int]]]


def on(device: torch.device, layout: StepLayout) -> StepLayout:
    names = ("positions", "reaches", "slots", "query_starts", "lengths", "block_tables")
    return replace(layout, **{name: getattr(layout, name).to(device) for name in names})


def attend(
    kind: type[TritonAttention] | type[PagedAttention], cache: KVCache, given: Sequences, steps: Steps
) -> list[Tensor]:
    """Results of each sequence, put together from all steps; NaN where no step had a query."""
    results = [torch.full_like(q, torch.nan) for q in given.q]
    for pieces in steps:
        attention = kind(cache, on(cache.device, layout_of(pieces, given.tables)))
        parts = [
            torch.cat([x[which][start : start + count] for which, start, count in pieces]).to(cache.device, cache.dtype)
            for x in (given.q, given.k, given.v)
        ]
        mixed = attention(0, *parts).cpu().float()
        for (which, start, count), result in zip(pieces, mixed.split([count for *_, count in pieces]), strict=True):
            results[which][start : start + count] = result
    return results


@pytest.mark.parametrize("kv_type", KV_TYPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dim", [8, 80])
def test_stored_bits_are_those_of_the_plain_way(
    kv_type: KVType, dtype: torch.dtype, dim: int, device: torch.device
) -> None:
    shape = (3, 1, dim)
    caches = [empty_cache(shape, 4, kv_type, transposed=False, dtype=dtype, device=device) for _ in range(2)]
    k, v = (torch.randn(8, 3, dim, generator=torch.Generator().manual_seed(n)).to(device, dtype) for n in range(2))
    k[2], v[3], v[4, 1] = 0, 1.5, v[4, 1] * 1e-6
    slots = torch.tensor([0, 5, 17, 33, 63, 62, 20, 21], device=device)
    caches[0].write(0, slots, k, v)
    store(caches[1], 0, torch.cat((slots, slots[:1] * 0 - 1)), *(torch.cat((x, x[:1] * 9)) for x in (k, v)))
    for name in ("keys", "values", "key_scales", "value_scales"):
        for expected, stored in zip(*(getattr(cache, name) for cache in caches), strict=True):
            if device.type == "cpu" or kv_type == "model":
                assert torch.equal(expected.view(torch.uint8), stored.view(torch.uint8)), name
            elif stored.dtype == torch.float32:  # CUDA's PyTorch divides by constants with a product
                torch.testing.assert_close(stored, expected, atol=0, rtol=1e-6, equal_nan=True)
            else:
                assert (expected != stored).float().mean() < 0.01, name


@pytest.mark.parametrize("kv_type", KV_TYPES)
@pytest.mark.parametrize("shape", [(2, 3, 16)])
def test_attention_of_mixed_steps(kv_type: KVType, shape: tuple[int, int, int], device: torch.device) -> None:
    """Prompts in chunks, single tokens among them, single tokens alone."""
    given = sequences(shape, (20, 33, 70, 1))
    steps = [[(0, 0, 10), (1, 0, 31)], [(0, 10, 1), (1, 31, 2), (2, 0, 69)], [(0, 11, 9), (3, 0, 1), (2, 69, 1)]]
    ours, plain = (
        attend(kind, empty_cache(shape, given.num_blocks, kv_type, transposed=False, device=device), given, steps)
        for kind in (TritonAttention, PagedAttention)
    )
    for result, expected in zip(ours, plain, strict=True):
        torch.testing.assert_close(result, expected, atol=1e-5, rtol=0)
    if kv_type == "model":
        for result, q, k, v in zip(ours, given.q, given.k, given.v, strict=True):
            torch.testing.assert_close(result.double(), dense(q, k, v), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kv_type", KV_TYPES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(kv_type: KVType, dtype: torch.dtype, device: torch.device) -> None:
    if dtype == torch.bfloat16 and device.type == "cpu":
        pytest.skip("the interpreter multiplies bfloat16 as if it were whole numbers")
    shape, lengths = (1, 2, 16), (70, 5)
    given = sequences(shape, lengths)
    given = Sequences(*([x.to(dtype).float() for x in part] for part in (given.q, given.k, given.v)), given.tables, given.num_blocks)  # fmt: skip  # noqa: E501
    steps = [[(0, 0, 69), (1, 0, 5)], [(0, 69, 1)]]
    ours, plain = (
        attend(kind, empty_cache(shape, given.num_blocks, kv_type, transposed=False, device=device, dtype=held), given, steps)  # noqa: E501
        for kind, held in ((TritonAttention, dtype), (PagedAttention, torch.float32))
    )  # fmt: skip
    tolerance = 4 * torch.finfo(dtype).eps
    for result, expected in zip(ours, plain, strict=True):
        assert ((result - expected).abs() <= tolerance * (1 + expected.abs())).all()


@pytest.mark.parametrize("splits", [1, 4, 64])
def test_any_number_of_splits_gives_the_same(
    splits: int, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also more of them than tiles of keys; and rows that are nobody's give zeros and store nothing."""
    monkeypatch.setattr("puyulm.engine.gpu.attend.splits_for", lambda *_: splits)
    shape, lengths = (1, 2, 80), (300, 70)
    given = sequences(shape, lengths)
    cache = empty_cache(shape, given.num_blocks, transposed=False, device=device)
    attend(PagedAttention, cache, given, [[(0, 0, 299), (1, 0, 69)]])
    layout = layout_of([(0, 299, 1), (1, 69, 1), (0, 0, 1)], given.tables)
    layout.slots[2], layout.lengths[2] = -1, 0
    before = cache.keys[0][given.tables[0][0]].clone()
    parts = [torch.stack((x[0][299], x[1][69], x[0][5])).to(device) for x in (given.q, given.k, given.v)]
    mixed = TritonAttention(cache, on(device, layout))(0, *parts).cpu()
    for row, which in enumerate((0, 1)):
        expected = dense(given.q[which], given.k[which], given.v[which])[-1]
        torch.testing.assert_close(mixed[row].double(), expected, atol=1e-5, rtol=0)
    assert not mixed[2].any()
    assert torch.equal(before, cache.keys[0][given.tables[0][0]])


def test_splits_fill_the_device_and_share_out_long_sequences() -> None:
    assert splits_for(8, 100, 132) == 64  # a single sequence
    assert splits_for(2048, 16_000, 132) == 1
    assert splits_for(2048, 1 << 20, 132) == 64
    assert splits_for(2048, 1 << 30, 132) == 256


def test_views_of_a_fused_matrix(device: torch.device) -> None:
    shape = (3, 2, 16)
    given = sequences(shape, (20,))
    fused = torch.cat((given.q[0], given.k[0][:, :, None], given.v[0][:, :, None]), dim=2).to(device)
    cache = empty_cache(shape, given.num_blocks, transposed=False, device=device)
    attention = TritonAttention(cache, on(device, layout_of([(0, 0, 20)], given.tables)))
    result = attention(0, fused[:, :, :-2], fused[:, :, -2], fused[:, :, -1]).cpu()
    torch.testing.assert_close(result.double(), dense(given.q[0], given.k[0], given.v[0]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group", [32, 48, None])
def test_products_of_quantised_weights(bits: Bits, group: int | None, device: torch.device) -> None:
    generator = torch.Generator().manual_seed(0)
    made = quantize(torch.randn(38, 192, generator=generator), bits, group)
    zeros = None if made.zeros is None or group == 48 else made.zeros.to(device)
    weight = QuantizedWeight(made.codes.to(device), made.scales.to(device), zeros, bits, made.group_size)
    assert torch.equal(products.dequantize(weight, torch.float32), weight.dequantize())
    for count in (0, 1, 2, 20, products.TILED_ROWS + 1):
        x, residual = (torch.randn(count, size, generator=generator).to(device) for size in (192, 38))
        bias = torch.randn(38, generator=generator).to(device)
        expected = x.double() @ weight.dequantize().double().T
        for result, also in (
            (products.product(x, weight), 0.0),
            (products.product(x, weight, bias, residual.clone()), bias + residual),
        ):
            torch.testing.assert_close(result.double(), expected + also, atol=1e-4, rtol=0)


@pytest.mark.parametrize("size", [64, 4112])
def test_products_of_one_row(size: int, device: torch.device) -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight, bias = (
        torch.randn(*shape, generator=generator).half().to(device) for shape in ((1, size), (9, size), (9,))
    )
    expected = torch.nn.functional.linear(x.double(), weight.double(), bias.double())
    torch.testing.assert_close(products.row_product(x, weight, bias).double(), expected, atol=0.05, rtol=2e-3)
    residual = torch.ones(1, 9, dtype=x.dtype, device=device)
    result = products.row_product(x, weight, bias, residual)
    assert result is residual
    torch.testing.assert_close(result.double(), expected + 1, atol=0.05, rtol=2e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_rows(dtype: torch.dtype, device: torch.device) -> None:
    generator = torch.Generator().manual_seed(0)

    def values(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype)

    tolerance = dict(atol=4 * torch.finfo(dtype).eps, rtol=2 * torch.finfo(dtype).eps)
    x, weight = values(5, 96), values(96)
    torch.testing.assert_close(rows.rms_norm(x, weight, 1e-5), kernels.plain_rms_norm(x, weight, 1e-5), **tolerance)
    gate_up = 3 * values(3, 2 * 36)
    torch.testing.assert_close(rows.swiglu(gate_up, 12), kernels.plain_swiglu(gate_up, 12), **tolerance)
    qkv, positions = values(4, 3, 5, 20), torch.arange(4, device=device)
    rope = rope_tables(RopeConfig(), 20, 64, positions, torch.full_like(positions, 9), dtype)
    for result, expected in zip(rows.rotate_qkv(qkv, rope), kernels.plain_rotate_qkv(qkv, rope), strict=True):
        assert result.is_contiguous()
        torch.testing.assert_close(result, expected, **tolerance)
