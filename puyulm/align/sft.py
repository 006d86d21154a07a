"""Supervised fine-tuning: conversations rendered by the one renderer, trained by the one loop."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

from puyulm.align.conversations import ConversationBatches, load_samples
from puyulm.data.packing import PackedBatch
from puyulm.errors import RecipeError
from puyulm.model.checkpoint import load_config
from puyulm.model.config import ModelConfig
from puyulm.model.hub import resolve_model
from puyulm.parallel.build import ParallelModel, build_model
from puyulm.parallel.plan import ParallelPlan
from puyulm.parallel.weights import load_weights, save_weights
from puyulm.parallel.world import World
from puyulm.text.chat import ChatFormat, chat_format_for, find_chat_format
from puyulm.text.template_source import template_source
from puyulm.text.tokenizer import Tokenizer
from puyulm.train.course import Skips
from puyulm.train.loop import TrainResult, pick_device, train
from puyulm.train.run import MODEL_FOLDER, begin_run, run_identity, save_export
from puyulm.train.schedule import Schedule
from puyulm.train.settings import TrainSettings
from puyulm.train.validation import mean_loss

FREE_FIELDS = ("out", "model", "data", "valid", "parallel.*")


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
        epochs, steps: How long: passes over the data, or optimizer steps.
        accumulation: Micro-batches of one step, over all ranks.
        on_long: What happens to conversations longer than `seq_len`: cut at the end, or drop. Both are counted and
            printed.
        parallel: How the model is spread over ranks.
        out: Folder of the run: metrics, checkpoints, and the finished model in `model/`.
    """

    model: str
    data: tuple[Path, ...]
    valid: Path | None = None
    chat_format: str | None = None
    seq_len: int = 2048
    rows_per_batch: int = 8
    epochs: int | None = None
    steps: int | None = None
    accumulation: int = 1
    on_long: Literal["cut", "drop"] = "cut"
    parallel: ParallelPlan = field(default_factory=ParallelPlan)
    settings: TrainSettings = field(default_factory=lambda: TrainSettings(lr=4e-5))
    out: Path

    def __post_init__(self) -> None:
        for name in ("seq_len", "rows_per_batch", "accumulation", "epochs", "steps"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise RecipeError(f"{name} must be above 0, not {getattr(self, name)}")
        if not self.data:
            raise RecipeError("data must name at least one file")
        if (self.epochs is None) == (self.steps is None):
            raise RecipeError("give either epochs or steps")


class ConversationCourse:
    """A `Course` over packed conversations: one phase, steps of `accumulation` micro-batches."""

    sources: Sequence[str] = ()
    bits_per_byte_factor: float | None = None

    def __init__(self, batches: ConversationBatches, steps: int, accumulation: int, settings: TrainSettings) -> None:
        self.steps = steps
        self._batches, self._accumulation = batches, accumulation
        self._schedule = Schedule.of(settings, steps)

    def lr(self, step: int) -> float:
        return self._schedule(step)

    def rope_theta(self, step: int) -> float | None:
        return None

    def phase(self, step: int) -> str:
        return ""

    def phase_index(self, step: int) -> int:
        return 0

    def seq_len(self, step: int) -> int:
        return self._batches.seq_len

    def batches(self, step: int, part: int, parts: int, skips: Skips = ()) -> list[PackedBatch]:
        size = self._accumulation // parts
        first = (step + sum(skips)) * self._accumulation + part * size
        return [self._batches.batch(number) for number in range(first, first + size)]

    def skip(self, first: int, last: int, skips: Skips = ()) -> Skips:
        return (sum(skips) + last - first + 1,)

    def epochs(self, step: int, skips: Skips = ()) -> dict[str, float]:
        return {}


def sft(recipe: SFTRecipe, *, overwrite: bool = False) -> TrainResult:
    """Runs a recipe, or goes on with it where an earlier run stopped; the model is saved to `out/model`.

    Raises:
        RecipeError, HubError, CheckpointError, TokenizerError, ChatError, DataError, TrainError: With what is wrong
            and what to do.
    """
    with World.join(recipe.parallel, pick_device(recipe.settings.device)) as world:
        return _sft(recipe, world, overwrite)


def _sft(recipe: SFTRecipe, world: World, overwrite: bool) -> TrainResult:
    settings = recipe.settings
    path = resolve_model(recipe.model)
    tokenizer = Tokenizer.load(path)
    inputs = {"model": path, **{f"data.{index}": file for index, file in enumerate(recipe.data) if file.is_file()}}
    identity = run_identity(recipe, FREE_FIELDS, inputs)
    config = load_config(path)
    if config.head != "lm":
        raise RecipeError(f"model: {path} is a reward model; fine-tuning needs a language model")
    if recipe.accumulation % world.plan.data_size:
        raise RecipeError(f"accumulation {recipe.accumulation} cannot be divided among {world.plan.data_size} ranks "
                          f"(replicate x shard); make it a multiple")  # fmt: skip
    chat_format = find_chat_format(recipe.chat_format) if recipe.chat_format else _own_format(config, tokenizer)

    loaded = load_samples(recipe.data, tokenizer, chat_format, recipe.seq_len, recipe.on_long)
    if world.main:
        print(f"sft: {loaded.summary(recipe.seq_len)}", file=sys.stderr, flush=True)
    batches = ConversationBatches(loaded.samples, recipe.seq_len, recipe.rows_per_batch, settings.seed)
    validation = None
    if recipe.valid is not None:
        held_out = load_samples([recipe.valid], tokenizer, chat_format, recipe.seq_len, recipe.on_long)
        if world.main:
            print(f"sft, validation: {held_out.summary(recipe.seq_len)}", file=sys.stderr, flush=True)
        validation = ConversationBatches(held_out.samples, recipe.seq_len, recipe.rows_per_batch, settings.seed)
    steps = recipe.steps
    if steps is None:
        assert recipe.epochs is not None
        steps = math.ceil(batches.batches_in(recipe.epochs) / recipe.accumulation)
    # Only now: overwriting forgets the old run, which a mistake in the recipe must not cost.
    begin_run(world, recipe, identity, overwrite=overwrite)

    def validate(model: ParallelModel, step: int) -> dict[str, float]:
        assert validation is not None
        return mean_loss(model, validation.in_order())

    # Whoever generates with the model stops where an answer ends.
    stops = tuple(sorted({*config.eos_token_ids, *chat_format.stop_ids(tokenizer)}))

    def write_text_files(folder: Path) -> None:
        tokenizer.save(folder)
        template = template_source(chat_format)
        if template is not None:  # the format that the model was trained with, for whoever loads the folder
            (folder / "chat_template.jinja").write_text(template, encoding="utf-8")

    model = build_model(
        config.evolve(eos_token_ids=stops), world, dtype=getattr(torch, settings.dtype),
        micro_tokens=recipe.seq_len * recipe.rows_per_batch,
    )  # fmt: skip
    result = train(
        model, ConversationCourse(batches, steps, recipe.accumulation, settings), settings, recipe.out,
        identity=identity, fill=lambda model: load_weights(model, path), validate=validate if validation else None,
        export=lambda model, step: save_export(model, recipe.out, step, write_text_files), label="fine-tuning",
    )  # fmt: skip
    save_weights(model, recipe.out / MODEL_FOLDER, write_extra=write_text_files)
    return result


def _own_format(config: ModelConfig, tokenizer: Tokenizer) -> ChatFormat:
    return chat_format_for(config.family, tokenizer, reward_token_id=config.reward_token_id)
