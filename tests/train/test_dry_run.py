"""What a recipe takes, told without its files; problems of a recipe told together; and the flags of the verb."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from puyulm.cli import main
from puyulm.data.documents import Document
from puyulm.data.shards import tokenize_documents
from puyulm.errors import RecipeError
from puyulm.parallel.plan import ParallelPlan
from puyulm.parallel.search import Hardware
from puyulm.recipe import load_recipe
from puyulm.train.checks import check_recipe, recipe_problems, works_of
from puyulm.train.dry_run import Machine, describe_plans, describe_run, epochs, missing_files
from puyulm.train.phases import Phase
from puyulm.train.pretrain import PretrainRecipe
from puyulm.train.settings import TrainSettings
from tests.text.small_tokenizers import CHATML, small_tokenizer

ROOT = Path(__file__).resolve().parents[2]
SEVEN = "recipes/pretrain/internlm2-7b.yaml"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder beside a link to the recipes, as one process."""
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    monkeypatch.chdir(tmp_path)
    for name in ("WORLD_SIZE", "RANK"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def recipe(**changes: object) -> PretrainRecipe:
    return replace(load_recipe(PretrainRecipe, ROOT / SEVEN), **changes)  # type: ignore[arg-type]


def machine(gpus: int = 128, **hardware: object) -> Machine:
    return Machine(kind="cuda", hardware=Hardware(gpus=gpus, **hardware), assumed=())  # type: ignore[arg-type]


def row(text: str, name: str) -> list[str]:
    """The cells of a table's row behind its name."""
    (line,) = (line for line in text.splitlines() if line.startswith(f"{name}  "))
    return line[len(name) :].split()


def test_phases_and_hours_by_hand() -> None:
    ours = recipe(phases=(Phase(tokens=8_000_000, seq_len=4096, batch_tokens=2**22),))
    text, fits = describe_run(ours, machine(mfu=0.5, peak=1e15))
    assert fits
    # 2 steps of 1,024 rows; 6 * (32 layers * 218,103,808 + 4096 * 92,544) + 12 * 32 * 4096 * 4096 a token
    flops = 2 * 2**22 * (6 * (32 * 218_103_808 + 4096 * 92_544) + 12 * 32 * 4096 * 4096)
    cells = row(text, "train")
    assert cells[:4] == ["8,388,608", "4,096", "4,194,304", "4"] and cells[5] == "32,768" and cells[6] == "2"
    assert cells[8] == f"{flops:.3e}" and float(cells[9]) == pytest.approx(flops / 128 / 0.5e15 / 3600, rel=1e-3)
    assert float(cells[10]) == pytest.approx(128 / 24 * float(cells[9]), rel=1e-3)


def test_memory_of_each_phase_and_stage() -> None:
    text, fits = describe_run(recipe(), machine())
    assert fits and text.count("in all") == 1
    assert row(text, "parameters, float32") == ["922.41", "MiB"]  # 4 bytes of 7,737,708,544 / 32
    small, fits = describe_run(recipe(), machine(memory=40 * 2**30))
    assert not fits and "DOES NOT FIT" in small
    piped = recipe(parallel=ParallelPlan(pipeline=4, shard=4), phases=recipe().phases[:1], micro_tokens=4096)
    text, _ = describe_run(piped, machine(16))
    assert "4k, stage rank 0" in text and "4k, stage rank 3" in text
    first, last = row(text, "activations")[0], row(text, "activations")[-2]
    assert float(first) > 3 * float(last)


def test_the_best_plans_and_the_snippet(here: Path) -> None:
    text, found = describe_plans(recipe(), machine(), 64)
    assert found and text.count("\n1  ") == 1 and "5  " in text
    snippet = text.split("for a recipe:\n\n")[1].split("\n\n")[0]
    values = yaml.safe_load(snippet)
    pasted = here / "pasted.yaml"
    old = yaml.safe_load((ROOT / SEVEN).read_text("utf-8"))
    pasted.write_text(yaml.safe_dump({**old, **values}), encoding="utf-8")
    again = load_recipe(PretrainRecipe, pasted)
    assert again.parallel.compile and recipe_problems(again) == []
    whole, fits = describe_run(again, machine(64))
    assert fits and row(whole, "in all") == row(text, "in all")
    none, found = describe_plans(recipe(), machine(memory=10 * 2**30), 8)
    assert not found and "no plan fits 8 GPUs" in none


def test_what_is_missing_and_what_is_there(here: Path) -> None:
    assert missing_files(recipe())[:2] == ["tokenizer tokenizers/internlm2", "data runs/data/web/09-mix/4k/train"]
    documents = [Document(f"{n}", "one two three four five", "en", "rhymes") for n in range(9)]
    tokenizer = small_tokenizer(here / "tokenizer", CHATML)
    count = tokenize_documents(documents, tokenizer, here / "shards").num_tokens
    ours = recipe(
        mixture=None, data={str(here / "shards"): 3.0, "nowhere": 1.0}, tokenizer=here / "tokenizer",
        phases=(Phase(tokens=4096, seq_len=64, batch_tokens=1024),),
    )  # fmt: skip
    assert missing_files(ours) == ["data nowhere"]
    assert epochs(ours) == [f"{here}/shards: {count:,} tokens, read {3072 / count:.2f} times"]


def test_all_problems_of_a_recipe() -> None:
    plan = ParallelPlan(tensor=3, pipeline=40, shard=5)
    ours = recipe(
        parallel=plan,
        phases=(Phase(name="a", tokens=1e9, seq_len=65_536, batch_tokens=2**20),),  # type: ignore[arg-type]
    )
    with pytest.raises(RecipeError) as caught:
        check_recipe(ours, "x.yaml")
    text = str(caught.value)
    found = ("x.yaml has 4 problems", "parallel.tensor 3", "into 40 stages", "seq_len 65,536", "phase a: 16 rows")
    for expected in found:
        assert expected in text, text
    assert recipe_problems(recipe(model="internlm2-7bb"))[0].startswith("model: unknown model 'internlm2-7bb'")
    few = recipe(parallel=ParallelPlan(pipeline=8, shard=16), micro_tokens=32_768)
    assert any("phase enhance" in problem and "needs at least 8" in problem for problem in recipe_problems(few))


def test_ranks_that_torchrun_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "64")
    assert "128 ranks, but there are 64" in recipe_problems(recipe())[0]
    assert recipe_problems(recipe(parallel=ParallelPlan(context=4))) == []


def test_a_ramp_is_several_kinds_of_steps() -> None:
    from puyulm.train.phases import BatchRamp

    phase = Phase(
        steps=10, seq_len=1024, batch_tokens=4096, ramp=BatchRamp(start=1024, increment=1024, every=2), lr=1e-3
    )  # fmt: skip
    assert [(work.rows, work.steps) for work in works_of(recipe(phases=(phase,)))] == [(1, 2), (2, 2), (3, 2), (4, 4)]


def test_the_verb(here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["train", SEVEN, "--dry-run", "--settings.lr", "1e-4", "--mfu", "0.5", "--memory=80GiB"]) == 0
    text = capsys.readouterr().out
    assert "at an MFU of 50%" in text and "Not here yet" in text and not (here / "runs").exists()
    assert main(["train", "--dry-run", SEVEN, "--memory", "40GiB"]) == 1
    assert "DOES NOT FIT" in capsys.readouterr().out
    assert main(["train", SEVEN, "--dry-run", "--gpus", "16", "--settings.state_dtype", "bfloat16"]) == 0
    assert "optimizer, bfloat16" in capsys.readouterr().out
    for wrong, message in (
        (["--memory", "many"], "'many' is not a size"),
        (["--mfu", "1.5"], "--mfu must be above 0"),
        (["--gpus", "0"], "--gpus must be at least 1"),
        (["--settings.lrr", "1"], "unknown key 'settings.lrr'"),
        (["--parallel.tensor", "3"], "parallel.tensor 3 does not divide"),
    ):
        assert main(["train", SEVEN, "--dry-run", *wrong]) == 2
        error = capsys.readouterr().err
        assert error.startswith("puyu train: ") and message in error
    monkeypatch.setenv("RANK", "1")
    assert main(["train", SEVEN, "--dry-run"]) == main(["train", SEVEN, "--print-recipe"]) == 0
    assert capsys.readouterr().out == ""


def test_a_cpu_is_told_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "recipes/pretrain/laptop.yaml", "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "1 CPU process" in text and "measured on this CPU" in text and "optimizer, float32" in text
    settings = TrainSettings(device="cpu", peak_tflops=0.5)
    given = {"memory": None, "peak_tflops": None, "mfu": 0.4, "gpus_per_node": 8, "bandwidth": 1, "node_bandwidth": 1}
    found = Machine.of(recipe(settings=settings, parallel=ParallelPlan()), **given)  # type: ignore[arg-type]
    assert (found.kind, found.hardware.peak, found.assumed) == ("cpu", 5e11, ())
