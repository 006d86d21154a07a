"""`--tensor-parallel N`: the processes that one engine runs on."""

from __future__ import annotations

import argparse
import datetime
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from puyulm.errors import GenerationError

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

TIMEOUT = datetime.timedelta(minutes=30)  # for all to have loaded the model
_LAST_WORDS = 5.0  # seconds that a server gets to tell its clients
_END = 10.0  # seconds for a follower to end


def add_flag(parser: argparse._ArgumentGroup) -> None:
    parser.add_argument(
        "--tensor-parallel", type=int, metavar="N",
        help="split the model over N processes, each on a GPU of its own [under torchrun: all its processes; else 1]",
    )  # fmt: skip
    parser.add_argument("--follow", metavar="PORT:RANK/SIZE", help=argparse.SUPPRESS)


def follows(args: argparse.Namespace) -> bool:
    """Whether this process is one of those that work for another."""
    if args.follow is not None:
        return True
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and int(os.environ.get("RANK", "0")) > 0


class Ranks:
    """The processes of an engine, as one of them sees them.

    Attributes:
        mesh: None for one process.
        lost: What is to be said of a process that ended too early.
    """

    def __init__(self, processes: Sequence[subprocess.Popen[bytes]] = ()) -> None:
        self.mesh: DeviceMesh | None = None
        self.lost: str | None = None
        self._processes = processes
        self._ending = False
        for rank, process in enumerate(processes, 1):
            threading.Thread(target=self._watch, args=(rank, process), daemon=True).start()

    def end(self, seconds: float) -> None:
        """The followers may go; after so many seconds they have to."""
        self._ending = True
        for process in self._processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(seconds)
            process.kill()
            process.wait()

    def _watch(self, rank: int, process: subprocess.Popen[bytes]) -> None:
        status = process.wait()
        if self._ending:
            return
        self._ending = True
        self.lost = f"process {rank} of {len(self._processes) + 1} has ended (status {status}), and none can do without"
        print(f"puyu: {self.lost}: start again", file=sys.stderr, flush=True)
        # A server tells its clients. What hangs in a message to the lost one is ended by force.
        threading.Timer(_LAST_WORDS, os._exit, (1,)).start()
        os.kill(os.getpid(), signal.SIGTERM)


@contextmanager
def tensor_ranks(args: argparse.Namespace) -> Iterator[Ranks]:
    """The processes that `--tensor-parallel` or torchrun asks for. `args.device` becomes this process's own.

    Without torchrun this process starts the others, with its own arguments.

    Raises:
        GenerationError: The number does not fit the machine or torchrun's.
    """
    count, given = args.tensor_parallel, int(os.environ.get("WORLD_SIZE", "1"))
    if count is not None and count < 1:
        raise GenerationError(f"--tensor-parallel must be 1 or more, not {count}")
    if count is not None and given > 1 and count != given:
        raise GenerationError(f"--tensor-parallel {count} under torchrun with {given} processes: leave it out")
    if max(count or 1, given) == 1:
        yield Ranks()
        return
    import torch
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    size = max(count or 1, given)
    on_gpus = torch.cuda.is_available() if args.device is None else args.device.startswith("cuda")
    if on_gpus and given == 1 and torch.cuda.device_count() < size:
        here = torch.cuda.device_count()
        raise GenerationError(f"--tensor-parallel {size}: this machine has {here} GPUs; use them, or --device cpu")
    backend = "cpu:gloo,cuda:nccl" if on_gpus else "gloo"
    ranks, seconds = Ranks(), 0.0
    try:
        if given > 1:
            rank, local = int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK", "0"))
            dist.init_process_group(backend, timeout=TIMEOUT)
        else:
            port, rank = _place(args.follow)
            local = rank
            store = dist.TCPStore("127.0.0.1", port, None, rank == 0, timeout=TIMEOUT, wait_for_workers=False)
            if rank == 0:
                ranks = Ranks([_follower(args.arguments, f"{store.port}:{other}/{size}") for other in range(1, size)])
            dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=TIMEOUT)
        args.device = f"cuda:{local}" if on_gpus else "cpu"
        if on_gpus:
            torch.cuda.set_device(local)
        ranks.mesh = init_device_mesh("cuda" if on_gpus else "cpu", (size,))
        yield ranks
        seconds = _END
    finally:
        ranks.end(seconds)


def _place(follow: str | None) -> tuple[int, int]:
    """Port of the leader, 0 for any; rank of this process."""
    if follow is None:
        return 0, 0
    port, _, place = follow.partition(":")
    return int(port), int(place.partition("/")[0])


def _follower(arguments: Sequence[str], place: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "puyulm", *arguments, "--follow", place],
        stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
