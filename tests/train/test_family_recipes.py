"""Recipes of the family: they load, their numbers are the published ones, their plans fit the GPUs that they name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from puyulm.model.presets import preset
from puyulm.parallel.search import Candidate, Hardware, candidate, search
from puyulm.recipe import dump_recipe, load_recipe
from puyulm.train.checks import recipe_problems, shape_of, works_of, world_size
from puyulm.train.dry_run import Machine
from puyulm.train.phases import Timeline
from puyulm.train.pretrain import FromCheckpoint, PretrainRecipe

FOLDER = Path(__file__).resolve().parents[2] / "recipes" / "pretrain"
FAMILY = ("internlm-7b", "internlm-20b", "internlm2-1_8b", "internlm2-7b", "internlm2-20b", "internlm3-8b")
TRILLION = 10**12


def recipe(name: str) -> PretrainRecipe:
    return load_recipe(PretrainRecipe, FOLDER / f"{name}.yaml")


def timeline(name: str) -> Timeline:
    return Timeline(recipe(name).phases, recipe(name).settings)


def gpus_named(name: str) -> int:
    """As the comment over the plan says."""
    found = re.search(r"^# (\d+) GPUs of 80 GB$", (FOLDER / f"{name}.yaml").read_text("utf-8"), re.MULTILINE)
    assert found is not None
    return int(found[1])


def test_every_recipe_is_tested() -> None:
    assert {path.stem for path in FOLDER.glob("*.yaml")} == {*FAMILY, "laptop", "continue-7b"}


@pytest.mark.parametrize("name", [*FAMILY, "laptop", "continue-7b"])
def test_recipes_load_and_read_back(name: str, tmp_path: Path) -> None:
    ours = recipe(name)
    assert recipe_problems(ours) == []
    (tmp_path / "again.yaml").write_text(dump_recipe(ours), encoding="utf-8")
    assert load_recipe(PretrainRecipe, tmp_path / "again.yaml") == ours
    assert ours.out == Path("runs/pretrain") / name
    assert ours.settings.dtype == ("float32" if name == "laptop" else "bfloat16")


@pytest.mark.parametrize("name", FAMILY)
def test_shapes_and_settings(name: str) -> None:
    ours, settings = recipe(name), recipe(name).settings
    assert shape_of(ours) == preset(name).config
    assert (settings.lr, settings.min_lr_ratio, settings.schedule) == (3e-4, 0.1, "cosine")
    assert (settings.betas, settings.eps, settings.weight_decay, settings.clip_norm) == ((0.9, 0.95), 1e-8, 0.1, 1.0)
    assert settings.spikes.sigma == 6.0 and settings.tensorboard


@pytest.mark.parametrize(("name", "total", "batch"), [
    ("internlm2-1_8b", 2.0e12, 4 * 2**20), ("internlm2-7b", 2.6e12, 4 * 2**20), ("internlm2-20b", 2.6e12, 5 * 2**20),
])  # fmt: skip
def test_three_phases_of_internlm2(name: str, total: float, batch: int) -> None:
    """Report, section 3.3: about 90 % at 4K, 9 % at 32K, then 24.40B tokens."""
    times = timeline(name)
    first, second, third = (times.phase_steps(index) for index in range(3))
    tokens = [times.phase_rows(index) * phase.seq_len for index, phase in enumerate(times.phases)]
    assert times.total_tokens == pytest.approx(total, rel=1e-5) and tokens[2] == pytest.approx(24.4e9, rel=1e-3)
    assert tokens[0] / total == pytest.approx(0.90, abs=0.002) and tokens[1] / total == pytest.approx(0.09, abs=0.003)
    assert [times.tokens(step) for step in (0, second.start)] == [batch, batch] and times.tokens(third.start) < batch
    assert [phase.seq_len for phase in times.phases[:2]] == [4096, 32_768]
    assert [times.rope_theta(steps.start) for steps in (first, second, third)] == [5e4, 1e6, 1e6]
    assert times.lr(round(0.01 * second.stop) + 5) == pytest.approx(3e-4, rel=1e-3)
    assert times.lr(second.stop - 1) == pytest.approx(3e-5) and times.lr(second.start) > 3e-5
    assert max(times.lr(step) for step in (third.start, third.stop - 1)) <= 3e-5


@pytest.mark.parametrize(("name", "tokens", "seq_len", "theta"), [
    ("internlm3-8b", 4 * TRILLION, 32_768, 5e7), ("internlm-20b", 2.3 * TRILLION, 4096, 1e4),
    ("internlm-7b", TRILLION, 2048, 1e4),
])  # fmt: skip
def test_other_generations(name: str, tokens: float, seq_len: int, theta: float) -> None:
    times = timeline(name)
    assert times.total_tokens == pytest.approx(tokens, rel=1e-5)
    assert times.phases[-1].seq_len == seq_len and times.rope_theta(times.steps - 1) == theta
    assert times.lr(times.steps - 1) == pytest.approx(3e-5)


@pytest.mark.parametrize("name", [*FAMILY, "continue-7b"])
def test_plans_fit_the_gpus_they_name_and_are_among_the_best(name: str) -> None:
    ours = recipe(name)
    assert world_size(ours) == gpus_named(name)
    machine = Machine(kind="cuda", hardware=Hardware(gpus=world_size(ours)), assumed=())
    job, works, hardware = machine.job(ours, shape_of(ours)), works_of(ours), machine.hardware
    chosen = candidate(job, works, hardware, ours.parallel.resolved(hardware.gpus), ours.micro_tokens)
    assert chosen.memory.total <= hardware.usable
    best: Candidate = search(job, works, hardware, base=ours.parallel, best=1)[0]
    assert chosen.run_seconds <= 1.02 * best.run_seconds


def test_going_on_from_a_checkpoint() -> None:
    ours = recipe("continue-7b")
    assert ours.model == FromCheckpoint(from_="internlm2-base-7b")
    assert shape_of(ours) == preset("internlm2-base-7b").config
    assert isinstance(ours.data, dict) and sum(ours.data.values()) == 1.0


def test_the_laptop_needs_little() -> None:
    ours = recipe("laptop")
    times = Timeline(ours.phases, ours.settings)
    assert times.steps < 1000 and ours.parallel.resolved(1).world_size == 1 and ours.mixture is not None
    small = (FOLDER.parent / "data" / "small.yaml").read_text("utf-8")
    assert "out: runs/data/small\n" in small and "name: phase-1" in small and ours.phases[0].name == "phase-1"
    stages = [line for line in small.splitlines() if line.startswith("  - ")]
    assert ours.mixture == Path(f"runs/data/small/{len(stages):02d}-mix")
