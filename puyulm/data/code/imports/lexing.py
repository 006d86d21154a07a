"""Source text without its comments and without what stands in strings, at unchanged positions.

Import statements are looked for in such text, so that none is found in a comment or a string; what an import names in
quotes is then read from the original at the same place. The patterns go over a text once and know of each language only
what is needed to tell where comments and strings end.
"""

from __future__ import annotations

import re

_ESCAPED = r'"(?:[^"\\\n]++|\\[\s\S])*+"?+'
_APOSTROPHES = r"'(?:[^'\\\n]++|\\[\s\S])*+'?+"
_C_COMMENTS = r"//[^\n]*+|/\*(?:[^*]++|\*(?!/))*+(?:\*/)?+"
_CHARACTER = r"'(?:[^'\\\n]|\\[^\n]{1,9}?)'"  # not Rust's lifetimes, nor the apostrophes in C++ numbers

_PATTERNS = {  # possessive: none of them goes back, whatever the text
    "python": re.compile(
        r"#[^\n]*+"
        r'|"""(?:[^"\\]++|\\[\s\S]|"(?!""))*+(?:""")?+'
        r"|'''(?:[^'\\]++|\\[\s\S]|'(?!''))*+(?:''')?+"
        rf"|{_ESCAPED}|{_APOSTROPHES}"
    ),
    "c": re.compile(
        rf'{_C_COMMENTS}|\b(?:u8|[uUL])?R"([^\s()\\]{{0,16}})\((?:[\s\S]*?\)\1"|[\s\S]*)|{_ESCAPED}|{_CHARACTER}'
    ),
    "java": re.compile(rf'{_C_COMMENTS}|"""(?:[^"\\]++|\\[\s\S]|"(?!""))*+(?:""")?+|{_ESCAPED}|{_CHARACTER}'),
    "javascript": re.compile(
        rf"{_C_COMMENTS}|{_ESCAPED}|{_APOSTROPHES}|`(?:[^`\\]++|\\[\s\S])*+`?+"
        # A slash opens a regular expression where no value can stand before it.
        r"|(?:(?<=[(,=:\[!&|?{};\n])|(?<=\breturn))[ \t]*+"
        r"/(?![*/])(?:[^/\\\[\n]++|\\[^\n]|\[(?:[^\]\\\n]++|\\[^\n])*+\])++/"
    ),
    "go": re.compile(rf"{_C_COMMENTS}|{_ESCAPED}|`[^`]*+`?+|{_CHARACTER}"),
    "rust": re.compile(
        r"//[^\n]*+|/\*(?:[^*/]++|\*(?!/)|/(?!\*)|/\*(?:[^*]++|\*(?!/))*+\*/)*+(?:\*/)?+"
        rf'|\bb?r(#{{0,8}})"(?:[\s\S]*?"\1|[\s\S]*)|{_ESCAPED}|{_CHARACTER}'
    ),
}  # fmt: skip

_WORD = re.compile(r"[A-Za-z_$][\w$]*")
_NOT_NEWLINE = re.compile(r"[^\n]")


def blank(text: str, syntax: str) -> str:
    """The text with spaces instead of comments and of the insides of strings; line breaks and quotes stay.

    Args:
        text: Source code.
        syntax: "python", "c", "java", "javascript", "go" or "rust".

    Returns:
        As many characters, with the same line breaks.
    """
    pieces = []
    end = 0
    for match in _PATTERNS[syntax].finditer(text):
        start = match.start()
        pieces.append(text[end:start])
        end = match.end()
        pieces.append(_blanked(text[start:end], syntax))
    pieces.append(text[end:])
    return "".join(pieces)


def words_of_code(blanked: str) -> frozenset[str]:
    """All identifiers and keywords of a blanked text."""
    return frozenset(_WORD.findall(blanked))


def quoted(text: str, blanked: str, start: int) -> str:
    """What stands between the quote at `start` and its partner; "" where the string does not end on its line."""
    end = blanked.find(blanked[start], start + 1)
    inside = text[start + 1 : end] if end > start else ""
    return "" if "\n" in inside else inside


def _blanked(part: str, syntax: str) -> str:
    if part[0] == "#" if syntax == "python" else part.startswith(("//", "/*")):
        inside, quote = part, ""
    else:
        inside, quote = part[1:-1], part[-1]
        if len(part) < 2 or quote not in "\"'`":  # a string that never ends, or a regular expression
            return part[0].replace("/", " ") + _spaces(part[1:])
    spaces = _spaces(inside)
    return part[0] + spaces + quote if quote else spaces


def _spaces(part: str) -> str:
    return " " * len(part) if "\n" not in part else _NOT_NEWLINE.sub(" ", part)
