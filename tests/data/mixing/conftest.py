"""Stages outside of a run: documents in, a stage's folder out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from puyulm.data.documents import Document, write_documents
from puyulm.data.mixing.settings import MixSettings, TokenizeSettings
from puyulm.data.pipeline import stage as stage_module
from puyulm.data.pipeline.executor import ProcessExecutor, SerialExecutor
from puyulm.data.pipeline.stage import StageRun
from tests.text.small_tokenizers import small_tokenizer


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    small_tokenizer(folder, ())
    return folder


@pytest.fixture
def run_stage(tmp_path: Path) -> Callable[..., StageRun]:
    """(settings, name, documents or None, before=None, workers=1, shard=5, task_bytes=1) -> the finished stage."""

    def run(
        settings: Any, name: str, documents: Sequence[Document] = (), before: Path | None = None, workers: int = 1,
        shard: int = 5, task_bytes: int = 1,
    ) -> StageRun:  # fmt: skip
        inputs = []
        for number, start in enumerate(range(0, len(documents), shard)):
            inputs.append(tmp_path / f"{name}-input" / f"{number:05d}.jsonl.zst")
            write_documents(inputs[-1], documents[start : start + shard])
        executor = ProcessExecutor(workers) if workers > 1 else SerialExecutor()
        stage = StageRun(name, tmp_path / name, inputs, before, executor, "jsonl.zst", task_bytes)
        try:
            settings.run(stage)
        finally:
            executor.close()
        return stage

    return run


def made_documents(count: int, seed: int = 0) -> list[Document]:
    """Texts of all lengths in three languages, two sources and two tiers."""
    generator = np.random.default_rng(seed)
    documents = []
    for i in range(count):
        length = int(generator.choice([3, 20, 60, 200]))
        language = str(generator.choice(["en", "zh", "code"]))
        text = "".join(map(chr, generator.integers(97, 123, size=length)))
        text = text if language != "zh" else "".join(chr(0x4E00 + ord(c)) for c in text)
        tier = {"tier": str(generator.choice(["high", "moderate"]))} if language == "code" else {}
        documents.append(Document(f"doc{i}", text, language, f"web {i % 2}", metadata=tier))
    return documents


def files_of(folder: Path) -> dict[str, bytes]:
    """Everything below a folder but the marks of tasks, which hold times."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.parent.name != "tasks"
    }


@pytest.fixture
def token_stage(run_stage: Callable[..., StageRun], tokenizer_folder: Path) -> Callable[..., StageRun]:
    """(documents, **settings) -> a finished stage `tokenize` that groups by language and tier."""

    def run(documents: Sequence[Document], **options: Any) -> StageRun:
        settings = TokenizeSettings(tokenizer_folder, **{"group_by": ("language", "tier"), **options})
        return run_stage(settings, "tokenize", documents)

    return run


@pytest.fixture
def mix_stage(run_stage: Callable[..., StageRun], token_stage: Callable[..., StageRun]) -> Callable[..., StageRun]:
    """(documents, settings) -> a finished stage `mix` over them."""

    def run(documents: Sequence[Document], settings: MixSettings, **options: Any) -> StageRun:
        return run_stage(settings, "mix", before=token_stage(documents, **options).folder)

    return run


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Any]:
    """(tasks) -> a context in which a stage is interrupted when as many tasks are done."""

    @contextmanager
    def interrupting(after: int) -> Iterator[None]:
        done = 0

        def run(function: Any, task: Any) -> Any:
            nonlocal done
            if done == after:
                raise KeyboardInterrupt
            done += 1
            return timed(function, task)

        timed = stage_module._timed
        with monkeypatch.context() as patch:
            patch.setattr(stage_module, "_timed", run)
            yield

    return interrupting
