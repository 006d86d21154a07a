"""Python in what a model wrote: in fences of all kinds, bare, or only the body of a function."""

from __future__ import annotations

import ast
import re
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

# Possessive, and from the beginning of a run only: an answer that repeats a mark must not cost more than its length.
_MARK = r"(?<!`)`{3,}+|(?<!~)~{3,}+"
_OPENING = re.compile(rf"(?P<indent>^[ \t>]*+)?(?P<mark>{_MARK})(?P<info>[^\n`~]*)\n", re.MULTILINE)
_CLOSING = re.compile(rf"({_MARK})[ \t]*+$", re.MULTILINE)
_INLINE = re.compile(r"(?<!`)```([^\n`]+)```")
_FIRST_BLOCK = re.compile(r"```\w*\n(.*?)```", re.DOTALL)
_CODE_LINE = re.compile(r"(from|import|def|async def|class)\s+\w|@\w|[A-Za-z_]\w*\s*(:[^=\n]+)?=[^=]")
_PYTHON = {"", "python", "python3", "py", "py3", "ipython", "ipython3", "python-repl", "code"}
_BEGIN = re.compile(r"\[BEGIN\]|^BEGIN\b", re.MULTILINE)
_DONE = re.compile(r"\[DONE\]|^DONE\b", re.MULTILINE)
LONGEST = 200_000  # characters; nobody's answer


@dataclass(frozen=True)
class Block:
    """A fenced block: its language in lower case ("": not said), and its text."""

    language: str
    text: str


def code_blocks(text: str) -> list[Block]:
    """Fenced blocks in order. A block ends at a fence at the end of a line, or, left open, with the text.

    The indentation of a fence in a list is taken from its lines.
    """
    found: list[Block] = []
    place = 0
    while (opening := _OPENING.search(text, place)) is not None:
        closing = _closing(text, opening.end(), opening["mark"])
        inner = text[opening.end() : closing.start() if closing else len(text)]
        words = opening["info"].strip(" \t{}.").split()
        found.append(Block(words[0].lower() if words else "", _unindent(inner, opening["indent"] or "")))
        if closing is None:
            break
        place = closing.end()
    return found or [Block("", re.sub(r"^(python3?|py)\s", "", one.strip())) for one in _INLINE.findall(text)]


def without_thoughts(text: str) -> str:
    """The text after a model's thoughts, where their markers are left in it."""
    first, *others = text.split("<think>")
    if "</think>" in first:  # they began in the prompt
        first = first.rsplit("</think>", 1)[1]
    return first + "".join(one.rsplit("</think>", 1)[1] for one in others if "</think>" in one)


def first_block(text: str) -> str:
    """Strict: the first fenced block that is closed, or else the text as it stands (OpenCompass)."""
    found = _FIRST_BLOCK.search(text)
    return found[1] if found else text


def between_marks(text: str) -> str:
    """What stands between [BEGIN] and [DONE], each where it is there; quotes around it are taken off."""
    begin = _BEGIN.search(text)
    if begin is not None:
        text = text[begin.end() :]
    if (done := _DONE.search(text)) is not None:
        text = text[: done.start()]
    bare = text.strip()
    return bare[1:].removesuffix("'") if bare.startswith("'") and not bare.startswith("''") else text


def find_code(text: str, wanted: str = "") -> str:
    """Lenient: the code that answers, wherever it stands.

    Of several fenced blocks the last whole one that defines the wanted function, behind what earlier ones import and
    define besides; of bare text the lines that are code. Without the function: the first block, or the text, which may
    be its body.

    Args:
        wanted: Name of the function; "": any.
    """
    text = without_thoughts(text[:LONGEST]).replace("\u00a0", " ").replace("\r\n", "\n")
    blocks = code_blocks(text)
    python = [block.text for block in blocks if block.language in _PYTHON] or [block.text for block in blocks]
    if not python:
        return _bare_code(text)
    defining = [place for place, code in enumerate(python) if defines(code, wanted)]
    if not defining:
        return python[0]
    before = [code for code in python[: defining[-1]] if _only_defines(code) and not defines(code, wanted)]
    return "\n".join([*map(textwrap.dedent, before), textwrap.dedent(python[defining[-1]])])


def complete(prompt: str, code: str, wanted: str) -> str:
    """A whole program of a prompt that ends within a function, and what a model made of it.

    A full function stands behind what the prompt has before its own (imports, helpers). A body goes on from the prompt;
    indentation that got lost is restored: of its first line, or of all of it.

    Args:
        wanted: The function's name.
    """
    code = code.strip("\n")
    if defines(textwrap.dedent(code), wanted, stubs=True) or _starts(code, wanted):
        return f"{_preamble(prompt, wanted)}{textwrap.dedent(code)}\n"
    start = prompt if prompt.endswith("\n") else f"{prompt}\n"
    for body in _bodies(code):
        if parse(start + body) is not None:
            return f"{start}{body}\n"
    return f"{start}{code}\n"


def defines(code: str, wanted: str, *, stubs: bool = False) -> bool:
    """Whether code is whole and has a function of this name ("": any) on its top level.

    Args:
        stubs: One without a body of its own (`pass`, `...`, a docstring alone) counts too.
    """
    tree = parse(textwrap.dedent(code))
    return tree is not None and any(
        isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)
        and wanted in ("", one.name)
        and (stubs or not all(map(_says_nothing, one.body)))
        for one in tree.body
    )


def parse(code: str) -> ast.Module | None:
    """The syntax tree; None where it is no Python."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes in strings
            return ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _closing(text: str, place: int, mark: str) -> re.Match[str] | None:
    """The next fence of the same kind, at least as long, behind which the line is empty."""
    fits = (found for found in _CLOSING.finditer(text, place) if found[1].startswith(mark))
    return next(fits, None)


def _unindent(text: str, indent: str) -> str:
    lines = text.split("\n")
    if not indent or any(line.strip() and not line.startswith(indent) for line in lines[:-1]):
        return text
    return "\n".join(line.removeprefix(indent) for line in lines)


def _says_nothing(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Pass) or (
        isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
    )


def _only_defines(code: str) -> bool:
    tree = parse(textwrap.dedent(code))
    kinds = ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign
    return tree is not None and all(isinstance(one, kinds) for one in tree.body)


def _starts(code: str, wanted: str) -> bool:
    """Whether the function begins in it, though it may be cut off or damaged."""
    return re.search(rf"^[ \t]*(async[ \t]+)?def[ \t]+{re.escape(wanted)}[ \t]*\(", code, re.MULTILINE) is not None


def _preamble(prompt: str, wanted: str) -> str:
    found = list(re.finditer(rf"^(async\s+)?def\s+{re.escape(wanted)}\b", prompt, re.MULTILINE))
    return prompt[: found[-1].start()] if found else ""


def _bodies(code: str) -> Iterator[str]:
    """Readings of a body, the likeliest first."""
    if code.startswith((" ", "\t")):
        yield code
    first, _, rest = code.partition("\n")
    if rest.strip() and all(line.startswith((" ", "\t")) for line in rest.split("\n") if line.strip()):
        yield f"    {first.strip()}\n{rest}"
    yield textwrap.indent(textwrap.dedent(code), "    ")
    yield code


def _bare_code(text: str) -> str:
    """Lines from the first that looks like code to the last that is code. Without such lines the text as it stands."""
    if _is_code(text):
        return text
    lines = text.split("\n")
    starts = [place for place, line in enumerate(lines) if _CODE_LINE.match(line)]
    if not starts:
        return text
    pieces = _top_level(lines[starts[0] :])
    kept: list[str] = []
    place = 0
    while place < len(pieces):
        # decorators, `else`, and closing brackets stand on the top level, but are not whole alone
        for end in range(place + 1, min(place + 5, len(pieces)) + 1):
            if _is_code("\n".join(pieces[place:end])):
                kept += pieces[place:end]
                place = end
                break
        else:
            break
    return "\n".join(kept or pieces)


def _top_level(lines: Sequence[str]) -> list[str]:
    """Lines, each with the indented and empty ones behind it."""
    pieces: list[list[str]] = []
    for line in lines:
        if pieces and (not line.strip() or line[0] in " \t"):
            pieces[-1].append(line)
        else:
            pieces.append([line])
    return ["\n".join(piece) for piece in pieces]


def _is_code(piece: str) -> bool:
    """Python, and not a word or two of prose that happen to be an expression."""
    tree = parse(piece)
    return tree is not None and all(
        not isinstance(one, ast.Expr) or isinstance(one.value, ast.Call | ast.Constant | ast.Await) for one in tree.body
    )
