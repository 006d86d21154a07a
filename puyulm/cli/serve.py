"""`puyu serve`: a model behind the OpenAI protocol."""

from __future__ import annotations

import argparse
import os
import sys
import threading
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from puyulm.cli.sampling import add_speculation_flags
from puyulm.errors import GenerationError, PuyuError

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from puyulm.engine.config import EngineConfig
    from puyulm.engine.engine import Engine
    from puyulm.engine.load import ChatModel
    from puyulm.serve.replicas import Report
    from puyulm.serve.server import Address
    from puyulm.serve.settings import ServeSettings
    from puyulm.serve.state import ServerState

KEY_VARIABLE = "PUYU_API_KEY"
_LEADER_SECONDS = 60.0


def configure(parser: argparse.ArgumentParser) -> None:
    parser.usage = "puyu serve MODEL [options]"
    parser.epilog = (
        "When the line with the address is there, any OpenAI client works: base_url=\"http://127.0.0.1:8000/v1\", "
        "api_key=\"none\". Ctrl-C or SIGTERM ends the server: running answers are finished first."
    )  # fmt: skip
    parser.add_argument("model", metavar="MODEL", help="checkpoint folder, .gguf file or model name")
    _add_address_flags(parser)
    _add_process_flags(parser)
    _add_client_flags(parser)
    _add_model_flags(parser)
    _add_engine_flags(parser)


def _add_address_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("address")
    group.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets other machines in [127.0.0.1: this one alone]")
    group.add_argument("--port", type=int, default=8000, help="0: any that is free [8000]")
    group.add_argument("--no-page", action="store_true", help="no chat page at / [there is one with 'puyulm[ui]']")
    group.add_argument("--ssl-certfile", metavar="FILE", help="certificate (PEM): serve https")
    group.add_argument("--ssl-keyfile", metavar="FILE", help="its private key, where it is not in the same file")


def _add_process_flags(parser: argparse.ArgumentParser) -> None:
    from puyulm.cli.ranks import add_flag

    group = parser.add_argument_group("processes")
    group.add_argument(
        "--replicas", type=int, default=1, metavar="N",
        help="N servers of the model behind this one address, for more requests at once; one that ends is started "
        "again; --max-queue is that of each [1]",
    )  # fmt: skip
    group.add_argument("--ray", action="store_true", help="the replicas run on the machines of a Ray cluster")
    add_flag(group)
    group.add_argument("--uds", metavar="PATH", help=argparse.SUPPRESS)  # of a replica
    group.add_argument("--one-of", metavar="NUMBER/COUNT", help=argparse.SUPPRESS)


def _add_client_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("clients")
    group.add_argument(
        "--api-key", action="append", default=[], metavar="KEY",
        help=f"clients must send this key; repeatable; also from {KEY_VARIABLE} [everybody may ask]",
    )  # fmt: skip
    group.add_argument("--api-key-file", metavar="FILE", help="keys, one a line")
    group.add_argument(
        "--cors", action="append", default=[], metavar="ORIGIN",
        help="web pages of this origin may ask from a browser; repeatable; * is all [none]",
    )  # fmt: skip
    group.add_argument("--rate-limit", metavar="N/m", help="requests of each key, as 60/m, 5/s or 1000/h [no limit]")
    group.add_argument("--max-queue", type=int, default=1024, metavar="N", help="requests that may wait [1024]")
    group.add_argument("--max-body", default="16MiB", metavar="SIZE", help="largest request [16MiB]")
    group.add_argument(
        "--drain-seconds", type=float, default=30.0, metavar="S", help="what running answers get at the end [30]"
    )
    group.add_argument(
        "--stall-seconds", type=float, default=120.0, metavar="S",
        help="/health fails when no step was made for so long although there is work [120]",
    )  # fmt: skip


def _add_model_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("model")
    group.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="of the weights [the checkpoint's]")
    group.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1, ... [a GPU where there is one]")
    group.add_argument(
        "--quantize", choices=("int8", "int4"), help="round the weights while loading: less memory, faster"
    )
    group.add_argument("--chat-format", metavar="NAME", help="how messages are written [told from the checkpoint]")
    group.add_argument("--chat-template", action="store_true", help="use the checkpoint's own jinja template instead")
    group.add_argument("--think", action="store_true", help="deep thinking unless a request says otherwise (InternLM3)")
    group.add_argument(
        "--served-model-name", action="append", default=[], metavar="NAME",
        help="what clients call the model; repeatable [the folder's name]",
    )  # fmt: skip
    group.add_argument(
        "--lora", action="append", default=[], metavar="NAME=PATH",
        help="a LoRA adapter, which clients ask for as model NAME; repeatable",
    )  # fmt: skip
    group.add_argument(
        "--rope-scaling", metavar="KIND:FACTOR", help="dynamic:2.0 or linear:4 stretches the context [the checkpoint's]"
    )
    group.add_argument(
        "--context-length", type=int, metavar="N", help="longest prompt and answer together, in tokens [the model's]"
    )


def _add_engine_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("engine")
    group.add_argument("--memory", metavar="SIZE", help="of the key/value cache, as 4GiB [a share of what is free]")
    group.add_argument(
        "--kv-type", choices=("model", "int8", "int4", "fp8"), default="model",
        help="keys and values in fewer bits: longer contexts in the same memory [model: as computed]",
    )  # fmt: skip
    group.add_argument("--max-running", type=int, default=256, metavar="N", help="answers written at once [256]")
    group.add_argument(
        "--step-tokens", type=int, metavar="N",
        help="tokens in one forward: more: long prompts are read faster; less: others wait less [CPU: 512, GPU: 4096]",
    )  # fmt: skip
    group.add_argument(
        "--no-prefix-cache", action="store_true", help="do not keep the beginnings of prompts for those that share them"
    )
    add_speculation_flags(group)


def run(args: argparse.Namespace) -> int:
    _need_packages()
    from puyulm.cli.ranks import follows
    from puyulm.serve.server import Address

    settings = settings_from_args(args)
    address = Address(host=args.host, port=args.port, certfile=args.ssl_certfile, keyfile=args.ssl_keyfile)
    if args.host not in ("127.0.0.1", "localhost", "::1") and not settings.api_keys:
        print("note: whoever reaches this machine may ask: --api-key lets in those alone who have it", file=sys.stderr)
    if follows(args):
        return _follow(args)
    if args.ray:
        from puyulm.cli.serve_ray import serve_on_ray

        return serve_on_ray(args, settings)
    if args.replicas > 1 and args.uds is None:
        from puyulm.cli.serve_many import serve_replicas

        return serve_replicas(args, settings, address)
    return _serve_one(args, settings, address)


def _serve_one(args: argparse.Namespace, settings: ServeSettings, address: Address) -> int:
    """Serves with an engine of this process, which may lead others."""
    from puyulm.cli.ranks import tensor_ranks
    from puyulm.cli.serve_many import end_with_parent
    from puyulm.serve.app import create_app
    from puyulm.serve.server import Address, open_socket, serve, url_of

    if args.uds is not None:
        end_with_parent()
        address = Address(uds=args.uds)
    # Before the model is loaded, which may take minutes.
    listener = open_socket(address) if args.uds is None else None
    with listener or nullcontext(), tensor_ranks(args) as ranks:
        state = state_from_args(args, ranks.mesh)
        report = _report(state, split=ranks.mesh is not None)

        def ready() -> None:
            if listener is None:
                print(report.line(), flush=True)
            else:
                print(f"serving {report.name} at {url_of(address, listener)}/v1 ({report.facts})", flush=True)

        try:
            app = create_app(state, settings, page=args.uds is None and not args.no_page)
            serve(app, state, settings, address, listener, ready)
        finally:
            state.engine.close()
            if ranks.lost is None:
                state.engine.engine.close()
        return 1 if ranks.lost else 0


def _follow(args: argparse.Namespace) -> int:
    """Works for the engine of another process."""
    from puyulm.cli.ranks import tensor_ranks
    from puyulm.cli.serve_many import end_with_parent

    if args.follow is not None:
        end_with_parent()
    try:
        with tensor_ranks(args) as ranks:
            make_engine(load_from_args(args, ranks.mesh), engine_config(args), ranks.mesh)
    except PuyuError:
        if args.follow is None:
            raise
        threading.Event().wait(_LEADER_SECONDS)  # the leader meets the same error, tells of it, and ends this process
        return 2
    return 0


def _need_packages() -> None:
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ModuleNotFoundError as error:
        raise GenerationError(f"{error.name} is missing: pip install 'puyulm[serve]'") from None


def settings_from_args(args: argparse.Namespace) -> ServeSettings:
    """How clients are treated.

    Raises:
        PuyuError: A flag is out of its range.
    """
    from puyulm.model.memory import parse_bytes
    from puyulm.serve.limits import is_local
    from puyulm.serve.settings import RateLimit, ServeSettings

    for flag, least in (("max_queue", 1), ("max_running", 1), ("drain_seconds", 0), ("stall_seconds", 0)):
        if not getattr(args, flag) >= least:
            raise GenerationError(f"--{flag.replace('_', '-')} must be {least} or more, not {getattr(args, flag)}")
    if args.replicas < 1:
        raise GenerationError(f"--replicas must be 1 or more, not {args.replicas}")
    if args.replicas > 1 and (args.tensor_parallel or 1) > 1:
        raise GenerationError("--replicas and --tensor-parallel do not go together: choose one")
    if args.lora and (args.tensor_parallel or 1) > 1:
        raise GenerationError("--lora needs the whole model in one process: leave --tensor-parallel out, or merge them")
    if args.ssl_keyfile and not args.ssl_certfile:
        raise GenerationError("--ssl-keyfile needs --ssl-certfile")
    if args.uds is not None:  # clients are the router's business
        return ServeSettings(
            max_body=parse_bytes(args.max_body), stall_seconds=args.stall_seconds, drain_seconds=args.drain_seconds
        )
    keys = _keys(args)
    return ServeSettings(
        api_keys=keys, local=not keys and is_local(args.host), cors_origins=tuple(args.cors),
        max_body=parse_bytes(args.max_body),
        rate_limit=None if args.rate_limit is None else RateLimit.parse(args.rate_limit),
        stall_seconds=args.stall_seconds, drain_seconds=args.drain_seconds,
    )  # fmt: skip


def _keys(args: argparse.Namespace) -> tuple[str, ...]:
    keys = list(args.api_key)
    if args.api_key_file:
        keys += [line.strip() for line in Path(args.api_key_file).read_text("utf-8").splitlines() if line.strip()]
        if not keys:
            raise GenerationError(f"--api-key-file {args.api_key_file}: holds no key")
    if variable := os.environ.get(KEY_VARIABLE):
        keys.append(variable)
    if not all(key.strip() for key in keys):
        raise GenerationError("--api-key must not be empty")
    return tuple(dict.fromkeys(keys))


def state_from_args(args: argparse.Namespace, mesh: DeviceMesh | None = None) -> ServerState:
    """The model behind an engine that runs.

    Args:
        mesh: Of the processes that the engine is split over, which this one leads.

    Raises:
        PuyuError: The model cannot be loaded, or a flag does not fit it.
    """
    from puyulm.engine.async_engine import AsyncEngine
    from puyulm.serve.state import ServerState

    config, adapters = engine_config(args), dict(_adapter(text) for text in args.lora)
    model = load_from_args(args, mesh)
    check_context(args.context_length, model)
    engine = make_engine(model, config, mesh)
    assert engine is not None
    for name, path in adapters.items():
        engine.load_adapter(name, path)
    state = ServerState.of(
        AsyncEngine(engine, args.max_queue), model, _names(args, model), own_template=args.chat_template,
        think=args.think, context_limit=args.context_length,
    )  # fmt: skip
    state.adapters.update(adapters)
    return state


def make_engine(model: ChatModel, config: EngineConfig, mesh: DeviceMesh | None) -> Engine | None:
    """The engine; None for a process that has followed another to the end."""
    from puyulm.engine.engine import Engine
    from puyulm.engine.tensor import parallel_engine

    if mesh is None:
        return Engine(model.model, model.tokenizer, config)
    return parallel_engine(model.model, mesh, model.tokenizer, config)


def engine_config(args: argparse.Namespace) -> EngineConfig:
    """Sizes of the engine."""
    from puyulm.cli.sampling import speculation
    from puyulm.cli.serve_many import device_of
    from puyulm.engine.config import EngineConfig
    from puyulm.model.memory import parse_bytes

    device, share = device_of(args.device, args.one_of)
    return EngineConfig(
        memory=None if args.memory is None else parse_bytes(args.memory), share=share, kv_type=args.kv_type,
        max_running=args.max_running, step_tokens=args.step_tokens, prefix_cache=not args.no_prefix_cache,
        speculation=speculation(args.speculate, device),
    )  # fmt: skip


def load_from_args(args: argparse.Namespace, mesh: DeviceMesh | None = None) -> ChatModel:
    """The model as the flags ask, or this process's part of it."""
    import functools

    import torch

    from puyulm.cli.serve_many import device_of
    from puyulm.engine.load import load_chat_model
    from puyulm.engine.tensor import split_for_inference

    model = load_chat_model(
        args.model, dtype=None if args.dtype is None else getattr(torch, args.dtype),
        device=device_of(args.device, args.one_of)[0],
        quantize=args.quantize, chat_format=args.chat_format, needs_chat_format=not args.chat_template,
        rope_scaling=args.rope_scaling,
        split=None if mesh is None else functools.partial(split_for_inference, mesh=mesh),
    )  # fmt: skip
    if args.chat_template and model.tokenizer.chat_template is None:
        raise GenerationError(f"{model.path} has no chat template of its own: leave --chat-template out")
    if args.think and model.chat_format.thinking_prompt is None:
        raise GenerationError(f"--think: the chat format '{model.chat_format.name}' has no thinking mode")
    return model


def check_context(length: int | None, model: ChatModel) -> None:
    """Raises a GenerationError where `--context-length` asks for more than the model's positions are good for."""
    from puyulm.engine.context import context_length

    limit = context_length(model.model.config)
    if length is not None and length < 2:
        raise GenerationError(f"--context-length must be 2 or more, not {length}")
    if length is not None and limit is not None and length > limit:
        raise GenerationError(
            f"--context-length {length:,} is more than the model's {limit:,} tokens: stretch them with --rope-scaling"
        )


def _adapter(text: str) -> tuple[str, str]:
    name, equals, path = text.partition("=")
    if not (name and equals and path):
        raise GenerationError(f"--lora must be NAME=PATH, not {text!r}")
    return name, path


def _report(state: ServerState, *, split: bool) -> Report:
    """What there is to say when requests may come.

    Args:
        split: The engine is split over processes.
    """
    from puyulm.engine.paged import block_bytes
    from puyulm.model.memory import format_bytes
    from puyulm.serve.replicas import Report

    engine = state.engine.engine
    limits = engine.scheduler.limits
    weight = engine.model.embed.weight
    size = limits.num_blocks * block_bytes(state.config, weight.dtype, engine.config.kv_type)
    each = " in each process" if split else ""
    facts = (
        f"{state.max_length:,} tokens of context; cache of {limits.tokens:,} tokens, {format_bytes(size)}{each}; "
        f"up to {limits.max_running} answers at once; chat format {state.chat_format.name}"
    )
    return Report(state.name, facts, size)


def _names(args: argparse.Namespace, model: ChatModel) -> tuple[str, ...]:
    """What the model answers to: its file's or folder's name, and where it was called by another, that one too."""
    own = model.path.absolute().name
    called = () if Path(args.model).exists() else (args.model,)
    return tuple(args.served_model_name) or tuple(dict.fromkeys((own, *called)))
