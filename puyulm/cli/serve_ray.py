"""`puyu serve --ray`: replicas on the machines of a Ray cluster, behind Ray Serve's own HTTP proxy."""

from __future__ import annotations

import argparse
import logging
import re
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from puyulm.errors import GenerationError

if TYPE_CHECKING:
    from fastapi import FastAPI

    from puyulm.serve.settings import ServeSettings
    from puyulm.serve.state import ServerState

APPLICATION = "puyulm"
# What would reach one replica alone.
_NOT_HERE = {"/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/metrics"}


def serve_on_ray(args: argparse.Namespace, settings: ServeSettings) -> int:
    """Serves until a signal ends it. Connects to the cluster that runs, or starts one on this machine.

    Raises:
        GenerationError: Ray is missing, the cluster serves something else, a flag does not work over machines, the
            port is taken, or the replicas cannot start.
    """
    check_flags(args)
    _check_model(args)
    try:
        import ray
        from ray import serve
    except ImportError as error:
        raise GenerationError(
            f"--ray: {error.name or error} is missing: pip install 'puyulm[serve]' 'ray[serve]'"
        ) from None
    ray.init(logging_level=logging.ERROR, log_to_driver=False)
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    try:
        if others := serve.status().applications:  # which would not survive our end
            names = ", ".join(others)
            raise GenerationError(f"this Ray cluster serves {names} already: end that with `serve shutdown`")
        options, args.one_of = placement(args.device, args.replicas, ray.nodes())
        try:
            serve.start(http_options={"host": args.host, "port": args.port})
        except RuntimeError as error:
            raise GenerationError(
                f"cannot listen at {args.host}:{args.port} ({_reason(str(error))}): choose another --host or --port"
            ) from None
        deployment = serve.deployment(
            name="model", num_replicas=args.replicas,
            ray_actor_options=options, max_ongoing_requests=args.max_running + args.max_queue,
            graceful_shutdown_timeout_s=args.drain_seconds, max_constructor_retry_count=1,
        )(_server(args, settings))  # fmt: skip
        try:
            serve.run(deployment.bind(), name=APPLICATION, route_prefix="/")
        except RuntimeError as error:
            states = serve.status().applications[APPLICATION].deployments.values()
            told = "\n".join([str(error), *(state.message for state in states)])
            raise GenerationError(f"the replicas did not start: {_reason(told)}") from None
        stop = threading.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
        name = (args.served_model_name or [Path(args.model).name])[0]
        print(
            f"serving {name} at http://{args.host}:{args.port}/v1 ({args.replicas} replicas on Ray)",
            flush=True,
        )
        stop.wait()
        serve.delete(APPLICATION)  # running answers are finished first
        serve.shutdown()
    finally:
        ray.shutdown()
    return 0


def check_flags(args: argparse.Namespace) -> None:
    """Raises a GenerationError for a flag that does not work over machines, and makes paths whole: replicas start in
    other folders."""
    refused = {
        "--rate-limit": "each replica would count for itself",
        "--ssl-certfile": "let a proxy in front of it speak https",
        "--tensor-parallel": "each replica is one process",
    }
    for flag, reason in refused.items():
        if getattr(args, flag[2:].replace("-", "_")):
            raise GenerationError(f"{flag} does not go with --ray: {reason}")
    if args.port == 0:
        raise GenerationError("--port 0 does not go with --ray: choose a port")
    args.lora = [_whole(text) for text in args.lora]
    if Path(args.model).exists():
        args.model = str(Path(args.model).absolute())


def placement(device: str | None, replicas: int, nodes: list[dict[str, Any]]) -> tuple[dict[str, float], str | None]:
    """What each replica asks of Ray, and how many share a machine's memory, as `--one-of` says it.

    Args:
        nodes: As `ray.nodes()` lists them.
    """
    resources = [node["Resources"] for node in nodes if node["Alive"]]
    if device != "cpu" and any(each.get("GPU") for each in resources):
        return {"num_cpus": 1, "num_gpus": 1}, None
    on_one = -(-replicas // len(resources))
    # As many threads as CPUs: Ray sets OMP_NUM_THREADS.
    cpus = max(1, int(min(each.get("CPU", 1) for each in resources)) // on_one)
    return {"num_cpus": cpus}, f"0/{on_one}"


def _server(args: argparse.Namespace, settings: ServeSettings) -> type:
    """The class of a replica, which Ray makes an instance of in a process of its own."""
    from ray import serve

    apps: list[FastAPI] = []

    def build() -> FastAPI:
        from puyulm.cli.serve import state_from_args
        from puyulm.serve.app import create_app

        app = create_app(state_from_args(args), settings)
        app.router.routes[:] = [route for route in app.router.routes if getattr(route, "path", None) not in _NOT_HERE]
        apps.append(app)
        return app

    class Server:
        def check_health(self) -> None:
            """Raises where the engine has stopped or hangs: Ray then starts another replica."""
            state: ServerState = apps[0].state.server
            if not state.engine.alive or state.stalled_for() > settings.stall_seconds:
                raise RuntimeError("the engine has stopped")

    return serve.ingress(build)(Server)


def _check_model(args: argparse.Namespace) -> None:
    """Finds here and now what most often is wrong with a model: replicas would tell it in a hundred lines."""
    from puyulm.cli.serve import engine_config
    from puyulm.model.checkpoint import load_config
    from puyulm.model.hub import resolve_model
    from puyulm.text.tokenizer import Tokenizer

    engine_config(args)
    path = resolve_model(args.model)
    load_config(path)
    Tokenizer.load(path)


def _whole(adapter: str) -> str:
    name, _, path = adapter.partition("=")
    return f"{name}={Path(path).absolute()}"


def _reason(report: str) -> str:
    """The line of Ray's report that names the cause."""
    lines = [line.strip() for line in report.splitlines() if line.strip()]
    cause = next((line for line in reversed(lines) if re.match(r"[\w.]+(Error|Exception): ", line)), lines[0])
    return re.sub(r"^puyulm\.errors\.\w+: ", "", cause)
