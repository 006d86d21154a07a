"""Going back: rows of steps that are not taken, batches that are left out, and that faults between change nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from puyulm.errors import TrainError
from puyulm.train import trainer
from puyulm.train.checkpoint import latest_checkpoint, read_state
from puyulm.train.course import Skips
from puyulm.train.loop import TrainResult
from puyulm.train.metrics import read_json_lines
from puyulm.train.readback import Readback
from puyulm.train.settings import SpikeSettings
from tests.train.runs import (
    POISON,
    SPIKE,
    ActAt,
    Counting,
    CountingCourse,
    assert_same_run,
    curve,
    measure,
    poisonable,
    run,
    stored,
    tiny_model,
)  # fmt: skip

SPIKES = SpikeSettings(sigma=50.0, window=4, patience=3, max_rollbacks=3)


class Recorded(CountingCourse):
    """Remembers which batch each step was given."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.read: list[tuple[int, int]] = []

    def batches(self, step: int, part: int, parts: int, skips: Skips = ()) -> Any:
        was_read.append((step, step + sum(skips)))
        return super().batches(step, part, parts, skips)


was_read: list[tuple[int, int]] = []


def spiky(
    folder: Path, bad: Mapping[int, int], steps: int = 20, source: Counting | None = None, **changes: Any
) -> TrainResult:
    was_read.clear()
    return run(
        folder, steps, measure, source or Counting(bad=bad), model=poisonable(tiny_model(seed=3)), course=Recorded,
        **({"spikes": SPIKES, "eval_every": 5} | changes),
    )  # fmt: skip


def events(folder: Path) -> list[tuple[str, int]]:
    return [
        (row["kind"], row["step"])
        for row in read_json_lines(folder / "events.jsonl")
        if row["kind"] in ("skipped", "rollback")
    ]


def state(folder: Path) -> Any:
    latest = latest_checkpoint(folder)
    assert latest is not None
    return read_state(latest)


def test_single_bad_steps_are_counted_and_told(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    spiky(tmp_path, {5: POISON, 9: SPIKE, 10: POISON})
    rows = read_json_lines(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows if row.get("skipped")] == [6, 10, 11]
    assert rows[5]["loss"] is None and rows[9]["loss"] > 100
    assert state(tmp_path).skipped == 3 and state(tmp_path).rollbacks == 0 and state(tmp_path).streak == 0
    lines = [line for line in capfd.readouterr().err.splitlines() if "is not taken" in line]
    assert [line.split(":", 1)[1].split(" is")[0] for line in lines] == [" step 6", " step 10", " step 11"]
    assert "loss nan, gradient norm nan, 1 in a row" in lines[0] and "2 in a row" in lines[2]
    assert all(bool(tensor.isfinite().all()) for tensor in stored(tmp_path).values())


def test_a_row_of_bad_steps_is_gone_back_from_and_left_out(tmp_path: Path) -> None:
    spiky(tmp_path, {9: SPIKE, 10: POISON, 11: SPIKE})
    # From step 12 to the checkpoint of step 8: batches 8 to 11 are left out, the good one with the bad.
    assert was_read == [(n, n) for n in range(12)] + [(n, n + 4) for n in range(8, 20)]
    assert [row["step"] for row in read_json_lines(tmp_path / "metrics.jsonl")] == list(range(1, 21))
    assert not any(row.get("skipped") for row in read_json_lines(tmp_path / "metrics.jsonl"))
    assert (state(tmp_path).skipped, state(tmp_path).rollbacks, state(tmp_path).skips) == (3, 1, (4,))
    assert events(tmp_path) == [("skipped", 10), ("skipped", 11), ("skipped", 12), ("rollback", 12)]


def test_it_ends_as_a_run_that_never_saw_those_batches(tmp_path: Path) -> None:
    class Without(Counting):
        def batch(self, step: int, part: int = 0) -> Any:
            return super().batch(step if step < 8 else step + 4, part)

    spiky(tmp_path / "back", {9: SPIKE, 10: POISON, 11: SPIKE})
    spiky(tmp_path / "never", {}, source=Without())
    ours, theirs = stored(tmp_path / "back"), stored(tmp_path / "never")
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    # Learning rate and losses too; tokens are counted as they are trained on.
    assert curve(tmp_path / "back") == curve(tmp_path / "never")


def test_going_back_twice_to_one_checkpoint_leaves_out_both_stretches(tmp_path: Path) -> None:
    bad = dict.fromkeys((9, 10, 11, 13, 14, 15), POISON)
    spiky(tmp_path, bad)
    first, second = [(n, n) for n in range(12)], [(n, n + 4) for n in range(8, 12)]
    assert was_read == first + second + [(n, n + 8) for n in range(8, 20)]
    assert (state(tmp_path).rollbacks, state(tmp_path).skips, state(tmp_path).skipped) == (2, (8,), 6)


def test_a_checkpoint_within_the_row_is_no_place_to_go_back_to(tmp_path: Path) -> None:
    """Not even where it is the only one that would be kept; and what is saved on the new way replaces it."""
    spiky(tmp_path, {10: POISON, 11: POISON, 12: POISON}, keep_checkpoints=1)  # step 12 is saved, with a row of two
    assert was_read == [(n, n) for n in range(13)] + [(n, n + 5) for n in range(8, 20)]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-00000020"]


def test_what_the_run_has_left_by_going_back_is_removed(tmp_path: Path) -> None:
    """Or a run killed before it has come as far again would go on from there."""
    with pytest.raises(RuntimeError, match="pulled the plug"):
        spiky(tmp_path, {}, source=ActAt(bad={10: POISON, 11: POISON, 12: POISON}, at=14, action=pull_the_plug))
    assert was_read[-2:] == [(8, 13), (9, 14)]
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-00000008"]


def pull_the_plug() -> None:
    raise RuntimeError("pulled the plug")


def test_it_gives_up_after_so_many_times(tmp_path: Path) -> None:
    always = dict.fromkeys(range(9, 200), POISON)
    with pytest.raises(TrainError, match=r"step 11: 3 steps in a row .* went back 3 times already; lower settings\.lr"):
        spiky(tmp_path, always)
    assert sum(kind == "rollback" for kind, _ in events(tmp_path)) == 3
    assert state(tmp_path).step == 8  # what was good is still there
    assert all(bool(tensor.isfinite().all()) for tensor in stored(tmp_path).values())


def test_without_a_checkpoint_there_is_no_way_back(tmp_path: Path) -> None:
    with pytest.raises(TrainError, match=r"step 3: 3 steps in a row .* no checkpoint is from before them"):
        spiky(tmp_path, {0: POISON, 1: POISON, 2: POISON})
    assert latest_checkpoint(tmp_path) is None


@pytest.mark.parametrize("at", [3, 8, 9, 10, 11, 12, 13, 14, 18])
def test_stops_before_amid_and_after_it_change_nothing(tmp_path: Path, at: int) -> None:
    """The window, the row of bad steps and what is left out are all part of a checkpoint."""

    bad = {4: SPIKE, 10: POISON, 11: SPIKE, 12: POISON, 16: SPIKE}
    spiky(tmp_path / "calm", bad, checkpoint_every=2)
    with pytest.raises(RuntimeError, match="pulled the plug"):
        spiky(tmp_path / "stopped", {}, source=ActAt(bad=bad, at=at, action=pull_the_plug), checkpoint_every=2)
    spiky(tmp_path / "stopped", bad, checkpoint_every=2)
    assert_same_run(tmp_path / "stopped", tmp_path / "calm")
    assert state(tmp_path / "calm").rollbacks == 1


class TwoPhases(Recorded):
    """From step 10 on, other data, counted by itself, and another rotary base."""

    def phase_index(self, step: int) -> int:
        return int(step >= 10)

    def rope_theta(self, step: int) -> float | None:
        return 1e5 if step >= 10 else None

    def batches(self, step: int, part: int, parts: int, skips: Skips = ()) -> Any:
        index = self.phase_index(step)
        number = step + (*skips, 0, 0)[index] + 1000 * index
        was_read.append((step, number))
        return [self.source.batch(number)]

    def skip(self, first: int, last: int, skips: Skips = ()) -> Skips:
        left_out = list((*skips, 0, 0)[:2])
        for step in range(first, last + 1):
            left_out[self.phase_index(step)] += 1
        return tuple(left_out)


def test_going_back_into_the_phase_before(tmp_path: Path) -> None:
    bases = []

    def validate(model: Any, step: int) -> Mapping[str, float]:
        bases.append(model.config.rope.theta)
        return measure(model)

    was_read.clear()
    source = Counting(bad={1010: POISON, 1011: POISON, 1012: POISON})
    run(
        tmp_path, 16, validate, source, model=poisonable(tiny_model(seed=3)), course=TwoPhases, spikes=SPIKES,
        eval_every=3,
    )  # fmt: skip
    again = [(8, 10), (9, 11), *((n, n + 1003) for n in range(10, 16))]
    assert was_read == [(n, n) for n in range(10)] + [(10, 1010), (11, 1011), (12, 1012)] + again
    assert state(tmp_path).skips == (2, 3)
    assert bases == [1e4, 1e4, 1e4, 1e5, 1e4, 1e5, 1e5, 1e5]  # after 3, 6, 9, 12, and again 9, 12, 15, 16


class Late(Readback[Any]):
    """As on a GPU: the host looks at a step when the next one is under way."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self._lag = 1


def test_what_the_host_sees_late_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One more step, good or bad, follows the bad row on the device before the host knows: it is void."""
    bad = {4: SPIKE, 9: POISON, 10: SPIKE, 11: POISON, 17: SPIKE}
    for every, more in ((4, {}), (5, {}), (7, {}), (5, {12: SPIKE})):
        name, bad_ones = f"{every}-{len(more)}", bad | more
        spiky(tmp_path / f"at-once-{name}", bad_ones, checkpoint_every=every, eval_every=13)
        at_once = list(was_read)
        with monkeypatch.context() as patch:
            patch.setattr(trainer, "Readback", Late)
            spiky(tmp_path / f"late-{name}", bad_ones, checkpoint_every=every, eval_every=13)
        assert_same_run(tmp_path / f"late-{name}", tmp_path / f"at-once-{name}")
        assert len(was_read) >= len(at_once) and set(at_once) <= set(was_read)
