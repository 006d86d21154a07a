"""Techniques combined: every plan of 4 and 8 ranks gives the loss curve and the gradients of one process."""

from __future__ import annotations

from pathlib import Path

import pytest

from puyulm.parallel.plan import ParallelPlan
from tests.conftest import tiny_config
from tests.parallel.ragged import Ragged, assert_same_ragged, measure_ragged
from tests.parallel.ranks import Curve, assert_same_curve, run_ranks, train_curve

PLANS = {
    4: (
        ParallelPlan(pipeline=2, shard=2, recompute="full"),
        ParallelPlan(pipeline=2, shard=2, schedule="interleaved"),
        ParallelPlan(pipeline=2, replicate=2),
        ParallelPlan(pipeline=2, tensor=2),
        ParallelPlan(pipeline=2, context=2, recompute="selective"),
        ParallelPlan(context=2, shard=2, recompute="full"),
        ParallelPlan(context=2, replicate=2),
        ParallelPlan(context=2, tensor=2),
    ),
    8: (
        ParallelPlan(pipeline=2, shard=2, tensor=2),
        ParallelPlan(shard=2, context=2, tensor=2),
    ),
}


def run_plan(plan: ParallelPlan, num_layers: int) -> tuple[Curve, Ragged]:
    config = tiny_config(num_layers=num_layers)
    return train_curve(config, plan, micro_batches=4), measure_ragged(config, plan)


def run_plans(plans: tuple[ParallelPlan, ...]) -> list[tuple[Curve, Ragged]]:
    return [run_plan(plan, max(2, plan.stages)) for plan in plans]


@pytest.mark.parametrize("size", [4, pytest.param(8, marks=pytest.mark.slow)])
def test_combined_plans_do_what_one_process_does(tmp_path: Path, size: int) -> None:
    ranks = run_ranks(size, run_plans, tmp_path, PLANS[size])
    expected = {layers: run_plan(ParallelPlan(), layers) for layers in (2, 4)}
    for plan, *found in zip(PLANS[size], *ranks, strict=True):
        curve, ragged = expected[max(2, plan.stages)]
        assert_same_curve([curves for curves, _ in found], curve)
        assert_same_ragged([measured for _, measured in found], ragged, plan.context)
