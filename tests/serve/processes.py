"""`puyu serve` as users run it, in processes of its own."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import httpx

from tests.serve.servers import DEADLINE
from tests.waiting import wait_until

ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}


@dataclass
class Serving:
    """A server that runs.

    Attributes:
        line: What it said when it was ready.
    """

    process: subprocess.Popen[str]
    line: str
    stderr: IO[str]

    @property
    def url(self) -> str:
        return self.line.split(" at ")[1].split("/v1")[0]

    @property
    def children(self) -> list[int]:
        """Pids, in the order in which they were started."""
        listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
        pairs = (line.split() for line in listed.splitlines())
        return sorted(int(pid) for pid, parent in pairs if int(parent) == self.process.pid)

    def told(self) -> str:
        """What it has written to standard error."""
        self.stderr.flush()
        return Path(self.stderr.name).read_text()

    def samples(self, name: str) -> list[float]:
        """A metric's values, of all replicas and labels."""
        lines = httpx.get(f"{self.url}/metrics", timeout=DEADLINE).text.splitlines()
        return [float(line.rpartition(" ")[2]) for line in lines if line.split("{")[0].split(" ")[0] == name]

    def wait_until_free(self, seconds: float = DEADLINE) -> None:
        """Until no sequence holds a block anywhere."""
        names = ("puyu_cache_blocks_held", "puyu_requests_waiting")
        wait_until(lambda: not any(value for name in names for value in self.samples(name)), seconds)


def command(model: Path, *flags: str) -> list[str]:
    return [sys.executable, "-m", "puyulm", "serve", str(model), "--port", "0", "--device", "cpu", *flags]


@contextlib.contextmanager
def serving(model: Path, *flags: str, memory: str = "16MiB") -> Iterator[Serving]:
    """Serves until the block ends."""
    words = command(model, "--memory", memory, *flags)
    with (
        tempfile.NamedTemporaryFile("w+", suffix=".stderr") as stderr,
        subprocess.Popen(words, stdout=subprocess.PIPE, stderr=stderr, text=True, env=ENVIRONMENT) as child,
    ):
        try:
            assert child.stdout is not None
            line = child.stdout.readline()
            if " at http" not in line:
                child.kill()
            assert " at http" in line, Path(stderr.name).read_text()
            yield Serving(child, line, stderr)
        finally:
            child.kill()
