"""What can be tested without starting anything: limits, captures, the command line, paths of files."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from puyulm.errors import SandboxError
from puyulm.sandbox import Limits, Session, check, run_python
from puyulm.sandbox.capture import Capture
from puyulm.sandbox.command import command, reachable
from puyulm.sandbox.python import Python, find_python
from puyulm.sandbox.room import _advice, checked_files

SYSTEM = Python("/usr/bin/python3", (), ())


@given(st.lists(st.binary(max_size=40)), st.integers(1, 60))
def test_a_capture_keeps_the_beginning_and_the_end(chunks: list[bytes], limit: int):
    capture, whole = Capture(limit), b"".join(chunks)
    for chunk in chunks:
        capture.feed(chunk)
    assert capture.truncated == (len(whole) > limit)
    if len(whole) <= limit:
        assert capture.text() == whole.decode("utf-8", "replace")
    else:
        head, tail = whole[: (limit + 1) // 2], whole[len(whole) - limit // 2 :]
        note = f"\n[... {len(whole) - limit} bytes left out ...]\n"
        assert capture.text() == head.decode("utf-8", "replace") + note + tail.decode("utf-8", "replace")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seconds", 0),
        ("seconds", float("nan")),
        ("memory", 1.5),
        ("processes", -1),
        ("disk", True),
        ("cpu_seconds", "1"),
    ],
)
def test_limits_that_make_no_sense_are_refused(name: str, value: object):
    with pytest.raises(SandboxError, match=name):
        Limits(**{name: value})


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")


def test_root_drops_its_rights_before_limits_are_set_and_the_sandbox_begins(installed: None):
    words = command(SYSTEM, Limits(), 10, root=True)
    places = [words.index(f"/usr/bin/{name}") for name in ("setpriv", "prlimit", "bwrap", "python3")]
    assert places == sorted(places) and places[0] == 0
    assert words[1:5] == ["--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs"]
    assert {"--unshare-all", "--disable-userns", "--die-with-parent", "--new-session", "--clearenv"} <= set(words)
    assert not any(word.startswith("--nproc") for word in words)  # it is set inside: it would count other sandboxes


def test_an_ordinary_user_has_no_rights_to_drop(installed: None):
    words = command(SYSTEM, Limits(memory=12345), 1.5, root=False)
    assert words[0] == "/usr/bin/prlimit" and "--as=12345" in words and "--cpu=2:3" in words
    assert "/usr/bin/setpriv" not in words


def test_no_processor_limit_where_none_is_asked_for(installed: None):
    assert not any(word.startswith("--cpu") for word in command(SYSTEM, Limits(), None, root=False))


def test_folders_that_only_root_reaches_are_bound_before_rights_are_dropped(installed: None, tmp_path):
    private, public = tmp_path / "private", tmp_path / "public"
    for folder in (private, public):
        folder.mkdir()
    private.chmod(0o700)
    assert not reachable(str(private)) and reachable("/usr/bin")
    python = Python("/usr/bin/python3", ((str(private), "/shown"), ("/usr/bin", "/also")), ())
    words = command(python, Limits(), None, root=True)
    assert words[0] == "/usr/bin/unshare" and words.index(str(private)) < words.index("/usr/bin/setpriv")
    assert words[words.index("/shown") - 1] == "/sys/0" and words[words.index("/also") - 1] == "/usr/bin"
    assert str(private) in command(python, Limits(), None, root=False)


@pytest.mark.parametrize("start", [check, lambda: run_python("print(1)"), Session])
def test_without_bubblewrap_nothing_runs_and_the_message_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path, start
):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SandboxError, match=r"not installed: apt-get install bubblewrap"):
        start()


def test_another_system_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(SandboxError, match="needs Linux"):
        command(SYSTEM, Limits(), None)


@pytest.mark.parametrize("path", ["/etc/x", "../x", "a/../../x", "", "a\0b"])
def test_files_stay_in_the_home_folder(path: str):
    with pytest.raises(SandboxError, match="home folder"):
        checked_files({path: ""}, Limits())


def test_files_fit_the_disk():
    assert checked_files({"a/b": "é", "c": b"\xff"}, Limits()) == {"a/b": "é".encode(), "c": b"\xff"}
    with pytest.raises(SandboxError, match="disk"):
        checked_files({"a": b"12345"}, Limits(disk=4))


def test_an_interpreter_that_does_not_run_is_refused():
    with pytest.raises(SandboxError, match="name another"):
        find_python("/no/such/python", False)


def test_an_interpreter_installed_over_a_home_is_refused(tmp_path, monkeypatch: pytest.MonkeyPatch):
    home = tmp_path / "all" / "me"
    monkeypatch.setenv("HOME", str(home))
    fake = tmp_path / "python"
    fake.write_text(f'#!/bin/sh\necho \'["{tmp_path}/all/bin/python", ["{tmp_path}/all"], []]\'\n')
    fake.chmod(0o755)
    with pytest.raises(SandboxError, match="would show"):
        find_python(str(fake), False)


def test_refusals_of_the_system_are_explained():
    assert "user.max_user_namespaces" in _advice("bwrap: No permissions to create new namespace")
    assert "apparmor" in _advice("bwrap: setting up uid map: Permission denied")
    assert "systempaths" in _advice("bwrap: Can't mount proc on /newroot/proc: Operation not permitted")
    assert "0.8.0" in _advice("bwrap: Unknown option --disable-userns")
    assert _advice("something else") == ""
