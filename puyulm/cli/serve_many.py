"""`puyu serve --replicas N`: this process is the router, its children are the servers."""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
import threading
from typing import TYPE_CHECKING

from puyulm.errors import GenerationError

if TYPE_CHECKING:
    from puyulm.serve.server import Address
    from puyulm.serve.settings import ServeSettings


def serve_replicas(args: argparse.Namespace, settings: ServeSettings, address: Address) -> int:
    """Serves until a signal ends it.

    Returns:
        The exit status; that of a replica which could not even start, and has said why.
    """
    from puyulm.serve.proxy import Front, create_proxy
    from puyulm.serve.replicas import ReplicaFailed, Replicas
    from puyulm.serve.server import open_socket, serve, url_of

    if not hasattr(socket, "AF_UNIX"):
        raise GenerationError("--replicas needs unix sockets, which this system lacks: start several servers yourself")
    command = [sys.executable, "-m", "puyulm", *args.arguments]
    count = args.replicas
    with open_socket(address) as listener, Replicas(command, count, max(1, cores() // count)) as replicas:
        try:
            report = replicas.start()
        except ReplicaFailed as failed:
            if failed.status < 0 or failed.number > 0:
                raise GenerationError(f"{failed}: are {count} of them too many for this machine?") from None
            return failed.status
        front = Front(replicas)
        ready = f"serving {report.name} at {url_of(address, listener)}/v1 ({count} replicas, each with {report.facts})"
        serve(create_proxy(front, settings), front, settings, address, listener, lambda: print(ready, flush=True))
    return 0


def place_of(one_of: str | None) -> tuple[int, int]:
    """Which replica this process is, and of how many."""
    number, _, count = (one_of or "0/1").partition("/")
    return int(number), int(count)


def device_of(device: str | None, one_of: str | None) -> tuple[str | None, float]:
    """The device of a replica, and its share of the device: replicas are spread over the GPUs of a machine."""
    import torch

    number, count = place_of(one_of)
    if device == "cpu" or not torch.cuda.is_available():
        return device, 1 / count
    if device not in (None, "cuda"):
        return device, 1 / count
    gpus = torch.cuda.device_count()
    return f"cuda:{number % gpus}" if count > 1 else device, 1 / -(-count // gpus)


def end_with_parent() -> None:
    """Ends this process in good order when the one that started it is gone: it holds the other end of standard
    input."""

    def watch() -> None:
        while os.read(0, 1024):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, name="puyulm-rope", daemon=True).start()


def cores() -> int:
    """Those that this process may use."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not Linux
        return os.cpu_count() or 1
