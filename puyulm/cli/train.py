"""`puyu train`: pretrain a model from a recipe."""

from __future__ import annotations

import argparse

from puyulm.cli.recipes import add_recipe_arguments, recipe_file, split_flags


def configure(parser: argparse.ArgumentParser) -> None:
    add_recipe_arguments(parser)


def run(args: argparse.Namespace) -> None:
    from puyulm.recipe import dump_recipe, load_recipe
    from puyulm.train.pretrain import PretrainRecipe, pretrain

    flags, overrides = split_flags(args)
    recipe = load_recipe(PretrainRecipe, recipe_file(args.recipe), overrides)
    if flags.print_recipe:
        print(dump_recipe(recipe), end="")
        return
    result = pretrain(recipe, overwrite=flags.overwrite)
    measured = "".join(
        f", validation {name.replace('_', ' ')} {value:.4f}" for name, value in result.validation.items()
    )
    print(f"{recipe.out}/model: {result.steps:,} steps, {result.tokens:,} tokens{measured}")
