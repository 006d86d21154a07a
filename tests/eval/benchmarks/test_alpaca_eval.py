"""AlpacaEval 2.0: a judge's log-probabilities, and win rates of models and judges that are known."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from puyulm.errors import DataError
from puyulm.eval import statistics
from puyulm.eval.benchmarks.alpaca_eval import BENCHMARK, first_is_better
from puyulm.eval.model import OnOutput, Output, Prompt
from puyulm.eval.results import Scores
from puyulm.eval.source import SourceContext
from tests.eval.fakes import FakeModel, scored, task_of

ROWS = [
    {
        "dataset": "koala",
        "instruction": f"Say {n}.",
        "output": f"theirs {'x' * (n % 7)}",
        "generator": "gpt4_1106_preview",
    }
    for n in range(60)
]


@pytest.fixture(autouse=True)
def _few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "SUMMARY_RESAMPLES", 4)  # each is a regression


class Weigher(FakeModel):
    """A judge with log-probabilities: how likely the first answer is the better one."""

    def __init__(self, taste: Callable[[str], float]) -> None:
        super().__init__()
        self.taste, self.prompts = taste, list[Prompt]()

    def generate(self, prompts: Sequence[Prompt], on_output: OnOutput) -> None:
        for index, prompt in enumerate(prompts):
            self.prompts.append(prompt)
            first = self.taste(prompt.messages[-1].content)
            chances = {"m": 0.9 * first, "M": 0.9 * (1 - first), "The": 0.1}
            top = {token: math.log(chance) for token, chance in chances.items() if chance > 0}
            on_output(index, Output(text="?", tokens=1, top_logprobs=top))


def context_of(folder: Path, rows: list[dict[str, Any]], gamed: str = "") -> SourceContext:
    (folder / "alpaca_eval").mkdir(parents=True)
    (folder / "alpaca_eval" / "alpaca_eval_gpt4_baseline.json").write_text(json.dumps(rows))
    if gamed:
        (folder / "alpaca_eval" / "df_gamed.csv").write_text(gamed)
    return SourceContext(data_dir=folder, offline=True)


def run(context: SourceContext, folder: Path, judge: FakeModel, answer: str = "ours") -> Scores:
    return scored(task_of(BENCHMARK, context, "chat"), FakeModel(lambda prompt: answer), folder, judge=judge)


def ours_is_first(shown: str) -> bool:
    return shown.index("ours") < shown.index("theirs")


def test_judges_whose_taste_is_known(tmp_path: Path) -> None:
    context = context_of(tmp_path, ROWS)
    ours = run(context, tmp_path / "a", judge := Weigher(lambda shown: float(ours_is_first(shown)))).metrics
    assert ours["win_rate"].value == ours["discrete_win_rate"].value == 1.0
    assert ours["lc_win_rate"].value > 0.99 and ours["unread"].value == 0
    assert all(one.top_logprobs == 5 and one.max_new_tokens == 1 for one in judge.prompts)

    mild = run(context, tmp_path / "b", Weigher(lambda shown: 0.6 if ours_is_first(shown) else 0.4)).metrics
    assert mild["win_rate"].value == pytest.approx(0.6) and mild["discrete_win_rate"].value == 1.0
    assert mild["lc_win_rate"].value == pytest.approx(0.6, abs=0.01)

    first = run(context, tmp_path / "c", Weigher(lambda shown: 1.0)).metrics
    shown_first = sum(map(ours_is_first, (one.messages[-1].content for one in judge.prompts))) / len(ROWS)
    assert first["first_place"].value == 1.0 and first["win_rate"].value == pytest.approx(shown_first)
    assert 0.3 < shown_first < 0.7

    equal = run(context, tmp_path / "d", Weigher(lambda shown: 0.5)).metrics
    assert equal["win_rate"].value == equal["discrete_win_rate"].value == 0.5
    assert equal["lc_win_rate"].value == pytest.approx(0.5, abs=1e-6)


def test_a_judge_without_log_probabilities(tmp_path: Path) -> None:
    context = context_of(tmp_path, ROWS)
    judge = FakeModel(lambda prompt: "m" if ours_is_first(prompt.messages[-1].content) else " M")
    assert run(context, tmp_path / "a", judge).metrics["win_rate"].value == 1.0
    silent = run(context, tmp_path / "b", FakeModel(lambda prompt: "Both")).metrics
    assert silent["unread"].value == 1.0 and math.isnan(silent["lc_win_rate"].value)


@pytest.mark.parametrize(
    ("top", "text", "expected"),
    [
        ({"m": math.log(0.6), "M": math.log(0.2)}, "m", 0.75),
        ({"m": math.log(0.3), " m": math.log(0.3), "M": math.log(0.2)}, "m", 0.75),
        ({"M": -0.1, "The": -3.0}, "M", 0.0),
        ({"The": -0.1}, "The", None),
        ({}, "m", 1.0),
        ({}, "M\n", 0.0),
        ({}, "model m", None),
    ],
)
def test_first_token(top: dict[str, float], text: str, expected: float | None) -> None:
    found = first_is_better(Output(text=text, top_logprobs=top))
    assert found == (None if expected is None else pytest.approx(expected))


def test_published_length_control(tmp_path: Path) -> None:
    """With the gamed answers, what they say of length is believed; a verbose model's wins are taken away."""
    lines = ["index,preference,std_delta_len,instruction_difficulty,not_gamed_baseline,model"]
    for n in range(60):
        for longer in (-1.5, 1.5):
            chance = 1 / (1 + math.exp(1.2 * math.tanh(longer)))
            lines.append(f"{n},{chance},{longer},{n % 5 - 2.0},False,gamed")
    plain = context_of(tmp_path / "a", ROWS)
    known = context_of(tmp_path / "b", ROWS, "\n".join(lines) + "\n")
    long = "ours" + "y" * 300
    judge = Weigher(lambda shown: 0.7 if ours_is_first(shown) else 0.3)
    without = run(plain, tmp_path / "s", judge, long).metrics
    controlled = run(known, tmp_path / "t", judge, long).metrics
    assert without["win_rate"].value == controlled["win_rate"].value == pytest.approx(0.7)
    assert controlled["lc_win_rate"].value < 0.55  # all of the advantage is what length is worth


def test_damaged_rows(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no field 'output'"):
        task_of(BENCHMARK, context_of(tmp_path / "a", [{"instruction": "?"}]), "chat")
    with pytest.raises(DataError, match=r"df_gamed.csv: row 1 is not as published"):
        task_of(BENCHMARK, context_of(tmp_path / "b", ROWS, "index,preference\n0,1\n"), "chat")
    header = "index,preference,std_delta_len,instruction_difficulty\n"
    with pytest.raises(DataError, match="knows nothing about row 1"):
        task_of(BENCHMARK, context_of(tmp_path / "c", ROWS, header + "0,1,0,0\n"), "chat")
    with pytest.raises(DataError, match=r"place alpaca_eval_gpt4_baseline.json or .* in"):
        task_of(BENCHMARK, SourceContext(data_dir=tmp_path / "d", offline=True), "chat")
