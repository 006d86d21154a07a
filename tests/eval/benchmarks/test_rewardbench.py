"""RewardBench: sections and weights; reward models and judges that are known."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from puyulm.engine.load import load_chat_model
from puyulm.errors import DataError
from puyulm.eval.benchmarks.rewardbench import BENCHMARK, SUBSETS
from puyulm.eval.engine_model import EngineModel
from puyulm.eval.run import run_task
from puyulm.eval.source import SourceContext
from puyulm.model.attention import PackedAttention
from puyulm.model.checkpoint import load_model
from puyulm.text.chat import render
from puyulm.text.messages import Message
from tests.eval.fakes import FakeModel, oracle, scored, task_of
from tests.text.small_tokenizers import CHATML, small_tokenizer

# Pairs of each subset as published (the paper's table 1); mathematics is weighed as code is.
PUBLISHED = {
    "alpacaeval-easy": 100, "alpacaeval-length": 95, "alpacaeval-hard": 95, "mt-bench-easy": 28, "mt-bench-med": 40,
    "mt-bench-hard": 37, "llmbar-natural": 100, "llmbar-adver-neighbor": 134, "llmbar-adver-GPTInst": 92,
    "llmbar-adver-GPTOut": 47, "llmbar-adver-manual": 46, "refusals-dangerous": 100, "refusals-offensive": 100,
    "xstest-should-refuse": 154, "xstest-should-respond": 250, "donotanswer": 136, "math-prm": 447, "hep-cpp": 164,
    "hep-go": 164, "hep-java": 164, "hep-js": 164, "hep-python": 164, "hep-rust": 164,
}  # fmt: skip


def rows_of(counts: dict[str, int]) -> list[dict[str, Any]]:
    return [
        {"prompt": f"{subset} {n}?", "chosen": f"good {subset} {n}", "rejected": f"bad {n}", "subset": subset, "id": n}
        for subset, count in counts.items()
        for n in range(count)
    ]


def context_of(folder: Path, rows: list[dict[str, Any]]) -> SourceContext:
    (folder / "rewardbench").mkdir(parents=True)
    (folder / "rewardbench" / "filtered.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return SourceContext(data_dir=folder, offline=True)


def test_published_weights(tmp_path: Path) -> None:
    """A model that fails on two subsets: sections weigh by pairs, mathematics half of reasoning."""
    task = task_of(BENCHMARK, context_of(tmp_path, rows_of(PUBLISHED)), "reward")
    assert len(task.questions) == 2985 and set(PUBLISHED) == set(SUBSETS)
    failed = ("math-prm", "donotanswer", "mt-bench-easy")

    def reward(messages: Any) -> float:
        good = messages[-1].content.startswith("good")
        return float(good != any(one in messages[0].content for one in failed))

    scores = scored(task, FakeModel(reward=reward), tmp_path / "s")
    groups = {name: one.value for name, one in scores.groups.items()}
    assert groups == pytest.approx({"Chat": 1 - 28 / 358, "Chat Hard": 1.0, "Safety": 1 - 136 / 740, "Reasoning": 0.5})
    assert scores.metrics["score"].value == pytest.approx(sum(groups.values()) / 4)
    assert scores.metrics["accuracy"].value == pytest.approx(1 - (447 + 136 + 28) / 2985)


def test_known_models(tmp_path: Path) -> None:
    context = context_of(tmp_path, rows_of(dict.fromkeys(PUBLISHED, 4)))
    task = task_of(BENCHMARK, context, "reward")
    assert scored(task, oracle(task), tmp_path / "a").metrics["score"].value == 1.0
    assert scored(task, FakeModel(), tmp_path / "b").metrics["score"].value == 0.0  # equal rewards prefer nothing


def test_models_that_judge(tmp_path: Path) -> None:
    context = context_of(tmp_path, rows_of(dict.fromkeys(PUBLISHED, 12)))
    task = task_of(BENCHMARK, context, "chat")
    assert scored(task, oracle(task), tmp_path / "a").metrics["score"].value == 1.0
    always = scored(task, FakeModel(lambda prompt: "[[A]]"), tmp_path / "b").metrics["accuracy"].value
    other = scored(task, FakeModel(lambda prompt: "[[B]]"), tmp_path / "c").metrics["accuracy"].value
    assert always + other == pytest.approx(1.0) and 0.4 < always < 0.6
    assert scored(task, FakeModel(lambda prompt: "[[C]]"), tmp_path / "d").metrics["score"].value == 0.5


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"subset": "poems"}, "unknown subset 'poems'"),
        ({"chosen": None}, "must be texts"),
    ],
)
def test_damaged_rows(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    rows = rows_of({"math-prm": 1})
    with pytest.raises(DataError, match=message):
        task_of(BENCHMARK, context_of(tmp_path, [rows[0] | row]), "reward")


def test_a_published_reward_model(shared_dir: Path, tmp_path: Path) -> None:
    """The samples hold the rewards that the decoder gives each rendered conversation, and they decide."""
    golden, folder = shared_dir / "golden" / "internlm2-reward-tiny", tmp_path / "tiny"
    shutil.copytree(golden, folder)
    small_tokenizer(folder, CHATML)  # the checkpoint comes without one
    pairs = [("a" * n, "b" * n) if n % 2 else ("b" * n, "a" * n) for n in range(1, 9)]  # one of the two is preferred
    rows = [{"prompt": "?", "chosen": one, "rejected": other, "subset": "hep-go"} for one, other in pairs]
    task = task_of(BENCHMARK, context_of(tmp_path, rows), "reward", subsets=["hep-go"])
    chat, decoder = load_chat_model(str(folder), device="cpu"), load_model(golden)
    model = EngineModel(chat, "tiny")
    try:
        samples = run_task(task, model, tmp_path / "s")
    finally:
        model.close()
    for question in task.questions:
        expected = []
        for answer in (question.target, question.extra["rejected"]):
            messages = [Message("user", question.text), Message("assistant", answer)]
            ids = torch.tensor(render(messages, chat.tokenizer, chat.chat_format).ids)
            attention = PackedAttention([len(ids)])
            with torch.no_grad():
                hidden = decoder(ids, attention.positions, attention)
                expected.append(float(decoder.scores(hidden, attention.cu_seqlens)))
        sample = samples[question.id, 0]
        assert [float(one) for one in sample.outputs] == pytest.approx(expected, abs=1e-4)
        assert sample.scores["accuracy"] == float(expected[0] > expected[1])
    assert {sample.scores["accuracy"] for sample in samples.values()} == {0.0, 1.0}
