"""`puyu demo`: the whole life in miniature."""

from __future__ import annotations

import argparse
from pathlib import Path


def configure(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Lets a small published model answer, then makes one from scratch: collects real text, trains a tokenizer, "
        "pretrains, fine-tunes, evaluates, and writes a report. Interrupt it anywhere and run it again: it goes on."
    )
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder of the demo (default runs/demo)")
    parser.add_argument("--recipe", type=Path, help="another recipe than the one that comes along (demo/demo.yaml)")
    parser.add_argument("--skip-published", action="store_true", help="do not start with the published small model")


def run(args: argparse.Namespace) -> None:
    from puyulm.demo.recipe import DemoRecipe, recipe_path
    from puyulm.demo.run import demo
    from puyulm.recipe import load_recipe

    recipe = load_recipe(DemoRecipe, args.recipe or recipe_path("demo/demo.yaml"))
    demo(recipe, args.out, published=not args.skip_published)
