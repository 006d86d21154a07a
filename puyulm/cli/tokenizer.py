"""`puyu tokenizer`: train a tokenizer, look at one, and see how it encodes."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from puyulm.text.tokenizer import Tokenizer

_MODEL_HELP = "folder, .model, tokenizer.json or .gguf file, or the name of a model"


def configure(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    train = actions.add_parser("train", help="train a tokenizer on text", description=_train.__doc__)
    train.add_argument(
        "files", nargs="+", type=Path, metavar="FILE", help=".txt or .jsonl, also .gz; of .jsonl, 'text'"
    )
    train.add_argument("--vocab-size", type=int, required=True, metavar="N", help="number of ids, all included")
    train.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")
    train.add_argument("--kind", choices=["sentencepiece", "bytelevel"], default="sentencepiece", help="[%(default)s]")
    train.add_argument("--sample-mb", type=float, default=32, metavar="MB", help="size of the sample [%(default)s]")
    train.add_argument("--seed", type=int, default=0, help="of the sample's draw [%(default)s]")
    train.add_argument(
        "--max-digits", type=int, choices=[1, 2, 3], default=3, help="digits in one token, at most [%(default)s]"
    )
    train.add_argument("--spare", type=int, default=0, metavar="N", help="unused ids to keep for later [%(default)s]")

    inspect = actions.add_parser("inspect", help="size, special tokens, chat template", description=_inspect.__doc__)
    inspect.add_argument("model", help=_MODEL_HELP)

    encode = actions.add_parser("encode", help="text to ids", description=_encode.__doc__)
    encode.add_argument("model", help=_MODEL_HELP)
    encode.add_argument("text", nargs="?", help="standard input where left out")
    encode.add_argument("--markup", action="store_true", help="names of special tokens become their ids")
    encode.add_argument("--pieces", action="store_true", help="one token a line: id, name, text")

    decode = actions.add_parser("decode", help="ids to text", description=_decode.__doc__)
    decode.add_argument("model", help=_MODEL_HELP)
    decode.add_argument("ids", nargs="*", type=int, metavar="ID", help="standard input where left out")


def run(args: argparse.Namespace) -> None:
    {"train": _train, "inspect": _inspect, "encode": _encode, "decode": _decode}[args.action](args)


def _train(args: argparse.Namespace) -> None:
    """Trains a tokenizer with the family's conventions, on a random sample of the files."""
    from puyulm.text.sample import read_texts
    from puyulm.text.train import train_tokenizer

    def texts() -> Iterator[str]:
        for path in args.files:
            yield from read_texts(path)

    report = train_tokenizer(
        texts(), args.vocab_size, args.out, args.kind, sample_bytes=int(args.sample_mb * 1e6), seed=args.seed,
        max_digits=args.max_digits, spare_tokens=args.spare,
    )  # fmt: skip
    print(report)
    print(f"written to {args.out}")


def _inspect(args: argparse.Namespace) -> None:
    """Shows what a tokenizer has: its size, its special tokens and its chat template."""
    from puyulm.text.vocabulary import is_spare

    tokenizer = _load(args.model)
    print(f"ids             {tokenizer.vocab_size:,}")
    for role, token_id in (("bos", tokenizer.bos_id), ("eos", tokenizer.eos_id), ("pad", tokenizer.pad_id)):
        name = "-" if token_id is None else f"{token_id} {tokenizer.id_to_token(token_id)}"
        put_first = " (put before a text)" if role == "bos" and tokenizer.add_bos else ""
        print(f"{role}             {name}{put_first}")
    named = {name: i for name, i in tokenizer.special_tokens.items() if not is_spare(name)}
    print(f"spare ids       {len(tokenizer.special_tokens) - len(named)}")
    print("special tokens  " + "\n                ".join(f"{i} {name}" for name, i in named.items()))
    print(f"chat template   {'none' if tokenizer.chat_template is None else ''}")
    if tokenizer.chat_template is not None:
        print(tokenizer.chat_template.rstrip())


def _encode(args: argparse.Namespace) -> None:
    """Prints the ids of a text. Names of special tokens in it are text, too, unless --markup is given."""
    tokenizer = _load(args.model)
    text = sys.stdin.read() if args.text is None else args.text
    ids = tokenizer.encode_markup(text) if args.markup else tokenizer.encode(text)
    if not args.pieces:
        print(*ids)
        return
    for token_id in ids:
        print(f"{token_id:>7}  {tokenizer.id_to_token(token_id)!r:<24}  {tokenizer.token_bytes(token_id)!r}")


def _decode(args: argparse.Namespace) -> None:
    """Prints the text of ids; special tokens appear by name."""
    from puyulm.errors import TokenizerError

    tokenizer = _load(args.model)
    try:
        ids = args.ids or [int(word) for word in sys.stdin.read().split()]
    except ValueError as error:
        raise TokenizerError(f"standard input should hold ids, numbers with spaces between them: {error}") from None
    print(tokenizer.decode(ids))


def _load(name: str) -> Tokenizer:
    from puyulm.text.tokenizer import Tokenizer

    path = Path(name).expanduser()
    if not path.exists():
        from puyulm.model.hub import resolve_model

        path = resolve_model(name)
    return Tokenizer.load(path)
