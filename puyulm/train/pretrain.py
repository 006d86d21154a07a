"""Pretraining: a recipe, token shards, and a decoder with fresh weights."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

import torch

from puyulm.data.packing import PackedDataset
from puyulm.data.shards import TokenShards
from puyulm.errors import RecipeError
from puyulm.model.checkpoint import save_model
from puyulm.model.config import ModelConfig
from puyulm.model.decoder import Decoder
from puyulm.model.presets import preset
from puyulm.text.tokenizer import Tokenizer
from puyulm.train.loop import TrainResult, train
from puyulm.train.run import MODEL_FOLDER, open_run, run_identity, write_recipe
from puyulm.train.settings import TrainSettings
from puyulm.train.validation import bits_per_byte

# Fields that may differ when a run is resumed.
FREE_FIELDS = ("out", "tokenizer", "data", "valid", "valid_tokens")


@dataclass(frozen=True, kw_only=True)
class PretrainRecipe:
    """What to pretrain, on what, and for how long.

    Attributes:
        model: A preset's name, or a shape written out.
        tokenizer: Folder of the tokenizer; it is copied beside the weights.
        data: Folder of token shards to train on.
        valid: Folder of token shards to validate on, whole documents at a time.
        valid_tokens: Validate on the first documents with about so many tokens; None takes all.
        seq_len: Tokens of a row; longer documents continue in another row.
        rows_per_batch: Rows of a micro-batch.
        out: Folder of the run: metrics, checkpoints, and the finished model in `model/`.
    """

    model: str | ModelConfig
    tokenizer: Path
    data: Path
    valid: Path | None = None
    valid_tokens: int | None = None
    seq_len: int
    rows_per_batch: int
    settings: TrainSettings = field(default_factory=TrainSettings)
    out: Path

    def __post_init__(self) -> None:
        for name in ("seq_len", "rows_per_batch"):
            if getattr(self, name) < 1:
                raise RecipeError(f"{name} must be above 0, not {getattr(self, name)}")


def pretrain(recipe: PretrainRecipe, *, overwrite: bool = False) -> TrainResult:
    """Runs a recipe, or goes on with it where an earlier run stopped; the model is saved to `out/model`.

    Raises:
        RecipeError, ConfigError, DataError, TokenizerError, TrainError: With what is wrong and what to do.
    """
    shards = TokenShards.open(recipe.data)
    valid = TokenShards.open(recipe.valid) if recipe.valid else None
    tokenizer = Tokenizer.load(recipe.tokenizer)
    for part in (shards, valid):
        if part is not None:
            part.check_tokenizer(tokenizer)
    settings = recipe.settings
    steps = settings.total_steps(recipe.seq_len * recipe.rows_per_batch)
    identity = run_identity(recipe, FREE_FIELDS, {"data": recipe.data})
    decoder = Decoder(model_config(recipe, tokenizer))

    open_run(recipe.out, identity, overwrite=overwrite)
    write_recipe(recipe, recipe.out)
    decoder.init_weights(torch.Generator().manual_seed(settings.seed))

    def validate(model: Decoder) -> dict[str, float]:
        assert valid is not None
        return bits_per_byte(model, valid, recipe.seq_len, recipe.valid_tokens)

    result = train(
        decoder,
        PackedDataset(shards, recipe.seq_len, recipe.rows_per_batch, settings.seed),
        settings,
        recipe.out,
        steps=steps,
        identity=identity,
        validate=validate if valid else None,
        bits_per_byte_factor=(shards.num_tokens - shards.num_documents) / shards.num_bytes / math.log(2),
        label="pretraining",
    )
    save_model(decoder, recipe.out / MODEL_FOLDER, overwrite=True, write_extra=tokenizer.save)
    return result


def model_config(recipe: PretrainRecipe, tokenizer: Tokenizer) -> ModelConfig:
    """The shape to train, with the tokenizer's special tokens.

    Raises:
        ConfigError: The preset is unknown.
        RecipeError: The vocabulary is smaller than the tokenizer's, or rows are longer than the model's positions.
    """
    config = preset(recipe.model).config if isinstance(recipe.model, str) else recipe.model
    if config.head != "lm":
        raise RecipeError(f"model: pretraining needs a language model's head; {_remedy(recipe, 'head', 'lm')}")
    if config.vocab_size < tokenizer.vocab_size:
        raise RecipeError(
            f"model: vocab_size {config.vocab_size:,} is smaller than the tokenizer's {tokenizer.vocab_size:,} "
            f"({recipe.tokenizer}); {_remedy(recipe, 'vocab_size', tokenizer.vocab_size)}"
        )
    if config.max_position_embeddings < recipe.seq_len:
        raise RecipeError(
            f"seq_len {recipe.seq_len:,} is above the model's max_position_embeddings "
            f"{config.max_position_embeddings:,}; lower seq_len or "
            + _remedy(recipe, "max_position_embeddings", recipe.seq_len)
        )
    eos = (tokenizer.eos_id,) if tokenizer.eos_id is not None else config.eos_token_ids
    return config.evolve(bos_token_id=tokenizer.bos_id, eos_token_ids=eos, pad_token_id=tokenizer.pad_id)


def _remedy(recipe: PretrainRecipe, field: str, value: object) -> str:
    if isinstance(recipe.model, str):  # a preset has no fields to set
        return f"write the model's shape out in the recipe, with {field}: {value}"
    return f"set --model.{field} {value}"
