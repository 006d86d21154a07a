"""Estimates scale with the input."""

from __future__ import annotations

from pathlib import Path

import pytest

from puyulm.data.pipeline.estimate import estimate, estimate_table
from puyulm.data.pipeline.executor import SerialExecutor
from puyulm.data.pipeline.run import run_pipeline
from puyulm.errors import DataError
from tests.data.pipeline.test_run import _recipe


def test_twice_the_input_costs_twice(tmp_path: Path) -> None:
    results = run_pipeline(_recipe(tmp_path / "out"), SerialExecutor())
    once, twice = estimate(results, 4000), estimate(results, 8000)  # the input has 4 tasks of 1,000 bytes
    stored = sum(path.stat().st_size for path in results[1].folder.rglob("*.zst"))
    assert once[0].documents == 120
    assert once[1].stored_bytes == stored
    assert [c.documents for c in twice] == [2 * c.documents for c in once]
    assert estimate(results, documents=240) == twice
    assert [c.core_hours for c in twice] == [2 * c.core_hours for c in once]
    table = estimate_table(twice, cores=10).splitlines()
    assert len(table) == 4
    assert table[-1].split()[:2] == ["total", "240"]


def test_nothing_to_scale() -> None:
    with pytest.raises(DataError, match="run the pipeline first"):
        estimate([], 1e12)
