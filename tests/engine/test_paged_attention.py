"""Paged attention against dense attention in float64, and the promise that a query's neighbours do not matter."""

from __future__ import annotations

import ctypes
import importlib.util
import platform
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from puyulm.engine.cpu import attention as native
from puyulm.engine.cpu.native import FLAGS
from puyulm.engine.kv_types import KVType
from puyulm.engine.paged import BLOCK_SIZE, QUERY_TILE, KVCache, PagedAttention, StepLayout, attention_for
from puyulm.model.attention import Attention
from puyulm.model.config import ModelConfig

SHAPES = [(1, 1, 8), (2, 1, 8), (2, 3, 16), (2, 2, 80), (1, 4, 96), (2, 1, 100), (3, 1, 64), (1, 9, 64), (2, 2, 128),
          (1, 1, 256), (1, 50, 20)]  # fmt: skip
"""KV heads, query heads of each, head dimension."""

LENGTHS = (1, 15, 16, 17, 64, 65, 255, 256, 257, 300, 520)

KERNELS = ["native", "numba", "plain"]
EXACT = ["native", "numba"]
"""Kernels whose rows do not depend on their neighbours."""


@dataclass(frozen=True)
class Sequences:
    """Queries, keys and values of some sequences, and the blocks where they are to lie."""

    q: list[Tensor]
    k: list[Tensor]
    v: list[Tensor]
    tables: list[list[int]]
    num_blocks: int


def config_of(kv_heads: int, q_per_kv: int, dim: int) -> ModelConfig:
    return ModelConfig(
        family="internlm2", vocab_size=32, hidden_size=kv_heads * q_per_kv * dim, intermediate_size=64, num_layers=1,
        num_heads=kv_heads * q_per_kv, num_kv_heads=kv_heads, head_dim=dim, max_position_embeddings=4096,
    )  # fmt: skip


def sequences(shape: tuple[int, int, int], lengths: Sequence[int], seed: int = 0) -> Sequences:
    generator = torch.Generator().manual_seed(seed)
    kv_heads, q_per_kv, dim = shape
    q = [2 * torch.randn(length, kv_heads, q_per_kv, dim, generator=generator) for length in lengths]
    k, v = ([torch.randn(length, kv_heads, dim, generator=generator) for length in lengths] for _ in range(2))
    needed = [-(-length // BLOCK_SIZE) for length in lengths]
    num_blocks = sum(needed) + 5
    tables = [part.tolist() for part in torch.randperm(num_blocks, generator=generator).split([*needed, 5])[:-1]]
    return Sequences(q, k, v, tables, num_blocks)


def empty_cache(shape: tuple[int, int, int], num_blocks: int, kv_type: KVType = "model", **changes: object) -> KVCache:
    """What was never written is NaN."""
    arguments = {"dtype": torch.float32, "device": torch.device("cpu"), "kv_type": kv_type, **changes}
    cache = KVCache(config_of(*shape), num_blocks, **arguments)  # type: ignore[arg-type]
    stores = (cache.keys, cache.values) if kv_type == "model" else (cache.key_scales, cache.value_scales)
    for store in stores:
        store[0].fill_(torch.nan)
    return cache


def layout_of(pieces: Sequence[tuple[int, int, int]], tables: Sequence[Sequence[int]]) -> StepLayout:
    """Pieces are (sequence, start, count). Tables are filled up with block 0."""
    counts, ends = [count for _, _, count in pieces], [start + count for _, start, count in pieces]
    width = max(len(table) for table in tables)
    rows = torch.tensor([[*tables[which], *[0] * (width - len(tables[which]))] for which, _, _ in pieces]).int()
    positions = torch.cat([torch.arange(start, start + count) for _, start, count in pieces])
    owners = torch.arange(len(pieces)).repeat_interleave(torch.tensor(counts))
    slots = rows[owners, positions // BLOCK_SIZE].long() * BLOCK_SIZE + positions % BLOCK_SIZE
    starts = torch.tensor([0, *counts]).cumsum(0).int()
    lengths = torch.tensor(ends, dtype=torch.int32)
    return StepLayout(positions, lengths[owners].long(), slots, starts, lengths, rows, counts, ends)


def attend(kernel: str, cache: KVCache, layout: StepLayout) -> Attention:
    if kernel == "plain":
        return PagedAttention(cache, layout)
    if kernel == "numba":
        kernels = pytest.importorskip("puyulm.engine.cpu.attention_numba", exc_type=ImportError)
        if not kernels.knows(cache):
            pytest.skip("not a type that numba knows")
        return kernels.NumbaAttention(cache, layout)
    made = native.native_attention(cache, layout)
    if made is None:
        pytest.skip("no C compiler")
    return made


def run(kernel: str, cache: KVCache, given: Sequences, steps: Sequence[Sequence[tuple[int, int, int]]]) -> list[Tensor]:
    """Results of each sequence, put together from all steps."""
    results = [torch.full_like(q, torch.nan) for q in given.q]
    for pieces in steps:
        attention = attend(kernel, cache, layout_of(pieces, given.tables))
        parts = [
            [x[which][start : start + count] for which, start, count in pieces] for x in (given.q, given.k, given.v)
        ]
        mixed = attention(0, *(torch.cat(part) for part in parts))
        for (which, start, count), result in zip(pieces, mixed.split([count for *_, count in pieces]), strict=True):
            results[which][start : start + count] = result
    return results


def dense(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """In float64, every score."""
    q, k, v = q.double(), k.double(), v.double()
    scores = torch.einsum("tkgd,skd->kgts", q, k) * q.shape[-1] ** -0.5
    hidden = torch.ones(scores.shape[-2:], dtype=torch.bool).triu_(1)
    return torch.einsum("kgts,skd->tkgd", scores.masked_fill(hidden, -torch.inf).softmax(-1), v)


def whole(lengths: Sequence[int]) -> list[list[tuple[int, int, int]]]:
    """One step with all sequences side by side."""
    return [[(which, 0, length) for which, length in enumerate(lengths)]]


def chunked(length: int, size: int, which: int = 0) -> list[list[tuple[int, int, int]]]:
    return [[(which, start, min(size, length - start))] for start in range(0, length, size)]


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_dense_attention(kernel: str, shape: tuple[int, int, int]) -> None:
    given = sequences(shape, LENGTHS)
    cache = empty_cache(shape, given.num_blocks)
    for result, q, k, v in zip(run(kernel, cache, given, whole(LENGTHS)), given.q, given.k, given.v, strict=True):
        torch.testing.assert_close(result.double(), dense(q, k, v), atol=6e-6, rtol=0)


@pytest.mark.parametrize("kernel", KERNELS)
def test_large_scores_do_not_overflow(kernel: str) -> None:
    given = sequences((2, 1, 64), (600,))
    given.q[0].mul_(300)
    result = run(kernel, empty_cache((2, 1, 64), given.num_blocks), given, whole((600,)))[0]
    torch.testing.assert_close(result.double(), dense(given.q[0], given.k[0], given.v[0]), atol=2e-3, rtol=0)


@pytest.mark.parametrize("kernel", KERNELS)
def test_mixed_steps_equal_dense_attention(kernel: str) -> None:
    lengths = (40, 33, 90)
    given = sequences((2, 2, 16), lengths)
    steps = [[(0, 0, 30)], [(0, 30, 1), (1, 0, 32), (2, 0, 50)], [(1, 32, 1), (0, 31, 9), (2, 50, 40)]]
    results = run(kernel, empty_cache((2, 2, 16), given.num_blocks), given, steps)
    for result, q, k, v in zip(results, given.q, given.k, given.v, strict=True):
        torch.testing.assert_close(result.double(), dense(q, k, v), atol=2e-6, rtol=0)


@pytest.mark.parametrize("kernel", EXACT)
@pytest.mark.parametrize("kv_type", ["model", "int8", "int4"])
@pytest.mark.parametrize("shape", [(2, 1, 8), (2, 3, 64), (1, 2, 100)])
def test_chunks_do_not_matter(kernel: str, kv_type: KVType, shape: tuple[int, int, int]) -> None:
    length = 530
    given = sequences(shape, (length,))
    once = run(kernel, empty_cache(shape, given.num_blocks, kv_type), given, whole((length,)))[0]
    assert once.isfinite().all()
    for size in (1, 7, 16, 48, 100, 257, 512):
        again = run(kernel, empty_cache(shape, given.num_blocks, kv_type), given, chunked(length, size))[0]
        assert torch.equal(once, again), f"chunks of {size}"


@pytest.mark.parametrize("kernel", EXACT)
@pytest.mark.parametrize("kv_type", ["model", "int8", "int4"])
def test_neighbours_and_blocks_do_not_matter(kernel: str, kv_type: KVType) -> None:
    shape, lengths = (2, 2, 64), (5, 290, 17, 700, 64)
    given = sequences(shape, lengths)
    together = run(kernel, empty_cache(shape, given.num_blocks, kv_type), given, whole(lengths))
    for which, length in enumerate(lengths):
        tables = [list(reversed(range(-(-length // BLOCK_SIZE))))]
        alone = Sequences([given.q[which]], [given.k[which]], [given.v[which]], tables, 60)
        result = run(kernel, empty_cache(shape, 60, kv_type), alone, whole((length,)))[0]
        assert torch.equal(together[which], result)


@pytest.mark.parametrize("kernel", EXACT)
@pytest.mark.parametrize("shape", [(1, 1, 64), (1, 4, 32), (5, 1, 16)])
def test_threads_do_not_matter(kernel: str, shape: tuple[int, int, int], threads: None) -> None:
    length = 2000  # one head and few queries: a long sequence is shared out by ranges of keys
    given = sequences(shape, (length,))
    steps = [*chunked(length - 40, 900), [(0, length - 40, 37)], *[[(0, length - 3 + i, 1)] for i in range(3)]]
    results = []
    for count in (1, 2, 3, 5):
        torch.set_num_threads(count)
        results.append(run(kernel, empty_cache(shape, given.num_blocks), given, steps)[0])
        assert torch.equal(results[0], results[-1]), f"{count} threads"
    torch.testing.assert_close(results[0].double(), dense(given.q[0], given.k[0], given.v[0]), atol=6e-6, rtol=0)


@pytest.mark.parametrize("kv_type", ["model", "int8", "int4"])
@pytest.mark.parametrize("shape", SHAPES)
def test_native_and_numba_give_the_same_bits(shape: tuple[int, int, int], kv_type: KVType) -> None:
    lengths = (530, 33)
    given = sequences(shape, lengths)
    one, other = (run(kernel, empty_cache(shape, given.num_blocks, kv_type), given, whole(lengths)) for kernel in EXACT)
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("kernel", KERNELS)
def test_later_keys_are_not_seen(kernel: str) -> None:
    """Keys of the same chunk that come after a query change nothing for it."""
    given = sequences((2, 1, 16), (100,))
    cache = empty_cache((2, 1, 16), given.num_blocks)
    before = run(kernel, cache, given, whole((100,)))[0]
    given.k[0][50:], given.v[0][50:] = 1e4, -1e4
    after = run(kernel, cache, given, whole((100,)))[0]
    assert torch.equal(before[:50], after[:50])
    assert not torch.equal(before[50:], after[50:])


@pytest.mark.parametrize("kernel", EXACT)
def test_views_of_a_fused_matrix(kernel: str) -> None:
    """Queries, keys and values as slices of one grouped matrix, as the decoder hands them over."""
    shape, lengths = (3, 2, 32), (70,)
    given = sequences(shape, lengths)
    fused = torch.cat((given.q[0], given.k[0][:, :, None], given.v[0][:, :, None]), dim=2)
    layout = layout_of(whole(lengths)[0], given.tables)
    views = fused[:, :, :-2], fused[:, :, -2], fused[:, :, -1]
    assert not any(view.is_contiguous() for view in views)
    result = attend(kernel, empty_cache(shape, given.num_blocks), layout)(0, *views)
    expected = run(kernel, empty_cache(shape, given.num_blocks), given, whole(lengths))[0]
    assert torch.equal(result, expected)


@pytest.mark.parametrize("kernel", EXACT)
def test_bfloat16_activations(kernel: str) -> None:
    shape, lengths = (2, 2, 72), (40, 300)
    given = sequences(shape, lengths)
    given = Sequences(
        *([x.bfloat16() for x in part] for part in (given.q, given.k, given.v)), given.tables, given.num_blocks
    )
    cache = empty_cache(shape, given.num_blocks, dtype=torch.bfloat16)
    for result, q, k, v in zip(run(kernel, cache, given, whole(lengths)), given.q, given.k, given.v, strict=True):
        assert result.dtype == torch.bfloat16
        expected = dense(q, k, v)
        assert ((result.double() - expected).abs() <= expected.abs() * 2**-8 + 1e-5).all()


def test_the_plain_path_takes_what_kernels_do_not() -> None:
    given = sequences((2, 1, 16), (30,))
    layout = layout_of(whole((30,))[0], given.tables)
    for changes in ({"dtype": torch.float16}, {"kv_type": "fp8"}, {"transposed": False}):
        cache = empty_cache((2, 1, 16), given.num_blocks, **changes)  # type: ignore[arg-type]
        attention = attention_for(cache, layout)
        assert isinstance(attention, PagedAttention)
        result = attention(0, *(x[0].to(cache.dtype) for x in (given.q, given.k, given.v)))
        torch.testing.assert_close(
            result.double(),
            dense(given.q[0], given.k[0], given.v[0]),
            atol=0.2 if cache.kv_type == "fp8" else 1e-2,
            rtol=0,
        )


def test_the_best_that_is_installed_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = empty_cache((1, 1, 8), 2)
    layout = layout_of([(0, 0, 5)], [[0]])
    if native.library() is not None:
        assert isinstance(attention_for(cache, layout), native.NativeAttention)
    monkeypatch.setattr(native, "library", lambda: None)
    if importlib.util.find_spec("numba") is not None:
        assert type(attention_for(cache, layout)).__name__ == "NumbaAttention"
    monkeypatch.setattr(native, "_numba", lambda: None)
    assert isinstance(attention_for(cache, layout), PagedAttention)


def test_the_plain_path_never_sees_more_than_a_tile(monkeypatch: pytest.MonkeyPatch) -> None:
    """A prompt's scores are never all there at once."""
    given = sequences((1, 1, 8), (1000,))
    sizes = []
    product = torch.nn.functional.scaled_dot_product_attention

    def watched(q: Tensor, k: Tensor, v: Tensor, **rest: object) -> Tensor:
        sizes.append(q.shape[-2])
        return product(q, k, v, **rest)  # type: ignore[arg-type]

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", watched)
    result = run("plain", empty_cache((1, 1, 8), given.num_blocks), given, whole((1000,)))[0]
    assert max(sizes) == QUERY_TILE and sum(sizes) == 1000
    torch.testing.assert_close(result.double(), dense(given.q[0], given.k[0], given.v[0]), atol=6e-6, rtol=0)


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="flags of x86")
def test_every_instruction_set_gives_the_same_bits(tmp_path: Path) -> None:
    """AVX2, and plain C, as this machine's own."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or "fma" not in Path("/proc/cpuinfo").read_text():
        pytest.skip("no C compiler, or a processor without AVX2")
    source = Path(native.__file__).with_name("attention.c")
    common = [flag for flag in FLAGS if not flag.startswith("-march")]
    given = sequences((2, 3, 40), (300, 20))
    layout = layout_of(whole((300, 20))[0], given.tables)
    results = []
    for name, flags in (("avx2", []), ("plain", ["-U__AVX2__"])):
        made = tmp_path / f"{name}.so"
        command = [compiler, *common, "-O1", "-march=x86-64-v3", *flags, str(source), "-o", str(made), "-lm"]
        subprocess.run(command, check=True)
        library = ctypes.CDLL(str(made))
        native.declare(library)
        for kv_type in ("model", "int8", "int4"):
            for each in (library, native.library()):
                if each is None:
                    pytest.skip("the kernel is not compiled here")
                attention = native.NativeAttention(empty_cache((2, 3, 40), given.num_blocks, kv_type), layout, each)
                results.append(attention(0, *(torch.cat(part) for part in (given.q, given.k, given.v))))
            assert torch.equal(*results[-2:]), (name, kv_type)


def test_attention_says_where_its_tokens_are() -> None:
    given = sequences((1, 1, 8), (20, 9))
    layout = layout_of([(0, 10, 5), (1, 8, 1)], given.tables)
    attention = attention_for(empty_cache((1, 1, 8), given.num_blocks), layout)
    assert attention.positions.tolist() == [10, 11, 12, 13, 14, 8]  # type: ignore[attr-defined]
    assert attention.seq_lens.tolist() == [15] * 5 + [9]
