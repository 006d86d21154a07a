"""A repository as one Markdown text: for each file a heading with its path and a fenced block; Markdown as it is."""

from __future__ import annotations

import re
from collections.abc import Iterable

from puyulm.data.code.languages import Language

_BACKTICKS = re.compile(r"`{3,}")
_FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})[^\n]*$", re.MULTILINE)


def repository_text(name: str, files: Iterable[tuple[str, str, Language | None]]) -> str:
    """One Markdown document.

    Args:
        name: Of the repository, its first heading.
        files: (path, text, language) in order. A file whose language is Markdown stands as it is, if its own fences
            are closed; any other in a fenced block with its language's tag. Fences are longer than any in the file.
    """
    return "\n".join([f"# {_line(name)}\n", *(file_section(path, text, language) for path, text, language in files)])


def file_section(path: str, text: str, language: Language | None) -> str:
    """One file: its heading, a blank line and its text."""
    text = text if text.endswith("\n") or not text else text + "\n"
    heading = f"## {_code(path)}\n"
    if language is not None and language.name == "Markdown" and _closes_its_fences(text):
        return f"{heading}\n{text}"
    fence = "`" * max(3, 1 + max((len(run) for run in _BACKTICKS.findall(text)), default=0))
    tag = language.tag if language is not None else ""
    return f"{heading}\n{fence}{tag}\n{text}{fence}\n"


def _closes_its_fences(text: str) -> bool:
    open_fence = ""
    for match in _FENCE.finditer(text):
        fence = match[1]
        if not open_fence:
            open_fence = fence
        elif fence[0] == open_fence[0] and len(fence) >= len(open_fence) and match[0].strip() == fence:
            open_fence = ""
    return not open_fence and "<!--" not in text.rpartition("-->")[2]


def _code(text: str) -> str:
    """A code span, in which `__init__` keeps its underscores."""
    text = _line(text)
    marks = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    space = " " if "`" in text else ""
    return f"{marks}{space}{text}{space}{marks}"


def _line(text: str) -> str:
    return " ".join(text.split())
