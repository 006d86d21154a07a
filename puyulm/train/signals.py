"""Signals that ask a run to stop: the step is finished and a checkpoint written first."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import NoReturn, Self

from puyulm.errors import Preempted

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class StopSignals:
    """A context manager in which the first Ctrl-C, SIGTERM or SIGUSR1 is noted; a second Ctrl-C interrupts at once.

    Attributes:
        asked: Whether a signal has come.
    """

    def __init__(self) -> None:
        self.asked = False
        self._number = signal.SIGINT

    def end(self) -> NoReturn:
        """Raises what the signal means: KeyboardInterrupt for Ctrl-C, else Preempted, for which the command's exit
        status tells a scheduler to start the run again."""
        if self.asked and self._number != signal.SIGINT:
            raise Preempted
        raise KeyboardInterrupt

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not self.asked:
            self.asked, self._number = True, signal.Signals(number)
            # Not print: the signal may arrive in the middle of one.
            os.write(2, b"\nstopping after this step, with a checkpoint (Ctrl-C again to stop at once)\n")

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
