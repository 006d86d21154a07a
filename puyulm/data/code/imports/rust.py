"""Imports of Rust files: `mod`, and paths that begin with crate, self, super, a module or a crate of the repository.

A path leads to the file of the module that it ends in. A name that a module only hands on (`pub use`) leads to the file
that it comes from. `mod` and `pub use` make a file part of the crate; where that closes a circle, since that file needs
what stands in `lib.rs`, they are no import.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from puyulm.data.code.graph import circles_of
from puyulm.data.code.imports.index import Edges, ancestors, folder_of, joined
from puyulm.data.code.imports.lexing import blank, quoted

SUFFIXES = (".rs",)

_MAX_CHAIN = 8  # of modules that hand a name on, and of braces in one `use`

_MOD = re.compile(r"^[ \t]*(?:pub(?:\([^()\n]*\))?[ \t]+)?mod[ \t]+(\w+)[ \t]*;", re.MULTILINE)
_PATH_ATTRIBUTE = re.compile(r"#\[path[ \t]*=[ \t]*(?=\"[ ]*\"\][^;{}]{0,200}?\bmod[ \t]+(\w+))")
_BRACE = re.compile(r"\bmod[ \t]+\w+\s*\{|[{}]")
_USE = re.compile(r"\b(pub(?:\([^()\n]*\))?\s+)?use\s+([^;]{1,4000});")
_PATH = re.compile(r"(?<![\w:])(?:crate|self|super)(?:::\w+)+")
_CRATE_NAME = re.compile(r"^\[(?:package|lib)\](?:(?!^\[)[\s\S])*?^name\s*=\s*\"([\w-]+)\"", re.MULTILINE)
_TOKEN = re.compile(r"::|[{},*]|\w+")


@dataclass(frozen=True)
class Use:
    """One path of a `use` declaration: its names, and what it is called in the module ("*" for all that it has)."""

    parts: tuple[str, ...]
    called: str


def rust_edges(files: Mapping[str, str], manifests: Mapping[str, str]) -> Edges:
    """What each Rust file names of the others.

    Args:
        files: Path -> text of all Rust files of a repository.
        manifests: Path -> text of its Cargo.toml files.
    """
    modules = _Modules(
        {path: _Source(text) for path, text in sorted(files.items())},
        {
            name.replace("-", "_"): folder_of(path)
            for path, text in sorted(manifests.items())
            for name in _CRATE_NAME.findall(text)
        },
    )
    edges = {path: modules.targets(path) | modules.declared(path) for path in modules.files}
    circles = circles_of(list(edges), edges)
    return {
        path: {t for t in targets if circles[t] != circles[path] or t in modules.targets(path)}
        for path, targets in edges.items()
    }


def expand_use(tree: str) -> list[Use]:
    """The paths of a `use` declaration: `a::{b, c::{self, d as e}}` is a::b, a::c, and a::c::d called e."""
    found: list[Use] = []
    stack: list[tuple[str, ...]] = []
    path: tuple[str, ...] = ()
    alias: str | None = None
    tokens = iter([*_TOKEN.findall(tree), ","])
    for token in tokens:
        if token == "{":
            if len(stack) == _MAX_CHAIN:
                break  # no program that somebody wrote
            stack.append(path)
        elif token == "as":
            alias = next(tokens)
        elif token in (",", "}"):
            around = stack[-1] if stack else ()
            if path != around:
                parts = path[:-1] if path[-1] in ("*", "self") and len(path) > 1 else path
                found.append(Use(parts, "*" if path[-1] == "*" else alias or parts[-1]))
            if token == "}" and stack:
                stack.pop()
            path, alias = stack[-1] if stack else (), None
        elif token != "::":
            path = (*path, token)
    return found


@dataclass
class _Source:
    text: str

    @cached_property
    def blanked(self) -> str:
        return blank(self.text, "rust")

    @cached_property
    def uses(self) -> list[tuple[int, bool, Use]]:
        """(inline modules around it, whether it is public, what) of each `use`."""
        return [
            (self._depth(match.start()), bool(match[1]), use)
            for match in _USE.finditer(self.blanked)
            for use in expand_use(match[2])
        ]

    def paths(self) -> Iterator[tuple[int, tuple[str, ...]]]:
        """(inline modules around it, names) of each path in the file that may lead to another that it needs."""
        for depth, public, use in self.uses:
            if not public:
                yield depth, use.parts
        for match in _PATH.finditer(self.blanked):
            yield self._depth(match.start()), tuple(match[0].split("::"))

    def _depth(self, position: int) -> int:
        places, depths = self._inline_modules
        return depths[bisect.bisect_right(places, position)]

    @cached_property
    def _inline_modules(self) -> tuple[list[int], list[int]]:
        """Where the number of `mod name { }` around changes, and the numbers; one more than there are places."""
        places: list[int] = []
        depths = [0]
        stack: list[bool] = []
        for match in _BRACE.finditer(self.blanked):
            opens = match[0] != "}"
            if opens:
                stack.append(match[0] != "{")
            is_module = stack[-1] if opens else stack.pop() if stack else False
            if is_module:
                places.append(match.end())
                depths.append(depths[-1] + (1 if opens else -1))
        return places, depths


@dataclass
class _Modules:
    files: dict[str, _Source]
    crates: dict[str, str]  # name -> folder
    _parents: dict[str, str] = field(default_factory=dict)
    _targets: dict[str, set[str]] = field(default_factory=dict)

    @cached_property
    def _children(self) -> dict[str, dict[str, str]]:
        """File -> name of a module declared in it -> that module's file."""
        children: dict[str, dict[str, str]] = {}
        for path, source in self.files.items():
            children[path] = dict(self._declared(path, source))
            for child in children[path].values():
                self._parents.setdefault(child, path)
        return children

    def targets(self, path: str) -> set[str]:
        """Files that one names because it needs them."""
        if path not in self._targets:
            named = {self._resolve(path, inside, parts, 0) for inside, parts in self.files[path].paths()}
            self._targets[path] = {target for target in named if target is not None} - {path}
        return self._targets[path]

    def declared(self, path: str) -> set[str]:
        """Files that one only makes part of the crate, or hands on."""
        uses = [use.parts for inside, public, use in self.files[path].uses if public and not inside]
        handed = {self._resolve(path, 0, parts, 0) for parts in uses}
        return {target for target in handed if target is not None} - {path} | set(self._children[path].values())

    def _declared(self, path: str, source: _Source) -> Iterator[tuple[str, str]]:
        renamed = {
            match[1]: joined(folder_of(path), quoted(source.text, source.blanked, match.end()))
            for match in _PATH_ATTRIBUTE.finditer(source.blanked)
        }
        folder, stem = folder_of(path), path.rpartition("/")[2].removesuffix(".rs")
        # The files of a module x lie in a folder x, those of a crate's first file and of x/mod.rs beside it.
        folders = [folder] if stem in ("lib", "main", "mod") else [_below(folder, stem), folder]
        for match in _MOD.finditer(source.blanked):
            name = match[1]
            places = [f"{_below(place, name)}{ending}" for place in folders for ending in (".rs", "/mod.rs")]
            found = next((place for place in [renamed.get(name), *places] if place in self.files), None)
            if found is not None and found != path:
                yield name, found

    def _resolve(self, path: str, inside: int, parts: tuple[str, ...], chain: int) -> str | None:
        """The file of the module that a path of names leads to, from a file and so many inline modules in it."""
        first = parts[0]
        if first == "crate":
            return self._descend(self._root(path), parts[1:], chain)
        if first in ("self", "super"):
            ups = next((i for i, part in enumerate(parts) if part != "super"), len(parts))
            module: str | None = path
            for _ in range(ups - inside):
                module = self._parent(module) if module is not None else None
            if module is None or ups < inside:
                return None
            return self._descend(module, parts[max(ups, 1) :], chain)
        if not inside and first in self._children[path]:
            return self._descend(path, parts, chain)
        library = _below(self.crates[first], "src/lib.rs") if first in self.crates else ""
        return self._descend(library, parts[1:], chain) if library in self.files else None

    def _descend(self, module: str | None, parts: tuple[str, ...], chain: int) -> str | None:
        for position, part in enumerate(parts):
            if module is None:
                break
            below = self._children[module].get(part)
            if below is None:
                return self._handed_on(module, part, parts[position + 1 :], chain) or module
            module = below
        return module

    def _handed_on(self, module: str, name: str, rest: tuple[str, ...], chain: int) -> str | None:
        if chain >= _MAX_CHAIN:
            return None
        for inside, public, use in self.files[module].uses:
            if public and not inside and use.called == name:
                return self._resolve(module, 0, (*use.parts, *rest), chain + 1)
        return None

    def _parent(self, path: str) -> str | None:
        self._children  # noqa: B018 - finds the parents
        return self._parents.get(path)

    def _root(self, path: str) -> str | None:
        """The file that the crate begins with."""
        seen = {path}
        while (parent := self._parent(path)) is not None and parent not in seen:
            seen.add(parent)
            path = parent
        if len(seen) > 1 or path.endswith(("/lib.rs", "/main.rs")) or path in ("lib.rs", "main.rs"):
            return path
        roots = (_below(f, name) for f in ancestors(folder_of(path)) for name in ("lib.rs", "main.rs"))
        return next((root for root in roots if root in self.files), path)


def _below(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name
