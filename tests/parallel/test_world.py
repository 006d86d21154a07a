"""Processes of a run: joining, who reads what, and what they tell each other. As a program, one process that joins."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from puyulm.errors import DataError, Preempted, PuyuError, RecipeError, TrainError
from puyulm.parallel.batch import MicroBatch
from puyulm.parallel.plan import ParallelPlan
from puyulm.parallel.world import World
from puyulm.train.step import count_targets
from tests.parallel.ranks import random_batch, run_ranks

CPU = torch.device("cpu")

SHARING = (
    ParallelPlan(),
    ParallelPlan(replicate=2),
    ParallelPlan(tensor=2),
    ParallelPlan(context=4),
    ParallelPlan(pipeline=2, context=2),
    ParallelPlan(pipeline=2, replicate=2),
)
"""Plans of 4 ranks, which share micro-batches in different ways."""


def talk() -> dict[str, Any]:
    world = World.join(ParallelPlan(replicate=2), CPU)
    rank = world.rank
    found: dict[str, Any] = {
        "main": world.main,
        "sum": world.sum(torch.tensor([1.0, rank])).tolist(),
        "share": world.share({"rank": rank}),
        "errors": [],
    }
    told = [DataError("told") if rank == 3 else None, ValueError("mine") if rank == 2 else None]
    for error in (None, *told, ValueError(f"all: {rank}")):
        try:
            world.raise_alike(error)
            found["errors"].append(None)
        except (ValueError, PuyuError) as reason:
            found["errors"].append((type(reason).__name__, str(reason)))
    try:
        World.join(ParallelPlan(tensor=3), CPU)
    except RecipeError as reason:
        found["wrong"] = str(reason)
    world.wait()
    found["targets"] = [targets_of_a_step(plan) for plan in SHARING]
    found["places"] = [places(plan) for plan in SHARING]
    return found


def targets_of_a_step(plan: ParallelPlan) -> float:
    """Target tokens of 8 micro-batches, as many from each rank that reads data of its own."""
    world = World.join(plan, CPU)
    share = 8 // world.plan.data_size
    numbers = range(world.data_rank * share, (world.data_rank + 1) * share)
    batches = [random_batch(128, number) for number in numbers]
    return float(count_targets(world, [MicroBatch.of(b.tokens, b.targets, b.lengths) for b in batches]))


def places(plan: ParallelPlan) -> tuple[int, ...]:
    world = World.join(plan, CPU)
    names = ("pipeline", "replicate", "shard", "context", "tensor", "fsdp")
    return (world.data_rank, *(world.coordinate(name) for name in names))


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run_ranks(4, talk, tmp_path_factory.mktemp("four"))


def test_what_processes_tell_each_other(four: list[dict[str, Any]]) -> None:
    for rank, found in enumerate(four):
        assert found["main"] == (rank == 0)
        assert found["sum"] == [4.0, 6.0]
        assert found["share"] == {"rank": 0}


def test_errors_are_raised_on_all(four: list[dict[str, Any]]) -> None:
    for rank, found in enumerate(four):
        none, told, mine, everyones = found["errors"]
        assert none is None
        assert told == ("DataError", "told")
        assert mine == (("ValueError" if rank == 2 else "TrainError"), "mine")
        assert everyones == ("ValueError", f"all: {rank}")


def test_sizes_that_do_not_fit_are_refused(four: list[dict[str, Any]]) -> None:
    for found in four:
        assert found["wrong"] == (
            "parallel: pipeline 1 x replicate 1 x shard 1 x context 1 x tensor 3 = 3 ranks, but there are 4; "
            "start as many (torchrun --nproc-per-node ...), or change the sizes"
        )


def test_ranks_that_share_micro_batches_count_targets_once(four: list[dict[str, Any]]) -> None:
    expected = sum(random_batch(128, number).num_targets for number in range(8))
    for found in four:
        assert found["targets"] == [expected] * len(SHARING)


def test_places_in_both_meshes(four: list[dict[str, Any]]) -> None:
    for at, plan in enumerate(SHARING):
        plan = plan.resolved(4)
        for rank, found in enumerate(four):
            data, pipeline, replicate, shard, context, tensor, fsdp = found["places"][at]
            place = ((pipeline * plan.replicate + replicate) * plan.shard + shard) * plan.context + context
            assert place * plan.tensor + tensor == rank
            assert fsdp == shard * plan.context + context
            assert data == replicate * plan.shard + shard


def test_every_part_of_the_data_is_read_by_as_many_ranks() -> None:
    plan = ParallelPlan(pipeline=2, replicate=3, shard=2, context=2, tensor=4).resolved(96)
    ranks = [World(rank, 96, CPU, plan).data_rank for rank in range(96)]
    assert [ranks.count(part) for part in range(plan.data_size)] == [2 * 2 * 4] * plan.data_size


def test_alone() -> None:
    world = World.join(ParallelPlan(), CPU) if "WORLD_SIZE" not in os.environ else World.alone()
    assert world.size == 1 and world.mesh is None and world.main and world.first_stage and world.last_stage
    assert world.share("value") == "value"
    assert float(world.sum(torch.tensor(2.0))) == 2.0
    world.raise_alike(None)
    with pytest.raises(ValueError, match="mine"):
        world.raise_alike(ValueError("mine"))
    world.wait()
    world.leave()
    assert not dist.is_initialized()


@pytest.mark.parametrize(("error", "leaves"), [(None, True), (Preempted, True), (TrainError, False)])
def test_the_group_outlives_an_error(
    monkeypatch: pytest.MonkeyPatch, error: type[Exception] | None, leaves: bool
) -> None:
    left: list[World] = []
    monkeypatch.setattr(World, "leave", lambda world: left.append(world))
    with suppress(Preempted, TrainError), World.alone() as world:
        if error is not None:
            raise error
    assert left == [world] * leaves


def test_alone_with_a_plan_for_many() -> None:
    with pytest.raises(RecipeError, match=r"tensor 2 = 2 ranks, but there are 1; start as many \(torchrun"):
        World.join(ParallelPlan(tensor=2), CPU)


def test_torchrun(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run(
        [*command, "-m", "tests.parallel.test_world", tmp_path], check=True, capture_output=True, timeout=200
    )
    found = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert found == [[0, 2, 1, 0, "too many"], [1, 2, 1, 1, "too many"]]


def join(folder: Path) -> None:
    """As torchrun starts it: first with a plan that does not fit, then with one that does."""
    try:
        World.join(ParallelPlan(tensor=4), CPU)
    except RecipeError:
        refused = "too many"
    world = World.join(ParallelPlan(), CPU)
    found = [world.rank, world.size, float(world.sum(torch.tensor(float(world.rank)))), world.data_rank, refused]
    (folder / f"{world.rank}.json").write_text(json.dumps(found))
    world.leave()


if __name__ == "__main__":
    join(Path(sys.argv[1]))
