"""The demo's stages on a handful of text: everything is made, nothing twice, and an interruption costs little."""

from __future__ import annotations

import html.parser
import json
from pathlib import Path

import pytest

from puyulm.cli import main
from puyulm.demo.report import Curve, chart
from puyulm.engine.load import load_chat_model
from puyulm.train import trainer

PRETRAIN = """
model: {family: internlm3, vocab_size: 400, hidden_size: 32, intermediate_size: 64, num_layers: 1, num_heads: 2,
        num_kv_heads: 1, head_dim: 16, max_position_embeddings: 512, rope: {theta: 10000.0}, dtype: float32}
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
    scores = json.loads((out / "stages" / "evaluate.json").read_text())["tuned"]
    assert scores[-1]["total"] == 8

    weights = (out / "sft" / "model" / "model.safetensors").stat().st_mtime_ns
    assert run(recipe) == 0
    second = capsys.readouterr().out
    assert second.count("done before") == 7
    assert (out / "sft" / "model" / "model.safetensors").stat().st_mtime_ns == weights


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


def test_a_chart_of_nothing_says_so():
    assert "nothing recorded" in chart("Loss", [Curve("training", [], "#000")])
