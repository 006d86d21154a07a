"""The processes of one sandbox, seen from outside, through /proc."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path

PAGE = os.sysconf("SC_PAGE_SIZE")


def children(pid: int) -> list[int]:
    """Of all threads of a process; none where it is gone."""
    found: list[int] = []
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            found += map(int, Path(f"/proc/{pid}/task/{task}/children").read_bytes().split())
    except OSError:
        pass
    return found


def descendants(pid: int) -> list[int]:
    """Daemons too: within a process namespace they become children of its first process."""
    found = children(pid)
    for one in found:  # it grows while we go through it
        found += children(one)
    return found


def outer_pid(ancestor: int, inner_pid: int) -> int | None:
    """The process that calls itself `inner_pid` in the innermost namespace."""
    for pid in descendants(ancestor):
        for line in _read(f"/proc/{pid}/status").splitlines():
            if line.startswith(b"NSpid:") and len(ids := line.split()[1:]) > 1 and int(ids[-1]) == inner_pid:
                return pid
    return None


def memory_above(pid: int, limit: int) -> bool:
    """Whether the resident memory of all descendants is above `limit` bytes; what they share counts once."""
    pids = descendants(pid)
    pages = [int(fields[1]) for one in pids if len(fields := _read(f"/proc/{one}/statm").split()) > 1]
    if sum(pages) * PAGE <= limit:
        return False
    kibibytes = 0
    for one in pids:  # proportional shares: exact, but too slow to be asked for every time
        for line in _read(f"/proc/{one}/smaps_rollup").splitlines():
            if line.startswith(b"Pss:"):
                kibibytes += int(line.split()[1])
    return kibibytes * 1024 > limit


def send(pid: int, number: signal.Signals) -> None:
    """A signal; nothing where the process is gone."""
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:  # it has just ended
        return b""
