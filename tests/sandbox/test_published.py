"""Published problems: their solutions pass, and answers of nothing do not."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from puyulm.sandbox import Program, run_many

pytestmark = pytest.mark.usefixtures("sandbox")


def test_humaneval(shared_dir: Path):
    path = shared_dir / "evaldata" / "humaneval" / "HumanEval.jsonl.gz"
    if not path.exists():
        pytest.skip(f"no {path.name}")
    with gzip.open(path, "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file][::8]
    tests = [(f"{row['test']}\ncheck({row['entry_point']})",) for row in rows]
    right = [Program(row["prompt"] + row["canonical_solution"], test) for row, test in zip(rows, tests, strict=True)]
    wrong = [Program(row["prompt"] + "    return None\n", test) for row, test in zip(rows, tests, strict=True)]
    assert {one.status for one in run_many(right)} == {"ok"}
    assert {one.status for one in run_many(wrong)} == {"failed"}


def test_mbpp(shared_dir: Path):
    path = shared_dir / "evaldata" / "mbpp" / "sanitized-mbpp.json"
    if not path.exists():
        pytest.skip(f"no {path.name}")
    rows = json.loads(path.read_text("utf-8"))[::20]
    programs = [Program(row["code"], [*row["test_imports"], *row["test_list"]]) for row in rows]
    assert {one.status for one in run_many(programs)} == {"ok"}
