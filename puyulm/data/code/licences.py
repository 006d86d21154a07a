"""Licences of files: SPDX headers, and the texts and notices of the usual licences by their distinctive phrases.

Phrases are looked for in the stream of a text's words, lower-cased, so that comment marks, line breaks, indentation and
quotes do not matter; some allow a few words in between. What is found is one SPDX licence expression.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Collection, Iterator, Sequence

HEAD = 20_000  # characters of a file in which licences are looked for; the texts of the GNU licences begin in them

KNOWN = (
    "0BSD", "AGPL-3.0-only", "AGPL-3.0-or-later", "Apache-2.0", "Artistic-2.0", "BSD-2-Clause", "BSD-3-Clause",
    "BSD-4-Clause", "BSL-1.0", "CC-BY-4.0", "CC-BY-SA-4.0", "CC0-1.0", "EPL-2.0", "EUPL-1.2", "GPL-1.0-or-later",
    "GPL-2.0-only", "GPL-2.0-or-later", "GPL-3.0-only", "GPL-3.0-or-later", "ISC", "LGPL-2.0-only",
    "LGPL-2.0-or-later", "LGPL-2.1-only", "LGPL-2.1-or-later", "LGPL-3.0-only", "LGPL-3.0-or-later", "MIT", "MIT-0",
    "MPL-1.1", "MPL-2.0", "MulanPSL-2.0", "NCSA", "PSF-2.0", "Python-2.0", "Unlicense", "WTFPL", "Zlib",
)  # fmt: skip
"""SPDX identifiers whose case is put right; others are kept as they are written."""

_SPDX = re.compile(r"SPDX-License-Identifier:[ \t]*((?:[\w.+()/-]|[ \t]+(?=[\w(]))+)", re.I)
_FILE = re.compile(r"(?:^|/)(?:un)?(?:licen[cs]e|copying)(?:[.-](?!.*(?:third|3rd|vendor))[^/]*)?$", re.I)
_HINT = re.compile(
    r"licen[cs]|copying|permission|redistribut|public domain|unencumbered|warrant|\b[al]?gpl|\bcc0", re.I
)
_WORD = re.compile(r"[a-z0-9]+(?:\.[0-9]+)*")
_SECONDARY = re.compile(r"secondary license means either the gnu .{0,300}? those licenses")  # in the MPL's own text

# Name -> what must all be found, and what must not. "(?:\w+ )" stands for a word, "..." for up to six words.
_TEXTS: tuple[tuple[str, tuple[str, ...], tuple[str, ...]], ...] = (
    ("MIT", ("permission is hereby granted free of charge to any person obtaining a copy of this ... and associated "
             "documentation", "the above copyright notice ... and this permission notice shall be included"), ()),
    ("MIT-0", ("permission is hereby granted free of charge to any person obtaining a copy of this ... and associated "
               "documentation",), ("shall be included",)),
    ("MIT", ("(?:under|license is|license) the ... mit license",), ("permission is hereby granted free of charge",)),
    ("MIT", ("(?:license|licensed as|license type) mit",), ("permission is hereby granted free of charge",)),
    ("MIT", ("mit license(?: see| copyright)",), ("permission is hereby granted free of charge",)),
    ("BSD-4-Clause", ("redistribution and use in source and binary forms with or without modification are permitted",
                      "all advertising materials mentioning features"), ()),
    ("BSD-3-Clause", ("redistribution and use in source and binary forms with or without modification are permitted",
                      "(?:neither the name|the names? ... may not be used|not be used ... to endorse|nor the names)"),
     ("all advertising materials mentioning", "end user documentation included with")),
    ("BSD-2-Clause", ("redistribution and use in source and binary forms with or without modification are permitted",
                      "redistributions of source code must retain",
                      "redistributions in binary form must reproduce"),
     ("neither the name", "endorse", "nor the names", "all advertising materials")),
    ("BSD-3-Clause", ("(?:bsd 3 clause|3 clause bsd|new bsd|modified bsd|three clause bsd) license",),
     ("redistribution and use in source and binary",)),
    ("BSD-3-Clause", ("(?:under|governed by|with) the? ... bsd style license",),
     ("redistribution and use in source and binary",)),
    ("BSD-2-Clause", ("(?:bsd 2 clause|2 clause bsd|simplified bsd|freebsd) license",),
     ("redistribution and use in source and binary",)),
    ("Apache-2.0", ("apache license version 2.0 january 2004",), ()),
    ("Apache-2.0", ("(?:under|license|with|by) the? ... apache (?:software )?license (?:version |v )?2(?:.0)?",),
     ("apache license version 2.0 january 2004",)),
    ("Apache-2.0", ("(?:license|licensed as) apache (?:license )?(?:version |v )?2(?:.0)?",),
     ("apache license version 2.0 january 2004",)),
    ("MPL-2.0", ("subject to the terms of the mozilla public license v(?:ersion)? 2.0",), ()),
    ("MPL-2.0", ("mozilla public license version 2.0 1 definitions",), ()),
    ("MPL-1.1", ("(?:subject to the|mozilla public license) ... (?:mozilla public license )?version 1.1",), ()),
    ("ISC", ("permission to use copy modify and(?: or)? distribute this ... for any purpose with or without fee is "
             "hereby granted provided that the above copyright notice and this permission notice appear",), ()),
    ("0BSD", ("permission to use copy modify and(?: or)? distribute this ... for any purpose with or without fee is "
              "hereby granted the software is provided",), ()),
    ("Unlicense", ("this is free and unencumbered software released into the public domain",), ()),
    ("CC0-1.0", ("(?:cc0 1.0 universal|creative commons ... cc0|creative commons zero)",), ()),
    ("CC0-1.0", ("to the extent possible under law ... dedicated? (?:all|waived all) copyright and related",),
     ("cc0 1.0 universal",)),
    ("PSF-2.0", ("(?:python software foundation license version 2|psf license agreement for python|licensed to psf "
                 "under a contributor agreement|python software foundation license agreement)",), ()),
    ("BSL-1.0", ("boost software license version 1.0",), ()),
    ("Zlib", ("in no event will the authors be held liable for any damages arising from the use of this software",
              "altered source versions must be plainly marked"), ()),
    ("EPL-2.0", ("eclipse public license ... 2.0",), ()),
    ("WTFPL", ("do what the fuck you want to public license",), ()),
    ("CC-BY-SA-4.0", ("creative commons attribution share ?alike 4.0",), ()),
    ("CC-BY-4.0", ("creative commons attribution 4.0",), ()),
    ("MulanPSL-2.0", ("mulan psl v2",), ()),
)  # fmt: skip

# The GNU licences: in the order in which they are tried, the more special first.
_GNU_NAMES = (
    ("AGPL", "affero general public license|agpl"),
    ("LGPL", "lesser general public license|library general public license|lesser gpl|lgpl"),
    ("GPL", "general public license|gpl"),
)
_GNU_TEXTS = (
    ("AGPL-3.0-only", "gnu affero general public license version 3 19 november 2007"),
    ("LGPL-3.0-only", "gnu lesser general public license version 3 29 june 2007"),
    ("LGPL-2.1-only", "gnu lesser general public license version 2.1 february 1999"),
    ("LGPL-2.0-only", "gnu library general public license version 2 june 1991"),
    ("GPL-3.0-only", "gnu general public license version 3 29 june 2007"),
    ("GPL-2.0-only", "gnu general public license version 2 june 1991"),
)


def find_licence(text: str) -> str:
    """The licence that a file's first 20,000 characters tell of, as an SPDX expression; "" if they tell of none.

    An SPDX header counts alone. Of several licence texts all must be kept, so they are joined by AND; by OR where the
    text says that the choice is the user's. A bare text of a GNU licence grants that version only.
    """
    head = text[:HEAD]
    headers = [normal_expression(match[1]) for match in _SPDX.finditer(head)]
    if found := list(dict.fromkeys(header for header in headers if header)):
        return _joined(found, " AND ")
    if not _HINT.search(head):
        return ""
    words = _words(head)
    names = list(dict.fromkeys([*_found_texts(words), *_found_gnu(words)]))
    choice = re.search(r"at your option(?! any later)|(?:either|dual) licensed|licensed under either", words)
    return _joined(names, " OR " if choice else " AND ")


def is_licence_file(path: str) -> bool:
    """Whether a file of this name holds the licence of its folder."""
    return _FILE.search(path) is not None


def normal_expression(text: str) -> str:
    """An SPDX expression with the usual spelling: `mit/apache-2.0` is `MIT OR Apache-2.0`, `GPL-2.0+` is
    `GPL-2.0-or-later`. Words that are no expression ("Apache License, Version 2.0") become one where the words are
    known, and stay as they are otherwise.
    """
    text = " ".join(text.strip("[]'\" ").replace("/", " OR ").split())
    tokens = _tokens(text)
    if _parses(tokens):
        return " ".join(_spelled(token) for token in tokens).replace("( ", "(").replace(" )", ")")
    words = _words(text)
    name = re.sub(r"^the | license\b", "", words).replace(" ", "-")  # "Apache 2.0", "The ISC License"
    if name in _spellings():
        return _spellings()[name]
    names = list(dict.fromkeys([*_found_texts(f"under the {words}"), *_found_gnu(words)]))
    return _joined(names, " AND ") or text


def is_allowed(expression: str, allowed: Collection[str]) -> bool:
    """Whether an SPDX expression can be met with `allowed` licences only.

    OR needs one of its sides, AND both; an exception (WITH) only grants more and is passed over.

    Args:
        allowed: Identifiers as `normal_expression` spells them.
    """
    tokens = _tokens(expression)
    if not _parses(tokens):
        return expression in allowed
    answer, rest = _either(tokens, allowed)
    return answer and not rest


def licences_in(expression: str) -> tuple[str, ...]:
    """The identifiers in an expression, sorted; of one that does not parse, itself."""
    tokens = _tokens(expression)
    if not _parses(tokens):
        return (expression,) if expression else ()
    exceptions = {index + 1 for index, token in enumerate(tokens) if token == "WITH"}
    return tuple(sorted({t for i, t in enumerate(tokens) if _is_name(t) and i not in exceptions}))


def _words(text: str) -> str:
    return " ".join(_WORD.findall(text.lower().replace("licence", "license")))


def _found_texts(words: str) -> Iterator[str]:
    for name, wanted, unwanted in _patterns():
        if all(pattern.search(words) for pattern in wanted) and not any(pattern.search(words) for pattern in unwanted):
            yield name


def _found_gnu(words: str) -> Iterator[str]:
    """GNU licences: the text itself, or notices like "GNU General Public License ... version 2 ... or later"."""
    for name, title in _GNU_TEXTS:
        if title in words:
            yield name  # its appendix holds notices as examples, and its body names the others
            return
    words = _SECONDARY.sub("", words)
    for family, pattern in _gnu_patterns():
        if match := pattern.search(words):
            version = {"2": "2.0", "3": "3.0", "2.0": "2.0", "3.0": "3.0", "2.1": "2.1"}[match["a"] or match["b"]]
            later = re.match(r".{0,80}?\b(?:any|or) (?:\w+ )?(?:later|newer|greater)\b", words[match.end() :])
            yield f"{family}-{version}-{'or-later' if later or match['plus'] else 'only'}"
            return


@functools.cache
def _patterns() -> tuple[tuple[str, tuple[re.Pattern[str], ...], tuple[re.Pattern[str], ...]], ...]:
    def compiled(phrases: Sequence[str]) -> tuple[re.Pattern[str], ...]:
        return tuple(re.compile(rf"\b{_with_gaps(phrase)}\b") for phrase in phrases)

    return tuple((name, compiled(wanted), compiled(unwanted)) for name, wanted, unwanted in _TEXTS)


@functools.cache
def _gnu_patterns() -> tuple[tuple[str, re.Pattern[str]], ...]:
    # "general public license as published by the free software foundation either version 3 of ...", "gplv3 or later"
    version = r"(?:version |v ?)?(?P<b>2\.1|2\.0|3\.0|2|3)\b"
    text = r"(?:\S+ ){0,12}?(?:version|v) ?(?P<a>2\.1|2\.0|3\.0|2|3)\b"
    return tuple(
        (family, re.compile(rf"\b(?:gnu )?(?:{names})s?(?: (?:{text})| ?{version})(?P<plus> or later)?"))
        for family, names in _GNU_NAMES
    )


def _with_gaps(phrase: str) -> str:
    return phrase.replace(".0", r"\.0").replace("the? ", "(?:the )?").replace("... ", r"(?:\S+ ){0,6}?")


def _joined(names: Sequence[str], word: str) -> str:
    if len(names) < 2:
        return "".join(names)
    return word.join(f"({name})" if " OR " in name and word != " OR " else name for name in names)


def _tokens(text: str) -> list[str]:
    tokens = re.findall(r"[()]|[^\s()]+", text)
    return [token.upper() if token.upper() in ("AND", "OR", "WITH") else token for token in tokens]


def _is_name(token: str) -> bool:
    return re.fullmatch(r"[A-Za-z0-9][\w.+:-]*", token) is not None and token not in ("AND", "OR", "WITH")


def _parses(tokens: list[str]) -> bool:
    try:
        return bool(tokens) and not _either(tokens, ())[1]
    except _NotSpdxError:
        return False


class _NotSpdxError(Exception):
    """The tokens are no SPDX expression."""


def _either(tokens: list[str], allowed: Collection[str]) -> tuple[bool, list[str]]:
    """Reads `both (OR both)*`; gives whether it is met, and the tokens behind it."""
    answer, rest = _both(tokens, allowed)
    while rest[:1] == ["OR"]:
        other, rest = _both(rest[1:], allowed)
        answer = answer or other
    return answer, rest


def _both(tokens: list[str], allowed: Collection[str]) -> tuple[bool, list[str]]:
    answer, rest = _single(tokens, allowed)
    while rest[:1] == ["AND"]:
        other, rest = _single(rest[1:], allowed)
        answer = answer and other
    return answer, rest


def _single(tokens: list[str], allowed: Collection[str]) -> tuple[bool, list[str]]:
    if tokens[:1] == ["("]:
        answer, rest = _either(tokens[1:], allowed)
        if rest[:1] != [")"]:
            raise _NotSpdxError
        return answer, rest[1:]
    if not tokens or not _is_name(tokens[0]):
        raise _NotSpdxError
    rest = tokens[1:]
    if rest[:1] == ["WITH"]:
        if len(rest) < 2 or not _is_name(rest[1]):
            raise _NotSpdxError
        rest = rest[2:]
    return _spelled(tokens[0]) in allowed, rest


@functools.cache
def _spellings() -> dict[str, str]:
    spellings = {name.lower(): name for name in KNOWN}
    for name in KNOWN:  # SPDX's names before version 3 of its list, and without the minor number
        if name.endswith("-only"):
            spellings[name.removesuffix("-only").lower()] = name
            spellings[name.removesuffix(".0-only").lower()] = name
        elif name.endswith("-or-later"):
            spellings[name.removesuffix("-or-later").lower() + "+"] = name
            spellings[name.removesuffix(".0-or-later").lower() + "+"] = name
    spellings.update({
        "apache2": "Apache-2.0", "apache-2": "Apache-2.0", "bsd-2": "BSD-2-Clause", "bsd-3": "BSD-3-Clause",
        "boost": "BSL-1.0", "expat": "MIT", "x11": "MIT", "cc0": "CC0-1.0", "psf": "PSF-2.0", "psfl": "PSF-2.0",
        "mpl2": "MPL-2.0", "mpl-2": "MPL-2.0", "gplv2": "GPL-2.0-only", "gplv3": "GPL-3.0-only",
        "lgplv3": "LGPL-3.0-only", "agplv3": "AGPL-3.0-only",
    })  # fmt: skip
    return spellings


def _spelled(token: str) -> str:
    return _spellings().get(token.lower(), token)
