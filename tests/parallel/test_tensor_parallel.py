"""Tensor parallelism over 2 and 4 ranks against one process: curves, gradients, validation, and its parts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import parallelize_module

from puyulm.model.attention import PackedAttention
from puyulm.model.config import ModelConfig
from puyulm.model.decoder import Decoder
from puyulm.model.loss import IGNORE, head_loss
from puyulm.model.rope import rope_tables
from puyulm.parallel.build import apply_plan
from puyulm.parallel.plan import ParallelPlan
from puyulm.parallel.stage import Stage, Whole
from puyulm.parallel.tensor import TensorSplit, layer_plan
from puyulm.parallel.world import World
from puyulm.train.step import to_device
from puyulm.train.validation import TotalLoss, total_loss
from tests.conftest import tiny_config, tiny_decoder
from tests.parallel.ranks import (
    Curve,
    assert_near,
    assert_same_curve,
    filled_model,
    random_batch,
    run_ranks,
    train_curve,
    whole,
)

CONFIG = tiny_config()
BIASED = tiny_config(num_kv_heads=4, qkv_bias=True, out_bias=True, mlp_bias=True)
TIED = tiny_config(tie_embeddings=True)
UNEVEN = tiny_config(vocab_size=134, hidden_size=66, intermediate_size=90)
"""A tensor rank's rows of the embedding, the head and the MLP are not divisible by 2."""

Case = tuple[ModelConfig, ParallelPlan, int]
"""Model, plan, steps."""

TWO: dict[str, Case] = {
    "tensor": (CONFIG, ParallelPlan(tensor=2), 10),
    "biases": (BIASED, ParallelPlan(tensor=2), 2),
    "tied": (TIED, ParallelPlan(tensor=2), 2),
}
FOUR: dict[str, Case] = {
    "tensor": (BIASED, ParallelPlan(tensor=4), 2),
    "sharded": (CONFIG, ParallelPlan(tensor=2), 10),
    "replicated": (CONFIG, ParallelPlan(tensor=2, replicate=2), 10),
    "sharded, uneven": (UNEVEN, ParallelPlan(tensor=2), 2),
    "sharded, tied, gathered once a step": (TIED, ParallelPlan(tensor=2, reshard=False), 2),
}


def curves(cases: dict[str, Case]) -> list[Curve]:
    return [train_curve(config, plan, steps) for config, plan, steps in cases.values()]


def validate(batches: int, plan: ParallelPlan) -> TotalLoss:
    model = filled_model(CONFIG, plan)
    return total_loss(model, (random_batch(CONFIG.vocab_size, number) for number in range(batches)))


def placements() -> dict[str, str]:
    """Where the parameters of a model are, over "fsdp" and "tensor"."""
    model = filled_model(tiny_config(qkv_bias=True, out_bias=True), ParallelPlan(tensor=2))
    return {name: str(parameter.placements) for name, parameter in model.named_parameters()}


def uneven_whole() -> list[tuple[str, bool]]:
    """Whether DTensor puts uneven shards of shards together as they were cut."""
    model = filled_model(UNEVEN, ParallelPlan(tensor=2))
    return [(name, torch.equal(whole(p), p.detach().full_tensor())) for name, p in model.named_parameters()]


def two_stages() -> tuple[float, dict[str, np.ndarray]]:
    """A decoder cut in two, both parts on these ranks; the loss of one micro-batch, and its gradients."""
    world = World.join(ParallelPlan(tensor=2), torch.device("cpu"))
    reference = filled_model(CONFIG, ParallelPlan(tensor=2))
    values = dict(reference.named_parameters())
    (batch,) = to_device(reference, [random_batch(CONFIG.vocab_size, 0)])
    stages = []
    for start in (0, 1):
        with torch.device("meta"):
            stage = Stage(Decoder(CONFIG), start, start + 1)
        apply_plan(stage, world)
        stage.to_empty(device="cpu")
        with torch.no_grad():
            for name, parameter in stage.decoder.named_parameters():
                parameter.copy_(values[name])
        stages.append(stage)
    hidden = stages[0](None, batch)
    assert hidden.shape == (32, CONFIG.hidden_size)
    between = hidden.detach().requires_grad_()
    loss = stages[1](between, batch)
    loss.backward()
    hidden.backward(between.grad)
    grads = {name: parameter.grad for stage in stages for name, parameter in stage.decoder.named_parameters()}
    return float(loss), {name: whole(grad).numpy() for name, grad in grads.items()}


def head_inputs() -> tuple[Tensor, Tensor, Tensor]:
    """Hidden states, head and targets, in float64."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(size, 8, generator=generator, dtype=torch.float64) for size in (12, 20))
    targets = torch.randint(0, 20, (12,), generator=generator)
    targets[3] = IGNORE
    return hidden, weight, targets


def split_head() -> list[Tensor]:
    """Loss, per-token losses, and the gradients of this rank's hidden states and rows of the head."""
    mesh = World.join(ParallelPlan(tensor=2), torch.device("cpu")).mesh["tensor"]
    hidden, weight, targets = head_inputs()
    mine = hidden.chunk(2)[dist.get_rank()].clone().requires_grad_()
    parameter = torch.nn.Parameter(distribute_tensor(weight, mesh, [Shard(0)]))
    gathered, rows, part = TensorSplit(Whole(), mesh).head(mine, parameter)
    assert rows.shape == (10, 8)
    loss, losses = head_loss(gathered, rows, targets, 11, z_loss=0.1, part=part)
    loss.backward()
    assert parameter.grad.placements == (Shard(0),)
    return [x.detach().numpy() for x in (loss, losses, mine.grad, parameter.grad.to_local())]


def reward_head() -> list[Tensor]:
    """Scores, and the gradients of this rank's hidden states and of the head, which every rank has."""
    mesh = World.join(ParallelPlan(tensor=2), torch.device("cpu")).mesh["tensor"]
    hidden, weight, _ = head_inputs()
    mine = hidden.chunk(2)[dist.get_rank()].clone().requires_grad_()
    parameter = torch.nn.Parameter(distribute_tensor(weight[:1], mesh, [Replicate()]))
    gathered, rows, part = TensorSplit(Whole(), mesh).head(mine, parameter)
    assert part is None
    scores = gathered @ rows.T
    scores.square().sum().backward()
    assert parameter.grad.placements == (Replicate(),)
    return [x.detach().numpy() for x in (scores, mine.grad, parameter.grad.to_local())]


def reward_model() -> tuple[str, np.ndarray]:
    """Where the head of a reward model is, and the final hidden states that it is given.

    It has no loss over a vocabulary, so the micro-batch has no targets.
    """
    model = filled_model(tiny_config(head="reward"), ParallelPlan(tensor=2))
    (stage,) = model.stages
    found = []
    stage.decoder.norm.register_forward_hook(lambda module, args, output: found.append(output))
    (batch,) = to_device(model, [random_batch(CONFIG.vocab_size, 5)])
    with torch.no_grad():
        stage(None, batch)
    return str(stage.decoder.head.weight.placements[-1]), found[0].numpy()


def layer_of_all_tokens(tokens: int, split: bool) -> np.ndarray:
    """What a layer makes of hidden states that every rank has."""
    decoder = tiny_decoder(qkv_bias=True, out_bias=True)
    layer, config = decoder.layers[0], decoder.config
    if split:
        mesh = World.join(ParallelPlan(tensor=2), torch.device("cpu")).mesh["tensor"]
        parallelize_module(layer, mesh, layer_plan(sequence=False))
    attention = PackedAttention([tokens])
    rope = rope_tables(config.rope, config.head_dim, 64, attention.positions, attention.seq_lens, torch.float32)
    x = torch.randn(tokens, config.hidden_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return layer(x, rope, attention, 0).numpy()


def on_two_ranks() -> dict[str, Any]:
    return {
        "curves": curves(TWO),
        "validation": validate(3, ParallelPlan(tensor=2)),
        "placements": placements(),
        "stages": two_stages(),
        "head": split_head(),
        "reward": reward_head(),
        "reward model": reward_model(),
        "layers": [layer_of_all_tokens(tokens, split=True) for tokens in (1, 7)],
    }


def on_four_ranks() -> dict[str, Any]:
    return {
        "curves": curves(FOUR),
        "validation": validate(5, ParallelPlan(tensor=2)),
        "whole": uneven_whole(),
    }


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_ranks(2, on_two_ranks, tmp_path_factory.mktemp("two"))


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_ranks(4, on_four_ranks, tmp_path_factory.mktemp("four"))


@pytest.mark.parametrize("name", TWO)
def test_curves_of_two_ranks_are_those_of_one_process(two: list[dict[str, Any]], name: str) -> None:
    check(two, TWO, name)


@pytest.mark.parametrize("name", FOUR)
def test_curves_of_four_ranks_are_those_of_one_process(four: list[dict[str, Any]], name: str) -> None:
    check(four, FOUR, name)


def check(ranks: list[dict[str, Any]], cases: dict[str, Case], name: str) -> None:
    at = list(cases).index(name)
    config, _, steps = cases[name]
    assert_same_curve([rank["curves"][at] for rank in ranks], train_curve(config, ParallelPlan(), steps))


def test_validation_counts_every_batch_once(two: list[dict[str, Any]], four: list[dict[str, Any]]) -> None:
    for ranks, number in ((two, 3), (four, 5)):
        expected = validate(number, ParallelPlan())
        for rank in ranks:
            assert rank["validation"].targets == expected.targets
            assert rank["validation"].nats == pytest.approx(expected.nats, rel=1e-6)


def test_every_matrix_is_split(two: list[dict[str, Any]]) -> None:
    for rank in two:
        places = rank["placements"]
        rows = "(_StridedShard(dim=0, sf=2), Shard(dim=0))"
        for name in ("embed.weight", "head.weight", "layers.0.attention.qkv.weight", "layers.1.mlp.gate_up.weight"):
            assert places[name] == rows
        assert places["layers.0.attention.qkv.bias"] == rows
        for name in ("layers.0.attention.out.weight", "layers.0.mlp.down.weight"):
            assert places[name] == "(Shard(dim=0), Shard(dim=1))"
        for name in ("norm.weight", "layers.1.mlp_norm.weight", "layers.0.attention.out.bias"):
            assert places[name] == "(Shard(dim=0), Replicate())"


def test_stages_without_embedding_or_head(two: list[dict[str, Any]]) -> None:
    model = filled_model(CONFIG, ParallelPlan())
    loss, _ = model.forward_backward(to_device(model, [random_batch(CONFIG.vocab_size, 0)]), 1.0)
    for rank in two:
        found, gradients = rank["stages"]
        assert found == pytest.approx(float(loss), rel=1e-6)
        assert set(gradients) == {name for name, _ in model.named_parameters()}
        for name, parameter in model.named_parameters():
            assert_near(gradients[name], parameter.grad.numpy(), 1e-5, name)


def test_loss_of_a_split_head_is_that_of_the_whole(two: list[dict[str, Any]]) -> None:
    hidden, weight, targets = head_inputs()
    hidden.requires_grad_(), weight.requires_grad_()
    loss, losses = head_loss(hidden, weight, targets, 11, z_loss=0.1)
    loss.backward()
    for place, rank in enumerate(two):
        expected = (loss, losses, hidden.grad.chunk(2)[place], weight.grad.chunk(2)[place])
        for found, value in zip(rank["head"], expected, strict=True):
            np.testing.assert_allclose(found, value.detach().numpy(), rtol=1e-5, atol=1e-7)


def test_reward_head_stays_whole(two: list[dict[str, Any]]) -> None:
    hidden, weight, _ = head_inputs()
    hidden.requires_grad_(), weight.requires_grad_()
    scores = hidden @ weight[:1].T
    scores.square().sum().backward()
    for place, rank in enumerate(two):
        expected = (scores, hidden.grad.chunk(2)[place], weight.grad[:1])
        for found, value in zip(rank["reward"], expected, strict=True):
            np.testing.assert_allclose(found, value.detach().numpy(), rtol=1e-12, atol=1e-12)


def test_reward_model_sees_the_same_hidden_states(two: list[dict[str, Any]]) -> None:
    model = filled_model(tiny_config(head="reward"), ParallelPlan())
    (batch,) = to_device(model, [random_batch(CONFIG.vocab_size, 5)])
    with torch.no_grad():
        expected = model.decoder(batch.tokens, batch.attention.positions, batch.attention).numpy()
    assert [rank["reward model"][0] for rank in two] == ["R", "R"]
    assert_near(np.concatenate([rank["reward model"][1] for rank in two]), expected, 1e-5, "hidden states")


def test_layer_plan_without_sequence_parallelism(two: list[dict[str, Any]]) -> None:
    for at, tokens in enumerate((1, 7)):
        for rank in two:
            assert_near(rank["layers"][at], layer_of_all_tokens(tokens, split=False), 1e-5, f"{tokens} tokens")


def test_dtensor_agrees_on_uneven_shards_of_shards(four: list[dict[str, Any]]) -> None:
    for rank in four:
        assert all(same for _, same in rank["whole"]), [name for name, same in rank["whole"] if not same]
