"""`puyu convert`: writes a checkpoint in a published layout."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SRC", help="checkpoint folder, .gguf file or model name")
    parser.add_argument("destination", type=Path, metavar="DST", help="folder to write")
    parser.add_argument(
        "--layout",
        choices=("own", "llama"),
        default="own",
        help="tensor names: the family's own, or Llama's, which transformers loads without remote code [%(default)s]",
    )
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="type of the weights [the source's own]"
    )
    parser.add_argument(
        "--max-shard-size", default="5GB", metavar="SIZE", help="largest weight file, like 2GiB [%(default)s]"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace DST if it exists")


def run(args: argparse.Namespace) -> None:
    from puyulm.errors import CheckpointError
    from puyulm.model.hub import resolve_model
    from puyulm.model.memory import format_bytes, parse_bytes

    max_shard_bytes = parse_bytes(args.max_shard_size)
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
        layout=args.layout,
        overwrite=args.overwrite,
        max_shard_bytes=max_shard_bytes,
        write_extra=_tokenizer_writer(source, portable=args.layout == "llama"),
    )
    for file in sorted(written.iterdir()):
        print(f"{file.name:<42}{format_bytes(file.stat().st_size):>12}")
    print(f"wrote {destination}: {args.layout} layout, {str(dtype).removeprefix('torch.')}")


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
