"""What can be measured in a source file, and the few rules that say it was not written by somebody to be read.

Style says little about the worth of code, and rules on it reject too much (InternLM2 report, section 3.1.2). So these
rules look for what a program wrote (generated and minified files), for data in the shape of code, and for markup that
is broken; limits of line length and of letters are those that public code corpora use.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from puyulm.data.code.languages import Language

HEAD = 1500  # characters in which a generated file says so
MINIFIED_LINE = 200  # characters a line, on average
MINIFIED_SPACE = 0.12  # share of white space; below it, and with such lines, a file is minified
SHORTEST_JUDGED = 512  # characters; shares of shorter files say little


@dataclass(frozen=True)
class Limits:
    """When a file is dropped. Lines and letters count for files of the kind "code" only.

    Attributes:
        max_line: Longest line, characters (The Stack, StarCoder: 1,000).
        max_mean_line: Mean length of lines that are not blank (The Stack, StarCoder: 100).
        min_alphanumeric: Share of letters and digits (StarCoder: 0.25).
        max_data: Share of characters in tables of numbers, hexadecimal escapes and base64. Ours.
        max_broken_tags: Share of tags without their other half, in HTML and XML. Ours.
        min_visible_text: Share of text outside tags, scripts and styles in HTML. Ours (StarCoder's 0.2 loses the
            templates of programs).
    """

    max_line: int = 1000
    max_mean_line: float = 100.0
    min_alphanumeric: float = 0.25
    max_data: float = 0.5
    max_broken_tags: float = 0.2
    min_visible_text: float = 0.05


@dataclass(frozen=True)
class Features:
    """Measures of one file.

    Attributes:
        characters: Of the text.
        longest_line, mean_line: Characters; the mean over lines that are not blank.
        alphanumeric: Share of letters and digits.
        space: Share of white space.
        data: Share of characters in number tables, hexadecimal escapes and base64.
        comments: Share of characters in comments.
        repeated: Share of lines (of ten characters or more) that stood before in the file.
    """

    characters: int
    longest_line: int
    mean_line: float
    alphanumeric: float
    space: float
    data: float
    comments: float
    repeated: float


_ALPHANUMERIC = re.compile(r"[^\W_]+")
# Possessive quantifiers: each of these passes over a text once, whatever stands in it.
_NUMBER = r"[-+]?+(?:0[xX][0-9a-fA-F]++|\d[\d.]*+(?:[eE][-+]?+\d++)?+)[uUlLfFhH]*+[\s,;|(){}\[\]]++"
_BASE64 = r"[A-Za-z0-9+/]{56,}+={0,2}[\"']?+[\s,;+\\]++"
_DATA = (
    re.compile(rf"(?<![\w.])(?:{_NUMBER}){{8,}}+"),
    re.compile(
        r"\\(?:x[0-9a-fA-F]{2}|[0-7]{3}|u[0-9a-fA-F]{4})(?:\\(?:x[0-9a-fA-F]{2}|[0-7]{3}|u[0-9a-fA-F]{4})){15,}+"
    ),
    re.compile(r"%[0-9a-fA-F]{2}(?:%[0-9a-fA-F]{2}){15,}+"),
    re.compile(rf"(?<![A-Za-z0-9+/])(?:[A-Za-z0-9+/]{{160,}}+={{0,2}}|{_BASE64}(?:[\"']?+{_BASE64}){{3,}}+)"),
)
_COMMENTS = {
    "c": r"//[^\n]*+|/\*(?:[^*]++|\*(?!/))*+(?:\*/)?+",
    "hash": r"#[^\n]*+|\"\"\"(?:[^\"]++|\"(?!\"\"))*+(?:\"\"\")?+",
    "dash": r"--[^\n]*+|\{-(?:[^-]++|-(?!\}))*+(?:-\})?+",
    "semicolon": r";[^\n]*+",
    "percent": r"%[^\n]*+",
    "exclamation": r"![^\n]*+|^[cC*](?![^\s!-])[^\n]*+",
    "quote": r"^[ \t]*+\"[^\n]*+",
    "ml": r"\(\*(?:[^*]++|\*(?!\)))*+(?:\*\))?+|//[^\n]*+",
    "html": r"<!--(?:[^-]++|-(?!->))*+(?:-->)?+",
}
_COMMENT = {name: re.compile(pattern, re.MULTILINE) for name, pattern in _COMMENTS.items()}

_COMMENT_LINE = re.compile(r"^[ \t]*(?:#|//|/\*|\*|--|;|%|<!--|!|'|\"\"\"|\(\*|\{-|dnl\b|rem\b)[^\n]*", re.I | re.M)
_GENERATED = re.compile(
    r"@generated\b|<auto-?generated|code generated .{0,200}?do not edit|\bauto(?:matically|matic|)[- ]?generated"
    r"|\bthis (?:file|code|class|module|script|source|header) (?:was|is|has been) generated (?:by|with|using|auto)"
    r"|\bgenerated (?:automatically|by the protocol buffer|from|by)\b.{0,300}?\bdo not (?:edit|modify|change|alter)"
    r"|\bdo not (?:edit|modify|change|alter)\b.{0,200}?\bgenerated\b",
    re.I | re.S,
)
_GENERATED_NAME = re.compile(
    r"(?:^|/)(?:[^/]*(?:_pb2(?:_grpc)?\.pyi?|\.pb\.(?:go|cc|h)|\.pb\w*\.dart|\.g\.dart|\.freezed\.dart|\.designer\.cs"
    r"|\.g\.cs|_generated\.\w+|\.generated\.\w+|zz_generated\.\w*\.go|\.map|-lock\.(?:json|yaml)|\.lock|\.snap)"
    r"|go\.sum|npm-shrinkwrap\.json)$",
    re.I,
)
_MINIFIED_NAME = re.compile(r"[.-]min\.(?:js|mjs|css|html)$", re.I)
_TEST = re.compile(
    r"(?:^|/)(?:tests?|testing|specs?|__tests__|testdata|test_data|fixtures)/"
    r"|(?:^|/)(?:test_[^/]*\.py|conftest\.py|[^/]*(?:_test\.\w+|_spec\.rb|\.(?:test|spec)\.[cm]?[jt]sx?|Tests?\.(?:java|kt|cs|scala|swift)))$"
)


def features_of(text: str, language: Language | None) -> Features:
    """Measures a file."""
    lines = text.split("\n")
    lengths = [len(line) for line in lines if line and not line.isspace()]
    long_lines = [stripped for line in lines if len(stripped := line.strip()) >= 10]
    size = max(len(text), 1)
    comment = _COMMENT.get(language.comments) if language is not None else None
    return Features(
        characters=len(text),
        longest_line=max(lengths, default=0),
        mean_line=sum(lengths) / max(len(lengths), 1),
        alphanumeric=len("".join(_ALPHANUMERIC.findall(text))) / size,
        space=1 - len("".join(text.split())) / size if text else 0.0,
        data=min(sum(_share(pattern, text, size) for pattern in _DATA), 1.0),
        comments=_share(comment, text, size) if comment is not None else 0.0,
        repeated=1 - len(set(long_lines)) / max(len(long_lines), 1) if long_lines else 0.0,
    )


def problem(features: Features, text: str, path: str, language: Language | None, limits: Limits) -> str | None:
    """Why a file is no code worth training on, as a reason of the family "code"; None if nothing speaks against it."""
    if _GENERATED_NAME.search(path) or _says_generated(text):
        return "code: generated"
    kind = language.kind if language is not None else "code"
    if kind == "code":
        if _MINIFIED_NAME.search(path) or _is_minified(features):
            return "code: minified"
        if features.longest_line > limits.max_line:
            return "code: a line is too long"
        if features.mean_line > limits.max_mean_line:
            return "code: lines are too long"
        if features.alphanumeric < limits.min_alphanumeric and features.characters >= SHORTEST_JUDGED:
            return "code: few letters and digits"
    if features.data > limits.max_data and features.characters >= SHORTEST_JUDGED:
        return "code: mostly data"
    if language is not None and language.kind == "markup":
        return _markup_problem(text, language, limits)
    return None


def is_test(path: str) -> bool:
    """Whether a path is that of a test, or of what only tests use."""
    return _TEST.search(path) is not None


def rules_score(features: Features, limits: Limits) -> float:
    """How far a file is from the limits, and whether it speaks to its readers: 0 (bad) to 1. Ours.

    The mean of five parts of equal weight: lines well below the longest and the mean that are allowed; letters and
    digits well above the least share; little data; few repeated lines; and comments, of which one character in fifty
    is enough (more is no better: style says little).
    """
    parts = (
        _falling(features.longest_line, 0.16 * limits.max_line, limits.max_line),
        _falling(features.mean_line, 0.5 * limits.max_mean_line, limits.max_mean_line),
        1 - _falling(features.alphanumeric, limits.min_alphanumeric, 2 * limits.min_alphanumeric),
        _falling(features.data, 0.0, limits.max_data) * _falling(features.repeated, 0.2, 0.8),
        min(features.comments / 0.02, 1.0),
    )
    return sum(parts) / len(parts)


def broken_tags(text: str) -> float:
    """Share of opening and closing tags without their other half; elements that HTML lets stay open do not count."""
    waiting: list[str] = []
    places: dict[str, int] = {}  # how many of a name are open
    tags = broken = 0
    for match in _TAG.finditer(text):
        name = match["name"]
        if name is None or match["selfclosing"] or name.lower() in _MAY_STAY_OPEN:
            continue
        tags += 1
        if not match["close"]:
            waiting.append(name)
            places[name] = places.get(name, 0) + 1
        elif not places.get(name):
            broken += 1
        else:
            while (top := waiting.pop()) != name:  # what was opened inside and not closed
                places[top] -= 1
                broken += 1
            places[name] -= 1
    return (broken + len(waiting)) / max(tags, 1)


_TAG = re.compile(
    r"<!--(?:[^-]++|-(?!->))*+(?:-->)?+|<!\[CDATA\[(?:[^\]]++|\](?!\]>))*+(?:\]\]>)?+"
    r"|<(?P<close>/)?+(?P<name>[A-Za-z][\w:.-]*+)(?:[^<>\"'/]++|\"[^\"]*+\"|'[^']*+'|/(?!>))*+(?P<selfclosing>/)?+>"
)
_MAY_STAY_OPEN = frozenset((
    "area", "base", "body", "br", "col", "colgroup", "dd", "dt", "embed", "head", "hr", "html", "img", "input", "li",
    "link", "meta", "option", "optgroup", "p", "param", "rp", "rt", "source", "tbody", "td", "tfoot", "th", "thead",
    "tr", "track", "wbr",
))  # fmt: skip
_UNSEEN = re.compile(r"<(script|style|svg|template)\b.*?</\1\s*>", re.I | re.S)


def _markup_problem(text: str, language: Language, limits: Limits) -> str | None:
    seen = _UNSEEN.sub("", text)
    if broken_tags(seen) > limits.max_broken_tags:
        return "code: broken markup"
    if language.name == "HTML" and len(text) >= SHORTEST_JUDGED:
        visible = sum(map(len, _TAG.sub(" ", seen).split()))
        if visible < limits.min_visible_text * len(text):
            return "code: markup without text"
    return None


def _says_generated(text: str) -> bool:
    head = text[:HEAD]
    return _GENERATED.search("\n".join(_COMMENT_LINE.findall(head))) is not None


def _is_minified(features: Features) -> bool:
    return (
        features.characters >= SHORTEST_JUDGED
        and features.mean_line > MINIFIED_LINE
        and features.space < MINIFIED_SPACE
        and features.data < 0.25
    )


def _share(pattern: re.Pattern[str], text: str, size: int) -> float:
    return sum(match.end() - match.start() for match in pattern.finditer(text)) / size


def _falling(value: float, good: float, bad: float) -> float:
    """1 up to `good`, 0 from `bad`, a line between."""
    return min(max((bad - value) / (bad - good), 0.0), 1.0)
