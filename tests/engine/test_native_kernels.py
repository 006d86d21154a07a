"""Compiling at first use: what happens without a compiler, when it fails, and when two do it at once."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from puyulm.engine.cpu import native
from tests.engine.kernel_builds import needs_compiler

SOURCE = '#include "answer.h"\nint answer(void) { return ANSWER; }\n'


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of sources, with a cache of its own."""
    (tmp_path / "tiny.c").write_text(SOURCE)
    (tmp_path / "answer.h").write_text("#define ANSWER 42\n")
    monkeypatch.setattr(native, "_FOLDER", tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(native, "load", native.load.__wrapped__)
    return tmp_path


def kept(folder: Path) -> list[Path]:
    return sorted((folder / "cache/puyulm/kernels").iterdir())


@needs_compiler
def test_a_library_is_made_once_and_anew_for_new_sources(folder: Path) -> None:
    assert native.load("tiny").answer() == 42
    (first,) = kept(folder)
    before = first.stat().st_mtime_ns
    assert native.load("tiny").answer() == 42
    assert [file.stat().st_mtime_ns for file in kept(folder)] == [before]
    (folder / "answer.h").write_text("#define ANSWER 43\n")
    assert native.load("tiny").answer() == 43
    assert len(kept(folder)) == 2


@needs_compiler
def test_sources_that_do_not_compile_are_told_and_done_without(folder: Path) -> None:
    (folder / "tiny.c").write_text("int answer(void) { return nothing; }\n")
    with pytest.warns(UserWarning, match=r"did not make tiny\.c, so a slower way is taken: .*nothing"):
        assert native.load("tiny") is None
    assert kept(folder) == []


def test_no_compiler_is_no_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PUYULM_NATIVE", "0")
    assert native.load("tiny") is None
    monkeypatch.delenv("PUYULM_NATIVE")
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("CC", "no-such-compiler")
    assert native.load("tiny") is None


@needs_compiler
def test_without_a_cache_folder_it_is_made_each_time(folder: Path) -> None:
    (folder / "cache").write_text("a file")
    assert native.load("tiny").answer() == 42


@needs_compiler
def test_a_damaged_library_is_made_anew(folder: Path) -> None:
    native.build(folder / "tiny.c", native.find_compiler())
    (library,) = kept(folder)
    library.unlink()  # not overwritten: the process has it mapped
    library.write_bytes(b"not a library")
    assert native.load("tiny").answer() == 42


@needs_compiler
def test_two_processes_compile_at_once(folder: Path) -> None:
    """The compiler waits until both have begun, so that they are at it together."""
    compiler = folder / "slow-cc"
    gate = folder / "begun"
    gate.mkdir()
    real = shutil.which("cc") or native.find_compiler()
    compiler.write_text(
        f'#!/bin/sh\ncase "$1" in --version) exec {real} --version;; esac\nmkdir {gate}/$$\n'
        f"tries=0\nwhile [ $(ls {gate} | wc -l) -lt 2 ] && [ $tries -lt 600 ]; do\n"
        "sleep 0.05; tries=$((tries + 1)); done\n"
        f'exec {real} "$@"\n'
    )
    compiler.chmod(0o755)
    program = (  # this one file, without PyTorch
        f"import pathlib, runpy; build = runpy.run_path({native.__file__!r})['build']\n"
        f"print(build(pathlib.Path({str(folder / 'tiny.c')!r}), {str(compiler)!r}).answer())"
    )
    running = [subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate(timeout=60)[0].strip() for process in running] == ["42", "42"]
    assert len(list(gate.iterdir())) == 2 and len(kept(folder)) == 1
