"""Imports of each language in small repositories, and of Python against the parser of Python itself."""

from __future__ import annotations

import ast
import io
import sysconfig
import tokenize
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from puyulm.data.code.imports import import_edges
from puyulm.data.code.imports.index import FileIndex, joined, nearest
from puyulm.data.code.imports.lexing import blank
from puyulm.data.code.imports.python import find_imports
from puyulm.data.code.imports.rust import expand_use

SYNTAXES = ("python", "c", "java", "javascript", "go", "rust")
STDLIB = Path(sysconfig.get_path("stdlib"))
PACKAGES = ("json", "email", "logging", "asyncio", "importlib", "http")
LIBRARY = sorted(path for name in PACKAGES for path in (STDLIB / name).glob("*.py"))


@given(st.text("ab\"'`/*#\\\n{}()=r", max_size=80), st.sampled_from(SYNTAXES))
def test_blanking_keeps_places(text, syntax):
    blanked = blank(text, syntax)
    assert len(blanked) == len(text)
    assert [i for i, c in enumerate(text) if c == "\n"] == [i for i, c in enumerate(blanked) if c == "\n"]
    assert all(b in (a, " ") for a, b in zip(text, blanked, strict=True))


@pytest.mark.parametrize("path", LIBRARY[::4], ids=lambda path: f"{path.parent.name}/{path.name}")
def test_blanking_agrees_with_pythons_tokenizer(path):
    """Characters of comments and strings are gone (but for a string's first and last), all others stay."""
    text = path.read_text(encoding="utf-8")
    starts = [0]
    for line in text.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    expected = list(text)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in (tokenize.STRING, tokenize.COMMENT):
            first, last = starts[token.start[0] - 1] + token.start[1], starts[token.end[0] - 1] + token.end[1]
            if token.type == tokenize.STRING:
                first += len(token.string) - len(token.string.lstrip("rRbBuUfF")) + 1
                last -= 1
            expected[first:last] = ["\n" if c == "\n" else " " for c in text[first:last]]
    assert blank(text, "python") == "".join(expected)


@pytest.mark.parametrize("path", LIBRARY, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_python_imports_agree_with_ast(path):
    text = path.read_text(encoding="utf-8")
    expected = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            expected |= {(0, alias.name, None) for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            expected |= {(node.level, node.module or "", alias.name) for alias in node.names}
    assert {(found.level, found.module, found.name) for found in find_imports(text)} == expected


def test_python_statements():
    text = (
        "import a.b as c, d\nfrom . import (x as y,  # import no\n    z,)\nfrom ..p.q import *\n"
        "try: import e\nexcept ImportError: e = 1; import f\nif x:\n    from .g import h; i = 1\n"
        "from j \\\n  import k\n'''\nimport no\n'''\ns = \"import no\"; # import no\nreimport no\n"
        "print('from no import no')\n"
    )
    assert [(i.level, i.module, i.name, i.alias) for i in find_imports(text)] == [
        (0, "a.b", None, "c"), (0, "d", None, ""), (1, "", "x", "y"), (1, "", "z", "z"), (2, "p.q", "*", "*"),
        (0, "e", None, ""), (0, "f", None, ""), (1, "g", "h", "h"), (0, "j", "k", "k"),
    ]  # fmt: skip


PYTHON = {
    "src/pkg/__init__.py": "from .core import run, _hidden as shown\nfrom .tools import *\n"
    "from . import deep\nVERSION = 1\n",
    "src/pkg/core.py": "import json\nfrom pkg.util import helper\ndef run(): from .lazy import late\n",
    "src/pkg/util.py": "'''\nimport pkg.core\n'''\n# from . import core\n",
    "src/pkg/lazy.py": "late = 1\n",
    "src/pkg/tools.py": "__all__ = ['hammer']\ndef hammer(): pass\ndef nail(): pass\n",
    "src/pkg/deep/__init__.py": "from .er import depth\n",
    "src/pkg/deep/er.py": "from ... import outside\nfrom .. import core, VERSION\ndepth = 1\n",
    "src/pkg/json.py": "",
    "tests/test_all.py": "import pkg\nimport pkg.util as u\nfrom pkg import shown, hammer, VERSION, nail, missing\n"
    "pkg.run(pkg.deep.depth)\n",
    "tests/test_deep.py": "from pkg.deep import depth\nimport helpers\n",
    "tests/helpers.py": "import pkg.deep.er\nimport json\n",
    "ns/part/mod.py": "from ns.part import other\n",
    "ns/part/other.py": "import os\n",
    "scripts/json.py": "",
}


def edges(files: dict[str, str]) -> dict[str, set[str]]:
    return import_edges(files)


def test_python_repository():
    assert edges(PYTHON) == {
        "src/pkg/__init__.py": {"src/pkg/core.py", "src/pkg/tools.py", "src/pkg/deep/__init__.py"},
        "src/pkg/core.py": {"src/pkg/util.py", "src/pkg/lazy.py"},
        "src/pkg/deep/__init__.py": {"src/pkg/deep/er.py"},
        "src/pkg/deep/er.py": {"src/pkg/core.py", "src/pkg/__init__.py"},
        "tests/test_all.py": {
            "src/pkg/core.py",  # pkg.run, and `shown`, which core calls otherwise
            "src/pkg/deep/__init__.py",  # pkg.deep
            "src/pkg/util.py",
            "src/pkg/tools.py",  # hammer, which a star hands on
            "src/pkg/__init__.py",  # VERSION; `nail`, which the star does not hand on; `missing`
        },
        "tests/test_deep.py": {"src/pkg/deep/er.py", "tests/helpers.py"},
        "tests/helpers.py": {"src/pkg/deep/er.py"},
        "ns/part/mod.py": {"ns/part/other.py"},
    }


def test_python_package_at_the_top():
    files = {
        "__init__.py": "from .a import x\n",
        "a.py": "from . import b\nfrom .. import c\n",
        "b.py": "from . import x\n",
    }
    assert edges(files) == {"__init__.py": {"a.py"}, "a.py": {"b.py"}, "b.py": {"a.py"}}


def test_python_names_handed_round_in_a_circle():
    files = {"p/__init__.py": "from .q import x\n", "p/q/__init__.py": "from p import x\n", "t.py": "from p import x\n"}
    assert edges(files)["t.py"] <= {"p/__init__.py", "p/q/__init__.py"}


C = {
    "src/main.c": '#include <stdio.h>\n#include "all.h"\n#  include   "net/sock.h"\n// #include "x.h"\n'
    '/*\n#include "x.h"\n*/\n'
    'const char *s = "\\\n#include \\"x.h\\"";\nint main() { struct point p; return draw(p) + 1\'000; }\n',
    "include/all.h": '#ifndef ALL_H\n#define ALL_H\n#include "point.h"\n#include "draw.h"\n#include <unused.h>\n'
    "#endif\n",
    "include/point.h": "struct point { int x; };\n",
    "include/draw.h": '#pragma once\n#include "point.h"\nint draw(struct point p);\n',
    "include/unused.h": "int unused(void);\n",
    "lib/net/sock.h": "int sock(void);\n",
    "lib/net/sock.c": '#include "sock.h"\n#include <net/sock.h>\n#include "../../include/draw.h"\n',
    "lib/stdio.h": "",
    "other/net/sock.h": "",
    "other/use.cpp": '#include "net/sock.h"\nconst char *raw = R"(\n#include "x.h"\n)";\n',
    "x.h": "",
}  # fmt: skip


def test_c_repository():
    assert edges(C) == {
        "src/main.c": {
            "include/point.h",
            "include/draw.h",
            "lib/net/sock.h",
        },  # all.h only collects, unused.h is not used
        "include/all.h": {"include/point.h", "include/draw.h", "include/unused.h"},
        "include/draw.h": {"include/point.h"},
        "lib/net/sock.c": {"lib/net/sock.h", "include/draw.h"},
        "other/use.cpp": {"other/net/sock.h"},
    }


def test_c_collection_of_which_nothing_is_used_stays():
    files = {
        "a.c": '#include "all.h"\n',
        "all.h": '#include "b.h"\n#include "c.h"\n',
        "b.h": "int b();",
        "c.h": "int c();",
    }
    assert edges(files)["a.c"] == {"all.h"}


JAVA = {
    "a/com/x/App.java": "package com.x;\nimport com.x.util.*;\nimport static com.x.core.Engine.START;\n"
    '// import com.x.core.Fake;\nclass App { Helper h; Texts t; String s = "Other Numbers"; /* Other */ }\n',
    "a/com/x/Helper.java": "package com.x; class Helper {}\n",
    "a/com/x/Other.java": 'package com.x;\nimport com.x.core.Engine.Part;\nimport java.util.List;\nclass Other { String t = """\nHelper "a" """; }\n',  # noqa: E501
    "a/com/x/util/Texts.java": "package com.x.util; class Texts {}\n",
    "a/com/x/util/Numbers.java": "package com.x.util; class Numbers {}\n",
    "a/com/x/core/Engine.java": "package com.x.core; class Engine { static int START; class Part {} }\n",
    "a/com/x/core/Fake.java": "package com.x.core;\nimport com.x.util.Engine;\nclass Fake { Engine e; }\n",
    "a/com/x/util/Engine.java": "package com.x.util; class Engine {}\n",
    "b/com/x/Helper.java": "package com.x; class Helper {}\n",
    "b/com/x/Main.java": "package com.x; class Main { Helper h; }\n",
}


def test_java_repository():
    assert edges(JAVA) == {
        "a/com/x/App.java": {"a/com/x/Helper.java", "a/com/x/util/Texts.java", "a/com/x/core/Engine.java"},
        "a/com/x/Other.java": {"a/com/x/core/Engine.java"},
        "a/com/x/core/Fake.java": {"a/com/x/util/Engine.java"},  # hides the Engine of its own package
        "b/com/x/Main.java": {"b/com/x/Helper.java"},  # the nearest of two
    }


JAVASCRIPT = {
    "src/app.ts": 'import React from "react";\nimport { a } from "./lib/a";\nimport type { T } from \'./types\';\n'
    'export * from "./components";\nconst b = require("../tools/b.js"); // require("./x")\n'
    "const re = /[\"'`]/g; const l = await import(`./lazy`);\nArray.from(\"./x\"); foo.import('./x');\n"
    "/* import x from './x' */ const s = 'import \"./x\"'; const t = `\nimport \"./x\"\n`;\n",
    "src/x.ts": "",
    "src/lazy.tsx": "",
    "src/lib/a.ts": 'import "../app.js";\nimport {\n  one,\n  two,\n} from "../lazy";\n',
    "src/types.d.ts": "",
    "src/components/index.tsx": 'export { default } from "./Button.vue";\n',
    "src/components/Button.vue": '<script>import a from "../lib/a"; import up from "../../../../outside"</script>\n',
    "tools/b.js": "module.exports = require('.');\n",
    "tools/index.js": "",
}


def test_javascript_repository():
    assert edges(JAVASCRIPT) == {
        "src/app.ts": {"src/lib/a.ts", "src/types.d.ts", "src/components/index.tsx", "tools/b.js", "src/lazy.tsx"},
        "src/lib/a.ts": {"src/app.ts", "src/lazy.tsx"},
        "src/components/index.tsx": {"src/components/Button.vue"},
        "src/components/Button.vue": {"src/lib/a.ts"},
        "tools/b.js": {"tools/index.js"},
    }


GO = {
    "go.mod": "module example.com/app\n\ngo 1.20\n",
    "main.go": 'package main\n\nimport (\n\t"fmt"\n\t// "example.com/app/none"\n\tst "example.com/app/store"\n'
    '\t_ "example.com/app/drivers"\n)\n\nfunc main() { fmt.Println(st.Open("x"), helper()) }\n',
    "help.go": "package main\n\nfunc helper() int { return 1 }\n",
    "store/open.go": "package store\n\nfunc Open(p string) *DB { return nil }\n",
    "store/db.go": "package store\n\ntype DB struct{}\n\nvar (\n\tErrA = 1\n\tErrB, ErrC = 1, 2\n)\n",
    "store/other.go": 'package store\n\nconst Other = `import "example.com/app/drivers"`\n',
    "store/db_test.go": "package store\n\nfunc TestDB() { var d DB; Other() }\n",
    "drivers/a.go": "package drivers\n\nfunc init() {}\n",
    "sub/go.mod": "module example.com/sub\n",
    "sub/x.go": 'package sub\n\nimport "example.com/app/store"\nimport "example.com/sub/y"\n\nvar e = store.ErrC\n',
    "sub/y/y.go": "package why\n\nfunc Y() {}\n",
    "none/n.go": "package none\n",
}


def test_go_repository():
    assert edges(GO) == {
        "main.go": {"help.go", "store/open.go", "drivers/a.go"},
        "store/open.go": {"store/db.go"},
        "store/db_test.go": {"store/db.go", "store/other.go"},
        "sub/x.go": {"store/db.go", "sub/y/y.go"},
    }


def test_go_before_modules():
    files = {
        "a/a.go": 'package a\n\nimport "github.com/o/n/b"\n\nvar x = b.B\n',
        "b/b.go": "package b\n\nconst B = 1\n",
    }
    assert edges(files) == {"a/a.go": {"b/b.go"}}


RUST = {
    "Cargo.toml": '[package]\nauthors = ["A"]\nname = "my-app"\n',
    "src/lib.rs": '//! mod fake;\npub mod net;\nmod util;\n#[path = "odd/name.rs"]\nmod renamed;\n'
    "pub use net::http::Client;\n"
    "/* mod other; /* nested */ */\npub type Result<T> = std::result::Result<T, ()>;\n",
    "src/main.rs": "use my_app::net::http;\nuse my_app::Client;\n"
    'fn main() { let s = "use crate::util;"; let c = \'"\'; }\n',
    "src/util.rs": "use crate::Result;\npub fn help<'a>(x: &'a str) -> char { '\"' }\n#[cfg(test)]\n"
    "mod tests { use super::*; use super::super::net::http; }\n",
    "src/odd/name.rs": 'pub fn f() { crate::util::help(r#"use crate::net; "#); }\n',
    "src/net/mod.rs": "pub mod http;\nmod tcp;\nuse self::tcp::Stream;\n",
    "src/net/http.rs": "use super::tcp::{Stream, Addr as A};\nuse crate::{util::help, Client};\npub struct Client;\n",
    "src/net/tcp.rs": "pub struct Stream; // use crate::net::http\n",
    "tests/it.rs": "mod common;\nuse my_app::net::tcp::Stream;\n",
    "tests/common/mod.rs": "pub fn x() {}\n",
}


def test_rust_repository():
    assert edges(RUST) == {
        # lib.rs declares all, but util needs it, and all others util
        "src/main.rs": {"src/net/http.rs"},
        "src/util.rs": {"src/lib.rs", "src/net/http.rs"},
        "src/odd/name.rs": {"src/util.rs"},
        "src/net/mod.rs": {"src/net/tcp.rs"},
        "src/net/http.rs": {"src/net/tcp.rs", "src/util.rs"},
        "tests/it.rs": {"tests/common/mod.rs", "src/net/tcp.rs"},
    }


def test_use_trees():
    found = [("::".join(use.parts), use.called) for use in expand_use("a::{b, c::{self, d as e}, f::*, self as g}, h")]
    assert found == [("a::b", "b"), ("a::c", "c"), ("a::c::d", "e"), ("a::f", "*"), ("a", "g"), ("h", "h")]
    assert expand_use("a::{" * 1000) == []


def test_kinds_do_not_mix_and_other_files_do_nothing():
    files = {**PYTHON, **C, **JAVA, **JAVASCRIPT, **GO, "README.md": "import pkg\n", "x/empty.py": "", "x/empty.c": ""}
    together = edges(files)
    for part in (C, JAVA, JAVASCRIPT, GO):
        assert {path: together.get(path) for path in part} == {path: edges(part).get(path) for path in part}
    assert "README.md" not in together


NAMES = (
    "a.py", "p/__init__.py", "b.c", "b.h", "C.java", "d.ts", "go.mod", "e.go", "Cargo.toml", "src/lib.rs", "src/f.rs"
)  # fmt: skip


@given(st.dictionaries(
    st.sampled_from(NAMES),
    st.text("abfp.:;*{}()/\"'\n _#<>", max_size=60).map(lambda t: "import from use mod include ".join(t.split("a"))),
    max_size=8,
))  # fmt: skip
def test_any_files_are_read(files):
    for path, targets in edges(files).items():
        assert path in files and path not in targets and targets <= files.keys()


def test_paths():
    assert joined("a/b", "../c/./d") == "a/c/d"
    assert joined("a", "../../x") is None
    assert nearest(["b/x.h", "a/c/x.h", "a/x.h"], "a/c/d.c") == "a/c/x.h"
    assert nearest(["q/b/x.h", "z/x.h"], "a/d.c") == "z/x.h"
    assert nearest([], "a") is None
    index = FileIndex(["a/x.h", "b/a/x.h", "a/xx.h"])
    assert index.ending("a/x.h") == ["a/x.h", "b/a/x.h"]
    assert index.ending("/x.h") == ["a/x.h", "b/a/x.h"]
