"""A whole pretraining run, from token shards to a published checkpoint, and its verb."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from puyulm.cli import main
from puyulm.data.documents import Document
from puyulm.data.shards import TokenShards, tokenize_documents
from puyulm.errors import DataError, RecipeError, TrainError
from puyulm.model.attention import PackedAttention
from puyulm.model.checkpoint import load_config, load_model
from puyulm.parallel.build import ParallelModel, build_model
from puyulm.parallel.weights import load_weights
from puyulm.parallel.world import World
from puyulm.recipe import load_recipe
from puyulm.text.tokenizer import Tokenizer
from puyulm.train.metrics import read_json_lines
from puyulm.train.phases import Phase
from puyulm.train.pretrain import PretrainRecipe, model_config, pretrain
from puyulm.train.settings import TrainSettings
from puyulm.train.validation import bits_per_byte
from tests.conftest import tiny_config
from tests.text.small_tokenizers import CHATML, small_tokenizer
from tests.train.runs import tiny_model

RHYMES = (
    "one two three four five, once I caught a fish alive. ",
    "六七八九十，然后又放了它。",
    "why did you let it go? ",
)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return small_tokenizer(tmp_path_factory.mktemp("files") / "tokenizer", CHATML)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Path:
    """A folder with `tokenizer`, `train` and `valid`."""
    folder = tmp_path_factory.mktemp("files")
    tokenizer.save(folder / "tokenizer")
    rng = np.random.default_rng(0)
    for name, count in (("train", 60), ("valid", 7)):
        texts = ["".join(rng.choice(RHYMES, size=rng.integers(1, 5))) for _ in range(count)]
        documents = [Document(f"{name}{i}", text, "en", "rhymes") for i, text in enumerate(texts)]
        tokenize_documents(documents, tokenizer, folder / name)
    return folder


def recipe(files: Path, out: Path, vocab_size: int, **changes: object) -> PretrainRecipe:
    shape = tiny_config(family="internlm3", vocab_size=vocab_size, initializer_range=0.05)
    settings = TrainSettings(lr=5e-3, warmup_ratio=0.1, eval_every=15, checkpoint_every=10, device="cpu")
    values: dict[str, object] = {
        "model": shape, "tokenizer": files / "tokenizer", "data": files / "train", "valid": files / "valid",
        "phases": (Phase(steps=30, seq_len=32, batch_tokens=128),), "settings": settings, "out": out,
    }  # fmt: skip
    return PretrainRecipe(**{**values, **changes})  # type: ignore[arg-type]


def test_a_whole_run(tmp_path: Path, files: Path, tokenizer: Tokenizer) -> None:
    ours = recipe(files, tmp_path, tokenizer.vocab_size)
    result = pretrain(ours)
    rows = read_json_lines(tmp_path / "metrics.jsonl")
    validation = read_json_lines(tmp_path / "validation.jsonl")
    assert result.steps == 30 and result.tokens == 30 * 128
    assert [row["step"] for row in validation] == [15, 30]
    assert result.validation["bits_per_byte"] == validation[-1]["bits_per_byte"] < 0.6 * math.log2(tokenizer.vocab_size)
    assert validation[1]["bits_per_byte"] < validation[0]["bits_per_byte"]
    shards = TokenShards.open(files / "train")
    factor = (shards.num_tokens - shards.num_documents) / shards.num_bytes / math.log(2)
    assert rows[3]["bits_per_byte"] == pytest.approx(rows[3]["loss"] * factor)

    model = load_model(tmp_path / "model", device="cpu")
    assert model.config.bos_token_id == tokenizer.bos_id and model.config.eos_token_ids == (tokenizer.eos_id,)
    again = bits_per_byte(loaded(tmp_path / "model"), TokenShards.open(files / "valid"), 32)
    assert again["bits_per_byte"] == pytest.approx(result.validation["bits_per_byte"], rel=1e-6)
    assert Tokenizer.load(tmp_path / "model").vocab_size == tokenizer.vocab_size
    assert load_recipe(PretrainRecipe, tmp_path / "recipe.yaml") == ours


def loaded(folder: Path) -> ParallelModel:
    model = build_model(load_config(folder), World.alone())
    load_weights(model, folder)
    return model


def test_bits_per_byte_of_whole_documents(files: Path, tokenizer: Tokenizer) -> None:
    """Against the sum over documents one by one, with nothing cut."""
    model, shards = tiny_model(vocab_size=tokenizer.vocab_size), TokenShards.open(files / "valid")
    decoder = model.decoder
    nats = 0.0
    for i in range(shards.num_documents):
        ids = torch.from_numpy(shards.document(i).astype(np.int64))
        attention = PackedAttention([len(ids)])
        with torch.no_grad():
            log_probs = decoder.logits(decoder(ids, attention.positions, attention)).log_softmax(-1)
        nats -= float(log_probs[:-1].gather(1, ids[1:, None]).sum())
    longest = int(np.diff(shards.token_starts).max())
    measured = bits_per_byte(model, shards, seq_len=len(shards.token_starts) * longest)
    assert measured["bits_per_byte"] == pytest.approx(nats / math.log(2) / shards.num_bytes, rel=1e-5)
    assert measured["loss"] == pytest.approx(nats / (shards.num_tokens - shards.num_documents), rel=1e-5)


def test_places_may_change_between_runs_and_content_may_not(tmp_path: Path, files: Path, tokenizer: Tokenizer) -> None:
    short = TrainSettings(device="cpu")
    phases = (Phase(steps=2, seq_len=32, batch_tokens=128),)
    ours = recipe(files, tmp_path / "out", tokenizer.vocab_size, valid=None, settings=short, phases=phases)
    pretrain(ours)
    (tmp_path / "moved").symlink_to(files / "train")
    moved = replace(ours, data=tmp_path / "moved", settings=replace(short, log_every=1, keep_checkpoints=9))
    assert pretrain(moved).steps == 2
    with pytest.raises(TrainError, match=r"\(content\)"):
        pretrain(replace(ours, data=files / "valid"))
    with pytest.raises(TrainError, match=r"settings\.lr is 0\.5, was 0\.0003"):
        pretrain(replace(ours, settings=replace(short, lr=0.5)))
    assert load_recipe(PretrainRecipe, tmp_path / "out" / "recipe.yaml") == moved


def one_phase(seq_len: int) -> tuple[Phase, ...]:
    return (Phase(steps=1, seq_len=seq_len, batch_tokens=seq_len),)


def test_what_cannot_be_trained(tmp_path: Path, files: Path, tokenizer: Tokenizer) -> None:
    size = tokenizer.vocab_size
    with pytest.raises(RecipeError, match=f"vocab_size 128 is smaller .* set --model.vocab_size {size}"):
        model_config(recipe(files, tmp_path, 128), tokenizer)
    for preset, long, missing in (("internlm2-1_8b-reward", 64, "head: lm"),
                                  ("smollm2-135m-instruct", 9000, "max_position_embeddings: 9000")):  # fmt: skip
        with pytest.raises(RecipeError, match=f"write the model's shape out in the recipe, with {missing}"):
            model_config(recipe(files, tmp_path, size, model=preset, phases=one_phase(long)), tokenizer)
    with pytest.raises(RecipeError, match="seq_len 65 is above the model's max_position_embeddings 64"):
        model_config(recipe(files, tmp_path, size, phases=one_phase(65)), tokenizer)
    with pytest.raises(RecipeError, match="language model's head"):
        model_config(recipe(files, tmp_path, size, model=tiny_config(head="reward", vocab_size=size)), tokenizer)
    with pytest.raises(RecipeError, match="give either tokens or steps"):
        Phase(seq_len=32, batch_tokens=128)
    with pytest.raises(RecipeError, match="batch_tokens 100 is no multiple of seq_len 32"):
        Phase(steps=1, seq_len=32, batch_tokens=100)
    for changes, problem in (({"phases": ()}, "at least one"), ({"data": None}, "data is missing"),
                             ({"micro_tokens": 0}, "micro_tokens must be above 0"),
                             ({"mixture": files}, "data or mixture"),
                             ({"phases": one_phase(32) * 2}, "different names")):  # fmt: skip
        with pytest.raises(RecipeError, match=problem):
            recipe(files, tmp_path, size, **changes)
    other = small_tokenizer(tmp_path / "other", ("<other>",))
    other.save(tmp_path / "other")
    with pytest.raises(DataError, match="another tokenizer"):
        pretrain(recipe(files, tmp_path / "out", size, tokenizer=tmp_path / "other"))
    assert model_config(recipe(files, tmp_path, size, model="internlm2-1.8b"), tokenizer)[0].hidden_size == 2048
    assert not (tmp_path / "out").exists()


def write_yaml(files: Path, path: Path, vocab_size: int) -> Path:
    path.write_text(
        f"model: {{family: internlm3, vocab_size: {vocab_size}, hidden_size: 32, intermediate_size: 64, num_layers: 1,"
        " num_heads: 2, num_kv_heads: 1, head_dim: 16, max_position_embeddings: 64}\n"
        f"tokenizer: {files}/tokenizer\ndata: {files}/train\nvalid: {files}/valid\n"
        "phases: [{name: all, steps: 3, seq_len: 32, batch_tokens: 64}]\n"
        f"settings: {{lr: 1e-3, device: cpu}}\nout: {path.parent}/out\n"
    )
    return path


def test_the_verb(tmp_path: Path, files: Path, tokenizer: Tokenizer, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(write_yaml(files, tmp_path / "tiny.yaml", tokenizer.vocab_size))
    assert main(["train", path, "--settings.lr", "2e-3", "--print-recipe"]) == 0
    printed = capsys.readouterr().out
    assert "lr: 0.002" in printed and "weight_decay: 0.1" in printed and not (tmp_path / "out").exists()
    assert main(["train", path, "--phases.all.steps=2"]) == 0
    assert f"{tmp_path}/out/model: 2 steps, 128 tokens, validation loss" in capsys.readouterr().out
    assert main(["train", path]) == 2
    assert "phases.0.steps is 3, was 2" in capsys.readouterr().err
    assert main(["train", path, "--overwrite"]) == 0
    assert len(read_json_lines(tmp_path / "out" / "metrics.jsonl")) == 3
    assert main(["train", path, "--settings.learning_rate", "1"]) == 2
    message = capsys.readouterr().err
    assert "tiny.yaml: unknown key 'settings.learning_rate'" in message and "settings." in message
