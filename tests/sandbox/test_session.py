"""Cells in one interpreter: state, output, interrupts, death."""

from __future__ import annotations

import importlib.util
import os
import signal
import threading
from collections.abc import Iterator

import pytest

from puyulm.errors import SandboxError
from puyulm.sandbox import Limits, Session, processes
from tests.waiting import wait_until

pytestmark = pytest.mark.usefixtures("sandbox")


@pytest.fixture
def session() -> Iterator[Session]:
    with Session(packages=False, limits=Limits(seconds=20)) as one:
        yield one


def test_state_stays_and_the_last_expression_is_shown(session: Session):
    assert session.run("x = 3\nx + 1").result == "4"
    cell = session.run("print(x, _)\nNone")
    assert (cell.status, cell.stdout, cell.result, cell.error) == ("ok", "3 4\n", None, None)
    assert session.run("").result is None
    assert session.run("x;").result == "3"
    assert session.run("'浦语'").result == "'浦语'"
    assert session.run("%matplotlib inline\ndisplay([x])").stdout == "[3]\n"
    assert session.run("from __future__ import annotations").status == "ok"
    assert session.run("def f(a: nowhere): pass").error is not None  # a cell's future is its own


def test_errors_are_shown_from_the_cell_on(session: Session):
    session.run("def f():\n    return 1 / 0")
    cell = session.run("print('before')\nf()")
    assert (cell.status, cell.stdout) == ("error", "before\n")
    assert cell.error is not None
    assert [line for line in cell.error.splitlines() if "^" not in line] == [
        "Traceback (most recent call last):",
        '  File "<cell 2>", line 2, in <module>', "    f()",
        '  File "<cell 1>", line 2, in f', "    return 1 / 0",
        "ZeroDivisionError: division by zero",
    ]  # fmt: skip
    error = session.run("1 +").error
    assert error is not None and "SyntaxError" in error and "inside" not in error
    for bad in (
        "\0",
        "'\ud800'.encode()",
        "raise SystemExit(0)",
        "exit()",
        "class E(Exception):\n  __str__ = None\nraise E",
    ):
        assert session.run(bad).status == "error", bad
    assert session.run("1").result == "1"


def test_output_of_other_processes_and_both_streams_are_captured(session: Session):
    cell = session.run(
        "import subprocess, sys, os\nsubprocess.run(['echo', 'a'])\nos.write(1, b'b\\xff')\nsys.stderr.write('c');"
    )
    assert (cell.stdout, cell.stderr) == ("a\nb\ufffd", "c")
    assert session.run("input()").status == "error"


def test_output_is_capped_and_each_cell_has_its_own():
    with Session(packages=False, limits=Limits(output_bytes=100)) as session:
        cell = session.run("print('y' * 1000000)\n'z' * 1000")
        assert cell.stdout_truncated and not cell.stderr_truncated and len(cell.stdout) < 150
        assert cell.result is not None and len(cell.result) == 103
        assert session.run("print(1)").stdout == "1\n"


@pytest.mark.parametrize(
    "code",
    ["while True: pass", "import time; time.sleep(1000)", "import subprocess; subprocess.run(['sleep', '1000'])"],
)
def test_a_cell_that_takes_too_long_is_interrupted_and_the_session_goes_on(session: Session, code: str):
    session.run("x = 3")
    cell = session.run(code, seconds=0.3)
    assert cell.status == "timeout" and cell.error is not None and "KeyboardInterrupt" in cell.error
    assert session.run("x").result == "3"


def test_a_session_that_cannot_be_interrupted_is_killed_and_says_so(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("puyulm.sandbox.session.GRACE", 0.2)
    with Session(packages=False) as session:
        pids = processes.descendants(session._room._process.pid)
        cell = session.run("import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: pass", seconds=0.2)
        assert cell.status == "timeout" and cell.error is not None and "Its state is lost" in cell.error
        assert not session.alive and pids
        assert not any(processes._read(f"/proc/{pid}/status") for pid in pids)
        with pytest.raises(SandboxError, match="start another"):
            session.run("1")
        with pytest.raises(SandboxError, match="start another"):
            session.files()


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("import os; os._exit(0)", "dead"),
        ("import ctypes; ctypes.string_at(0)", "dead"),
        ("import os\nfor fd in range(3, 1024):\n  try: os.write(fd, b'[1]\\n')\n  except OSError: pass", "dead"),
        ("import os\nwhile True:\n  for fd in range(3, 1024):\n    try: os.write(fd, b'x' * 65536)\n"
         "    except OSError: pass", "dead"),
        ("import os, time\nfor _ in range(6):\n  if os.fork() == 0: break\n"
         "x = bytearray(os.urandom(1 << 20)) * 60\ntime.sleep(60)", "memory"),
    ],
)  # fmt: skip
def test_a_session_that_dies_says_so(code: str, status: str):
    with Session(packages=False, limits=Limits(memory=200 << 20, seconds=20)) as session:
        session.run("print('earlier')")
        cell = session.run(f"print('last', flush=True)\n{code}")
        assert cell.status == status and cell.stdout.startswith("last") and not session.alive
        assert cell.error is not None and cell.error.startswith("The session has ended: ")


def test_a_lack_of_memory_is_an_error_like_others():
    with Session(packages=False, limits=Limits(memory=200 << 20)) as session:
        assert session.run("x = bytearray(400 << 20)").status == "memory"
        assert session.run("1").result == "1"


def test_a_cell_can_be_interrupted_from_another_thread(session: Session):
    session.run("x = 1")
    session.interrupt()  # between cells nothing happens
    timer = threading.Timer(0.3, session.interrupt)
    timer.start()
    cell = session.run("while True: pass")
    timer.join()
    assert cell.status == "error" and cell.error is not None and "KeyboardInterrupt" in cell.error
    assert session.run("x").result == "1"


def test_files_go_in_and_out(session: Session):
    session.write("data/in.bin", b"\x00\xff")
    assert session.run("open('out.txt', 'w').write(str(open('data/in.bin', 'rb').read()))").result == "11"
    assert session.files() == ["data/in.bin", "out.txt"]
    assert session.read("out.txt") == b"b'\\x00\\xff'"
    with pytest.raises(SandboxError, match=r"'none': No such file"):
        session.read("none")
    with pytest.raises(SandboxError, match="home folder"):
        session.write("/etc/x", b"")
    with pytest.raises(SandboxError, match="longer than"):
        session.read("/dev/zero")
    with Session(packages=False, files={"a.txt": "b"}) as other:
        assert other.read("a.txt") == b"b"


def test_a_session_may_be_made_and_used_in_different_threads():
    made: list[Session] = []
    thread = threading.Thread(target=lambda: made.append(Session(packages=False)))
    thread.start()
    thread.join()
    with made[0] as session:
        assert session.run("1 + 1").result == "2"


def test_closing_ends_everything_and_can_be_repeated():
    session = Session(packages=False)
    session.run("import subprocess; p = subprocess.Popen(['sleep', '1000'])")
    pids = processes.descendants(session._room._process.pid)
    assert len(pids) == 3 and session.alive
    session.close()
    session.close()
    session.interrupt()
    assert not session.alive
    wait_until(lambda: not any(processes._read(f"/proc/{pid}/status") for pid in pids))
    with pytest.raises(SandboxError, match="it was closed"):
        session.run("1")


def test_a_fork_of_a_cell_does_not_answer_in_its_place(session: Session):
    assert session.run("import os\npid = os.fork()\nos.waitpid(pid, 0) if pid else None\npid > 0").result == "True"
    assert session.run("2").result == "2"


def test_ctrl_c_outside_stops_the_cell_and_the_session_goes_on(session: Session):
    session.run("x = 1")
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # of jobs in the background it may be ignored
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            session.run("while True: pass")
        timer.join()
    finally:
        signal.signal(signal.SIGINT, before)
    assert session.run("x").result == "1"


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="matplotlib is not installed")
def test_figures_are_captured():
    with Session(limits=Limits(seconds=60, memory=4 << 30)) as session:
        cell = session.run("import matplotlib.pyplot as plt\nplt.plot([1, 2]);\nplt.show()")
        assert cell.status == "ok" and cell.stderr == "" and [one[:4] for one in cell.images] == [b"\x89PNG"]
        assert session.run("1").images == ()
