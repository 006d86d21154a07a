"""The demo's stages on a handful of text: everything is made, nothing twice, and an interruption costs little."""

from __future__ import annotations

import html.parser
import json
from pathlib import Path

import pytest

from puyulm.cli import main
from puyulm.demo.charts import Curve, chart, chart_by_length, heat_map
from puyulm.engine.load import load_chat_model
from puyulm.eval.report.charts import Heat
from puyulm.eval.results import read_run
from puyulm.train import trainer

PRETRAIN = """
model: {family: internlm3, vocab_size: 400, hidden_size: 32, intermediate_size: 64, num_layers: 1, num_heads: 2,
        num_kv_heads: 1, head_dim: 16, max_position_embeddings: 1024, rope: {theta: 10000.0}, dtype: float32}
tokenizer: replaced
data: replaced
phases: [{name: all, steps: 8, seq_len: 64, batch_tokens: 128}]
valid_tokens: 2000
settings: {lr: 1e-3, eval_every: 4, checkpoint_every: 2, log_every: 1}
out: replaced
"""
SFT = """
model: replaced
data: [replaced]
seq_len: 128
rows_per_batch: 2
steps: 4
settings: {lr: 1e-3, checkpoint_every: 2, log_every: 1}
out: replaced
"""
DEMO = """
corpus: {python_stdlib: 150_000, python_reference: 40_000, shakespeare: 0, chinese_poetry: 0, validation_fraction: 0.2}
tokenizer: {kind: bytelevel, vocab_size: 400}
tasks: {train: {parity: 30, place: 30}, held_out: 4}
evaluation: {lengths: [896, 1024], depths: [0, 100], ruler: [niah_single_1], ruler_count: 1, windows: [32, 64],
             context_bytes: 500}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    (tmp_path / "pretrain.yaml").write_text(PRETRAIN)
    (tmp_path / "sft.yaml").write_text(SFT)
    paths = f"pretrain: {tmp_path / 'pretrain.yaml'}\nsft: {tmp_path / 'sft.yaml'}\n"
    (tmp_path / "demo.yaml").write_text(DEMO + paths)
    return tmp_path / "demo.yaml"


def run(recipe: Path) -> int:
    return main(["demo", "--skip-published", "--recipe", str(recipe), "--out", str(recipe.parent / "out")])


class Tags(html.parser.HTMLParser):
    """Checks that elements are closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        if tag not in ("meta",):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_from_text_to_a_model_that_answers_and_not_twice(recipe: Path, capsys: pytest.CaptureFixture[str]):
    assert run(recipe) == 0
    first = capsys.readouterr().out
    out = recipe.parent / "out"
    assert f"puyu chat {out / 'sft' / 'model'}" in first
    engine = load_chat_model(str(out / "sft" / "model"))
    assert engine.chat_format.name != "base"
    assert {file.name for file in (out / "sft" / "model").iterdir()} >= {
        "config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "generation_config.json",
    }  # fmt: skip

    page = (out / "report.html").read_text("utf-8")
    tags = Tags()
    tags.feed(page)
    assert tags.open == []
    assert {"svg", "polyline", "table"} <= tags.seen
    assert "5-gram of bytes" in page
    tuned = read_run(out / "evaluation" / "tuned").results
    assert {one.name: one.scores.main.count for one in tuned if one.name != "text"} == {
        "questions": 8, "needle": 4, "ruler": 2,
    }  # fmt: skip

    base = read_run(out / "evaluation" / "base").results
    assert [one.setting.mode for one in base] == ["plain", "reading", "plain", "plain"]
    assert [one.setting.mode for one in tuned] == ["chat", "reading", "chat", "chat"]
    evaluated = json.loads((out / "stages" / "evaluate.json").read_text())
    assert [window for window, _ in evaluated["context"]] == [32, 64]
    low, high = (evaluated["context"][0][1][source][0] for source in ("python-reference", "python-stdlib"))
    assert low != high

    weights = (out / "sft" / "model" / "model.safetensors").stat().st_mtime_ns
    assert run(recipe) == 0
    second = capsys.readouterr().out
    assert second.count("done before") == 7
    assert (out / "sft" / "model" / "model.safetensors").stat().st_mtime_ns == weights

    (out / "evaluation" / "tuned" / "results.json").unlink()
    assert run(recipe) == 0
    assert capsys.readouterr().out.count("done before") == 6
    again = read_run(out / "evaluation" / "tuned").results
    assert [one.scores for one in again] == [one.scores for one in tuned]


def test_an_interrupted_demo_goes_on_where_it_stopped(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    taken = []
    step = trainer.train_step

    def stops_after_five(*args: object, **kwargs: object):
        taken.append(1)
        if len(taken) == 6:
            raise KeyboardInterrupt
        return step(*args, **kwargs)

    monkeypatch.setattr(trainer, "train_step", stops_after_five)
    assert run(recipe) == 130
    capsys.readouterr()
    monkeypatch.setattr(trainer, "train_step", lambda *a, **k: taken.append(1) or step(*a, **k))
    taken.clear()
    assert run(recipe) == 0
    shown = capsys.readouterr()
    assert shown.out.count("done before") == 3
    assert "resuming at step 4 of 8" in shown.err
    assert len(taken) == 4 + 4  # what was left of pretraining, and fine-tuning

    text = recipe.read_text().replace("held_out: 4", "held_out: 5")
    recipe.write_text(text)
    assert run(recipe) == 0
    assert capsys.readouterr().out.count("done before") == 4  # only what depends on the tasks is done again


def test_the_chart_by_length_has_a_point_and_an_interval_for_each_length():
    curve = Curve("base", [(512, 20), (1024, 60)], "#000", reach=[(512, 10, 30)])
    drawn = chart_by_length("RULER", [curve], up=(0, 100))
    left, right = ((40 + 0.3 * 692 / 1.6) + 16, 748 - 0.3 * 692 / 1.6)
    assert f'points="{left:.1f},220.0 {right:.1f},116.0"' in drawn
    assert 'y1="246.0" y2="194.0"' in drawn
    assert ">512</text>" in drawn
    assert ">1K</text>" in drawn
    assert "too few lengths" in chart_by_length("RULER", [Curve("base", [(512, 20)], "#000")])


def test_a_heat_map_shows_percents_and_leaves_out_what_was_not_asked():
    drawn = heat_map(Heat("base", ("512", "1K"), ("0 %",), ((0.254, None),)), "depth")
    assert ">25</td><td></td>" in drawn


def test_a_chart_of_nothing_says_so():
    assert "nothing recorded" in chart("Loss", [Curve("training", [], "#000")])
