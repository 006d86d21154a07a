"""`puyu eval`: how many of the questions in a file a model answers right."""

from __future__ import annotations

import argparse
from pathlib import Path


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="checkpoint folder, .gguf file or model name")
    parser.add_argument(
        "--items", type=Path, required=True, metavar="FILE",
        help='jsonl of {"prompt", "answer"}, and where known "kind" and "language"',
    )  # fmt: skip
    parser.add_argument("--base", action="store_true", help="a base model: ask in plain text, without a chat format")
    parser.add_argument("--shots", type=int, default=0, metavar="N", help="solved examples before a plain question [0]")
    parser.add_argument("--examples", type=Path, metavar="FILE", help="jsonl of items to take the examples from")
    parser.add_argument("--chat-format", metavar="NAME", help="how messages are written [told from the checkpoint]")
    parser.add_argument("--limit", type=int, metavar="N", help="ask the first N items only")
    parser.add_argument("--max-new-tokens", type=int, default=64, metavar="N", help="longest answer [%(default)s]")
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="questions at once [%(default)s]")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder to write scores.json and samples.jsonl to")


def run(args: argparse.Namespace) -> None:
    from puyulm.engine.load import load_chat_model
    from puyulm.errors import DataError
    from puyulm.eval.exact import evaluate, read_items, write_report

    if args.shots and not (args.base and args.examples):
        raise DataError("--shots needs --base and --examples FILE")
    if args.limit is not None and args.limit < 1:
        raise DataError(f"--limit must be 1 or more, not {args.limit}")
    items = read_items(args.items)[: args.limit]
    examples = read_items(args.examples) if args.examples else []
    chat = load_chat_model(args.model, chat_format=args.chat_format, needs_chat_format=not args.base)
    report = evaluate(
        chat.model, chat.tokenizer, items, None if args.base else chat.chat_format,
        examples=examples, shots=args.shots, max_new_tokens=args.max_new_tokens, batch_size=args.batch_size,
    )  # fmt: skip
    if args.out:
        write_report(report, args.out)
    print(report.table())
