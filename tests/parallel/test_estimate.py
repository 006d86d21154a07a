"""What is estimated against what is measured: states to the byte, activations of a forward, and closed forms."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.tensor import DTensor

from puyulm.data.packing import PackedBatch
from puyulm.model.memory import count_parameters
from puyulm.model.presets import preset
from puyulm.parallel.batch import MicroBatch
from puyulm.parallel.build import ParallelModel, build_model
from puyulm.parallel.estimate import (
    Job,
    Load,
    elements,
    flops_per_token,
    in_flight,
    rank_memory,
    rank_part,
    worst_rank,
)
from puyulm.parallel.plan import ParallelPlan
from puyulm.parallel.search import Hardware, Work, search
from puyulm.parallel.traffic import rank_traffic
from puyulm.parallel.weights import init_weights
from puyulm.parallel.world import World
from puyulm.train.flops import palm_flops, training_flops
from puyulm.train.optimizer import Optimizer
from puyulm.train.settings import TrainSettings
from puyulm.train.step import to_device
from tests.conftest import tiny_config
from tests.parallel.ranks import random_batch, run_ranks

SMALL = tiny_config(
    vocab_size=1000, hidden_size=256, intermediate_size=768, num_heads=8, num_kv_heads=2, head_dim=32,
    max_position_embeddings=4096,
)  # fmt: skip
ODD = tiny_config(vocab_size=130, hidden_size=36, intermediate_size=52, num_layers=3, qkv_bias=True)


def model_of(config: Any, plan: ParallelPlan, dtype: torch.dtype = torch.float32) -> ParallelModel:
    model = build_model(config, World.alone("cpu", plan), dtype=dtype)
    init_weights(model, 0)
    return model


def batch_of(vocab_size: int, lengths: list[int]) -> MicroBatch:
    tokens = torch.arange(sum(lengths)) % vocab_size
    return MicroBatch(tokens, tokens.roll(-1), tuple(lengths), len(tokens))


def bytes_kept_by_a_forward(model: ParallelModel, batch: MicroBatch) -> int:
    """Bytes allocated in a forward and not freed at its end, tensors that checkpoints keep included."""
    assert batch.attention is not None  # made before
    with torch.autograd.profiler.profile(profile_memory=True) as profile:
        loss = model.stages[0](None, batch)
    assert loss.requires_grad
    return int(sum(event.self_cpu_memory_usage for event in profile.key_averages()))


def bytes_saved_by_autograd(model: ParallelModel, batch: MicroBatch) -> int:
    """Bytes of the storages that autograd holds after a forward, but for those of parameters."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    storages: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.stages[0](None, batch)
    return sum(storages.values())


@pytest.mark.parametrize("recompute", ["none", "selective", "full"])
@pytest.mark.parametrize("lengths", [[512], [100, 150, 90, 172]])
def test_activations_of_a_layer(recompute: Any, lengths: list[int]) -> None:
    plan = ParallelPlan(recompute=recompute).resolved(1)
    load = Load(seq_len=max(lengths), micro_tokens=512, micro_batches=1)
    measured, estimated = [], []
    for layers in (2, 4):
        config = SMALL.evolve(num_layers=layers)
        measured.append(bytes_kept_by_a_forward(model_of(config, plan), batch_of(1000, lengths)))
        estimated.append(rank_memory(Job(config=config, dtype="float32", device="cpu"), plan, load))
    layer = (estimated[1].activations - estimated[0].activations) / 2
    assert layer == pytest.approx((measured[1] - measured[0]) / 2, rel=0.15)
    head = 4 * (1000 + 512) * 256  # kept from the forward on: the gradients of the head and of its input
    assert estimated[1].activations + head == pytest.approx(measured[1], rel=0.15)


def test_activations_in_half_precision() -> None:
    """Against what autograd holds: beside activations, narrow copies of the matrices."""
    plan, load = ParallelPlan().resolved(1), Load(seq_len=512, micro_tokens=512, micro_batches=1)
    saved = bytes_saved_by_autograd(model_of(SMALL, plan, torch.bfloat16), batch_of(1000, [512]))
    memory = rank_memory(Job(config=SMALL, device="cpu"), plan, load)
    assert memory.gathered == 2 * (elements(rank_part(SMALL, plan, 0).tensors(SMALL)) - 2 * 1000 * 256 - 256)
    assert memory.activations + memory.gathered + (4 * 1000 + 2 * 512) * 256 == pytest.approx(saved, rel=0.15)


@pytest.mark.parametrize(
    ("optimizer", "state_dtype"), [("adamw", "float32"), ("adamw", "bfloat16"), ("muon", "float32")]
)
def test_states_of_one_process(optimizer: Any, state_dtype: Any) -> None:
    plan = ParallelPlan().resolved(1)
    model = model_of(ODD, plan)
    settings = TrainSettings(optimizer=optimizer, state_dtype=state_dtype)
    states = Optimizer(dict(model.named_parameters()), settings, ODD).state_tensors()
    job = Job(config=ODD, dtype="float32", optimizer=optimizer, state_dtype=state_dtype, device="cpu")
    memory = rank_memory(job, plan, Load(seq_len=64, micro_tokens=64, micro_batches=1))
    assert memory.parameters == memory.gradients == 4 * count_parameters(ODD).total
    assert memory.parameters == sum(parameter.nbytes for parameter in model.parameters())
    assert memory.optimizer == sum(tensor.nbytes for name, tensor in states.items() if name != "step")


def local_bytes(tensors: Any) -> int:
    return sum((t.to_local() if isinstance(t, DTensor) else t).numel() * t.element_size() for t in tensors)


PLANS = (
    ParallelPlan(shard=4),
    ParallelPlan(replicate=2, shard=1, context=2),
    ParallelPlan(shard=2, tensor=2),
    ParallelPlan(pipeline=2, shard=2),
    search(Job(config=ODD), [Work(seq_len=64, rows=8, steps=1)], Hardware(gpus=4))[0].plan,
)


def measure_states(plans: tuple[ParallelPlan, ...]) -> list[tuple[int, int, int, int]]:
    """Of each plan: this rank's place in the pipeline; bytes of its parameters, gradients and moments."""
    found = []
    for plan in plans:
        world = World.join(plan, torch.device("cpu"))
        model = build_model(ODD, world, micro_tokens=64)
        init_weights(model, 0)
        optimizer = Optimizer(dict(model.named_parameters()), TrainSettings())
        batches: list[PackedBatch] = [random_batch(ODD.vocab_size, number) for number in range(2)]
        model.forward_backward(to_device(model, batches), 100.0)
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        states = [tensor for name, tensor in optimizer.state_tensors().items() if name != "step"]
        sizes = (local_bytes(model.parameters()), local_bytes(gradients), local_bytes(states))
        found.append((world.coordinate("pipeline"), *sizes))
    return found


def test_states_of_ranks(tmp_path: Path) -> None:
    """The largest shard of every parameter, to the byte, as the first rank of each group has it."""
    ranks = run_ranks(4, measure_states, tmp_path, PLANS)
    load = Load(seq_len=64, micro_tokens=64, micro_batches=2)
    for number, plan in enumerate(PLANS):
        for place in range(plan.pipeline):
            memory = rank_memory(Job(config=ODD, dtype="float32", device="cpu"), plan, load, place)
            found = [rank[number][1:] for rank in ranks if rank[number][0] == place]
            parameters, gradients, optimizer = max(found)
            assert (memory.parameters, memory.optimizer) == (parameters, optimizer), plan
            whole = memory.gradients == 4 * elements(rank_part(ODD, plan, place).tensors(ODD))
            assert memory.gradients == gradients or (plan.pipeline > 1 and whole), plan


def test_operations_are_those_of_the_loop() -> None:
    for name in ("internlm2-7b", "internlm3-8b", "internlm-7b"):
        config = preset(name).config
        assert flops_per_token(config, 4096) * 4096 == pytest.approx(palm_flops(config, 4096, 4096))
        assert flops_per_token(config, 4096, causal=True) * 4096 == pytest.approx(training_flops(config, [4096]))


def test_memory_of_published_sizes() -> None:
    """Closed forms: 16 bytes a parameter in all, cut as the plan says."""
    config, load = preset("internlm2-7b").config, Load(seq_len=4096, micro_tokens=4096, micro_batches=8)
    job, count = Job(config=config), count_parameters(config).total
    memory = rank_memory(job, ParallelPlan(shard=8), load)
    assert memory.states == 16 * count / 8
    assert rank_memory(job, ParallelPlan(replicate=4, shard=8), load).states == memory.states
    assert rank_memory(job, ParallelPlan(shard=4, context=2), load).states == memory.states
    assert rank_memory(replace(job, state_dtype="bfloat16"), ParallelPlan(shard=8), load).states == 12 * count / 8
    split = rank_memory(job, ParallelPlan(shard=1, tensor=8), load)
    norms = (2 * 32 + 1) * 4096  # every tensor rank has all of them
    assert split.states == 16 * ((count - norms) / 8 + norms)
    stages = [rank_memory(job, ParallelPlan(pipeline=4, shard=1), load, rank) for rank in range(4)]
    assert sum(stage.parameters for stage in stages) == 4 * count
    kept = rank_memory(job, ParallelPlan(shard=8, reshard=False), load)
    assert kept.gathered == 2 * count > 3 * memory.gathered


def test_what_costs_and_saves_memory() -> None:
    job, load = Job(config=preset("internlm2-7b").config), Load(seq_len=4096, micro_tokens=8192, micro_batches=8)
    plan = ParallelPlan(shard=8)
    by_mode = [rank_memory(job, replace(plan, recompute=mode), load) for mode in ("full", "selective", "none")]
    assert by_mode[0].activations < by_mode[1].activations < by_mode[2].activations
    assert by_mode[0].layer > by_mode[1].layer > by_mode[2].layer
    compiled = rank_memory(job, replace(plan, compile=True), load)
    assert by_mode[1].activations < compiled.activations < by_mode[2].activations
    for other in (ParallelPlan(shard=4, context=2), ParallelPlan(shard=4, tensor=2)):
        assert rank_memory(job, other, load).activations < 0.8 * by_mode[2].activations
    doubled = rank_memory(job, plan, replace(load, micro_tokens=16384))
    assert doubled.activations == pytest.approx(2 * by_mode[2].activations, rel=1e-6)


def test_micro_batches_under_way() -> None:
    plan = ParallelPlan(pipeline=4, shard=1)
    assert [in_flight(plan, rank, 8) for rank in range(4)] == [4, 3, 2, 1]
    assert [in_flight(plan, rank, 2) for rank in range(4)] == [2, 2, 2, 1]
    interleaved = replace(plan, schedule="interleaved", stages_per_rank=2)
    assert [in_flight(interleaved, rank, 8) for rank in range(4)] == [11, 9, 7, 5]
    job, load = Job(config=preset("internlm2-7b").config), Load(seq_len=4096, micro_tokens=4096, micro_batches=8)
    assert worst_rank(job, plan, load) == 0


def test_traffic() -> None:
    """Volumes of a step, from the definitions of the exchanges."""
    config = preset("internlm2-7b").config
    job, count = Job(config=config), count_parameters(config).total
    load = Load(seq_len=4096, micro_tokens=4096, micro_batches=3)
    sharded = rank_traffic(job, ParallelPlan(shard=8), load)
    assert sharded.gather == pytest.approx(2 * 3 * 2 * count * 7 / 8) and sharded.replicate == sharded.tensor == 0
    assert sharded.reduce == pytest.approx(3 * 4 * count * 7 / 8)
    kept = rank_traffic(job, ParallelPlan(shard=8, reshard=False), load)
    assert kept.gather == pytest.approx(2 * count * 7 / 8) and kept.reduce == sharded.reduce
    copies = rank_traffic(job, ParallelPlan(replicate=2, shard=4), load)
    assert copies.replicate == pytest.approx(2 * 4 * count / 4 / 2)
    split = rank_traffic(job, ParallelPlan(shard=1, tensor=2), load)
    assert split.tensor == 3 * 32 * 2 * 4 * (2 * 4096 * 4096) / 2 and split.gather == 0
    rows = rank_traffic(job, ParallelPlan(shard=1, context=4), load)
    assert rows.context == 3 * 32 * 2 * (2 * 1024 * (6144 + 4096)) * 3 / 4
    ends = [rank_traffic(job, ParallelPlan(pipeline=3, shard=1), load, rank).pipeline for rank in range(3)]
    assert ends == [3 * 2 * 4096 * 4096, 2 * 3 * 2 * 4096 * 4096, 3 * 2 * 4096 * 4096]
