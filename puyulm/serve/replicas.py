"""Several servers of one model on this machine: starts them, and again those that end or stall."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import httpx

START_SECONDS = 600.0  # that a replica may take to load its model
CHECK_SECONDS = 1.0  # between two looks at a replica
STALLED_CHECKS = 3  # unanswered ones after which a replica is started again
LONGEST_PAUSE = 30.0  # seconds between attempts to start a replica that ends at once


class Replica:
    """One server process, reached through a socket in a private folder.

    Attributes:
        ready: It has said that it is healthy.
        starts: How often it was started.
    """

    def __init__(self, number: int, command: Sequence[str], folder: Path, threads: int) -> None:
        self.number = number
        self.socket = folder / f"replica-{number}.sock"
        self.ready = False
        self.starts = 0
        self._command = [*command, "--uds", str(self.socket)]
        self._threads = threads
        self._process: subprocess.Popen[bytes] | None = None
        self._started = 0.0
        self._unanswered = 0
        self.client = httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(uds=str(self.socket), limits=httpx.Limits(max_connections=None)),
            base_url="http://replica", timeout=httpx.Timeout(None, connect=5.0),
        )  # fmt: skip

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        self.socket.unlink(missing_ok=True)
        environment = os.environ | {"OMP_NUM_THREADS": str(self._threads)}
        # In a group of its own: Ctrl-C is for the router, which lets replicas finish.
        self._process = subprocess.Popen(
            self._command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True
        )
        self.starts += 1
        self._started, self._unanswered, self.ready = time.monotonic(), 0, False

    async def check(self) -> bool:
        """Looks after it once. False: it must be started again."""
        if not self.running:
            self.ready = False
            return False
        try:
            healthy = (await self.client.get("/health", timeout=CHECK_SECONDS)).status_code == 200
        except httpx.HTTPError:
            healthy = False
        if healthy:
            self.ready, self._unanswered = True, 0
        elif self.ready:
            self._unanswered += 1
        gone = self._unanswered >= STALLED_CHECKS
        late = not self.ready and time.monotonic() - self._started > START_SECONDS
        return not (gone or late)

    def end(self, hard: bool = False) -> None:
        """Lets it finish what it has, or not."""
        self.ready = False
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGKILL if hard else signal.SIGTERM)

    def wait(self, seconds: float) -> int | None:
        """Its exit status; it is killed after so many seconds."""
        if self._process is None:
            return None
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.end(hard=True)
            return self._process.wait()


class Replicas:
    """All of them, and the task that looks after them.

    Args:
        command: That starts a server; where it listens is added.
        count: How many.
        threads: Of each.
    """

    def __init__(self, command: Sequence[str], count: int, threads: int) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="puyulm-")
        self.all = [Replica(number, command, Path(self._folder.name), threads) for number in range(count)]
        self.on_restart: list[int] = []  # replicas whose caches are gone, for the router to forget
        self._ending = False

    @property
    def ready(self) -> list[int]:
        return [replica.number for replica in self.all if replica.ready]

    async def watch(self) -> None:
        """Keeps them running until `end`."""
        await asyncio.gather(*(self._watch(replica) for replica in self.all))

    async def _watch(self, replica: Replica) -> None:
        replica.start()
        pause = CHECK_SECONDS
        while not self._ending:
            if await replica.check():
                pause = CHECK_SECONDS if replica.ready else pause
                await asyncio.sleep(CHECK_SECONDS if replica.ready else 0.1)
                continue
            if self._ending:
                return
            replica.end(hard=True)
            status = replica.wait(5)
            self.on_restart.append(replica.number)
            print(f"replica {replica.number} ended (status {status}): it is started again", file=sys.stderr)
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)
            replica.start()

    async def end(self, seconds: float) -> None:
        """Ends all of them, those that are still busy after so many seconds by force."""
        self._ending = True
        for replica in self.all:
            replica.end()
        deadline = time.monotonic() + seconds
        for replica in self.all:
            await asyncio.to_thread(replica.wait, max(deadline - time.monotonic(), 0.1))
            await replica.client.aclose()
        with contextlib.suppress(OSError):
            self._folder.cleanup()
