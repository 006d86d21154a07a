"""What verbs that run a recipe share: the recipe's file, overrides of its values, and two flags."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple


class Flags(NamedTuple):
    """Flags that may stand before or behind the recipe."""

    print_recipe: bool
    overwrite: bool


def add_recipe_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = f"{parser.prog} RECIPE.yaml [--key.path VALUE ...] [--print-recipe] [--overwrite]"
    parser.add_argument("recipe", type=Path, metavar="RECIPE.yaml", help="what to run")
    parser.add_argument("--print-recipe", action="store_true", help="print the recipe with all its values and stop")
    parser.add_argument("--overwrite", action="store_true", help="start over where the folder holds another run")
    overrides = parser.add_argument(
        "overrides", nargs=argparse.REMAINDER, metavar="--key.path VALUE",
        help="values that win over the recipe's, such as --settings.lr 1e-3",
    )  # fmt: skip
    overrides.required = False  # argparse calls what is left over required


def recipe_file(path: Path) -> Path:
    """The file to read: `path`, or where it is missing and begins with `recipes/`, the recipe of that name that comes
    with PuyuLM."""
    if path.exists() or path.parts[:1] != ("recipes",):
        return path
    from puyulm.demo.recipe import recipe_path
    from puyulm.errors import RecipeError

    try:
        return recipe_path(str(Path(*path.parts[1:])))
    except RecipeError:
        return path  # the error about it names what was asked for


def split_flags(args: argparse.Namespace) -> tuple[Flags, list[str]]:
    """Tells the flags from the overrides, between which they may stand.

    Returns:
        The flags, and the overrides.
    """
    given = {"--print-recipe": args.print_recipe, "--overwrite": args.overwrite}
    overrides = []
    for word in args.overrides:
        if word in given:
            given[word] = True
        else:
            overrides.append(word)
    return Flags(*given.values()), overrides
