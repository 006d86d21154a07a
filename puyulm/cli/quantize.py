"""`puyu quantize`: writes a checkpoint with weights in 8 or 4 bits, and says what that did to it."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from puyulm.engine.quant.settings import QuantSettings
    from puyulm.engine.quant.tensor import Bits
    from puyulm.model.config import ModelConfig

HELD_OUT_ROWS = 16


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="checkpoint folder, .gguf file or model name")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write")
    parser.add_argument(
        "--method", choices=("rtn", "awq", "gptq", "smoothquant", "fp8"), default="rtn",
        help="rtn rounds to nearest; awq, gptq and smoothquant look at activations first [%(default)s]",
    )  # fmt: skip
    parser.add_argument("--bits", type=int, choices=(4, 8), help="of a weight [4; 8 for smoothquant and fp8]")
    parser.add_argument(
        "--group-size", type=_group_size, default=0, metavar="N",
        help="weights that share a scale: 32, 64, 128, or 'row' [32 for 4 bits, row for 8]",
    )  # fmt: skip
    parser.add_argument(
        "--zero-point", action=argparse.BooleanOptionalAction,
        help="a zero point for each group as well [for 4 bits, yes; 8 bits have none]",
    )  # fmt: skip
    parser.add_argument(
        "--head", choices=("int8", "int4", "keep"),
        help="what the language-model head is stored in [int8; keep for fp8]",
    )  # fmt: skip
    parser.add_argument("--alpha", type=float, default=0.5, help="smoothquant: how far outliers move [%(default)s]")
    parser.add_argument("--act-order", action="store_true", help="gptq: round columns with large activations first")
    parser.add_argument(
        "--calibration", type=Path, metavar="FILE",
        help="text to calibrate on: .txt, or .jsonl of {\"text\"} or {\"messages\"} [sample text]",
    )  # fmt: skip
    parser.add_argument(
        "--samples", type=int, default=64, metavar="N", help="rows of each text that are read [%(default)s]"
    )
    parser.add_argument("--length", type=int, default=512, metavar="N", help="tokens of a row [%(default)s]")
    parser.add_argument(
        "--eval-text", type=Path, metavar="FILE", help="text to measure perplexity on [rows of the calibration text]"
    )
    parser.add_argument("--device", help="where to run the layers: cpu, cuda, ... [a GPU where there is one]")
    parser.add_argument("--max-shard-size", default="5GB", metavar="SIZE", help="largest weight file [%(default)s]")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it is a checkpoint")


def run(args: argparse.Namespace) -> None:
    from puyulm.engine.quant.run import quantize_checkpoint, require_replaceable
    from puyulm.model.checkpoint import load_config, refuse_quantized
    from puyulm.model.hub import resolve_model
    from puyulm.model.memory import parse_bytes

    settings = _settings(args)
    max_shard_bytes = parse_bytes(args.max_shard_size)
    source = resolve_model(args.model)
    require_replaceable(source, args.out, args.overwrite)
    device = _device(args.device)
    refuse_quantized(source)
    config = load_config(source)
    settings.require_fits(config)
    calibration, held_out = _rows(args, source, config, settings)
    report = quantize_checkpoint(
        source, args.out, settings, calibration=calibration, held_out=held_out, device=device,
        overwrite=args.overwrite, max_shard_bytes=max_shard_bytes, write_extra=_tokenizer_writer(source),
    )  # fmt: skip
    print(report.table())
    print(f"wrote {args.out}")


def _settings(args: argparse.Namespace) -> QuantSettings:
    from puyulm.engine.quant.settings import QuantSettings
    from puyulm.errors import ConfigError

    for name, least in (("samples", 1), ("length", 16)):
        if getattr(args, name) < least:
            raise ConfigError(f"--{name} must be {least} or more, not {getattr(args, name)}")
    eight = args.method in ("smoothquant", "fp8")
    bits: Bits = 8 if args.bits == 8 or (args.bits is None and eight) else 4
    size = args.group_size if args.group_size != 0 else None if bits == 8 else 32
    zero_point = bits == 4 if args.zero_point is None else args.zero_point
    return QuantSettings(
        method=args.method, bits=bits, group_size=size, zero_point=zero_point,
        head=args.head or ("keep" if args.method == "fp8" else "int8"), alpha=args.alpha, act_order=args.act_order,
    )  # fmt: skip


def _group_size(text: str) -> int | None:
    if text == "row":
        return None
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a number of weights or 'row', not {text!r}")
    return int(text)


def _device(name: str | None) -> str:
    import torch

    from puyulm.engine.load import check_device

    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    check_device(name)
    return name


def _rows(
    args: argparse.Namespace, source: Path, config: ModelConfig, settings: QuantSettings
) -> tuple[Tensor | None, Tensor | None]:
    """Rows to calibrate on, and to measure perplexity on."""
    from puyulm.engine.quant.calibration import DocumentReader, split_rows, token_rows
    from puyulm.text.tokenizer import Tokenizer

    reader = DocumentReader(Tokenizer.load(source), config)
    length = min(args.length, config.max_position_embeddings)

    def rows(documents: Iterable[list[int]], count: int) -> Tensor:
        return token_rows(documents, length, count, config.vocab_size)

    held_out = None if args.eval_text is None else rows(reader.read(args.eval_text), args.samples)
    if held_out is not None and not settings.calibrated:
        return None, held_out
    if args.calibration is None and settings.calibrated:
        print(
            "note: calibrating on sample text; text like the model's own use is better (--calibration)", file=sys.stderr
        )
    documents = reader.read(args.calibration) if args.calibration else map(reader.encode, _sample_texts())
    if held_out is not None:
        return rows(documents, args.samples), held_out
    made = rows(documents, args.samples + HELD_OUT_ROWS)
    if not settings.calibrated and len(made) == 1:
        return None, made
    return split_rows(made, args.samples, HELD_OUT_ROWS)  # the same rows whatever the method, so that methods compare


def _sample_texts() -> Iterator[str]:
    """Short texts in Chinese and English, then Python's reference text, where this Python has it."""
    from puyulm.data.download import SourceMissingError
    from puyulm.data.sources import python_reference
    from puyulm.engine.quant.calibration import sample_texts

    yield from sample_texts()
    try:
        yield from (document.text for document in python_reference(10_000_000))
    except SourceMissingError as error:
        print(f"note: {error}", file=sys.stderr)


def _tokenizer_writer(source: Path) -> Callable[[Path], None] | None:
    """A GGUF file carries its tokenizer within."""
    if source.is_dir():
        return None

    def write(folder: Path) -> None:
        from puyulm.text.tokenizer import Tokenizer

        Tokenizer.load(source).save(folder)

    return write
