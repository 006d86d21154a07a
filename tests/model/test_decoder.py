"""The decoder against outputs of the published code, and the exactness of packing."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from puyulm.model.attention import PackedAttention
from puyulm.model.checkpoint import load_model
from puyulm.model.config import ModelConfig, RopeConfig
from puyulm.model.decoder import Decoder, RMSNorm
from puyulm.model.layouts import layout_of, published_tensors
from puyulm.model.rope import RopeTables, dynamic_ntk_theta, rope_tables, rotate
from tests.conftest import tiny_config, tiny_decoder

# A tiny model filled by a formula over its published tensor names, run by the published code: last-position logits
# [0:5], argmax, mean and standard deviation of all logits, first-position logits [0:3].
V1_BIAS, V1_PLAIN, V2, V3 = "v1 bias", "v1", "v2", "v3"
NONE, LINEAR2 = ("none", 1.0), ("linear", 2.0)
DYNAMIC1, DYNAMIC2, DYNAMIC6 = ("dynamic", 1.0), ("dynamic", 2.0), ("dynamic", 6.0)
FORMULA_CASES = [
    (V1_BIAS, NONE, 9, (-1.08708, -1.07378, -0.85183, -1.12574, 0.18383), 42, 0.053185, 1.073795),
    (V1_BIAS, DYNAMIC1, 9, (-1.08708, -1.07378, -0.85183, -1.12574, 0.18383), 42, 0.053185, 1.073795),
    (V1_BIAS, DYNAMIC1, 50, (-1.37549, 0.38994, 1.84139, -0.70003, -0.85705), 14, 0.061221, 1.059511),
    (V1_PLAIN, NONE, 9, (-0.75257, 0.06845, -1.09201, -0.22549, 0.21647), 59, -0.023891, 0.973559),
    (V2, NONE, 9, (-0.31486, 2.42857, -1.72918, -0.17898, 0.13897), 27, 0.028942, 1.076754),
    (V2, DYNAMIC2, 9, (-0.31486, 2.42857, -1.72918, -0.17898, 0.13897), 27, 0.028942, 1.076754),
    (V2, NONE, 50, (-1.08174, 0.66292, -1.98572, 0.68512, 0.36654), 46, 0.027711, 1.052973),
    (V2, DYNAMIC2, 50, (-1.07423, 0.63912, -2.02048, 0.67955, 0.38465), 11, 0.028387, 1.053320),
    (V2, LINEAR2, 9, (0.02161, 2.46313, -1.61841, 0.17659, -0.01746), 27, 0.032687, 1.072742),
    (V2, LINEAR2, 50, (-1.45866, 1.46977, -1.79364, 0.73924, 0.51563), 16, 0.034681, 1.061526),
    (V3, NONE, 9, (-0.62855, 0.33576, -1.05179, 1.04903, -1.61242), 14, -0.008425, 1.091944),
    (V3, DYNAMIC6, 9, (-0.62855, 0.33576, -1.05179, 1.04903, -1.61242), 14, -0.008425, 1.091944),
    (V3, NONE, 50, (-0.65095, -1.00968, -1.66468, -0.28508, 0.45903), 48, 0.012215, 1.079104),
    (V3, DYNAMIC6, 50, (-0.68357, -0.99086, -1.63533, -0.28653, 0.43596), 48, 0.012689, 1.078936),
]
FIRST_LOGITS = {
    V1_BIAS: (-1.40179, 0.80125, 2.17667),
    V1_PLAIN: (0.30393, -1.58008, -0.01063),
    V2: (0.66672, 1.85816, -1.37002),
    V3: (-0.59503, -0.02262, -0.37848),
}
PRINTED = 1.1e-5  # the references are printed to five decimals


def formula_decoder(generation: str, scaling: tuple[str, float], head: str = "lm") -> Decoder:
    family = {V1_BIAS: "internlm", V1_PLAIN: "internlm", V2: "internlm2", V3: "internlm3"}[generation]
    theta = {"internlm": 1e4, "internlm2": 1e6, "internlm3": 5e7}[family]
    bias = generation == V1_BIAS
    config = ModelConfig(
        family=family, vocab_size=61, hidden_size=48, intermediate_size=80, num_layers=2, num_heads=6,
        num_kv_heads=6 if family == "internlm" else 2, head_dim=8, max_position_embeddings=32,
        rms_norm_eps=1e-6 if family == "internlm" else 1e-5, qkv_bias=bias, out_bias=bias, head=head,
        rope=RopeConfig(theta=theta, scaling=scaling[0], factor=scaling[1]), dtype="float32",
    )  # fmt: skip
    decoder = Decoder(config)
    slots = published_tensors(config, layout_of(config))
    parameters = dict(decoder.named_parameters())
    with torch.no_grad():
        for rank, name in enumerate(sorted(slots)):
            slots[name].store(parameters[slots[name].parameter], formula_fill(name, slots[name].shape, rank))
    return decoder.eval()


def formula_fill(name: str, shape: tuple[int, ...], rank: int) -> Tensor:
    k = torch.arange(math.prod(shape), dtype=torch.float64)
    w = torch.sin(0.7 * k + 1.3 * rank + 0.11 * (k.square() % 97)).view(shape)
    if name.endswith("bias"):
        w = 0.2 * w
    elif len(shape) == 1:
        w = 1 + 0.1 * w
    elif "embed" not in name:
        w = 1.5 * w / math.sqrt(shape[1])
    return w.float()


def formula_ids(length: int) -> Tensor:
    t = torch.arange(length)
    return 3 + (7 * t * t + 5 * t + 1) % 58


def run(decoder: Decoder, ids: Tensor, lengths: list[int] | None = None) -> Tensor:
    attention = PackedAttention(lengths or [len(ids)])
    return decoder(ids, attention.positions, attention)


@pytest.mark.parametrize(("generation", "scaling", "length", "last", "argmax", "mean", "std"), FORMULA_CASES)
def test_formula_filled_models_give_the_published_logits(generation, scaling, length, last, argmax, mean, std):
    decoder = formula_decoder(generation, scaling)
    with torch.no_grad():
        logits = decoder.logits(run(decoder, formula_ids(length)))
    torch.testing.assert_close(logits[-1, :5], torch.tensor(last), atol=PRINTED, rtol=0)
    assert logits[-1].argmax() == argmax
    assert logits.mean().item() == pytest.approx(mean, abs=PRINTED)
    assert logits.std().item() == pytest.approx(std, abs=PRINTED)
    if scaling[0] == "none":
        torch.testing.assert_close(logits[0, :3], torch.tensor(FIRST_LOGITS[generation]), atol=PRINTED, rtol=0)


def test_formula_filled_reward_model_gives_the_published_scores():
    decoder = formula_decoder(V2, NONE, head="reward")
    attention = PackedAttention([9, 6])  # the second row of the reference was cut to six tokens by its mask
    ids = torch.cat([formula_ids(9), formula_ids(6)])
    with torch.no_grad():
        scores = decoder.scores(decoder(ids, attention.positions, attention), attention.cu_seqlens)
    torch.testing.assert_close(scores, torch.tensor([-0.31486, 2.69954]), atol=PRINTED, rtol=0)


@pytest.mark.parametrize("name", ["internlm-tiny", "internlm2-tiny", "internlm3-tiny", "internlm2-reward-tiny"])
def test_golden_checkpoints_give_the_published_outputs(shared_dir: Path, name: str):
    folder = shared_dir / "golden" / name
    decoder, expected = load_model(folder), load_file(folder / "expected.safetensors")
    for key in (key for key in expected if key.startswith("input_ids.")):
        ids = expected[key]
        attention = PackedAttention([ids.shape[1]] * len(ids))
        with torch.no_grad():
            hidden = decoder(ids.flatten(), attention.positions, attention)
            if decoder.config.head == "lm":
                ours, theirs = decoder.logits(hidden), expected[key.replace("input_ids", "logits")].flatten(0, 1)
            else:
                ours = decoder.scores(hidden, attention.cu_seqlens)
                theirs = expected[key.replace("input_ids", "reward")].squeeze(1)
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("scaling", [NONE, LINEAR2, DYNAMIC2])
@pytest.mark.parametrize("lengths", [[1, 1, 1], [7, 1, 30], [100, 3, 65]])
def test_packed_documents_equal_separate_ones(lengths: list[int], scaling: tuple[str, float]):
    """Values and gradients; 100 and 65 tokens lie beyond the 64 positions, so each has its own dynamic base."""
    decoder = tiny_decoder(rope=RopeConfig(theta=1e4, scaling=scaling[0], factor=scaling[1]))
    generator = torch.Generator().manual_seed(1)
    documents = [torch.randint(128, (length,), generator=generator) for length in lengths]
    weights = [torch.randn(length, 64, generator=generator) for length in lengths]

    packed = run(decoder, torch.cat(documents), lengths)
    (packed * torch.cat(weights)).sum().backward()
    packed_grads = {name: p.grad.clone() for name, p in decoder.named_parameters() if p.grad is not None}
    decoder.zero_grad()
    separate = [run(decoder, document) for document in documents]
    sum((hidden * weight).sum() for hidden, weight in zip(separate, weights, strict=True)).backward()

    torch.testing.assert_close(packed, torch.cat(separate), atol=1e-5, rtol=1e-5)
    for name, parameter in decoder.named_parameters():
        if parameter.grad is not None:
            scale = parameter.grad.abs().max()
            torch.testing.assert_close(packed_grads[name] / scale, parameter.grad / scale, atol=1e-5, rtol=0)


def test_a_document_sees_neither_its_neighbours_nor_its_future(decoder: Decoder):
    ids = torch.arange(20)
    with torch.no_grad():
        before = run(decoder, ids, [8, 12])
        ids[3] = 99
        after = run(decoder, ids, [8, 12])
    assert torch.equal(before[:3], after[:3])
    assert torch.equal(before[8:], after[8:])
    assert not torch.allclose(before[3:8], after[3:8])


def test_attention_against_a_plain_softmax_in_double_precision():
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(11, 2, n, 8, generator=generator) for n in (3, 1, 1))
    mixed = PackedAttention([5, 6])(0, q, k[:, :, 0], v[:, :, 0])
    expected = torch.empty_like(q, dtype=torch.float64)
    for start, end in ((0, 5), (5, 11)):
        for head in range(6):
            group = head // 3
            scores = q[start:end, group, head % 3].double() @ k[start:end, group, 0].double().T / math.sqrt(8)
            causal = torch.ones(end - start, end - start).tril().bool()
            expected[start:end, group, head % 3] = (
                scores.masked_fill(~causal, -math.inf).softmax(-1) @ v[start:end, group, 0].double()
            )
    torch.testing.assert_close(mixed.double(), expected, atol=1e-6, rtol=0)


def test_packed_attention_refuses_empty_documents():
    with pytest.raises(ValueError, match="positive"):
        PackedAttention([3, 0])


@pytest.mark.parametrize(
    ("theta", "factor", "length", "max_positions", "expected"),
    [
        (1e6, 2.0, 65_536, 32_768, 3_052_773.675),
        (1e6, 2.0, 200_000, 32_768, 11_645_259.31),
        (5e7, 2.5, 1_048_576, 262_144, 439_684_961.16),
        (5e7, 6.0, 131_072, 32_768, 995_454_195.85),
        (1e4, 1.0, 16_384, 4096, 40_889.942),
        (1e4, 1.0, 4096, 2048, 20_221.262),
        (1e6, 2.0, 32_768, 32_768, 1e6),
    ],
)
def test_dynamic_ntk_base(theta, factor, length, max_positions, expected):
    assert dynamic_ntk_theta(theta, factor, length, max_positions, 128) == pytest.approx(expected, rel=5e-8)
    rope = RopeConfig(theta=theta, scaling="dynamic", factor=factor)
    position, seq_len = torch.tensor([length - 1]), torch.tensor([length])
    tables = rope_tables(rope, 128, max_positions, position, seq_len, torch.float32)
    plain = rope_tables(RopeConfig(theta=expected), 128, max_positions, position, seq_len, torch.float32)
    torch.testing.assert_close(tables.cos, plain.cos, atol=0.1, rtol=0)  # an angle of 1e6 radians has few digits left


def test_rotation_equals_complex_multiplication():
    x = torch.randn(5, 2, 3, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    angles = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    turned = torch.complex(x[..., :4], x[..., 4:]) * torch.polar(torch.ones_like(angles), angles)[:, None, None]
    expected = torch.cat([turned.real, turned.imag], dim=-1)
    cos, sin = angles.cos(), angles.sin()
    tables = RopeTables(torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1))
    torch.testing.assert_close(rotate(x, tables), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_norm_has_the_rounding_of_both_published_forms(dtype: torch.dtype):
    generator = torch.Generator().manual_seed(0)
    x = (3 * torch.randn(7, 32, generator=generator)).to(dtype)
    norm = RMSNorm(32, 1e-6).to(dtype)
    with torch.no_grad():
        norm.weight.normal_(1.0, 0.3, generator=generator)
    scale = torch.rsqrt(x.float().square().mean(-1, keepdim=True) + 1e-6)
    later = norm.weight * (x.float() * scale).to(dtype)  # InternLM2 and 3: cast back, then weight
    first = norm.weight * (x * scale).to(dtype)  # InternLM: the product itself promotes to float32
    assert torch.equal(first, later)
    torch.testing.assert_close(norm(x), later, atol=0 if dtype != torch.float32 else 1e-6, rtol=0)


def test_gradients_of_a_whole_model_in_double_precision():
    decoder = tiny_decoder(hidden_size=16, intermediate_size=8, head_dim=4, vocab_size=11, num_layers=1).double()
    ids = torch.tensor([1, 5, 2, 9, 3])
    inputs = decoder.embed.weight.detach()[ids].requires_grad_()

    def forward(embedded: Tensor) -> Tensor:
        attention = PackedAttention([2, 3])
        tables = rope_tables(decoder.config.rope, 4, 64, attention.positions, attention.seq_lens, torch.float64)
        return decoder.layers[0](embedded, tables, attention, 0)

    assert torch.autograd.gradcheck(forward, (inputs,))


def test_tied_embeddings_share_one_parameter():
    decoder = Decoder(tiny_config(tie_embeddings=True))
    assert decoder.head.weight is decoder.embed.weight
    assert "head.weight" not in dict(decoder.named_parameters())


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_variable_length_kernel_equals_separate_documents_on_cuda():
    decoder = tiny_decoder().to("cuda", torch.bfloat16)
    ids = torch.randint(128, (40,), device="cuda")
    packed = PackedAttention([25, 15], "cuda")
    hidden = decoder(ids, packed.positions, packed)
    for part in (slice(0, 25), slice(25, 40)):
        alone = PackedAttention([part.stop - part.start], "cuda")
        torch.testing.assert_close(hidden[part], decoder(ids[part], alone.positions, alone), atol=0.05, rtol=0.05)
