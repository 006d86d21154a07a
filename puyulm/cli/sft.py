"""`puyu sft`: fine-tune a model on conversations from a recipe."""

from __future__ import annotations

import argparse

from puyulm.cli.recipes import add_recipe_arguments, is_main, recipe_file, split_flags


def configure(parser: argparse.ArgumentParser) -> None:
    add_recipe_arguments(parser)


def run(args: argparse.Namespace) -> None:
    from puyulm.align.sft import SFTRecipe, sft
    from puyulm.recipe import dump_recipe, load_recipe

    flags, overrides = split_flags(args)
    recipe = load_recipe(SFTRecipe, recipe_file(args.recipe), overrides)
    if flags.print_recipe:
        if is_main():
            print(dump_recipe(recipe), end="")
        return
    result = sft(recipe, overwrite=flags.overwrite)
    measured = "".join(
        f", validation {name.replace('_', ' ')} {value:.4f}" for name, value in result.validation.items()
    )
    if is_main():
        print(f"{recipe.out}/model: {result.steps:,} steps, {result.tokens:,} tokens{measured}")
