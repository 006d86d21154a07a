"""Which files an input names, and of what kind each is."""

from __future__ import annotations

import glob
import json
import os
import re
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from puyulm.data.format.pieces import Piece
from puyulm.errors import DataError

if TYPE_CHECKING:
    from puyulm.data.format.settings import InputSettings

SKIPPED_FOLDERS = frozenset({".git", ".hg", ".svn", "node_modules", "__pycache__", ".venv", ".tox", ".mypy_cache"})
"""Folders that hold no text that somebody wrote there: histories, caches, copies of other projects."""

HEAD_BYTES = 4096

_KINDS = {
    ".warc": "warc", ".html": "html", ".htm": "html", ".xhtml": "html", ".jsonl": "jsonl", ".ndjson": "jsonl",
    ".parquet": "parquet", ".pdf": "pdf", ".epub": "epub", ".txt": "text", ".text": "text", ".rst": "text",
    ".tex": "text", ".org": "text", ".adoc": "text", ".md": "markdown", ".markdown": "markdown",
}  # fmt: skip
_COMPRESSED = {".gz": ("warc", "jsonl", "html", "text", "markdown"), ".zst": ("jsonl", "html", "text", "markdown")}
_PAGE_START = re.compile(
    rb"\s*(?:<\?xml[^>]*>\s*)?(?:(?><!--.*?-->)\s*+)*+<(?:!doctype\s+html|html)\b", re.I | re.DOTALL
)


@dataclass(frozen=True, slots=True)
class _Root:
    """What one path of an input names: a file, or a folder of files."""

    path: Path
    prefix: str  # goes before names of files in it
    name: str  # of the repository, if it is one
    source: str


def find_pieces(inputs: Sequence[InputSettings]) -> list[Piece]:
    """The files of all inputs as whole pieces, in the order of their paths, and by name within each.

    A file that two paths of an input name is taken once.

    Raises:
        DataError: A path matches nothing, or two files would have the same name.
    """
    pieces: dict[tuple[str, str], Piece] = {}
    for index, settings in enumerate(inputs):
        for piece in _in_input(settings, index):
            # What is skipped becomes no document, so that its name need not be its own: every package has a cache.
            name = str(piece.path) if piece.kind == "skipped" else piece.name
            other = pieces.setdefault((piece.source, name), piece)
            if other is not piece and (other.input != index or other.path.resolve() != piece.path.resolve()):
                raise DataError(f"{other.path} and {piece.path} would both be called {piece.name!r} in the source "
                                f"{piece.source!r}: make them two inputs, each with a source of its own")  # fmt: skip
    return list(pieces.values())


def watched_files(settings: InputSettings) -> Iterator[Path]:
    """The files of an input; of a git repository, those that change with its commits.

    Raises:
        DataError: A path matches nothing.
    """
    if settings.kind == "packages":
        return
    for root in _roots(settings):
        if settings.kind == "git":
            from puyulm.data.format.trees import reference_files

            yield from reference_files(root.path)
        elif root.path.is_dir():
            yield from (path for path, _, skipped in _walk(root.path, settings.kind == "tree") if not skipped)
        else:
            yield root.path
            if (meta := root.path.with_name(root.path.name + ".meta")).is_file():
                yield meta


def kind_by_name(name: str) -> str:
    """The kind of a file by its suffix; empty where it does not tell."""
    stem, suffix = os.path.splitext(name.lower())
    if suffix in _COMPRESSED:
        inner = os.path.splitext(stem)[1]
        kind = "jsonl" if inner == ".json" else _KINDS.get(inner, "")  # C4 and others call JSON lines .json.gz
        return kind if kind in _COMPRESSED[suffix] else ""
    if kind := _KINDS.get(suffix, ""):
        return kind
    from puyulm.data.code.languages import detect_language

    language = detect_language(os.path.basename(name), "")
    return "tree" if language is not None and language.kind == "code" else ""


def kind_by_bytes(path: Path) -> str:
    """The kind of a file by its first bytes; "unsupported" where they are of none."""
    with open(path, "rb") as file:
        head = file.read(HEAD_BYTES)
    if head.startswith(b"\x1f\x8b"):
        try:
            head = zlib.decompressobj(31).decompress(head, HEAD_BYTES)
        except zlib.error:
            return "unsupported"
        return "warc" if head.startswith(b"WARC/") else "unsupported"
    for start, kind in ((b"%PDF-", "pdf"), (b"PAR1", "parquet"), (b"WARC/", "warc")):
        if head.startswith(start):
            return kind
    if head.startswith(b"PK\x03\x04"):
        return "epub" if b"mimetypeapplication/epub+zip" in head else "unsupported"
    if _PAGE_START.match(head.removeprefix(b"\xef\xbb\xbf")):
        return "html"
    return _text_kind(head)


def _text_kind(head: bytes) -> str:
    if b"\0" in head:
        return "unsupported"
    try:
        head[: max(len(head) - 3, 0)].decode("utf-8")  # the last character may be cut
    except UnicodeDecodeError as error:
        if error.start < len(head) - 7:
            return "unsupported"
    line = head.partition(b"\n")[0].strip()
    if line.startswith(b"{") and len(head) == HEAD_BYTES and len(line) > HEAD_BYTES - 2:  # one long line
        return "jsonl"
    try:
        return "jsonl" if isinstance(json.loads(line), dict) else "text"
    except (ValueError, RecursionError):
        return "text"


def _roots(settings: InputSettings) -> Iterator[_Root]:
    for text in settings.paths:
        path = Path(text).expanduser()
        name = path.resolve().name
        if path.exists():
            yield _Root(path, "", name, settings.source or name.partition(".")[0] or name)
            continue
        matches = sorted(glob.glob(str(path), recursive=True)) if glob.has_magic(str(path)) else []
        if not matches:
            raise DataError(f"{text} matches no file and no folder: check the paths of the input")
        base = path
        while glob.has_magic(str(base)):
            base = base.parent
        source = settings.source or base.resolve().name or "input"
        if settings.kind == "tree":  # what is installed is described there, and is no source of its own
            matches = [match for match in matches if not match.endswith((".dist-info", ".egg-info", "__pycache__"))]
        for match in map(Path, matches):
            name = match.relative_to(base).as_posix()
            yield _Root(match, f"{name}/" if match.is_dir() else name, name, source)


def _in_input(settings: InputSettings, index: int) -> Iterator[Piece]:
    if settings.kind == "packages":
        for name in settings.paths:
            yield Piece(Path(name), name, settings.source or name, "packages", index, 0, settings.max_bytes)
        return
    for root in _roots(settings):
        yield from _in_root(root, settings, index)


def _in_root(root: _Root, settings: InputSettings, index: int) -> Iterator[Piece]:
    if settings.kind == "git":
        from puyulm.data.format.trees import revision_and_size

        revision, size = revision_and_size(root.path)
        yield Piece(root.path, root.name, root.source, "git", index, 0, size, revision)
    elif root.path.is_dir():
        found = False
        for path, name, skipped in _walk(root.path, settings.kind == "tree"):
            found = True
            kind, detail = _kind(path, settings, named=False) if not skipped else ("skipped", skipped)
            size = 0 if path.is_dir() else _size(path)
            if kind == "tree":
                name, detail = f"{root.name}/{name}", root.name
            else:
                name = root.prefix + name
            yield Piece(path, name, root.source, kind, index, 0, size, detail)
        if not found:
            raise DataError(f"{root.path} is an empty folder: check the paths of the input")
    else:
        kind, detail = _kind(root.path, settings, named=True)
        yield Piece(root.path, root.prefix or root.path.name, root.source, kind, index, 0, _size(root.path), detail)


def _kind(path: Path, settings: InputSettings, named: bool) -> tuple[str, str]:
    """(kind, detail) of a file. A file that is named itself is of the kind that the settings say."""
    if not path.is_file():
        return "skipped", "not a file"
    if path.name.endswith(".bin.meta") and path.with_suffix("").is_file():
        return "skipped", "belongs to another file"
    if settings.kind == "tree" or (settings.kind != "auto" and named):
        return settings.kind, ""
    tokens = path.suffix == ".bin" and path.with_name(path.name + ".meta").is_file()
    kind = "internevo" if tokens else kind_by_name(path.name)
    if path.suffix == ".json":  # lines of JSON, or one JSON text over many lines
        kind = "jsonl" if _bytes_kind(path) == "jsonl" else "unsupported"
    if settings.kind != "auto":
        return (kind, "") if kind == settings.kind else ("skipped", "another kind of file")
    if kind == "internevo" and settings.tokenizer is None:
        raise DataError(f"{path} holds tokens: give the folder of their tokenizer as 'tokenizer' of the input")
    return kind or _bytes_kind(path), ""


def _bytes_kind(path: Path) -> str:
    try:
        return kind_by_bytes(path)
    except OSError:
        return "text"  # its reader says that it cannot be read


def _walk(folder: Path, hidden: bool) -> Iterator[tuple[Path, str, str]]:
    """(path, name below the folder, why it is skipped) of files, and of the folders that are left out."""
    for here, folders, files in os.walk(folder):
        kept = []
        for name in sorted(folders):
            if name in SKIPPED_FOLDERS or (name.startswith(".") and not hidden):
                yield Path(here, name), _name(folder, here, name), "folders such as .git and node_modules"
            else:
                kept.append(name)
        folders[:] = kept
        for name in sorted(files):
            skipped = "hidden files" if name.startswith(".") and not hidden else ""
            if hidden and Path(here, name).is_symlink():  # it may lead out of the tree
                skipped = "links and submodules"
            yield Path(here, name), _name(folder, here, name), skipped


def _name(folder: Path, here: str, name: str) -> str:
    """A path below a folder, as UTF-8 text whatever bytes its names hold."""
    return os.fsencode(Path(here, name).relative_to(folder).as_posix()).decode("utf-8", "replace")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
