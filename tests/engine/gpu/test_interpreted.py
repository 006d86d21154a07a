"""Runs this folder's tests by Triton's interpreter, which is chosen before Triton is imported."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from puyulm.engine.gpu.available import interpreted


@pytest.mark.skipif(interpreted(), reason="this is the process that is started")
def test_kernels_in_the_interpreter() -> None:
    pytest.importorskip("triton")
    folder = Path(__file__).parent
    files = [str(folder / name) for name in ("test_kernels.py", "test_graphs.py", "test_pack.py")]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "--no-header", "-p", "no:cacheprovider", *files],
        env={**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True, text=True, check=False, cwd=folder.parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "[100%]" in done.stdout
