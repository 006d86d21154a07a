"""Running independent tasks: in this process, in worker processes, or on Ray."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import multiprocessing
import os
import pickle
import signal
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import Any, Protocol, TypeVar

from puyulm.data.extras import needs
from puyulm.data.pipeline.heartbeat import listen
from puyulm.errors import DataError

T = TypeVar("T")

_LARGE_FUNCTION = 1 << 16


TICK = -1  # the index of no task: a second has passed


class Executor(Protocol):
    """Runs tasks. At most `workers` are under way at a time, so that memory does not grow with their number."""

    workers: int

    def run(self, function: Callable[[T], Any], tasks: Sequence[T]) -> Iterator[tuple[int, Any]]:
        """Yields (index, result) as the tasks end, in any order, and (TICK, None) about every second in between.

        A task's error ends the iteration.
        """
        ...

    def outcomes(self) -> tuple[int, int] | None:
        """Documents (kept, dropped) so far, those of unfinished tasks included; None where that is not known."""
        ...

    def close(self) -> None:
        """Ends the workers, also in the middle of their work."""
        ...


class SerialExecutor:
    """One task after another in this process."""

    workers = 1

    def run(self, function: Callable[[T], Any], tasks: Sequence[T]) -> Iterator[tuple[int, Any]]:
        for index, task in enumerate(tasks):
            yield index, function(task)

    def outcomes(self) -> None:
        return None

    def close(self) -> None:
        pass


class ProcessExecutor:
    """Worker processes on this machine; each uses one thread.

    Args:
        workers: How many.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._pool: ProcessPoolExecutor | None = None
        self._context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
        self._outcomes = self._context.Array("q", 2)

    def run(self, function: Callable[[T], Any], tasks: Sequence[T]) -> Iterator[tuple[int, Any]]:
        pool = self._started()
        submitted: dict[Future[Any], int] = {}
        waiting = iter(enumerate(tasks))
        shared = tempfile.NamedTemporaryFile(prefix="puyu-")  # noqa: SIM115 - closed below
        try:
            pickled = pickle.dumps(function)
            if len(pickled) > _LARGE_FUNCTION:  # a list of ten thousand shards, say: once is enough
                shared.write(pickled)
                shared.flush()
                function = partial(_call_from_file, shared.name)
            while True:
                for index, task in waiting:
                    submitted[pool.submit(function, task)] = index
                    if len(submitted) >= self.workers + 1:  # one more than there are workers, so that none is idle
                        break
                if not submitted:
                    return
                done, _ = wait(submitted, timeout=1.0, return_when=FIRST_COMPLETED)
                if not done:
                    yield TICK, None
                for future in done:
                    yield submitted.pop(future), future.result()
        except BrokenProcessPool:
            self._pool = None
            raise DataError(
                "a worker process was killed (out of memory?): run the same command again to go on, with fewer "
                "--workers or a smaller task_mb"
            ) from None
        finally:
            shared.close()

    def outcomes(self) -> tuple[int, int]:
        return self._outcomes[0], self._outcomes[1]

    def close(self) -> None:
        if self._pool is not None:
            for child in multiprocessing.active_children():
                child.terminate()
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def _started(self) -> ProcessPoolExecutor:
        if self._pool is None:
            with _one_thread():
                facts = (os.getpid(), self._outcomes)
                self._pool = ProcessPoolExecutor(self.workers, self._context, _start_worker, facts)
                # The workers start now, while the environment says one thread.
                wait([self._pool.submit(os.getpid) for _ in range(self.workers)])
        return self._pool


class RayExecutor:
    """Tasks on a Ray cluster, whose machines must see the same files.

    Args:
        workers: Tasks under way at a time.
        address: Of the cluster; None starts one on this machine.

    Raises:
        DataError: Ray is not installed.
    """

    def __init__(self, workers: int, address: str | None = None) -> None:
        self._ray = needs("ray", "ray", "ray")
        self.workers = workers
        self._own = not self._ray.is_initialized()
        if self._own:
            _check_address(address)
            options = {"address": address} if address else {"num_cpus": workers, "include_dashboard": False}
            self._ray.init(log_to_driver=False, logging_level="error", **options)

    def run(self, function: Callable[[T], Any], tasks: Sequence[T]) -> Iterator[tuple[int, Any]]:
        remote, shared = self._ray.remote(max_retries=2)(_call), self._ray.put(function)
        submitted: dict[Any, int] = {}
        waiting = iter(enumerate(tasks))
        while True:
            for index, task in waiting:
                submitted[remote.remote(shared, task)] = index
                if len(submitted) >= self.workers + 1:
                    break
            if not submitted:
                return
            done, _ = self._ray.wait(list(submitted), num_returns=1, timeout=1.0)
            if not done:
                yield TICK, None
            for reference in done:
                yield submitted.pop(reference), self._result(reference)

    def outcomes(self) -> None:
        return None

    def close(self) -> None:
        if self._own:
            self._ray.shutdown()

    def _result(self, reference: Any) -> Any:
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from error  # the task's own error, as from a local worker
        except self._ray.exceptions.RayError as error:
            what = str(error).strip().splitlines() or [type(error).__name__]
            raise DataError(f"Ray lost a task ({what[0]}): run the same command again to go on, with fewer --workers "
                            "or a smaller task_mb if memory ran out") from error  # fmt: skip


@functools.lru_cache(maxsize=1)
def _load_function(path: str) -> Callable[[Any], Any]:
    with open(path, "rb") as file:
        function: Callable[[Any], Any] = pickle.load(file)  # what the parent process wrote just now
    return function


def _call_from_file(path: str, task: Any) -> Any:
    return _load_function(path)(task)


def _check_address(address: str | None) -> None:
    """Ray itself waits for minutes, in silence, for a cluster that is not there."""
    host, colon, port = (address or "").removeprefix("ray://").rpartition(":")
    if not colon or not port.isdigit():
        return  # "auto", "local", or none
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise DataError(f"no Ray cluster answers at {address} ({error}): start one with 'ray start --head', or leave "
                        "ray_address out to start Ray on this machine") from None  # fmt: skip


def _call(function: Callable[[T], Any], task: T) -> Any:
    return function(task)


def _start_worker(parent: int, outcomes: Any) -> None:
    """In a worker: leave Ctrl-C to the parent, die with it, and tell it how far the work is."""

    def tell(kept: int, dropped: int) -> None:
        with outcomes.get_lock():
            outcomes[0] += kept
            outcomes[1] += dropped

    listen(tell)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
            if os.getppid() != parent:  # it died before that
                os._exit(1)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS", "NUMBA_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
