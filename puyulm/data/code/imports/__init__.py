"""Which files of a repository import which others."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from puyulm.data.code.imports.c import SUFFIXES as C_SUFFIXES
from puyulm.data.code.imports.c import c_edges
from puyulm.data.code.imports.go import SUFFIXES as GO_SUFFIXES
from puyulm.data.code.imports.go import go_edges
from puyulm.data.code.imports.index import Edges
from puyulm.data.code.imports.java import SUFFIXES as JAVA_SUFFIXES
from puyulm.data.code.imports.java import java_edges
from puyulm.data.code.imports.javascript import SUFFIXES as JAVASCRIPT_SUFFIXES
from puyulm.data.code.imports.javascript import javascript_edges
from puyulm.data.code.imports.python import SUFFIXES as PYTHON_SUFFIXES
from puyulm.data.code.imports.python import python_edges
from puyulm.data.code.imports.rust import SUFFIXES as RUST_SUFFIXES
from puyulm.data.code.imports.rust import rust_edges


def import_edges(files: Mapping[str, str]) -> Edges:
    """What each file of a repository imports of its other files.

    Python, C and its relatives, Java, JavaScript and TypeScript, Go, and Rust are read. Comments and strings give no
    imports. Imports that collect many files (`__init__.py`, headers that only include, wildcards, Go's packages,
    `pub use`) are followed to those files whose names are used (InternLM2 report, section 3.1.2).

    Args:
        files: Path in the repository -> text, of all files; others than the above count as manifests or not at all.

    Returns:
        Path -> paths, for files that import at least one.
    """
    go_modules, manifests = _named(files, "go.mod"), _named(files, "Cargo.toml")
    kinds: tuple[tuple[tuple[str, ...], Callable[[Mapping[str, str]], Edges]], ...] = (
        (PYTHON_SUFFIXES, python_edges),
        (C_SUFFIXES, c_edges),
        (JAVA_SUFFIXES, java_edges),
        (JAVASCRIPT_SUFFIXES, javascript_edges),
        (GO_SUFFIXES, lambda sources: go_edges(sources, go_modules)),
        (RUST_SUFFIXES, lambda sources: rust_edges(sources, manifests)),
    )
    found: Edges = {}
    for suffixes, edges_of in kinds:
        sources = {path: text for path, text in files.items() if path.lower().endswith(suffixes)}
        if sources:
            found.update({path: targets for path, targets in edges_of(sources).items() if targets})
    return found


def _named(files: Mapping[str, str], name: str) -> dict[str, str]:
    return {path: text for path, text in files.items() if path.rpartition("/")[2] == name}
