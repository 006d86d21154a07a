"""A limit on the processor time of a call."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


class TimeUpError(BaseException):
    """The time is up. No `Exception`, so that libraries that catch all of these do not swallow it."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Ends a block after `seconds` of this process's processor time with TimeUpError; 0 sets no limit.

    Processor time, so that a busy machine does not change what comes out. The block ends when Python code runs next,
    not in the middle of a library's C code. Without effect on systems without such a timer and outside the main thread.
    """
    possible = hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread()
    if seconds <= 0 or not possible:
        yield
        return
    active = True

    def time_is_up(*_: object) -> None:
        if active:
            raise TimeUpError

    before = signal.signal(signal.SIGVTALRM, time_is_up)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds, 1.0)  # again each second, if the first one was lost in a callback
    try:
        yield
    finally:
        active = False
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
