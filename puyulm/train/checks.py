"""What of a recipe can be checked before anything is read: the model's name, the plan, the batches."""

from __future__ import annotations

import os
from pathlib import Path

from puyulm.errors import ConfigError, RecipeError
from puyulm.model.checkpoint import load_config
from puyulm.model.config import ModelConfig
from puyulm.model.hub import resolve_model
from puyulm.model.presets import find_preset, preset
from puyulm.parallel.plan import ParallelPlan
from puyulm.parallel.search import Work
from puyulm.train.phases import Timeline
from puyulm.train.pretrain import FromCheckpoint, PretrainRecipe


def world_size(recipe: PretrainRecipe) -> int:
    """Ranks of a run: those that torchrun has started, else as many as the sizes of the plan make."""
    plan = recipe.parallel
    sizes = plan.replicate * (plan.shard or 1) * plan.context * plan.tensor * plan.pipeline
    return int(os.environ.get("WORLD_SIZE", sizes))


def shape_of(recipe: PretrainRecipe) -> ModelConfig:
    """The shape of a recipe's model; of a checkpoint that is not on this machine, its preset's.

    Raises:
        ConfigError, HubError: It is neither known nor found.
    """
    if isinstance(recipe.model, ModelConfig):
        return recipe.model
    if isinstance(recipe.model, str):
        return preset(recipe.model).config
    known = find_preset(recipe.model.from_)
    if known is not None and not Path(recipe.model.from_).expanduser().exists():
        return known.config
    return load_config(resolve_model(recipe.model.from_))


def check_recipe(recipe: PretrainRecipe, path: str) -> None:
    """Checks what can be checked without the recipe's files.

    Raises:
        RecipeError: With one line for every problem: a model that is not known, a plan or rows that do not fit it,
            batches that cannot be divided.
    """
    problems = recipe_problems(recipe)
    if len(problems) == 1:
        raise RecipeError(f"{path}: {problems[0]}")
    if problems:
        raise RecipeError("\n  ".join([f"{path} has {len(problems)} problems:", *problems]))


def recipe_problems(recipe: PretrainRecipe) -> list[str]:
    """Of `check_recipe`, a line each."""
    problems: list[str] = []
    try:
        plan: ParallelPlan | None = recipe.parallel.resolved(world_size(recipe))
    except RecipeError as error:
        plan = None
        problems.append(str(error))
    if isinstance(recipe.model, FromCheckpoint):
        config = None  # a checkpoint is looked for when the run begins
    else:
        try:
            config = shape_of(recipe)
        except ConfigError as error:
            config = None
            problems.append(f"model: {error}")
    if config is not None:
        problems += recipe.parallel.problems(config)
        longest = max(phase.seq_len for phase in recipe.phases)
        if longest > config.max_position_embeddings:
            problems.append(
                f"a phase has seq_len {longest:,}, but the model max_position_embeddings "
                f"{config.max_position_embeddings:,}; lower seq_len, or write the model's shape out with more"
            )
    return problems + (_batch_problems(recipe, plan) if plan is not None else [])


def _batch_problems(recipe: PretrainRecipe, plan: ParallelPlan) -> list[str]:
    problems = []
    timeline = Timeline(recipe.phases, recipe.settings)
    for segment in timeline.segments:
        phase = recipe.phases[segment.phase]
        work = Work(seq_len=phase.seq_len, rows=segment.rows, steps=segment.steps)
        if work.rows % plan.data_size:
            problems.append(
                f"phase {phase.name}: {work.rows:,} rows of {phase.seq_len:,} tokens a step cannot be divided among "
                f"{plan.data_size} ranks (replicate x shard); make batch_tokens a multiple of "
                f"{plan.data_size * phase.seq_len:,}"
            )
        elif problem := plan.micro_batches_problem(work.load(plan, padded_micro_tokens(recipe)).micro_batches):
            problems.append(f"phase {phase.name}: {problem}")
    return list(dict.fromkeys(problems))


def padded_micro_tokens(recipe: PretrainRecipe) -> int:
    """Tokens of a pipeline's micro-batches, which have one size in all phases."""
    return max(recipe.micro_tokens, max(phase.seq_len for phase in recipe.phases))


def works_of(recipe: PretrainRecipe) -> list[Work]:
    """The kinds of steps of a run: one for each phase, and each size of batch of its ramp."""
    segments = Timeline(recipe.phases, recipe.settings).segments
    return [Work(seq_len=recipe.phases[s.phase].seq_len, rows=s.rows, steps=s.steps) for s in segments]
