"""`puyu convert`: writes a checkpoint in a published layout, or as a GGUF file."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from puyulm.model.gguf_writer import GGUFType
    from puyulm.text.gguf_tokenizer_writer import Fields


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SRC", help="checkpoint folder, .gguf file or model name")
    parser.add_argument("destination", type=Path, metavar="DST", help="folder or .gguf file to write")
    parser.add_argument("--to", choices=("folder", "gguf"), help="what to write [gguf if DST ends in .gguf]")
    parser.add_argument(
        "--gguf-type", choices=("f32", "f16", "q8_0", "q4_0"), help="type of the matrices of a GGUF file [f16]"
    )
    parser.add_argument(
        "--layout",
        choices=("own", "llama"),
        help="tensor names: the family's own, or Llama's, which transformers loads without remote code [own]",
    )
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="type of the weights [the source's own]"
    )
    parser.add_argument("--max-shard-size", metavar="SIZE", help="largest weight file, like 2GiB [5GB]")
    parser.add_argument("--overwrite", action="store_true", help="replace DST if it exists")


def run(args: argparse.Namespace) -> None:
    from puyulm.errors import ConfigError

    kind = args.to or ("gguf" if args.destination.suffix == ".gguf" else "folder")
    others = {"--gguf-type": args.gguf_type}
    if kind == "gguf":
        others = {"--layout": args.layout, "--dtype": args.dtype, "--max-shard-size": args.max_shard_size}
    if given := [flag for flag, value in others.items() if value is not None]:
        other = "a GGUF file" if kind == "folder" else "a folder (the type of a GGUF file is --gguf-type)"
        raise ConfigError(f"{', '.join(given)}: only for {other}")
    (_write_file if kind == "gguf" else _write_folder)(args)


def _write_file(args: argparse.Namespace) -> None:
    from puyulm.errors import CheckpointError
    from puyulm.model.checkpoint import load_config
    from puyulm.model.gguf_writer import NO_TOKENIZER, write_gguf
    from puyulm.model.hub import resolve_model
    from puyulm.model.memory import format_bytes

    destination: Path = args.destination
    if destination.suffix != ".gguf":
        raise CheckpointError(f"{destination}: the name of a GGUF file must end in .gguf")
    if destination.is_dir():
        raise CheckpointError(f"{destination}: is a folder")
    if destination.exists() and not args.overwrite:
        raise CheckpointError(f"{destination}: already exists; choose another name, or add --overwrite")
    source = resolve_model(args.source)
    config = load_config(source)
    kind: GGUFType = args.gguf_type or "f16"
    fields = _gguf_tokenizer(source, config.vocab_size, config.family) if config.head == "lm" else None
    write_gguf(source, destination, kind, fields or NO_TOKENIZER)
    if config.rope.scaling == "dynamic":
        limit = f"{config.max_position_embeddings:,} tokens"
        print(f"note: GGUF has no dynamic NTK: beyond {limit} the file is another model", file=sys.stderr)
    print(f"wrote {destination}: GGUF, {kind}, {format_bytes(destination.stat().st_size)}")


def _gguf_tokenizer(source: Path, vocab_size: int, family: str) -> Fields | None:
    from puyulm.errors import TokenizerError
    from puyulm.text.gguf_tokenizer_writer import gguf_tokenizer
    from puyulm.text.tokenizer import Tokenizer

    try:
        return gguf_tokenizer(Tokenizer.load(source), vocab_size, family, source)
    except TokenizerError as error:  # the weights are of use without it
        print(f"note: no tokenizer is written: {error}", file=sys.stderr)
        return None


def _write_folder(args: argparse.Namespace) -> None:
    from puyulm.errors import CheckpointError
    from puyulm.model.hub import resolve_model
    from puyulm.model.memory import format_bytes, parse_bytes

    max_shard_bytes = parse_bytes(args.max_shard_size or "5GB")
    layout: Literal["own", "llama"] = args.layout or "own"
    destination: Path = args.destination
    if destination.exists() and not args.overwrite and (not destination.is_dir() or any(destination.iterdir())):
        raise CheckpointError(f"{destination}: already exists; choose another folder, or add --overwrite")
    written = destination.absolute()  # as long as it exists: replaced, "." would be a folder that is gone
    source = resolve_model(args.source)

    import torch

    from puyulm.model.checkpoint import load_config, load_model, save_model, stored_dtype

    dtype = getattr(torch, args.dtype) if args.dtype else stored_dtype(load_config(source))
    decoder = load_model(source, dtype)
    save_model(
        decoder,
        destination,
        source=source if source.is_dir() else None,
        layout=layout,
        overwrite=args.overwrite,
        max_shard_bytes=max_shard_bytes,
        write_extra=_tokenizer_writer(source, portable=layout == "llama"),
    )
    for file in sorted(written.iterdir()):
        print(f"{file.name:<42}{format_bytes(file.stat().st_size):>12}")
    print(f"wrote {destination}: {layout} layout, {str(dtype).removeprefix('torch.')}")


def _tokenizer_writer(source: Path, *, portable: bool) -> Callable[[Path], None] | None:
    """A GGUF file carries its tokenizer within; a folder's may need code that Llama's layout must do without."""
    if source.is_dir() and not (
        portable and any((source / f"tokenizer.{kind}").is_file() for kind in ("model", "json"))
    ):
        return None

    def write(folder: Path) -> None:
        from puyulm.errors import TokenizerError
        from puyulm.text.tokenizer import Tokenizer

        try:
            Tokenizer.load(source).save(folder, portable=portable)
        except TokenizerError as error:  # the weights are of use without it
            what = "the tokenizer's files are copied as they are" if source.is_dir() else "no tokenizer is written"
            print(f"note: {what}: {error}", file=sys.stderr)

    return write
