"""The search for a plan: nothing better is left out, and what it says of the family is sane."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from puyulm.model.config import ModelConfig
from puyulm.model.presets import preset
from puyulm.parallel.estimate import Job, Load
from puyulm.parallel.plan import ParallelPlan
from puyulm.parallel.search import (
    RECOMPUTE,
    Candidate,
    Hardware,
    Work,
    arithmetic_seconds,
    candidate,
    divisors,
    micro_options,
    search,
    step_seconds,
)
from tests.conftest import tiny_config

FOUR_K = Work(seq_len=4096, rows=1024, steps=900)
LONG = Work(seq_len=32_768, rows=128, steps=90)
GIB = 2**30


def best(name: str, gpus: int, works: list[Work], count: int = 5, **hardware: object) -> list[Candidate]:
    return search(Job(config=preset(name).config), works, Hardware(gpus=gpus, **hardware), best=count)  # type: ignore[arg-type]


def test_small_models_need_no_splitting() -> None:
    found = best("internlm2-1_8b", 8, [FOUR_K])
    assert len(found) == 5
    for one in found:
        assert (one.plan.tensor, one.plan.pipeline, one.plan.context, one.plan.recompute) == (1, 1, 1, "none")
        assert one.memory.total <= 72 * GIB and one.plan.world_size == 8


def test_large_models_are_sharded() -> None:
    found = best("internlm2-20b", 16, [Work(seq_len=4096, rows=1280, steps=1)])
    assert found
    assert all((one.plan.shard or 1) * one.plan.context * one.plan.tensor * one.plan.pipeline >= 8 for one in found)
    assert best("internlm2-20b", 2, [FOUR_K]) == []


def test_long_rows_are_shared_or_recomputed() -> None:
    row = Work(seq_len=262_144, rows=16, steps=1)
    many = best("internlm2-7b", 64, [row], 3)
    assert all(one.plan.context * one.plan.tensor >= 4 for one in many)
    one = best("internlm2-1_8b", 1, [Work(seq_len=32_768, rows=16, steps=1)], 1, memory=64 * GIB)
    assert one[0].plan.recompute != "none"


@pytest.mark.parametrize("name", ["internlm2-7b", "internlm3-8b"])
def test_more_memory_is_never_slower(name: str) -> None:
    times = []
    for memory in (40, 60, 80, 141):
        found = best(name, 16, [FOUR_K], 1, memory=memory * GIB)
        times.append(found[0].run_seconds if found else float("inf"))
        assert not found or found[0].memory.total <= 0.9 * memory * GIB
    assert all(late <= early * 1.011 for early, late in itertools.pairwise(times))
    assert times[-1] < times[0]


def brute_force(job: Job, works: list[Work], hardware: Hardware) -> list[Candidate]:
    """Every plan, by definition."""
    found: dict[ParallelPlan, Candidate] = {}
    sizes = divisors(hardware.gpus)
    schedules = (("1f1b", 2), ("interleaved", 2))
    for pipeline, replicate, shard, context, tensor in itertools.product(sizes, repeat=5):
        group = shard * context * tensor
        node = min(hardware.gpus_per_node, hardware.gpus)
        if pipeline * replicate * group != hardware.gpus or tensor > node or (group % node and node % group):
            continue
        for (schedule, stages), recompute, reshard in itertools.product(schedules, RECOMPUTE, (True, False)):
            if (schedule == "interleaved" and pipeline == 1) or (not reshard and shard * context == 1):
                continue
            plan = ParallelPlan(
                pipeline=pipeline, replicate=replicate, shard=shard, context=context, tensor=tensor,
                recompute=recompute, reshard=reshard, schedule=schedule, stages_per_rank=stages,  # type: ignore[arg-type]
            )  # fmt: skip
            if plan.problems(job.config) or any(work.rows % plan.data_size for work in works):
                continue
            for micro_tokens in micro_options(works, plan):
                one = candidate(job, works, hardware, plan, micro_tokens)
                if one.memory.total <= hardware.usable and (plan not in found or one.rank < found[plan].rank):
                    found[plan] = one
    return sorted(found.values(), key=lambda one: one.rank)


def wide_model() -> ModelConfig:
    return preset("internlm2-1_8b").config.evolve(num_layers=12)


@pytest.mark.parametrize(
    ("gpus", "memory", "works"),
    [
        (4, 80, [Work(seq_len=4096, rows=64, steps=3)]),
        (8, 12, [Work(seq_len=4096, rows=32, steps=3)]),
        (8, 24, [Work(seq_len=4096, rows=64, steps=9), Work(seq_len=16_384, rows=16, steps=1)]),
        (12, 40, [Work(seq_len=8192, rows=48, steps=3)]),
        (8, 10, [Work(seq_len=65_536, rows=8, steps=3)]),
    ],
)
def test_nothing_better_is_left_out(gpus: int, memory: int, works: list[Work]) -> None:
    job, hardware = Job(config=wide_model()), Hardware(gpus=gpus, gpus_per_node=4, memory=memory * GIB)
    found, everything = search(job, works, hardware, best=3), brute_force(job, works, hardware)
    assert everything and found[0] == everything[0]
    assert found == [one for one in everything if one in found]  # in their order
    alone = search(job, works, hardware, best=1)
    assert alone == everything[:1]


def test_micro_batches_are_those_of_the_reader() -> None:
    plan = ParallelPlan(shard=4)
    assert FOUR_K.load(plan, 16_384) == Load(seq_len=4096, micro_tokens=16_384, micro_batches=64)
    assert LONG.load(plan, 16_384) == Load(seq_len=32_768, micro_tokens=32_768, micro_batches=32)
    padded = FOUR_K.load(ParallelPlan(shard=1, pipeline=4), 20_000)
    assert padded == Load(seq_len=4096, micro_tokens=20_000, micro_batches=256)


def test_what_takes_time() -> None:
    """Closed forms on hardware without latency, whose arithmetic is the only cost where nothing travels."""
    job = Job(config=preset("internlm2-1_8b").config)
    hardware = Hardware(gpus=1, latency=0, memory_bandwidth=1e30)
    load = Load(seq_len=4096, micro_tokens=4096, micro_batches=8)
    alone = ParallelPlan(shard=1)
    micro = sum(arithmetic_seconds(job, hardware, alone, load))
    assert step_seconds(job, hardware, alone, load) == pytest.approx(8 * micro)
    full = step_seconds(job, hardware, replace(alone, recompute="full"), load)
    assert 1.25 < full / (8 * micro) < 4 / 3
    free = replace(hardware, gpus=4, node_bandwidth=1e30, bandwidth=1e30)
    staged = [
        step_seconds(job, free, ParallelPlan(shard=1, pipeline=4), replace(load, micro_batches=n)) for n in (8, 32)
    ]
    assert staged[0] / staged[1] == pytest.approx((8 + 3) / (32 + 3))
    woven = ParallelPlan(shard=1, pipeline=4, schedule="interleaved", stages_per_rank=2)
    assert step_seconds(job, free, woven, load) < staged[0]
    slow, sharded = replace(free, node_bandwidth=1e9), ParallelPlan(shard=4)
    assert step_seconds(job, slow, sharded, load) > 2 * step_seconds(job, free, sharded, load)
    kept = step_seconds(job, slow, replace(sharded, reshard=False), load)
    assert kept < step_seconds(job, slow, sharded, load)


def test_bandwidth_of_groups() -> None:
    hardware = Hardware(gpus=32, gpus_per_node=8, node_bandwidth=300e9, bandwidth=40e9)
    assert hardware.group_bandwidth(8, 1) == 300e9
    assert hardware.group_bandwidth(32, 1) == 300e9  # eight links a node: as fast
    assert hardware.group_bandwidth(4, 8) == 40e9
    assert hardware.group_bandwidth(8, 4) == 80e9


def test_what_is_found_fits_the_model_and_the_batches() -> None:
    """`test_states_of_ranks` builds one of these on as many processes."""
    config, work = tiny_config(num_layers=8), Work(seq_len=64, rows=64, steps=1)
    found = search(Job(config=config, dtype="float32"), [work], Hardware(gpus=8, gpus_per_node=4), best=20)
    assert len({one.plan for one in found}) == 20
    for one in found:
        assert one.plan.world_size == 8 and one.plan.problems(config) == [] and 64 % one.plan.data_size == 0
        assert one.plan.micro_batches_problem(work.load(one.plan, one.micro_tokens).micro_batches) is None
