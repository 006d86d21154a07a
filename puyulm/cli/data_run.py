"""`puyu data run` and `puyu data estimate`: a pipeline from a recipe, and what it would cost at another size."""

from __future__ import annotations

import argparse

from puyulm.cli.recipes import recipe_file


def configure_run(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `puyu data run`."""
    parser.usage = f"{parser.prog} RECIPE.yaml [--key.path VALUE ...] [--until STAGE] [--print-recipe]"
    parser.description = (
        "Runs the stages of a recipe, each once: a second run goes on where the first stopped, and repeats only what "
        "a changed recipe or changed input touches."
    )
    parser.add_argument("recipe", metavar="RECIPE.yaml", help="what to run")
    parser.add_argument("--print-recipe", action="store_true", help="print the recipe with all its values and stop")
    parser.add_argument("--until", default="", metavar="STAGE", help="stop after this stage; a later run goes on")
    overrides = parser.add_argument(
        "overrides", nargs=argparse.REMAINDER, metavar="--key.path VALUE",
        help="values that win over the recipe's: --workers 4, --out corpus, --stages.dedup.method exact",
    )  # fmt: skip
    overrides.required = False  # argparse calls what is left over required


def run_run(args: argparse.Namespace) -> int:
    """Runs the pipeline and says what came of it."""
    import sys
    from pathlib import Path

    from puyulm.data.pipeline.recipe import DataRecipe
    from puyulm.data.pipeline.run import run_pipeline
    from puyulm.recipe import dump_recipe, load_recipe

    print_recipe, until, overrides = _flags(args)
    recipe = load_recipe(DataRecipe, recipe_file(Path(args.recipe)), overrides)
    if print_recipe:
        print(dump_recipe(recipe), end="")
        return 0
    try:
        results = run_pipeline(recipe, until=until)
    except KeyboardInterrupt:
        print("\ninterrupted: the same command goes on behind the last finished task", file=sys.stderr)
        return 130
    last = results[-1]
    print(f"{last.folder}: {last.counts.documents_out:,} documents, {last.counts.bytes_out / 1e6:,.1f} MB")
    print(f"look at it with: puyu data report {recipe.out}")
    return 0


def _flags(args: argparse.Namespace) -> tuple[bool, str, list[str]]:
    """(--print-recipe, --until, overrides): the flags may also stand behind the recipe, among the overrides."""
    print_recipe, until, overrides = args.print_recipe, args.until, list(args.overrides)
    if "--print-recipe" in overrides:
        overrides.remove("--print-recipe")
        print_recipe = True
    for place, word in enumerate(overrides):
        if word == "--until" and place + 1 < len(overrides):
            until = overrides[place + 1]
            del overrides[place : place + 2]
            break
        if word.startswith("--until="):
            until = overrides.pop(place).partition("=")[2]
            break
    return print_recipe, until, overrides


def configure_estimate(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `puyu data estimate`."""
    from pathlib import Path

    parser.description = "Scales the measured figures of a finished run to another size of input."
    parser.add_argument("folder", type=Path, metavar="DIR", help="what `puyu data run` wrote")
    parser.add_argument(
        "--input-tb",
        type=float,
        default=100,
        metavar="TB",
        help="size of the input files, compressed as they are [%(default)s]",
    )
    parser.add_argument("--documents", type=float, metavar="N", help="or its number of documents, such as 3.2e9")
    parser.add_argument("--cores", type=int, default=1000, metavar="N", help="cores that share the work [%(default)s]")


def run_estimate(args: argparse.Namespace) -> None:
    """Prints a table of core hours, storage and shuffles."""
    from puyulm.data.pipeline.estimate import basis, estimate, estimate_table
    from puyulm.data.pipeline.run import load_results
    from puyulm.errors import DataError

    if min(args.input_tb, 1 if args.documents is None else args.documents) <= 0 or args.cores < 1:
        raise DataError("--input-tb and --documents must be more than 0, and --cores at least 1")
    results = load_results(args.folder)
    print(estimate_table(estimate(results, args.input_tb * 1e12, args.documents or 0), args.cores))
    print(basis(results))
