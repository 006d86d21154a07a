"""`puyu eval` as its users meet it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from puyulm.cli import main
from puyulm.eval.benchmarks.mmlu import SUBJECTS
from tests.waiting import wait_until

SOCIAL = [name for name, group in SUBJECTS.items() if group == "social sciences"]
DOCS = Path(__file__).resolve().parents[2] / "docs" / "evaluation.md"
FLAGS = ("--chat-format", "chatml", "--device", "cpu", "--memory", "4MiB", "--max-new-tokens", "6", "--offline")


def evaluate(*words: object) -> int:
    return main(["eval", *map(str, words)])


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Rows of the documentation's own benchmark and of GSM8K."""
    folder = tmp_path / "data"
    for name, rows in {
        "capitals": [{"country": f"Country {n}", "capital": f"Town {n}"} for n in range(12)],
        "gsm8k": [{"question": f"{n} + 1?", "answer": f"#### {n + 1}"} for n in range(40)],
    }.items():
        (folder / name).mkdir(parents=True)
        for role in ("test", "dev", "train"):
            (folder / name / f"{role}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def results(folder: Path) -> dict[str, object]:
    read = json.loads((folder / "results.json").read_text())
    return {one["name"]: (one["scores"], one["data_hash"], one["prompts_hash"]) for one in read["results"]}


def test_the_documented_benchmark(
    checkpoint: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    [code] = re.findall(r"```python\n(# capitals\.py.*?)```", DOCS.read_text(), re.DOTALL)
    assert len(code.splitlines()) <= 40
    (tmp_path / "capitals.py").write_text(code)
    words = (checkpoint, "--tasks", tmp_path / "capitals.py", "--data-dir", data, "--shots", 3, *FLAGS)
    assert evaluate(*words, "--out", tmp_path / "a") == 0
    assert "Capitals" in capsys.readouterr().out
    (tmp_path / "capitals.py").write_text(code.replace("answer == question.target", "True"))
    assert evaluate(*words, "--out", tmp_path / "a") == 0  # what counts has changed: judged anew
    assert "100.0" in capsys.readouterr().out
    assert (tmp_path / "a" / "report.html").is_file() and "capitals" in results(tmp_path / "a")


def test_a_killed_run_goes_on_and_ends_as_an_undisturbed_one(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    words = ["eval", str(checkpoint), "--tasks", "gsm8k", "--data-dir", str(data), "--shots", "2", *FLAGS]
    words += ["--max-new-tokens", "60"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "puyulm", *words, "--out", str(tmp_path / "killed")]
    finished = tmp_path / "killed" / "finished"

    def lines() -> int:
        return sum(file.read_text().count("\n") for file in finished.glob("*.jsonl"))

    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as child:
        wait_until(lambda: lines() >= 1 or child.poll() is not None, 60)
        child.send_signal(signal.SIGKILL)
    assert lines() >= 1
    assert main([*words, "--out", str(tmp_path / "killed")]) == 0
    assert main([*words, "--out", str(tmp_path / "whole")]) == 0
    assert results(tmp_path / "killed") == results(tmp_path / "whole")


def test_other_tasks_results_stay(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    (data / "math500").mkdir()
    row = {
        "problem": "1 + 1?",
        "solution": "\\boxed{2}",
        "answer": "2",
        "subject": "Algebra",
        "unique_id": "a",
        "level": 1,
    }
    (data / "math500" / "test.jsonl").write_text(json.dumps(row) + "\n")
    words = (checkpoint, "--data-dir", data, *FLAGS, "--out", tmp_path / "out")
    assert evaluate(*words, "--tasks", "gsm8k", "--limit", 4, "--shots", 0) == 0
    first = results(tmp_path / "out")
    assert evaluate(*words, "--tasks", "math500") == 0  # the protocol's deep thinking, which this model lacks
    assert (
        results(tmp_path / "out").keys() == {"gsm8k", "math500"}
        and results(tmp_path / "out")["gsm8k"] == first["gsm8k"]
    )
    assert evaluate(*words, "--tasks", "gsm8k", "--limit", 5, "--shots", 0) == 0
    assert results(tmp_path / "out").keys() == {"gsm8k", "math500"} and results(tmp_path / "out") != first
    assert evaluate(*words, "--tasks", "math500", "--think") == 2


def test_what_is_there_is_named(
    checkpoint: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (data / "mmlu" / "test").mkdir(parents=True)
    (data / "mmlu" / "test" / "virology_test.csv").write_text("question?,a,b,c,d,A\n")
    assert evaluate(checkpoint, "--tasks", "mmlu", "--data-dir", data, *FLAGS, "--out", tmp_path / "out") == 2
    assert "those that are there: --subset virology" in capsys.readouterr().err


def test_comparing(checkpoint: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = (checkpoint, "--tasks", "gsm8k", "--data-dir", data, "--limit", 10, *FLAGS)
    assert evaluate(*words, "--shots", 0, "--out", tmp_path / "none") == 0
    assert evaluate(*words, "--shots", 2, "--out", tmp_path / "two") == 0
    assert evaluate("--compare", tmp_path / "none", tmp_path / "two", "--out", tmp_path / "page.html") == 0
    assert (tmp_path / "page.html").is_file()
    assert "GSM8K" in capsys.readouterr().out


def test_the_list_names_every_benchmark(capsys: pytest.CaptureFixture[str]) -> None:
    from puyulm.eval.benchmarks import all_benchmarks

    assert evaluate("--list") == 0
    listed = {line.split()[0] for line in capsys.readouterr().out.splitlines() if line.strip()}
    known = [one.name for one in all_benchmarks()]
    assert set(known) <= listed and len(set(known)) == len(known)
    assert all(f"`{name}`" in DOCS.read_text() for name in known)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--tasks", "gsm8"), "did you mean 'gsm8k'"),
        (("--tasks", "gsm8k", "--protocol", "internlm9"), "known: internlm2, internlm2.5, internlm3"),
        (("--tasks", "gsm8k", "--limit", 0), "--limit must be 1 or more"),
        (("--tasks", ","), "--tasks: name at least one benchmark"),
        (("--tasks", "gsm8k", "--data-dir", "nowhere"), "nowhere is not a folder"),
        (("--tasks", "gsm8k", "--repeats", 4), "give a --temperature above 0"),
        (("--tasks", "gsm8k", "--subset", "algebra"), "no subset 'algebra'"),
        (("--tasks", "gsm8k,mmlu", "--subset", "anatomi"), "none of the tasks has a subset 'anatomi'"),
        (("--tasks", "gsm8k", "--top-p", 0.9), "give a --temperature above 0"),
        (("--tasks", "gsm8k,alpaca_eval"), "alpaca_eval is judged by a model: name one with --judge"),
        (("--tasks", "gsm8k", "--mode", "likelihood"), "no mode 'likelihood'; known: chat"),
        (("--tasks", "mmlu", "--subset", "anatomy"), "mmlu: no 'test' rows of 'anatomy': place"),
        (("--tasks", "ruler", "--lengths", "4q"), "--lengths: '4q' is no number"),
        (
            (
                "--tasks",
                "nothing.py",
            ),
            "there is no file nothing.py",
        ),
        (("--tasks", "gsm8k", "--workers", 2), "--workers are Ray's"),
        (("--tasks", "gsm8k", "--shots", 99), "99 examples are asked for"),
    ],
)
def test_bad_words_are_named(
    words: tuple[object, ...], message: str, checkpoint: Path, data: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert evaluate(checkpoint, "--data-dir", data, "--out", tmp_path / "out", *FLAGS, *words) == 2
    told = capsys.readouterr().err
    assert message in told and "Traceback" not in told
    assert not (tmp_path / "out").exists()


def test_half_an_environment_of_torchrun_is_named(
    checkpoint: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    assert evaluate(checkpoint, "--tasks", "gsm8k", "--data-dir", data, "--out", tmp_path / "out", *FLAGS) == 2
    assert "WORLD_SIZE is set but RANK is not" in capsys.readouterr().err


def test_subsets_and_their_groups_of_several_tasks(tmp_path: Path) -> None:
    from puyulm.eval.benchmarks import find_benchmark
    from puyulm.eval.source import SourceContext
    from puyulm.eval.suite import Plan, make_tasks

    for folder in ("test", "dev"):
        (tmp_path / "mmlu" / folder).mkdir(parents=True)
    for subject in ("anatomy", *SOCIAL):
        for role in ("test", "dev"):
            rows = "".join(f"What is {role} {n}?,1,2,3,4,A\n" for n in range(5))
            (tmp_path / "mmlu" / role / f"{subject}_{role}.csv").write_text(rows)
    (tmp_path / "gsm8k").mkdir()
    (tmp_path / "gsm8k" / "test.jsonl").write_text('{"question": "1?", "answer": "#### 1"}\n')
    benchmarks = [find_benchmark("mmlu"), find_benchmark("gsm8k")]
    context = SourceContext(data_dir=tmp_path, offline=True)
    plan = Plan(benchmarks=benchmarks, protocol="internlm3", shots=0, context=context,
                subsets=["anatomy", "social sciences"])  # fmt: skip
    mmlu, gsm8k = make_tasks(plan, None)
    assert {one.subset for one in mmlu.questions} == {"anatomy", *SOCIAL} and len(gsm8k.questions) == 1
