"""A repository as Markdown, read back by the rules of CommonMark."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from puyulm.data.code.languages import language_named
from puyulm.data.code.markdown import repository_text


def blocks(markdown: str) -> list[tuple[str, str, str]]:
    """(heading, tag, text) of each fenced block: a fence ends at a line of at least as many backticks and no more."""
    found = []
    heading = fence = tag = ""
    held: list[str] = []
    for line in markdown.split("\n"):
        if fence:
            if re.fullmatch(rf" {{0,3}}`{{{len(fence)},}}[ \t]*", line):
                found.append((heading, tag, "".join(f"{each}\n" for each in held)))
                fence = ""
            else:
                held.append(line)
        elif match := re.match(r" {0,3}(`{3,})([^`]*)$", line):
            fence, tag, held = match[1], match[2], []
        elif line.startswith("## "):
            heading = line[3:]
    assert not fence
    return found


TEXTS = st.text("ab`~\n #", max_size=40).map(lambda text: text if text.endswith("\n") else text + "\n")


@given(st.lists(TEXTS, max_size=4))
def test_blocks_hold_the_files(texts):
    python = language_named("Python")
    markdown = repository_text("owner/name", [(f"p/{i}.py", text, python) for i, text in enumerate(texts)])
    assert blocks(markdown) == [(f"`p/{i}.py`", "python", text) for i, text in enumerate(texts)]


def test_how_it_reads():
    files = [
        ("README.md", "# Name\n\nText with\n```\ncode\n```\n", language_named("Markdown")),
        ("pkg/__init__.py", "x = 1", language_named("Python")),
        ("notes", "``` and\n````\n", None),
        ("empty.c", "", language_named("C")),
    ]
    assert repository_text("owner/name", files) == (
        "# owner/name\n\n"
        "## `README.md`\n\n# Name\n\nText with\n```\ncode\n```\n\n"
        "## `pkg/__init__.py`\n\n```python\nx = 1\n```\n\n"
        "## `notes`\n\n`````\n``` and\n````\n`````\n\n"
        "## `empty.c`\n\n```c\n```\n"
    )


def test_markdown_that_would_swallow_what_follows_is_fenced():
    markdown = language_named("Markdown")
    for text in ("a\n```\nnever closed\n", "~~~\n```\n", "<!-- never\nclosed\n", "````\n```\n"):
        [(heading, tag, inside), *_] = blocks(repository_text("n", [("a.md", text, markdown), ("b.c", "x\n", None)]))
        assert (heading, tag, inside) == ("`a.md`", "markdown", text)
    for text in ("````\n```\n````\n", "```py\n```\n", "<!-- a -->\n", "~~~\n```\n~~~\n"):
        assert text in repository_text("n", [("a.md", text, markdown)])
        assert "markdown\n" not in repository_text("n", [("a.md", text, markdown)])


def test_odd_paths():
    text = repository_text("a\nb", [("x`y.py", "1\n", None), ("p/a  b.py", "2\n", None)])
    assert text.startswith("# a b\n\n## `` x`y.py ``\n") and "## `p/a b.py`" in text
