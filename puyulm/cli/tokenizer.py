"""`puyu tokenizer`: train a tokenizer or merge two, look at one, see how it encodes, and compare several."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Container, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from puyulm.errors import TokenizerError

if TYPE_CHECKING:
    from puyulm.text.sample import LabelledText
    from puyulm.text.tokenizer import Tokenizer

_SHARDS = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
_FILES_HELP = ".txt, .jsonl (both also .gz), .jsonl.zst, .parquet, or a folder of such shards; their field 'text'"
_MODEL_HELP = "folder, .model, tokenizer.json or .gguf file, or the name of a model"


def configure(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)

    train = actions.add_parser("train", help="train a tokenizer on text", description=_train.__doc__)
    train.add_argument("files", nargs="+", type=Path, metavar="FILE", help=_FILES_HELP)
    train.add_argument("--vocab-size", type=int, required=True, metavar="N", help="number of ids, all included")
    train.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")
    train.add_argument("--kind", choices=["sentencepiece", "bytelevel"], default="sentencepiece", help="[%(default)s]")
    train.add_argument("--sample-mb", type=float, default=32, metavar="MB", help="size of the sample [%(default)s]")
    train.add_argument("--weights", metavar="NAME=SHARE,...",
                       help="shares of the sample by language or source, such as zh=0.4,en=0.4,code=0.2")  # fmt: skip
    train.add_argument("--seed", type=int, default=0, help="of the sample's draw [%(default)s]")
    train.add_argument(
        "--max-digits", type=int, choices=[1, 2, 3], default=3, help="digits in one token, at most [%(default)s]"
    )
    train.add_argument("--spare", type=int, default=0, metavar="N", help="unused ids to keep for later [%(default)s]")

    merge = actions.add_parser("merge", help="the top of one vocabulary and the Chinese of another",
                               description=_merge.__doc__)  # fmt: skip
    merge.add_argument("base", type=Path, metavar="BASE", help="tokenizer whose first tokens are taken")
    merge.add_argument("chinese", type=Path, metavar="CHINESE", help="tokenizer whose Chinese tokens are added")
    merge.add_argument("--base-top", type=int, required=True, metavar="N", help="tokens of BASE, without its bytes")
    merge.add_argument("--chinese-top", type=int, required=True, metavar="M", help="tokens of CHINESE, at most")
    merge.add_argument("--spare", type=int, default=0, metavar="K", help="unused ids to keep for later [%(default)s]")
    merge.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")

    compare = actions.add_parser("compare", help="density and speed of several tokenizers on the same text",
                                 description=_compare.__doc__)  # fmt: skip
    compare.add_argument("models", nargs="+", metavar="MODEL", help=_MODEL_HELP)
    compare.add_argument("--on", nargs="+", type=Path, required=True, metavar="FILE", help=_FILES_HELP)
    compare.add_argument("--sample-mb", type=float, default=2, metavar="MB",
                         help="of each language of each source, at most [%(default)s]")  # fmt: skip
    compare.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to this file")

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
    {"train": _train, "merge": _merge, "compare": _compare, "inspect": _inspect, "encode": _encode, "decode": _decode}[
        args.action
    ](args)


def _train(args: argparse.Namespace) -> None:
    """Trains a tokenizer with the family's conventions, on a random sample of the files."""
    from puyulm.text.sample import draw_sample, draw_strata
    from puyulm.text.train import train_tokenizer

    size = int(args.sample_mb * 1e6)
    if args.weights is None:
        sample = draw_sample((labelled.text for labelled in _read(args.files)), size, args.seed)
    else:
        weights = _weights(args.weights)
        pairs = ((labelled.text, _stratum(labelled, weights)) for labelled in _read(args.files))
        sample = draw_strata(pairs, weights, size, args.seed)
    report = train_tokenizer(
        sample, args.vocab_size, args.out, args.kind, max_digits=args.max_digits, spare_tokens=args.spare
    )
    print(report)
    print(f"written to {args.out}")


def _merge(args: argparse.Namespace) -> None:
    """Makes one vocabulary of two, as InternLM2's was made: the first tokens of BASE, the Chinese ones of CHINESE,
    spare ones, and the chat markers. Both must be of one kind, SentencePiece or byte-level."""
    from puyulm.text.merge import merge_vocabularies

    report = merge_vocabularies(args.base, args.chinese, args.out, base_top=args.base_top,
                                chinese_top=args.chinese_top, spare_tokens=args.spare)  # fmt: skip
    print(report)
    print(f"written to {args.out}")


def _compare(args: argparse.Namespace) -> None:
    """Prints bytes per token, speed, and whether text comes back, for each tokenizer by language and source."""
    from puyulm.text.compare import compare_tokenizers, comparison_table
    from puyulm.text.sample import draw_each, language_of

    pairs = ((text.text, f"{text.language or language_of(text.text)} {text.source}".strip()) for text in _read(args.on))
    texts = draw_each(pairs, int(args.sample_mb * 1e6), seed=0)
    if not texts:
        raise TokenizerError(f"no text in {', '.join(map(str, args.on))}")
    rows = compare_tokenizers({name: _load(name) for name in args.models}, texts)
    print(comparison_table(rows))
    if args.json is not None:
        facts = [{**asdict(row), "bytes_per_token": row.bytes_per_token, "mb_per_second": row.speed} for row in rows]
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


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
    tokenizer = _load(args.model)
    try:
        ids = args.ids or [int(word) for word in sys.stdin.read().split()]
    except ValueError as error:
        raise TokenizerError(f"standard input should hold ids, numbers with spaces between them: {error}") from None
    print(tokenizer.decode(ids))


def _read(paths: Sequence[Path]) -> Iterator[LabelledText]:
    """The texts of files, and of the shards in folders; of a pipeline's stage, what it kept."""
    from puyulm.data.documents import read_documents
    from puyulm.data.pipeline.run import PIPELINE_FILE
    from puyulm.data.pipeline.stage import DROPPED_FOLDER
    from puyulm.text.sample import LabelledText, read_labelled_texts

    for path in paths:
        files = [path]
        if path.is_dir():
            if (path / PIPELINE_FILE).is_file():
                raise TokenizerError(f"{path} holds all stages of a run: give the folder of one, such as its last")
            found = (p for p in path.rglob("*") if p.is_file() and p.name.endswith(_SHARDS))
            files = sorted(p for p in found if DROPPED_FOLDER not in p.relative_to(path).parts[:-1])
            if not files:
                raise TokenizerError(f"{path}: no {', '.join(_SHARDS)} in this folder")
        for file in files:
            if file.name.endswith((".parquet", ".zst")):
                for document in read_documents(file):
                    yield LabelledText(document.text, document.language, document.source)
            else:
                yield from read_labelled_texts(file)


def _stratum(labelled: LabelledText, names: Container[str]) -> str:
    """Which of the names a text belongs to: its source's or its language's, which is guessed where nothing says it."""
    from puyulm.text.sample import language_of

    return labelled.source if labelled.source in names else labelled.language or language_of(labelled.text)


def _weights(text: str) -> dict[str, float]:
    weights: dict[str, float] = {}
    for part in text.split(","):
        name, _, share = part.partition("=")
        try:
            weights[name.strip()] = float(share)
        except ValueError:
            raise TokenizerError(f"--weights should be like zh=0.4,en=0.6, but has {part!r}") from None
    if not all(name and 0 < weight < float("inf") for name, weight in weights.items()):
        raise TokenizerError(f"--weights should be names with shares above 0, such as zh=0.4,en=0.6, not {text!r}")
    return weights


def _load(name: str) -> Tokenizer:
    from puyulm.text.tokenizer import Tokenizer

    path = Path(name).expanduser()
    if not path.exists():
        from puyulm.model.hub import resolve_model

        path = resolve_model(name)
    return Tokenizer.load(path)
