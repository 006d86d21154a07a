"""One sandbox that runs: its pipes, its clock, its end."""

from __future__ import annotations

import functools
import marshal
import os
import selectors
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from puyulm.errors import SandboxError
from puyulm.sandbox import processes
from puyulm.sandbox.capture import Capture
from puyulm.sandbox.command import command
from puyulm.sandbox.limits import Limits
from puyulm.sandbox.python import find_python

STARTING = 60.0  # seconds that the sandbox itself may need, on a machine with much else to do
ENDING = 5.0  # seconds until what was killed is gone
TICK = 0.1  # seconds between looks at the memory
CHUNK = 1 << 16
LONGEST_LINE = 32 << 20  # of a reply, in bytes

Reason = Literal["ended", "timeout", "memory", "garbled"]


class Gone(Exception):
    """No reply will come."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason = reason


class Room:
    """A Python process in a sandbox that runs one of our inside scripts, started and ready.

    Its pipes are read and its clock is looked at only within the methods here. A thread of its own starts it and
    stays until it ends, because the kernel ends a sandbox with the thread (not the process) that started it.

    Attributes:
        out, err: What has been read of standard output and standard error.
    """

    def __init__(self, script: str, limits: Limits, *, cpu_seconds: float | None, files: Mapping[str, str | bytes],
                 stdin: str | bytes, python: str | None, packages: bool, **job: Any) -> None:  # fmt: skip
        """Raises SandboxError where the sandbox does not start."""
        interpreter = find_python(python, packages)
        argv = command(interpreter, limits, cpu_seconds)
        job |= {"files": checked_files(files, limits), "site": list(interpreter.site)}
        job["processes"] = limits.processes + 1  # one is bwrap's own
        self._limits = limits
        self._replies, self._orders = bytearray(), bytearray()
        self._selector = selectors.DefaultSelector()
        self._looked, self._scanned = 0.0, 0
        self._exited = self._ended = False  # ended: its pipes have come to their ends too
        self.clear()
        pipes = [os.pipe() for _ in range(4)]
        (out, out_end), (err, err_end), (reply, reply_end), (order_end, self._order_fd) = pipes
        given = (_memory_file(stdin), _memory_file(marshal.dumps(job, 2)))  # 2: what every Python 3 can read
        numbers = [str(fd) for fd in (given[1], reply_end, order_end)]
        self._owned = [out, err, reply, self._order_fd]
        try:
            self._spawn([*argv, "-c", script, *numbers], (given[0], out_end, err_end), (given[1], reply_end, order_end))
        except OSError as error:
            self._release()
            raise SandboxError(f"the sandbox did not start: {error}") from None
        finally:
            for fd in (*given, out_end, err_end, reply_end, order_end):
                os.close(fd)
        os.set_blocking(self._order_fd, False)
        self._watch(out, lambda data: self.out.feed(data))
        self._watch(err, lambda data: self.err.feed(data))
        self._watch(reply, self._replies.extend)
        self._selector.register(self._exit_fd, selectors.EVENT_READ, self._note_exit)
        try:
            self._started()
        except BaseException:
            self.close()
            raise

    def _spawn(self, argv: Sequence[str], streams: tuple[int, int, int], passed: tuple[int, int, int]) -> None:
        done, failed = threading.Event(), list[BaseException]()

        def keep() -> None:
            try:
                self._process = subprocess.Popen(
                    argv, stdin=streams[0], stdout=streams[1], stderr=streams[2], pass_fds=passed,
                    env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},  # bwrap's own is readable inside, in /proc/1
                    start_new_session=True, cwd="/",
                )  # fmt: skip
                self._exit_fd = os.pidfd_open(self._process.pid)
                self._owned.append(self._exit_fd)
            except BaseException as error:
                failed.append(error)
                if hasattr(self, "_process"):
                    self._process.kill()
                return
            finally:
                done.set()
            self._process.wait()

        threading.Thread(target=keep, name="sandbox", daemon=True).start()
        done.wait()
        if failed:
            raise failed[0]

    def _started(self) -> None:
        try:
            word, _, pid = self.line(time.monotonic() + STARTING).partition(b" ")
            assert word == b"started"
        except Gone as gone:
            said = self.err.text().strip().splitlines()
            why = said[-1] if said else f"{gone.reason} after {STARTING:.0f} seconds, without a word"
            raise SandboxError(f"the sandbox did not start: {why}{_advice(why)}") from None
        self._inner_pid = int(pid)

    def clear(self) -> None:
        """Begins to capture the output anew."""
        self.out, self.err = Capture(self._limits.output_bytes), Capture(self._limits.output_bytes)

    def send(self, data: bytes) -> None:
        """Puts it into the pipe while `line` waits for the answer."""
        if not self._orders:
            self._selector.register(self._order_fd, selectors.EVENT_WRITE, self._write_orders)
        self._orders += data

    def line(self, deadline: float) -> bytes:
        """The next line that the script sends, without its end.

        Args:
            deadline: By `time.monotonic`.

        Raises:
            Gone: The process has ended, the time has passed, all together use too much memory, or the line has no
                end. Nothing is killed.
        """
        while True:
            end = self._replies.find(b"\n", self._scanned)
            if end >= 0:
                line = bytes(self._replies[:end])
                del self._replies[: end + 1]
                self._scanned = 0
                return line
            self._scanned = len(self._replies)
            if self._scanned > LONGEST_LINE:
                raise Gone("garbled")
            if self._ended:
                raise Gone("ended")
            self._turn(deadline)

    def exit_code(self, deadline: float) -> int:
        """Waits for the end; above 128 it may be a signal. Raises Gone."""
        while not self._ended:
            self._replies.clear()
            self._scanned = 0
            self._turn(deadline)
        return self._process.wait()

    def drain(self) -> None:
        """Reads what is in the pipes by now."""
        end = time.monotonic() + TICK  # of a process that goes on writing there is always more
        while time.monotonic() < end and self._select(0):
            pass

    def interrupt(self) -> None:
        """Ctrl-C for the script's process, nobody else's."""
        if (pid := processes.outer_pid(self._process.pid, self._inner_pid)) is not None:
            processes.send(pid, signal.SIGINT)

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def close(self) -> None:
        """Kills every process inside, and waits until they are gone."""
        if not self._owned:
            return
        if self._process.poll() is None:
            # The namespace's first process takes all others with it; bwrap outside waits for it, and we for bwrap.
            first = processes.children(self._process.pid)
            for pid in first:
                processes.send(pid, signal.SIGKILL)
            try:
                self._process.wait(ENDING if first else 0)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self.drain()
        self._release()

    def _release(self) -> None:
        self._selector.close()
        for fd in self._owned:
            os.close(fd)
        self._owned.clear()

    def _turn(self, deadline: float) -> None:
        now = time.monotonic()
        if now >= deadline:
            raise Gone("timeout")
        if now - self._looked >= TICK:
            if self._looked and processes.memory_above(self._process.pid, self._limits.memory):
                raise Gone("memory")
            self._looked = now
        self._select(min(deadline - now, TICK))
        if self._exited:  # what it has left running dies now, if it has not yet, and lets go of the pipes
            end = time.monotonic() + ENDING
            while self._selector.get_map() and self._select(end - time.monotonic()):
                pass
            self._ended = True

    def _select(self, seconds: float) -> bool:
        events = self._selector.select(max(seconds, 0))
        for key, _ in events:
            key.data()
        return bool(events)

    def _watch(self, fd: int, sink: Callable[[bytes], None]) -> None:
        def read() -> None:
            if data := os.read(fd, CHUNK):
                sink(data)
            else:
                self._selector.unregister(fd)

        self._selector.register(fd, selectors.EVENT_READ, read)

    def _write_orders(self) -> None:
        try:
            del self._orders[: os.write(self._order_fd, self._orders)]
        except BrokenPipeError:
            self._orders.clear()
        if not self._orders:
            self._selector.unregister(self._order_fd)

    def _note_exit(self) -> None:
        self._selector.unregister(self._exit_fd)
        self._exited = True


@functools.cache
def script(begin: str, *names: str) -> str:
    """The text of inside scripts, one behind the other, and then a call of the function `begin`."""
    return "\n".join([*(Path(__file__).with_name(name).read_text("utf-8") for name in names), f"{begin}()"])


def checked_files(files: Mapping[str, str | bytes], limits: Limits) -> dict[str, bytes]:
    """Contents by path below the home folder. Raises SandboxError for other paths, or too much."""
    found = {}
    for path, data in files.items():
        parts = PurePosixPath(path).parts
        if not parts or path.startswith("/") or ".." in parts or "\0" in path:
            raise SandboxError(f"sandbox: a file's path must lead into the home folder, not {path!r}")
        found[path] = data.encode("utf-8", "surrogatepass") if isinstance(data, str) else bytes(data)
    if (size := sum(map(len, found.values()))) > limits.disk:
        raise SandboxError(f"sandbox: files of {size} bytes do not fit; the limit 'disk' is {limits.disk}")
    return found


def check() -> None:
    """Makes sure that code can be run here, by running an empty program.

    Raises:
        SandboxError: It cannot; the message says what to install or to allow.
    """
    Room("import os, sys\nos.write(int(sys.argv[2]), b'started 0\\n')", Limits(), cpu_seconds=None, files={}, stdin="",
         python=None, packages=False).close()  # fmt: skip


def _memory_file(data: str | bytes) -> int:
    """A file that is read from its beginning, so that nobody need feed a pipe."""
    fd = os.memfd_create("sandbox")
    with open(fd, "wb", closefd=False) as file:
        file.write(data.encode("utf-8", "surrogatepass") if isinstance(data, str) else data)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def _advice(said: str) -> str:
    said = said.lower()
    if "proc" in said and "mount" in said:
        return " (in a container: start it with --security-opt systempaths=unconfined, or privileged)"
    if "namespace" in said or "uid map" in said or "unshare" in said or "loopback" in said:
        return (
            " (user namespaces must be allowed: sysctl user.max_user_namespaces above 0, "
            "kernel.unprivileged_userns_clone=1 on Debian, kernel.apparmor_restrict_unprivileged_userns=0 on Ubuntu; "
            "in a container, --security-opt seccomp=unconfined)"
        )
    if "disable-userns" in said or "--size" in said or "unknown option" in said:
        return " (bubblewrap 0.8.0 or newer is needed)"
    return ""
