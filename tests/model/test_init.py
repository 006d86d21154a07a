"""Fresh weights: a function of seed, name and row alone."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from puyulm.model import init
from puyulm.model.decoder import Decoder
from puyulm.model.init import initial_values
from tests.conftest import tiny_config

CONFIG = tiny_config(num_layers=8)


@settings(max_examples=60, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 70), st.integers(1, 40)), block=st.integers(1, 900), data=st.data(),
    name=st.sampled_from(["layers.0.attention.qkv.weight", "embed.weight", "head.weight"]),
)  # fmt: skip
def test_some_rows_are_those_of_the_whole(shape: tuple[int, int], block: int, data: st.DataObject, name: str):
    start = data.draw(st.integers(0, shape[0]))
    stop = data.draw(st.integers(start, shape[0]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(init, "BLOCK_VALUES", block)
        whole = initial_values(CONFIG, name, shape, 7)
        assert whole.shape == shape
        assert torch.equal(initial_values(CONFIG, name, shape, 7, start, stop), whole[start:stop])


def test_every_name_and_seed_has_values_of_its_own():
    names = ("layers.0.attention.qkv.weight", "layers.1.attention.qkv.weight", "layers.0.mlp.gate_up.weight")
    made = [initial_values(CONFIG, name, (64, 64), seed) for name in names for seed in (0, 1)]
    for i, one in enumerate(made):
        assert all(abs(torch.corrcoef(torch.stack((one.flatten(), other.flatten())))[0, 1]) < 0.1 for other in made[:i])
    blocks = initial_values(CONFIG, names[0], (4, init.BLOCK_VALUES // 2), 0)  # a new seed begins after two rows
    assert abs(torch.corrcoef(blocks)[0, 2]) < 0.01


@pytest.mark.parametrize(
    ("name", "std"),
    [
        ("embed.weight", 1.0),
        ("head.weight", 0.02),
        ("layers.3.attention.qkv.weight", 0.02),
        ("layers.3.mlp.gate_up.weight", 0.02),
        ("layers.3.attention.out.weight", 0.02 / math.sqrt(16)),
        ("layers.3.mlp.down.weight", 0.02 / math.sqrt(16)),
    ],
)
def test_spreads(name: str, std: float):
    values = initial_values(CONFIG, name, (512, 512), 0)
    assert values.dtype == torch.float32
    assert values.std().item() == pytest.approx(std, rel=0.02)
    assert abs(values.mean().item()) < 0.01 * std * 2


def test_a_tied_embedding_is_small_and_a_reward_head_zero():
    tied, reward = tiny_config(tie_embeddings=True), tiny_config(head="reward")
    assert initial_values(tied, "embed.weight", (512, 64), 0).std().item() == pytest.approx(0.02, rel=0.05)
    assert not initial_values(reward, "head.weight", (1, 64), 0).any()


def test_norms_are_one_and_biases_zero():
    decoder = Decoder(tiny_config(qkv_bias=True, out_bias=True, mlp_bias=True))
    decoder.init_weights(0)
    for name, parameter in decoder.named_parameters():
        if parameter.dim() == 1:
            assert torch.equal(parameter.detach(), torch.full_like(parameter, 0.0 if name.endswith("bias") else 1.0))
    assert initial_values(CONFIG, "norm.weight", (10,), 0, 4, 4).shape == (0,)
