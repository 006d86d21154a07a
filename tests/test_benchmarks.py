"""The benchmark harness: what a row says, and what the file holds. No speed is asserted."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from benchmarks import harness


def test_ratios_are_above_one_where_ours_is_better(monkeypatch: pytest.MonkeyPatch):
    clock = itertools.count()
    monkeypatch.setattr(harness.time, "perf_counter", lambda: now[0])
    now = [0.0]

    def lasts(seconds: float):
        def action() -> None:
            next(clock)
            now[0] += seconds

        return action

    row = harness.throughput("step", "tok/s", 100, lasts(2.0), lasts(3.0), "peer", 1.2, pairs=5)
    assert (row.ours, row.ratio) == (50.0, 1.5)
    assert row.peer == pytest.approx(100 / 3)
    assert next(clock) == 12  # a warm-up and five runs of each

    row = harness.smaller_is_better("memory", "MB", [(10, 40), (20, 40), (10, 30)], "peer", 4.0)
    assert (row.ours, row.peer, row.ratio) == (10, 40, 3)


def test_the_file_and_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    rows = [harness.Row("a", "s", 1.0, 2.0, "peer", 2.0, 1.5), harness.missing("b", "s", "peer>=1", None)]
    harness.write_json(tmp_path / "out.json", rows)
    content = json.loads((tmp_path / "out.json").read_text())
    assert content["machine"]["cores"] >= 1
    assert content["rows"][0] == {
        "name": "a", "unit": "s", "ours": 1.0, "peer": 2.0, "peer_name": "peer", "ratio": 2.0, "target": 1.5,
    }  # fmt: skip
    assert content["rows"][1]["peer_name"] == "pip install 'peer>=1'"
    harness.print_table(rows)
    table = capsys.readouterr().out.splitlines()
    assert table[1].endswith("ok")
    assert "pip install" in table[2]


def test_a_child_answers_with_json():
    assert harness.in_child("import json, sys; print('noise'); print(json.dumps({'x': len(sys.argv)}))", "a") == {
        "x": 2
    }
    with pytest.raises(RuntimeError, match="no such thing"):
        harness.in_child("raise SystemExit('no such thing')")
