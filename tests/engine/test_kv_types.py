"""Caches of fewer bits: their codes, their errors, and a model that reads them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from puyulm.engine import kv_types
from puyulm.engine.kv_types import KVType
from puyulm.engine.paged import BLOCK_SIZE, KVCache, PagedAttention, StepLayout, attention_for, block_bytes
from puyulm.model.config import ModelConfig
from puyulm.model.decoder import Decoder
from tests.conftest import tiny_config, tiny_decoder
from tests.engine.test_paged_attention import (
    EXACT,
    KERNELS,
    attend,
    config_of,
    dense,
    empty_cache,
    layout_of,
    run,
    sequences,
    whole,
)

FEWER: tuple[KVType, ...] = ("int8", "int4", "fp8")


def allowed(x: Tensor, kv_type: KVType) -> Tensor:
    """The largest error that the formulas allow, with a little for the rounding of float32."""
    if kv_type == "fp8":
        largest = x.abs().amax(-1, keepdim=True)
        return torch.maximum(x.abs() / 16, largest / 448 * 2**-10) * (1 + 1e-5)
    steps = 255 if kv_type == "int8" else 15
    low, high = x.aminmax(dim=-1, keepdim=True)
    return (high - low) / steps / 2 * (1 + 1e-4) + (low.abs() + high.abs()) * 1e-6


@pytest.mark.parametrize("kv_type", FEWER)
@given(dim=st.integers(1, 128).map(lambda half: 2 * half), scale=st.floats(1e-6, 1e6), shift=st.floats(-3, 3))
@settings(max_examples=40, deadline=None)
def test_no_value_is_off_by_more_than_the_formula_allows(kv_type: KVType, dim: int, scale: float, shift: float) -> None:
    x = (torch.randn(5, 2, dim, generator=torch.Generator().manual_seed(dim)) + shift) * scale
    codes, scales = kv_types.encode(x, kv_type)
    assert codes.dtype == torch.uint8 and codes.shape == (5, 2, kv_types.code_bytes(dim, kv_type))
    assert scales.dtype == torch.float32 and scales.shape == (5, 2, kv_types.num_scales(kv_type))
    decoded = kv_types.decode(codes, scales, dim, kv_type)
    assert ((decoded - x).abs() <= allowed(x, kv_type)).all()


@pytest.mark.parametrize("kv_type", FEWER)
@pytest.mark.parametrize("value", [0.0, -2.5, 1e-30])
def test_vectors_of_one_value_are_exact(kv_type: KVType, value: float) -> None:
    x = torch.full((1, 16), value)
    decoded = kv_types.decode(*kv_types.encode(x, kv_type), 16, kv_type)
    torch.testing.assert_close(decoded, x, atol=0, rtol=1e-6)


@pytest.mark.parametrize("kv_type", ["int8", "int4"])
def test_the_ends_of_the_range_are_kept(kv_type: KVType) -> None:
    x = torch.tensor([[-3.0, 0.1, 0.2, 5.0]])
    decoded = kv_types.decode(*kv_types.encode(x, kv_type), 4, kv_type)
    torch.testing.assert_close(decoded[0, [0, 3]], x[0, [0, 3]])


@pytest.mark.parametrize("kv_type", ["model", *FEWER])
@pytest.mark.parametrize("transposed", [True, False])
def test_what_is_written_is_read(kv_type: KVType, transposed: bool) -> None:
    shape, length = (2, 2, 48), 40
    cache = KVCache(config_of(*shape), 8, torch.float32, torch.device("cpu"), kv_type, transposed=transposed)
    made = sequences(shape, (length,))
    layout = layout_of([(0, 0, length)], made.tables)
    cache.write(0, layout.slots, made.k[0], made.v[0])
    for stored, x in zip(cache.read(0, layout.block_tables[0], length), (made.k[0], made.v[0]), strict=True):
        if kv_type == "model":
            assert torch.equal(stored, x)
        else:
            assert ((stored - x).abs() <= allowed(x, kv_type)).all()


@pytest.mark.parametrize("kv_type", ["model", *FEWER])
@pytest.mark.parametrize("transposed", [True, False])
@pytest.mark.parametrize("dim", [8, 64, 80, 100])
def test_block_bytes_is_what_the_cache_takes(kv_type: KVType, transposed: bool, dim: int) -> None:
    config = config_of(3, 2, dim).evolve(num_layers=2)
    cache = KVCache(config, 7, torch.bfloat16, torch.device("cpu"), kv_type, transposed=transposed)
    stores = [*cache.keys, *cache.values, *cache.key_scales, *cache.value_scales]
    assert sum(store.nbytes for store in stores) == 7 * block_bytes(config, torch.bfloat16, kv_type)


def test_fewer_bits_take_less_memory() -> None:
    config = config_of(8, 4, 128)
    whole, eight, four, fp8 = (block_bytes(config, torch.float32, kv_type) for kv_type in ("model", *FEWER))
    assert (whole / eight, whole / four, whole / fp8) == pytest.approx((512 / 136, 512 / 72, 512 / 132))


@pytest.mark.parametrize("kernel", EXACT)
@pytest.mark.parametrize("kv_type", ["int8", "int4"])
@pytest.mark.parametrize("dim", [8, 20, 64, 100, 128])
def test_kernels_write_the_reference_codes(kernel: str, kv_type: KVType, dim: int) -> None:
    shape, length = (2, 1, dim), 50
    made = sequences(shape, (length,))
    caches = [empty_cache(shape, made.num_blocks, kv_type) for _ in range(2)]
    run(kernel, caches[0], made, whole((length,)))
    caches[1].write(0, layout_of([(0, 0, length)], made.tables).slots, made.k[0], made.v[0])
    for name in ("keys", "values", "key_scales", "value_scales"):
        one, other = (getattr(cache, name)[0] for cache in caches)
        assert torch.equal(one.nan_to_num(-7) if one.is_floating_point() else one,
                           other.nan_to_num(-7) if other.is_floating_point() else other), name  # fmt: skip


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("kv_type", FEWER)
@pytest.mark.parametrize("shape", [(2, 3, 64), (1, 2, 100), (2, 1, 8), (1, 12, 128)])
def test_attention_is_that_over_the_decoded_values(kernel: str, kv_type: KVType, shape: tuple[int, int, int]) -> None:
    if kv_type == "fp8" and kernel != "plain":
        pytest.skip("only on GPUs and in plain PyTorch")
    lengths = (300, 33)
    made = sequences(shape, lengths)
    results = run(kernel, empty_cache(shape, made.num_blocks, kv_type), made, whole(lengths))
    for result, q, k, v in zip(results, made.q, made.k, made.v, strict=True):
        k, v = (kv_types.decode(*kv_types.encode(x, kv_type), shape[2], kv_type) for x in (k, v))
        torch.testing.assert_close(result.double(), dense(q, k, v), atol=1e-5, rtol=0)


@pytest.mark.parametrize("kernel", EXACT)
@pytest.mark.parametrize("kv_type", ["int8", "int4"])
def test_a_value_that_is_not_a_number_shows(kernel: str, kv_type: KVType) -> None:
    made = sequences((1, 1, 16), (20,))
    made.v[0][10, 0, 3] = torch.nan
    result = run(kernel, empty_cache((1, 1, 16), made.num_blocks, kv_type), made, [[(0, i, 1)] for i in range(20)])[0]
    assert result[:10].isfinite().all() and not result[10:].isfinite().any()


def decoded_logits(model: Decoder, config: ModelConfig, ids: list[int], kv_type: KVType) -> Tensor:
    """Logits of every position, one token at a time."""
    cache = KVCache(config, 8, torch.float32, torch.device("cpu"), kv_type)
    table = torch.arange(8, dtype=torch.int32)[None]
    rows = []
    for place, token in enumerate(ids):
        at, end = torch.tensor([place]), torch.tensor([place + 1], dtype=torch.int32)
        starts = torch.tensor([0, 1], dtype=torch.int32)
        layout = StepLayout(at, end.long(), at, starts, end, table, [1], [place + 1])
        attention = attention_for(cache, layout)
        rows.append(model.logits(model(torch.tensor([token]), attention.positions, attention))[0])  # type: ignore[attr-defined]
    return torch.stack(rows)


@torch.inference_mode()
def test_a_model_decodes_nearly_the_same() -> None:
    config = tiny_config(head_dim=32, initializer_range=0.2)
    model = tiny_decoder(head_dim=32)
    ids = torch.randint(config.vocab_size, (60,), generator=torch.Generator().manual_seed(1)).tolist()
    exact = decoded_logits(model, config, ids, "model")
    int8, int4, fp8 = (
        float((decoded_logits(model, config, ids, kv_type) - exact).norm() / exact.norm()) for kv_type in FEWER
    )
    assert 0 < int8 < 0.02  # measured: 0.011, 0.054 and 0.16
    assert int8 < fp8 < 0.1
    assert fp8 < int4 < 0.3


def test_the_last_block_may_hold_what_another_sequence_left() -> None:
    """A block that was freed and taken again holds old scales beyond the new sequence's end."""
    shape = (1, 1, 16)
    cache = empty_cache(shape, 2, "int8")
    cache.key_scales[0].fill_(torch.inf)
    cache.value_scales[0].fill_(torch.inf)
    made = sequences(shape, (BLOCK_SIZE + 3,))
    layout = layout_of([(0, 0, BLOCK_SIZE + 3)], [[1, 0]])
    for kernel in ("native", "plain"):
        result = attend(kernel, cache, layout)(0, made.q[0], made.k[0], made.v[0])
        assert result.isfinite().all()


def test_fp8_is_read_in_plain_pytorch() -> None:
    cache = empty_cache((1, 1, 16), 2, "fp8")
    assert isinstance(attention_for(cache, layout_of([(0, 0, 3)], [[0]])), PagedAttention)
