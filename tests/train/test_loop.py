"""The loop: what it learns, what it writes, and that stopping it at any time changes nothing."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from puyulm.data.packing import PackedBatch
from puyulm.errors import Preempted, TrainError
from puyulm.parallel.build import ParallelModel
from puyulm.train.checkpoint import latest_checkpoint
from puyulm.train.loop import train
from puyulm.train.metrics import read_json_lines
from puyulm.train.settings import TrainSettings
from tests.train.runs import (
    ActAt,
    Counting,
    CountingCourse,
    assert_same_run,
    curve,
    measure,
    pack,
    run,
    run_all,
    tiny_model,
)  # fmt: skip


def test_it_learns_and_writes_a_line_a_step(tmp_path: Path) -> None:
    result = run(tmp_path, steps=40, validate=measure, eval_every=15, lr=1e-2)
    rows = read_json_lines(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, 41))
    assert rows[-1]["loss"] < 0.3 * rows[0]["loss"]
    assert rows[-1]["lr"] == pytest.approx(1e-3) and max(row["lr"] for row in rows) == pytest.approx(1e-2)
    assert rows[-1]["tokens"] == result.tokens == sum(len(Counting().batch(step).tokens) for step in range(40))
    assert [row["step"] for row in read_json_lines(tmp_path / "validation.jsonl")] == [15, 30, 40]
    assert result.validation.keys() == {"loss"} and result.steps == 40
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step-00000036", "step-00000040"]


def test_exports_are_made_every_so_many_steps(tmp_path: Path) -> None:
    exported: list[int] = []
    settings = TrainSettings(checkpoint_every=10, device="cpu", export_every=3)
    train(
        tiny_model(), CountingCourse(Counting(), 7, settings), settings, tmp_path, identity={},
        fill=lambda model: None, export=lambda model, step: exported.append(step),
    )  # fmt: skip
    assert exported == [3, 6, 7]
    settings = replace(settings, export_every=None)
    train(
        tiny_model(), CountingCourse(Counting(), 9, settings), settings, tmp_path, identity={},
        fill=lambda model: None, export=lambda model, step: exported.append(step),
    )  # fmt: skip
    assert exported == [3, 6, 7]


def test_accumulation_changes_nothing_but_rounding(tmp_path: Path) -> None:
    """Micro-batches with very different numbers of target tokens give the curve of the whole."""
    for split in (1, 2, 3, 6):
        run(tmp_path / str(split), 4, source=Counting(split=split))
        found, expected = curve(tmp_path / str(split)), curve(tmp_path / "1")
        np.testing.assert_allclose(np.array(found), np.array(expected), rtol=1e-5)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    run_all(folder)
    return folder


def pull_the_plug() -> None:
    raise RuntimeError("pulled the plug")


@pytest.mark.parametrize("prefetch", [0, 2])
def test_resumed_run_repeats_an_uninterrupted_one_bit_for_bit(tmp_path: Path, whole: Path, prefetch: int) -> None:
    for step in (3, 6, 10, 15):  # not where checkpoints are: the steps since the last one are done again
        with pytest.raises(RuntimeError, match="pulled the plug"):
            run_all(tmp_path, source=ActAt(at=step, action=pull_the_plug), prefetch=prefetch)
    run_all(tmp_path)
    assert_same_run(tmp_path, whole)
    assert [row[0] for row in curve(tmp_path)] == list(range(1, 18))


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Preempted), (signal.SIGUSR1, Preempted)]
)
def test_a_signal_lets_the_step_finish_and_saves(
    tmp_path: Path, whole: Path, number: signal.Signals, error: type[BaseException], capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(error):
        run_all(tmp_path, source=ActAt(at=9, action=lambda: signal.raise_signal(number)))
    printed = capfd.readouterr().err
    assert "stopping after this step" in printed and "stopped after step 10" in printed
    assert _latest(tmp_path) == "step-00000010"
    run_all(tmp_path)
    assert_same_run(tmp_path, whole)


def test_a_second_ctrl_c_stops_at_once(tmp_path: Path, whole: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_all(tmp_path, model=_signalled(9, signal.SIGINT, signal.SIGINT))
    assert _latest(tmp_path) == "step-00000008"
    run_all(tmp_path)
    assert_same_run(tmp_path, whole)


def test_a_second_signal_of_a_scheduler_changes_nothing(tmp_path: Path) -> None:
    with pytest.raises(Preempted):
        run_all(tmp_path, model=_signalled(9, signal.SIGUSR1, signal.SIGTERM, signal.SIGUSR1))
    assert _latest(tmp_path) == "step-00000010"


def _signalled(step: int, *numbers: signal.Signals) -> ParallelModel:
    """A model in whose forward pass of one step signals come, one after another."""
    model, calls = tiny_model(seed=3), iter(range(1000))
    plain = model.forward_backward

    def forward_backward(*arguments: Any) -> Any:
        if next(calls) == step:
            for number in numbers:
                signal.raise_signal(number)
        return plain(*arguments)

    model.forward_backward = forward_backward  # type: ignore[method-assign]
    return model


def test_a_signal_in_the_last_step_ends_the_command_with_the_run_complete(tmp_path: Path, whole: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_all(tmp_path, source=ActAt(at=16, action=lambda: signal.raise_signal(signal.SIGINT)))
    assert_same_run(tmp_path, whole)
    run_all(tmp_path, source=ActAt(at=0, action=pull_the_plug))  # trains no further
    assert_same_run(tmp_path, whole)


def test_a_signal_in_the_last_validation_ends_the_command(tmp_path: Path) -> None:
    def interrupted(model: ParallelModel, step: int) -> Mapping[str, float]:
        signal.raise_signal(signal.SIGTERM)
        return measure(model)

    with pytest.raises(Preempted):
        run(tmp_path, steps=3, validate=interrupted)
    assert _latest(tmp_path) == "step-00000003"
    assert run(tmp_path, steps=3, validate=_never).steps == 3


def _latest(folder: Path) -> str:
    latest = latest_checkpoint(folder)
    assert latest is not None
    return latest.name


def test_a_finished_run_is_not_done_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = run(tmp_path, steps=5, validate=measure)
    again = run(tmp_path, steps=5, validate=_never, source=ActAt(at=0, action=pull_the_plug))
    assert again == first and "already trained" in capsys.readouterr().err


def _never(model: ParallelModel, step: int) -> Mapping[str, float]:
    raise AssertionError("validated again")


def test_a_validation_that_was_missed_is_made_up_for(tmp_path: Path, whole: Path) -> None:
    run_all(tmp_path)
    lines = (tmp_path / "validation.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "validation.jsonl").write_text("".join(lines[:-1]) + lines[-1][:9])  # killed while writing it
    run_all(tmp_path)
    assert_same_run(tmp_path, whole)


class TwoBases(CountingCourse):
    """The second half of the run has a longer rotary base; the first has the model's."""

    def rope_theta(self, step: int) -> float | None:
        return 1e6 if step >= 6 else None


def test_the_rotary_base_of_a_step_is_known_again_after_resuming(tmp_path: Path) -> None:
    bases = []

    def validate(model: ParallelModel, step: int) -> Mapping[str, float]:
        bases.append(model.config.rope.theta)
        return measure(model)

    run(tmp_path, 12, validate, course=TwoBases, eval_every=3)
    assert bases == [1e4, 1e4, 1e6, 1e6]  # after steps 3, 6, 9, 12
    (tmp_path / "validation.jsonl").write_text("")
    run(tmp_path, 12, validate, course=TwoBases, eval_every=3)  # nothing but the last validation
    assert bases == [1e4, 1e4, 1e6, 1e6, 1e6]


def test_batches_without_targets_are_an_error(tmp_path: Path) -> None:
    class Empty(Counting):
        def batch(self, step: int, part: int = 0) -> PackedBatch:
            return pack([np.array([5]), np.array([6])])

    with pytest.raises(TrainError, match="step 1: the batches have no token to learn from"):
        run(tmp_path, steps=1, source=Empty())


def test_signal_handlers_are_put_back(tmp_path: Path) -> None:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = [signal.getsignal(number) for number in numbers]
    run(tmp_path, steps=1)
    assert [signal.getsignal(number) for number in numbers] == before
