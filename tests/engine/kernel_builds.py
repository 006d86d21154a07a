"""The C kernels as other processors would compile them."""

from __future__ import annotations

import ctypes
import platform
from pathlib import Path

import pytest

from puyulm.engine.cpu import native

FLAGS = {"this processor": (), "AVX2": ("-mno-avx512f",), "plain C": ("-mno-avx2",)}
BUILDS = ["this processor", "AVX2", "plain C"]

needs_compiler = pytest.mark.skipif(native.find_compiler() is None, reason="no C compiler")


def use_build(monkeypatch: pytest.MonkeyPatch, build: str) -> None:
    """Has modules that are made from here on take their kernels from this build."""
    compiler = native.find_compiler()
    assert compiler is not None
    if build != "this processor" and platform.machine() != "x86_64":
        pytest.skip("only x86 processors have these instructions to leave out")
    folder = Path(native.__file__).parent

    def load(name: str) -> ctypes.CDLL:
        return native.build(folder / f"{name}.c", compiler, (*native.FLAGS, *FLAGS[build]))

    monkeypatch.setattr(native, "load", load)
