"""The recipes that come with the project load, and those that can run here do, on real input."""

from __future__ import annotations

import random
import sys
import sysconfig
from pathlib import Path

import pytest

from puyulm.data.documents import Document, read_documents
from puyulm.data.format.warc import make_warc
from puyulm.data.pipeline.executor import ProcessExecutor, SerialExecutor
from puyulm.data.pipeline.recipe import DataRecipe
from puyulm.data.pipeline.run import run_pipeline
from puyulm.data.pipeline.stage import shards_in
from puyulm.recipe import dump_recipe, load_recipe

RECIPES = sorted((Path(__file__).resolve().parents[2] / "recipes/data").glob("*.yaml"))


def _load(name: str, out: Path, *overrides: str) -> DataRecipe:
    [path] = [path for path in RECIPES if path.stem == name]
    return load_recipe(DataRecipe, path, ["--out", str(out), *overrides])


def _documents(folder: Path) -> list[Document]:
    return [document for shard in shards_in(folder) for document in read_documents(shard)]


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_load_and_are_read_back(path: Path, tmp_path: Path) -> None:
    recipe = load_recipe(DataRecipe, path)
    (tmp_path / "r.yaml").write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe(DataRecipe, tmp_path / "r.yaml") == recipe


def _pydoc_pages() -> list[tuple[str, str, bytes]]:
    """Pages that this interpreter makes about its own library."""
    import pydoc

    names = [
        "textwrap", "string", "heapq", "bisect", "calendar", "colorsys", "copy", "csv", "fractions", "functools",
        "glob", "gzip", "hmac", "io", "keyword", "locale", "queue", "random", "shelve", "shlex", "shutil", "statistics",
        "tempfile", "threading", "timeit", "types", "uuid", "warnings", "weakref", "zipfile",
    ]  # fmt: skip
    pages = []
    for name in names:
        __import__(name)
        module = sys.modules[name]
        body = pydoc.html.page(pydoc.describe(module), pydoc.html.document(module, name))
        pages.append((f"https://docs.example/{name}.html", "2024-03-01T00:00:00Z", body.encode()))
    return pages


@pytest.mark.parametrize("extractor", ["resiliparse", "trafilatura"])
def test_a_crawl_file(tmp_path: Path, extractor: str) -> None:
    for module in ("fastwarc", "resiliparse", "trafilatura", "pycld2"):
        pytest.importorskip(module)
    pages = _pydoc_pages()
    make_warc(tmp_path / "a.warc.gz", pages)
    overrides = ("--stages.format.inputs.0.paths", f"['{tmp_path}/*.warc.gz']", "--stages.format.extractor", extractor)
    recipe = _load("crawl", tmp_path / "out", *overrides, "--task_mb", "0.05")
    executor = ProcessExecutor(2)
    try:
        results = run_pipeline(recipe, executor)
    finally:
        executor.close()
    first = results[0]
    assert len(shards_in(first.folder)) > 1  # the one file was shared among tasks
    documents = {d.url: d for d in _documents(first.folder)}
    assert len(documents) >= 0.9 * len(pages) <= first.counts.documents_in == len(pages)
    assert (
        "justified" in documents["https://docs.example/textwrap.html"].text
        or "wrap" in documents["https://docs.example/textwrap.html"].text
    )
    assert {d.language for d in documents.values()} == {"en"}
    assert results[-1].counts.documents_out + sum(
        dropped for r in results for dropped, _ in r.counts.dropped.values()
    ) == len(pages)


def test_sources_of_installed_packages(tmp_path: Path) -> None:
    pytest.importorskip("zstandard")
    packages = [Path(sysconfig.get_path("purelib")) / name for name in ("tqdm", "jinja2")]
    if not all(path.is_dir() for path in packages):
        pytest.skip("tqdm and jinja2 are not installed as folders")
    paths = f"['{packages[0]}', '{packages[1]}']"
    results = run_pipeline(_load("code", tmp_path, "--stages.format.inputs.0.paths", paths), SerialExecutor())
    repositories = {d.metadata["repository"]: d for d in _documents(results[-1].folder) if "repository" in d.metadata}
    assert set(repositories) == {"jinja2", "tqdm"}
    text = repositories["jinja2"].text
    places = [text.index(f"{name}.py") for name in ("exceptions", "nodes", "lexer", "parser")]
    assert places[0] < places[3], "parser.py imports exceptions.py"
    assert text.count("```python") > 15


def test_long_documents(tmp_path: Path) -> None:
    pytest.importorskip("zstandard")
    import importlib

    topics = importlib.import_module("pydoc_data.topics").topics
    books = tmp_path / "books"
    books.mkdir()
    whole = "\n\n".join(text for _, text in sorted(topics.items()))
    (books / "reference.txt").write_text(whole[:120_000], encoding="utf-8")
    (books / "short.txt").write_text(whole[:5_000], encoding="utf-8")
    (books / "table.txt").write_text("\n".join(f"{i} | {i * i} | {i % 7}" for i in range(9000)), encoding="utf-8")
    sentences = [part.strip() for part in whole[120_000:].split(". ") if 40 < len(part) < 300]
    generator = random.Random(0)
    novel = "".join(generator.choice(sentences) + (".\n\n" if i % 5 == 0 else ". ") for i in range(9000))
    assert len(novel.split()) > 150_000
    (books / "novel.txt").write_text(novel, encoding="utf-8")
    overrides = ("--stages.format.inputs.0.paths", f"['{books}']")
    results = run_pipeline(_load("long", tmp_path / "out", *overrides), SerialExecutor())
    kept = _documents(results[-1].folder)
    assert [Path(d.url or d.id).name for d in kept] == ["novel.txt", "reference.txt"]
    assert kept[0].scores["long.compression"] > 0
