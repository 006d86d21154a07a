"""Pretraining: a recipe of phases, token shards, and a decoder with fresh or published weights."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from puyulm.data.shards import TokenShards
from puyulm.errors import RecipeError
from puyulm.model.checkpoint import load_config
from puyulm.model.config import ModelConfig
from puyulm.model.hub import resolve_model
from puyulm.model.presets import preset
from puyulm.parallel.build import ParallelModel, build_model
from puyulm.parallel.plan import ParallelPlan
from puyulm.parallel.weights import init_weights, load_weights, save_weights
from puyulm.parallel.world import World
from puyulm.text.tokenizer import Tokenizer
from puyulm.train.loop import TrainResult, pick_device, train
from puyulm.train.mixture import open_mixture
from puyulm.train.phases import Data, Phase, Timeline
from puyulm.train.reading import PhasedRows
from puyulm.train.run import MODEL_FOLDER, begin_run, run_identity, save_export
from puyulm.train.settings import TrainSettings
from puyulm.train.sources import open_sources
from puyulm.train.validation import bits_per_byte

# Fields that may differ when a run is resumed: places of files, and how the work is divided.
FREE_FIELDS = (
    "out", "tokenizer", "data", "data.*", "phases.*.data", "phases.*.data.*", "mixture", "valid", "valid_tokens",
    "micro_tokens", "parallel.*",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class FromCheckpoint:
    """A published checkpoint to go on from.

    Attributes:
        from_: Its folder, or a published name; written `from` in a recipe.
    """

    from_: str


@dataclass(frozen=True, kw_only=True)
class PretrainRecipe:
    """What to pretrain, on what, and for how long.

    Attributes:
        model: A preset's name or a shape written out, to begin with fresh weights; or `{from: CHECKPOINT}`.
        tokenizer: Folder of the tokenizer; it is copied beside the weights.
        data: Token shards of all phases that name none: a folder, or folders with their shares of the tokens.
        mixture: Instead: the folder that `puyu data` mixed; each phase reads the part of its name, and `valid` is
            taken from it, too.
        valid: Folder of token shards to validate on, whole documents at a time.
        valid_tokens: Validate on the first documents with about so many tokens; None takes all.
        phases: What is learned, in order.
        micro_tokens: Tokens of one rank's micro-batch, at most; a row at least. A matter of memory: it does not change
            what is learned.
        boundaries: Documents of a row see only themselves; off, a row is one text.
        parallel: How the model is spread over ranks.
        settings: Of the loop.
        out: Folder of the run: metrics, checkpoints, and the finished model in `model/`.
    """

    model: str | ModelConfig | FromCheckpoint
    tokenizer: Path
    data: Data | None = None
    mixture: Path | None = None
    valid: Path | None = None
    valid_tokens: int | None = None
    phases: tuple[Phase, ...]
    micro_tokens: int = 16_384
    boundaries: bool = True
    parallel: ParallelPlan = field(default_factory=ParallelPlan)
    settings: TrainSettings = field(default_factory=TrainSettings)
    out: Path

    def __post_init__(self) -> None:
        problems = []
        if not self.phases:
            problems.append("phases must be at least one phase")
        names = [phase.name for phase in self.phases]
        if len(set(names)) < len(names):
            problems.append(f"phases need different names, found {', '.join(names)}")
        if self.data is not None and self.mixture is not None:
            problems.append("give data or mixture, not both")
        if self.data is None and self.mixture is None and any(phase.data is None for phase in self.phases):
            problems.append("data is missing: give data, mixture, or data in every phase")
        if self.micro_tokens < 1:
            problems.append(f"micro_tokens must be above 0, not {self.micro_tokens}")
        if problems:
            raise RecipeError("; ".join(problems))

    def phase_data(self, phase: Phase) -> Data:
        """Where a phase's tokens are."""
        if phase.data is not None:
            return phase.data
        if self.data is not None:
            return self.data
        assert self.mixture is not None
        return self.mixture / phase.name / "train"

    @property
    def validation_data(self) -> Path | None:
        """Where the documents to validate on are."""
        if self.valid is not None or self.mixture is None:
            return self.valid
        found = self.mixture / "valid"
        return found if found.is_dir() else None


def pretrain(recipe: PretrainRecipe, *, overwrite: bool = False, profile: bool = False) -> TrainResult:
    """Runs a recipe, or goes on with it where an earlier run stopped; the model is saved to `out/model`.

    Every process that torchrun starts calls it with the same recipe; one process alone does the same.

    Raises:
        RecipeError, ConfigError, DataError, TokenizerError, CheckpointError, TrainError: With what is wrong and what
            to do.
    """
    with World.join(recipe.parallel, pick_device(recipe.settings.device)) as world:
        return _pretrain(recipe, world, overwrite, profile)


def _pretrain(recipe: PretrainRecipe, world: World, overwrite: bool, profile: bool) -> TrainResult:
    settings, tokenizer = recipe.settings, Tokenizer.load(recipe.tokenizer)
    timeline = Timeline(recipe.phases, settings)
    config, start = model_config(recipe, tokenizer)
    data = {phase.name: recipe.phase_data(phase) for phase in recipe.phases}
    mixture = open_mixture(recipe.mixture, recipe.phases) if recipe.mixture else None
    sources = open_sources(data, settings.seed, tokenizer)
    valid = TokenShards.open(recipe.validation_data) if recipe.validation_data else None
    if valid is not None:
        valid.check_tokenizer(tokenizer)
    course = PhasedRows(timeline, sources, recipe.micro_tokens, boundaries=recipe.boundaries)
    course.check(world.plan)
    identity = _identity(recipe, start)
    micro_tokens = max(recipe.micro_tokens, max(phase.seq_len for phase in recipe.phases))
    model = build_model(config, world, dtype=getattr(torch, settings.dtype), micro_tokens=micro_tokens)
    begin_run(world, recipe, identity, overwrite=overwrite)
    if world.main:
        for line in [*(mixture.notes(timeline) if mixture else ()), *course.notes()]:
            print(f"pretraining: {line}", file=sys.stderr)

    def fill(model: ParallelModel) -> None:
        if start is None:
            init_weights(model, settings.seed)
        else:
            load_weights(model, start)

    def validate(model: ParallelModel, step: int) -> Mapping[str, float]:
        assert valid is not None
        return bits_per_byte(model, valid, course.seq_len(max(step - 1, 0)), recipe.valid_tokens)

    result = train(
        model, course, settings, recipe.out, identity=identity, fill=fill, validate=validate if valid else None,
        export=lambda model, step: save_export(model, recipe.out, step, tokenizer.save), label="pretraining",
        profile=profile,
    )  # fmt: skip
    save_weights(model, recipe.out / MODEL_FOLDER, write_extra=tokenizer.save)
    return result


def _identity(recipe: PretrainRecipe, start: Path | None) -> dict[str, Any]:
    """What may not change when a run is resumed: what is learned from, wherever it lies, phase by phase."""
    inputs = {} if start is None else {"model": start}
    shares = {}
    for number, phase in enumerate(recipe.phases):
        data = recipe.phase_data(phase)
        for place, (folder, share) in enumerate((data if isinstance(data, dict) else {str(data): 1.0}).items()):
            inputs[f"phases.{number}.data.{place}"] = Path(folder).expanduser()
            shares[f"phases.{number}.data.{place} (share)"] = share
    # Of the plan, only the precision of the products changes what is learned.
    return run_identity(recipe, FREE_FIELDS, inputs) | shares | {"parallel.float8": recipe.parallel.float8}


def model_config(recipe: PretrainRecipe, tokenizer: Tokenizer) -> tuple[ModelConfig, Path | None]:
    """The shape to train, with the tokenizer's special tokens; and the checkpoint to begin with, if any.

    Raises:
        ConfigError, HubError: The preset or the checkpoint is unknown.
        RecipeError: The vocabulary is smaller than the tokenizer's, or rows are longer than the model's positions.
    """
    start: Path | None = None
    if isinstance(recipe.model, FromCheckpoint):
        start = resolve_model(recipe.model.from_)
        config = load_config(start)
    else:
        config = preset(recipe.model).config if isinstance(recipe.model, str) else recipe.model
    seq_len = max(phase.seq_len for phase in recipe.phases)
    if config.head != "lm":
        raise RecipeError(f"model: pretraining needs a language model's head; {_remedy(recipe, 'head', 'lm')}")
    if config.vocab_size < tokenizer.vocab_size:
        raise RecipeError(
            f"model: vocab_size {config.vocab_size:,} is smaller than the tokenizer's {tokenizer.vocab_size:,} "
            f"({recipe.tokenizer}); {_remedy(recipe, 'vocab_size', tokenizer.vocab_size)}"
        )
    if config.max_position_embeddings < seq_len and start is None:
        raise RecipeError(
            f"seq_len {seq_len:,} is above the model's max_position_embeddings "
            f"{config.max_position_embeddings:,}; lower seq_len or "
            + _remedy(recipe, "max_position_embeddings", seq_len)
        )
    eos = (tokenizer.eos_id,) if tokenizer.eos_id is not None else config.eos_token_ids
    config = config.evolve(bos_token_id=tokenizer.bos_id, eos_token_ids=eos, pad_token_id=tokenizer.pad_id)
    return config.evolve(max_position_embeddings=max(config.max_position_embeddings, seq_len)), start


def _remedy(recipe: PretrainRecipe, field: str, value: object) -> str:
    if not isinstance(recipe.model, ModelConfig):  # a preset has no fields to set
        return f"write the model's shape out in the recipe, with {field}: {value}"
    return f"set --model.{field} {value}"
