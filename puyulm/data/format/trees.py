"""Source trees: files of folders, and of the last commit of git repositories, without a checkout."""

from __future__ import annotations

import codecs
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import IO

from puyulm.data.documents import Document
from puyulm.data.format.encoding import decode_text
from puyulm.data.format.find import SKIPPED_FOLDERS
from puyulm.data.format.pieces import Piece
from puyulm.data.format.quarantine import QuarantineError, skip
from puyulm.data.format.settings import FormatSettings
from puyulm.data.pipeline.counts import Counts, Outcome
from puyulm.errors import DataError

_HEAD_BYTES = 8192  # a NUL in them makes a file binary, as git says
_POINTER = b"version https://git-lfs.github.com/spec/"
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_REFERENCES = ("HEAD", "packed-refs", "refs", "reftable")


def read_tree(piece: Piece, settings: FormatSettings, counts: Counts) -> Iterator[Outcome]:
    """A file of a folder of source code: a document with the language "code", or counted as skipped.

    `metadata` tells the file's path in the repository and the repository's name; which programming language it is in
    is left to the stage `code`.
    """
    if piece.size > settings.max_source_bytes:
        skip(counts, "large source files", piece.size)
        return
    try:
        data = piece.path.read_bytes()
    except OSError:
        skip(counts, "files that cannot be read", piece.size)
        return
    repository = piece.detail or piece.source
    path = piece.name.removeprefix(f"{piece.detail}/") if piece.detail else piece.name
    if (document := _source_file(data, path, repository, piece, settings, counts)) is not None:
        yield document


def read_git(piece: Piece, settings: FormatSettings, counts: Counts) -> Iterator[Outcome]:
    """The files of the last commit of a repository: documents as those of a tree, with the date of the commit.

    Raises:
        DataError: git is not installed, or cannot read the repository.
    """
    date = _commit_date(piece.path, piece.detail)
    with _blobs(piece.path) as read_blob:
        position = 0
        for entry in _entries(piece.path, piece.detail):
            start, position = position, position + entry.weight
            if not piece.start <= start < piece.stop:
                continue
            if entry.skipped:
                skip(counts, entry.skipped, entry.size)
            elif entry.size > settings.max_source_bytes:
                skip(counts, "large source files", entry.size)
            else:
                data = read_blob(entry.blob)
                if data is None:
                    skip(counts, "files that cannot be read", entry.size)
                elif (
                    document := _source_file(data, entry.path, piece.name, piece, settings, counts, date)
                ) is not None:
                    yield document


def revision_and_size(repository: Path) -> tuple[str, int]:
    """The last commit of a repository, and the weight of its files: their bytes and one for each.

    Raises:
        DataError: git is not installed, or this is no repository with a commit.
    """
    revision = _git(repository, "rev-parse", "--verify", "HEAD^{commit}").decode().strip()
    return revision, sum(entry.weight for entry in _entries(repository, revision))


def reference_files(repository: Path) -> Iterator[Path]:
    """Files of a repository, bare or not, that change when its last commit does."""
    folder = repository / ".git"
    if folder.is_file():  # a work tree of a repository that is elsewhere
        text = folder.read_text(encoding="utf-8", errors="replace")
        folder = repository / text.removeprefix("gitdir:").strip()
        yield folder / "logs" / "HEAD"
    elif not folder.is_dir():
        folder = repository
    yield from (folder / name for name in _REFERENCES)


@dataclass(frozen=True, slots=True)
class _Entry:
    path: str
    blob: str
    size: int
    skipped: str

    @property
    def weight(self) -> int:
        return self.size + 1  # so that ranges divide empty files too


def _source_file(
    data: bytes, path: str, repository: str, piece: Piece, settings: FormatSettings, counts: Counts, date: str = ""
) -> Document | None:
    """The document of a source file; None if it is skipped, and counted so."""
    text = _source_text(data, counts)
    if text is None:
        return None
    counts.add_input(len(data))
    given = settings.inputs[piece.input]
    return Document(
        id=f"{piece.source}:{repository}/{path}" if piece.detail else f"{piece.source}:{path}", text=text,
        language=given.language or "code", source=piece.source, url=path, date=date or given.date,
        licence=given.licence, metadata={"repository": repository, "path": path},
    )  # fmt: skip


def _source_text(data: bytes, counts: Counts) -> str | None:
    if not data.strip():
        skip(counts, "empty source files", len(data))
    elif data.startswith(_POINTER):
        skip(counts, "pointers to large files", len(data))
    elif b"\0" in data[:_HEAD_BYTES] and not data.startswith(_UTF16):
        skip(counts, "binary files", len(data))
    else:
        try:
            return decode_text(data).replace("\r\n", "\n")
        except QuarantineError:
            skip(counts, "binary files", len(data))
    return None


def _commit_date(repository: Path, revision: str) -> str:
    """When a commit was made, ISO 8601, out of the commit itself: `git log` would run what the repository's settings
    name (a program that checks signatures)."""
    for line in _git(repository, "cat-file", "commit", revision).split(b"\n"):
        if line.startswith(b"committer "):
            seconds, zone = line.split()[-2:]
            offset = timedelta(hours=int(zone[:-2]), minutes=int(zone[:1] + zone[-2:]))
            return datetime.fromtimestamp(int(seconds), timezone(offset)).isoformat()
    return ""


def _entries(repository: Path, revision: str) -> Iterator[_Entry]:
    """The files of a commit, in git's order."""
    listing = _git(repository, "ls-tree", "-r", "-l", "-z", "--full-tree", revision)
    for line in listing.split(b"\0"):
        if not line:
            continue
        facts, _, name = line.partition(b"\t")
        mode, kind, blob, size = facts.decode("ascii").split()
        path = name.decode("utf-8", "replace")
        skipped = ""
        if kind != "blob" or mode == "120000":
            skipped = "links and submodules"
        elif not SKIPPED_FOLDERS.isdisjoint(path.split("/")[:-1]):
            skipped = "folders such as .git and node_modules"
        yield _Entry(path, blob, int(size) if size.isdigit() else 0, skipped)


@contextmanager
def _blobs(repository: Path) -> Iterator[_ReadBlob]:
    """Gives a function that reads a blob by its name, or None where it is missing, out of one process of git."""
    command, environment = [*_command(repository), "cat-file", "--batch"], _environment(repository)
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
    ) as git:
        assert git.stdin is not None and git.stdout is not None
        yield _ReadBlob(git.stdin, git.stdout)
        git.stdin.close()


@dataclass(frozen=True)
class _ReadBlob:
    questions: IO[bytes]
    answers: IO[bytes]

    def __call__(self, blob: str) -> bytes | None:
        self.questions.write(blob.encode() + b"\n")
        self.questions.flush()
        answer = self.answers.readline().split()
        return self.answers.read(int(answer[2]) + 1)[:-1] if len(answer) == 3 else None


def _git(repository: Path, *arguments: str) -> bytes:
    command = [*_command(repository), *arguments]
    done = subprocess.run(command, capture_output=True, check=False, env=_environment(repository))
    if done.returncode:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise DataError(f"git cannot read {repository} ({said[0] if said else 'it says nothing'}): "
                        "give a repository with at least one commit")  # fmt: skip
    return done.stdout


def _environment(repository: Path) -> dict[str, str]:
    """So that git reads this repository: not one of a folder above, not one that a variable names, nothing remote."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    ceiling = str(repository.absolute().parent)
    return {**kept, "GIT_CEILING_DIRECTORIES": ceiling, "GIT_NO_LAZY_FETCH": "1", "GIT_TERMINAL_PROMPT": "0"}


def _command(repository: Path) -> list[str]:
    git = shutil.which("git")
    if git is None:
        raise DataError("git is not installed: install it, or read a checkout with 'kind: tree'")
    return [git, "-C", str(repository)]
