"""What verbs that run a recipe share: the recipe's file, overrides of its values, and flags among them."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple


class Flags(NamedTuple):
    """Flags that may stand before or behind the recipe."""

    print_recipe: bool
    overwrite: bool


AddFlags = Callable[[argparse.ArgumentParser], None]
"""Adds a verb's own flags to a parser."""


def no_flags(parser: argparse.ArgumentParser) -> None:
    """For verbs without flags of their own."""


def add_recipe_arguments(parser: argparse.ArgumentParser, more: AddFlags = no_flags, usage: str = "") -> None:
    """Adds the recipe, overrides, and flags.

    Args:
        more: Adds the verb's own flags, which are then attributes of the parsed arguments.
        usage: How these are shown, such as " [--dry-run]".
    """
    parser.usage = f"{parser.prog} RECIPE.yaml [--key.path VALUE ...] [--print-recipe] [--overwrite]{usage}"
    parser.add_argument("recipe", type=Path, metavar="RECIPE.yaml", help="what to run")
    _add_flags(parser, more)
    overrides = parser.add_argument(
        "overrides", nargs=argparse.REMAINDER, metavar="--key.path VALUE",
        help="values that win over the recipe's, such as --settings.lr 1e-3",
    )  # fmt: skip
    overrides.required = False  # argparse calls what is left over required


def _add_flags(parser: argparse.ArgumentParser, more: AddFlags) -> None:
    parser.add_argument("--print-recipe", action="store_true", help="print the recipe with all its values and stop")
    parser.add_argument("--overwrite", action="store_true", help="start over where the folder holds another run")
    more(parser)


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


def split_flags(args: argparse.Namespace, more: AddFlags = no_flags) -> tuple[Flags, list[str]]:
    """Tells the flags from the overrides, between which they may stand.

    Args:
        more: As `add_recipe_arguments` was given. These flags are put into `args`.

    Returns:
        The flags, and the overrides.
    """
    parser = argparse.ArgumentParser(
        prog=f"puyu {args.verb}", usage=argparse.SUPPRESS, add_help=False, allow_abbrev=False
    )
    _add_flags(parser, more)
    given = vars(args)
    for action in parser._actions:  # what stood before the recipe stays, unless it is given again
        action.default = given[action.dest]
    found, overrides = parser.parse_known_args(args.overrides)
    given |= vars(found)
    return Flags(args.print_recipe, args.overwrite), overrides


def is_main() -> bool:
    """Whether this process, of those that torchrun may have started, is the one that prints."""
    return os.environ.get("RANK", "0") == "0"
