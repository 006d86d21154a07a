"""The hand-written functions against their plain versions, and their gradients against finite differences."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck

from puyulm.model import kernels
from puyulm.model.attention import PackedAttention
from puyulm.model.rope import RopeTables


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator).requires_grad_()


def tables(tokens: int, size: int) -> RopeTables:
    angles = random(tokens, size // 2, seed=9).detach()
    return RopeTables(torch.cat([angles.cos()] * 2, -1), torch.cat([-angles.sin(), angles.sin()], -1))


def assert_alike(hand, plain, *inputs: Tensor) -> None:
    """Same values, and same gradients for the same random gradient of every result."""
    results = [function(*inputs) for function in (hand, plain)]
    found, expected = (result if isinstance(result, tuple) else (result,) for result in results)
    torch.testing.assert_close(found, expected)
    above = [torch.randn_like(part) for part in expected]
    of = [x for x in inputs if x.requires_grad]
    torch.testing.assert_close(torch.autograd.grad(found, of, above), torch.autograd.grad(expected, of, above))


def test_rms_norm():
    x, weight = random(5, 6), random(6, seed=1)
    assert type(kernels.rms_norm(x, weight, 1e-5).grad_fn).__name__ == "_RMSNormBackward"
    assert_alike(lambda *a: kernels.rms_norm(*a, 1e-2), lambda *a: kernels.plain_rms_norm(*a, 1e-2), x, weight)
    assert_alike(lambda *a: kernels.rms_norm(*a, 1e-2), lambda *a: kernels.plain_rms_norm(*a, 1e-2), x, weight.detach())
    assert gradcheck(lambda *a: kernels.rms_norm(*a, 1e-2), (x, weight))
    frozen = x.detach()
    (grad,) = torch.autograd.grad(kernels.rms_norm(frozen, weight, 1e-2).sum(), weight)
    torch.testing.assert_close(grad, torch.autograd.grad(kernels.plain_rms_norm(frozen, weight, 1e-2).sum(), weight)[0])


@pytest.mark.parametrize("block", [3, 6])
def test_swiglu(block: int):
    gate_up = random(5, 12)
    assert type(kernels.swiglu(gate_up, block).grad_fn).__name__ == "_SwiGLUBackward"
    assert_alike(lambda x: kernels.swiglu(x, block), lambda x: kernels.plain_swiglu(x, block), gate_up)
    assert gradcheck(lambda x: kernels.swiglu(x, block), gate_up)


@pytest.mark.parametrize("queries", [1, 3])
def test_rotation(queries: int):
    qkv, rope = random(5, 2, queries + 2, 4), tables(5, 4)
    assert_alike(lambda x: kernels.rotate_qkv(x, rope), lambda x: kernels.plain_rotate_qkv(x, rope), qkv)
    assert gradcheck(lambda x: kernels.rotate_qkv(x, rope), qkv)
    with torch.no_grad():
        assert all(map(torch.equal, kernels.rotate_qkv(qkv, rope), kernels.plain_rotate_qkv(qkv, rope)))


@pytest.mark.parametrize("queries", [1, 3])
@pytest.mark.parametrize("lengths", [(7,), (8, 5, 1, 3)])
def test_causal_attention(monkeypatch: pytest.MonkeyPatch, lengths: tuple[int, ...], queries: int):
    monkeypatch.setattr(kernels, "QUERY_BLOCK", 3)
    tokens = sum(lengths)
    qkv = random(tokens, 2, queries + 2, 4)
    parts = (qkv[:, :, :-2], qkv[:, :, -2], qkv[:, :, -1])
    assert_alike(
        lambda x: kernels.causal_attention(*(part.clone() for part in parts_of(x)), lengths),
        lambda x: kernels.plain_causal_attention(*parts_of(x), lengths),
        qkv,
    )
    inputs = tuple(part.detach().requires_grad_() for part in parts)
    assert gradcheck(lambda q, k, v: kernels.causal_attention(q, k, v, lengths), inputs)


def parts_of(qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return qkv[:, :, :-2], qkv[:, :, -2], qkv[:, :, -1]


def test_query_blocks_are_of_one_size():
    assert kernels._query_blocks([300, 10]) == [(0, 0, 100), (0, 100, 200), (0, 200, 300), (300, 300, 310)]
    assert kernels._query_blocks([128, 129]) == [(0, 0, 128), (128, 128, 193), (128, 193, 257)]


def test_packed_attention_uses_it_where_it_is_faster(monkeypatch: pytest.MonkeyPatch):
    calls = []
    real = kernels.causal_attention
    monkeypatch.setattr(kernels, "causal_attention", lambda *a: calls.append(a[3]) or real(*a))
    for lengths in ([300, 20], [30, 20], [250, 250], [50, 50], [200, 3000]):
        q, k, v = parts_of(random(sum(lengths), 1, 3, 2))
        with_gradient = PackedAttention(lengths)(0, q, k, v)
        with torch.no_grad():
            torch.testing.assert_close(with_gradient, PackedAttention(lengths)(0, q, k, v))
    assert calls == [[300, 20], [30, 20], [250, 250]]


def test_subclasses_and_the_compiler_get_the_plain_versions():
    class Marked(Tensor):
        pass

    gate_up = random(5, 12).as_subclass(Marked)
    assert "SwiGLU" not in type(kernels.swiglu(gate_up, 3).grad_fn).__name__
    compiled = torch.compile(kernels.swiglu, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(random(5, 12), 3), kernels.plain_swiglu(random(5, 12), 3))
