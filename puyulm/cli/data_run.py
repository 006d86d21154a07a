"""`puyu data run`: a pipeline from a recipe."""

from __future__ import annotations

import argparse

from puyulm.cli.recipes import recipe_file


def configure_run(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `puyu data run`."""
    parser.usage = f"{parser.prog} RECIPE.yaml [--key.path VALUE ...] [--print-recipe]"
    parser.description = (
        "Runs the stages of a recipe, each once: a second run goes on where the first stopped, and repeats only what "
        "a changed recipe or changed input touches."
    )
    parser.add_argument("recipe", metavar="RECIPE.yaml", help="what to run")
    parser.add_argument("--print-recipe", action="store_true", help="print the recipe with all its values and stop")
    parser.add_argument(
        "overrides", nargs=argparse.REMAINDER, metavar="--key.path VALUE",
        help="values that win over the recipe's: --workers 4, --out corpus, --stages.dedup.method exact",
    )  # fmt: skip


def run_run(args: argparse.Namespace) -> None:
    """Runs the pipeline and says what came of it."""
    from pathlib import Path

    from puyulm.data.pipeline.recipe import DataRecipe
    from puyulm.data.pipeline.run import run_pipeline
    from puyulm.recipe import dump_recipe, load_recipe

    overrides = [word for word in args.overrides if word != "--print-recipe"]
    recipe = load_recipe(DataRecipe, recipe_file(Path(args.recipe)), overrides)
    if args.print_recipe or len(overrides) != len(args.overrides):
        print(dump_recipe(recipe), end="")
        return
    results = run_pipeline(recipe)
    last = results[-1]
    print(f"{last.folder}: {last.counts.documents_out:,} documents, {last.counts.bytes_out / 1e6:,.1f} MB")
    print(f"look at it with: puyu data report {recipe.out}")
