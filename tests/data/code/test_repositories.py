"""The stage `repositories`: shuffle, grouping, and what it writes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from puyulm.data.code import repositories
from puyulm.data.code.settings import CodeSettings, RepositorySettings
from puyulm.data.documents import Document, read_documents, write_documents
from puyulm.data.pipeline.counts import Counts
from puyulm.data.pipeline.executor import SerialExecutor
from puyulm.data.pipeline.stage import StageRun, run_stage, shards_in
from puyulm.errors import DataError

MIT = "Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated " \
      "documentation files. The above copyright notice and this permission notice shall be included.\n"  # fmt: skip
GPL = "GNU GENERAL PUBLIC LICENSE Version 3, 29 June 2007\n"


class BackwardsExecutor(SerialExecutor):
    """Runs the last task first."""

    workers = 3

    def run(self, function: Callable[[Any], Any], tasks: Sequence[Any]) -> Iterator[tuple[int, Any]]:
        for index in reversed(range(len(tasks))):
            yield index, function(tasks[index])


def file(repository: str, path: str, text: str, **fields: Any) -> Document:
    metadata = {"repository": repository, "path": path, **fields.pop("metadata", {})}
    return Document(f"git:{repository}/{path}", text, "code", "git", metadata=metadata, **fields)


def stage_run(folder: Path, before: Path, task_bytes: int = 1_000_000, executor: Any = None) -> StageRun:
    return StageRun(
        "repositories", folder, shards_in(before), before, executor or SerialExecutor(), "jsonl.zst", task_bytes
    )


def run(
    tmp_path: Path, shards: list[list[Document]], settings: RepositorySettings | None = None, name: str = "out",
    task_bytes: int = 1_000_000, executor: Any = None,
) -> tuple[list[Document], Counts, dict[str, bytes]]:  # fmt: skip
    before, folder = tmp_path / "in", tmp_path / name
    for number, documents in enumerate(shards):
        write_documents(before / f"{number:05d}.jsonl.zst", documents)
    run_stage(settings or RepositorySettings(), stage_run(folder, before, task_bytes, executor))
    results = [json.loads(path.read_text()) for path in sorted((folder / "tasks").glob("*.json"))]
    counts = Counts.merged(result["counts"] for result in results if "counts" in result)
    kept = [document for path in shards_in(folder) for document in read_documents(path)]
    written = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.zst")}
    return kept, counts, written


REPOSITORY = [
    file("o/n", "pkg/app.py", "from pkg.base import x\n", licence="MIT", metadata={"tier": "high"}),
    file("o/n", "pkg/base.py", "x = 1\n", date="2024-01-02", metadata={"tier": "moderate"}),
    file("o/n", "README.md", "# Name\n", metadata={"tier": "moderate"}),
    file("o/n", "pkg/notes.txt", "note\n"),
]


def test_one_repository(tmp_path):
    kept, counts, _ = run(tmp_path, [REPOSITORY[:2], REPOSITORY[2:]])
    assert [document.id for document in kept] == ["git:o/n"]
    document = kept[0]
    assert document.text == (
        "# o/n\n\n"
        "## `README.md`\n\n# Name\n\n"
        "## `pkg/notes.txt`\n\n```text\nnote\n```\n\n"
        "## `pkg/base.py`\n\n```python\nx = 1\n```\n\n"
        "## `pkg/app.py`\n\n```python\nfrom pkg.base import x\n```\n"
    )
    assert (document.language, document.source, document.url, document.date) == ("code", "git", "o/n", "2024-01-02")
    assert document.licence == "MIT"
    assert document.metadata == {
        "repository": "o/n", "files": 4, "edges": 1, "cycles": 0, "licences": ["MIT"],
        "programming_language": "Python", "tier": "high",
    }  # fmt: skip
    assert (counts.documents_in, counts.documents_out) == (4, 1)
    assert counts.bytes_in == sum(d.num_bytes for d in REPOSITORY) and counts.bytes_out == document.num_bytes
    assert counts.notes["files joined"] == 4 and counts.notes["imports between files"] == 1


def test_what_belongs_to_no_repository_passes_in_order(tmp_path):
    web = [Document(f"w:{i}", f"Page {i}.\n", "en", "web", scores={"q": 0.5}, metadata={"x": [i]}) for i in range(5)]
    kept, _, _ = run(tmp_path, [[web[0], REPOSITORY[0], web[1]], [web[2], *REPOSITORY[1:], web[3], web[4]]])
    assert kept[:-1] == web and kept[-1].id == "git:o/n"


def test_a_single_file_passes_as_it_is(tmp_path):
    kept, counts, _ = run(tmp_path, [[REPOSITORY[0]]])
    assert kept == [REPOSITORY[0]] and "files joined" not in counts.notes


def many(repositories: int = 12) -> list[Document]:
    documents = []
    for r in range(repositories):
        for f in range(3):
            text = f"from f{(f + 1) % 3} import x\nvalue = {r}\n"
            documents.append(file(f"o/{r}", f"f{f}.py", text))
        documents.append(Document(f"w:{r}", f"Page {r}.\n", "en", "web"))
    return [documents[(i * 7) % len(documents)] for i in range(len(documents))]  # the files of a repository lie apart


def test_partitions_workers_and_runs_change_nothing(tmp_path, monkeypatch):
    documents = many()
    shards = [documents[i : i + 8] for i in range(0, len(documents), 8)]
    kept, _, written = run(tmp_path, shards, name="one")
    assert len(kept) == 24
    small, _, small_written = run(tmp_path, shards, name="small", task_bytes=600)
    assert len(small_written) > len(written)
    assert sorted(kept, key=lambda d: d.id) == sorted(small, key=lambda d: d.id)
    _, _, backwards = run(tmp_path, shards, name="backwards", task_bytes=600, executor=BackwardsExecutor())
    assert backwards == small_written
    monkeypatch.setattr(repositories, "RUN_CHARACTERS", 50)  # a few documents a run
    _, _, runs = run(tmp_path, shards, name="runs", task_bytes=600)
    assert runs == small_written


def test_resuming_does_only_what_is_missing(tmp_path):
    documents = many()
    shards = [documents[i : i + 8] for i in range(0, len(documents), 8)]
    _, _, written = run(tmp_path, shards, task_bytes=600)
    folder = tmp_path / "out"
    assert not (folder / "parts").exists()
    before = {path: path.stat().st_mtime_ns for path in folder.glob("0*.zst")}
    run_stage(RepositorySettings(), stage_run(folder, tmp_path / "in", 600))  # everything is there but the parts
    lost = sorted((folder / "tasks").glob("join-*.json"))[0]
    lost.unlink()
    run_stage(RepositorySettings(), stage_run(folder, tmp_path / "in", 600))
    assert {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*.zst")} == written
    assert before.keys() == set(folder.glob("0*.zst"))


def test_large_repositories_are_cut(tmp_path):
    files = [file("o/big", f"d{i}/f.py", f"import d{i - 1}.f\nx = {'y' * 400}\n") for i in range(10)]
    settings = RepositorySettings(max_repository_mb=0.0013)
    kept, _, _ = run(tmp_path, [files[::2], files[1::2]], settings)
    assert [document.id for document in kept[:-1]] == [f"git:o/big#{i}" for i in range(3)]
    assert [document.metadata["part"] for document in kept[:-1]] == [0, 1, 2]
    assert [document.text.count("\n## ") for document in kept[:-1]] == [3, 3, 3]
    assert kept[-1] == files[9]  # alone in its part
    assert kept[0].metadata["edges"] == 2


def test_the_newest_copy_of_a_path_counts(tmp_path):
    old = file("o/n", "a.py", "old = 1\n", date="2020-01-01")
    new = Document("git:0", "new = 1\n", "code", "git", date="2024-01-01", metadata=old.metadata)
    kept, counts, _ = run(tmp_path, [[new, file("o/n", "b.py", "import a\n")], [old]])
    assert "new = 1" in kept[0].text and "old = 1" not in kept[0].text
    assert counts.dropped == {"code: older copy of a file": [1, old.num_bytes]}


def test_sources_may_have_repositories_of_one_name(tmp_path):
    files = [replace(each, source=source, id=f"{source}:{i}") for source in "ab" for i, each in enumerate(REPOSITORY)]
    kept, counts, _ = run(tmp_path, [files[::2], files[1::2]])
    assert [(document.id, document.source) for document in kept] == [("a:o/n", "a"), ("b:o/n", "b")]
    assert kept[0].text == kept[1].text and not counts.dropped


def test_licences_of_folders(tmp_path):
    files = [
        file("o/n", "LICENSE", MIT),
        file("o/n", "a.py", "import os\n"),
        file("o/n", "b.py", "import a\n", licence="isc"),
        file("o/n", "AAA/lib.py", "x = 1\n"),
        file("o/n", "AAA/COPYING", GPL),
        file("o/free", "c.py", "y = 1\n"),
        file("o/free", "d.py", "# SPDX-License-Identifier: BSD-2-Clause\nimport c\n"),
    ]
    kept, _, _ = run(tmp_path, [files], name="all")
    assert kept[1].id == "git:o/n"
    assert kept[1].metadata["licences"] == ["GPL-3.0-only", "ISC", "MIT"]
    assert kept[1].licence == "GPL-3.0-only AND ISC AND MIT"
    assert kept[0].metadata["licences"] == ["BSD-2-Clause"]
    strict = RepositorySettings(licences=("MIT", "ISC"), unknown_licence="drop")
    kept, counts, _ = run(tmp_path, [files], strict, name="strict")
    assert [document.id for document in kept] == ["git:o/n"] and kept[0].metadata["files"] == 3
    assert {reason: number for reason, (number, _) in counts.dropped.items()} == {
        "code: licence not allowed": 3, "code: licence unknown": 1,
    }  # fmt: skip


def test_after_the_stage_code(tmp_path):
    """What `code` found is used: its languages, licences and tiers."""
    transform = CodeSettings().transform()
    files = [file("o/n", "run", "#!/usr/bin/env python3\n# SPDX-License-Identifier: MIT\nimport a\n"),
             file("o/n", "a.py", "x = 1\n"), file("o/n", "b.c", "int x;\n")]  # fmt: skip
    kept, _, _ = run(tmp_path, [list(transform(files))])
    assert kept[0].metadata["tier"] == "moderate" and kept[0].licence == "MIT"
    assert "```python\n#!/usr/bin" in kept[0].text


def test_odd_text_survives_the_shuffle(tmp_path):
    files = [file("o/n", "a.py", "x = '\u2028\ud800\x00 浦语'\n"), file("o/n", "b.py", "\n" * 3 + "y" * 300_000 + "\n")]
    kept, _, _ = run(tmp_path, [files])
    assert "\u2028\ud800\x00 浦语" in kept[0].text and "y" * 300_000 in kept[0].text


def test_bad_settings():
    with pytest.raises(DataError, match="max_repository_mb"):
        RepositorySettings(max_repository_mb=0)
    with pytest.raises(DataError, match="apache"):
        RepositorySettings(licences=("apache-2.0",))
