"""`puyu train` under torchrun: the same command on several processes gives the same run, and the same files."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from puyulm.cli import main
from puyulm.data.documents import Document
from puyulm.data.shards import tokenize_documents
from puyulm.model.checkpoint import load_model
from puyulm.train.metrics import read_json_lines
from tests.text.small_tokenizers import CHATML, small_tokenizer

RECIPE = """
model: {{family: internlm2, vocab_size: {vocab}, hidden_size: 32, intermediate_size: 64, num_layers: 2, num_heads: 4,
  num_kv_heads: 2, head_dim: 8, max_position_embeddings: 64, dtype: float32}}
tokenizer: {folder}/tokenizer
data: {{{folder}/one: 0.7, {folder}/two: 0.3}}
valid: {folder}/two
phases:
  - {{name: short, steps: 6, seq_len: 16, batch_tokens: 256, rope_theta: 500}}
  - {{name: long, steps: 4, seq_len: 32, batch_tokens: 256, rope_theta: 5000}}
micro_tokens: 64
settings: {{lr: 1e-2, device: cpu, checkpoint_every: 4, eval_every: 5}}
out: {folder}/out
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("torchrun")
    tokenizer = small_tokenizer(folder / "made", CHATML)
    tokenizer.save(folder / "tokenizer")
    rng = np.random.default_rng(0)
    for name in ("one", "two"):
        texts = ["".join(rng.choice(["abc ", "de ", "fgh, ", "两 "], size=rng.integers(2, 60))) for _ in range(60)]
        documents = [Document(f"{name}{i}", text, "en", name) for i, text in enumerate(texts)]
        tokenize_documents(documents, tokenizer, folder / name)
    # A vocabulary that tensor parallelism can split.
    (folder / "recipe.yaml").write_text(RECIPE.format(vocab=-(-tokenizer.vocab_size // 4) * 4, folder=folder))
    return folder


def torchrun(processes: int, *words: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return subprocess.run(
        [*command, "-m", "puyulm", "train", *words], env=environment, capture_output=True, text=True, timeout=240
    )


def curve(out: Path) -> list[tuple[int, float, float]]:
    return [(row["step"], row["loss"], row["grad_norm"]) for row in read_json_lines(out / "metrics.jsonl")]


def test_two_processes_give_the_run_of_one(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Interrupted in between and resumed in another layout, too."""
    recipe = str(folder / "recipe.yaml")
    assert main(["train", recipe, "--out", str(folder / "alone")]) == 0
    done = torchrun(2, recipe, "--out", str(folder / "sharded"), "--phases.short.steps", "6", "--parallel.shard", "2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("/sharded/model: 10 steps") == 1, "only the main process prints"
    np.testing.assert_allclose(curve(folder / "sharded"), curve(folder / "alone"), rtol=1e-5)
    alone, sharded = (read_json_lines(folder / name / "validation.jsonl") for name in ("alone", "sharded"))
    assert [row["step"] for row in alone] == [5, 10]
    for one, other in zip(alone, sharded, strict=True):
        assert one["bits_per_byte"] == pytest.approx(other["bits_per_byte"], rel=1e-5)
    weights = [dict(load_model(folder / name / "model").named_parameters()) for name in ("alone", "sharded")]
    for name, parameter in weights[0].items():
        torch.testing.assert_close(parameter, weights[1][name], rtol=1e-3, atol=1e-4, msg=name)

    # From the middle of the run (step 8, in the second phase) on one process, as tensor parallel.
    for path in (folder / "sharded" / "checkpoints").glob("step-00000010"):
        path.rename(path.with_name("put-aside"))
    done = torchrun(2, recipe, "--out", str(folder / "sharded"), "--parallel.tensor", "2")
    assert done.returncode == 0, done.stderr
    assert "resuming at step 8 of 10" in done.stderr
    np.testing.assert_allclose(curve(folder / "sharded"), curve(folder / "alone"), rtol=1e-5)


def test_a_plan_that_does_not_fit_is_one_line(folder: Path) -> None:
    done = torchrun(2, str(folder / "recipe.yaml"), "--out", str(folder / "wrong"), "--parallel.tensor", "3")
    assert done.returncode != 0
    assert "but there are 2" in done.stderr and not (folder / "wrong").exists()
