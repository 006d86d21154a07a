"""`puyu eval`: scores a model on benchmarks, on a file of items, or compares finished runs."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from puyulm.cli.sampling import add_engine_flags, add_model_flags, engine_config, load_from_args

if TYPE_CHECKING:
    from collections.abc import Callable

    from puyulm.eval.benchmark import Benchmark
    from puyulm.eval.model import LanguageModel
    from puyulm.eval.suite import Plan

OPTIONS = ("max_length", "needles", "reserve", "answer", "window", "stride")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.usage = "puyu eval MODEL [--tasks NAME,...] [options] | puyu eval --compare DIR DIR ... | puyu eval --list"
    parser.add_argument("model", metavar="MODEL", nargs="?", help="checkpoint folder, .gguf file or model name")
    what = parser.add_argument_group("what is asked")
    what.add_argument("--tasks", metavar="NAME,...", help="benchmarks [those of the protocol's model card]")
    what.add_argument(
        "--protocol", default="internlm3", metavar="NAME",
        help="whose way of asking: internlm2, internlm2.5 or internlm3 [%(default)s]",
    )  # fmt: skip
    what.add_argument("--base", action="store_true", help="a base model: likelihoods and plain text, no chat format")
    what.add_argument("--items", type=Path, metavar="FILE", help='jsonl of your own {"prompt", "answer"} rows instead')
    what.add_argument("--examples", type=Path, metavar="FILE", help="jsonl of items to take the examples from")
    what.add_argument("--text", type=Path, action="append", metavar="FILE", help="texts for the task perplexity")
    what.add_argument("--data-dir", type=Path, metavar="DIR", help="folder with the official files, a folder a task")
    what.add_argument("--offline", action="store_true", help="never ask the hub for data")
    what.add_argument("--subset", metavar="NAME,...", help="subjects or subtasks [all]")
    what.add_argument("--limit", type=int, metavar="N", help="the first N questions of each subset")
    what.add_argument("--shots", type=int, metavar="N", help="solved examples [the protocol's]")
    what.add_argument("--mode", metavar="NAME", help="likelihood, plain, chat, ... [the protocol's]")
    what.add_argument("--max-new-tokens", type=int, metavar="N", help="longest answer [the protocol's]")
    what.add_argument("--repeats", type=int, metavar="N", help="answers to each question, for pass@k and means")
    what.add_argument("--temperature", type=float, metavar="X", help="of draws [0: the most likely token]")
    what.add_argument("--top-p", type=float, metavar="P", help="draw from the most likely tokens of mass P")
    what.add_argument("--top-k", type=int, metavar="K", help="draw from the K most likely tokens")
    what.add_argument("--seed", type=int, default=0, metavar="N", help="of draws, shuffles and made rows [0]")
    what.add_argument("--lengths", metavar="N,...", help="tokens of long contexts, like 4k,8k,1m (ruler, needle)")
    what.add_argument("--depths", metavar="N,...", help="where needles lie, in percent of the text [0 to 100]")
    what.add_argument("--count", type=int, metavar="N", help="rows of each made task and length")
    what.add_argument(
        "--option", action="append", metavar="NAME=N",
        help=f"further settings of long contexts and texts: {', '.join(OPTIONS)}; repeatable",
    )  # fmt: skip
    where = parser.add_argument_group("where it runs")
    where.add_argument("--endpoint", metavar="URL", help="ask a server (OpenAI protocol) instead; MODEL is its name")
    where.add_argument("--tokenizer", metavar="NAME", help="of the server's model, for tasks that count tokens")
    where.add_argument("--concurrency", type=int, default=32, metavar="N", help="requests to a server at once [32]")
    where.add_argument("--transformers", action="store_true", help="run by the transformers library, as a check")
    where.add_argument("--ray", action="store_true", help="spread over a Ray cluster")
    where.add_argument("--workers", type=int, default=1, metavar="N", help="copies of the model on Ray [1]")
    where.add_argument("--ray-address", metavar="ADDRESS", help="of the cluster [one is started on this machine]")
    where.add_argument("--judge", metavar="NAME", help="the model that judges: as MODEL, or an endpoint's URL")
    where.add_argument("--judge-name", metavar="NAME", help="the judge's name at its endpoint")
    results = parser.add_argument_group("results")
    results.add_argument(
        "--out", type=Path, metavar="DIR", help="folder of results [evaluation/MODEL]; or page of --compare"
    )
    results.add_argument(
        "--compare", type=Path, nargs="+", metavar="DIR", help="compare finished runs, and run nothing"
    )
    results.add_argument("--list", action="store_true", help="show all benchmarks and what they need")
    add_model_flags(parser, system=False)
    add_engine_flags(parser)


def run(args: argparse.Namespace) -> None:
    from puyulm.errors import DataError

    if args.list:
        _list_benchmarks()
        return
    if args.compare:
        _compare(args)
        return
    if args.model is None and args.endpoint is None:
        raise DataError("name the MODEL to be evaluated (or --endpoint URL, --compare, --list)")
    plan = _plan(args)
    _evaluate(args, plan)


def _evaluate(args: argparse.Namespace, plan: Plan) -> None:
    from puyulm.eval.report.terminal import table
    from puyulm.eval.results import REPORT_FILE
    from puyulm.eval.suite import FINISHED, check_judge, fit, make_tasks, run_tasks

    for benchmark in plan.benchmarks:
        if benchmark.needs is not None:
            benchmark.needs()
    check_judge(plan, args.judge)
    tasks = make_tasks(plan, None)  # what is missing shows before a model is loaded
    part, barrier = _processes(args)
    model = _model(args)
    judge = None
    out = args.out or Path("evaluation") / Path(args.model or model.name).name
    try:
        judge = _judge(args)
        tasks, notes = fit(make_tasks(plan, model, tasks), plan, model)
        for note in notes:
            print(f"note: {note}", file=sys.stderr)
        command = shlex.join(["puyu", *args.arguments])
        run = run_tasks(tasks, model, out, judge=judge, part=part, barrier=barrier, command=command)
        if run is not None:
            print(table(run))
            print(f"report: {out / REPORT_FILE}")
    except KeyboardInterrupt:
        print(f"\nfinished samples are kept in {out / FINISHED}: the same command goes on", file=sys.stderr)
        raise
    finally:
        for one in (model, judge):
            if one is not None:
                one.close()


def _plan(args: argparse.Namespace) -> Plan:
    from puyulm.errors import DataError
    from puyulm.eval.model import Sampling
    from puyulm.eval.source import SourceContext
    from puyulm.eval.suite import Plan

    for name in ("limit", "repeats", "max_new_tokens", "count", "workers", "concurrency"):
        if (value := getattr(args, name)) is not None and value < 1:
            raise DataError(f"--{name.replace('_', '-')} must be 1 or more, not {value}")
    if args.data_dir is not None and not args.data_dir.is_dir():
        raise DataError(f"--data-dir: {args.data_dir} is not a folder")
    if args.tasks is not None and not _names(args.tasks):
        raise DataError("--tasks: name at least one benchmark (puyu eval --list)")
    if args.shots is not None and args.shots < 0:
        raise DataError(f"--shots must be 0 or more, not {args.shots}")
    if args.repeats is not None and args.repeats > 1 and not args.temperature:
        raise DataError("--repeats: the most likely answer is always the same one; give a --temperature above 0")
    if not args.temperature and (args.top_p is not None or args.top_k is not None):
        raise DataError("--top-p and --top-k are for draws: give a --temperature above 0")
    drawn = {"temperature": args.temperature, "top_p": args.top_p, "top_k": args.top_k}
    given = {name: value for name, value in drawn.items() if value is not None}
    return Plan(
        benchmarks=_benchmarks(args), protocol=args.protocol, chat=not args.base, mode=args.mode, shots=args.shots,
        max_new_tokens=args.max_new_tokens, think=True if args.think else None, repeats=args.repeats,
        sampling=Sampling(**given) if given else None, subsets=_names(args.subset), limit=args.limit,
        context=SourceContext(data_dir=args.data_dir, options=_options(args), seed=args.seed, offline=args.offline),
    )  # fmt: skip


def _benchmarks(args: argparse.Namespace) -> list[Benchmark]:
    from puyulm.errors import DataError
    from puyulm.eval.benchmarks import find_benchmark
    from puyulm.eval.exact import exact_benchmark
    from puyulm.eval.protocols import find_protocol

    if args.items is not None:
        if args.tasks:
            raise DataError("--items is a task of its own: leave --tasks out")
        return [exact_benchmark(args.items, args.examples)]
    protocol = find_protocol(args.protocol)
    card = protocol.base_card if args.base else protocol.chat_card
    names = _names(args.tasks) or (["perplexity"] if args.text else list(card))
    return [find_benchmark(name) for name in dict.fromkeys(names)]


def _options(args: argparse.Namespace) -> dict[str, Any]:
    from puyulm.errors import DataError

    given: dict[str, Any] = {}
    if args.lengths:
        given["lengths"] = [_count(one, "--lengths") for one in _names(args.lengths)]
    if args.depths:
        given["depths"] = [_number(one, "--depths") for one in _names(args.depths)]
    if args.count is not None:
        given["count"] = args.count
    if args.text:
        given["text"] = list(args.text)
    for one in args.option or ():
        name, _, value = one.partition("=")
        if name not in OPTIONS:
            raise DataError(f"--option: there is no '{name}'; known: {', '.join(OPTIONS)}")
        given[name] = _count(value, f"--option {name}")
    return given


def _number(text: str, flag: str) -> float:
    from puyulm.errors import DataError

    try:
        return float(text)
    except ValueError:
        raise DataError(f"{flag}: '{text}' is no number") from None


def _count(text: str, flag: str) -> int:
    """`4096`, `4k` (4,096), `1m` (1,048,576)."""
    unit = {"k": 1 << 10, "m": 1 << 20}.get(text[-1:].lower(), 1)
    return int(_number(text if unit == 1 else text[:-1], flag) * unit)


def _names(text: str | None) -> list[str]:
    return [] if text is None else [one.strip() for one in text.split(",") if one.strip()]


def _model(args: argparse.Namespace) -> LanguageModel:
    from puyulm.errors import DataError

    if args.endpoint is not None:
        return _endpoint(args, args.endpoint, args.model)
    if args.ray:
        import torch

        from puyulm.eval.ray_model import RayModel

        gpus = int(torch.cuda.is_available() and args.device != "cpu")
        make: Callable[[], LanguageModel] = partial(_local, args.model, args)
        return RayModel(make, args.workers, gpus=gpus, address=args.ray_address)
    if args.workers > 1:
        raise DataError("--workers are Ray's: add --ray, or start several processes with torchrun")
    if args.transformers:
        from puyulm.engine.load import load_chat_model
        from puyulm.eval.transformers_model import TransformersModel

        chat = load_chat_model(args.model, chat_format=args.chat_format, needs_chat_format=not args.base)
        return TransformersModel(chat.path, args.model, chat.chat_format, args.device or "cpu")
    return _local(args.model, args)


def _local(name: str, args: argparse.Namespace) -> LanguageModel:
    from puyulm.eval.engine_model import EngineModel

    chat = load_from_args(name, args, needs_chat_format=not args.base)
    loaded = f"{args.dtype} {args.quantize} {args.rope_scaling}"
    return EngineModel(chat, name, engine_config(args), own_template=args.chat_template, loaded=loaded)


def _endpoint(args: argparse.Namespace, url: str, name: str | None) -> LanguageModel:
    from puyulm.eval.endpoint_model import EndpointModel
    from puyulm.model.hub import resolve_model
    from puyulm.text.tokenizer import Tokenizer

    tokenizer = None if args.tokenizer is None else Tokenizer.load(resolve_model(args.tokenizer))
    return EndpointModel(
        url, name, key=os.environ.get("OPENAI_API_KEY"), concurrency=args.concurrency, tokenizer=tokenizer,
    )  # fmt: skip


def _judge(args: argparse.Namespace) -> LanguageModel | None:
    if args.judge is None:
        return None
    if args.judge.startswith(("http://", "https://")):
        return _endpoint(args, args.judge, args.judge_name)
    from puyulm.engine.load import load_chat_model
    from puyulm.eval.engine_model import EngineModel

    return EngineModel(load_chat_model(args.judge, device=args.device), args.judge)


def _processes(args: argparse.Namespace) -> tuple[Any, Callable[[], None]]:
    """This process's part under torchrun, and how it waits for the others. `args.device` becomes its own."""
    from puyulm.errors import DataError
    from puyulm.eval.run import Part

    said = {name: os.environ.get(name, "") for name in ("WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT")}
    if said["WORLD_SIZE"] in ("", "1"):
        return Part(), lambda: None
    if missing := [name for name, value in said.items() if not value]:
        raise DataError(f"WORLD_SIZE is set but {missing[0]} is not: start with torchrun, or unset WORLD_SIZE")
    try:
        count, rank = int(said["WORLD_SIZE"]), int(said["RANK"])
    except ValueError:
        raise DataError(f"WORLD_SIZE={said['WORLD_SIZE']}, RANK={said['RANK']}: no numbers; use torchrun") from None
    import datetime

    import torch
    import torch.distributed as dist

    if torch.cuda.is_available() and args.device in (None, "cuda"):
        args.device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
    dist.init_process_group("gloo", timeout=datetime.timedelta(days=7))  # a slow part is not an error
    return Part(rank, count), dist.barrier


def _list_benchmarks() -> None:
    from rich.console import Console
    from rich.table import Table

    from puyulm.eval.benchmarks import all_benchmarks
    from puyulm.eval.source import Dataset

    shown = Table(box=None, pad_edge=False)
    for title in ("name", "benchmark", "measures", "modes", "data"):
        shown.add_column(title, overflow="fold")
    for one in all_benchmarks():
        source = one.source
        data = source.hub or source.page if isinstance(source, Dataset) else source.data
        shown.add_row(one.name, one.title, one.dimension, ", ".join(one.modes), data or "none: made here")
    Console(width=None if sys.stdout.isatty() else 160).print(shown)


def _compare(args: argparse.Namespace) -> None:
    from puyulm.eval.compare import page_of, text, write_comparison

    page = page_of(args.out or args.compare[0].parent)
    print(text(write_comparison(args.compare, page)))
    print(f"page: {page}")
