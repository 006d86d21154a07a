"""Imports of Java files: classes, nested classes and static members, wildcards, and classes of the same package."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping

from puyulm.data.code.imports.index import Edges, nearest
from puyulm.data.code.imports.lexing import blank, words_of_code

SUFFIXES = (".java",)

_PACKAGE = re.compile(r"^[ \t]*package\s+([\w.]+)\s*;", re.MULTILINE)
_IMPORT = re.compile(r"^[ \t]*import\s+(?:static\s+)?([\w.]+?)(\.\*)?\s*;", re.MULTILINE)

Classes = Mapping[str, Mapping[str, list[str]]]


def java_edges(files: Mapping[str, str]) -> Edges:
    """What each Java file imports of the others. A wildcard, and the file's own package, bring the classes whose names
    occur in the file.

    Args:
        files: Path -> text of all Java files of a repository.
    """
    blanked = {path: blank(text, "java") for path, text in sorted(files.items())}
    classes: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    packages = {}
    for path, text in blanked.items():
        match = _PACKAGE.search(text)
        packages[path] = match[1] if match else ""
        classes[packages[path]][_class_of(path)].append(path)
    return {path: set(_targets(path, text, packages[path], classes)) - {path} for path, text in blanked.items()}


def _targets(path: str, text: str, package: str, classes: Classes) -> Iterator[str]:
    words = words_of_code(_IMPORT.sub("", _PACKAGE.sub("", text)))
    named: set[str] = set()
    wildcards = [package]
    for match in _IMPORT.finditer(text):
        if match[2] and match[1] in classes:
            wildcards.append(match[1])
        elif found := _class_named(match[1], path, classes):
            yield found
        if not match[2]:
            named.add(match[1].rpartition(".")[2])
    for wildcard in dict.fromkeys(wildcards):
        yield from _classes_in(wildcard, words - named, path, classes)  # an import by name hides others of that name


def _class_named(name: str, origin: str, classes: Classes) -> str | None:
    """The file of a class; of a nested class or a member, that of the class around it."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        package, simple = ".".join(parts[: count - 1]), parts[count - 1]
        if package in classes and simple in classes[package]:
            return nearest(classes[package][simple], origin)
    return None


def _classes_in(package: str, words: frozenset[str], origin: str, classes: Classes) -> Iterator[str]:
    for simple, paths in classes.get(package, {}).items():
        if simple in words and simple != _class_of(origin) and (found := nearest(paths, origin)):
            yield found


def _class_of(path: str) -> str:
    return path.rpartition("/")[2].removesuffix(".java")
