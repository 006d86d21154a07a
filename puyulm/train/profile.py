"""What a few steps of a run spend their time on, and on a GPU what is in its memory."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, schedule

FOLDER = "profile"
BEFORE, STEPS = 2, 3
TABLE_ROWS = 15
MEMORY_EVENTS = 200_000


class StepProfile:
    """Traces the third to fifth step after the start; the steps before are left to warm up.

    Writes, in the run's folder, `profile/trace-rank0.json.gz` (for chrome://tracing or ui.perfetto.dev),
    `profile/operators-rank0.txt`, and on a GPU `profile/memory-rank0.pickle` (for pytorch.org/memory_viz), on every
    rank. A run that ends earlier has a trace of what there was.

    Args:
        folder: Of the run.
        say: Is told, once, where the files lie and what was costly.

    Example:
        >>> profiling = StepProfile(folder, 0, torch.device("cpu"), print)
        >>> for step in range(10):
        ...     take_step()
        ...     profiling.step()
        >>> profiling.close()
    """

    def __init__(self, folder: Path, rank: int, device: torch.device, say: Callable[[str], None]) -> None:
        self._folder, self._rank, self._device, self._say = folder / FOLDER, rank, device, say
        self._cuda = device.type == "cuda"
        self._steps = 0
        self._profile: Any = None

    def step(self) -> None:
        """To be called after every step; costs nothing once the trace is written."""
        self._steps += 1
        if self._steps > BEFORE + STEPS:
            return
        if self._steps == BEFORE - 1:
            os.environ.setdefault("KINETO_LOG_LEVEL", "9")  # else the tracer writes lines amid ours
            self._profile = profile(
                activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * self._cuda, record_shapes=True,
                on_trace_ready=self._write, schedule=schedule(wait=0, warmup=1, active=STEPS, repeat=1),
            )  # fmt: skip
            self._profile.start()
            return
        if self._cuda:
            torch.cuda.synchronize(self._device)
            if self._steps == BEFORE:
                torch.cuda.memory._record_memory_history(max_entries=MEMORY_EVENTS)
        self._profile.step()
        if self._steps == BEFORE + STEPS:
            self.close()

    def close(self) -> None:
        """Writes what there is, where the run ends before its fifth step."""
        running, self._profile = self._profile, None
        if running is not None:
            running.stop()
            if self._cuda:
                torch.cuda.memory._record_memory_history(enabled=None)
        if self._steps <= BEFORE:
            self._say(f"no trace: the run ended within its first {BEFORE} steps")

    def _write(self, traced: Any) -> None:
        """Called by the profiler at the end of the trace."""
        steps = min(self._steps, BEFORE + STEPS) - BEFORE
        if not steps:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        trace = self._folder / f"trace-rank{self._rank}.json.gz"
        traced.export_chrome_trace(str(trace))
        table = operator_table(traced.key_averages(), self._cuda)
        (self._folder / f"operators-rank{self._rank}.txt").write_text(table, encoding="utf-8")
        memory = "; on a CPU there is no snapshot of the memory"
        if self._cuda:
            snapshot = self._folder / f"memory-rank{self._rank}.pickle"
            torch.cuda.memory._dump_snapshot(str(snapshot))
            memory = f", memory in {snapshot} (see pytorch.org/memory_viz)"
        count = f"{steps} step{'s' * (steps != 1)}"
        self._say(f"trace of {count} in {trace} (open it in ui.perfetto.dev or chrome://tracing){memory}")
        self._say(f"costliest operators:\n{table}")


def operator_table(events: Any, cuda: bool = False) -> str:
    """The operators with the most time of their own, as lines.

    Args:
        events: `key_averages()` of a profile.
        cuda: Time on the GPU; else on the CPU.
    """
    kind = "self_device_time_total" if cuda else "self_cpu_time_total"
    # Kernels have rows of their own beside the operators that start them, to which their time is counted, too.
    operators = [event for event in events if event.device_type == DeviceType.CPU and not event.is_user_annotation]
    rows = sorted(((getattr(event, kind), event.count, event.key) for event in operators), reverse=True)
    total = sum(row[0] for row in rows) or 1
    lines = [f"{'ms':>10}{'share':>8}{'calls':>8}  operator"]
    for microseconds, calls, name in rows[:TABLE_ROWS]:
        if microseconds:
            lines.append(f"{microseconds / 1000:>10.2f}{100 * microseconds / total:>6.1f} %{calls:>8}  {name[:80]}")
    return "\n".join(lines) + "\n"
