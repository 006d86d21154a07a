"""An interpreter that keeps its state from cell to cell, for agents and for benchmarks of notebooks."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal

from puyulm.errors import SandboxError
from puyulm.sandbox.limits import Limits
from puyulm.sandbox.room import Gone, Reason, Room, checked_files, script

CellStatus = Literal["ok", "error", "timeout", "memory", "dead"]
GRACE = 3.0  # seconds for a cell to end after it was interrupted
FILES = 30.0  # seconds for reading or writing a file
NAMES = 1000  # of files, at most
_DEFAULT = Limits(seconds=30.0, memory=2 << 30)
_WHY = {
    "ended": "its process has ended",
    "timeout": "it did not stop when it was interrupted",
    "memory": "it used too much memory",
    "garbled": "its replies cannot be read",
}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What a cell did.

    Attributes:
        status: "ok"; "error": an exception; "timeout": it ran too long; "memory": too much of it. "dead": the process
            ended within the cell. After the last, and wherever `error` says so, the session has ended.
        stdout, stderr: Their beginnings and ends.
        result: The last expression's value as `repr` gives it; None where there is none, or it is None.
        error: The traceback, beginning in the cell, or why the session ended.
        images: Figures of matplotlib, as PNG.
        seconds: Wall-clock time.
    """

    status: CellStatus
    stdout: str = ""
    stderr: str = ""
    result: str | None = None
    error: str | None = None
    images: tuple[bytes, ...] = ()
    stdout_truncated: bool = False
    stderr_truncated: bool = False
    seconds: float = 0.0


class Session:
    """One Python process in a sandbox as `run_python` has it, running cells as a notebook does.

    It is a context manager, and may be used from any thread, by one at a time; `interrupt` may be called meanwhile.
    """

    def __init__(
        self,
        *,
        limits: Limits = _DEFAULT,
        files: Mapping[str, str | bytes] | None = None,
        python: str | None = None,
        packages: bool = True,
    ) -> None:
        """Starts it.

        Args:
            limits: `seconds` is of one cell.
            files: Contents by path below the home folder, where cells run.
            python, packages: As for `run_python`.

        Raises:
            SandboxError: It does not start.
        """
        self._limits = limits
        self._lock = threading.Lock()
        self._count = 0
        self._lost: str | None = None
        self._room = Room(
            script("serve", "inside_program.py", "inside_session.py"), limits, cpu_seconds=limits.cpu_seconds,
            files=files or {}, stdin="", python=python, packages=packages,
        )  # fmt: skip

    def run(self, code: str, *, seconds: float | None = None) -> Cell:
        """Runs a cell. One that takes too long is interrupted, and the session goes on; where that does not help, or
        all its processes together use too much memory, the session is killed, and `error` says so.

        Args:
            seconds: Wall-clock limit; None: the session's.

        Raises:
            SandboxError: The session had ended before.
        """
        with self._lock:
            self._check()
            begin = time.monotonic()
            self._room.drain()  # what was left running has gone on writing since the last cell
            late = False
            try:
                self._send(do="cell", code=code, limit=self._limits.output_bytes)
                try:
                    reply = self._reply(begin + (self._limits.seconds if seconds is None else seconds))
                except Gone as gone:
                    if gone.reason != "timeout":
                        raise
                    late = True
                    self._room.interrupt()
                    reply = self._reply(time.monotonic() + GRACE)
                self._room.drain()
                return self._cell(_cell_status(reply, late), begin, reply)
            except KeyboardInterrupt:
                self.interrupt()  # its reply will be passed over by whoever asks next
                raise
            except Gone as gone:
                self._end(_WHY[gone.reason])
                status = _death(gone.reason)
                return self._cell(status, begin, {"error": f"The session has ended: {self._lost}. Its state is lost."})

    def interrupt(self) -> None:
        """Stops the cell that runs now, with KeyboardInterrupt; nothing where none does."""
        if self.alive:
            self._room.interrupt()

    def write(self, path: str, data: str | bytes) -> None:
        """Puts a file below the home folder. Raises SandboxError."""
        ((name, content),) = checked_files({path: data}, self._limits).items()
        self._ask(path, do="write", path=name, data=base64.b64encode(content).decode())

    def read(self, path: str) -> bytes:
        """A file's contents, by its path from the home folder, up to 16 MiB. Raises SandboxError."""
        data = self._ask(path, do="read", path=path, limit=16 << 20).get("data")
        try:
            return base64.b64decode(data if isinstance(data, str) else "?", validate=True)
        except ValueError:
            raise SandboxError(f"sandbox: reading {path!r} gave nothing that can be read") from None

    def files(self) -> list[str]:
        """Paths of the files in the home folder, sorted, the first thousand."""
        names = self._ask("the home folder", do="list", limit=NAMES).get("names")
        return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []

    @property
    def alive(self) -> bool:
        return self._lost is None and self._room.alive

    def close(self) -> None:
        """Ends it with every process in it."""
        with self._lock:
            self._end("it was closed")

    def __enter__(self) -> Session:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:  # fmt: skip
        self.close()

    def _check(self) -> None:
        if self._lost is not None:
            raise SandboxError(f"the sandbox session has ended: {self._lost}; start another")

    def _end(self, why: str) -> None:
        if self._lost is None:
            self._lost = why
            self._room.close()

    def _send(self, **order: Any) -> None:
        self._count += 1
        self._room.send(json.dumps({"id": self._count, **order}).encode() + b"\n")

    def _reply(self, deadline: float) -> dict[str, Any]:
        while True:
            try:
                reply = json.loads(self._room.line(deadline))
            except (ValueError, RecursionError):
                raise Gone("garbled") from None
            if not isinstance(reply, dict) or not isinstance(number := reply.get("id"), int) or number > self._count:
                raise Gone("garbled")
            if number == self._count:
                return reply

    def _ask(self, what: str, **order: Any) -> dict[str, Any]:
        with self._lock:
            self._check()
            try:
                self._send(**order)
                reply = self._reply(time.monotonic() + FILES)
            except Gone as gone:
                self._end(_WHY[gone.reason])
                raise SandboxError(f"the sandbox session has ended: {self._lost}; start another") from None
        if "failed" in reply:
            raise SandboxError(f"sandbox: {what!r}: {reply['failed']}")
        return reply

    def _cell(self, status: CellStatus, begin: float, reply: Mapping[str, Any]) -> Cell:
        room = self._room
        cell = Cell(
            status=status, result=_text(reply.get("result")), error=_text(reply.get("error")),
            images=_images(reply.get("images")), stdout=room.out.text(), stderr=room.err.text(),
            stdout_truncated=room.out.truncated, stderr_truncated=room.err.truncated, seconds=time.monotonic() - begin,
        )  # fmt: skip
        room.clear()
        return cell


def _cell_status(reply: Mapping[str, Any], late: bool) -> CellStatus:
    kind = reply.get("kind")
    if kind is None:
        return "ok"
    if late:
        return "timeout"
    return "memory" if kind == "MemoryError" else "error"


def _death(reason: Reason) -> CellStatus:
    return reason if reason in ("timeout", "memory") else "dead"


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _images(value: object) -> tuple[bytes, ...]:
    try:
        return tuple(base64.b64decode(one, validate=True) for one in value) if isinstance(value, list) else ()
    except (TypeError, ValueError):
        return ()
