"""The benchmark harness: what a row says, and what the file holds. No speed is asserted."""

from __future__ import annotations

import dataclasses
import itertools
import json
from pathlib import Path

import pytest
import torch

from benchmarks import (
    data,
    data_corpus,
    data_memory,
    data_ours,
    data_truth,
    harness,
    training,
    training_contenders,
    training_gpu,
)
from benchmarks.data_corpus import Corpus, Page
from puyulm.data.documents import Document, write_documents

ROOT = Path(__file__).parents[1]


def test_ratios_are_above_one_where_ours_is_better(monkeypatch: pytest.MonkeyPatch):
    clock = itertools.count()
    monkeypatch.setattr(harness.time, "perf_counter", lambda: now[0])
    now = [0.0]

    def lasts(seconds: float):
        def action() -> None:
            next(clock)
            now[0] += seconds

        return action

    row = harness.throughput("step", "tok/s", 100, lasts(2.0), lasts(3.0), "peer", 1.2, pairs=5)
    assert (row.ours, row.ratio) == (50.0, 1.5)
    assert row.peer == pytest.approx(100 / 3)
    assert next(clock) == 12  # a warm-up and five runs of each

    row = harness.smaller_is_better("memory", "MB", [(10, 40), (20, 40), (10, 30)], "peer", 4.0)
    assert (row.ours, row.peer, row.ratio) == (10, 40, 3)


def test_the_file_and_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    rows = [harness.Row("a", "s", 1.0, 2.0, "peer", 2.0, 1.5), harness.missing("b", "s", "peer>=1", None)]
    harness.write_json(tmp_path / "out.json", rows)
    content = json.loads((tmp_path / "out.json").read_text())
    assert content["machine"]["cores"] >= 1
    assert content["rows"][0] == {
        "name": "a", "unit": "s", "ours": 1.0, "peer": 2.0, "peer_name": "peer", "ratio": 2.0, "target": 1.5,
    }  # fmt: skip
    assert content["rows"][1]["peer_name"] == "pip install 'peer>=1'"
    harness.print_table(rows)
    table = capsys.readouterr().out.splitlines()
    assert table[1].endswith("ok")
    assert "pip install" in table[2]


def test_a_child_answers_with_json():
    assert harness.in_child("import json, sys; print('noise'); print(json.dumps({'x': len(sys.argv)}))", "a") == {
        "x": 2
    }
    with pytest.raises(RuntimeError, match="no such thing"):
        harness.in_child("raise SystemExit('no such thing')")


def test_planted_copies_are_found_and_lost():
    words = [f"word{number}" for number in range(200)]
    texts = [" ".join(f"{word}x{text}" for word in words) for text in range(6)]
    planted = data_truth.plant([*texts, texts[0] + " more"])  # the last is like the first, and left out
    assert len(planted.texts) == 6 + len(planted.pairs)
    assert 1 <= len(planted.pairs) <= 3  # every second text, if its copy is like it
    for original, copy in planted.pairs:
        assert data_truth.similarity(planted.texts[original], planted.texts[copy]) >= 0.7
    everything = set(range(len(planted.texts)))
    assert (planted.found(everything), planted.lost(everything)) == (0, 0)
    without_copies = everything - {copy for _, copy in planted.pairs}
    assert (planted.found(without_copies), planted.lost(without_copies)) == (1, 0)
    without_originals = everything - {original for original, _ in planted.pairs}
    assert (planted.found(without_originals), planted.lost(without_originals)) == (1, 0)
    without_both = without_copies - {planted.pairs[0][0]}
    assert planted.lost(without_both) == pytest.approx(1 / 6)


def test_similarity_and_agreement():
    assert data_truth.similarity("a b c d e f", "A b, c d e") == 0.5
    assert data_truth.similarity("天地玄黄宇宙", "天地玄黄宇") == 0.5
    assert data_truth.unlike(["a b c d e f g", "a b c d e f g h", "some other words than those before"]) == [
        "a b c d e f g", "some other words than those before",
    ]  # fmt: skip
    source = ".. index:: left out\n\nTitle\n=====\n\nSee :func:`open` now.\n"
    assert data_truth.agreement("Title see open now", source) == 1
    assert data_truth.agreement("title see", source) == pytest.approx(2 * 2 / (2 + 4))
    assert data_truth.agreement("", source) == 0


def test_pages_make_a_web_archive(tmp_path: Path):
    archive = pytest.importorskip("fastwarc.warc")
    pages = [Page("https://x.example/1", "<p>一".encode(), "zh"), Page("https://x.example/2", b"<p>two", "en")]
    data_corpus.write_warc(tmp_path / "a.warc.gz", pages)
    with open(tmp_path / "a.warc.gz", "rb") as file:
        read = [(record.headers["WARC-Target-URI"], record.reader.read()) for record in archive.ArchiveIterator(file)]
    assert read == [(page.url, page.content) for page in pages]


def test_without_packages_pages_come_from_pydoc(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setattr(data_corpus, "_unpacked", lambda packages: None)
    corpus = data_corpus.load_corpus(3)
    assert 1 <= len(corpus.pages) <= 3
    assert corpus.of("en") == list(corpus.pages)
    assert corpus.num_bytes == sum(len(page.content) for page in corpus.pages)
    assert "pydoc" in capsys.readouterr().err
    assert data_corpus.language_texts() == []


def test_a_package_is_fetched_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    commands = []

    def run(command: list[str], folder: Path) -> None:
        commands.append(command)
        if command[:2] == ["apt-get", "download"]:
            if command[-1] == "missing-doc":
                raise RuntimeError("E: Unable to locate package missing-doc")
            (folder / "some-doc_4%3a1-2_all.deb").touch()
        else:
            (Path(command[-1]) / "page.html").write_text("x")

    monkeypatch.setattr(data_corpus, "cache_dir", lambda: tmp_path)
    monkeypatch.setattr(data_corpus, "_run", run)
    monkeypatch.setattr(data_corpus.shutil, "which", lambda name: name)
    for _ in range(2):
        folder = data_corpus._unpacked(("missing-doc", "some-doc"))
        assert folder == tmp_path / "benchmarks" / "some-doc_4+1-2_all"
        assert [path.name for path in folder.iterdir()] == ["page.html"]
    assert len(commands) == 3
    assert list(folder.parent.iterdir()) == [folder]
    assert "Unable to locate package" in capsys.readouterr().err
    assert data_corpus._unpacked(("missing-doc",)) is None


def test_memory_of_a_command_and_its_children(tmp_path: Path):
    (tmp_path / "watched.py").write_text(
        "import json, subprocess, sys\n"
        "if len(sys.argv) > 2:\n    block = bytearray(b'x' * 60_000_000); sum(block)\n"
        "else:\n    subprocess.run([sys.executable, __file__, 'a', 'b'])\n    print('noise')\n"
        "    print(json.dumps({'argument': sys.argv[1]}))\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data_memory, "ROOT", tmp_path)
        patch.setattr(data_memory, "INTERVAL_SECONDS", 0.02)
        result, peak = data_memory.watched("watched", ["x"])
        assert result == {"argument": "x"}
        assert 60 < peak < 200
        with pytest.raises(RuntimeError, match="No module named"):
            data_memory.watched("no_such_module", [])


def test_a_group_without_its_peer_tells_how_to_install_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(data, "installed", lambda module: False)
    monkeypatch.setattr(data.data_datatrove, "ready", lambda: False)
    monkeypatch.setattr(data, "load_corpus", lambda count: Corpus((Page("https://x.example", b"<p>x", "en"),), ("x",)))
    monkeypatch.setattr(data, "page_texts", lambda pages: ["some text of a page " * 20])
    rows = data.run("rules") + data.run("minhash") + data.run("html")
    assert all(row.ours is None and row.peer_name.startswith("pip install '") for row in rows)
    assert {row.target for row in rows} == {5.0, 20.0, 8.0, 1.0}
    assert "datatrove[io,processing]' 'spacy' 'jieba'" in rows[0].peer_name


def test_our_side_runs_on_a_few_pages(tmp_path: Path):
    for module in ("fastwarc", "resiliparse", "pycld2", "zstandard"):
        pytest.importorskip(module)
    paragraphs = [" ".join(text.split()) for text in (ROOT / "LICENSE").read_text().split("\n\n") if len(text) > 400]
    pages = tuple(
        Page(f"https://x.example/{n}", "".join(f"<p>{text}</p>" for text in paragraphs[n : n + 3]).encode(), "en")
        for n in (0, 3, 6)
    )
    data_corpus.write_warc(tmp_path / "pages.warc.gz", pages)
    result = data_ours.pipeline(tmp_path / "pages.warc.gz", tmp_path / "out", 1, "resiliparse")
    assert [stage["label"] for stage in result["stages"]] == ["format", "clean", "dedup"]
    assert result["stages"][0]["documents"] == len(pages)
    assert result["kept"]
    assert set(result["kept"]) <= {page.url for page in pages}
    rows = data._stage_rows("fast extractor", Corpus(pages, ()), [result])
    assert [row.unit for row in rows] == ["pages/s", "MB/s"] + 3 * ["docs/s", "MB/s"]

    planted = data_truth.plant([" ".join(f"w{n}x{text}" for n in range(300)) for text in range(8)])
    shard = tmp_path / "documents" / "00000.jsonl.zst"
    write_documents(shard, [Document(str(n), text, "en", "x") for n, text in enumerate(planted.texts)])
    kept = data_ours.dedup(shard, tmp_path / "kept")
    assert (planted.found(kept), planted.lost(kept)) == (1, 0)
    assert data_ours.kept_by_rules(["short", "word " * 200], "en") == [False, False]
    assert data_ours.signatures(planted.texts).shape == (len(planted.texts), 128)


def test_pipelines_are_compared_run_by_run():
    def runs(*values: tuple[float, float]):
        return [({"seconds": {"all": seconds}}, megabytes) for seconds, megabytes in values]

    speed, memory = data._against("x", 100, runs((1, 10), (2, 20), (4, 30)), runs((10, 40), (10, 40), (20, 90)), 5.0)
    assert (speed.ours, speed.peer, speed.ratio, speed.target) == (50, 10, 5, 5)
    assert (memory.name, memory.ours, memory.peer, memory.ratio) == ("x: peak memory", 20, 40, 3)


def test_actions_take_turns():
    calls: list[str] = []
    times = harness.interleaved({name: lambda name=name: calls.append(name) for name in "abc"}, rounds=3)
    assert "".join(calls) == "abc" + "abc" + "bca" + "cab"
    assert [len(seconds) for seconds in times.values()] == [3, 3, 3]


def test_training_rows_at_tiny_sizes(monkeypatch: pytest.MonkeyPatch):
    """All groups, with the peers that are installed; contenders with other losses are not compared."""
    pytest.importorskip("transformers")
    rows = training.run(smoke=True)
    names = [row.name for row in rows]
    assert {row.target for row in rows} == {None, 1.03, 1.1, 1.3, 1.2, 4.0, 1.0}
    assert sum("GEMM" in name or "matrix product" in name for name in names) == 2
    assert names[-1].endswith("all but forward and backward")
    assert all(row.ours for row in rows if not row.peer_name.startswith("pip install"))

    work = training.Work(256, 2, 16)
    honest, lazy = training.ours(training.tiny(256)), lambda work: lambda: torch.tensor(0.0)
    with pytest.raises(RuntimeError, match="do not do the same"):
        training.measure({("puyulm", False): honest, ("lazy", False): lazy}, work, 1)

    monkeypatch.setattr(training_contenders, "installed", lambda module: False)
    rows = training.run("rows of 64", smoke=True)
    assert [row.peer_name for row in rows if row.peer_name.startswith("pip")] == [
        "pip install 'transformers>=5.0'", "pip install 'litgpt>=0.5'",
    ]  # fmt: skip


def test_works_keep_documents_apart():
    work = training.Work(256, 2, 8, documents=2)
    assert work.lengths == [4, 4, 4, 4]
    assert torch.equal(work.targets()[:, [0, 1, 2, 4, 5, 6]], work.ids()[:, [1, 2, 3, 5, 6, 7]])
    assert (work.targets()[:, [3, 7]] == -100).all()
    _, _, extra = training_contenders._inputs(work)
    assert extra["position_ids"][0].tolist() == [0, 1, 2, 3] * 2
    assert (extra["attention_mask"][0, 0] == 0).sum() == 2 * (4 * 5 // 2)


def test_the_gpu_benchmark_runs_with_a_tiny_model_on_a_cpu(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(training_gpu, "WARM_UPS", 1)
    monkeypatch.setattr(training_gpu, "STEPS", 1)
    rows = training_gpu.run(smoke=True)
    assert {row.name.split(" tokens")[0] for row in rows} == {case.name for case in training_gpu.cases(smoke=False)}
    assert [row.target for row in rows if row.target] == [1.0]
    assert all(row.ours is not None for row in rows if row.unit == "tok/s" and "pip" not in row.peer_name)

    # A micro-batch that does not fit is tried again with fewer rows.
    tried = []

    def make(rows: int):
        tried.append(rows)
        if rows > 2:
            raise torch.OutOfMemoryError
        return lambda: torch.tensor(0.0)

    case = dataclasses.replace(training_gpu.cases(smoke=True)[0], rows=(4, 3, 2, 1))
    found = training_gpu.largest(case, make, torch.device("cpu"))
    assert (tried, found.rows) == ([4, 3, 2], 2)
    assert training_gpu.largest(dataclasses.replace(case, rows=(8, 4)), make, torch.device("cpu")) is None
