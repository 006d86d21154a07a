"""`puyu data`: run pipelines, make scorers, look at documents, collect text and make token shards."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from puyulm.cli.data_long import configure_tune_long, run_tune_long
from puyulm.cli.data_report import configure_look, configure_report, run_look, run_report
from puyulm.cli.data_run import configure_estimate, configure_run, run_estimate, run_run
from puyulm.cli.data_scorer import configure_annotate, configure_train_scorer, run_annotate, run_train_scorer

if TYPE_CHECKING:
    from puyulm.data.shards import TokenShards


def configure(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `puyu data`."""
    steps = parser.add_subparsers(dest="step", metavar="STEP", title="steps", required=True)
    configure_run(steps.add_parser("run", help="run a pipeline of stages from a recipe"))
    configure_report(steps.add_parser("report", help="a page about a run: flows, drops, samples, duplicates, tokens"))
    configure_look(steps.add_parser("look", help="page through documents in the terminal"))
    configure_estimate(steps.add_parser("estimate", help="what a run would cost at another size"))
    configure_train_scorer(steps.add_parser("train-scorer", help="train a scorer of documents from labelled ones"))
    configure_annotate(steps.add_parser("annotate", help="rounds of annotation that improve a scorer"))
    configure_tune_long(steps.add_parser("tune-long", help="thresholds for long documents from borderline samples"))
    _configure_collect(steps.add_parser("collect", help="real text from this machine's packages, cleaned and split"))
    _configure_tokenize(steps.add_parser("tokenize", help="documents to token shards"))
    step = steps.add_parser("internevo", help="token shards to the files that InternEvo reads")
    step.add_argument("folder", type=Path, metavar="DIR", help="a folder of token shards")
    step.add_argument("--out", type=Path, required=True, metavar="DIR", help="receives cn/, en/ and code/")
    step = steps.add_parser("stats", help="documents, bytes and tokens by source and language")
    step.add_argument("folder", type=Path, metavar="DIR", help="what `run`, `collect` or `tokenize` wrote")
    step.add_argument("--verify", action="store_true", help="also read all tokens and compare the shards' hashes")


def run(args: argparse.Namespace) -> int | None:
    """Runs one step of `puyu data`."""
    steps: dict[str, Callable[[argparse.Namespace], int | None]] = {
        "run": run_run, "report": run_report, "look": run_look, "estimate": run_estimate,
        "train-scorer": run_train_scorer, "annotate": run_annotate, "tune-long": run_tune_long,
        "collect": _collect, "tokenize": _tokenize, "internevo": _internevo, "stats": _stats,
    }  # fmt: skip
    return steps[args.step](args)


def _configure_collect(step: argparse.ArgumentParser) -> None:
    step.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder to write train and valid documents to"
    )
    step.add_argument("--max-bytes", type=int, metavar="N", help="at most N bytes of text from every source")
    step.add_argument("--only", action="append", metavar="SOURCE",
                      help="take this source only (may be given again): python-stdlib, python-reference, shakespeare, "
                      "chinese-poetry")  # fmt: skip
    step.add_argument("--validation-fraction", type=float, default=0.02, metavar="F",
                      help="share of the documents held out (default: %(default)s)")  # fmt: skip


def _configure_tokenize(step: argparse.ArgumentParser) -> None:
    step.add_argument(
        "folder", type=Path, metavar="DIR", help="what `puyu data collect` wrote, or one file of documents"
    )
    step.add_argument(
        "--tokenizer", type=Path, required=True, metavar="T", help="tokenizer file, or a checkpoint's folder"
    )
    step.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write the shards to")
    step.add_argument("--no-bos", action="store_true", help="begin no document with the tokenizer's bos")
    step.add_argument("--eos", action="store_true", help="end every document with the tokenizer's eos")


def _collect(args: argparse.Namespace) -> None:
    from puyulm.data.collect import CollectSettings, collect, collection_table
    from puyulm.errors import DataError

    settings = CollectSettings(validation_fraction=args.validation_fraction)
    names = [f.name for f in fields(CollectSettings) if f.name not in ("validation_fraction", "seed")]
    only = [name.replace("-", "_") for name in args.only or names]
    if unknown := [name for name in only if name not in names]:
        raise DataError(
            f"unknown source {unknown[0]!r}: known are {', '.join(name.replace('_', '-') for name in names)}"
        )
    bound = {name: getattr(settings, name) if args.max_bytes is None else args.max_bytes for name in names}
    settings = replace(settings, **{name: bound[name] if name in only else 0 for name in names})
    print(collection_table(collect(args.out, settings)))
    print(f"written to {args.out}")


def _tokenize(args: argparse.Namespace) -> None:
    from puyulm.data.collect import TRAIN_FILE, VALIDATION_FILE
    from puyulm.data.documents import read_documents
    from puyulm.data.shards import tokenize_documents
    from puyulm.text.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(args.tokenizer)
    if args.folder.is_file():
        jobs = [(args.folder, args.out)]
    else:
        jobs = [(args.folder / TRAIN_FILE, args.out / "train"), (args.folder / VALIDATION_FILE, args.out / "valid")]
    for file, folder in jobs:
        total = sum(document.num_bytes for document in read_documents(file))
        shards = tokenize_documents(
            read_documents(file), tokenizer, folder, bos=not args.no_bos, eos=args.eos, total_bytes=total
        )
        _print_shards(shards)


def _internevo(args: argparse.Namespace) -> None:
    from puyulm.data.mixing.internevo import export_internevo

    for folder, documents in sorted(export_internevo(args.folder, args.out).items()):
        print(f"{args.out / folder}: {documents:,} documents")


def _stats(args: argparse.Namespace) -> None:
    from puyulm.data.collect import TRAIN_FILE, VALIDATION_FILE, count_sources, sources_table
    from puyulm.data.documents import read_documents
    from puyulm.data.pipeline.run import PIPELINE_FILE, load_results, summary_line
    from puyulm.data.shards import META_FILE, TokenShards

    if is_pipeline := (args.folder / PIPELINE_FILE).is_file():
        for result in load_results(args.folder):
            print(summary_line(result))
    found = sorted(path.parent for path in args.folder.rglob(META_FILE))
    for folder in found:
        shards = TokenShards.open(folder)
        if args.verify:
            shards.verify()
        _print_shards(shards)
    if not found and not is_pipeline:
        train, validation = (read_documents(args.folder / name) for name in (TRAIN_FILE, VALIDATION_FILE))
        print(sources_table(count_sources(train, validation)))


def _print_shards(shards: TokenShards) -> None:
    kind = f"vocabulary {shards.vocab_size:,}, {shards.dtype.name}, tokenizer {shards.tokenizer_hash[:12]}"
    print(f"{shards.folder}: {kind}")
    print(f"{'source':<18}{'language':<10}{'documents':>11}{'MB':>9}{'tokens':>13}{'bytes/token':>13}")
    rows = sorted((s.source, s.language, s.documents, s.bytes, s.tokens) for s in shards.sources)
    rows.append(("total", "", shards.num_documents, shards.num_bytes, shards.num_tokens))
    for name, language, documents, size, tokens in rows:
        print(f"{name:<18}{language:<10}{documents:>11,}{size / 1e6:>9.3f}{tokens:>13,}{size / max(tokens, 1):>13.3f}")
