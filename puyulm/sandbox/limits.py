"""What a program in the sandbox may use."""

from __future__ import annotations

from dataclasses import dataclass, fields

from puyulm.errors import SandboxError


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Bounds on one program, or on one session and its cells.

    Attributes:
        seconds: Wall-clock time of a program (its tests included) or of a cell. Starting the sandbox does not count.
        cpu_seconds: Processor time of each process, rounded up to whole seconds. None: as `seconds` for a program, no
            bound for a session.
        memory: Bytes of address space of each process, and of resident memory of all of them together.
        processes: How many processes and threads there may be at a time.
        disk: Bytes in each of the writable folders, which are in memory: the home folder, /tmp and /dev/shm. Also the
            largest file.
        open_files: Of each process.
        output_bytes: What is kept of standard output, and of standard error: the beginning and the end. The rest is
            read and dropped.
    """

    seconds: float = 10.0
    cpu_seconds: float | None = None
    memory: int = 1 << 30
    processes: int = 32
    disk: int = 128 << 20
    open_files: int = 256
    output_bytes: int = 64 << 10

    def __post_init__(self) -> None:
        for one in fields(self):
            value = getattr(self, one.name)
            if value is None and one.name == "cpu_seconds":
                continue
            kinds = (int, float) if one.name.endswith("seconds") else (int,)
            if isinstance(value, bool) or not isinstance(value, kinds) or not 0 < value < 1 << 62:
                kind = "number" if float in kinds else "whole number"
                raise SandboxError(f"sandbox limits: {one.name} must be a {kind} above 0, not {value!r}")
