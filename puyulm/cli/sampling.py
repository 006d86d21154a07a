"""The flags that `generate`, `chat` and `eval` share: which model, how it is asked, how answers are drawn."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from puyulm.engine.config import EngineConfig
    from puyulm.engine.load import ChatModel
    from puyulm.engine.params import SamplingParams
    from puyulm.engine.speculate import Speculation

_FIELDS = (
    "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "seed",
    "max_new_tokens", "min_new_tokens",
)  # fmt: skip


def add_model_flags(parser: argparse.ArgumentParser, *, system: bool = True) -> None:
    group = parser.add_argument_group("model")
    group.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="of the weights [the checkpoint's]")
    group.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1, ... [a GPU where there is one]")
    group.add_argument(
        "--quantize",
        choices=("int8", "int4"),
        help="round the weights to so many bits while loading (see puyu quantize)",
    )
    group.add_argument(
        "--rope-scaling", metavar="KIND", help="none, dynamic:FACTOR or linear:FACTOR [the checkpoint's]"
    )
    group.add_argument("--chat-format", metavar="NAME", help="how messages are written [told from the checkpoint]")
    group.add_argument("--chat-template", action="store_true", help="use the checkpoint's own jinja template instead")
    if system:
        group.add_argument("--system", metavar="TEXT", help="system message [the chat format's own]")
    group.add_argument(
        "--think", action="store_true", help="deep thinking (InternLM3): long reasoning, then the answer"
    )


def add_sampling_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group(
        "sampling", "Defaults: the checkpoint's generation_config.json, else its format's."
    )
    group.add_argument("--temperature", type=float, metavar="X", help="0 always takes the most likely token")
    group.add_argument("--top-k", type=int, metavar="N", help="draw from the N most likely tokens; 0: all")
    group.add_argument("--top-p", type=float, metavar="P", help="draw from the most likely tokens of mass P; 1: all")
    group.add_argument("--min-p", type=float, metavar="P", help="only tokens P times as likely as the first; 0: all")
    group.add_argument("--repetition-penalty", type=float, metavar="X", help="above 1 avoids repetition")
    group.add_argument("--presence-penalty", type=float, metavar="X", help="off the logits of tokens of the answer")
    group.add_argument("--frequency-penalty", type=float, metavar="X", help="the same, times how often each came")
    group.add_argument("--seed", type=int, metavar="N", help="same seed, same answer")
    group.add_argument(
        "--stop", action="append", metavar="TEXT", help="end before this text; \\n is a line break; repeatable"
    )
    group.add_argument("--max-new-tokens", type=int, metavar="N", help="longest answer")
    group.add_argument("--min-new-tokens", type=int, metavar="N", help="shortest answer")


def add_engine_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("key/value cache")
    group.add_argument("--memory", metavar="SIZE", help="of the cache, like 4GiB [a share of what is free]")
    group.add_argument(
        "--kv-type", choices=("model", "int8", "int4", "fp8"), default="model",
        help="in how many bits keys and values are kept [%(default)s: those of the activations]",
    )  # fmt: skip

    add_speculation_flags(group)


def add_speculation_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--speculate", metavar="KIND",
        help="guess tokens ahead, which changes no answer: ngram (what followed before), or a small model with the "
        "same vocabulary: checkpoint folder or name [off]",
    )  # fmt: skip


def speculation(kind: str | None, device: str | None) -> Speculation | None:
    """How to guess, as the flag asks."""
    from puyulm.engine.load import load_draft
    from puyulm.engine.speculate import Speculation

    if kind is None or kind == "ngram":
        return None if kind is None else Speculation()
    return Speculation(draft=load_draft(kind, device))


def engine_config(args: argparse.Namespace, max_running: int = 256) -> EngineConfig:
    """Sizes of the engine as the flags ask."""
    from puyulm.engine.config import EngineConfig
    from puyulm.model.memory import parse_bytes

    memory = None if args.memory is None else parse_bytes(args.memory)
    return EngineConfig(
        memory=memory, kv_type=args.kv_type, max_running=max_running,
        speculation=speculation(args.speculate, args.device),
    )  # fmt: skip


def load_from_args(name: str, args: argparse.Namespace, *, needs_chat_format: bool = True) -> ChatModel:
    """Loads the model as the flags ask."""
    import torch

    from puyulm.engine.load import load_chat_model

    dtype = None if args.dtype is None else getattr(torch, args.dtype)
    return load_chat_model(
        name, dtype=dtype, device=args.device, quantize=args.quantize, rope_scaling=args.rope_scaling,
        chat_format=args.chat_format,
        needs_chat_format=needs_chat_format and not args.chat_template,
    )  # fmt: skip


def params_from_args(chat: ChatModel, args: argparse.Namespace, *, think: bool) -> SamplingParams:
    """The model's defaults with what the flags change.

    Raises:
        GenerationError: A flag is out of its range.
    """
    from puyulm.engine.load import default_params

    params = default_params(chat.path, chat.tokenizer, chat.chat_format, think=think) if think else chat.params
    given = {field: getattr(args, field) for field in _FIELDS if getattr(args, field) is not None}
    if args.stop:
        given["stop"] = tuple(text.replace("\\n", "\n") for text in args.stop)
    return params.evolve(**given)
