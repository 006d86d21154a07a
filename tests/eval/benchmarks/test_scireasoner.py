"""SciReasoner's yes-or-no tasks on made rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from puyulm.errors import DataError
from puyulm.eval.benchmark import Question
from puyulm.eval.benchmarks.scireasoner import BENCHMARK, TASKS, correlation, verdict
from puyulm.eval.model import Output
from puyulm.eval.source import SourceContext
from tests.eval.fakes import FakeModel, oracle, task_of, value


@pytest.fixture
def context(tmp_path: Path) -> SourceContext:
    for task in ("tf-h-0", "pd-prom_300_all"):
        folder = tmp_path / "scireasoner" / "GUE-test" / task / "test"
        folder.mkdir(parents=True)
        rows = [
            {"input": f"<dna>ACGT{n}</dna> Is there one?", "output": "It is so.",
             "meta_data": {"label": "negative" if n % 3 else "positive"}}
            for n in range(9)
        ]  # fmt: skip
        (folder / "data.json").write_text(json.dumps(rows))
    return SourceContext(data_dir=tmp_path, offline=True)


def test_known_models_get_the_scores_that_arithmetic_says(context: SourceContext, tmp_path: Path) -> None:
    task = task_of(BENCHMARK, context, "chat", subsets=["tf-h-0", "pd-prom_300_all"])
    assert value(task, oracle(task), tmp_path / "a") == 1.0
    always = FakeModel(lambda prompt: "Yes, it is present.")
    assert value(task, always, tmp_path / "b") == 0.0
    assert value(task, always, tmp_path / "b", "accuracy") == pytest.approx(1 / 3)
    wrong = FakeModel(lambda prompt: "no" if "ACGT0" in prompt.shown() else "yes")
    # One of three positives is denied, and all six negatives are affirmed.
    assert value(task, wrong, tmp_path / "c") == pytest.approx((2 * 0 - 6 * 1) / (8 * 3 * 6 * 1) ** 0.5)


def test_correlation_against_a_published_value() -> None:
    """The example of Wikipedia's article on the phi coefficient: 12 cats and dogs."""
    counts = {(True, True): 6, (True, False): 2, (False, True): 1, (False, False): 3}
    assert correlation(counts) == pytest.approx(0.478, abs=5e-4)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The prediction result is positive.", "positive"),
        ("There is no doubt. The prediction result is **Positive**", "positive"),
        ("No promoter was found.", "negative"),
        ("The sequence contains a TATA box.", "positive"),
        ("<think>no</think>Yes.", "positive"),
        ("<think>yes", None),
        ("ACGT", None),
    ],
)
def test_what_an_answer_says(text: str, answer: str | None) -> None:
    assert verdict(Question("1", "q", "positive", "tf-h-0"), [Output(text=text)]).answer == answer


def test_damaged_rows_are_named(context: SourceContext) -> None:
    assert context.data_dir is not None and len(TASKS) == 11
    file = context.data_dir / "scireasoner" / "GUE-test" / "tf-h-0" / "test" / "data.json"
    for damaged in (
        {"input": "x"},
        {"input": "x", "meta_data": {"label": "maybe"}},
        {"meta_data": {"label": "positive"}},
    ):
        file.write_text(json.dumps([damaged]))
        with pytest.raises(DataError, match="'test' row 0 of 'tf-h-0' is not as published"):
            task_of(BENCHMARK, context, "chat", subsets=["tf-h-0"])
