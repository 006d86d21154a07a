"""The trace of a few steps."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import torch

from puyulm.train.loop import train
from puyulm.train.profile import StepProfile
from puyulm.train.run import open_run
from puyulm.train.settings import TrainSettings
from tests.train.runs import IDENTITY, Counting, CountingCourse, tiny_model

CPU = torch.device("cpu")


def traced_steps(folder: Path, rank: int = 0) -> list[str]:
    with gzip.open(folder / "profile" / f"trace-rank{rank}.json.gz", "rt") as file:
        events = json.load(file)["traceEvents"]
    return sorted({event["name"] for event in events if str(event.get("name", "")).startswith("ProfilerStep")})


def take(folder: Path, steps: int, rank: int = 0) -> list[str]:
    said: list[str] = []
    profiling = StepProfile(folder, rank, CPU, said.append)
    matrix = torch.ones(64, 64)
    for _ in range(steps):
        matrix @ matrix
        profiling.step()
    profiling.close()
    return said


def test_three_steps_are_traced(tmp_path: Path) -> None:
    said = take(tmp_path, 9, rank=3)
    assert len(traced_steps(tmp_path, 3)) == 3
    assert said[0].startswith(f"trace of 3 steps in {tmp_path}/profile/trace-rank3.json.gz") and "CPU" in said[0]
    table = (tmp_path / "profile" / "operators-rank3.txt").read_text().splitlines()
    assert said[1] == "costliest operators:\n" + "\n".join(table) + "\n"
    (product,) = [line for line in table if line.endswith(" aten::mm")]
    assert product.split()[-2] == "3" and not any("ProfilerStep" in line for line in table)  # calls


def test_a_run_that_ends_early_has_what_there_was(tmp_path: Path) -> None:
    assert take(tmp_path / "four", 4)[0].startswith("trace of 2 steps in")
    assert len(traced_steps(tmp_path / "four")) >= 2
    assert take(tmp_path / "two", 2) == ["no trace: the run ended within its first 2 steps"]
    assert not (tmp_path / "two" / "profile").exists()
    assert take(tmp_path / "none", 0) == ["no trace: the run ended within its first 2 steps"]


def test_the_loop_traces_and_learns_the_same(tmp_path: Path) -> None:
    settings = TrainSettings(device="cpu", tensorboard=False)
    for name, profile in (("traced", True), ("plain", False)):
        open_run(tmp_path / name, IDENTITY)
        train(
            tiny_model(), CountingCourse(Counting(), 6, settings), settings, tmp_path / name, identity=IDENTITY,
            fill=lambda model: None, profile=profile,
        )  # fmt: skip
    assert len(traced_steps(tmp_path / "traced")) == 3 and not (tmp_path / "plain" / "profile").exists()
    log = (tmp_path / "traced" / "train.log").read_text()
    assert "trace of 3 steps in" in log and "costliest operators" in log
    losses = [
        [json.loads(line)["loss"] for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("traced", "plain")
    ]
    assert losses[0] == losses[1]
