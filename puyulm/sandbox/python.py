"""Which Python runs in the sandbox, and what of the disk it needs to see."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from puyulm.errors import SandboxError

_ASK = """
import json, os, site, sys
base = getattr(sys, "_base_executable", None) or sys.executable
print(json.dumps([os.path.realpath(base), [sys.base_prefix, sys.base_exec_prefix], site.getsitepackages()]))
"""


@dataclass(frozen=True)
class Python:
    """Attributes:
    executable: The base interpreter's own file, never a virtual environment's link.
    folders: Pairs of a folder and where the sandbox sees it, read-only, besides the system's /usr.
    site: Folders to import packages from.
    """

    executable: str
    folders: tuple[tuple[str, str], ...]
    site: tuple[str, ...]


@functools.cache
def find_python(python: str | None, packages: bool) -> Python:
    """The interpreter behind a command or a virtual environment.

    Args:
        python: Path of an interpreter; None: the one that runs this.
        packages: Show its installed packages too.

    Raises:
        SandboxError: It does not run, or it is installed where showing it would show everything.
    """
    asked = sys.executable if python is None else python
    try:
        done = subprocess.run([asked, "-I", "-c", _ASK], capture_output=True, text=True, timeout=60, check=True)
        executable, prefixes, found = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise SandboxError(f"sandbox: {asked!r} does not run as a Python interpreter ({error}); name another") from None
    prefixes = [os.path.realpath(prefix) for prefix in prefixes]
    if not any(_within(executable, prefix) for prefix in prefixes):
        prefixes.append(os.path.dirname(executable))
    site = [folder for folder in found if packages and os.path.isdir(folder)]
    folders: list[tuple[str, str]] = []
    for folder in (*prefixes, *site):
        if any(_within(folder, known) for known in ("/usr", *(shown for _, shown in folders))):
            continue
        _refuse_everything(folder, asked)
        folders.append((os.path.realpath(folder), folder))
    return Python(executable, tuple(folders), tuple(site))


def _within(path: str, folder: str) -> bool:
    return Path(path).is_relative_to(folder)


def _refuse_everything(folder: str, python: str) -> None:
    """Of a Python that is installed over a home folder, the sandbox would show the home."""
    for private in (Path.home(), Path("/root"), Path("/home"), Path("/etc")):
        if private.is_relative_to(folder):
            raise SandboxError(
                f"sandbox: {python} is installed in {folder}, and to show that would show {private}; "
                "name another interpreter (python='/usr/bin/python3')"
            )
