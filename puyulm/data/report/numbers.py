"""Figures as people say them: 1.2 M documents, 3.4 GB, 4 min 12 s."""

from __future__ import annotations

import math
from collections.abc import Sequence

_COUNTS = ("", " k", " M", " B", " T")
_BYTES = (" B", " kB", " MB", " GB", " TB", " PB", " EB")


def count(amount: float) -> str:
    """A number of things: in full below 10,000, and then with k, M, B (10^9) or T (10^12)."""
    if abs(amount) < 10_000:
        return f"{amount:,.0f}" if float(amount).is_integer() or abs(amount) >= 100 else f"{amount:,.1f}"
    return _scaled(amount, _COUNTS)


def size(num_bytes: float) -> str:
    """Bytes, in powers of 1000."""
    return f"{num_bytes:,.0f} B" if abs(num_bytes) < 1000 else _scaled(num_bytes, _BYTES)


def share(part: float, whole: float) -> str:
    """A part of a whole in percent; "-" of nothing. Only nothing is 0 % and only everything is 100 %."""
    if not whole:
        return "-"
    percent = 100 * part / whole
    if 0 < percent < 0.1:
        return "<0.1 %"
    if 99.9 < percent < 100:
        return ">99.9 %"
    return f"{percent:.0f} %" if percent in (0, 100) else f"{percent:.1f} %"


def duration(seconds: float) -> str:
    """A time span in the largest units that matter."""
    if seconds < 59.95:
        return f"{seconds:.1f} s" if seconds >= 0.095 else f"{seconds * 1000:.0f} ms"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60:,} h {minutes % 60:02d} min"


def common_unit(amounts: Sequence[float], bytes_: bool) -> tuple[float, str]:
    """A unit for a column of numbers, chosen by the largest: its divisor and its name ("M", "GB").

    Args:
        amounts: The column.
        bytes_: They are bytes; else counts.
    """
    names = _BYTES if bytes_ else _COUNTS
    largest = max((abs(amount) for amount in amounts), default=0)
    power = min(max(int(math.log10(largest)) // 3 if largest >= 1 else 0, 0), len(names) - 1)
    return 1000.0**power, names[power].strip()


def in_unit(amount: float, divisor: float) -> str:
    """A number of a column in that column's unit; two decimals, as in the tables of papers."""
    return f"{amount:,.0f}" if divisor == 1 else f"{amount / divisor:,.2f}"


def _scaled(amount: float, units: Sequence[str]) -> str:
    power = 0
    while power < len(units) - 1 and abs(amount) >= 999.5:
        amount /= 1000
        power += 1
    return f"{amount:,.0f}{units[power]}" if abs(amount) >= 99.95 else f"{amount:.1f}{units[power]}"
