"""Pipelines: the same bytes on any number of workers, only what is needed again, and on after a kill."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import textwrap
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from puyulm.data.documents import read_documents
from puyulm.data.mixing.settings import MixSettings, Phase, TokenizeSettings
from puyulm.data.pipeline.executor import ProcessExecutor, RayExecutor, SerialExecutor
from puyulm.data.pipeline.recipe import DataRecipe, Step
from puyulm.data.pipeline.run import load_results, run_pipeline
from puyulm.data.pipeline.stage import STAGE_FILE, StageRun, clear_stage, group_by_size, shards_in
from puyulm.errors import DataError, RecipeError
from tests.data.pipeline.stages import Make, Thirds


def _recipe(out: Path, make: Make = Make(), thirds: Thirds = Thirds(), **options: Any) -> DataRecipe:  # noqa: B008
    steps = (Step(format=make), Step(name="thirds", clean=thirds))  # type: ignore[arg-type]
    return DataRecipe(out, steps, task_mb=1e-4, **options)


def _contents(out: Path) -> dict[str, str]:
    """Every shard of documents by name and hash."""
    return {
        str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.rglob("[0-9]*.*"))
        if path.is_file() and path.suffix != ".json"
    }


def test_kept_dropped_and_counted(tmp_path: Path) -> None:
    make, thirds = run_pipeline(_recipe(tmp_path / "out"), SerialExecutor())
    kept = [d for path in shards_in(thirds.folder) for d in read_documents(path)]
    dropped = [d for path in shards_in(thirds.folder / "dropped") for d in read_documents(path)]
    assert [d.id for d in kept] == [f"d{n}-{i}" for n in range(4) for i in range(30) if i % 3]
    assert all(d.text.endswith("!") for d in kept)
    assert len(dropped) == 40
    assert {d.metadata["dropped"] for d in dropped} == {"thirds: divisible"}
    assert make.counts.documents_out == thirds.counts.documents_in == 120
    assert thirds.counts.documents_out == 80
    assert thirds.counts.bytes_out == sum(d.num_bytes for d in kept)
    assert thirds.counts.dropped == {"thirds: divisible": [40, sum(d.num_bytes for d in dropped)]}
    assert sum(d for languages in thirds.counts.groups.values() for d, _ in languages.values()) == 80
    assert sum(thirds.counts.lengths) == 80 == thirds.counts.lengths[(41).bit_length()]
    assert len(thirds.counts.dropped_samples["thirds: divisible"]) == 4
    assert [r.label for r in load_results(tmp_path / "out")] == ["format", "thirds"]


def test_the_same_bytes_with_one_or_three_workers(tmp_path: Path) -> None:
    run_pipeline(_recipe(tmp_path / "a"), SerialExecutor())
    executor = ProcessExecutor(3)
    try:
        run_pipeline(_recipe(tmp_path / "b"), executor)
    finally:
        executor.close()
    assert _contents(tmp_path / "a") == _contents(tmp_path / "b") != {}


def test_the_same_bytes_on_ray(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    run_pipeline(_recipe(tmp_path / "a"), SerialExecutor())
    executor = RayExecutor(2)
    try:
        results = run_pipeline(_recipe(tmp_path / "b"), executor)
        with pytest.raises(DataError, match="no documents at"):
            list(executor.run(_read, [tmp_path / "missing.jsonl"]))
    finally:
        executor.close()
    assert _contents(tmp_path / "a") == _contents(tmp_path / "b") != {}
    assert results[-1].counts.documents_out == 80


def _read(path: Path) -> int:
    return sum(1 for _ in read_documents(path))


def test_a_second_run_does_nothing_and_a_change_only_what_it_touches(tmp_path: Path) -> None:
    recipe = _recipe(tmp_path / "out")
    assert [r.reused for r in run_pipeline(recipe, SerialExecutor())] == [False, False]
    assert [r.reused for r in run_pipeline(recipe, SerialExecutor())] == [True, True]
    changed = _recipe(tmp_path / "out", thirds=Thirds(mark="?"), workers=2)
    results = run_pipeline(changed, SerialExecutor())
    assert [r.reused for r in results] == [True, False]
    assert next(iter(read_documents(shards_in(results[1].folder)[0]))).text.endswith("?")
    results = run_pipeline(replace(changed, task_mb=2e-4), SerialExecutor())
    assert [r.reused for r in results] == [False, False]


def test_a_file_that_settings_name_is_part_of_them(tmp_path: Path) -> None:
    words = tmp_path / "words.txt"
    words.write_text("a\n")
    recipe = _recipe(tmp_path / "out", thirds=Thirds(words=words))
    run_pipeline(recipe, SerialExecutor())
    assert [r.reused for r in run_pipeline(recipe, SerialExecutor())] == [True, True]
    words.write_text("a\nb\n")
    assert [r.reused for r in run_pipeline(recipe, SerialExecutor())] == [True, False]


def test_a_killed_worker_is_told_and_finished_tasks_stay(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    alive = tmp_path / "alive"
    thirds = Thirds(die_at="d2-4", alive=str(alive), log=str(tmp_path / "log"))
    recipe = _recipe(tmp_path / "out", thirds=thirds)
    executor = ProcessExecutor(2)
    with pytest.raises(DataError, match="a worker process was killed"):
        run_pipeline(recipe, executor)
    done = sorted((tmp_path / "out/02-thirds/tasks").glob("*.json"))
    assert len(done) < 4
    before = {path: path.stat().st_mtime_ns for path in done}
    alive.touch()
    results = run_pipeline(recipe, executor)
    executor.close()
    assert [r.reused for r in results] == [True, False]
    assert {path: path.stat().st_mtime_ns for path in done} == before
    run_pipeline(_recipe(tmp_path / "whole", thirds=thirds), SerialExecutor())
    assert _contents(tmp_path / "out") == _contents(tmp_path / "whole")


@pytest.mark.parametrize("killed_after", [1, 2, 5, 7])
def test_kill_9_of_the_whole_run(tmp_path: Path, killed_after: int) -> None:
    """The parent and its workers are killed at the n-th finished task, or in the middle of the next."""
    code = f"""
        import os, signal
        from pathlib import Path
        from puyulm.data.pipeline import stage
        from puyulm.data.pipeline.executor import ProcessExecutor
        from puyulm.data.pipeline.run import run_pipeline
        from tests.data.pipeline.test_run import _recipe
        if __name__ == "__main__":
            real, seen = stage.replacing, 0
            def counting(path):
                global seen
                if path.parent.name == "tasks":
                    seen += 1
                    if seen > {killed_after}:
                        os.kill(os.getpid(), signal.SIGKILL)
                return real(path)
            stage.replacing = counting
            run_pipeline(_recipe(Path("out")), ProcessExecutor(2))
    """
    (tmp_path / "run.py").write_text(textwrap.dedent(code))
    root = str(Path(__file__).parents[3])
    killed = subprocess.run([sys.executable, "run.py"], cwd=tmp_path, env={**os.environ, "PYTHONPATH": root})
    assert killed.returncode == -9
    assert not all(r.reused for r in load_results(tmp_path / "out")) or len(load_results(tmp_path / "out")) < 2
    run_pipeline(_recipe(tmp_path / "out"), SerialExecutor())
    run_pipeline(_recipe(tmp_path / "whole"), SerialExecutor())
    assert _contents(tmp_path / "out") == _contents(tmp_path / "whole")
    assert not list((tmp_path / "out").rglob("*.partial"))


def test_a_lost_or_cut_shard_is_made_again(tmp_path: Path) -> None:
    recipe = _recipe(tmp_path / "out")
    run_pipeline(recipe, SerialExecutor())
    whole = _contents(tmp_path / "out")
    stage = tmp_path / "out/02-thirds"
    (stage / "00001.jsonl.zst").write_bytes(b"cut")
    (stage / "00002.jsonl.zst").unlink()
    state = json.loads((stage / "stage.json").read_text())
    (stage / "stage.json").write_text(json.dumps({**state, "done": False}))
    run_pipeline(recipe, SerialExecutor())
    assert _contents(tmp_path / "out") == whole


def test_lost_shards_of_a_finished_stage_are_told(tmp_path: Path) -> None:
    recipe, changed = (_recipe(tmp_path / "out", thirds=Thirds(mark=mark)) for mark in "!?")
    run_pipeline(recipe, SerialExecutor())
    (tmp_path / "out/01-format/00001.jsonl.zst").unlink()
    assert [r.reused for r in run_pipeline(recipe, SerialExecutor())] == [True, True]  # it is not needed
    with pytest.raises(
        DataError, match=r"00001\.jsonl\.zst is gone or has changed: put it back, or remove .*01-format"
    ):
        run_pipeline(changed, SerialExecutor())
    shutil.rmtree(tmp_path / "out/01-format")
    results = run_pipeline(changed, SerialExecutor())
    assert [(r.reused, r.counts.documents_in) for r in results] == [(False, 120), (False, 120)]


def test_parquet_shards(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    run_pipeline(_recipe(tmp_path / "a"), SerialExecutor())
    run_pipeline(_recipe(tmp_path / "b", shards="parquet"), SerialExecutor())
    a, b = ([d for p in shards_in(tmp_path / x / "02-thirds") for d in read_documents(p)] for x in "ab")
    assert a == b
    assert len(list((tmp_path / "b/02-thirds").glob("*.parquet"))) == 4


def test_a_folder_of_something_else_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(DataError, match="holds other files than a pipeline's"):
        run_pipeline(_recipe(tmp_path), SerialExecutor())
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]


def test_two_runs_in_one_folder(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with open(out / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(DataError, match="another run works in"):
            run_pipeline(_recipe(out), SerialExecutor())


def test_nothing_left(tmp_path: Path) -> None:
    steps = (Step(format=Make(documents=1)), Step(name="a", clean=Thirds()), Step(name="b", clean=Thirds()))  # type: ignore[arg-type]
    with pytest.raises(DataError, match="no documents are left for the stage 'b'"):
        run_pipeline(DataRecipe(tmp_path / "out", steps), SerialExecutor())


def test_recipes_that_make_no_sense() -> None:
    with pytest.raises(RecipeError, match="exactly one kind"):
        Step()
    with pytest.raises(RecipeError, match="found 2 \\(format, clean\\)"):
        Step(format=Make(), clean=Thirds())  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match="first stage must be 'format'"):
        DataRecipe(Path("x"), (Step(clean=Thirds()),))  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match="two stages are called 'clean'"):
        DataRecipe(Path("x"), (Step(format=Make()), Step(clean=Thirds()), Step(clean=Thirds())))  # type: ignore[arg-type]
    first: Any = Step(format=Make())  # type: ignore[arg-type]
    tokens, mixed = Step(tokenize=TokenizeSettings(Path("t"))), Step(mix=MixSettings((Phase("p", 1, {"*": 1.0}),)))
    assert len(DataRecipe(Path("x"), (first, tokens, mixed)).stages) == 3
    with pytest.raises(RecipeError, match="'mix' mixes tokens: put it behind 'tokenize', not 'format'"):
        DataRecipe(Path("x"), (first, mixed))
    with pytest.raises(RecipeError, match="'clean' reads documents, and 'tokenize' before it writes tokens"):
        DataRecipe(Path("x"), (first, tokens, Step(clean=Thirds())))  # type: ignore[arg-type]


def test_a_task_that_ray_loses() -> None:
    class RayError(Exception):
        pass

    class RayTaskError(RayError):
        pass

    def get(_: object) -> None:
        raise RayError("The worker died.\nMore of it.")

    executor = RayExecutor.__new__(RayExecutor)
    errors = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)
    executor._ray = SimpleNamespace(get=get, exceptions=errors)
    with pytest.raises(DataError, match=r"Ray lost a task \(The worker died\.\): run the same command again"):
        executor._result(None)


def test_files_in_groups(tmp_path: Path) -> None:
    sizes = [5, 5, 30, 1, 9, 1]
    paths = [tmp_path / str(i) for i in range(len(sizes))]
    for path, size in zip(paths, sizes, strict=True):
        path.write_bytes(b"x" * size)
    assert [[p.stat().st_size for p in group] for group in group_by_size(paths, 10)] == [[5, 5], [30], [1, 9], [1]]


def test_up_to_a_stage_and_on(tmp_path: Path) -> None:
    recipe = _recipe(tmp_path / "out")
    assert [r.label for r in run_pipeline(recipe, SerialExecutor(), until="format")] == ["format"]
    assert [r.reused for r in run_pipeline(recipe, SerialExecutor())] == [True, False]
    with pytest.raises(DataError, match="no stage 'cleen' to run until: the stages are format, thirds"):
        run_pipeline(recipe, SerialExecutor(), until="cleen")


def test_missing_files_are_told_before_any_work(tmp_path: Path) -> None:
    recipe = _recipe(tmp_path / "out", thirds=Thirds(words=tmp_path / "nowhere.txt"))
    with pytest.raises(DataError, match=r"the stage 'thirds' needs .*nowhere\.txt, which is not there"):
        run_pipeline(recipe, SerialExecutor())
    assert not (tmp_path / "out").exists()


def test_stages_of_an_earlier_state_are_no_results(tmp_path: Path) -> None:
    out = tmp_path / "out"
    run_pipeline(_recipe(out), SerialExecutor())
    run_pipeline(_recipe(out, make=Make(tasks=2)), SerialExecutor(), until="format")
    assert (out / "02-thirds" / STAGE_FILE).exists()  # of the other input
    assert [r.label for r in load_results(out)] == ["format"]
    run_pipeline(_recipe(out), SerialExecutor(), until="format")
    assert [r.label for r in load_results(out)] == ["format", "thirds"]


def test_a_kill_while_an_earlier_run_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = _recipe(tmp_path / "out")
    run_pipeline(recipe, SerialExecutor())
    folder = tmp_path / "out/02-thirds"

    def killed(path: Path) -> None:
        (Path(path) / "tasks-000.json").unlink(missing_ok=True)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            clear_stage(folder)
    assert (folder / STAGE_FILE).is_file()
    changed = _recipe(tmp_path / "out", thirds=Thirds(mark="?"))
    assert run_pipeline(changed, SerialExecutor())[-1].counts.documents_out == 80


def test_shards_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for number in (100_000, 99_999, 3):
        (tmp_path / f"{number:05d}.jsonl.zst").touch()
    assert [path.name[:-10] for path in shards_in(tmp_path)] == ["00003", "99999", "100000"]


def test_samples_do_not_stay_in_memory(tmp_path: Path) -> None:
    stage = StageRun("make", tmp_path, [], None, SerialExecutor(), "jsonl.zst", 1)
    for _ in ("run", "go on"):
        results = stage.map("words", _counted, ["a", "b"])
        assert [set(result) & {"counts", "word"} for result in results] == [{"word"}, {"word"}]
    marks = [json.loads(path.read_text()) for path in sorted((tmp_path / "tasks").glob("*.json"))]
    assert [mark["counts"]["documents_in"] for mark in marks] == [1, 1]


def _counted(word: str) -> dict[str, Any]:
    return {"word": word, "counts": {"documents_in": 1}}


def test_a_large_function_travels_once_and_another_follows(tmp_path: Path) -> None:
    executor = ProcessExecutor(2)
    try:
        for extra in (1, 2):
            function = partial(_sum, many=list(range(20_000)), extra=extra)
            expected = [(i, sum(range(20_000)) + 10 * i + 10 + extra) for i in range(3)]
            assert sorted(executor.run(function, [10, 20, 30])) == expected
    finally:
        executor.close()


def _sum(task: int, many: list[int], extra: int) -> int:
    return sum(many) + task + extra


def test_settings_are_tried_before_any_work(tmp_path: Path) -> None:
    recipe = _recipe(tmp_path / "out", thirds=Thirds())
    run_pipeline(recipe, SerialExecutor())
    wrong = _recipe(tmp_path / "out", thirds=Thirds(mark="broken"))
    before = _contents(tmp_path / "out")
    with pytest.raises(DataError, match="cannot be loaded"):
        run_pipeline(wrong, SerialExecutor())
    assert _contents(tmp_path / "out") == before


def test_folders_that_are_no_stage_any_more_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_pipeline(_recipe(tmp_path / "out"), SerialExecutor())
    run_pipeline(DataRecipe(tmp_path / "out", (Step(format=Make()),), task_mb=1e-4), SerialExecutor())  # type: ignore[arg-type]
    assert "02-thirds is no stage of this recipe any more" in capsys.readouterr().err


def test_an_output_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("x")
    with pytest.raises(DataError, match="out is a file: name a folder"):
        run_pipeline(_recipe(tmp_path / "out"), SerialExecutor())


def test_documents_are_counted_inside_tasks(tmp_path: Path) -> None:
    executor = ProcessExecutor(2)
    try:
        run_pipeline(_recipe(tmp_path / "out"), executor)
        assert executor.outcomes() == (120 + 80, 40)
    finally:
        executor.close()
