"""Compares expressions with math-verify, in a process of its own. It is run as a script, and imports nothing of ours.

A line on standard input is JSON `[gold, answer, seconds]`; the line that answers it is `[true]` or `[false]`. With null
as the answer, it is the number that gold stands for: `[0.5]`, or `[null]`. An expression that takes more than its
seconds of processor time ends the process: by the kernel, so that nothing that SymPy is busy with can hold it up, and
whether or not the parent is still there. The first line says what went wrong at the start, or "".
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import resource
import signal
import sys
from collections.abc import Callable
from typing import Any, TextIO


def main() -> None:
    """Answers until the input ends."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print must not be read as an answer
    memory = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _limit(resource.RLIMIT_AS, memory)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's
    signal.signal(signal.SIGPROF, signal.SIG_DFL)  # ends the process
    try:
        (same, number), failed = _functions(), ""
    except Exception as error:
        failed = f"{type(error).__name__}: {error}"
    _say(replies, failed)
    if failed:
        return
    for line in sys.stdin.buffer:
        gold, answer, seconds = json.loads(line)
        signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            found = number(gold) if answer is None else same(gold, answer)
        except MemoryError:
            os._exit(1)  # what is left of the heap is not to be trusted
        except Exception:
            found = None if answer is None else False
        signal.setitimer(signal.ITIMER_PROF, 0)
        _say(replies, [found])


def _say(replies: TextIO, message: str | list[bool | float | None]) -> None:
    print(json.dumps(message), file=replies, flush=True)


def _limit(kind: int, value: int) -> None:
    with contextlib.suppress(ValueError, OSError):  # systems that do not know it
        resource.setrlimit(kind, (value, value))


def _functions() -> tuple[Callable[[str, str], bool], Callable[[str], float | None]]:
    """math-verify with the notation of MATH's answers: LaTeX first, then plain expressions."""
    from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

    logging.disable(logging.CRITICAL)
    kinds = [LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig()]

    def read(text: str) -> list[Any]:
        return list(parse(f"${text}$", extraction_config=kinds, parsing_timeout=None))

    def same(gold: str, answer: str) -> bool:
        return bool(verify(read(gold), read(answer), timeout_seconds=None))

    def number(text: str) -> float | None:
        for one in read(text):
            value = getattr(one, "rhs", one)  # of equations
            if getattr(value, "is_number", False):
                found = complex(value.evalf())
                return found.real if found.imag == 0 and math.isfinite(found.real) else None
        return None

    if not same("\\frac{1}{2}", "0.5"):  # grammars are built at their first use
        raise MemoryError("it does not work here")
    return same, number


if __name__ == "__main__":
    main()
