"""Imports of JavaScript and TypeScript: relative paths in `import`, `export ... from`, `require` and `import()`."""

from __future__ import annotations

import re
from collections.abc import Mapping

from puyulm.data.code.imports.index import Edges, folder_of, joined
from puyulm.data.code.imports.lexing import blank, quoted

SUFFIXES = (".ts", ".tsx", ".mts", ".cts", ".js", ".jsx", ".mjs", ".cjs", ".vue", ".svelte")

_SPECIFIER = re.compile(r"""(?<![.\w$])(?:from|import|(?:require|import)\s*\()\s*(?=["'`])""")
# TypeScript imports a source by the name that it will have: "./a.js" is a.ts.
_SOURCES_OF = {".js": (".ts", ".tsx", ".js"), ".mjs": (".mts",), ".cjs": (".cts",), ".jsx": (".tsx",)}
_ENDINGS = ("", ".ts", ".tsx", ".d.ts", ".js", ".jsx", ".mjs", ".cjs", ".mts", ".cts", ".vue", ".svelte")
_INDEX = tuple(f"/index{suffix}" for suffix in _ENDINGS if suffix)


def javascript_edges(files: Mapping[str, str]) -> Edges:
    """What each file imports of the others.

    Args:
        files: Path -> text of all files of these languages in a repository.
    """
    return {path: _targets(path, text, files) for path, text in sorted(files.items())}


def _targets(path: str, text: str, files: Mapping[str, str]) -> set[str]:
    blanked = blank(text, "javascript")
    found = set()
    for match in _SPECIFIER.finditer(blanked):
        specifier = quoted(text, blanked, match.end())
        target = _resolve(specifier, path, files) if specifier.startswith(".") else None
        if target is not None and target != path:
            found.add(target)
    return found


def _resolve(specifier: str, origin: str, files: Mapping[str, str]) -> str | None:
    base = joined(folder_of(origin), specifier.partition("?")[0])
    if base is None:
        return None
    names = [f"{base}{ending}" for ending in _ENDINGS]
    for suffix, sources in _SOURCES_OF.items():
        if base.endswith(suffix):
            names += [base.removesuffix(suffix) + source for source in sources]
    names += [f"{base}{ending}".lstrip("/") for ending in _INDEX]
    return next((name for name in names if name in files), None)
