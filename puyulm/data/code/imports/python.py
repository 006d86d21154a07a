"""Imports of Python files.

Relative and absolute imports, packages and namespace packages. A package's `__init__.py` often collects everything the
package has; who imports a name from it depends on the file that defines the name and not on all the rest, so such
imports are followed to that file. Regular expressions on text without strings and comments are used rather than `ast`:
they read all versions of Python, and files with errors, and their answer does not depend on the interpreter.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from puyulm.data.code.imports.index import Edges, ancestors, folder_of, nearest
from puyulm.data.code.imports.lexing import blank

SUFFIXES = (".py", ".pyx", ".pyi", ".pxd")
_SOURCE_FOLDERS = ("", "src", "lib", "python")  # folders that stand on the path of a project, by custom
_MAX_CHAIN = 8  # of packages that pass a name on

_STATEMENT = re.compile(
    r"(?:^|[;:])[ \t]*(?:from(?:[ \t]+|(?=\.))(?P<dots>[. \t]*)(?P<module>[\w.]*)[ \t]+c?import\b[ \t]*"
    r"(?P<names>\([^()]*\)?|[^\n;]*)|c?import[ \t]+(?P<modules>[\w.][^\n;]*))",
    re.MULTILINE,
)
_NAME = re.compile(r"\s*([\w.]+|\*)(?:\s+as\s+(\w+))?")
_DEFINED = re.compile(
    r"^(?:async[ \t]+)?(?:def|class|cdef class|cpdef)[ \t]+(\w+)|^(\w+)[ \t]*(?::[^=\n]+)?=(?!=)", re.M
)
_ALL = re.compile(r"^__all__[ \t]*(?:\+?=|\.extend\()[ \t]*[\[(]([^\])]*)", re.MULTILINE)
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Import:
    """One imported name or module.

    Attributes:
        level: Leading dots.
        module: Dotted; empty for `from . import name`.
        name: What is imported from it, "*" for all; None for `import module`.
        alias: What it is called in the file.
    """

    level: int
    module: str
    name: str | None
    alias: str


def find_imports(text: str) -> list[Import]:
    """All import statements of a file, in order; those in functions and under conditions too."""
    return list(_imports(blank(text, "python").replace("\\\n", "  ")))


def python_edges(files: Mapping[str, str]) -> Edges:
    """What each Python file imports of the others.

    Args:
        files: Path -> text of all Python files of a repository.
    """
    modules = _Modules({path: _PythonFile(text) for path, text in sorted(files.items())})
    return {path: modules.targets(path) for path in modules.files}


def _imports(blanked: str) -> Iterator[Import]:
    for match in _STATEMENT.finditer(blanked):
        if match["modules"]:
            for part in match["modules"].split(","):
                if name := _NAME.match(part):
                    yield Import(0, name[1], None, name[2] or "")
            continue
        level = match["dots"].count(".")
        for part in match["names"].strip("() \t\n").split(","):
            if name := _NAME.match(part):
                yield Import(level, match["module"], name[1], name[2] or name[1])


@dataclass
class _PythonFile:
    text: str
    _attributes: dict[str, list[str]] = field(default_factory=dict)

    @cached_property
    def blanked(self) -> str:
        return blank(self.text, "python").replace("\\\n", "  ")

    @cached_property
    def imports(self) -> list[Import]:
        return list(dict.fromkeys(_imports(self.blanked)))

    @cached_property
    def bound(self) -> frozenset[str]:
        """Names of the module: defined or imported; "*" where it imports all of another."""
        defined = {a or b for a, b in _DEFINED.findall(self.blanked)}
        return frozenset(defined | {statement.alias or statement.module for statement in self.imports})

    def exports(self, name: str) -> bool:
        """Whether `from module import *` may bring a name: it is in `__all__`, or there is none."""
        return not self._all or any(name in names for names in self._all)

    @cached_property
    def _all(self) -> list[frozenset[str]]:
        return [frozenset(_WORD.findall(names)) for names in _ALL.findall(self.text)]

    def attributes(self, name: str) -> list[str]:
        """Names that are looked up in a module called `name` here."""
        if name not in self._attributes:
            found = re.findall(rf"(?<![\w.]){re.escape(name)}[ \t]*\.[ \t]*(\w+)", self.blanked)
            self._attributes[name] = sorted(set(found))
        return self._attributes[name]


@dataclass
class _Modules:
    files: dict[str, _PythonFile]
    _roots: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    _definers: dict[tuple[str, str], str | None] = field(default_factory=dict)

    @cached_property
    def _by_module(self) -> dict[str, str]:
        """Path without suffix -> file; a package's path is its folder."""
        found: dict[str, str] = {}
        for suffix in SUFFIXES:  # sources before stubs and headers; a package before a module of its name
            for package in (True, False):
                for path in self.files:
                    stem = path.removesuffix(suffix)
                    if stem != path and (stem.rpartition("/")[2] == "__init__") == package:
                        found.setdefault(folder_of(path) if package else stem, path)
        return found

    @cached_property
    def _tops(self) -> dict[str, list[str]]:
        """Name -> folders, not packages themselves, in which a package or module of that name lies."""
        found: dict[str, list[str]] = {}
        for module in sorted(self._by_module):
            folder, _, name = module.rpartition("/")
            if name and not self._is_package(folder):
                found.setdefault(name, []).append(folder)
        return found

    def targets(self, path: str) -> set[str]:
        file = self.files[path]
        return {target for statement in file.imports for target in self._targets_of(statement, path, file)} - {path}

    def _targets_of(self, statement: Import, path: str, file: _PythonFile) -> Iterator[str]:
        module = self._module(statement, path)
        if module is None:
            return
        target = self._by_module.get(module)
        if statement.name is None:
            called = statement.alias or statement.module
            names = file.attributes(called) if target is not None and _is_init(target) else []
        elif target is not None and not _is_init(target):
            names = []
        else:
            names = [statement.name]
        if not names and target is not None:
            yield target
        for name in names:
            where = self._defining(module, name) if name != "*" else None
            if found := where or target:
                yield found

    def _module(self, statement: Import, path: str) -> str | None:
        """The path of the module that a statement names, without suffix; None if it is not in the repository."""
        parts = statement.module.split(".") if statement.module else []
        if statement.level:
            folders = ancestors(folder_of(path))
            if statement.level > len(folders):
                return None
            return _below(folders[statement.level - 1], parts)
        for root in self._candidates(folder_of(path), parts[0]):
            module = _below(root, parts)
            if module in self._by_module or (statement.name and _below(module, [statement.name]) in self._by_module):
                return module
        return None

    def _candidates(self, folder: str, top: str) -> list[str]:
        """Folders in which an absolute import may begin, the likeliest first."""
        if (folder, top) not in self._roots:
            above = [other for other in ancestors(folder) if not self._is_package(other)]
            # Elsewhere in the repository only packages count, and modules where projects keep their sources: a
            # script called json.py in some folder is not what `import json` means.
            others = [
                root for root in self._tops.get(top, ())
                if root not in above
                and (_is_init(self._by_module[_below(root, [top])]) or root.rpartition("/")[2] in _SOURCE_FOLDERS)
            ]  # fmt: skip
            ordered = []
            while others:
                best = nearest([f"{root}/" for root in others], f"{folder}/")
                assert best is not None
                ordered.append(best[:-1])
                others.remove(best[:-1])
            self._roots[folder, top] = above + ordered
        return self._roots[folder, top]

    def _defining(self, module: str, name: str, chain: int = 0) -> str | None:
        """The file that defines a package's or module's name; None if none is found.

        A package's name may be defined in its `__init__.py`, be handed on by it from elsewhere, or be a module of it.
        """
        if chain or (module, name) not in self._definers:
            self._definers[module, name] = self._look_for(module, name, chain)
        return self._definers[module, name]

    def _look_for(self, module: str, name: str, chain: int) -> str | None:
        init = self._by_module.get(module)
        submodule = self._by_module.get(_below(module, [name]))
        if init is None or chain > _MAX_CHAIN:
            return submodule
        file = self.files[init]
        if not _is_init(init):
            return init if name in file.bound or "*" in file.bound else None
        for statement in file.imports:
            if statement.name is not None and statement.alias == name:
                return self._handed_on(statement, init, statement.name, chain) or submodule or init
        if name in file.bound:
            return init
        stars = (self._handed_on(statement, init, name, chain) for statement in file.imports if statement.name == "*")
        return submodule or next((where for where in stars if where is not None), None)

    def _handed_on(self, statement: Import, init: str, name: str, chain: int) -> str | None:
        """Where a name comes from that `__init__.py` imports by a statement."""
        module = self._module(statement, init)
        if module is None:
            return None
        if module == folder_of(init):  # `from . import name`
            return self._by_module.get(_below(module, [name]))
        target = self._by_module.get(module)
        if statement.name != "*" and target is not None and not _is_init(target):
            return target
        if statement.name == "*" and target is not None and not self.files[target].exports(name):
            return None
        return self._defining(module, name, chain + 1)

    def _is_package(self, folder: str) -> bool:
        return any(_below(folder, [f"__init__{suffix}"]) in self.files for suffix in SUFFIXES)


def _below(folder: str, parts: list[str]) -> str:
    return "/".join([*([folder] if folder else []), *parts])


def _is_init(path: str) -> bool:
    return path.rpartition("/")[2].partition(".")[0] == "__init__"
