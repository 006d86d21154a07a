"""What Python in the sandbox runs: the program, then its tests. It runs by its text and knows nothing of ours.

Whatever the program may replace (builtins, functions of `os`) is taken into local names before it runs. Every import
makes every program start later, so there are few.
"""

from __future__ import annotations

import marshal
import os
import resource
import sys

TYPE_CHECKING = False  # as in `typing`, which is slow to import
if TYPE_CHECKING:
    from typing import Any


def prepare(job: dict[str, Any], inherited: tuple[int, ...]) -> None:
    """Limits that must be set inside, files, and what a Python without `site` lacks."""
    import builtins

    resource.setrlimit(resource.RLIMIT_NPROC, (job["processes"], job["processes"]))
    for fd in inherited:  # what the program starts must not hold our pipes open
        os.set_inheritable(fd, False)
    for path, data in job["files"].items():
        if folder := os.path.dirname(path):
            os.makedirs(folder, exist_ok=True)
        with open(path, "wb") as file:
            file.write(data)
    builtins.exit = builtins.quit = sys.exit  # type: ignore[assignment]
    sys.path += job["site"]
    sys.argv[:] = ["program.py"]


def show(error: BaseException, sources: dict[str, str]) -> str:
    """A traceback that begins in the program."""
    import linecache
    import traceback

    for name, text in sources.items():
        linecache.cache[name] = (len(text), None, text.splitlines(True), name)
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename not in sources:
        trace = trace.tb_next
    return "".join(traceback.format_exception(type(error), error, trace))


def main() -> None:
    job_fd, reply_fd, order_fd = map(int, sys.argv[1:4])
    write, read, getpid, run, translate, load = os.write, os.read, os.getpid, exec, compile, marshal.loads
    with open(job_fd, "rb") as file:
        job = load(file.read())
    prepare(job, (reply_fd, order_fd))
    me, sources = getpid(), {}

    def say(line: str) -> None:
        write(reply_fd, line.encode() + b"\n")

    def attempt(text: str, name: str, space: dict[str, Any]) -> str:
        sources[name] = text
        try:
            run(translate(text, name, "exec", dont_inherit=True), space)
        except SystemExit:
            if name != "<program>":
                return "exit"
            if getpid() == me:
                say("exit")
            raise
        except BaseException as error:
            kind = "memory" if isinstance(error, MemoryError) else "error"
            try:
                sys.stderr.write(show(error, sources))
            except MemoryError:
                write(2, type(error).__name__.encode() + b"\n")
            except BaseException:  # the program has closed the stream, or its exception cannot be shown
                pass
            return kind
        return "ok"

    def flush() -> None:
        for stream in (sys.stdout, sys.stderr):
            try:  # noqa: SIM105 (contextlib is slow to import)
                stream.flush()
            except BaseException:
                pass

    program = type(sys)("solution" if job["tests"] else "__main__")
    ours, sys.modules[program.__name__] = sys.modules["__main__"], program  # ours: or else its names would be cleared
    say(f"started {me}")
    ended = attempt(job["code"], "<program>", program.__dict__)
    if getpid() != me:  # a fork of the program has come to its end too
        flush()
        os._exit(ended != "ok")
    if ended != "ok" or not job["tests"]:
        say(ended)
        sys.exit(ended != "ok")
    say("ready")
    size, data = int.from_bytes(read(order_fd, 8), "big"), b""
    while len(data) < size and (more := read(order_fd, size - len(data))):
        data += more
    nonce, tests = load(data)
    ends = [attempt(test, f"<test {i}>", program.__dict__) for i, test in enumerate(tests, 1)]
    flush()
    if getpid() == me:
        say(f"{nonce} {' '.join(ends)}")
    del ours
