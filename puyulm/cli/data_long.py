"""`puyu data tune-long`: set a threshold of the stage `long_context` by judging borderline documents."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from puyulm.data.longtext.tune import Tuning


def configure_tune_long(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `puyu data tune-long`."""
    parser.add_argument("folder", type=Path, metavar="DIR", help="a run, or its stage long_context")
    parser.add_argument("--feature", required=True, metavar="NAME", help="such as ppl_delta or conjunction_rate")
    parser.add_argument("--domain", required=True, metavar="D/L", help="domain and language: web/en, books/*, */zh")
    parser.add_argument("--bound", choices=("min", "max"), help="which bound [the one in the stage's settings]")
    parser.add_argument("--threshold", type=float, metavar="X", help="tune around X [what the stage's settings have]")
    parser.add_argument("--count", type=int, default=20, metavar="N",
                        help="documents on each side of the threshold [%(default)s]")  # fmt: skip
    parser.add_argument("--out", type=Path, metavar="FILE", help='write them as jsonl, to be judged in "keep"')
    parser.add_argument("--judged", type=Path, action="append", default=[], metavar="FILE",
                        help="judged documents, to suggest a threshold from (may be given again)")  # fmt: skip


def run_tune_long(args: argparse.Namespace) -> None:
    """Lists the documents nearest to a threshold, and suggests a better one from those that are judged."""
    from puyulm.data.longtext.tune import read_borderline, tune_thresholds, write_borderline
    from puyulm.errors import DataError

    if args.count < 1:
        raise DataError(f"--count is {args.count}: give 1 or more")
    judged = [sample for path in args.judged for sample in read_borderline(path)]
    tuning = tune_thresholds(
        args.folder, args.feature, args.domain, judged=judged, bound=args.bound, threshold=args.threshold,
        count=args.count,
    )  # fmt: skip
    print(_table(tuning))
    if args.out is not None:
        write_borderline(args.out, tuning.borderline)
        print(f'written to {args.out}: set "keep" to true or false, then give it with --judged')
    if tuning.suggestion is not None:
        suggestion = tuning.suggestion
        print(f"suggested {tuning.bound} of {tuning.feature} for {tuning.domain}: {suggestion.threshold:.6g}")
        print(f"{suggestion.errors} of {suggestion.judged} judged documents wrong, {suggestion.errors_before} before")
        if suggestion.at_edge:
            print("it lies at the edge of what was judged: judge documents around it as well "
                  f"(--threshold {suggestion.threshold:.6g})")  # fmt: skip
    elif args.judged:
        print('no document is judged: set "keep" to true or false')


def _table(tuning: Tuning) -> str:
    from puyulm.data.report.record_text import one_line

    lines = [f"{tuning.feature} of {tuning.domain}, {tuning.bound} {tuning.threshold:.6g}"]
    for sample in tuning.borderline:
        start, name = one_line(sample.text[:200])[:60], one_line(sample.id)[:40]
        lines.append(f"{sample.value:>14.6g}  {'kept' if sample.passes else 'dropped':<8} {name:<40}  {start}")
    return "\n".join(lines)
