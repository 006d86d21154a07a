"""Several servers of one model on this machine: starts them, and again those that end or hang."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from puyulm.errors import PuyuError
from puyulm.serve.upstream import UpstreamLost, ask

LOOK_SECONDS = 0.1  # between two looks whether a replica runs
CHECK_SECONDS = 1.0  # between two questions whether it is well
MUTE_SECONDS = 60.0  # without an answer to them, after which a replica is started again
START_SECONDS = 1800.0  # that a replica may take to load its model once more
LONGEST_PAUSE = 30.0  # seconds between attempts to start a replica that ends at once


class ReplicaFailed(PuyuError):
    """A replica ended before it was ready for the first time; it has said why itself.

    Attributes:
        number: Which replica.
        status: Its exit status; negative: the signal that ended it.
    """

    def __init__(self, number: int, status: int) -> None:
        super().__init__(f"replica {number} ended before it was ready ({_ending(status)})")
        self.number, self.status = number, status


@dataclass(frozen=True)
class Report:
    """What a replica says when it is ready, as one line of JSON on its standard output.

    Attributes:
        name: What the model is called.
        facts: Its sizes, for people.
        memory: Bytes of its key/value cache.
    """

    name: str
    facts: str
    memory: int

    def line(self) -> str:
        return json.dumps(vars(self))


class Replica:
    """One server process, reached through a socket in a private folder.

    Attributes:
        ready: It takes requests.
        starts: How often it was started.
    """

    def __init__(self, number: int, command: Sequence[str], folder: Path, threads: int) -> None:
        self.number = number
        self.socket = folder / f"{number}.sock"
        self.starts = 0
        self._command = [*command, "--uds", str(self.socket)]
        # How many threads each shall have may be the user's own decision.
        self._environment = {"OMP_NUM_THREADS": str(threads)} | os.environ
        self._process: subprocess.Popen[bytes] | None = None
        self._ready = False
        self._started = self._heard = self._asked = 0.0  # when it was started, last answered, and was last asked

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    @property
    def age(self) -> float:
        """Seconds since it was started."""
        return time.monotonic() - self._started

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def ready(self) -> bool:
        return self._ready and self.running

    def start(self, *more: str) -> None:
        """Starts the process.

        Args:
            more: Arguments.
        """
        self.socket.unlink(missing_ok=True)
        # Its standard input is a rope: when it breaks, this process has died, and the replica ends itself. A session of
        # its own, for Ctrl-C is the router's, which lets replicas finish.
        self._process = subprocess.Popen(
            [*self._command, *more], env=self._environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            start_new_session=True,
        )  # fmt: skip
        self.starts += 1
        self._ready, self._started = False, time.monotonic()
        self._heard = self._started

    def report(self) -> Report:
        """Waits until it is ready.

        Raises:
            ReplicaFailed: It ended.
        """
        assert self._process is not None and self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise ReplicaFailed(self.number, self._process.wait())
        self._ready = True
        return Report(**json.loads(line))

    async def check(self, prepare: Callable[[Replica], Awaitable[None]]) -> str | None:
        """Looks after it once.

        Args:
            prepare: What a new process needs before it takes requests; sets `open_up`.

        Returns:
            Why it must be started again; None: it is well, or may still become so.
        """
        if not self.running:
            assert self._process is not None
            return f"ended ({_ending(self._process.returncode)})"
        if time.monotonic() - self._asked < (CHECK_SECONDS if self._ready else LOOK_SECONDS):
            return None
        self._asked = time.monotonic()
        status = await self._health()
        if status is not None:
            self._heard = time.monotonic()
        if status in ("dead", "stalled"):
            return f"says that its engine is {status}"
        if status == "ok" and not self._ready:
            await prepare(self)
        patience = MUTE_SECONDS if self._ready else START_SECONDS
        silent = time.monotonic() - self._heard
        return f"has not answered for {silent:.0f} seconds" if silent > patience else None

    def open_up(self) -> None:
        """Requests may come."""
        self._ready = True

    async def request(self, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
        """Asks something of our own; status and body.

        Raises:
            UpstreamLost: It ended.
        """
        answer = await ask(self.socket, method, path.encode(), [(b"content-type", b"application/json")], body)
        try:
            return answer.status, await answer.whole()
        finally:
            answer.close()

    def end(self, how: signal.Signals) -> None:
        """Sends it a signal, if it runs."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(how)

    def wait(self, seconds: float) -> None:
        """Until it has ended; it is killed after so many seconds."""
        if self._process is None:
            return
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.end(signal.SIGKILL)
            self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()

    async def _health(self) -> str | None:
        try:
            _, body = await asyncio.wait_for(self.request("GET", "/health"), MUTE_SECONDS)
            return str(json.loads(body)["status"])
        except (UpstreamLost, TimeoutError, ValueError, KeyError):
            return None


class Replicas:
    """All of them, and the task that looks after them. As a context manager none outlives it.

    Args:
        command: That starts a server; where it listens, and which of how many it is, are added.
        count: How many.
        threads: Of each.
    """

    def __init__(self, command: Sequence[str], count: int, threads: int) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="puyulm-")  # readable by this user alone
        self.all = [
            Replica(number, [*command, "--one-of", f"{number}/{count}"], Path(self._folder.name), threads)
            for number in range(count)
        ]
        self._memory: tuple[str, ...] = ()
        self._ending = False

    def __enter__(self) -> Replicas:
        return self

    def __exit__(self, *error: object) -> None:
        self._ending = True
        for replica in self.all:
            replica.end(signal.SIGKILL)
        for replica in self.all:
            replica.wait(5)
        with contextlib.suppress(OSError):
            self._folder.cleanup()

    @property
    def ready(self) -> list[int]:
        return [replica.number for replica in self.all if replica.ready]

    def start(self) -> Report:
        """Starts all of them: the first alone, which tells whether the model can be served and in how much memory.

        Raises:
            ReplicaFailed: One did not come up.
        """
        first, *others = self.all
        first.start()
        report = first.report()
        # A replica that comes later, or again, finds less memory free: that of the others is counted as used.
        self._memory = ("--memory", str(report.memory))
        for replica in others:
            replica.start(*self._memory)
        for replica in others:
            replica.report()
        return report

    async def watch(self, prepare: Callable[[Replica], Awaitable[None]], gone: Callable[[int], None]) -> None:
        """Keeps them running until they shall end.

        Args:
            prepare: See `Replica.check`.
            gone: Told the number of a replica whose caches are lost.
        """
        await asyncio.gather(*(self._watch(replica, prepare, gone) for replica in self.all))

    def end(self) -> None:
        """Lets them finish what they have; they take nothing new. The second time they cut short what is left."""
        how = signal.SIGINT if self._ending else signal.SIGTERM
        self._ending = True
        for replica in self.all:
            replica.end(how)

    async def ended(self, seconds: float) -> None:
        """Waits for the last, and kills who has not ended after so many seconds."""
        deadline = time.monotonic() + seconds
        for replica in self.all:
            await asyncio.to_thread(replica.wait, max(deadline - time.monotonic(), 0.0))

    async def _watch(
        self, replica: Replica, prepare: Callable[[Replica], Awaitable[None]], gone: Callable[[int], None]
    ) -> None:
        pause = 0.0
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            if self._ending:
                return
            if (reason := await replica.check(prepare)) is None or self._ending:
                continue
            pause = 0.0 if replica.age > 2 * LONGEST_PAUSE else pause
            replica.end(signal.SIGKILL)
            await asyncio.to_thread(replica.wait, 5)
            gone(replica.number)
            print(f"replica {replica.number} {reason}: it is started again", file=sys.stderr, flush=True)
            await asyncio.sleep(pause)
            pause = min(max(2 * pause, CHECK_SECONDS), LONGEST_PAUSE)
            if not self._ending:
                replica.start(*self._memory)


def _ending(status: int) -> str:
    """An exit status in words."""
    return f"status {status}" if status >= 0 else f"by signal {signal.Signals(-status).name}"
