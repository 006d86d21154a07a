"""Pipelines of 2 and 4 ranks against one process: loss curves, gradients, validation, and what they refuse."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from puyulm.errors import TrainError
from puyulm.model.presets import find_preset
from puyulm.parallel.build import build_model
from puyulm.parallel.plan import ParallelPlan
from puyulm.parallel.weights import init_weights
from puyulm.parallel.world import World
from puyulm.train.step import to_device
from tests.conftest import tiny_config
from tests.parallel.ragged import Ragged, assert_same_ragged, measure_ragged
from tests.parallel.ranks import Curve, assert_same_curve, filled_model, random_batch, run_ranks, train_curve

CONFIG = tiny_config(num_layers=4)
INTERLEAVED = ParallelPlan(pipeline=2, schedule="interleaved")

Case = tuple[ParallelPlan, int]  # micro-batches: as few as there may be, an odd number, many
CASES: dict[int, list[Case]] = {
    2: [*((ParallelPlan(pipeline=2), count) for count in (8, 2, 5)), (INTERLEAVED, 8)],
    4: [*((ParallelPlan(pipeline=4), count) for count in (8, 5))],
}


def run_cases(cases: list[Case]) -> tuple[list[Curve], list[Ragged], float, list[str]]:
    plan, plans = cases[0][0], {plan: None for plan, _ in cases}
    curves = [train_curve(CONFIG, plan, micro_batches=count) for plan, count in cases]
    return curves, [measure_ragged(CONFIG, plan) for plan in plans], loss_in_half_precision(plan), refuse(plan)


def loss_in_half_precision(plan: ParallelPlan) -> float:
    """A rank's part of the loss, with hidden states that travel in bfloat16."""
    world = World.join(plan, torch.device("cpu")) if dist.is_initialized() else World.alone(plan=plan)
    model = build_model(CONFIG.evolve(initializer_range=0.2), world, dtype=torch.bfloat16, micro_tokens=64)
    init_weights(model, seed=1)
    loss, _ = model.forward_backward(to_device(model, [random_batch(128, number) for number in range(4)]), 256.0)
    assert model.pipeline is None or {stage.hidden.dtype for stage in model.pipeline.stages} == {torch.bfloat16}
    return float(loss)


def refuse(plan: ParallelPlan) -> list[str]:
    """What is said of too few and of too long micro-batches; and the pipeline works afterwards."""
    model, messages = filled_model(CONFIG, plan), []
    for sizes in ([64], [65, 64, 64, 64]):
        batches = to_device(model, [random_batch(128, number, tokens) for number, tokens in enumerate(sizes)])
        with pytest.raises(TrainError) as error:
            model.forward_backward(batches, 1.0)
        messages.append(str(error.value))
    first = None
    for count in (4, 4, 5):  # the schedule is kept while the micro-batches are as many, and what it received is not
        model.forward_backward(to_device(model, [random_batch(128, number) for number in range(count)]), 1.0)
        pipeline = model.pipeline
        assert pipeline is not None and (first is None or (pipeline is first) == (count == 4))
        first = first or pipeline
        for stage in pipeline.stages:
            chunks = [*stage.args_recv_info.values(), *stage.grad_recv_info.values()]
            assert len(chunks) == 2 * count and not any(info.buffer.numel() for chunk in chunks for info in chunk)
    return messages


@pytest.mark.parametrize("size", [2, 4])
def test_pipelines_do_what_one_process_does(tmp_path: Path, size: int) -> None:
    ranks = run_ranks(size, run_cases, tmp_path, CASES[size])
    for (_, count), *found in zip(CASES[size], *(curves for curves, _, _, _ in ranks), strict=True):
        assert_same_curve(found, train_curve(CONFIG, ParallelPlan(), micro_batches=count))
    expected = measure_ragged(CONFIG, ParallelPlan())
    for measured in zip(*(ragged for _, ragged, _, _ in ranks), strict=True):
        assert_same_ragged(measured, expected)
        assert [bool(rank.loss) for rank in measured] == [False] * (size - 1) + [True]
    assert sum(loss for _, _, loss, _ in ranks) == pytest.approx(loss_in_half_precision(ParallelPlan()), rel=1e-3)
    for _, _, _, (few, long) in ranks:
        assert f"at least {size} micro-batches a step, but there are 1: lower micro_tokens, or raise" in few
        assert "has 65 tokens, but those of this pipeline have 64: raise micro_tokens" in long


def test_an_interleaved_pipeline_needs_a_multiple_of_its_ranks() -> None:
    plan = ParallelPlan(pipeline=4, schedule="interleaved").resolved(4)
    assert [count for count in range(9) if plan.micro_batches_problem(count) is None] == [4, 8]
    assert "a multiple of 4 micro-batches a step, but there are 6" in (plan.micro_batches_problem(6) or "")
    assert ParallelPlan().resolved(1).micro_batches_problem(1) is None


def test_the_head_counts_for_the_layers_that_it_is_worth() -> None:
    preset = find_preset("internlm2-7b")
    assert preset is not None  # its head has 1.74 times the parameters of a layer
    assert ParallelPlan(pipeline=2).layers_of_stages(preset.config) == [17, 15]
    assert ParallelPlan(pipeline=4).layers_of_stages(preset.config) == [8, 8, 9, 7]  # the embedding is in the first
    assert ParallelPlan(pipeline=2).layers_of_stages(preset.config.evolve(head="reward")) == [16, 16]
    assert INTERLEAVED.layers_of_stages(CONFIG) == [1, 1, 1, 1]
    for stages in range(1, 33):
        counts = ParallelPlan(pipeline=stages).layers_of_stages(preset.config)
        assert sum(counts) == 32 and min(counts) >= 1 and len(counts) == stages
