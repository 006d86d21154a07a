"""Progress where there is no terminal: plain lines, now and then."""

from __future__ import annotations

import pytest

from puyulm import progress as module
from puyulm.progress import Progress


def test_lines_come_at_intervals_and_say_how_far(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    with Progress("training", total=40, unit="step", initial=10) as progress:
        progress.advance(5)
        assert capsys.readouterr().err == ""
        now[0] += 10
        progress.advance(5, note="loss 1.5")
        assert capsys.readouterr().err == "training: 20 of 40 step (50 %), 1 step/s, 20 s left, loss 1.5\n"
        now[0] += 9
        progress.advance(5)
        assert capsys.readouterr().err == ""
        progress.write("a line")
        assert capsys.readouterr().err == "a line\n"


def test_bytes_are_scaled(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    with Progress("reading", total=2_000_000_000, unit="B") as progress:
        now[0] += 10
        progress.advance(500_000_000)
    assert capsys.readouterr().err == "reading: 500 MB of 2.00 GB (25 %), 50 MB/s, 30 s left\n"
