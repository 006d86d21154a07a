"""Waiting for what another thread or process does."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable


def wait_until(happened: Callable[[], bool], seconds: float = 30.0) -> None:
    """Polls; fails after so many seconds."""
    deadline, pause = time.monotonic() + seconds, threading.Event()
    while not happened():
        assert time.monotonic() < deadline, "it did not happen in time"
        pause.wait(0.005)
