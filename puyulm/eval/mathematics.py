"""Whether two answers to a mathematical question are the same.

What is written alike, and plain numbers, are compared here; the rest is decided by `math-verify` (SymPy), which may
take hours, gigabytes or the whole process with it for an expression that a model made up. So it works in child
processes that are killed when an expression takes too long, and replaced:

    from puyulm.eval import mathematics
    mathematics.equal("\\frac{1}{2}", "0.5")

Any thread may ask. Processes are started when they are needed, and end with the program.
"""

from __future__ import annotations

import atexit
import importlib.util
import json
import os
import selectors
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from puyulm.errors import DataError
from puyulm.eval.extract.mathematics import is_word, same_text, tidy
from puyulm.eval.extract.numbers import parse_number, same_number

LONGEST = 2000  # characters of an expression; longer ones are no answers
SECONDS = 5.0  # of processor time for a pair of expressions
MEMORY = 1 << 30  # bytes of address space of a process
PATIENCE = 6.0  # by which the clock may run ahead of processor time on a busy machine
START_SECONDS = 120.0
MOST_PROCESSES = 4
CALLS = 20_000  # after which a process is replaced: SymPy keeps what it has seen

LARGEST = 1e300  # number as a float

_SCRIPT = Path(__file__).with_name("mathematics_worker.py")


@dataclass(frozen=True)
class Comparison:
    """Whether two answers are the same, and why not where that is not the answer's fault."""

    equal: bool
    note: str = ""


def equal(gold: str, answer: str) -> bool:
    """Whether `answer` is the same as `gold`, both as LaTeX or plain text, without the sentence around them.

    Numbers in any notation, expressions up to simplification, sets, intervals, tuples, matrices, equations (`x = 5` is
    5), with or without units, percent and degree signs; words only letter by letter. Not equal is what takes too long.

    Raises:
        DataError: math-verify is not installed, or cannot be started.
    """
    return compare(gold, answer).equal


@lru_cache(maxsize=1 << 16)
def compare(gold: str, answer: str) -> Comparison:
    """As `equal`, and says why.

    Raises:
        DataError: math-verify is not installed, or cannot be started.
    """
    return _default().compare(gold, answer)


@lru_cache(maxsize=1 << 14)
def value(text: str) -> float | None:
    """The real number that an expression stands for (`\\frac{\\pi}{4}`, `x = 2^{10}`); None: it is none.

    Raises:
        DataError: math-verify is not installed, or cannot be started.
    """
    return _default().value(text)


def require() -> None:
    """Says what is missing before anything is asked.

    Raises:
        DataError: math-verify is not installed.
    """
    if importlib.util.find_spec("math_verify") is None:
        raise DataError("comparing mathematics needs math-verify: pip install 'puyulm[eval]'")


def close() -> None:
    """Ends the processes. The next question starts new ones."""
    global _shared
    with _shared_lock:
        pool, _shared = _shared, None
    if pool is not None:
        pool.close()


class Comparer:
    """Processes that compare expressions.

    Args:
        processes: At most; None: as there are processors, up to 4.
        seconds: Processor time for a pair.
        memory: Bytes of address space of a process.
    """

    def __init__(self, processes: int | None = None, seconds: float = SECONDS, memory: int = MEMORY) -> None:
        self._most = processes or min(os.cpu_count() or 1, MOST_PROCESSES)
        self._seconds, self._memory = seconds, memory
        self._idle: list[_Worker] = []
        self._count, self._closed = 0, False
        self._changed = threading.Condition()

    def compare(self, gold: str, answer: str) -> Comparison:
        """See the function of this name."""
        known = _at_once(gold, answer)
        if known is not None:
            return known
        reply = self._ask(tidy(gold), tidy(answer))
        return Comparison(bool(reply[0])) if reply else Comparison(False, "the comparison took too long")

    def value(self, text: str) -> float | None:
        """See the function of this name."""
        number = parse_number(text, units=False)
        if number is not None:
            return float(number.value) if abs(number.value) < LARGEST else None
        if len(text) > LONGEST or is_word(text):
            return None
        reply = self._ask(tidy(text), None)
        return None if reply is None or reply[0] is None else float(reply[0])

    def _ask(self, gold: str, answer: str | None) -> list[bool | float | None] | None:
        worker = self._take()
        try:
            reply = worker.ask(gold, answer, self._seconds)
        except BaseException:
            self._give_back(worker, dead=True)
            raise
        self._give_back(worker, dead=reply is None or worker.calls >= CALLS)
        return reply

    def close(self) -> None:
        """Ends the processes."""
        with self._changed:
            self._closed = True
            idle, self._idle = self._idle, []
            self._count -= len(idle)
        for worker in idle:
            worker.kill()

    def _take(self) -> _Worker:
        with self._changed:
            while not self._idle and self._count >= self._most:
                self._changed.wait()
            if self._idle:
                return self._idle.pop()  # the one used last: others need not be started at all
            self._count += 1
        try:
            return _Worker(self._memory)
        except BaseException:
            with self._changed:
                self._count -= 1
                self._changed.notify()
            raise

    def _give_back(self, worker: _Worker, *, dead: bool) -> None:
        with self._changed:
            if dead or self._closed:
                self._count -= 1
            else:
                self._idle.append(worker)
            self._changed.notify()
            ends = dead or self._closed
        if ends:
            worker.kill()


class _Worker:
    """A process, used by one thread at a time."""

    def __init__(self, memory: int) -> None:
        require()
        self.calls = 0
        self._process = subprocess.Popen(
            # -P: modules beside the script must not hide those of the standard library.
            [sys.executable, "-P", str(_SCRIPT), str(memory)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0,
            env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "0"},
        )  # fmt: skip
        failed = self._read(START_SECONDS)
        if failed != "":
            self.kill()
            reason = failed or f"the process ended with {self._process.returncode}"
            raise DataError(f"math-verify cannot be started ({reason}): pip install -U 'puyulm[eval]'")

    def ask(self, gold: str, answer: str | None, seconds: float) -> list[bool | float | None] | None:
        """None: it took too long, or the process died of it."""
        self.calls += 1
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps([gold, answer, seconds]).encode() + b"\n")
        except OSError:
            return None
        reply = self._read(seconds * PATIENCE)
        return reply if isinstance(reply, list) else None

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()

    def _read(self, seconds: float) -> object:
        """A line; None: there was none in time."""
        assert self._process.stdout is not None
        until, line = time.monotonic() + seconds, b""
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while not line.endswith(b"\n"):
                if not selector.select(max(until - time.monotonic(), 0.0)):
                    return None
                if not (read := os.read(self._process.stdout.fileno(), 4096)):
                    return None
                line += read
        return json.loads(line)


def _at_once(gold: str, answer: str) -> Comparison | None:
    """What needs no algebra; None: it does."""
    if not gold.strip() or not answer.strip():
        return Comparison(False, "nothing to compare")
    if max(len(gold), len(answer)) > LONGEST:
        return Comparison(gold == answer, "" if gold == answer else "too long for an answer")
    if same_text(gold, answer):
        return Comparison(True)
    one, other = parse_number(gold, units=False), parse_number(answer, units=False)
    if one is not None and other is not None:
        if same_number(one, other):
            return Comparison(True)
        if one.value.denominator == 1 and other.value.denominator == 1 and not (one.percent or other.percent):
            return Comparison(False)
    elif is_word(gold) or is_word(answer):  # letters are no factors here
        return Comparison(False)
    return None


_shared: Comparer | None = None
_shared_lock = threading.Lock()


def _default() -> Comparer:
    global _shared
    with _shared_lock:
        if _shared is None:
            _shared = Comparer()
        return _shared


def _after_fork() -> None:
    """A forked child must not talk to its parent's processes."""
    global _shared, _shared_lock
    _shared, _shared_lock = None, threading.Lock()


atexit.register(close)
os.register_at_fork(after_in_child=_after_fork)
