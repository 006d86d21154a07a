"""`puyu data train-scorer` and `puyu data annotate`: train a scorer of documents, and improve it by rounds."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from puyulm.data.documents import Document
    from puyulm.data.score.train import TrainSettings


def configure_train_scorer(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `puyu data train-scorer`."""
    parser.add_argument("labelled", nargs="*", type=Path, metavar="FILE",
                        help='jsonl of {"text", "label"}, and where known "language" and "group"')  # fmt: skip
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the scorer and its report")
    parser.add_argument("--corrupt", type=Path, action="append", default=[], metavar="DOCS",
                        help="file or folder of good documents: they and broken copies of them are labelled fluent and "
                        "broken (may be given again)")  # fmt: skip
    parser.add_argument("--corrupt-documents", type=int, default=10_000, metavar="N",
                        help="a random sample of so many of them [%(default)s]")  # fmt: skip
    parser.add_argument("--advertisement-seeds", action="store_true",
                        help="add made texts labelled advertisement and other: a demonstration, no substitute for "
                        "labelled data")  # fmt: skip
    _add_training(parser)


def run_train_scorer(args: argparse.Namespace) -> None:
    """Trains a linear scorer on labelled texts and prints how it does on held-out ones."""
    from puyulm.data.score.corrupt import fluency_examples, sample_documents
    from puyulm.data.score.labelled import read_labelled
    from puyulm.data.score.seeds import advertisement_seeds
    from puyulm.data.score.train import train_on, write_scorer
    from puyulm.errors import DataError

    rows = [row for path in args.labelled for row in read_labelled(path)]
    good = sample_documents(_documents(args.corrupt), args.corrupt_documents, args.seed)
    rows += fluency_examples(good, args.seed)
    if args.advertisement_seeds:
        rows += advertisement_seeds(seed=args.seed)
    if not rows:
        raise DataError("nothing to train on: give a file of labelled texts, --corrupt or --advertisement-seeds")
    scorer, report = train_on(rows, _training(args))
    write_scorer(args.out, scorer, report)
    print(report.text(), end="")
    print(f"written to {args.out}")


def configure_annotate(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of `puyu data annotate`."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    action = actions.add_parser("propose", help="begin a round: choose documents for people to label",
                                description=_propose.__doc__)  # fmt: skip
    action.add_argument("documents", nargs="+", type=Path, metavar="DOCS", help="files or folders of documents")
    action.add_argument("--rounds", type=Path, required=True, metavar="DIR", help="folder of the rounds")
    action.add_argument("--scorer", type=Path, metavar="FILE", help="a linear scorer [the last round's]")
    action.add_argument("--high", type=int, default=100, metavar="N", help="documents with high scores [%(default)s]")
    action.add_argument("--low", type=int, default=100, metavar="N", help="documents with low scores [%(default)s]")
    action.add_argument("--label", default="", help="the class that is the score [the scorer's last]")
    action.add_argument("--seed", type=int, default=0, help="of the draw [%(default)s]")
    action = actions.add_parser("merge", help="end a round: train on what was labelled, and check the result",
                                description=_merge.__doc__)  # fmt: skip
    action.add_argument("--rounds", type=Path, required=True, metavar="DIR", help="folder of the rounds")
    action.add_argument("--labelled", type=Path, action="append", default=[], metavar="FILE",
                        help="texts that were labelled before the first round (may be given again)")  # fmt: skip
    action.add_argument("--validation", type=Path, metavar="FILE",
                        help="texts with languages that people labelled, to decide on languages by")  # fmt: skip
    action.add_argument("--min-kappa", type=float, default=0.6, metavar="K",
                        help="least agreement of a language that the scorer is used for [%(default)s]")  # fmt: skip
    action.add_argument("--min-texts", type=int, default=30, metavar="N",
                        help="least validation texts of such a language [%(default)s]")  # fmt: skip
    _add_training(action)


def run_annotate(args: argparse.Namespace) -> None:
    """Runs one action of `puyu data annotate`."""
    {"propose": _propose, "merge": _merge}[args.action](args)


def _propose(args: argparse.Namespace) -> None:
    """Writes documents that a scorer is sure of to the next round's annotations.jsonl, to be labelled by people."""
    from puyulm.data.score.annotate import propose
    from puyulm.data.score.linear import LinearScorer

    scorer = LinearScorer.load(args.scorer).for_label(args.label) if args.scorer else None
    chosen = propose(args.rounds, _documents(args.documents), scorer, args.high, args.low, seed=args.seed)
    print(f"{'language':<16}{'high':>8}{'low':>8}")
    for language, counts in chosen.items():
        print(f"{language:<16}{counts['high']:>8,}{counts['low']:>8,}")
    print(
        f'replace "label": null in the last round\'s annotations.jsonl in {args.rounds}, then: puyu data annotate merge'
    )


def _merge(args: argparse.Namespace) -> None:
    """Trains on all that is labelled, looks at earlier annotations again, and decides for which languages to use it."""
    from puyulm.data.score.annotate import merge

    report = merge(
        args.rounds, args.labelled, args.validation, _training(args), min_kappa=args.min_kappa, min_texts=args.min_texts
    )
    print(report.text(), end="")
    print(f"written to {args.rounds / f'round-{report.round}'}")


def _add_training(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--positive", default="", metavar="LABEL", help="the label that the score stands for [the last]"
    )
    parser.add_argument("--chars", type=int, nargs=2, default=(1, 4), metavar=("LOW", "HIGH"),
                        help="n-grams of characters, 0 0 for none [1 4]")  # fmt: skip
    parser.add_argument("--words", type=int, default=2, metavar="N", help="n-grams of words, up to [%(default)s]")
    parser.add_argument("--bits", type=int, default=20, metavar="N", help="2^N weights a class [%(default)s]")
    parser.add_argument("--epochs", type=int, default=12, metavar="N", help="passes, at most [%(default)s]")
    parser.add_argument("--seed", type=int, default=0, help="of all random choices [%(default)s]")


def _training(args: argparse.Namespace) -> TrainSettings:
    from puyulm.data.score.train import TrainSettings

    low, high = args.chars
    return TrainSettings(args.positive, (low, high), args.words, args.bits, args.epochs, seed=args.seed)


def _documents(paths: list[Path]) -> Iterator[Document]:
    """The documents of files, and of the shards in folders."""
    from puyulm.data.documents import read_documents
    from puyulm.data.pipeline.stage import shards_in
    from puyulm.errors import DataError

    for path in paths:
        shards = shards_in(path) if path.is_dir() else [path]
        if not shards:
            raise DataError(f"no shards of documents in {path}: give a stage's folder, or a file")
        for shard in shards:
            yield from read_documents(shard)
