"""C kernels: compiled at first use by the machine's own compiler, kept for the next time, called through ctypes.

Everything works without a compiler too, on slower paths (see `puyulm.engine.cpu`). `PUYULM_NATIVE=0` takes these.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

FLAGS = ("-O3", "-march=native", "-ffp-contract=off", "-fno-math-errno", "-fopenmp", "-shared", "-fPIC", "-std=gnu11")
"""`-ffp-contract=off`: where a product and a sum are fused is written in the source, never the compiler's choice."""

_FOLDER = Path(__file__).parent


@functools.cache
def load(name: str) -> ctypes.CDLL | None:
    """The library made of `name.c` beside this file, or None where there is no compiler.

    Warns, and gives None, where there is a compiler and it fails.
    """
    compiler = find_compiler()
    if compiler is None:
        return None
    try:
        return build(_FOLDER / f"{name}.c", compiler)
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", None) or str(error)
        reason = next((line for line in said.splitlines() if "error" in line.lower()), said.strip())
        warnings.warn(f"{compiler} did not make {name}.c, so a slower way is taken: {reason}", stacklevel=2)
        return None


def build(source: Path, compiler: str, flags: Sequence[str] = FLAGS) -> ctypes.CDLL:
    """Compiles a source, unless that was done before, and loads it.

    The library lies in the user's cache folder under a hash of its sources, the compiler's version and the processor,
    so that a new source or another machine never meets an old library. Where nothing can be kept in that folder it is
    made anew by every process.

    Raises:
        OSError, subprocess.CalledProcessError: The compiler or the loader fails.
    """
    sources = [source, *sorted(source.parent.glob("*.h"))]
    digest = hashlib.sha256(b"\0".join(path.read_bytes() for path in sources))
    digest.update("\0".join((*flags, compiler, _version(compiler), _processor())).encode())
    name = f"{source.stem}-{digest.hexdigest()[:24]}.so"
    try:
        kept = _cache_folder() / name
        if not kept.exists():
            kept.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=kept.parent) as folder:
                # Renamed when it is whole: several processes may compile at once.
                os.replace(_compile(source, compiler, flags, Path(folder) / name), kept)
        return ctypes.CDLL(str(kept))
    except (OSError, RuntimeError):  # no home, no room, no right to write or to execute there
        with tempfile.TemporaryDirectory() as folder:
            return ctypes.CDLL(str(_compile(source, compiler, flags, Path(folder) / name)))


def find_compiler() -> str | None:
    """`$CC` or the first usual compiler that is installed; None with `PUYULM_NATIVE=0`."""
    if os.environ.get("PUYULM_NATIVE") == "0" or os.name != "posix":
        return None
    wanted = (os.environ.get("CC"), "cc", "gcc", "clang")
    return next((found for name in wanted if name and (found := shutil.which(name))), None)


def _compile(source: Path, compiler: str, flags: Sequence[str], library: Path) -> Path:
    command = [compiler, *flags, str(source), "-o", str(library), "-lm"]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return library


@functools.cache
def _version(compiler: str) -> str:
    done = subprocess.run([compiler, "--version"], capture_output=True, text=True)
    return done.stdout.partition("\n")[0]


def _processor() -> str:
    """What `-march=native` depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "puyulm" / "kernels"
