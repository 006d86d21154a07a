"""Faults: a run killed again and again, at any moment; a disk that is full; damaged checkpoints."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from puyulm.errors import TrainError
from puyulm.train import checkpoint
from puyulm.train.checkpoint import latest_checkpoint, step_of
from tests.train.runs import assert_same_run, curve, run, run_all, run_long

ROOT = Path(__file__).resolve().parents[2]


def test_a_run_killed_again_and_again_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    """SIGKILL in a step, while a checkpoint is written or named, while an old one is removed; with steps that are not
    taken and ways back between."""
    killed, calm = tmp_path / "killed", tmp_path / "calm"
    done = subprocess.run(
        [sys.executable, "-m", "tests.train.runs", "killed", str(killed), "5"], cwd=ROOT, capture_output=True,
        text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=400,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout.splitlines()[-1])
    assert [life["status"] for life in report] == [-9] * 12 + [0]
    assert any(life["half_written"] for life in report) and report[-1]["half_written"] == []
    for life in report[:-1]:  # one checkpoint may be on its way, those before are there; rows of skipped steps go
        assert life["checkpoint"] >= life["steps"] - 6, life
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as there: sums over several threads are rounded otherwise
    try:
        run_long(calm)
    finally:
        torch.set_num_threads(threads)
    assert_same_run(killed, calm)
    assert [row[0] for row in curve(killed)] == list(range(1, 61))


class Full:
    """Lets some calls through, then the disk is full."""

    def __init__(self, function: Any, calls: int) -> None:
        self._function, self._left = function, calls

    def __call__(self, *arguments: Any) -> Any:
        self._left -= 1
        if self._left < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self._function(*arguments)


@pytest.mark.parametrize("calls", [0, 1, 2, 3])
def test_a_full_disk_stops_the_run_and_costs_one_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: int
) -> None:
    """Whichever file it is that there is no room for."""
    calm = tmp_path / "calm"
    run_all(calm)
    run(tmp_path, 17, checkpoint_every=4, eval_every=100, keep_checkpoints=9)
    for path in list((tmp_path / "checkpoints").iterdir()):
        if step_of(path) > 8:
            checkpoint._remove(path)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.os, "fsync", Full(os.fsync, calls))
        with pytest.raises(TrainError, match=r"cannot write the checkpoint .*step-00000012: .*No space left.*intact"):
            run_all(tmp_path)
    # Noticed when the next one is due, not later.
    assert curve(tmp_path)[-1][0] == 16
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-00000004", "step-00000008"]
    run_all(tmp_path)
    assert curve(tmp_path) == curve(calm)


def test_a_full_disk_at_the_end_is_an_error_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint.os, "fsync", Full(os.fsync, 0))
    with pytest.raises(TrainError, match=r"cannot write the checkpoint .*step-00000003"):
        run(tmp_path, 3)
    assert latest_checkpoint(tmp_path) is None


def test_a_damaged_checkpoint_is_passed_over_and_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    calm, folder = tmp_path / "calm", tmp_path / "damaged"
    run_all(calm)
    run_all(folder)
    newest = latest_checkpoint(folder)
    assert newest is not None and newest.name == "step-00000017"
    (shard,) = newest.glob("*.distcp")
    os.truncate(shard, shard.stat().st_size - 1)
    capsys.readouterr()
    run_all(folder)
    printed = capsys.readouterr().err
    assert f"the checkpoint {newest} is damaged ({shard.name} has" in printed and "resuming at step 16 of 17" in printed
    assert_same_run(folder, calm)
