"""Code in answers that models write."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from puyulm.eval.extract.code import (
    Block,
    between_marks,
    code_blocks,
    complete,
    defines,
    find_code,
    first_block,
    parse,
    without_thoughts,
)

PROMPT = '''from typing import List


def helper(x: int) -> int:
    return x + 1


def add(a: int, b: int) -> int:
    """ Adds two numbers.
    >>> add(1, 2)
    3
    """
'''
FULL = "def add(a, b):\n    return a + b"

RIGHT = {
    "a fence": f"```python\n{FULL}\n```",
    "a fence without language": f"```\n{FULL}\n```",
    "capitals": f"```Python\n{FULL}\n```",
    "py3": f"```py3\n{FULL}\n```",
    "attributes of the fence": f"```python title='x.py'\n{FULL}\n```",
    "braces": f"```{{.python}}\n{FULL}\n```",
    "tildes": f"~~~python\n{FULL}\n~~~",
    "four backticks": f"````python\n{FULL}\n````",
    "windows lines": f"```python\r\n{FULL}\r\n```\r\n".replace("\n    ", "\r\n    "),
    "text before and after": f"Sure! Here it is:\n\n```python\n{FULL}\n```\n\nThis adds `a` and `b`. Hope it helps!",
    "Chinese around it": f"当然可以，代码如下：\n```python\n{FULL}\n```\n这个函数返回两数之和。",
    "an unclosed fence": f"Here:\n```python\n{FULL}",
    "a fence at the end of code": f"```python\n{FULL}```\nDone.",
    "a fence in a list": "1. Write it:\n   ```python\n   def add(a, b):\n       return a + b\n   ```\n2. Use it.",
    "a quoted fence": "> ```python\n> def add(a, b):\n>     return a + b\n> ```",
    "one line": "Use ```def add(a, b): return a + b``` for this.",
    "no fence": FULL,
    "no fence, prose before": f"Here is the solution:\n\n{FULL}",
    "no fence, prose around": f"The function:\n\n{FULL}\n\nIt returns the sum of both.",
    "no fence, a word after": f"{FULL}\n\nDone",
    "no fence, heading after": f"{FULL}\n\nExplanation: we add them.\nThat is all.",
    "no fence, an import first": f"Solution\nimport math\n\n{FULL}\n",
    "no fence, a decorator": f"Solution:\nimport functools\n@functools.cache\n{FULL}\nIt caches.",
    "only the body": "    return a + b",
    "only the body in a fence": "```python\n    return a + b\n```",
    "the body without indentation": "```python\nreturn a + b\n```",
    "the body, its first line stripped": "total = a\n    total += b\n    return total",
    "the body, with a block, stripped": "if a:\n        return a + b\n    return b",
    "the body by two spaces": "```\n  total = a + b\n  return total\n```",
    "the body with tabs": "\treturn a + b",
    "the whole function indented": "```python\n    def add(a, b):\n        return a + b\n```",
    "the prompt repeated": f"```python\n{PROMPT}    return a + b\n```",
    "a helper of the prompt": "```python\ndef add(a, b):\n    return helper(a) + b - 1\n```",
    "a type of the prompt": "```python\ndef add(a, b):\n    c: List[int] = [a, b]\n    return sum(c)\n```",
    "a usage block after": f"```python\n{FULL}\n```\nUsage:\n```python\nprint(add(1, 2))\n```",
    "its output after": f"```python\n{FULL}\n```\nOutput:\n```\n3\n```",
    "a shell block before": f"```bash\npip install numpy\n```\n```python\n{FULL}\n```",
    "a text block before": f"```text\nadd(1, 2) -> 3\n```\n\n```python\n{FULL}\n```",
    "helpers in a block before": "First:\n```python\nimport operator\n\ndef plus(x, y):\n"
    "    return operator.add(x, y)\n```\nThen:\n```python\ndef add(a, b):\n    return plus(a, b)\n```",
    "a draft, then the right one": "```python\ndef add(a, b):\n    return a - b\n```\nWait, that is wrong.\n"
    f"```python\n{FULL}\n```",
    "a stub repeated after": f"```python\n{FULL}\n```\nThe signature was\n```python\ndef add(a, b):\n    ...\n```",
    "a fragment explained after": f"```python\n{FULL}\n```\nHere\n```python\ndef add(a, b):\n```\nis the head.",
    "thoughts before": f"<think>\nMaybe\n```python\ndef add(a, b): return 0\n```\n</think>\n```python\n{FULL}\n```",
    "the end of thoughts": f"so I return 0\n</think>\n\n```python\n{FULL}\n```",
    "main": f"```python\n{FULL}\n\nif __name__ == '__main__':\n    print(add(1, 2))\n```",
    "non-breaking spaces": f"```python\n{FULL}\n```".replace("    ", "\u00a0" * 4),
    "async helper": "```python\nasync def nothing():\n    return 0\n\ndef add(a, b):\n    return a + b\n```",
    "a fence in a string": "```python\ndef add(a, b):\n    '''Use ```add(1, 2)``` so.'''\n    return a + b\n```",
}  # fmt: skip
WRONG = {
    "nothing": "",
    "a refusal": "I'm sorry, but I can't help with that.",
    "words": "The answer is to return a + b",
    "another function": "```python\ndef sub(a, b):\n    return a - b\n```",
    "a wrong body": "    return a - b",
    "cut off": "```python\ndef add(a, b):\n    return (a +",
    "unfinished thoughts": f"<think>\nI could write\n```python\n{FULL}\n```\nbut",
    "another language": "```javascript\nfunction add(a, b) { return a + b; }\n```",
    "a stub": "```python\ndef add(a, b):\n    pass\n```",
    "empty fence": "```python\n```",
}


def passes(program: str) -> bool:
    """Runs texts of this file, none of a model's."""
    space: dict[str, object] = {"__name__": "solution"}
    try:
        exec(program, space)
        return space["add"](1, 2) == 3  # type: ignore[operator]
    except Exception:
        return False


@pytest.mark.parametrize("name", RIGHT)
def test_finds_code(name: str) -> None:
    program = complete(PROMPT, find_code(RIGHT[name], "add"), "add")
    assert passes(program), program


@pytest.mark.parametrize("name", WRONG)
def test_finds_no_code(name: str) -> None:
    assert not passes(complete(PROMPT, find_code(WRONG[name], "add"), "add"))


def test_the_strict_rule_takes_the_first_closed_block() -> None:
    assert first_block("a\n```python\none\n```\n```\ntwo\n```") == "one\n"
    assert first_block("```python\none") == "```python\none"
    assert first_block("    return a + b") == "    return a + b"
    assert passes(PROMPT + first_block(RIGHT["text before and after"]))
    assert passes(PROMPT + first_block(RIGHT["only the body"]))
    assert not passes(PROMPT + first_block(RIGHT["a draft, then the right one"]))
    assert not passes(PROMPT + first_block(RIGHT["the body without indentation"]))


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("[BEGIN]\nx = 1\n[DONE]", "x = 1"),
        ("x = 1\n[DONE]\nmore", "x = 1"),
        ("Sure.\n[BEGIN]\nx = 1", "x = 1"),
        ("[BEGIN]\n 'x = 1' \n[DONE]", "x = 1"),
        ("[BEGIN]\n'''doc'''\nx = 1\n[DONE]", "'''doc'''\nx = 1"),
        ("BEGIN\nx = 1\nDONE", "x = 1"),
        ("x = 'BEGIN'", "x = 'BEGIN'"),
        ("", ""),
    ],
)
def test_code_between_marks(text: str, code: str) -> None:
    assert between_marks(text).strip() == code


def test_blocks() -> None:
    text = "```python\na\n```\n  ~~~ js x\n  b\n  ~~~\n````\n```\nc\n```\n````\n```\nd"
    assert code_blocks(text) == [
        Block("python", "a\n"), Block("js", "b\n"), Block("", "```\nc\n```\n"), Block("", "d"),
    ]  # fmt: skip
    assert code_blocks("no code `x` here") == []


def test_thoughts_are_left_out() -> None:
    assert without_thoughts("<think>a</think>b<think>c</think>d") == "bd"
    assert without_thoughts("a</think>b") == "b"
    assert without_thoughts("b<think>a") == "b"


def test_functions_are_found() -> None:
    assert defines("def f(): return 1", "f") and defines("async def f(): return 1", "")
    assert not defines("def f(): return 1", "g") and not defines("def f():", "f")
    assert not defines("def f(): ...", "f") and defines("def f(): ...", "f", stubs=True)
    assert parse("x = '\\d'") is not None and parse("\0") is None


fragments = st.sampled_from([
    "```", "```python\n", "~~~", "\n", "    ", "\t", "def add(", "a, b):", "return a", "<think>", "</think>", "[BEGIN]",
    "[DONE]", "'", '"""', "(", "]", "@x", "\\", "\r", "\0", "\ud800", "，", "class A:", "if x:", "else:", "> ", "1. ",
])  # fmt: skip


@given(st.one_of(st.text(), st.lists(fragments).map("".join)), st.sampled_from(["", "add"]))
def test_nothing_raises(text: str, wanted: str) -> None:
    code = find_code(text, wanted)
    assert isinstance(complete(PROMPT, code, "add"), str)
    assert isinstance(first_block(between_marks(text)), str)


@given(st.integers(0, 40), st.sampled_from(["```python\n{}\n```", "```\n{}\n```", "~~~py\n{}\n~~~", "{}", "Here:\n{}"]))
def test_code_is_found_whole(lines: int, frame: str) -> None:
    code = "def add(a, b):\n" + "".join(f"    a = a + {n} - {n}\n" for n in range(lines)) + "    return a + b"
    assert parse(find_code(frame.format(code), "add")) is not None
    assert passes(complete(PROMPT, find_code(frame.format(code), "add"), "add"))


def test_long_answers_take_no_long() -> None:
    for text in (
        "```" * 20_000, "x\n" * 20_000, "(" * 40_000, "-" * 40_000 + "1",
        "a = 1\nThe\n" * 6_000, " ```\n" * 40_000,
        "```\n" + "`" * 40_000 + "x", "<think>" * 9_000, "\n" * 120_000 + "x y", "``` " + " " * 120_000, "a=" * 30_000,
        "a.b" * 20_000, "def add(" * 20_000,
    ):  # fmt: skip
        complete(PROMPT, find_code(between_marks(text), "add"), "add")
        first_block(text)
