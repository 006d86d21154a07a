"""`python -m benchmarks NAME [--json FILE]`."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from pathlib import Path

from benchmarks.harness import machine, print_table, write_json

NAMES = ("family", "data", "training", "training_gpu", "serving", "serving_gpu", "serving_load", "evaluation")
SMOKING = ("training", "training_gpu", "serving", "serving_gpu", "serving_load", "evaluation")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Ours and the peers, in one run.")
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows here")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads of every contender (default 2)")
    parser.add_argument("--only", metavar="WORD", default="", help="only the rows whose group holds this word")
    parser.add_argument("--smoke", action="store_true", help=f"tiny sizes, to see that all runs ({', '.join(SMOKING)})")
    args = parser.parse_args()
    if args.smoke and args.name not in SMOKING:
        parser.error(f"--smoke is for {' and '.join(SMOKING)}")

    os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as `puyu` does, for every contender; read when PyTorch is loaded
    import torch

    torch.set_num_threads(args.threads)
    print(" ".join(f"{key}={value}" for key, value in machine().items()), file=sys.stderr)
    module = importlib.import_module(f"benchmarks.{args.name}")
    rows = module.run(args.only, smoke=True) if args.smoke else module.run(args.only)
    print_table(rows)
    if args.json:
        write_json(args.json, rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
