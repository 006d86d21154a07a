"""`puyu train`: pretrain a model from a recipe, or say beforehand what that takes."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from puyulm.cli.recipes import add_recipe_arguments, is_main, recipe_file, split_flags

if TYPE_CHECKING:
    from puyulm.train.pretrain import PretrainRecipe

DRY_RUN = "[--dry-run [--gpus N] [--memory SIZE] [--mfu SHARE] ...]"


def configure(parser: argparse.ArgumentParser) -> None:
    add_recipe_arguments(parser, add_flags, f" [--profile] {DRY_RUN}")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of this verb."""
    parser.add_argument("--profile", action="store_true", help="write a trace of some steps and a memory snapshot")
    parser.add_argument("--dry-run", action="store_true", help="print memory, steps and hours, and stop")
    add = parser.add_argument_group("with --dry-run").add_argument
    add("--gpus", type=int, metavar="N", help="search for the best plans on so many GPUs")
    add("--gpus-per-node", type=int, default=8, metavar="N", help="GPUs that fast links join [%(default)s]")
    add("--memory", metavar="SIZE", help="of a GPU [this machine's, else 80GiB]")
    add("--peak-tflops", type=float, metavar="N", help="of a GPU [settings.peak_tflops, this machine's, else 989]")
    add("--mfu", type=float, default=0.4, metavar="SHARE", help="share of the peak that is reached [%(default)s]")
    add("--bandwidth", default="40GB", metavar="SIZE", help="a second and GPU between nodes [%(default)s]")
    add("--node-bandwidth", default="300GB", metavar="SIZE", help="a second and GPU within a node [%(default)s]")


def run(args: argparse.Namespace) -> int:
    from puyulm.errors import RecipeError
    from puyulm.recipe import dump_recipe, load_recipe
    from puyulm.train.checks import check_recipe
    from puyulm.train.pretrain import PretrainRecipe, pretrain

    flags, overrides = split_flags(args, add_flags)
    recipe = load_recipe(PretrainRecipe, recipe_file(args.recipe), overrides)
    check_recipe(recipe, str(args.recipe))
    if flags.print_recipe:
        if is_main():
            print(dump_recipe(recipe), end="")
        return 0
    if args.dry_run:
        return dry_run(args, recipe) if is_main() else 0
    if args.gpus is not None:
        raise RecipeError("--gpus searches for plans with --dry-run; how many GPUs train, torchrun says")
    result = pretrain(recipe, overwrite=flags.overwrite, profile=args.profile)
    measured = "".join(
        f", validation {name.replace('_', ' ')} {value:.4f}" for name, value in result.validation.items()
    )
    if is_main():
        print(f"{recipe.out}/model: {result.steps:,} steps, {result.tokens:,} tokens{measured}")
    return 0


def dry_run(args: argparse.Namespace, recipe: PretrainRecipe) -> int:
    """Prints what a run takes, or with `--gpus` the best plans; 1 where it does not fit the memory."""
    from puyulm.model.memory import parse_bytes
    from puyulm.train.dry_run import Machine, describe_plans, describe_run

    machine = Machine.of(
        recipe, memory=None if args.memory is None else parse_bytes(args.memory), peak_tflops=args.peak_tflops,
        mfu=args.mfu, gpus_per_node=args.gpus_per_node, bandwidth=parse_bytes(args.bandwidth),
        node_bandwidth=parse_bytes(args.node_bandwidth),
    )  # fmt: skip
    text, fits = describe_run(recipe, machine) if args.gpus is None else describe_plans(recipe, machine, args.gpus)
    print(text)
    return 0 if fits else 1
