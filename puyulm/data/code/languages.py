"""Which programming language a file is in: by its name, its suffix, its first line, and where these leave a choice by
what stands in it.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from puyulm.data.documents import Document

Kind = Literal["code", "markup", "prose", "data"]
Comments = Literal["c", "hash", "dash", "semicolon", "percent", "html", "quote", "ml", "exclamation", "none"]

HEAD = 20_000  # characters that decide between languages


@dataclass(frozen=True)
class Language:
    """A programming language, or what else source trees hold.

    Attributes:
        name: As GitHub spells it.
        tag: After the fence of a Markdown code block.
        kind: "code" is what somebody programmed; "markup" has tags; "prose" is for people; "data" is for programs.
        comments: How comments are written, by the family of their marks.
    """

    name: str
    tag: str
    kind: Kind
    comments: Comments


# name | tag | kind | comments | suffixes | whole file names | interpreters
_TABLE = """
Ada|ada|code|dash|adb ads|
Agda|agda|code|dash|agda|
Assembly|asm|code|semicolon|asm s nasm|
Awk|awk|code|hash|awk||awk gawk mawk nawk
Batchfile|batch|code|none|bat cmd|
C|c|code|c|c h|
C#|csharp|code|c|cs csx|
C++|cpp|code|c|cc cpp cxx c++ hh hpp hxx h++ ipp inl tpp tcc|
CMake|cmake|code|hash|cmake|CMakeLists.txt
COBOL|cobol|code|none|cob cbl cpy|
CSS|css|code|c|css|
CUDA|cuda|code|c|cu cuh|
Clojure|clojure|code|semicolon|clj cljs cljc edn|
CoffeeScript|coffeescript|code|hash|coffee|Cakefile|coffee
Common Lisp|lisp|code|semicolon|lisp lsp cl asd||sbcl
Crystal|crystal|code|hash|cr||crystal
Cython|cython|code|hash|pyx pxd pxi|
D|d|code|c|d|
Dart|dart|code|c|dart||dart
Dockerfile|dockerfile|code|hash|dockerfile|Dockerfile Containerfile
Elixir|elixir|code|hash|ex exs||elixir
Elm|elm|code|dash|elm|
Emacs Lisp|elisp|code|semicolon|el|.emacs
Erlang|erlang|code|percent|erl hrl|rebar.config|escript
F#|fsharp|code|ml|fs fsi fsx|
Fish|fish|code|hash|fish||fish
Fortran|fortran|code|exclamation|f for f77 f90 f95 f03 f08|
GLSL|glsl|code|c|glsl vert frag geom comp|
Go|go|code|c|go|
Go module|go-mod|data|c||go.mod go.sum go.work
GraphQL|graphql|code|hash|graphql gql|
Groovy|groovy|code|c|groovy gradle gvy|Jenkinsfile|groovy
HCL|hcl|code|hash|tf hcl tfvars|
HTML|html|markup|html|html htm xhtml|
Haskell|haskell|code|dash|hs lhs||runhaskell runghc
Haxe|haxe|code|c|hx|
INI|ini|data|semicolon|ini cfg conf properties editorconfig|.gitconfig .editorconfig setup.cfg
JSON|json|data|none|json jsonl geojson webmanifest ipynb|.eslintrc .babelrc composer.lock Pipfile.lock
Java|java|code|c|java|
JavaScript|javascript|code|c|js mjs cjs jsx||node nodejs deno bun
Julia|julia|code|hash|jl||julia
Kotlin|kotlin|code|c|kt kts|
Lean|lean|code|dash|lean|
Less|less|code|c|less|
Lua|lua|code|dash|lua|.luacheckrc|lua luajit
MATLAB|matlab|code|percent|m||octave
Makefile|makefile|code|hash|mk mak make|Makefile makefile GNUmakefile Kbuild
Markdown|markdown|prose|html|md markdown mdown mdx rmd qmd|
Mathematica|mathematica|code|ml|wl wls nb|
Meson|meson|code|hash||meson.build meson_options.txt
Nim|nim|code|hash|nim nims nimble||nim
Nix|nix|code|hash|nix|
OCaml|ocaml|code|ml|ml mli mll mly||ocaml
Objective-C|objectivec|code|c|mm|
PHP|php|code|c|php phtml php3 php4 php5||php
Pascal|pascal|code|c|pas pp dpr lpr|
Perl|perl|code|hash|pl pm t pod plx|Makefile.PL cpanfile|perl
PowerShell|powershell|code|hash|ps1 psm1 psd1||pwsh
Prolog|prolog|code|percent|pro prolog plt||swipl
Protocol Buffer|protobuf|code|c|proto|
Puppet|puppet|code|hash|epp|
PureScript|purescript|code|dash|purs|
Python|python|code|hash|py pyi pyw py3 wsgi|SConstruct SConscript wscript|python pypy
R|r|code|hash|r|.Rprofile|Rscript
Racket|racket|code|semicolon|rkt rktl||racket
Rocq Prover|coq|code|ml||
Ruby|ruby|code|hash|rb rake gemspec ru podspec|Rakefile Gemfile Vagrantfile Podfile Guardfile Fastfile|ruby jruby
Rust|rust|code|c|rs|
SCSS|scss|code|c|scss sass|
SQL|sql|code|dash|sql psql plsql|
Scala|scala|code|c|scala sc sbt||scala
Scheme|scheme|code|semicolon|scm ss sld||guile
Shell|bash|code|hash|sh bash zsh ksh bats|.bashrc .bash_profile .profile .zshrc PKGBUILD|sh bash zsh ksh dash ash
Solidity|solidity|code|c|sol|
Standard ML|sml|code|ml|sml sig fun|
Starlark|starlark|code|hash|bzl star|BUILD BUILD.bazel WORKSPACE WORKSPACE.bazel Tiltfile
Svelte|svelte|markup|html|svelte|
Swift|swift|code|c|swift||swift
SystemVerilog|systemverilog|code|c|sv svh|
TOML|toml|data|hash|toml|Cargo.lock poetry.lock uv.lock Pipfile
Tcl|tcl|code|hash|tcl tk||tclsh wish
TeX|latex|prose|percent|tex sty cls ltx bib dtx|
Text|text|prose|none|txt text log|README LICENSE LICENCE COPYING NOTICE AUTHORS CHANGELOG INSTALL NEWS TODO
Thrift|thrift|code|c|thrift|
TypeScript|typescript|code|c|ts tsx mts cts|
VHDL|vhdl|code|dash|vhd vhdl|
Verilog|verilog|code|c|v vh|
Vim Script|vim|code|quote|vim vimrc|.vimrc _vimrc
Visual Basic|vb|code|none|vb bas vbs|
Vue|vue|markup|html|vue|
WebAssembly|wasm|code|semicolon|wat wast|
XML|xml|markup|html|xml xsl xslt xsd svg plist csproj vcxproj xaml rss wsdl dtd ui qrc resx storyboard xib|
YAML|yaml|data|hash|yml yaml|.clang-format .clang-tidy
Zig|zig|code|c|zig zon|
reStructuredText|rst|prose|none|rst rest|
CSV|csv|data|none|csv tsv|
AsciiDoc|asciidoc|prose|none|adoc asciidoc asc|
Org|org|prose|none|org|
"""

LOW_RESOURCE = (
    "Ada", "Agda", "Assembly", "Awk", "COBOL", "Clojure", "Common Lisp", "Crystal", "Cython", "D", "Elm", "Emacs Lisp",
    "Erlang", "F#", "Fish", "Fortran", "Haskell", "Haxe", "Julia", "Lean", "MATLAB", "Mathematica", "Nim", "Nix",
    "OCaml", "Pascal", "Prolog", "PureScript", "Racket", "Rocq Prover", "Scheme", "Solidity", "Standard ML",
    "SystemVerilog", "Tcl", "Thrift", "VHDL", "Verilog", "Vim Script", "WebAssembly", "Zig",
)  # fmt: skip
"""Languages of which public repositories hold little: below about one in three hundred files each."""


def _p(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.MULTILINE)


_OBJECTIVE_C = _p(r"^[ \t]*(?:@(?:interface|implementation|protocol|end|property|class|import)\b|#import\b)")
_CPP = _p(
    r"^[ \t]*(?:class\s+\w+\s*(?:final\s*)?[:{]|template\s*<|namespace\s+\w*\s*\{|using\s+(?:namespace\s|\w+\s*=)"
    r"|(?:public|private|protected)\s*:|#include\s*<(?:iostream|string|vector|map|memory|utility|c\w+|algorithm)>)"
    r"|\bstd::|\bconstexpr\b|\bvirtual\b.*\(|\boperator\s*[=!<>+*\[(-]|\bnullptr\b"
)
# Suffix -> what decides, in order; where nothing does, the table's language of that suffix is taken.
_CHOICES: Mapping[str, tuple[tuple[str, re.Pattern[str]], ...]] = {
    "h": (("Objective-C", _OBJECTIVE_C), ("C++", _CPP),),
    "inl": (("C++", _CPP),),
    "m": (
        ("Objective-C", _OBJECTIVE_C),
        ("Mathematica", _p(r"\(\*|^[ \t]*(?:BeginPackage|Begin|Needs|Get)\[|:=\s*Module\[")),
        ("Objective-C", _p(r"^[ \t]*(?:#include|#define|//|/\*)")),
    ),
    "pl": (
        ("Perl", _p(r"^[ \t]*(?:use\s+(?:strict|warnings|\w+(?:::\w+)*\s*[;(q])|my\s+[$@%(]|sub\s+\w|package\s+\w)")),
        ("Prolog", _p(r"^[ \t]*:-|^[a-z]\w*(?:\([^\n]*\))?\s*(?::-|-->)|^[a-z]\w*\([^\n]*\)\.\s*$")),
    ),
    "pro": (
        ("Prolog", _p(r"^[ \t]*:-|^[a-z]\w*(?:\([^\n]*\))?\s*:-|^[a-z]\w*\([^\n]*\)\.\s*$")),
        ("INI", _p(r"^[ \t]*[A-Z_]+\s*\+?=")),
    ),
    "v": (
        ("Rocq Prover", _p(r"^[ \t]*(?:Require|From\s+\w+\s+Require|Theorem|Lemma|Definition|Proof|Fixpoint|Qed)\b")),
    ),
    "ts": (("XML", re.compile(r"\A\s*<(?:\?xml|!DOCTYPE TS)")),),
    "fs": (
        ("GLSL", _p(r"^[ \t]*(?:#version\s|precision\s+\w+\s+float|uniform\s|varying\s|void\s+main\s*\()")),
    ),
    "d": (
        ("Makefile", re.compile(r"\A(?:#[^\n]*\n|[ \t]*\n)*+[^\s:=;{}]+\.o[ \t]*:")),
    ),
    "cls": (
        ("TeX", _p(r"\\(?:ProvidesClass|NeedsTeXFormat|def|newcommand|RequirePackage)\b|^[ \t]*%")),
        ("Visual Basic", _p(r"^[ \t]*(?:VERSION\s|Attribute\s+VB_|Option\s+Explicit)")),
        ("Java", _p(r"\bclass\s+\w+")),
    ),
    "pp": (
        ("Pascal", _p(r"(?i)^[ \t]*(?:unit|program|uses|procedure|function|begin|interface)\b")),
        ("Puppet", _p(r"^[ \t]*(?:class|node|define)\s+\S+.*\{|=>")),
    ),
}  # fmt: skip

_FIRST_LINE = re.compile(r"#!\s*(?:\S*/)?(?:env\s+(?:-\S+\s+)*(?:\w+=\S+\s+)*)?([A-Za-z]+)[\d.]*")
_MODELINE = re.compile(
    r"-\*-\s*(?:.*?mode:\s*)?([\w+#-]+)\s*(?:;.*)?-\*-|\bvim?:.*?\b(?:ft|filetype|syntax)=(\w+)", re.I
)
_STARTS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"\s*<\?xml\b"), "XML"),
    (re.compile(r"\s*<!doctype\s+html|\s*<html\b", re.I), "HTML"),
    (re.compile(r"\s*<\?php\b"), "PHP"),
    (re.compile(r"\s*package\s+\w+\s*\n+(?:import|func|//|type|const|var)\b"), "Go"),
)


def detect_language(path: str, text: str) -> Language | None:
    """The language of a file, or None where nothing tells.

    In this order: the whole file name, the suffix (with a look at the text where a suffix has several languages, and
    where XML stands in a file of another suffix), the interpreter in the first line, an editor's mode line, and how
    the text begins.

    Args:
        path: Folders and name, with "/"; may be empty.
        text: The file.
    """
    names, suffixes, interpreters, modes = _lookups()
    head = text[:HEAD]
    name = path.rsplit("/", 1)[-1]
    stem, dot, suffix = name.rpartition(".")
    suffix = suffix.lower() if dot else ""
    if known := names.get(name) or names.get(name.upper()):
        return known
    if suffix in suffixes:
        if _STARTS[0][0].match(head) and suffixes[suffix].kind == "code" and suffix not in ("php", "phtml"):
            return language_named("XML")
        return _choose(suffix, head) or suffixes[suffix]
    if stem and (stem in names or name.partition(".")[0] in ("Dockerfile", "Makefile")):  # Dockerfile.dev, README.old
        return names.get(stem) or names[name.partition(".")[0]]
    if (match := _FIRST_LINE.match(head)) and match[1] in interpreters:
        return interpreters[match[1]]
    if match := _MODELINE.search("\n".join(head.split("\n", 3)[:3])):
        return modes.get((match[1] or match[2]).lower())
    return next((language_named(language) for pattern, language in _STARTS if pattern.match(head)), None)


def language_named(name: str) -> Language | None:
    """The language of this name or tag, in any case; None if the table has none."""
    return _by_name().get(name.lower())


def language_names() -> tuple[str, ...]:
    """Names of all languages of the table, in its order."""
    return tuple(row.split("|", 1)[0] for row in _TABLE.strip().splitlines())


def path_of(document: Document) -> str:
    """The path of a document's file in its repository: `metadata["path"]`, or else what its url says.

    Of an address like `https://host/owner/name/blob/main/a/b.py`, the part after the branch counts; of another, what
    follows the host. Leading "./" and "/" are taken off.
    """
    path = document.metadata.get("path")
    if not isinstance(path, str) or not path:
        path = document.url
        if match := re.match(r"[a-z][a-z+]*://[^/]*/(?:.*?/(?:blob|raw)/[^/]+/)?([^?#]*)", path):
            path = match[1]
    parts = [part for part in path.replace("\\", "/").split("/") if part not in ("", ".")]
    return " ".join("/".join(parts).split())


def _choose(suffix: str, head: str) -> Language | None:
    for name, pattern in _CHOICES.get(suffix, ()):
        if pattern.search(head):
            return language_named(name)
    return None


@functools.cache
def _by_name() -> dict[str, Language]:
    found: dict[str, Language] = {}
    for row in _TABLE.strip().splitlines():
        language = _language(row)
        found[language.name.lower()] = language
        found.setdefault(language.tag, language)
    return found


@functools.cache
def _lookups() -> tuple[dict[str, Language], ...]:
    """Languages by whole file name, by suffix, by interpreter, and by editors' modes."""
    names: dict[str, Language] = {}
    suffixes: dict[str, Language] = {}
    interpreters: dict[str, Language] = {}
    for row in _TABLE.strip().splitlines():
        language = _language(row)
        columns = [*row.split("|"), "", ""]
        for table, column in ((suffixes, 4), (names, 5), (interpreters, 6)):
            for word in columns[column].split():
                table[word] = language
    modes = {**suffixes, **_by_name(), "shell-script": _by_name()["shell"], "cperl": _by_name()["perl"]}
    return names, suffixes, interpreters, modes


def _language(row: str) -> Language:
    name, tag, kind, comments = row.split("|")[:4]
    return Language(name, tag, kind, comments)  # type: ignore[arg-type]  # the table's words are those of the types
