"""A layer in C against the layer in PyTorch and against float64."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from puyulm.engine.cpu import block as kernels
from puyulm.engine.cpu import native
from puyulm.engine.cpu.block import CpuBlock, CpuRMSNorm
from puyulm.engine.cpu.pack import pack_for_inference
from puyulm.model.attention import PackedAttention
from puyulm.model.checkpoint import load_model
from puyulm.model.config import RopeConfig
from puyulm.model.decoder import Decoder, RMSNorm
from puyulm.model.kernels import plain_rotate_qkv, plain_swiglu
from puyulm.model.rope import RopeTables, rope_tables
from tests.conftest import tiny_config, tiny_decoder
from tests.engine.kernel_builds import BUILDS, needs_compiler, use_build

pytestmark = needs_compiler

SHAPES = {
    "grouped queries": {},
    "one query a group": {"num_kv_heads": 4},
    "one group": {"num_kv_heads": 1},
    "biases": {"num_kv_heads": 4, "qkv_bias": True, "out_bias": True, "mlp_bias": True},
    "wide heads": {"head_dim": 48},
    "odd sizes": {"head_dim": 10, "hidden_size": 52, "intermediate_size": 42, "vocab_size": 101},
    "tied": {"tie_embeddings": True},
}


@pytest.fixture
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def packed_block(build: str, monkeypatch: pytest.MonkeyPatch, **changes: object) -> CpuBlock:
    use_build(monkeypatch, build)
    layer = pack_for_inference(tiny_decoder(**changes)).layers[0]
    assert isinstance(layer, CpuBlock)
    return layer


def tables(rows: int, head_dim: int) -> RopeTables:
    positions = torch.arange(rows)
    return rope_tables(RopeConfig(theta=1e4), head_dim, 64, positions, positions + 1, torch.float32)


def run(decoder: Decoder, tokens: Tensor, lengths: list[int]) -> Tensor:
    attention = PackedAttention(lengths)
    with torch.inference_mode():
        return decoder.logits(decoder(tokens, attention.positions, attention))


@pytest.mark.parametrize("build", BUILDS)
def test_the_exponential_is_within_a_unit_in_the_last_place(build: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use_build(monkeypatch, build)

    def exponential(x: Tensor) -> Tensor:
        found = torch.empty_like(x)
        kernels._library().block_exponential(x.data_ptr(), found.data_ptr(), x.numel())
        return found

    x = torch.cat((torch.linspace(-87.3, 88.3, 400_003), torch.linspace(-2, 2, 100_001)))
    exact = x.double().exp()
    unit = torch.nextafter(exact.float(), torch.tensor(torch.inf)).double() - exact.float().double()
    assert ((exponential(x).double() - exact).abs() / unit).max() < 1.0
    assert exponential(torch.tensor([torch.nan])).isnan()
    beyond = exponential(torch.tensor([100.0, torch.inf, -100.0, -torch.inf]))
    assert (beyond[:2] > 2e38).all() and beyond.isfinite().all() and (beyond[2:] < 1.3e-38).all()


@pytest.mark.parametrize("build", BUILDS)
def test_swiglu_keeps_seven_digits_at_every_place(build: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A block of 42 ends in an incomplete vector, which must give the bits of a complete one."""
    layer = packed_block(build, monkeypatch, intermediate_size=84)
    assert layer.mlp.block == 42
    gate_up = random(30, 168) * 8
    gate_up[0, :6] = torch.tensor([-100.0, -88.5, 100.0, 0.0, -1e-30, 1e30])
    found, exact = layer.swiglu(gate_up), plain_swiglu(gate_up.double(), 42)
    assert ((found - exact).abs() <= 2.5 * 2**-23 * exact.abs() + 1e-35).all()
    same = layer.swiglu(random(1, 1).expand(1, 168) * 1.7)
    assert (same == same[0, 0]).all()
    broken = torch.tensor([torch.nan, torch.inf, -torch.inf]).repeat(56)[None]
    assert torch.equal(layer.swiglu(broken)[0, :2].isnan(), torch.tensor([True, False]))


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("size", [5, 64, 100, 2048])
def test_the_norm_keeps_seven_digits(size: int, build: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use_build(monkeypatch, build)
    norm = RMSNorm(size, 1e-5)
    with torch.no_grad():
        norm.weight.copy_(random(size, seed=1))
    x = random(20, size) * torch.logspace(-6, 6, 20)[:, None]
    wide = x.double()
    exact = wide / (wide.square().mean(1, keepdim=True) + 1e-5).sqrt() * norm.weight.double()
    torch.testing.assert_close(CpuRMSNorm(norm)(x).double(), exact, rtol=6e-7, atol=0)
    assert CpuRMSNorm(norm)(x[:0]).shape == (0, size)
    with pytest.raises(ValueError, match="norm of"):
        CpuRMSNorm(norm)(random(2, size + 1))


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("changes", [{}, {"num_kv_heads": 1, "head_dim": 48}, {"head_dim": 10}])
def test_rotation_is_that_of_the_reference(changes: dict, build: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = packed_block(build, monkeypatch, **changes)
    size, queries = layer.attention.head_dim, layer.attention.q_per_kv
    qkv, rope = random(9, layer.attention.qkv.out_features), tables(9, size)
    found = layer.rotate_qkv(qkv, rope)
    exact = plain_rotate_qkv(
        qkv.double().unflatten(1, (-1, queries + 2, size)), RopeTables(rope.cos.double(), rope.sin.double())
    )
    for ours, theirs in zip(found, exact, strict=True):
        assert ours.is_contiguous()
        torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=1e-6)
    assert torch.equal(found[2], exact[2].float())
    with pytest.raises(ValueError, match="tables of"):
        layer.rotate_qkv(qkv, tables(8, size))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_block_computes_what_the_plain_one_does(shape: str) -> None:
    plain, packed = tiny_decoder(**SHAPES[shape]), pack_for_inference(tiny_decoder(**SHAPES[shape]))
    tokens = torch.randint(0, 100, (12,), generator=torch.Generator().manual_seed(3))
    assert all(type(layer) is CpuBlock for layer in packed.layers)
    exact = run(tiny_decoder(**SHAPES[shape]).double(), tokens, [7, 5])
    error = (run(packed, tokens, [7, 5]) - exact).abs().max()
    assert error < 1e-5
    assert error < 3 * (run(plain, tokens, [7, 5]) - exact).abs().max()


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("shape", ["grouped queries", "odd sizes", "biases"])
def test_a_token_is_the_same_among_any_others(
    shape: str, build: str, monkeypatch: pytest.MonkeyPatch, threads: None
) -> None:
    layer = packed_block(build, monkeypatch, **SHAPES[shape])
    size, hidden = layer.attention.head_dim, layer.attention.out.out_features
    x, rope, torch_threads = random(300, hidden), tables(300, size), (1, 2)
    torch.set_num_threads(1)
    expected = layer.before(x, rope)
    mixed = random(*expected[0].shape, seed=1)
    behind = layer.behind(x.clone(), mixed)
    for count in (1, 2, 3, 7, 16, 64, 300):
        for number in torch_threads:
            torch.set_num_threads(number)
            found = layer.before(x[-count:], RopeTables(rope.cos[-count:], rope.sin[-count:]))
            assert all(torch.equal(ours, theirs[-count:]) for ours, theirs in zip(found, expected, strict=True))
            assert torch.equal(layer.behind(x[-count:].clone(), mixed[-count:]), behind[-count:])


def test_every_processor_gives_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, found = torch.arange(40), []
    for build in BUILDS:
        with monkeypatch.context() as patch:
            use_build(patch, build)
            found.append(run(pack_for_inference(tiny_decoder()), tokens, [40]))
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


@pytest.mark.parametrize("shape", SHAPES)
def test_a_bfloat16_checkpoint_gives_the_bits_of_a_float32_one(shape: str) -> None:
    half = tiny_decoder(**SHAPES[shape]).bfloat16()
    wide = tiny_decoder(**SHAPES[shape]).bfloat16().float()
    tokens = torch.arange(20)
    found = run(pack_for_inference(half), tokens, [20])
    assert half.embed.weight.dtype == torch.float32 and found.dtype == torch.float32
    assert torch.equal(found, run(pack_for_inference(wide), tokens, [20]))


@pytest.mark.parametrize("name", ["internlm-tiny", "internlm2-tiny", "internlm3-tiny"])
def test_published_code_agrees(name: str, shared_dir: Path) -> None:
    folder = shared_dir / "golden" / name
    decoder = pack_for_inference(load_model(folder, torch.float32))
    recorded = load_file(folder / "expected.safetensors")
    for key in [key for key in recorded if key.startswith("input_ids.")]:
        ids, expected = recorded[key], recorded[key.replace("input_ids", "logits")]
        found = run(decoder, ids.flatten(), [ids.shape[1]] * len(ids)).view_as(expected)
        torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)


def test_log_probabilities_are_those_of_the_trainer() -> None:
    """To two or three roundings of a result between 4 and 8."""
    tokens = torch.randint(0, 128, (60,), generator=torch.Generator().manual_seed(5))
    plain = Decoder(tiny_config(hidden_size=512, intermediate_size=1024, num_layers=4))
    plain.init_weights()
    theirs = F.log_softmax(run(plain, tokens, [60]), -1)
    ours = F.log_softmax(run(pack_for_inference(plain), tokens, [60]), -1)
    chosen = tokens.roll(-1)[:-1, None]  # what a trainer compares
    assert (ours[:-1] - theirs[:-1]).gather(1, chosen).abs().max() < 2e-6


def test_long_chunks_take_few_activations() -> None:
    """What stays after a layer is its output alone, and the widest thing it makes is gate and up."""
    decoder = pack_for_inference(tiny_decoder(hidden_size=64, intermediate_size=512))
    rows, made = 1024, []
    layer = decoder.layers[0]
    x, rope = random(rows, 64), tables(rows, 16)
    with torch.profiler.profile(profile_memory=True) as profile:
        q, _k, _v = layer.before(x, rope)
        layer.behind(x, q)
    live = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()
            peak = max(peak, live)
            made.append(event.nbytes())
    assert made and peak <= 4 * rows * (2 * 512) * 2


def test_no_compiler_no_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "load", lambda name: None)
    decoder = tiny_decoder()
    with pytest.raises(RuntimeError, match="no C compiler"):
        CpuBlock(decoder.layers[0])
