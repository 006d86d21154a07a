"""The stage: what happens to documents with text of an evaluation set, and what is written down about it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from puyulm.data.decontaminate.settings import DecontaminateSettings, EvalSet
from puyulm.data.documents import Document, read_documents, write_documents
from puyulm.data.pipeline.counts import Counts, Dropped
from puyulm.data.pipeline.executor import ProcessExecutor, SerialExecutor
from puyulm.data.pipeline.stage import StageRun
from puyulm.errors import DataError

ITEM = "Seven grey geese fly over the long lake at dawn while the miller counts them twice and writes down nine"
OTHER = "The keeper of the northern lighthouse trims the great lamp every evening before the first ships come in"
WORDS = "The coast is calm today and the boats lie in the bay. "


@pytest.fixture
def settings(tmp_path: Path) -> DecontaminateSettings:
    for name, item in (("geese", ITEM), ("lamp", OTHER)):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"question": item}))
    sets = tuple(EvalSet(name, (tmp_path / f"{name}.jsonl",)) for name in ("geese", "lamp"))
    return DecontaminateSettings(sets, margin=10, min_left=50)


def document(text: str, **fields: object) -> Document:
    return Document("d", text, "en", "s", metadata={"kept": 1}, **fields)  # type: ignore[arg-type]


def test_clean_documents_are_not_touched(settings: DecontaminateSettings) -> None:
    documents = [document(WORDS * n) for n in (0, 1, 40)]
    assert list(settings.transform()(documents)) == documents


def test_drop_and_mark(settings: DecontaminateSettings) -> None:
    text = f"{WORDS}{ITEM}. {WORDS}{OTHER}. {' '.join(ITEM.split()[:13])} and so on"
    [dropped] = settings.transform()([document(text)])
    assert isinstance(dropped, Dropped) and dropped.reason == "decontaminate: geese"
    [marked] = replace(settings, action="mark").transform()([document(text)])
    assert marked == dropped.document
    assert marked.text == text and marked.metadata["kept"] == 1
    assert marked.metadata["contamination"] == [
        {"set": "geese", "item": "geese.jsonl#0", "share": 1.0, "text": ITEM},
        {"set": "lamp", "item": "lamp.jsonl#0", "share": 1.0, "text": OTHER},
        {"set": "geese", "item": "geese.jsonl#0", "share": 0.65, "text": " ".join(ITEM.split()[:13])},
    ]  # fmt: skip


def test_cut(settings: DecontaminateSettings) -> None:
    before, after = "First paragraph. " * 8 + "Last words", "New words begin. " * 8
    cut = replace(settings, action="cut", margin=10)
    [outcome] = cut.transform()([document(f"{before}\n{ITEM}\n{after}{OTHER}")])
    # Ten characters on each side, and on to the next end of a word.
    assert outcome.text == "First paragraph. " * 8 + "\n begin. " + "New words begin. " * 6 + "New "
    assert [hit["set"] for hit in outcome.metadata["contamination"]] == ["geese", "lamp"]
    [outcome] = replace(cut, margin=0).transform()([document(f"{before}\n{ITEM}\n{after}{OTHER}")])
    assert outcome.text == before + "\n" + after


def test_documents_of_which_cutting_leaves_little_are_dropped(settings: DecontaminateSettings) -> None:
    settings = replace(settings, action="cut")
    [outcome] = settings.transform()([document(f"Intro. {ITEM}. The end.")])
    assert isinstance(outcome, Dropped) and outcome.reason == "decontaminate: geese"
    text = (WORDS * 3 + ITEM + ". ") * 4
    assert not isinstance(next(iter(settings.transform()([document(text)]))), Dropped)
    assert isinstance(next(iter(replace(settings, max_cuts=3).transform()([document(text)]))), Dropped)


def test_cutting_chinese_and_odd_text(tmp_path: Path) -> None:
    item = "今年春天山里的桃花开得比往年早了整整十二天老人们都说这是好收成的兆头"
    (tmp_path / "a.jsonl").write_text(json.dumps({"question": item}))
    settings = DecontaminateSettings((EvalSet("a", (tmp_path,)),), action="cut", margin=0, min_left=1)
    [outcome] = settings.transform()([document(f"前面的话{item}后面的话\ud800\0")])
    assert outcome.text == "前面的话\n后面的话\ud800\0"
    assert outcome.metadata["contamination"][0]["text"] == item


def test_a_run_counts_hits_and_does_not_depend_on_workers(settings: DecontaminateSettings, tmp_path: Path) -> None:
    texts = [WORDS * 9, f"{WORDS}{ITEM}", f"{OTHER} {ITEM}", OTHER, WORDS]
    inputs = [tmp_path / "in" / f"{n:05d}.jsonl.zst" for n in range(3)]
    for n, path in enumerate(inputs):
        write_documents(path, [Document(f"{n}-{i}", text, "en", "s") for i, text in enumerate(texts)])
    made = []
    for name, executor in (("a", SerialExecutor()), ("b", ProcessExecutor(2))):
        stage = StageRun("decontaminate", tmp_path / name, inputs, None, executor, "jsonl.zst", 1)
        settings.run(stage)
        executor.close()
        made.append({p.relative_to(stage.folder): p.read_bytes() for p in stage.folder.rglob("*.jsonl.zst")})
    assert made[0] == made[1] and len(made[0]) == 6
    tasks = [json.loads(path.read_text()) for path in sorted((tmp_path / "a" / "tasks").glob("*.json"))]
    counts = Counts.merged(task["counts"] for task in tasks)
    assert (counts.documents_in, counts.documents_out) == (15, 6)
    assert {reason: pair[0] for reason, pair in counts.dropped.items()} == {
        "decontaminate: geese": 6, "decontaminate: lamp": 3}  # fmt: skip
    assert counts.notes == {"documents with text of geese": 6, "documents with text of lamp": 6}
    dropped = list(read_documents(tmp_path / "a" / "dropped" / "00000.jsonl.zst"))
    assert [len(d.metadata["contamination"]) for d in dropped] == [1, 2, 1]


def test_bad_sets_are_refused_before_any_task(settings: DecontaminateSettings, tmp_path: Path, capsys) -> None:
    settings.sets[1].paths[0].write_text(json.dumps({"question": "too short"}))
    settings.run(StageRun("d", tmp_path / "out", [], None, SerialExecutor(), "jsonl.zst", 1))
    assert "d: 1 texts of lamp are too short to look for" in capsys.readouterr().err
    settings.sets[1].paths[0].write_text("junk")
    with pytest.raises(DataError, match=r"lamp\.jsonl cannot be read"):
        settings.run(StageRun("d", tmp_path / "out", [], None, SerialExecutor(), "jsonl.zst", 1))


@pytest.mark.parametrize("earlier", [[{"set": "geese"}], 0.5, "yes", [1]])
def test_marks_of_the_input_are_not_counted(settings: DecontaminateSettings, tmp_path: Path, earlier: object) -> None:
    documents = [replace(document(WORDS), metadata={"contamination": earlier}), document(OTHER)]
    write_documents(tmp_path / "in/00000.jsonl.zst", documents)
    stage = StageRun("d", tmp_path / "out", [tmp_path / "in/00000.jsonl.zst"], None, SerialExecutor(), "jsonl.zst", 1)
    settings.run(stage)
    [mark] = (tmp_path / "out/tasks").glob("*.json")
    counts = Counts(**json.loads(mark.read_text())["counts"])
    assert (counts.documents_out, counts.notes) == (1, {"documents with text of lamp": 1})
