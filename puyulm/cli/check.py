"""`puyu check`: does a checkpoint still compute what was recorded?"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="FOLDER", help="checkpoint folder, .gguf file or model name")
    parser.add_argument(
        "--expected", type=Path, metavar="FILE", help="recorded inputs and outputs [FOLDER/expected.safetensors]"
    )
    parser.add_argument(
        "--tolerance", type=float, default=1e-4, help="largest absolute difference that passes [%(default)g]"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    import torch

    from puyulm.model.check import check_model
    from puyulm.model.checkpoint import load_model
    from puyulm.model.hub import resolve_model

    path = resolve_model(args.model)
    recording = args.expected or (path if path.is_dir() else path.parent) / "expected.safetensors"
    results = check_model(load_model(path, torch.float32), recording)
    passed = all(result.within(args.tolerance) for result in results)
    if args.json:
        cases = [
            {
                "name": result.name,
                "rows": result.rows,
                "length": result.length,
                # JSON has no NaN
                "max_abs_difference": result.difference if math.isfinite(result.difference) else None,
            }
            for result in results
        ]
        print(json.dumps({"passed": passed, "tolerance": args.tolerance, "cases": cases}, indent=2))
        return 0 if passed else 1
    print(f"{'case':<16}{'rows':>6}{'length':>8}  largest absolute difference")
    for result in results:
        mark = "" if result.within(args.tolerance) else "  ABOVE TOLERANCE"
        print(f"{result.name:<16}{result.rows:>6}{result.length:>8}  {result.difference:.3g}{mark}")
    failed = sum(not result.within(args.tolerance) for result in results)
    verdict = f"{failed} of {len(results)} cases above" if failed else f"all {len(results)} cases within"
    print(f"{verdict} {args.tolerance:g} (float32)")
    return 0 if passed else 1
