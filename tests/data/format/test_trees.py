"""Source code out of folders and out of git repositories."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from puyulm.data.format.settings import InputSettings
from puyulm.errors import DataError

from .helpers import kept, read_all, read_ranges, reasons, settings_for

FILES = {
    "README.md": b"# Tool\n", "src/main.py": b"import os\r\nprint(os.name)\r\n", "src/empty.py": b"",
    "Makefile": b"all:\n", "src/data.bin": b"\x00\x01binary", "big.json": b"[" + b"1," * 3000 + b"1]",
    "latin.c": "/* größe */\n".encode("cp1252"), "node_modules/x/index.js": b"module", ".github/ci.yml": b"on: push\n",
    "unicode/\u6d66.py": "# 浦语\n".encode(),
    "model.bin": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "wide.txt": "wide".encode("utf-16"),
    "zero": b"",
}  # fmt: skip
SOURCES = {".github/ci.yml", "Makefile", "README.md", "latin.c", "src/main.py", "unicode/浦.py", "wide.txt"}
ENVIRONMENT = {
    **os.environ, "GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@a", "GIT_COMMITTER_NAME": "a",
    "GIT_COMMITTER_EMAIL": "a@a", "GIT_AUTHOR_DATE": "2021-02-03T04:05:06Z",
    "GIT_COMMITTER_DATE": "2021-02-03T04:05:06Z", "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull,
}  # fmt: skip
needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


def make_tree(folder: Path) -> Path:
    for name, data in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def git(folder: Path, *arguments: str) -> None:
    subprocess.run(["git", "-C", str(folder), *arguments], check=True, capture_output=True, env=ENVIRONMENT)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = make_tree(tmp_path / "tool")
    (folder / "link").symlink_to("README.md")
    git(folder, "init", "-q", "-b", "main")
    git(folder, "add", "-A", "-f")
    git(folder, "commit", "-q", "-m", "first")
    return folder


def test_a_folder_of_sources(tmp_path: Path) -> None:
    make_tree(tmp_path / "tool")
    outcomes, counts = read_all(settings_for(tmp_path / "tool", kind="tree", max_source_bytes=4000, licence="MIT"))
    documents = {document.metadata["path"]: document for document in kept(outcomes)}
    assert set(documents) == SOURCES and not reasons(outcomes)
    main = documents["src/main.py"]
    assert (main.id, main.text, main.language) == ("s:tool/src/main.py", "import os\nprint(os.name)\n", "code")
    assert main.metadata == {"repository": "tool", "path": "src/main.py"} and main.licence == "MIT"
    assert documents["latin.c"].text == "/* größe */\n" and documents["wide.txt"].text == "wide"
    assert counts.notes == {
        "skipped: binary files": 1, "skipped: empty files": 2, "skipped: large source files": 1,
        "skipped: folders such as .git and node_modules": 1, "skipped: pointers to large files": 1,
    }  # fmt: skip


def test_repositories_by_a_pattern(tmp_path: Path) -> None:
    for name in ("ann/tool", "bob/tool"):
        make_tree(tmp_path / "repos" / name)
    documents = kept(read_all(settings_for(tmp_path / "repos" / "*" / "*", kind="tree", max_source_bytes=4000))[0])
    assert {document.metadata["repository"] for document in documents} == {"ann/tool", "bob/tool"}
    assert "s:ann/tool/src/main.py" in {document.id for document in documents}
    assert len(documents) == 2 * len(SOURCES)


@needs_git
def test_a_repository_is_read_as_it_was_committed(repository: Path, tmp_path: Path) -> None:
    (repository / "Makefile").write_bytes(b"changed since\n")
    bare = tmp_path / "bare" / "tool"
    git(tmp_path, "clone", "-q", "--bare", str(repository), str(bare))
    trees = []
    for folder in (repository, bare):
        outcomes, counts = read_all(settings_for(folder, kind="git", max_source_bytes=4000))
        trees.append(kept(outcomes))
        assert counts.notes == {
            "skipped: binary files": 1, "skipped: empty source files": 2, "skipped: large source files": 1,
            "skipped: folders such as .git and node_modules": 1, "skipped: pointers to large files": 1,
            "skipped: links and submodules": 1,
        }  # fmt: skip
    assert trees[0] == trees[1]
    documents = {document.metadata["path"]: document for document in trees[0]}
    assert set(documents) == SOURCES and documents["Makefile"].text == "all:\n"
    assert documents["unicode/浦.py"].id == "s:tool/unicode/浦.py"
    assert documents["unicode/浦.py"].date == "2021-02-03T04:05:06+00:00"


@needs_git
@settings(deadline=None, max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(0, 7000), max_size=6))
def test_any_ranges_give_the_same_files(repository: Path, cuts: list[int]) -> None:
    settings_ = settings_for(repository, kind="git")
    outcomes, counts = read_ranges(settings_, cuts)
    assert outcomes == read_ranges(settings_, [])[0] and counts.documents_in == len(FILES) + 1


@needs_git
def test_commits_are_watched(repository: Path) -> None:
    given_ = InputSettings((str(repository),), kind="git")
    assert {path.name for path in given_.files()} >= {"HEAD", "refs"}


@needs_git
def test_a_folder_inside_a_repository_is_none(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_DIR", str(repository / ".git"))
    with pytest.raises(DataError, match="git cannot read"):
        read_all(settings_for(repository / "src", kind="git"))


@needs_git
def test_what_is_no_repository(tmp_path: Path) -> None:
    for folder in (tmp_path / "plain", tmp_path / "without commit"):
        folder.mkdir()
    git(tmp_path / "without commit", "init", "-q")
    for name in ("plain", "without commit"):
        with pytest.raises(DataError, match=f"git cannot read .*{name}"):
            read_all(settings_for(tmp_path / name, kind="git"))


@needs_git
def test_a_hostile_repository_runs_nothing(tmp_path: Path) -> None:
    """`git log` runs the program that a repository's settings name to check a commit's signature."""
    repository = tmp_path / "repo"
    marker = tmp_path / "ran"
    program = tmp_path / "gpg"
    program.write_text(f"#!/bin/sh\ntouch {marker}\n")
    program.chmod(0o755)

    def git(*arguments: str, data: bytes = b"") -> bytes:
        command = ["git", "-C", str(repository), *arguments]
        return subprocess.run(command, input=data, capture_output=True, check=True, env=ENVIRONMENT).stdout

    repository.mkdir()
    git("init", "-q")
    (repository / "a.py").write_text("x = 1\n")
    git("add", ".")
    git("commit", "-qm", "m")
    head, _, message = git("cat-file", "commit", "HEAD").partition(b"\n\n")
    signed = head + b"\ngpgsig -----BEGIN PGP SIGNATURE-----\n \n abc\n -----END PGP SIGNATURE-----\n\n" + message
    commit = git("hash-object", "-t", "commit", "-w", "--stdin", data=signed).decode().strip()
    git("update-ref", "HEAD", commit)
    git("config", "log.showSignature", "true")
    git("config", "gpg.program", str(program))
    documents = kept(read_all(settings_for(repository, kind="git"))[0])
    assert [d.text for d in documents] == ["x = 1\n"]
    assert len(documents[0].date) == 25
    assert not marker.exists()


def test_links_are_not_followed_out_of_a_tree(tmp_path: Path) -> None:
    (tmp_path / "secret.py").write_text("password = 1\n")
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "a.py").write_text("x = 1\n")
    (tree / "leak.py").symlink_to(tmp_path / "secret.py")
    documents = kept(read_all(settings_for(tree, kind="tree"))[0])
    assert [d.text for d in documents] == ["x = 1\n"]
