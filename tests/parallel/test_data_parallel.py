"""Data parallelism over 2 and 4 ranks against one process: curves, gradients, validation, and what is sent."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from puyulm.model.config import ModelConfig
from puyulm.parallel.build import build_model
from puyulm.parallel.fsdp import reshard
from puyulm.parallel.plan import ParallelPlan
from puyulm.parallel.weights import init_weights
from puyulm.parallel.world import World
from puyulm.train.step import to_device
from puyulm.train.validation import TotalLoss, total_loss
from tests.conftest import tiny_config
from tests.parallel.ranks import (
    Curve,
    assert_near,
    assert_same_curve,
    filled_model,
    random_batch,
    rank_batches,
    run_ranks,
    train_curve,
    whole,
)

CONFIG = tiny_config()
UNEVEN = tiny_config(vocab_size=131, hidden_size=66, intermediate_size=90)
"""No dimension but the heads' is divisible by 4, and the vocabulary not by 2."""

TIED = tiny_config(tie_embeddings=True)
BIASED = tiny_config(qkv_bias=True, out_bias=True, mlp_bias=True)

Case = tuple[ModelConfig, ParallelPlan, int, int]
"""Model, plan, steps, micro-batches."""

TWO: dict[str, Case] = {
    "replicated": (CONFIG, ParallelPlan(replicate=2, shard=1), 10, 8),
    "sharded": (CONFIG, ParallelPlan(shard=2), 10, 8),
    "gathered once a step": (CONFIG, ParallelPlan(reshard=False), 10, 8),
    "one micro-batch a rank": (CONFIG, ParallelPlan(replicate=2), 2, 2),
    "tied": (TIED, ParallelPlan(), 2, 4),
    "biases": (BIASED, ParallelPlan(), 2, 4),
}
FOUR: dict[str, Case] = {
    "sharded": (CONFIG, ParallelPlan(), 10, 8),
    "shards are replicated": (CONFIG, ParallelPlan(replicate=2), 10, 8),
    "uneven": (UNEVEN, ParallelPlan(), 3, 8),
    "ranks without a row of some matrices": (tiny_config(vocab_size=5), ParallelPlan(), 2, 4),
    "tied, shards are replicated": (TIED, ParallelPlan(replicate=2), 2, 8),
}


def curves(cases: dict[str, Case]) -> list[Curve]:
    return [train_curve(config, plan, steps, count) for config, plan, steps, count in cases.values()]


def validate(batches: int, plan: ParallelPlan) -> TotalLoss:
    model = filled_model(CONFIG, plan)
    return total_loss(model, (random_batch(CONFIG.vocab_size, number) for number in range(batches)))


class Collectives(TorchDispatchMode):
    """Counts collectives by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        namespace, name = func._schema.name.split("::")
        self.counts.update([name.strip("_")] if namespace == "c10d" else [])
        return func(*args, **(kwargs or {}))


def gathered(model: Any) -> list[str]:
    return [name for name, parameter in model.named_parameters() if not isinstance(parameter, DTensor)]


def forward_without_backward() -> tuple[list[str], list[str]]:
    """Parameters that a forward leaves gathered, and those that are so after `reshard`."""
    model = filled_model(CONFIG, ParallelPlan())
    with torch.no_grad():
        model.stages[0](None, to_device(model, rank_batches(model, 0, 2))[0])
    before = gathered(model)
    reshard(model.stages)
    return before, gathered(model)


def messages(plan: ParallelPlan, micro_batches: int) -> dict[str, int]:
    """How many collectives of each kind a step's forwards and backwards take."""
    model = filled_model(CONFIG, plan)
    for _ in range(2):  # the first one also makes what later ones use
        with Collectives() as log:
            model.forward_backward(to_device(model, rank_batches(model, 0, micro_batches)), 100.0)
    assert not gathered(model)
    return dict(log.counts)


def half_precision() -> tuple[float, dict[str, np.ndarray], set[torch.dtype]]:
    world = World.join(ParallelPlan(), torch.device("cpu"))
    model = build_model(CONFIG.evolve(initializer_range=0.2), world, dtype=torch.bfloat16)
    init_weights(model, seed=1)
    loss, _ = model.forward_backward(to_device(model, rank_batches(model, 0, 2)), 100.0)
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    dtypes = {tensor.dtype for tensor in (*model.parameters(), *gradients.values()) if tensor is not None}
    return (
        float(world.sum(loss)),
        {name: whole(grad).numpy() for name, grad in gradients.items() if grad is not None},
        dtypes,
    )


def on_two_ranks() -> dict[str, Any]:
    return {
        "curves": curves(TWO),
        "validation": [validate(5, ParallelPlan()), validate(1, ParallelPlan(replicate=2))],
        "gathered": forward_without_backward(),
        "freed": messages(ParallelPlan(), 8),
        "kept": messages(ParallelPlan(reshard=False), 8),
        "half": half_precision(),
    }


def on_four_ranks() -> dict[str, Any]:
    return {
        "curves": curves(FOUR),
        "validation": [validate(6, ParallelPlan()), validate(3, ParallelPlan(replicate=2))],
        "replicated": messages(ParallelPlan(replicate=2), 8),
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
    config, _, steps, count = cases[name]
    assert_same_curve([rank["curves"][at] for rank in ranks], train_curve(config, ParallelPlan(), steps, count))


def test_validation_counts_every_batch_once(two: list[dict[str, Any]], four: list[dict[str, Any]]) -> None:
    for ranks, numbers in ((two, (5, 1)), (four, (6, 3))):
        for at, number in enumerate(numbers):
            expected = validate(number, ParallelPlan())
            for rank in ranks:
                found = rank["validation"][at]
                assert (found.targets, found.bytes) == (expected.targets, expected.bytes)
                assert found.nats == pytest.approx(expected.nats, rel=1e-6)


def test_reshard_frees_what_a_forward_has_gathered(two: list[dict[str, Any]]) -> None:
    for rank in two:
        before, after = rank["gathered"]
        assert "norm.weight" in before and "layers.1.mlp.down.weight" in before
        assert "layers.0.mlp.down.weight" not in before
        assert after == []


def test_each_part_is_gathered_no_more_often_than_needed(two: list[dict[str, Any]]) -> None:
    # Embedding, two layers, head and final norm. Of these only the first layer is needed once more in the backward.
    for rank in two:  # 4 micro-batches a rank
        assert rank["freed"] == {"allgather_base": 4 * (5 + 1), "reduce_scatter_base": 4 * 5}
        assert rank["kept"] == {"allgather_base": 5, "reduce_scatter_base": 4 * 5}


def test_gradients_are_summed_over_replicas_once_a_step(four: list[dict[str, Any]]) -> None:
    for rank in four:  # 2 micro-batches a rank
        assert rank["replicated"] == {"allgather_base": 2 * 6, "reduce_scatter_base": 2 * 5, "allreduce": 5}


def test_half_precision_keeps_parameters_and_gradients_in_float32(two: list[dict[str, Any]]) -> None:
    model = filled_model(CONFIG, ParallelPlan())
    loss, _ = model.forward_backward(to_device(model, rank_batches(model, 0, 2)), 100.0)
    for found, gradients, dtypes in (rank["half"] for rank in two):
        assert dtypes == {torch.float32}
        assert found == pytest.approx(float(loss), rel=1e-2)
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None
            assert_near(gradients[name], parameter.grad.numpy(), 0.1, name)


def test_a_mean_over_ranks_would_be_noticed() -> None:
    expected = train_curve(CONFIG, ParallelPlan(), 1, 2)
    halved = {name: values / 2 for name, values in expected.gradients.items()}
    with pytest.raises(AssertionError, match="gradient of embed"):
        assert_same_curve([Curve(halved, expected.losses, expected.norms, expected.weights)], expected)
