"""`puyu report`: how training runs went, as a page and in figures."""

from __future__ import annotations

import argparse
from pathlib import Path


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN_FOLDER",
                        help="what `puyu train` or `puyu sft` wrote (out); several are compared")  # fmt: skip
    parser.add_argument("--out", type=Path, metavar="FILE.html",
                        help="page to write (default: report.html in the folder of a run, or here)")  # fmt: skip


def run(args: argparse.Namespace) -> None:
    from puyulm.data.report.numbers import size
    from puyulm.errors import TrainError
    from puyulm.train.report.page import write_report
    from puyulm.train.report.summary import as_text

    out: Path = args.out or (args.runs[0] if len(args.runs) == 1 else Path()) / "report.html"
    if out.is_dir():
        raise TrainError(f"{out} is a folder: give the name of a file, such as {out / 'report.html'}")
    runs = write_report(args.runs, out)
    print(as_text(runs))
    print(f"written to {out} ({size(out.stat().st_size)}): open it in a browser")
