"""Checkpoints and faults over several processes: other layouts take a run up, and all ranks do the same."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from puyulm.errors import Preempted, TrainError
from puyulm.parallel.build import ParallelModel
from puyulm.parallel.plan import ParallelPlan
from puyulm.parallel.world import World
from puyulm.train import checkpoint
from puyulm.train.checkpoint import Checkpoints, TrainState, latest_checkpoint, read_state
from puyulm.train.guard import Guard
from puyulm.train.metrics import read_json_lines
from puyulm.train.optimizer import Optimizer
from puyulm.train.settings import SpikeSettings, TrainSettings
from tests.parallel.ranks import run_ranks
from tests.train.runs import (
    POISON,
    ActAt,
    Counting,
    curve,
    measure,
    poisonable,
    run,
    stored,
    stored_tensors,
    tiny_model,
)

ROOT = Path(__file__).resolve().parents[2]
CPU = torch.device("cpu")
STEPS = 12


def state_tensors(model: ParallelModel, settings: TrainSettings) -> dict[str, Tensor]:
    """What a run saves, as the loop names it."""
    optimizer = Optimizer(dict(model.named_parameters()), settings, model.config)
    guard = Guard(settings.spikes, CPU)
    return {
        **{f"model.{name}": parameter.detach() for name, parameter in model.named_parameters()},
        **{f"optimizer.{name}": tensor for name, tensor in optimizer.state_tensors().items()},
        **{f"guard.{name}": tensor for name, tensor in guard.state_tensors().items()},
    }


def take_up(source: Path, target: Path, plan: ParallelPlan) -> tuple[TrainState, list[str], set[str], int]:
    """Loads a checkpoint into a model of another layout, compares every tensor, and saves it again.

    Returns:
        The state; names of what is not bit for bit what was saved; all names; how many values this rank holds.
    """
    world = World.join(plan, CPU)
    of_target = Checkpoints(target, world, TrainSettings())
    tensors = state_tensors(tiny_model(9, world), TrainSettings())
    state = of_target.load(source, tensors)
    expected, wrong, held = stored_tensors(source), [], 0
    for name, tensor in tensors.items():
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        held += (tensor.to_local() if isinstance(tensor, DTensor) else tensor).numel()
        if not torch.equal(whole, expected[name]):
            wrong.append(name)
    of_target._saved = None
    of_target.save(tensors, state, wait=True)
    return state, wrong, set(tensors), held


def four_ranks(folder: Path) -> Any:
    one = latest_checkpoint(folder / "one")
    assert one is not None
    hybrid = take_up(one, folder / "hybrid", ParallelPlan(replicate=2, shard=2))
    three = take_up(one, folder / "three", ParallelPlan(pipeline=2, tensor=2, shard=1))
    return [take_up(one, folder / "fsdp4", ParallelPlan()), hybrid, three]


def two_ranks(folder: Path) -> Any:
    four = latest_checkpoint(folder / "fsdp4")
    assert four is not None
    plans = {
        "fsdp2": ParallelPlan(), "replicate2": ParallelPlan(replicate=2, shard=1), "tensor2": ParallelPlan(tensor=2),
        "pipeline2": ParallelPlan(pipeline=2),
    }  # fmt: skip
    return [take_up(four, folder / name, plan) for name, plan in plans.items()], faults(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process."""
    folder = tmp_path_factory.mktemp("runs")
    run(folder / "one", 4)
    return folder


@pytest.fixture(scope="module")
def found(folder: Path) -> tuple[list[Any], list[Any], list[Any]]:
    """What four and two ranks returned; all that ranks do here is done in one start of each number."""
    four = run_ranks(4, four_ranks, folder, folder)
    two = run_ranks(2, two_ranks, folder, folder)
    return four, [resharded for resharded, _ in two], [faults for _, faults in two]


def test_other_layouts_take_up_a_checkpoint_bit_for_bit(folder: Path, found: Any) -> None:
    expected = stored(folder / "one")
    size = sum(tensor.numel() for tensor in expected.values())
    for ranks in (found[0], found[1]):
        for layouts in zip(*ranks, strict=True):  # one layout, as all its ranks saw it
            assert [wrong for _, wrong, _, _ in layouts] == [[]] * len(layouts)
            assert set.union(*(names for _, _, names, _ in layouts)) == set(expected)
            assert len({state.step for state, _, _, _ in layouts}) == 1
    assert all(held < 0.27 * size for _, _, _, held in (rank[0] for rank in found[0]))  # of four: a quarter each
    for name in ("fsdp4", "hybrid", "three", "fsdp2", "replicate2", "tensor2", "pipeline2"):
        again = stored(folder / name)
        assert again.keys() == expected.keys(), name
        assert [key for key in again if not torch.equal(again[key], expected[key])] == [], name
        path, one = latest_checkpoint(folder / name), latest_checkpoint(folder / "one")
        assert path is not None and one is not None and read_state(path) == read_state(one)
        assert _bytes(path) < 1.4 * _bytes(one), name  # replicas are written once; each piece has a header
        tensors = state_tensors(tiny_model(5), TrainSettings())  # one process takes it up
        Checkpoints(folder / name, World.alone(), TrainSettings()).load(path, tensors)
        assert [key for key in tensors if not torch.equal(tensors[key], expected[key])] == [], name


def _bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in path.glob("*.distcp"))


def faults(folder: Path) -> dict[str, Any]:
    """Runs on two ranks of which only one is struck."""
    world = World.join(ParallelPlan(), CPU)
    spikes = SpikeSettings(patience=2)

    def outcome(name: str, source: Counting, **changes: Any) -> str:
        model = poisonable(tiny_model(3, world))
        try:
            run(folder / name, STEPS, measure, source, model=model, spikes=spikes, eval_every=5, **changes)
        except (Preempted, KeyboardInterrupt, TrainError) as error:
            return f"{type(error).__name__} {error}"
        return "done"

    def signal_rank_1(number: signal.Signals) -> Any:
        return lambda: os.kill(os.getpid(), number) if world.rank == 1 else None

    found = {"calm": outcome("calm", Counting(split=2))}
    # Only rank 1 reads the last micro-batch of a step.
    found["poisoned"] = outcome("poisoned", Counting(split=2, bad={2: POISON, 6: POISON, 7: POISON}))
    for number in (signal.SIGUSR1, signal.SIGINT):
        source = ActAt(split=2, at=6, action=signal_rank_1(number))
        found[number.name] = outcome(number.name, source)
        path = latest_checkpoint(folder / number.name)
        found[f"{number.name} checkpoint"] = None if path is None else path.name
        found[f"{number.name} again"] = outcome(number.name, Counting(split=2))
    load = checkpoint.dcp.load
    if world.rank == 1:
        checkpoint.dcp.load = _unreadable
    found["unreadable"] = outcome("calm", Counting(split=2))
    checkpoint.dcp.load = load
    plain, failures = checkpoint._Writer.write_data, [0]

    def full(*arguments: Any) -> Any:
        failures[0] += world.rank
        if failures[0] == 2:
            raise OSError(28, "No space left on device")
        return plain(*arguments)

    checkpoint._Writer.write_data = full  # type: ignore[method-assign]
    found["full"] = outcome("full", Counting(split=2))
    checkpoint._Writer.write_data = plain  # type: ignore[method-assign]
    found["full again"] = outcome("full", Counting(split=2))
    return found


def _unreadable(*_: Any, **__: Any) -> None:
    raise OSError(5, "Input/output error")


def test_what_strikes_one_rank_is_done_by_all(folder: Path, found: Any) -> None:
    first, second = found[2]
    assert first == second
    assert {name: text for name, text in first.items() if "again" in name} == {
        "SIGUSR1 again": "done", "SIGINT again": "done", "full again": "done"}  # fmt: skip
    assert first["calm"] == first["poisoned"] == "done"
    assert first["SIGUSR1"].startswith("Preempted") and first["SIGINT"].startswith("KeyboardInterrupt")
    assert first["SIGUSR1 checkpoint"] in ("step-00000007", "step-00000008")
    assert "step-00000012 cannot be read ([Errno 5] Input/output error); remove it" in first["unreadable"]
    assert "step-00000008: [Errno 28] No space left on device; earlier checkpoints are intact" in first["full"]
    for name in ("SIGUSR1", "SIGINT", "full"):
        assert_near(folder / name, folder / "calm")
    rows = read_json_lines(folder / "poisoned" / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert [row["step"] for row in rows if row.get("skipped")] == [3]
    path = latest_checkpoint(folder / "poisoned")
    assert path is not None
    state = read_state(path)
    assert (state.skipped, state.rollbacks, state.skips) == (3, 1, (4,))
    assert all(bool(tensor.isfinite().all()) for tensor in stored(folder / "poisoned").values())


def assert_near(folder: Path, other: Path) -> None:
    np.testing.assert_allclose(np.array(curve(folder)), np.array(curve(other)), rtol=1e-6)
    ours, theirs = stored(folder), stored(other)
    for name, tensor in theirs.items():
        np.testing.assert_allclose(ours[name], tensor, rtol=1e-5, atol=1e-6, err_msg=name)


def test_a_killed_rank_is_started_again_by_torchrun(tmp_path: Path) -> None:
    # Without the variable ranks may read, from a store that outlives them, the addresses of those they replace:
    # https://github.com/pytorch/pytorch/issues/135712
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "1",
         "-m", "tests.train.runs", "ranks", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "was-killed").exists() and "resuming at step 8 of 14" in done.stderr
    assert done.stderr.count("already trained") == 1  # the main process prints, and no other
    assert_near(tmp_path / "killed", tmp_path / "calm")
    assert [row["step"] for row in read_json_lines(tmp_path / "killed" / "validation.jsonl")] == [5, 10, 14]
