"""The timeline of a run: rows, learning rates and rotary bases of all steps, against closed forms."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puyulm.errors import RecipeError
from puyulm.recipe import load_recipe
from puyulm.train.phases import BatchRamp, Phase, Timeline
from puyulm.train.settings import TrainSettings

RUN = TrainSettings(lr=3e-4, min_lr_ratio=0.1, warmup_ratio=0.05)


def rows_of(timeline: Timeline) -> list[int]:
    return [last - first for first, last in map(timeline.rows, range(timeline.steps))]


@st.composite
def phases(draw: st.DrawFn, name: str = "p") -> Phase:
    seq_len, full = draw(st.integers(1, 7)), draw(st.integers(1, 12))
    ramp = None
    if full > 1 and draw(st.booleans()):
        start, increment = draw(st.integers(1, full - 1)), draw(st.integers(1, full))
        ramp = BatchRamp(start=start * seq_len, increment=increment * seq_len, every=draw(st.integers(1, 4)))
    size = draw(st.integers(1, 300))
    wanted = {"tokens": size} if draw(st.booleans()) else {"steps": draw(st.integers(1, 30))}
    return Phase(name=name, seq_len=seq_len, batch_tokens=full * seq_len, ramp=ramp, **wanted)


def by_hand(phase: Phase) -> list[int]:
    """Rows of each step: the ramp's formula, until there are enough of steps or tokens."""
    rows: list[int] = []
    while len(rows) < (phase.steps or 10**9) and sum(rows) * phase.seq_len < (phase.tokens or 10**9):
        tokens = phase.batch_tokens
        if phase.ramp is not None:
            tokens = min(phase.ramp.start + len(rows) // phase.ramp.every * phase.ramp.increment, tokens)
        rows.append(tokens // phase.seq_len)
    return rows


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(phases(), min_size=1, max_size=4))
def test_rows_of_all_steps(listed: list[Phase]) -> None:
    timeline, step = Timeline(listed, RUN), 0
    for index, phase in enumerate(listed):
        rows, first = by_hand(phase), step
        assert timeline.phase_steps(index) == range(step, step + len(rows))
        for number, count in enumerate(rows):
            before = sum(rows[:number])
            assert timeline.rows(step) == (before, before + count)
            assert timeline.rows_before(step, index) == before
            assert timeline.tokens(step) == count * phase.seq_len and timeline.phase(step) is phase
            step += 1
        assert timeline.rows_before(first, index) == 0 and timeline.rows_before(step, index) == sum(rows)
        assert timeline.phase_rows(index) == sum(rows)
        assert timeline.phase_tokens(index) == sum(rows) * phase.seq_len
        if phase.tokens is not None:
            assert 0 <= timeline.phase_tokens(index) - phase.tokens < rows[-1] * phase.seq_len
    assert timeline.steps == step
    assert timeline.total_tokens == sum(map(timeline.tokens, range(step)))


def test_a_ramp_in_tokens() -> None:
    ramp = BatchRamp(start=64, increment=32, every=3)
    timeline = Timeline([Phase(tokens=1500, seq_len=16, batch_tokens=160, ramp=ramp)], RUN)
    assert rows_of(timeline) == [4] * 3 + [6] * 3 + [8] * 3 + [10] * 4  # 54 rows in the ramp; 94 are wanted
    assert timeline.total_tokens == 94 * 16 and timeline.phase_tokens(0) == 1504
    short = Timeline([Phase(steps=5, seq_len=16, batch_tokens=160, ramp=ramp)], RUN)
    assert rows_of(short) == [4] * 3 + [6] * 2


def cosine(step: int, steps: int, lr: float, least: float, warmup: int) -> float:
    if step < warmup:
        return lr * (step + 1) / warmup
    return lr * (least + (1 - least) * (1 + math.cos(math.pi * (step - warmup) / (steps - 1 - warmup))) / 2)


def three_phases() -> list[Phase]:
    """As the family is trained: 4K, 32K, and a phase with its own learning rate."""
    return [
        Phase(name="4k", steps=70, seq_len=8, batch_tokens=64, rope_theta=50_000),
        Phase(name="32k", steps=30, seq_len=64, batch_tokens=64, rope_theta=1_000_000),
        Phase(name="enhance", steps=20, seq_len=8, batch_tokens=64, lr=1e-4, warmup_ratio=0.1, min_lr_ratio=0.5),
    ]


def test_a_schedule_spans_the_phases_that_have_none_of_their_own() -> None:
    timeline = Timeline(three_phases(), RUN)
    for step in range(100):
        assert timeline.lr(step) == pytest.approx(cosine(step, 100, 3e-4, 0.1, 5), rel=1e-12)
    for step in range(20):
        assert timeline.lr(100 + step) == pytest.approx(cosine(step, 20, 1e-4, 0.5, 2), rel=1e-12)
    assert timeline.lr(4) == 3e-4 and timeline.lr(99) == pytest.approx(3e-5) and timeline.lr(119) == pytest.approx(5e-5)


@pytest.mark.parametrize(
    ("name", "value"),
    [("lr", 1e-4), ("min_lr_ratio", 0.0), ("warmup_ratio", 0.0), ("schedule", "linear"), ("decay_ratio", 0.2)],
)
def test_each_field_of_a_schedule_begins_one(name: str, value: object) -> None:
    """What is not given is the run's; a value of 0 counts as given."""
    first, second, third = three_phases()
    changed = Phase(name="32k", steps=30, seq_len=64, batch_tokens=64, **{name: value})  # type: ignore[arg-type]
    timeline = Timeline([first, changed, third], RUN)
    assert timeline.lr(69) == pytest.approx(3e-5)
    assert timeline.lr(72) == pytest.approx(1e-4 if name == "lr" else 3e-4, rel=0.05)
    assert timeline.lr(98) < timeline.lr(80)
    del second


def test_the_rotary_base_is_carried_on() -> None:
    listed = [Phase(name="none", steps=2, seq_len=8, batch_tokens=8), *three_phases()]
    timeline = Timeline(listed, RUN)
    assert [timeline.rope_theta(step) for step in (0, 1, 2, 71, 72, 101, 102, 121, 500)] == [
        None, None, 50_000, 50_000, *[1_000_000] * 5
    ]  # fmt: skip


def test_wsd_over_phases() -> None:
    run = TrainSettings(lr=1.0, min_lr_ratio=0.0, warmup_ratio=0.0, schedule="wsd", decay_ratio=0.25)
    timeline = Timeline(three_phases()[:2], run)
    assert all(timeline.lr(step) == 1.0 for step in range(75))
    assert [timeline.lr(step) for step in (79, 89, 99)] == pytest.approx([20 / 25, 10 / 25, 0])


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"batch_tokens": 20}, "batch_tokens 20 is no multiple of seq_len 8"),
        ({"steps": None}, "give either tokens or steps"),
        ({"tokens": 5}, "give either tokens or steps"),
        ({"steps": 0}, "steps must be above 0, not 0"),
        ({"seq_len": 0}, "seq_len must be above 0, not 0"),
        ({"lr": -1.0}, r"lr must be above 0, not -1\.0"),
        ({"warmup_ratio": 1.5}, r"warmup_ratio must be between 0 and 1, not 1\.5"),
        ({"ramp": BatchRamp(start=12, increment=8, every=1)}, r"ramp\.start 12 is no multiple of seq_len 8"),
        ({"ramp": BatchRamp(start=8, increment=4, every=1)}, r"ramp\.increment 4 is no multiple of seq_len 8"),
        ({"ramp": BatchRamp(start=64, increment=8, every=1)}, r"ramp\.start 64 must be below batch_tokens 64"),
    ],
)
def test_errors_name_the_phase(changes: dict[str, object], problem: str) -> None:
    values: dict[str, object] = {"name": "warm", "steps": 3, "seq_len": 8, "batch_tokens": 64}
    with pytest.raises(RecipeError, match=f"^phase warm: .*{problem}"):
        Phase(**{**values, **changes})  # type: ignore[arg-type]


def test_all_problems_of_a_phase_at_once(tmp_path: Path) -> None:
    (tmp_path / "phase.yaml").write_text("{name: one, seq_len: 8, batch_tokens: 20, lr: 0, decay_ratio: 2}")
    with pytest.raises(RecipeError) as error:
        load_recipe(Phase, tmp_path / "phase.yaml")
    assert str(error.value).endswith(
        "phase one: lr must be above 0, not 0.0; decay_ratio must be between 0 and 1, not 2.0; "
        "give either tokens or steps; batch_tokens 20 is no multiple of seq_len 8"
    )
    with pytest.raises(RecipeError, match="every must be above 0, not 0"):
        BatchRamp(start=1, increment=1, every=0)
