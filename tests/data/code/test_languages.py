"""Programming languages by name, suffix, first line and content."""

from __future__ import annotations

import pytest

from puyulm.data.code.languages import LOW_RESOURCE, detect_language, language_named, language_names, path_of
from puyulm.data.documents import Document

CASES = [
    ("a/b.py", "", "Python"),
    ("a/B.PY", "", "Python"),
    ("Makefile", "", "Makefile"),
    ("docker/Dockerfile.dev", "FROM x", "Dockerfile"),
    ("CMakeLists.txt", "project(x)", "CMake"),
    ("requirements.txt", "numpy", "Text"),
    ("LICENSE", "", "Text"),
    ("readme", "", "Text"),
    ("x.h", "int f(void);\n", "C"),
    ("x.h", "namespace a {\nint f();\n}\n", "C++"),
    ("x.h", "class Point;\nstd::string name();\n", "C++"),
    ("x.h", "#import <UIKit/UIKit.h>\n@interface View : UIView\n@end\n", "Objective-C"),
    ("x.m", "function y = f(x)\n% doubles\ny = 2 * x;\nend\n", "MATLAB"),
    ("x.m", "#import \"View.h\"\n@implementation View\n@end\n", "Objective-C"),
    ("x.m", "(* a package *)\nf[x_] := x^2\n", "Mathematica"),
    ("x.pl", "use strict;\nmy $x = 1;\n", "Perl"),
    ("x.pl", "parent(tom, bob).\ngrand(X, Z) :- parent(X, Y), parent(Y, Z).\n", "Prolog"),
    ("x.v", "module adder(input a, output b);\nendmodule\n", "Verilog"),
    ("x.v", "Theorem plus_0 : forall n, n + 0 = n.\nProof.\nQed.\n", "Rocq Prover"),
    ("x.ts", "export const a: number = 1;\n", "TypeScript"),
    ("x.ts", '<?xml version="1.0"?><!DOCTYPE TS><TS/>', "XML"),
    ("x.fs", "module M\nlet x = 1\n", "F#"),
    ("x.fs", "#version 330\nvoid main() {}\n", "GLSL"),
    ("x.d", "import std.stdio;\nvoid main() {}\n", "D"),
    ("x.d", "main.o: main.c \\\n util.h\n", "Makefile"),
    ("x.cls", "\\ProvidesClass{thesis}\n", "TeX"),
    ("x.cls", "public class Account {}\n", "Java"),
    ("x.pp", "program Hello;\nbegin\nend.\n", "Pascal"),
    ("run", "#!/usr/bin/env python3\nprint(1)\n", "Python"),
    ("run", "#!/usr/bin/env -S node --flag\n", "JavaScript"),
    ("run", "#!/bin/sh\necho\n", "Shell"),
    ("conf", "# -*- mode: ruby -*-\n", "Ruby"),
    ("conf", "# vim: set ft=python:\n", "Python"),
    ("page", "<!DOCTYPE html>\n<p>Hi</p>", "HTML"),
    ("", "<?php echo 1;", "PHP"),
    ("Program.cs", '<?xml version="1.0"?><a/>', "XML"),
    ("index.php", '<?xml version="1.0"?><?php echo 1;', "PHP"),
]  # fmt: skip


@pytest.mark.parametrize("path, text, expected", CASES)
def test_language_of_a_file(path, text, expected):
    found = detect_language(path, text)
    assert found is not None and found.name == expected


@pytest.mark.parametrize("path, text", [("data", "a b c"), ("x.unknown", "zzz"), ("", ""), (".gitignore", "*.o")])
def test_unknown_is_none(path, text):
    assert detect_language(path, text) is None


def test_table_is_consistent():
    names = language_names()
    assert len(set(names)) == len(names) >= 60
    for name in (*names, *LOW_RESOURCE):
        language = language_named(name)
        assert language is not None and language.name == name
        assert language.kind in ("code", "markup", "prose", "data")
        assert language_named(name.upper()) == language


def test_detection_does_not_take_forever_on_hostile_text():
    for text in ("\n" * 50_000, " " * 50_000, "#\n" * 25_000, "a(" * 20_000, "a " * 25_000):
        for suffix in ("h", "m", "pl", "v", "fs", "d", "cls", "pp", "pro", ""):
            detect_language(f"x.{suffix}" if suffix else "x", text)


@pytest.mark.parametrize(
    "url, path, expected",
    [
        ("src/a.py", None, "src/a.py"),
        ("x", "./src//a.py", "src/a.py"),
        ("https://github.com/o/n/blob/main/src/a.py?raw=1#L3", None, "src/a.py"),
        ("https://gitlab.com/g/o/n/-/raw/v1.0/a.py", None, "a.py"),
        ("https://example.org/x/a.py", None, "x/a.py"),
        ("", "dir\\a b.c", "dir/a b.c"),
        ("", None, ""),
    ],
)
def test_path_of_a_document(url, path, expected):
    metadata = {} if path is None else {"path": path}
    assert path_of(Document("i", "t", "code", "s", url=url, metadata=metadata)) == expected
