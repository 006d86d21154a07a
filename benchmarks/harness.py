"""Paired measurements: contenders take turns in one run, so that a busy machine slows both alike.

A row's ratio is the median of the ratios of the pairs, above 1 where ours is better.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

WARM_UPS = 1
PAIRS = 5

# For code of `in_child`: the high-water mark of this program alone; `ru_maxrss` would begin with that of the process it
# was started from.
PEAK_MEMORY = """
def status(field):
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(field + ":"))
"""

Name = TypeVar("Name", bound=Hashable)


@dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
        ours, peer: Medians in `unit`; None where the contender did not run.
        peer_name: Of the peer, or the command that installs it.
        ratio: Above 1 where ours is better.
        target: What we mean to reach, or None.
    """

    name: str
    unit: str
    ours: float | None
    peer: float | None
    peer_name: str
    ratio: float | None
    target: float | None


def missing(name: str, unit: str, package: str, target: float | None) -> Row:
    """The row of a peer that is not installed."""
    return Row(name, unit, None, None, f"pip install '{package}'", None, target)


def installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def paired_seconds(
    ours: Callable[[], object], peer: Callable[[], object], pairs: int = PAIRS
) -> list[tuple[float, float]]:
    """Seconds of (ours, peer), pair by pair, after a warm-up of each; the order alternates."""
    for _ in range(WARM_UPS):
        ours(), peer()
    times = []
    for number in range(pairs):
        if number % 2 == 0:
            mine, theirs = _seconds(ours), _seconds(peer)
        else:
            theirs, mine = _seconds(peer), _seconds(ours)
        times.append((mine, theirs))
    return times


def interleaved(actions: Mapping[Name, Callable[[], object]], rounds: int = PAIRS) -> dict[Name, list[float]]:
    """Seconds of each of several actions, round by round, after a warm-up of each; every round begins with another."""
    for _ in range(WARM_UPS):
        for action in actions.values():
            action()
    times: dict[Name, list[float]] = {name: [] for name in actions}
    order = list(actions)
    for _ in range(rounds):
        for name in order:
            times[name].append(_seconds(actions[name]))
        order = [*order[1:], order[0]]
    return times


def throughput(
    name: str,
    unit: str,
    amount: float,
    ours: Callable[[], object],
    peer: Callable[[], object],
    peer_name: str,
    target: float | None,
    pairs: int = PAIRS,
) -> Row:
    """A row of `amount` units a run, per second."""
    times = paired_seconds(ours, peer, pairs)
    return Row(
        name,
        unit,
        amount / statistics.median(mine for mine, _ in times),
        amount / statistics.median(theirs for _, theirs in times),
        peer_name,
        statistics.median(theirs / mine for mine, theirs in times),
        target,
    )


def in_child(code: str, *arguments: str) -> dict[str, float]:
    """Runs Python code in a fresh process; it prints one JSON object as its last line."""
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"a benchmark's child process failed:\n{done.stderr.strip()}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def smaller_is_better(
    name: str, unit: str, pairs: Sequence[tuple[float, float]], peer_name: str, target: float | None
) -> Row:
    """A row of seconds or bytes."""
    ratio = statistics.median(theirs / mine for mine, theirs in pairs)
    mine, theirs = (statistics.median(values) for values in zip(*pairs, strict=True))
    return Row(name, unit, mine, theirs, peer_name, ratio, target)


def print_table(rows: Sequence[Row]) -> None:
    print(f"{'':58} {'ours':>10} {'peer':>10}  {'unit':8} {'ratio':>6} {'target':>6}  peer")
    for row in rows:
        ours, peer, ratio, target = (_number(value) for value in (row.ours, row.peer, row.ratio, row.target))
        mark = "" if row.target is None or row.ratio is None else " ok" if row.ratio >= row.target else " MISSED"
        print(f"{row.name:58} {ours:>10} {peer:>10}  {row.unit:8} {ratio:>6} {target:>6}  {row.peer_name}{mark}")


def write_json(file: Path, rows: Sequence[Row]) -> None:
    content = {"machine": machine(), "rows": [asdict(row) for row in rows]}
    partial = file.with_name(file.name + ".partial")
    partial.write_text(json.dumps(content, indent=2) + "\n", "utf-8")
    os.replace(partial, file)


def machine() -> dict[str, object]:
    """What the figures were measured on."""
    import torch

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else _processor()
    return {
        "device": device,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": platform.platform(),
    }


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _seconds(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
