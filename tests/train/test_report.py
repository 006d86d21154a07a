"""The page about runs: what is read, drawn and compared."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from puyulm.cli import main
from puyulm.errors import TrainError
from puyulm.train.report.charts import axes, charts, marks
from puyulm.train.report.curves import smooth, thin
from puyulm.train.report.page import render, write_report
from puyulm.train.report.runs import Run, load_runs
from puyulm.train.report.summary import as_text, differences, summary
from tests.train.runs import measure, run


def write_run(
    folder: Path, steps: int = 40, total: int | None = 40, recipe: str = "settings: {lr: 0.1, seed: 1}\nout: a\n",
    **changes: Any,
) -> Path:  # fmt: skip
    """A run of two phases and two sources in which step 7 was not taken."""
    folder.mkdir(parents=True)
    with (folder / "metrics.jsonl").open("w") as file:
        for step in range(1, steps + 1):
            row = {
                "step": step, "tokens": 100 * step, "lr": 0.1, "loss": 10 / step, "grad_norm": 1.0, "targets": 90,
                "phase": "4k" if step <= 20 else "32k", "bits_per_byte": 5 / step, "tokens_per_second": 50.0,
                "mfu": 0.5, "mfu_causal": 0.4, "memory_gib": 2.0, "seconds": 2.0, "data_seconds": 0.5,
                "sources": {"web": 2.0, "code": None if step == 3 else 1.0}, "source_targets": {"web": 60, "code": 30},
            }  # fmt: skip
            if step == 7:
                row |= {"skipped": True, "loss": None, "grad_norm": 1e6}
            file.write(json.dumps(row | changes) + "\n")
    with (folder / "validation.jsonl").open("w") as file:
        for step, value in ((10, 3.0), (20, 1.5), (30, 2.5)):
            file.write(
                json.dumps({"step": step, "tokens": 100 * step, "loss": value, "bits_per_byte": value / 2}) + "\n"
            )
    with (folder / "events.jsonl").open("w") as file:
        begun = {"steps": total, "device": "8 x H100"}
        for step, kind, facts in (
            (5, "skipped", {}), (0, "start", begun | {"device": "CPU"}), (7, "skipped", {}),
            (10, "checkpoint", {"epochs": {"d/web": 0.5, "d/code": 1.25}}), (9, "resume", begun), (12, "rollback", {}),
        ):  # fmt: skip
            row = {"step": step, "kind": kind, "text": f"{kind} at {step}", "time": "2026-01-02T03:04:05+00:00"}
            file.write(json.dumps(row | facts) + "\n")
    (folder / "recipe.yaml").write_text(recipe)
    return folder


def one(folder: Path, **changes: Any) -> Run:
    return load_runs([write_run(folder, **changes)])[0]


def lines(drawn: list[dict[str, Any]], chart: str) -> dict[tuple[int, str], dict[str, Any]]:
    (found,) = [one for one in drawn if one["id"] == chart]
    return {(line["run"], line["label"]): line for line in found["lines"]}


def embedded(page: str) -> Mapping[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found is not None
    return dict(json.loads(found[1]))


def test_figures_of_a_run(tmp_path: Path) -> None:
    facts = summary(one(tmp_path / "a"))
    assert facts["state"] == "finished" and facts["steps"] == "40" and facts["tokens"] == "4,000"
    assert facts["training time"] == "1 min 20 s"
    assert facts["best validation, bits per byte"] == "0.7500 at step 20"
    assert facts["last validation, loss"] == "2.5000 at step 30"
    assert facts["MFU (PaLM)"] == "50.0 %" and facts["MFU (causal)"] == "40.0 %" and facts["tokens/s"] == "50"
    assert facts["waiting for data"] == "25.0 %" and facts["memory, at most"] == "2.0 GiB"
    assert facts["steps not taken"] == "1" and facts["went back"] == "1" and facts["resumed"] == "1"
    assert facts["on"] == "8 x H100" and facts["epochs"] == "web 0.50, code 1.25"


def test_means_of_speeds_are_over_time_and_without_first_steps(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", steps=4)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for row, seconds, mfu in zip(rows, (100.0, 1.0, 3.0, 4.0), (0.01, 0.8, 0.4, 0.4), strict=True):
        row |= {"seconds": seconds, "mfu": mfu}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert summary(load_runs([folder])[0])["MFU (PaLM)"] == f"{100 * (0.8 + 1.2 + 1.6) / 8:.1f} %"


def test_a_run_still_going_on_and_a_damaged_end(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a", steps=30)
    with (folder / "metrics.jsonl").open("ab") as file:
        file.write(b'{"step": 31, "tok')
    (run,) = load_runs([folder])
    assert run.step[-1] == 30 and summary(run)["state"] == "running" and summary(run)["steps"] == "30 of 40"
    os.utime(folder / "metrics.jsonl", (1e9, 1e9))
    assert summary(load_runs([folder])[0])["state"] == "stopped"


def test_folders_that_are_no_runs(tmp_path: Path) -> None:
    with pytest.raises(TrainError, match="it has no metrics"):
        load_runs([tmp_path])
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "to')
    with pytest.raises(TrainError, match="no steps yet"):
        load_runs([tmp_path])


def test_a_run_with_the_least_there_can_be(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "tokens": 5, "loss": null}\n')
    runs = load_runs([tmp_path])
    assert summary(runs[0])["steps"] == "1" and "MFU (PaLM)" not in summary(runs[0])
    page = render(runs)
    assert embedded(page)["charts"] == [] and "no recipe.yaml" in page


def test_what_is_drawn(tmp_path: Path) -> None:
    run = one(tmp_path / "a")
    drawn = charts([run])
    assert [chart["id"] for chart in drawn] == [
        "loss", "bits", "lr", "norm", "speed", "mfu", "time", "memory", "sources"]  # fmt: skip
    loss = lines(drawn, "loss")
    assert loss[0, "each step"]["x"] == [step for step in range(1, 41) if step != 7]
    assert loss[0, "validation"]["x"] == [10, 20, 30] and loss[0, "validation"]["y"] == [3.0, 1.5, 2.5]
    norm = lines(drawn, "norm")
    assert max(norm[0, "each step"]["y"]) == 1e6 and max(norm[0, "smoothed"]["y"]) == 1.0  # not taken: no part of means
    assert lines(drawn, "mfu")[0, "PaLM"]["y"][0] == 50
    sources = lines(drawn, "sources")
    assert {key: line["c"] for key, line in sources.items()} == {(0, "web"): 0, (0, "code"): 1}
    assert run.phases == [("4k", 1, 20), ("32k", 21, 40)]
    assert [mark["kind"] for mark in marks(run)] == ["skipped", "checkpoint", "resume", "rollback"]


def test_other_axes(tmp_path: Path) -> None:
    found = axes(one(tmp_path / "a"))
    assert found["step"][0] == found["tokens"][0] == found["hours"][0] == 0
    assert found["tokens"] == [100 * step for step in found["step"]]
    assert found["hours"][-1] == pytest.approx(80 / 3600, rel=1e-4)


def test_runs_are_compared(tmp_path: Path) -> None:
    first = write_run(tmp_path / "x" / "small" / "run")
    second = write_run(tmp_path / "x" / "large" / "run", recipe="settings: {lr: 0.2, seed: 1}\nout: b\nmodel: big\n")
    runs = load_runs([first, second])
    assert [run.name for run in runs] == ["small", "large"]
    assert differences(runs) == [["settings.lr", "0.1", "0.2"], ["model", "-", "big"]]
    text = as_text(runs)
    assert text.splitlines()[0].split() == ["small", "large"] and "settings.lr  0.1  0.2" in text
    drawn = charts(runs)
    assert set(lines(drawn, "lr")) == {(0, "learning rate"), (1, "learning rate")}
    assert {chart["title"] for chart in drawn} >= {"Loss on web", "Loss on code"}
    page = render(runs)
    assert page.count('class="runkey') == 2 and "<td>0.2</td>" in page and len(embedded(page)["runs"]) == 2


def test_nothing_in_a_run_becomes_part_of_the_page(tmp_path: Path) -> None:
    bad = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"
    folder = write_run(tmp_path / "a", phase=bad, recipe=f"out: '{bad}'\n")
    with (folder / "events.jsonl").open("a") as file:
        file.write(json.dumps({"step": 3, "kind": "note", "text": bad}) + "\n")
    page = render(load_runs([folder]))
    assert "<img" not in page and page.count("<script") == 2 and page.count("</script>") == 2
    assert embedded(page)["runs"][0]["marks"][-1]["text"] == bad
    assert "http://" not in page.replace("http://www.w3.org/2000/svg", "") and "https://" not in page


def test_thinning_keeps_what_stands_out() -> None:
    values = np.sin(np.arange(100_000) / 5000)
    values[[12_345, 77_777]] = 50, -50
    values[500] = math.nan
    kept = thin(values, 1000)
    assert len(kept) <= 1003 and {12_345, 77_777, 0, 99_999} <= set(kept.tolist()) and 500 not in kept
    assert (np.diff(kept) > 0).all()
    assert thin(np.array([1.0, math.nan, 2.0]), 1000).tolist() == [0, 2]
    assert thin(np.full(3, math.nan)).tolist() == []


def test_smoothing_is_a_weighted_mean_of_what_is_around() -> None:
    values = np.arange(1000, dtype=float)
    values[300] = math.nan
    found = smooth(values)
    assert found[500] == pytest.approx(500) and found[0] == 0 and found[2] == 2
    weights = np.ones(1000)
    weights[500] = 1e9
    assert smooth(values, weights)[495] == pytest.approx(500, rel=1e-6)
    around = [value for value in range(290, 311) if value != 300]
    assert found[300] == pytest.approx(np.mean(around))
    assert np.isnan(smooth(np.full(4, math.nan))).all()


def test_a_long_run_makes_a_small_page(tmp_path: Path) -> None:
    page = render([one(tmp_path / "a", steps=20_000, total=20_000)])
    assert len(page) < 600_000
    assert all(len(line["x"]) <= 2003 for chart in embedded(page)["charts"] for line in chart["lines"])


def test_the_verb(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """On runs of the loop itself."""
    run(tmp_path / "one", steps=6, validate=measure, eval_every=3)
    run(tmp_path / "two", steps=4, lr=1e-3)
    assert main(["report", str(tmp_path / "one")]) == 0
    printed = capsys.readouterr().out
    assert "best validation, loss" in printed and f"written to {tmp_path}/one/report.html" in printed
    page = (tmp_path / "one" / "report.html").read_text()
    assert {line["label"] for line in embedded(page)["charts"][0]["lines"]} == {"each step", "smoothed", "validation"}
    monkeypatch.chdir(tmp_path)
    assert main(["report", "one", "two"]) == 0
    assert len(embedded((tmp_path / "report.html").read_text())["runs"]) == 2
    assert main(["report", "one", "--out", str(tmp_path / "two")]) == 2 and "is a folder" in capsys.readouterr().err
    assert main(["report", "nowhere"]) == 2 and "no metrics.jsonl" in capsys.readouterr().err


def test_writing_replaces_the_page_in_one_go(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "a")
    (tmp_path / "page.html").write_text("old")
    assert write_report([folder], tmp_path / "page.html")[0].name == "a"
    assert (tmp_path / "page.html").read_text().startswith("<!doctype html>")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "page.html"]
