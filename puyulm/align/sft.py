"""Supervised fine-tuning: conversations rendered by the one renderer, trained by the one loop."""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

from puyulm.align.conversations import ConversationBatches, load_samples
from puyulm.errors import RecipeError
from puyulm.model.checkpoint import load_model, save_model
from puyulm.model.decoder import Decoder
from puyulm.model.hub import resolve_model
from puyulm.text.chat import ChatFormat, chat_format_for, find_chat_format
from puyulm.text.template_source import template_source
from puyulm.text.tokenizer import Tokenizer
from puyulm.train.loop import TrainResult, pick_device, train
from puyulm.train.run import MODEL_FOLDER, open_run, run_identity, write_recipe
from puyulm.train.settings import TrainSettings
from puyulm.train.validation import mean_loss

FREE_FIELDS = ("out", "model", "data", "valid")


@dataclass(frozen=True, kw_only=True)
class SFTRecipe:
    """What to fine-tune, on which conversations, and for how long.

    Attributes:
        model: A checkpoint folder, a GGUF file, or a published name.
        data: jsonl files of conversations: `{"messages": [{"role": ..., "content": ...}, ...]}`.
        valid: A jsonl file of conversations to validate on.
        chat_format: Name of the format; None takes the checkpoint's own.
        seq_len: Tokens that one conversation may have.
        rows_per_batch: A micro-batch has room for `rows_per_batch * seq_len` tokens.
        epochs: Passes over the data; None where `settings` gives steps.
        on_long: What happens to conversations longer than `seq_len`: cut at the end, or drop. Both are counted and
            printed.
        out: Folder of the run: metrics, checkpoints, and the finished model in `model/`.
    """

    model: str
    data: tuple[Path, ...]
    valid: Path | None = None
    chat_format: str | None = None
    seq_len: int = 2048
    rows_per_batch: int = 8
    epochs: int | None = None
    on_long: Literal["cut", "drop"] = "cut"
    settings: TrainSettings = field(default_factory=lambda: TrainSettings(lr=4e-5))
    out: Path

    def __post_init__(self) -> None:
        for name in ("seq_len", "rows_per_batch"):
            if getattr(self, name) < 1:
                raise RecipeError(f"{name} must be above 0, not {getattr(self, name)}")
        if not self.data:
            raise RecipeError("data must name at least one file")
        if self.settings.tokens is not None:
            raise RecipeError("fine-tuning counts epochs or settings.steps, not settings.tokens")
        if (self.epochs is None) == (self.settings.steps is None):
            raise RecipeError("give either epochs or settings.steps")
        if self.epochs is not None and self.epochs < 1:
            raise RecipeError(f"epochs must be above 0, not {self.epochs}")


def sft(recipe: SFTRecipe, *, overwrite: bool = False) -> TrainResult:
    """Runs a recipe, or goes on with it where an earlier run stopped; the model is saved to `out/model`.

    Raises:
        RecipeError, HubError, CheckpointError, TokenizerError, ChatError, DataError, TrainError: With what is wrong
            and what to do.
    """
    settings = recipe.settings
    path = resolve_model(recipe.model)
    tokenizer = Tokenizer.load(path)
    inputs = {"model": path, **{f"data.{index}": file for index, file in enumerate(recipe.data) if file.is_file()}}
    identity = run_identity(recipe, FREE_FIELDS, inputs)
    decoder = load_model(path, dtype=torch.float32)
    if decoder.config.head != "lm":
        raise RecipeError(f"model: {path} is a reward model; fine-tuning needs a language model")
    chat_format = find_chat_format(recipe.chat_format) if recipe.chat_format else _own_format(decoder, tokenizer)

    loaded = load_samples(recipe.data, tokenizer, chat_format, recipe.seq_len, recipe.on_long)
    print(f"sft: {loaded.summary(recipe.seq_len)}", file=sys.stderr, flush=True)
    batches = ConversationBatches(loaded.samples, recipe.seq_len, recipe.rows_per_batch, settings.seed)
    validation = None
    if recipe.valid is not None:
        held_out = load_samples([recipe.valid], tokenizer, chat_format, recipe.seq_len, recipe.on_long)
        print(f"sft, validation: {held_out.summary(recipe.seq_len)}", file=sys.stderr, flush=True)
        validation = ConversationBatches(held_out.samples, recipe.seq_len, recipe.rows_per_batch, settings.seed)
    if recipe.epochs is not None:
        steps = math.ceil(batches.batches_in(recipe.epochs) / settings.accumulation)
    else:
        steps = settings.total_steps(recipe.seq_len * recipe.rows_per_batch)
    pick_device(settings.device)
    # Only now: overwriting forgets the old run, which a mistake in the recipe must not cost.
    open_run(recipe.out, identity, overwrite=overwrite)
    write_recipe(recipe, recipe.out)

    def validate(model: Decoder) -> dict[str, float]:
        assert validation is not None
        return mean_loss(model, validation.in_order())

    result = train(
        decoder,
        batches,
        settings,
        recipe.out,
        steps=steps,
        identity=identity,
        validate=validate if validation else None,
        label="fine-tuning",
    )
    # Whoever generates with the finished model stops where an answer ends.
    stops = tuple(sorted({*decoder.config.eos_token_ids, *chat_format.stop_ids(tokenizer)}))
    decoder.config = decoder.config.evolve(eos_token_ids=stops)

    def write_text_files(folder: Path) -> None:
        tokenizer.save(folder)
        template = template_source(chat_format)
        if template is not None:  # the format that the model was trained with, for whoever loads the folder
            (folder / "chat_template.jinja").write_text(template, encoding="utf-8")

    save_model(decoder, recipe.out / MODEL_FOLDER, overwrite=True, write_extra=write_text_files)
    return result


def _own_format(decoder: Decoder, tokenizer: Tokenizer) -> ChatFormat:
    config = decoder.config
    return chat_format_for(config.family, tokenizer, reward_token_id=config.reward_token_id)
