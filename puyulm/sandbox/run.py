"""Runs programs to their end, one or thousands."""

from __future__ import annotations

import marshal
import os
import secrets
import signal
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Literal

from puyulm.sandbox.limits import Limits
from puyulm.sandbox.room import Gone, Room, script

Status = Literal["ok", "failed", "error", "exit", "timeout", "memory", "killed"]
_DEFAULT = Limits()


@dataclass(frozen=True)
class Program:
    """Attributes:
    code: Python source.
    tests: Source texts that run after it, in its namespace, each whatever became of those before; a test passes when it
        raises nothing.
    stdin: What it reads from standard input.
    files: Contents by path below the home folder, where it is started.
    """

    code: str
    tests: Sequence[str] = ()
    stdin: str | bytes = ""
    files: Mapping[str, str | bytes] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a program ended.

    Attributes:
        status: "ok": it ran to its end with exit code 0 or, if it has tests, passed them all. "failed": not all tests.
            "error": an exception, or another exit code. "exit": it ended before its tests. "timeout": of wall-clock or
            processor time. "memory": too much. "killed": by a signal, for instance for a fault of an address.
        passed: Of each test; empty where they did not run to their end.
        exit_code: None where we ended it; above 128 after a signal.
        stdout, stderr: Their beginnings and ends.
        seconds: Wall-clock time, without the sandbox's start.
    """

    status: Status
    passed: tuple[bool, ...] = ()
    exit_code: int | None = None
    stdout: str = ""
    stderr: str = ""
    stdout_truncated: bool = False
    stderr_truncated: bool = False
    seconds: float = 0.0


def run_python(
    code: str,
    *,
    tests: str | Sequence[str] = (),
    stdin: str | bytes = "",
    files: Mapping[str, str | bytes] | None = None,
    limits: Limits = _DEFAULT,
    python: str | None = None,
    packages: bool = False,
) -> Outcome:
    """Runs a program in a sandbox of its own: no network, no files but the system's programs, no processes but its own.

    Tests are sent in only after the program has run, with a word that the verdict must begin with: leaving early
    (`sys.exit`, `os._exit`) or printing what looks like success passes nothing. But the tests run in the program's own
    process. One that is written against this very harness (that looks up its pipes, or compares equal to everything)
    can still pass.

    Args:
        tests: See `Program`. With tests the program's `__name__` is "solution", without them "__main__".
        stdin, files: See `Program`.
        python: Interpreter to use; None: the one that runs this.
        packages: Show its installed packages (numpy, ...) to the program.

    Raises:
        SandboxError: The sandbox does not start (`check` says why); never for what the program does.
    """
    program = Program(code, (tests,) if isinstance(tests, str) else tuple(tests), stdin, files or {})
    return _run(program, limits, python, packages)


def run_many(
    programs: Iterable[Program],
    *,
    limits: Limits = _DEFAULT,
    workers: int | None = None,
    on_done: Callable[[int, Outcome], None] | None = None,
    python: str | None = None,
    packages: bool = False,
) -> list[Outcome]:
    """Runs programs side by side, each as `run_python` does.

    Args:
        workers: How many at a time; None: one for each core that this process may use.
        on_done: Called with a program's place and outcome as each ends, in any order, from threads.

    Returns:
        Outcomes in the order of the programs.

    Raises:
        SandboxError: A sandbox does not start. Programs that were not begun then never are.
    """

    def one(place: int, program: Program) -> Outcome:
        outcome = _run(program, limits, python, packages)
        if on_done is not None:
            on_done(place, outcome)
        return outcome

    pool = ThreadPoolExecutor(workers or len(os.sched_getaffinity(0)), "sandbox")
    try:
        begun = [pool.submit(one, place, program) for place, program in enumerate(programs)]
        return [future.result() for future in begun]
    finally:
        pool.shutdown(cancel_futures=True)


def _run(program: Program, limits: Limits, python: str | None, packages: bool) -> Outcome:
    room = Room(
        script("main", "inside_program.py"), limits, cpu_seconds=limits.cpu_seconds or limits.seconds,
        stdin=program.stdin, files=program.files, python=python, packages=packages,
        code=program.code, tests=len(program.tests),
    )  # fmt: skip
    passed: tuple[bool, ...] = ()
    exit_code: int | None = None
    begin = time.monotonic()
    try:
        word = _word(room, begin + limits.seconds)
        if word == b"ready":
            status, passed = _verdict(room, program.tests, begin + limits.seconds)
        else:
            exit_code = room.exit_code(begin + limits.seconds)
            status = _status(word, exit_code, bool(program.tests))
    except Gone as gone:
        if gone.reason == "ended":
            exit_code = room.exit_code(begin + limits.seconds)
            status = _status(b"", exit_code, True)
        else:
            status = "error" if gone.reason == "garbled" else gone.reason
    finally:
        seconds = time.monotonic() - begin
        room.close()
    return Outcome(
        status=status, passed=passed, exit_code=exit_code, stdout=room.out.text(), stderr=room.err.text(),
        stdout_truncated=room.out.truncated, stderr_truncated=room.err.truncated, seconds=seconds,
    )  # fmt: skip


def _word(room: Room, deadline: float) -> bytes:
    """How the program says that it ended; empty where it has ended without."""
    try:
        return room.line(deadline)
    except Gone as gone:
        if gone.reason == "ended":
            return b""
        raise


def _verdict(room: Room, tests: Sequence[str], deadline: float) -> tuple[Status, tuple[bool, ...]]:
    nonce = secrets.token_hex(16)
    data = marshal.dumps((nonce, list(tests)), 2)
    room.send(len(data).to_bytes(8, "big") + data)
    said, *ends = room.line(deadline).split()
    if said != nonce.encode() or len(ends) != len(tests):
        return "exit", ()
    passed = tuple(end == b"ok" for end in ends)
    return "ok" if all(passed) else "memory" if b"memory" in ends else "failed", passed


def _status(word: bytes, exit_code: int, tests: bool) -> Status:
    if word in (b"memory", b"error"):
        return "memory" if word == b"memory" else "error"
    if not word and exit_code > 128:
        return "timeout" if exit_code == 128 + signal.SIGXCPU else "killed"
    if tests:
        return "exit"
    return "ok" if exit_code == 0 else "error"
