"""Equality of mathematical answers, and processes that are killed."""

from __future__ import annotations

import importlib.util
import json
import os
import resource
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from puyulm.errors import DataError
from puyulm.eval import mathematics
from puyulm.eval.mathematics import Comparer, Comparison

pytest.importorskip("math_verify")


@pytest.fixture(scope="module")
def comparer() -> Iterator[Comparer]:
    one = Comparer(processes=1, seconds=20.0)  # a busy machine must not change what is equal
    yield one
    one.close()


EQUAL = [
    ("\\frac{1}{2}", "0.5"), ("\\frac{1}{2}", "1/2"), ("\\frac{1}{2}", "\\dfrac12"), ("\\frac{1}{3}", "0.333333"),
    ("5", "x = 5"), ("x = 5", "5"), ("y = 2x + 3", "2x+3"), ("50\\%", "50"), ("50\\%", "0.5"), ("50", "50%"),
    ("5", "5 \\text{ cm}"), ("5\\text{ cm}^2", "5"), ("90^\\circ", "90"), ("90", "90°"), ("\\$32,348", "32348"),
    ("\\text{Evelyn}", "evelyn"), ("\\text{even}", "Even."), ("\\text{(B)}", "B"), ("\\text{(B)}", "(B)"),
    ("[2,5)", "[2, 5)"), ("\\{1,2\\}", "\\{2,1\\}"), ("1,2", "2, 1"), ("1,2", "2 \\text{ and } 1"), ("\\pm 2", "2,-2"),
    ("\\begin{pmatrix}1\\\\2\\end{pmatrix}", "\\begin{bmatrix}1\\\\2\\end{bmatrix}"), ("10,080", "10080"),
    ("x^2+2x+1", "(x+1)^2"), ("\\sqrt{8}", "2\\sqrt{2}"), ("6 - 5i", "-5i+6"), ("2^{10}", "1024"), ("1024", "2^{10}"),
    ("x \\in [-2,7]", "[-2,7]"), ("1\\frac{1}{2}", "1.5"), ("1500", "1.5e3"), ("1500", "1.5 \\times 10^3"),
    ("10", "\\binom{5}{2}"),
    ("（3，4）", "(3,4)"), ("12", "１２"), ("4x+7", "7+4 x"), ("\\left( 3, \\frac{\\pi}{2} \\right)", "(3, \\pi/2)"),
    ("-1", "−1"), ("2\\pi", "6.283185"), ("\\emptyset", "\\varnothing"), ("123", "一百二十三"),
    ("\\frac{2}{3}", "三分之二"),
]  # fmt: skip
DIFFERENT = [
    ("5", "6"), ("\\frac{1}{3}", "0.33"), ("[2,5)", "(2,5)"), ("(1,2)", "(2,1)"), ("3", "2 \\text{ or } 3"),
    ("x+y", "xy"),
    ("\\text{east}", "\\text{seat}"), ("\\text{Evelyn}", "E \\cdot v"), ("3\\pi", "9.42"), ("A", "B"), ("5", "-5"),
    ("\\{1,2\\}", "\\{1,2,3\\}"), ("x^2", "x^3"), ("50", "0.5"), ("5", ""), ("", ""), ("5", "I do not know"),
    ("\\begin{pmatrix}1\\\\2\\end{pmatrix}", "\\begin{pmatrix}2\\\\1\\end{pmatrix}"), ("5", "\\frac{"), ("5", "\\"),
    ("12", "1,2"), ("\\sqrt{2}", "\\sqrt{3}"), ("y = 2x+3", "y = 2x-3"), ("2", "2x"), ("x", "\\text{unknown}"),
]  # fmt: skip


@pytest.mark.parametrize(("gold", "answer"), EQUAL)
def test_equal(comparer: Comparer, gold: str, answer: str) -> None:
    assert comparer.compare(gold, answer) == Comparison(True)


@pytest.mark.parametrize(("gold", "answer"), DIFFERENT)
def test_different(comparer: Comparer, gold: str, answer: str) -> None:
    assert not comparer.compare(gold, answer).equal


@pytest.mark.parametrize(
    ("text", "expected"),
    [("5", 5), ("\\frac{\\pi}{4}", 0.7853981), ("x = 2^{10}", 1024), ("-1/8", -0.125), ("e^{-1}", 0.3678794),
     ("50\\%", 0.5), ("x", None), ("\\sqrt{-1}", None), ("[1,2)", None), ("unknown", None), ("", None),
     ("1e350", None)],
)  # fmt: skip
def test_values(comparer: Comparer, text: str, expected: float | None) -> None:
    assert comparer.value(text) == (None if expected is None else pytest.approx(expected, rel=1e-6))


def test_every_published_answer_is_itself(comparer: Comparer, shared_dir: Path) -> None:
    rows = [json.loads(line) for line in (shared_dir / "evaldata/math500/test.jsonl").read_text().splitlines()]
    assert all(comparer.compare(row["answer"], row["answer"]).equal for row in rows)


HOSTILE = ["9^{9^{9^9}}", "(x+y+z+w)^{200} - 1", "{" * 1900]


def test_what_takes_too_long_is_killed_and_others_go_on() -> None:
    comparer = Comparer(processes=1, seconds=0.2)
    try:
        for answer in HOSTILE:
            assert comparer.compare("x^5", answer) == Comparison(False, "the comparison took too long")
        comparer._seconds = 20.0
        assert comparer.compare("\\sqrt{8}", "2\\sqrt{2}").equal
    finally:
        comparer.close()


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="limits of other processes are Linux's")
def test_memory_is_bounded(comparer: Comparer) -> None:
    worker = comparer._take()
    comparer._give_back(worker, dead=False)
    assert resource.prlimit(worker._process.pid, resource.RLIMIT_AS) == (1 << 30, 1 << 30)


def test_too_little_memory_to_start_is_said() -> None:
    with pytest.raises(DataError, match="math-verify cannot be started"):
        Comparer(memory=60 << 20).compare("\\sqrt{8}", "2\\sqrt{2}")


def test_a_process_that_hangs_without_computing_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mathematics, "PATIENCE", 1.0)
    comparer = Comparer(processes=1, seconds=0.1)
    try:
        worker = comparer._take()
        os.kill(worker._process.pid, signal.SIGSTOP)
        comparer._give_back(worker, dead=False)
        assert comparer.compare("\\sqrt{8}", "2\\sqrt{2}").note == "the comparison took too long"
        assert worker._process.returncode == -signal.SIGKILL
    finally:
        comparer.close()


def test_a_process_that_somebody_killed_is_replaced(comparer: Comparer) -> None:
    worker = comparer._take()
    comparer._give_back(worker, dead=False)
    worker._process.kill()
    worker._process.wait()
    assert not comparer.compare("\\sqrt{18}", "3\\sqrt{2}").equal
    assert comparer.compare("\\sqrt{18}", "3\\sqrt{2}").equal


def test_threads_share_the_processes() -> None:
    comparer = Comparer(processes=2, seconds=20.0)
    pairs = [(f"\\sqrt{{{4 * n}}}", f"2\\sqrt{{{n + n % 2}}}") for n in range(2, 40)]
    try:
        with ThreadPoolExecutor(6) as threads:
            found = list(threads.map(lambda pair: comparer.compare(*pair).equal, pairs))
        assert found == [n % 2 == 0 for n in range(2, 40)]
        assert comparer._count <= 2
    finally:
        comparer.close()


def test_long_texts_are_not_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mathematics, "_Worker", None)
    comparer = Comparer()
    assert comparer.compare("5", "1+" * 2000 + "1") == Comparison(False, "too long for an answer")
    assert comparer.compare("1+" * 2000, "1+" * 2000).equal
    assert comparer.compare("5", "5.0").equal and not comparer.compare("5", "7").equal


def test_closing_ends_the_processes_and_the_next_question_starts_new_ones() -> None:
    mathematics.close()
    assert mathematics.equal("\\sqrt{12}", "2\\sqrt{3}")
    shared = mathematics._default()
    [worker] = shared._idle
    mathematics.close()
    assert worker._process.returncode is not None and not shared._idle
    assert mathematics.equal("\\sqrt{20}", "2\\sqrt{5}")
    mathematics.close()


def test_without_math_verify(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    comparer = Comparer()
    for _ in range(3):  # nobody waits for a process that never came
        with pytest.raises(DataError, match=r"pip install 'puyulm\[eval\]'"):
            comparer.compare("\\sqrt{8}", "2\\sqrt{2}")


def test_a_process_that_cannot_start_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "worker.py"
    script.write_text("print('\"ImportError: too old\"')")
    monkeypatch.setattr(mathematics, "_SCRIPT", script)
    with pytest.raises(DataError, match="too old"):
        Comparer().compare("\\sqrt{8}", "2\\sqrt{2}")
    script.write_text("raise SystemExit(3)")
    with pytest.raises(DataError, match="ended"):
        Comparer().compare("\\sqrt{8}", "2\\sqrt{2}")
