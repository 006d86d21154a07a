"""The kernels become machine code for Hopper, with what makes them fast; this takes Triton, but no GPU."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, compile

from puyulm.engine.gpu import attend, products, rows, store
from puyulm.engine.gpu.available import interpreted

pytestmark = pytest.mark.skipif(interpreted(), reason="the interpreter compiles nothing")

HALF, BYTES, FLOATS, INTS, LONGS = "*bf16", "*u8", "*fp32", "*i32", "*i64"
KINDS = [pytest.param(kind, id=name) for name, kind in store.KINDS.items()]


def compiled(kernel: Any, signature: dict[str, str], constants: dict[str, Any], **options: int) -> Any:
    """With pointers and strides that are multiples of 16, as PyTorch's are; fails if ptxas does."""
    aligned = {
        (place,): [["tt.divisibility", 16]]
        for place, name in enumerate(kernel.arg_names)
        if signature.get(name, "fp32") != "fp32"
    }
    source = ASTSource(kernel, {**signature, **dict.fromkeys(constants, "constexpr")}, constants, aligned)
    made = compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    assert made.asm["cubin"]
    return made


def attention(kind: int, queries: int, group_pad: int, splits: int, **options: int) -> Any:
    codes, scales = (HALF, HALF) if kind == 0 else (BYTES, FLOATS)
    signature = dict(
        q=HALF, keys=codes, values=codes, key_scales=scales, value_scales=scales, tables=INTS, lengths=INTS,
        starts=INTS, pieces=INTS, firsts=INTS, out=HALF, parts=FLOATS, stats=FLOATS, score_scale="fp32",
        table_row="i32", q_token="i32", q_head="i32", q_member="i32",
    )  # fmt: skip
    constants = dict(
        KIND=kind, HEADS=8, GROUP=4, GROUP_PAD=group_pad, QUERIES=queries, DIM=128, DIM_PAD=128,
        WIDTH=64 if kind == 2 else 128, BLOCK=16, TILE=attend.KEY_TILE, SPLITS=splits,
    )  # fmt: skip
    return compiled(attend._attend, signature, constants, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_use_the_tensor_cores_of_warp_groups(kind: int) -> None:
    made = attention(kind, 32, 4, 1, num_warps=8, num_stages=2)
    assert "wgmma.mma_async" in made.asm["ptx"]
    assert made.metadata.shared <= 227 << 10


@pytest.mark.parametrize("kind", KINDS)
def test_single_tokens_load_ahead(kind: int) -> None:
    made = attention(kind, 1, 16, 32, num_warps=4, num_stages=3)
    assert "cp.async.cg.shared.global" in made.asm["ptx"] and "mma.sync" in made.asm["ptx"]
    assert made.metadata.shared <= 64 << 10  # several programs on a multiprocessor


@pytest.mark.parametrize("kind", KINDS)
def test_store_and_combine(kind: int) -> None:
    codes, scales, width = (HALF, HALF, 128) if kind == 0 else (BYTES, FLOATS, 64 if kind == 2 else 128)
    signature = dict(
        k=HALF, v=HALF, keys=codes, values=codes, key_scales=scales, value_scales=scales, slots=LONGS, k_token="i32",
        k_head="i32", v_token="i32", v_head="i32",
    )  # fmt: skip
    constants = dict(KIND=kind, HEADS=8, HEADS_PAD=8, DIM=128, WIDTH=width, WIDTH_PAD=width, BLOCK=16)
    compiled(store._store, signature, constants)
    signature = dict(parts=FLOATS, stats=FLOATS, starts=INTS, pieces=INTS, out=HALF)
    compiled(attend._combine, signature, dict(HEADS=8, GROUP=4, DIM=128, DIM_PAD=128, SPLITS=64, CHUNK=32))


@pytest.mark.parametrize("bits", [4, 8, 16])
def test_products(bits: int) -> None:
    codes = {4: BYTES, 8: "*i8", 16: HALF}[bits]
    signature = dict(x=HALF, codes=codes, scales="*fp16" if bits < 16 else HALF, zeros=BYTES if bits == 4 else codes,
                     bias=HALF, out=HALF, columns="i32")  # fmt: skip
    constants = dict(K=4096, GROUP=128 if bits < 16 else 4096, TILE=128, BITS=bits, HAS_ZEROS=bits == 4, HAS_BIAS=True,
                     ADDS=True)  # fmt: skip
    made = compiled(products._row_product, signature, {**constants, "TILES": 8, "COLUMNS": 4})
    assert "ld.global.v4" in made.asm["ptx"] or "ld.global.L1::evict_first.v4" in made.asm["ptx"]
    if bits == 16:
        return
    tiled = dict(constants, TILES=1, ROWS=64, COLUMNS=64)
    made = compiled(products._tiled_product, {**signature, "rows": "i32"}, tiled, num_warps=4, num_stages=4)
    assert "wgmma.mma_async" in made.asm["ptx"]
    whole = {name: constants[name] for name in ("K", "GROUP", "TILE", "BITS", "HAS_ZEROS")}
    given = {name: signature[name] for name in ("codes", "scales", "zeros", "out")}
    compiled(products._dequantize, given, {**whole, "TILES": 8})


def test_rows() -> None:
    compiled(rows._rms_norm, dict(x=HALF, weight=HALF, out=HALF, eps="fp32"), dict(SIZE=4096, PAD=4096), num_warps=8)
    names = ("qkv", "cos", "sin", "q", "k", "v")
    constants = dict(GROUPS=8, HEADS=6, HEADS_PAD=8, DIM=128, HALF_PAD=64)
    compiled(rows._rotate_qkv, dict.fromkeys(names, HALF), constants)
    compiled(rows._swiglu, dict(gate_up=HALF, out=HALF), dict(SIZE=14_336, BLOCK=1792, SPAN=1024))
