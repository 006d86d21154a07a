"""Schedule and settings against closed forms."""

from __future__ import annotations

import math

import pytest

from puyulm.errors import RecipeError
from puyulm.train.schedule import Schedule
from puyulm.train.settings import SpikeSettings, TrainSettings


def rates(steps: int, **changes: object) -> list[float]:
    settings = TrainSettings(lr=2.0, min_lr_ratio=0.1, warmup_ratio=0.2, **changes)  # type: ignore[arg-type]
    schedule = Schedule.of(settings, steps)
    return [schedule(step) for step in range(steps)]


def test_warm_up_is_a_straight_climb() -> None:
    for schedule in ("cosine", "linear", "constant", "wsd"):
        assert rates(21, schedule=schedule)[:5] == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0])


def test_ways_down_end_at_the_minimum_exactly() -> None:
    cosine, linear = rates(21, schedule="cosine"), rates(21, schedule="linear")
    assert cosine[-1] == pytest.approx(0.2, abs=1e-12) and linear[-1] == pytest.approx(0.2, abs=1e-12)
    assert cosine[12] == linear[12] == pytest.approx(1.1)  # half way down: the middle of peak and minimum
    assert cosine[8] == pytest.approx(0.2 + 0.9 * (1 + math.cos(math.pi / 4)))
    assert linear[8] == pytest.approx(2.0 - 0.25 * 1.8)
    assert rates(21, schedule="constant")[4:] == [2.0] * 17


def test_wsd_stays_at_the_peak_and_falls_at_the_end() -> None:
    found = rates(21, schedule="wsd", decay_ratio=0.2)  # the last four of 21 steps
    assert found[4:17] == [2.0] * 13
    assert found[17:] == pytest.approx([2.0 - 1.8 * i / 4 for i in (1, 2, 3, 4)])


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant", "wsd"])
@pytest.mark.parametrize("steps", [1, 2, 3])
def test_shortest_runs_have_a_learning_rate(steps: int, schedule: str) -> None:
    assert all(0 < rate <= 2.0 for rate in rates(steps, schedule=schedule))
    assert Schedule.of(TrainSettings(lr=1.0, warmup_ratio=1.0), steps)(steps - 1) == 1.0


def test_a_phase_may_change_the_schedule_of_the_run() -> None:
    schedule = Schedule.of(TrainSettings(lr=2.0, min_lr_ratio=0.5), 10, lr=1.0, shape=None, warmup_ratio=0.0)
    assert schedule(0) == 1.0 and schedule(9) == 0.5


def test_settings_complain_about_everything_at_once() -> None:
    with pytest.raises(RecipeError) as caught:
        TrainSettings(
            lr=-1.0, warmup_ratio=2.0, betas=(0.9, 1.0), checkpoint_every=0, clip_norm=math.nan, z_loss=-1.0,
            keep_every=0,
        )  # fmt: skip
    for part in ("lr must be above 0", "warmup_ratio must be between", "betas", "checkpoint_every must be above 0",
                 "clip_norm must be above 0, not nan", "z_loss must not be negative", "keep_every"):  # fmt: skip
        assert part in str(caught.value)
    with pytest.raises(RecipeError, match="window must be at least 2"):
        SpikeSettings(window=1)
    with pytest.raises(RecipeError, match="sigma must be above 0"):
        SpikeSettings(sigma=0.0)
