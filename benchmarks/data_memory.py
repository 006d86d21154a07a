"""Runs a command and watches the memory of all its processes together."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

INTERVAL_SECONDS = 0.2
ROOT = Path(__file__).parents[1]


def watched(module: str, arguments: Sequence[str]) -> tuple[dict[str, Any], float]:
    """Runs `python -m MODULE ARGUMENTS`, which prints one JSON object as its last line.

    Returns:
        That object, and the peak of the memory of all processes of the command together in MB: pages that processes
        share are divided among them (proportional set size), so that none counts twice.

    Raises:
        RuntimeError: It failed; the message holds what it said.
    """
    command = [sys.executable, "-m", module, *arguments]
    child = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    peak = 0.0
    ended = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not ended.wait(INTERVAL_SECONDS):
            peak = max(peak, sum(_megabytes(process) for process in _session(child.pid)))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    out, errors = child.communicate()
    ended.set()
    watcher.join()
    if child.returncode:
        raise RuntimeError(f"{module} failed:\n{errors.strip()[-4000:]}")
    return json.loads(out.strip().splitlines()[-1]), peak


def _session(leader: int) -> Iterator[Path]:
    """The processes of a session."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            fields = (process / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it has ended
        if int(fields[3]) == leader:
            yield process


def _megabytes(process: Path) -> float:
    try:
        lines = (process / "smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("Pss:")), 0.0)
