"""What workers have done inside their unfinished tasks, so that progress moves before the first task ends."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from puyulm.data.pipeline.counts import Dropped, Outcome

EVERY = 32  # outcomes between two reports

_listener: Callable[[int, int], None] | None = None


def listen(listener: Callable[[int, int], None] | None) -> None:
    """Sets what hears of (kept, dropped) documents in this process, a few dozen at a time; None: nobody."""
    global _listener
    _listener = listener


def heard(outcomes: Iterable[Outcome]) -> Iterator[Outcome]:
    """The same outcomes, reported as they pass."""
    kept = dropped = 0
    for outcome in outcomes:
        yield outcome
        if isinstance(outcome, Dropped):
            dropped += 1
        else:
            kept += 1
        if kept + dropped >= EVERY and _listener is not None:
            _listener(kept, dropped)
            kept = dropped = 0
    if _listener is not None:
        _listener(kept, dropped)
