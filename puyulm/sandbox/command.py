"""The command line of a sandbox: setpriv, prlimit, bwrap, Python, in this order."""

from __future__ import annotations

import math
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from puyulm.errors import SandboxError
from puyulm.sandbox.limits import Limits
from puyulm.sandbox.python import Python

HOME = "/home/user"
NOBODY = 65534  # whom root becomes
INNER_ID = 1000  # what the program is told it is
INSTALL = "apt-get install bubblewrap util-linux (or: dnf install bubblewrap util-linux)"

# Root's own folders (say, a Python under /root) cannot be reached by whom root becomes. So they are bound, in a mount
# namespace of this one command, to a place that can be: below /sys, which nothing in the command needs.
_STAGE = "/sys"
_BIND = f"""
mount -t tmpfs -o mode=755,size=64k none {_STAGE} || exit 1
i=0
while [ "$1" != -- ]; do mkdir {_STAGE}/$i && mount --bind "$1" {_STAGE}/$i || exit 1; i=$((i+1)); shift; done
shift
exec "$@"
"""


def command(python: Python, limits: Limits, cpu_seconds: float | None, *, root: bool | None = None) -> list[str]:
    """Everything before the arguments of Python.

    Root's rights are dropped first: the kernel does not count processes of user 0. The number of processes is not set
    here but inside (`inside_program.py`): outside the sandbox's user namespace it would count what the same user runs
    elsewhere, other sandboxes for one.

    Args:
        root: Whether root runs it; None: whoever runs this.

    Raises:
        SandboxError: A tool is not installed, or Python's folders cannot be read.
    """
    root = os.geteuid() == 0 if root is None else root
    words: list[str] = []
    folders = list(python.folders)
    if root:
        staged = [source for source, _ in folders if not reachable(source)]
        if staged:
            words += [_tool("unshare"), "--mount", "--propagation", "private", "sh", "-c", _BIND, "sh", *staged, "--"]
            places = {source: f"{_STAGE}/{i}" for i, source in enumerate(staged)}
            folders = [(places.get(source, source), shown) for source, shown in folders]
        words += [_tool("setpriv"), f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--no-new-privs"]
    words += [_tool("prlimit"), *_limits(limits, cpu_seconds)]
    words += [_tool("bwrap"), *_namespaces(), *_folders(folders, limits.disk), *_environment(python)]
    return [*words, "--", python.executable, "-s", "-S", "-B", "-X", "utf8"]


def reachable(folder: str) -> bool:
    """Whether any user can get there and list it."""
    path = Path(folder)
    return all(one.stat().st_mode & 0o001 for one in (path, *path.parents)) and bool(path.stat().st_mode & 0o004)


def _tool(name: str) -> str:
    if sys.platform != "linux":
        raise SandboxError(f"running a model's code needs Linux and bubblewrap; this is {sys.platform}")
    if (path := shutil.which(name)) is None:
        raise SandboxError(f"running a model's code needs '{name}', which is not installed: {INSTALL}")
    return path


def _limits(limits: Limits, cpu_seconds: float | None) -> list[str]:
    words = ["--core=0", f"--as={limits.memory}", f"--fsize={limits.disk}", f"--nofile={limits.open_files}"]
    if cpu_seconds is not None:
        soft = math.ceil(cpu_seconds)
        words.append(f"--cpu={soft}:{soft + 1}")  # the second limit kills what ignores the first one's signal
    return words


def _namespaces() -> list[str]:
    return [
        "--unshare-user", "--unshare-all", "--disable-userns", "--die-with-parent", "--new-session",
        "--uid", str(INNER_ID), "--gid", str(INNER_ID), "--hostname", "sandbox",
    ]  # fmt: skip


def _folders(folders: Sequence[tuple[str, str]], disk: int) -> list[str]:
    words = ["--ro-bind", "/usr", "/usr"]
    for name in ("bin", "sbin", "lib", "lib32", "lib64"):
        path = Path("/", name)
        if path.is_symlink():
            words += ["--symlink", os.readlink(path), str(path)]
        elif path.is_dir():
            words += ["--ro-bind", str(path), str(path)]
    for name in ("ld.so.cache", "alternatives", "localtime", "fonts"):
        words += ["--ro-bind-try", f"/etc/{name}", f"/etc/{name}"]
    words += ["--proc", "/proc", "--dev", "/dev", "--remount-ro", "/dev"]
    for place in ("/dev/shm", "/tmp", HOME):
        words += ["--size", str(disk), "--tmpfs", place]
    for source, shown in folders:
        words += ["--ro-bind", source, shown]
    return [*words, "--remount-ro", "/", "--chdir", HOME]


def _environment(python: Python) -> list[str]:
    path = [os.path.dirname(python.executable), "/usr/local/bin", "/usr/bin", "/bin"]
    words = ["--clearenv"]
    for name, value in {
        "PATH": ":".join(dict.fromkeys(path)), "HOME": HOME, "USER": "user", "TMPDIR": "/tmp", "LANG": "C.UTF-8",
        "PYTHONHASHSEED": "0",  # the same program, the same verdict
        "PYTHONDONTWRITEBYTECODE": "1",
        # A pool of threads for every core would not fit the limits on memory and on processes.
        "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2",
        "MPLBACKEND": "Agg", "MPLCONFIGDIR": "/tmp",
    }.items():  # fmt: skip
        words += ["--setenv", name, value]
    return words
