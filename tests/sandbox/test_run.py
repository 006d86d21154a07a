"""Programs, well-behaved and hostile, in real sandboxes."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from puyulm.errors import SandboxError
from puyulm.sandbox import Limits, Outcome, Program, processes, run_many, run_python
from puyulm.sandbox.room import Room
from tests.waiting import wait_until

pytestmark = pytest.mark.usefixtures("sandbox")
SHORT = Limits(seconds=0.5)


def running(marker: str) -> bool:
    """Whether a process outside or inside has this in its arguments."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if marker.encode() in (folder / "cmdline").read_bytes().split(b"\0"):
                return True
        except OSError:
            continue
    return False


def trying(*statements: str) -> Outcome:
    """Runs each; prints 'no' for those that fail as the system refuses."""
    code = "import os, socket, ctypes\n"
    for statement in statements:
        code += f"try:\n    {statement}\n    print('yes', {statement!r})\nexcept OSError: print('no')\n"
    return run_python(code)


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Processes of sandboxes at the time when they are closed."""
    pids: list[int] = []
    close = Room.close

    def noting(self: Room) -> None:
        pids.extend(processes.descendants(self._process.pid))
        close(self)

    monkeypatch.setattr(Room, "close", noting)
    return pids


def gone(pids: list[int]) -> bool:
    return not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_output_input_and_exit_code():
    outcome = run_python("import sys\nprint(input() + '!')\nsys.stderr.write('e')\nsys.exit(3)", stdin="浦语\n")
    assert (outcome.status, outcome.exit_code, outcome.stdout, outcome.stderr) == ("error", 3, "浦语!\n", "e")
    assert run_python("print(__name__); exit()").stdout == "__main__\n"


def test_no_input_is_the_end_of_the_file():
    assert "EOFError" in run_python("input()").stderr
    assert run_python("import os; os.close(0); os.close(1); os.close(2)").status == "ok"


def test_files_can_be_read_and_imported():
    files = {"data/a.bin": b"\x00\xff", "helper.py": "value = 7"}
    outcome = run_python("import helper; print(open('data/a.bin', 'rb').read(), helper.value)", files=files)
    assert outcome.stdout == "b'\\x00\\xff' 7\n"


def test_an_exception_is_shown_with_the_programs_lines_alone():
    outcome = run_python("def f():\n    raise ValueError('x')\nf()\n")
    assert outcome.status == "error" and outcome.exit_code == 1
    assert outcome.stderr == (
        'Traceback (most recent call last):\n  File "<program>", line 3, in <module>\n    f()\n'
        "  File \"<program>\", line 2, in f\n    raise ValueError('x')\nValueError: x\n"
    )


def test_what_cannot_be_shown_is_an_error_nevertheless():
    assert run_python("import os; os.close(2); 1 / 0").status == "error"
    assert run_python("class E(Exception): __str__ = None\nraise E").status == "error"
    outcome = run_python("import os\ndef f(): os.close(2); 1 / 0", tests=["f()", "pass"])
    assert (outcome.status, outcome.passed) == ("failed", (False, True))


def test_dataclasses_with_text_annotations_and_forks_work():
    code = """
from __future__ import annotations
import os, multiprocessing
from dataclasses import dataclass
@dataclass
class A:
    x: int
def double(x): return 2 * x
with multiprocessing.Pool(2) as pool: print(pool.map(double, [1, 2]), A(1), flush=True)
if os.fork() == 0: raise SystemExit(0)
os.wait()
"""
    assert run_python(code).stdout == "[2, 4] A(x=1)\n"


# What tests pass, and what does not


def test_every_test_is_judged():
    outcome = run_python("def f(x): return x + 1", tests=["assert f(1) == 2", "assert f(2) == 2", "f(3)"])
    assert (outcome.status, outcome.passed) == ("failed", (True, False, True))
    assert "AssertionError" in outcome.stderr and "assert f(2) == 2" in outcome.stderr
    assert run_python("def f(x): return x", tests="assert f(1) == 1").status == "ok"


@pytest.mark.parametrize(
    "code",
    [
        "import sys; sys.exit(0)",
        "import os; os._exit(0)",
        "raise SystemExit",
        "exit(0)",
        "import os\nif os.fork(): os._exit(0)",
        "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
        "import os, sys\nfor fd in range(3, 20):\n  try: os.write(fd, b'ok\\n')\n  except OSError: pass\nos._exit(0)",
        "import os\nfor n in range(20):\n  try: os.write(n, b'ready\\n' + b'0' * 32 + b' ok')\n  except OSError: pass",
        "import os; os.closerange(3, 100)",
        "import builtins, os\nbuiltins.exec = builtins.compile = os.getpid = lambda *a, **k: 0",
        "raise ValueError",
        "while True: pass",
        "def f(:",
        "a = '\0'",
        "\ud800",
    ],
)
def test_leaving_or_pretending_passes_nothing(code: str):
    outcome = run_python(code, tests="assert False", limits=SHORT)
    assert outcome.status != "ok" and not any(outcome.passed)


def test_leaving_within_a_test_fails_it():
    assert run_python("def f(): exit(0)", tests=["f()", "pass"]).passed == (False, True)
    outcome = run_python("import os\ndef f(): os._exit(0)", tests=["pass", "f()"])
    assert (outcome.status, outcome.passed) == ("exit", ())


def test_large_tests_and_codes_go_in():
    blob = "x" * (3 << 20)
    assert run_python(f"a = '{blob}'", tests=[f"assert a == '{blob}'"]).status == "ok"


def test_the_same_program_has_the_same_verdict():
    outcomes = run_many([Program("print(hash('a'), list({'a', 'b', 'c', 'd'}))")] * 3)
    assert len({one.stdout for one in outcomes}) == 1


# What a program cannot do


def test_nothing_can_be_written_outside_its_own_folders():
    outcome = trying(
        "open('/usr/x', 'w')", "open('/x', 'w')", "os.mkdir('/home/other')", "open('/etc/x', 'w')",
        "open('/proc/sys/kernel/hostname', 'w').write('x')", "open('/dev/x', 'w')", "os.remove('/usr/bin/env')",
        "os.chmod('/usr', 0o777)",
    )  # fmt: skip
    assert outcome.stdout == "no\n" * 8
    assert trying(*(f"open('{place}/x', 'w')" for place in ("/tmp", ".", "/dev/shm"))).stdout.count("yes") == 3


def test_nothing_of_the_host_can_be_read(tmp_path):
    (tmp_path / "secret").write_text("x")
    project = Path(__file__).resolve().parents[2]
    outcome = trying(
        "open('/etc/shadow')", "open('/etc/passwd')", f"os.listdir('{tmp_path}')", f"open('{project}/pyproject.toml')",
        f"open('{Path.home()}/.bashrc')", "os.listdir('/var')", "os.listdir('/sys/kernel')", "os.listdir('/run')",
    )  # fmt: skip
    assert outcome.stdout == "no\n" * 8


def test_the_environment_is_clear(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("API_KEY", "hidden-value")
    code = "import glob\nfor name in glob.glob('/proc/*/environ'): print(open(name).read())"
    outcome = run_python(code)
    assert outcome.status == "ok" and "HOME=/home/user" in outcome.stdout and "hidden-value" not in outcome.stdout


def test_it_sees_no_other_processes_and_has_no_rights():
    code = """
import os
print(len([name for name in os.listdir('/proc') if name.isdigit()]), os.getuid())
print([line.split()[1] for line in open('/proc/self/status') if line.startswith(('CapEff', 'NoNewPrivs'))])
"""
    assert run_python(code).stdout == "2 1000\n['0000000000000000', '1']\n"
    assert (
        trying("assert ctypes.CDLL(None).unshare(0x10000000) == 0 or os.stat('/no')").stdout == "no\n"
    )  # CLONE_NEWUSER


def test_there_is_no_network():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        outcome = trying(
            f"socket.create_connection(('127.0.0.1', {port}), 2)", "socket.create_connection(('1.1.1.1', 53), 2)",
            "socket.getaddrinfo('example.org', 80)",
            "socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('8.8.8.8', 53))",
            "print(sorted(name for _, name in socket.if_nameindex()))",
        )  # fmt: skip
    assert outcome.stdout.startswith("no\nno\nno\nno\n['lo']\n")


# What a program may use


def test_a_loop_is_ended(seen: list[int]):
    outcome = run_python("while True: pass", limits=SHORT)
    assert (outcome.status, outcome.exit_code) == ("timeout", None) and outcome.seconds >= 0.5
    assert len(seen) == 2
    wait_until(lambda: gone(seen))


def test_processor_time_is_bounded():
    outcome = run_python("while True: pass", limits=Limits(seconds=30, cpu_seconds=1))
    assert outcome.status == "timeout" and outcome.exit_code == 128 + 24


def test_signals_cannot_be_ignored(seen: list[int]):
    code = """
import signal
for n in range(1, 65):
    try: signal.signal(n, signal.SIG_IGN)
    except (OSError, ValueError): pass
while True: pass
"""
    assert run_python(code, limits=SHORT).status == "timeout"
    wait_until(lambda: gone(seen))


@pytest.mark.parametrize("catch", [True, False])
def test_a_fork_bomb_stops_at_the_limit(seen: list[int], catch: bool):
    bomb = "import os\nwhile True:\n"
    bomb += "  try: os.fork()\n  except OSError: pass\n" if catch else "  os.fork()\n"
    outcome = run_python(bomb, limits=Limits(seconds=0.5, processes=8))
    assert outcome.status in (("timeout",) if catch else ("timeout", "error"))
    assert not catch or 5 <= len(seen) <= 9
    wait_until(lambda: gone(seen))  # of a program that has ended itself, the rest dies a little later


def test_processes_are_counted_for_each_sandbox_alone():
    code = """
import os, time
for _ in range(15):
    if os.fork() == 0:
        time.sleep(0.4)
        os._exit(0)
for _ in range(15): os.wait()
"""
    outcomes = run_many([Program(code)] * 4, limits=Limits(processes=20), workers=4)
    assert [one.status for one in outcomes] == ["ok"] * 4


def test_memory_is_bounded_for_each_process():
    outcome = run_python("x = bytearray(400 << 20)", limits=Limits(memory=200 << 20))
    assert outcome.status == "memory" and "MemoryError" in outcome.stderr


def test_memory_is_bounded_for_all_together(seen: list[int]):
    code = """
import os, time
for _ in range(6):
    if os.fork() == 0: break
x = bytearray(os.urandom(1 << 20)) * 60
time.sleep(60)
"""
    outcome = run_python(code, limits=Limits(memory=200 << 20, seconds=20))
    assert outcome.status == "memory"
    wait_until(lambda: gone(seen))


def test_memory_that_forks_share_counts_once():
    code = "import os, time\nx = b'x' * (60 << 20)\nfor _ in range(6):\n  if os.fork() == 0: break\ntime.sleep(0.5)"
    assert run_python(code, limits=Limits(memory=200 << 20)).status == "ok"


def test_files_are_bounded():
    code = "f = open('/tmp/big', 'wb', buffering=0)\nwhile True: assert f.write(bytes(1 << 20)) == 1 << 20"
    outcome = run_python(code, limits=Limits(disk=4 << 20))
    assert outcome.status == "error"
    code = "for i in range(9): open(f'/dev/shm/{i}', 'wb').write(bytes(1 << 20))"
    outcome = run_python(code, limits=Limits(disk=4 << 20))
    assert outcome.status == "error" and "No space left" in outcome.stderr


def test_endless_output_is_dropped_and_does_not_block():
    code = "import os\nline = b'y' * 65536\nfor _ in range(4000): os.write(1, line)\nos.write(2, b'end')"
    outcome = run_python(code, limits=Limits(seconds=30, output_bytes=1000))
    assert outcome.status == "ok" and outcome.stdout_truncated and not outcome.stderr_truncated
    assert len(outcome.stdout) < 1100 and f"{4000 * 65536 - 1000} bytes left out" in outcome.stdout
    outcome = run_python("while True: print('y' * 1000)", limits=SHORT)
    assert outcome.status == "timeout" and outcome.stdout_truncated


def test_output_that_is_not_utf8_is_replaced():
    assert run_python("import os; os.write(1, b'a\\xff\\x00b')").stdout == "a\ufffd\x00b"


def test_deep_recursion_is_an_error_or_a_fault():
    assert "RecursionError" in run_python("def f(): f()\nf()").stderr
    outcome = run_python("import ctypes; ctypes.string_at(0)")
    assert outcome.status == "killed" and outcome.exit_code == 128 + 11


def test_daemons_and_zombies_are_gone_afterwards():
    marker = f"31536000.{os.getpid()}"
    code = f"""
import os, subprocess
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.closerange(0, 100)
        os.execv('/usr/bin/sleep', ['sleep', '{marker}'])
    os._exit(0)
while not any('{marker}' in open(f'/proc/{{pid}}/cmdline').read() for pid in os.listdir('/proc') if pid.isdigit()): pass
print('begun')
"""
    outcome = run_python(code)
    assert (outcome.status, outcome.stdout) == ("ok", "begun\n")
    wait_until(lambda: not running(marker))


def test_fifty_at_a_time():
    done: list[int] = []
    lock = threading.Lock()

    def note(place: int, outcome: Outcome) -> None:
        with lock:
            done.append(place)

    programs = [Program(f"print({i})", (f"assert {i} % 5",), stdin=str(i)) for i in range(50)]
    outcomes = run_many(programs, workers=50, on_done=note, limits=Limits(seconds=60))
    assert [one.stdout for one in outcomes] == [f"{i}\n" for i in range(50)]
    assert [one.status == "ok" for one in outcomes] == [bool(i % 5) for i in range(50)]
    assert sorted(done) == list(range(50))


def test_no_descriptors_are_left_open():
    before = len(os.listdir("/proc/self/fd"))
    run_python("print(1)")
    run_python("while True: pass", limits=Limits(seconds=0.1))
    assert len(os.listdir("/proc/self/fd")) == before


def test_packages_are_seen_only_when_asked_for():
    assert run_python("import numpy").status == "error"
    outcome = run_python("import numpy; print(numpy.arange(3).sum())", packages=True, limits=Limits(seconds=60))
    assert outcome.stdout == "3\n"
    outcome = run_python("import numpy; open(numpy.__file__, 'w')", packages=True, limits=Limits(seconds=60))
    assert outcome.status == "error" and "OSError" in outcome.stderr


def test_another_python_can_be_named():
    python = shutil.which("python3", path="/usr/bin")
    if python is None:
        pytest.skip("no /usr/bin/python3")
    outcome = run_python("import sys; print(sys.executable)", python=python)
    assert outcome.stdout.strip() == os.path.realpath(python)


def test_a_sandbox_that_does_not_start_is_no_outcome(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("puyulm.sandbox.command.HOME", "/proc/1/no")
    with pytest.raises(SandboxError, match=r"did not start: bwrap: .*"):
        run_python("print(1)")


def copied() -> str:
    """The sandbox's code where any user can read it."""
    folder = tempfile.mkdtemp()
    os.chmod(folder, 0o755)
    source = Path(__file__).resolve().parents[2] / "puyulm"
    shutil.copytree(source / "sandbox", f"{folder}/puyulm/sandbox", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(source / "errors.py", f"{folder}/puyulm/errors.py")
    return folder


def test_it_works_for_an_ordinary_user():
    if os.geteuid() != 0:
        pytest.skip("all tests here are an ordinary user's")
    python = shutil.which("python3", path="/usr/bin")
    if python is None or subprocess.run([python, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]).returncode:
        pytest.skip("/usr/bin/python3 is missing, or too old")
    code = (
        "import os; from puyulm.sandbox import Session, check, run_python; check(); assert os.getuid() == 65534\n"
        "print(run_python('def f(): return 1', tests='assert f()').status)\n"
        "print(run_python('open(\"/etc/shadow\")').exit_code)\n"
        "with Session() as s: print(s.run('6 * 7').result, s.run('while True: pass', seconds=0.2).status, s.alive)\n"
    )
    folder = copied()
    try:
        done = subprocess.run(
            ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", python, "-B", "-c", code],
            cwd=folder, env={"PATH": os.environ["PATH"], "HOME": "/nonexistent"}, capture_output=True, text=True,
        )  # fmt: skip
    finally:
        shutil.rmtree(folder)
    assert (done.stdout, done.stderr) == ("ok\n1\n42 timeout True\n", "")


def test_a_killed_parent_takes_its_sandboxes_along():
    marker = f"31536001.{os.getpid()}"
    code = f"""
from puyulm.sandbox import Session
session = Session(packages=False)
session.run("import subprocess; p = subprocess.Popen(['sleep', '{marker}'])")
print("begun", flush=True)
session.run("while True: pass", seconds=3600)
"""
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert parent.stdout is not None and parent.stdout.readline() == "begun\n"
        wait_until(lambda: running(marker))  # a program has arguments only a little after it was begun
        inside = processes.descendants(parent.pid)
        assert len(inside) >= 4
    finally:
        parent.kill()
        parent.communicate()
    wait_until(lambda: gone(inside) and not running(marker))


def test_a_sandbox_outlives_the_thread_that_asked_for_it_but_not_its_own_end():
    begin = time.monotonic()
    results: list[Outcome] = []
    thread = threading.Thread(target=lambda: results.append(run_python("print(1)")))
    thread.start()
    thread.join()
    assert results[0].stdout == "1\n" and results[0].seconds <= time.monotonic() - begin
