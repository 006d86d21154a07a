"""Progress for long work: a bar with rate and ETA on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any, Self

from tqdm import tqdm

PLAIN_INTERVAL_SECONDS = 10.0


class Progress:
    """Counts units of work and shows how far it is.

    Args:
        label: What is being done ("loading weights").
        total: Units in all, or None when unknown.
        unit: Name of the unit; "B" is scaled to KB, MB, GB.
        initial: Units already done before this run (after a resume).

    Example:
        >>> with Progress("reading", total=2, unit="file") as progress:
        ...     progress.advance()
    """

    def __init__(self, label: str, total: int | None = None, unit: str = "it", initial: int = 0) -> None:
        self._label, self._total, self._unit, self._count = label, total, unit, initial
        self._bar: tqdm[Any] | None = None
        if sys.stderr.isatty():
            self._bar = tqdm(total=total, desc=label, unit=unit, unit_scale=True, initial=initial, leave=False,
                             dynamic_ncols=True, smoothing=0.1)  # fmt: skip
        self._started = self._last_line = time.monotonic()
        self._initial = initial

    def advance(self, units: int = 1, note: str = "") -> None:
        """Adds `units` of finished work; `note` is shown behind the count (a loss, a file name)."""
        self._count += units
        if self._bar is not None:
            if note:
                self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(units)
        elif time.monotonic() - self._last_line >= PLAIN_INTERVAL_SECONDS:
            self._last_line = time.monotonic()
            print(self._plain(note), file=sys.stderr, flush=True)

    def write(self, line: str) -> None:
        """Prints a line above the bar."""
        if self._bar is not None:
            self._bar.write(line, file=sys.stderr)
        else:
            print(line, file=sys.stderr, flush=True)

    def _plain(self, note: str) -> str:
        elapsed = max(time.monotonic() - self._started, 1e-9)
        rate = (self._count - self._initial) / elapsed
        done = _scaled(self._count, self._unit)
        if self._total:
            if self._unit != "B":
                done = done.split()[0]
            done += f" of {_scaled(self._total, self._unit)} ({100 * self._count / self._total:.0f} %)"
        parts = [f"{self._label}: {done}", f"{_scaled(rate, self._unit)}/s"]
        if self._total and rate > 0:
            parts.append(f"{max(self._total - self._count, 0) / rate:.0f} s left")
        return ", ".join(parts) + (f", {note}" if note else "")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()


def _scaled(count: float, unit: str) -> str:
    if unit != "B":
        return f"{count:,.0f} {unit}" if count >= 10 or count == int(count) else f"{count:.2f} {unit}"
    for suffix in ("B", "KB", "MB"):
        if count < 1000:
            return f"{count:.0f} {suffix}"
        count /= 1000
    return f"{count:.2f} GB"
