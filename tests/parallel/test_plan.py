"""Plans: how sizes are filled in, and what does not fit a model."""

from __future__ import annotations

import re

import pytest

from puyulm.errors import RecipeError
from puyulm.parallel.build import build_model
from puyulm.parallel.plan import ParallelPlan
from puyulm.parallel.world import World
from tests.conftest import tiny_config


def test_shard_takes_the_ranks_that_are_left() -> None:
    plan = ParallelPlan(replicate=2, tensor=4, pipeline=2, context=2).resolved(128)
    assert (plan.shard, plan.data_size, plan.world_size) == (4, 8, 128)
    assert ParallelPlan().resolved(1).shard == 1


@pytest.mark.parametrize(
    ("plan", "ranks"), [({"tensor": 4}, 6), ({"tensor": 8}, 4), ({"shard": 2}, 4), ({"shard": 1}, 2)]
)
def test_sizes_must_multiply_to_the_ranks(plan: dict[str, int], ranks: int) -> None:
    with pytest.raises(RecipeError, match=f"ranks, but there are {ranks}; start as many"):
        ParallelPlan(**plan).resolved(ranks)


def test_all_sizes_below_one_are_told_at_once() -> None:
    with pytest.raises(RecipeError, match="replicate must be at least 1, not 0; tensor must be at least 1, not -2"):
        ParallelPlan(replicate=0, tensor=-2)


def test_interleaving_needs_a_pipeline() -> None:
    with pytest.raises(RecipeError, match="interleaved needs pipeline above 1"):
        ParallelPlan(schedule="interleaved")
    assert ParallelPlan(pipeline=2, schedule="interleaved", stages_per_rank=3).stages == 6
    assert ParallelPlan(pipeline=2).stages == 2


def test_an_unresolved_plan_has_no_size() -> None:
    with pytest.raises(ValueError, match="not resolved"):
        _ = ParallelPlan().data_size


@pytest.mark.parametrize(
    ("plan", "model", "problem"),
    [
        ({"tensor": 4}, {}, "parallel.tensor 4 does not divide the 2 kv groups"),
        ({"tensor": 2}, {"intermediate_size": 95}, "parallel.tensor 2 does not divide"),
        ({"tensor": 2}, {"vocab_size": 129}, "parallel.tensor 2 does not divide the vocabulary of 129"),
        ({"context": 8}, {}, "parallel.context 8 does not divide the 4 query heads"),
        ({"context": 4, "tensor": 2}, {}, "parallel.context 4 does not divide the 2 query heads of a tensor rank"),
        ({"pipeline": 4}, {}, "parallel.pipeline cuts 2 layers into 4 stages"),
        ({"pipeline": 2}, {"tie_embeddings": True}, "ties its head to the embedding"),
    ],
)
def test_what_does_not_fit_a_model(plan: dict[str, int], model: dict[str, object], problem: str) -> None:
    (found,) = ParallelPlan(**plan).problems(tiny_config(**model))
    assert problem in found


def test_what_fits_has_no_problem() -> None:
    assert ParallelPlan(tensor=2, context=2, pipeline=2, replicate=4).problems(tiny_config()) == []


def test_all_problems_are_told_before_anything_is_built() -> None:
    world = World.alone(plan=None)
    object.__setattr__(world, "plan", ParallelPlan(tensor=4, pipeline=4, shard=1))
    with pytest.raises(RecipeError, match=re.compile("kv groups.*; parallel.pipeline cuts", re.DOTALL)):
        build_model(tiny_config(), world)
