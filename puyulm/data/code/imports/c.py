"""Includes of C, C++, Objective-C and CUDA files.

`#include "x.h"` is looked for beside the file and then, since include folders are not known, among all files whose path
ends in it, the nearest first; `#include <a/x.h>` only by a path of two parts or in a folder called `include`. A header
that only includes others is a collection: who includes it depends on those of its headers that it uses.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from puyulm.data.code.imports.index import Edges, FileIndex, folder_of, joined, nearest
from puyulm.data.code.imports.lexing import blank, quoted, words_of_code

SUFFIXES = (
    ".c", ".h", ".cc", ".cpp", ".cxx", ".c++", ".hh", ".hpp", ".hxx", ".h++", ".ipp", ".inl", ".tpp", ".tcc", ".m",
    ".mm", ".cu", ".cuh", ".def", ".inc",
)  # fmt: skip

_INCLUDE = re.compile(r'^[ \t]*#[ \t]*(?:include|include_next|import)[ \t]*(?=(["<]))', re.MULTILINE)
_ANGLE = re.compile(r"<([^<>\n]+)>")
_DIRECTIVE = re.compile(r"^[ \t]*#(?:[^\\\n]++|\\[\s\S])*+", re.MULTILINE)
_WRAPPER = re.compile(r'\bextern\s*"\s*"\s*\{|\}|;')
_VALUED = re.compile(r"^[ \t]*#[ \t]*define[ \t]+\w+(?:\(|[ \t]+[^\s/])", re.MULTILINE)
_DECLARED = re.compile(
    r"^[ \t]*#[ \t]*define[ \t]+(\w+)"
    r"|\b(?:struct|class|union|enum(?:\s+class)?|using|concept|@interface|@protocol)\s+(\w+)"
    r"|(\w+)[ \t]*(?=[(;,=\[])",
    re.MULTILINE,
)


def c_edges(files: Mapping[str, str]) -> Edges:
    """What each file includes of the others.

    Args:
        files: Path -> text of all files of these languages in a repository.
    """
    sources = {path: _Source(text) for path, text in files.items()}
    index = FileIndex(sources)
    included = {path: list(_included(path, source, index)) for path, source in sources.items()}
    return {path: _used(path, included, sources) - {path} for path in sources}


@dataclass
class _Source:
    text: str

    @cached_property
    def blanked(self) -> str:
        return blank(self.text, "c")

    @cached_property
    def words(self) -> frozenset[str]:
        return words_of_code(self.blanked)

    @cached_property
    def declared(self) -> frozenset[str]:
        return frozenset(name for names in _DECLARED.findall(self.blanked) for name in names if name)

    @cached_property
    def only_includes(self) -> bool:
        """Whether nothing stands here but directives, none of which defines anything but a guard."""
        return not _VALUED.search(self.blanked) and not _WRAPPER.sub("", _DIRECTIVE.sub("", self.blanked)).strip()


def _included(path: str, source: _Source, index: FileIndex) -> Iterator[str]:
    for match in _INCLUDE.finditer(source.blanked):
        place = match.end()
        if match[1] == '"':
            name = quoted(source.text, source.blanked, place)
        else:
            angle = _ANGLE.match(source.text, place)
            name = angle[1] if angle else ""
        found = _resolve(name.strip().replace("\\", "/"), match[1] == "<", path, index) if name.strip() else None
        if found is not None and found != path:
            yield found


def _resolve(name: str, angle: bool, origin: str, index: FileIndex) -> str | None:
    if not angle:
        beside = joined(folder_of(origin), name)
        if beside is not None and beside in index.paths:
            return beside
    suffix = joined("", name.removeprefix("./").lstrip("/")) or re.sub(r"^(?:\.\./)+", "", name)
    found = index.ending(suffix)
    if angle and "/" not in suffix:
        found = [path for path in found if folder_of(path).rpartition("/")[2] == "include"]
    return nearest(found, origin)


def _used(path: str, included: Mapping[str, list[str]], sources: Mapping[str, _Source]) -> set[str]:
    """The files that a file includes, collections replaced by those of their headers that it uses."""
    found: set[str] = set()
    for target in included[path]:
        if not _is_collection(target, included, sources) or _is_collection(path, included, sources):
            found.add(target)
            continue
        members = _members(target, included, sources)
        used = {member for member in members if sources[member].declared & sources[path].words}
        found |= used or {target}
    return found


def _members(header: str, included: Mapping[str, list[str]], sources: Mapping[str, _Source]) -> set[str]:
    """Headers that a collection brings, those of collections in it too."""
    found: set[str] = set()
    seen = {header}
    waiting = [header]
    while waiting:
        for target in included[waiting.pop()]:
            if target in seen:
                continue
            seen.add(target)
            if _is_collection(target, included, sources):
                waiting.append(target)
            else:
                found.add(target)
    return found


def _is_collection(path: str, included: Mapping[str, list[str]], sources: Mapping[str, _Source]) -> bool:
    return len(included[path]) > 1 and sources[path].only_includes
