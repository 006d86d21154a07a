"""`puyu data report` and `puyu data look`: what a pipeline run did, as a page, and its records in the terminal."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def configure_report(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `puyu data report`."""
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a run: the folder that `puyu data run` wrote")
    parser.add_argument("--out", type=Path, metavar="FILE.html",
                        help="page to write (default: report.html in the folder)")  # fmt: skip
    parser.add_argument("--tokenizer", type=Path, action="append", default=[], metavar="T",
                        help="measure this tokenizer's compression on kept documents (may be given again)")  # fmt: skip


def run_report(args: argparse.Namespace) -> int | None:
    """Writes the page of a run and says where."""
    from puyulm.data.report.numbers import size
    from puyulm.data.report.page import write_report
    from puyulm.errors import DataError

    out = args.out if args.out is not None else args.folder / "report.html"
    if out.is_dir():
        raise DataError(f"{out} is a folder: give the name of a file, such as {out / 'report.html'}")
    write_report(args.folder, out, args.tokenizer)
    print(f"written to {out} ({size(out.stat().st_size)}): open it in a browser")
    return None


def configure_look(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `puyu data look`."""
    parser.add_argument("path", type=Path, metavar="SHARD_OR_FOLDER",
                        help="a shard of documents (.jsonl, .gz, .zst, .parquet), or the folder of a stage, of a run "
                        "or of token shards")  # fmt: skip
    parser.add_argument("--dropped", action="store_true", help="of a stage or run, what was dropped")
    parser.add_argument("--reason", default="", metavar="TEXT",
                        help="only what was dropped for a reason that contains this")  # fmt: skip
    parser.add_argument("--tokenizer", type=Path, metavar="T", help="tokenizer that decodes token shards")
    parser.add_argument("--head", type=int, metavar="N", help="print the first N records instead of paging")


def run_look(args: argparse.Namespace) -> int | None:
    """Pages through records on a terminal; elsewhere, or with --head, prints them."""
    from puyulm.data.report.look import look
    from puyulm.data.report.record_text import print_records
    from puyulm.data.report.records import open_records
    from puyulm.errors import DataError

    if args.head is not None and args.head < 1:
        raise DataError(f"--head is {args.head}: give 1 or more")
    tokenizer = None
    if args.tokenizer is not None:
        from puyulm.text.tokenizer import Tokenizer

        tokenizer = Tokenizer.load(args.tokenizer)
    records = open_records(args.path, dropped=args.dropped, reason=args.reason, tokenizer=tokenizer)
    if args.head is None and sys.stdin.isatty() and sys.stdout.isatty():
        look(records, args.path.name or str(args.path))
        return None
    printed = 0
    for text in print_records(records, args.head):
        print(text, flush=not printed)
        printed += 1
    if not printed:
        print(f"no records at {args.path}" + (f" with the reason {args.reason!r}" if args.reason else ""),
              file=sys.stderr)  # fmt: skip
    return None
