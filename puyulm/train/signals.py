"""Signals that ask a run to stop: the step is finished and a checkpoint written first, on all ranks."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import NoReturn, Self

from puyulm.errors import Preempted

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
INTERRUPT, PREEMPT = 1.0, 2.0**20
"""What a rank adds to the sum over ranks by which all of them learn of a signal that some have got."""


class StopSignals:
    """A context manager in which the first Ctrl-C, SIGTERM or SIGUSR1 is noted; a second Ctrl-C interrupts at once.

    Args:
        quiet: Say nothing: another process does.

    Attributes:
        flag: 0, or after a signal what is to be summed over the ranks; see `stop`.
    """

    def __init__(self, quiet: bool = False) -> None:
        self.flag = 0.0
        self._quiet = quiet

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.flag and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not self.flag:
            self.flag = INTERRUPT if number == signal.SIGINT else PREEMPT
            if not self._quiet:  # not print: the signal may arrive in the middle of one
                again = b" (again to stop at once)" if number == signal.SIGINT else b""
                os.write(2, b"\nstopping after this step, with a checkpoint" + again + b"\n")

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # only there may handlers be set
            self._before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        else:
            self._before = {}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


def stop(flags: float) -> NoReturn:
    """Raises on every rank what the signals mean.

    Args:
        flags: Summed over all ranks; above 0.

    Raises:
        KeyboardInterrupt: Ctrl-C.
        Preempted: Another signal, on any rank: the command's exit status tells a scheduler to start the run again.
    """
    raise Preempted if flags >= PREEMPT else KeyboardInterrupt
