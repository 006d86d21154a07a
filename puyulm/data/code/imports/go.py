"""Imports of Go files. A package is a folder; of its files those count whose names the importing file uses."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from puyulm.data.code.imports.index import Edges, ancestors, folder_of
from puyulm.data.code.imports.lexing import blank, quoted

SUFFIXES = (".go",)

_MODULE = re.compile(r"^\s*module\s+\"?([^\s\"/]+(?:/[^\s\"]+)*)", re.MULTILINE)
_PACKAGE = re.compile(r"^[ \t]*package\s+(\w+)", re.MULTILINE)
_IMPORTS = re.compile(r"^[ \t]*import\s*(?:\(([^()]*)\)|([^\n;]*))", re.MULTILINE)
_SPEC = re.compile(r"(?:([\w.]+)[ \t]*)?([\"`])")
_DECLARED = re.compile(
    r"^(?:func|type|var|const)[ \t]+([A-Za-z_]\w*)|^(?:type|var|const)[ \t]*\(([^()]*)", re.MULTILINE
)
_IN_GROUP = re.compile(r"^[ \t]*([A-Za-z_]\w*(?:[ \t]*,[ \t]*\w+)*)", re.MULTILINE)
_BARE = re.compile(r"(?<![\w.])[A-Za-z_]\w*")


def go_edges(files: Mapping[str, str], modules: Mapping[str, str]) -> Edges:
    """What each Go file uses of the others, in imported packages and in its own.

    Args:
        files: Path -> text of all Go files of a repository.
        modules: Path -> text of its go.mod files.
    """
    sources = {path: _Source(path, text) for path, text in sorted(files.items())}
    packages: dict[str, list[_Source]] = defaultdict(list)
    for path, source in sources.items():
        packages[folder_of(path)].append(source)
    names = {folder_of(path): match[1] for path, text in modules.items() if (match := _MODULE.search(text))}
    return {path: set(_targets(source, packages, names)) - {path} for path, source in sources.items()}


@dataclass
class _Source:
    path: str
    text: str

    @cached_property
    def blanked(self) -> str:
        return blank(self.text, "go")

    @property
    def is_test(self) -> bool:
        return self.path.endswith("_test.go")

    @cached_property
    def package(self) -> str:
        match = _PACKAGE.search(self.blanked)
        return match[1] if match else ""

    @cached_property
    def declared(self) -> frozenset[str]:
        names = set()
        for name, group in _DECLARED.findall(self.blanked):
            names |= {name} if name else set(re.findall(r"\w+", " ".join(_IN_GROUP.findall(group))))
        return frozenset(names - {"main", "init", "_"})

    @cached_property
    def bare(self) -> frozenset[str]:
        return frozenset(_BARE.findall(self.blanked))

    @cached_property
    def imports(self) -> list[tuple[str, str]]:
        """(name given here or "", path) of each imported package."""
        return list(dict.fromkeys(self._specs()))

    def _specs(self) -> Iterator[tuple[str, str]]:
        for match in _IMPORTS.finditer(self.blanked):
            part = 1 if match[1] is not None else 2
            for spec in _SPEC.finditer(self.blanked, match.start(part), match.end(part)):
                if path := quoted(self.text, self.blanked, spec.start(2)):
                    yield spec[1] or "", path


def _targets(source: _Source, packages: Mapping[str, list[_Source]], modules: Mapping[str, str]) -> Iterator[str]:
    folder = folder_of(source.path)
    for other in packages[folder]:
        if other.package == source.package and other.declared & source.bare and (source.is_test or not other.is_test):
            yield other.path
    for alias, path in source.imports:
        target = _folder(path, folder, packages, modules)
        if target is None or (target == folder and not source.is_test):
            continue
        members = [other for other in packages[target] if not other.is_test]
        called = alias or (members[0].package if members else "")
        used = set(re.findall(rf"(?<![\w.]){re.escape(called)}\.(\w+)", source.blanked)) if called else set()
        if alias == ".":
            used = set(source.bare)
        found = [other.path for other in members if other.declared & used]
        yield from found or [other.path for other in members]


def _folder(path: str, origin: str, packages: Mapping[str, list[_Source]], modules: Mapping[str, str]) -> str | None:
    """The folder of an imported package, if it is in the repository."""
    own = next((folder for folder in ancestors(origin) if folder in modules), None)
    for module in ([own] if own is not None else []) + sorted(modules):
        name = modules[module]
        if path == name or path.startswith(name + "/"):
            folder = "/".join(part for part in (module, path[len(name) + 1 :]) if part)
            if folder in packages:
                return folder
    if not modules and "." in path.partition("/")[0]:  # before modules: host/owner/name/folder
        folder = "/".join(path.split("/")[3:])
        return folder if folder in packages else None
    return None
