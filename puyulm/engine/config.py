"""How an engine is set up."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from puyulm.engine.context import context_length
from puyulm.engine.gpu.graphs import graph_bytes, table_width
from puyulm.engine.paged import BLOCK_SIZE, KVType, block_bytes
from puyulm.engine.scheduler import Limits
from puyulm.engine.speculate import Speculation
from puyulm.errors import GenerationError
from puyulm.model.config import ModelConfig
from puyulm.model.memory import format_bytes

CPU_STEP_TOKENS, GPU_STEP_TOKENS = 512, 4096
CPU_SHARE, GPU_SHARE = 0.5, 0.85  # of the memory that is free once the model is loaded


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Sizes of an engine.

    Attributes:
        memory: Bytes of the key/value cache; None: a share of what is free, at most what all sequences can use.
        share: Part of that share, where several engines are on one device.
        kv_type: In how many bits keys and values are kept: "model" (as the activations), "int8", "int4", "fp8".
        max_running: Sequences at once.
        step_tokens: Tokens in one forward, which bounds the activations; None: 512 on a CPU, 4,096 on a GPU.
        prefix_cache: Whether sequences with the same beginning share its keys and values.
        speculation: How tokens are guessed ahead; None: they are not.
        cuda_graphs: Whether steps of single tokens are recorded on CUDA devices and replayed, which is far faster; off,
            an error shows where it arises.
    """

    memory: int | None = None
    share: float = 1.0
    kv_type: KVType = "model"
    max_running: int = 256
    step_tokens: int | None = None
    prefix_cache: bool = True
    speculation: Speculation | None = None
    cuda_graphs: bool = True

    def __post_init__(self) -> None:
        for name in ("memory", "max_running", "step_tokens"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise GenerationError(f"{name} must be a positive whole number, not {value!r}")

    def limits(self, num_blocks: int, device: torch.device) -> Limits:
        """What the scheduler keeps to, with a cache of so many blocks."""
        default = CPU_STEP_TOKENS if device.type == "cpu" else GPU_STEP_TOKENS
        step_tokens = max(self.step_tokens or default, self.max_running)
        return Limits(num_blocks, BLOCK_SIZE, self.max_running, step_tokens, self.prefix_cache)

    def num_blocks(self, model: ModelConfig, dtype: torch.dtype, device: torch.device) -> int:
        """Blocks of the key/value cache that fit.

        Raises:
            GenerationError: Not even one block does.
        """
        size = block_bytes(model, dtype, self.kv_type)
        if self.speculation is not None and (draft := self.speculation.draft) is not None:
            size += block_bytes(draft.config, draft.embed.weight.dtype, self.kv_type)
        num_blocks = self._blocks(model, size, dtype, device)
        if num_blocks < 1:
            raise GenerationError(
                f"the key/value cache needs at least {format_bytes(size)} for {BLOCK_SIZE} tokens, "
                f"but {format_bytes(self.memory or free_memory(device))} are there: give it more memory"
            )
        return num_blocks

    def _blocks(self, model: ModelConfig, size: int, dtype: torch.dtype, device: torch.device) -> int:
        if self.memory is not None:
            return self.memory // size
        share = self.share * (CPU_SHARE if device.type == "cpu" else GPU_SHARE)
        free = free_memory(device)
        if device.type == "cuda" and self.cuda_graphs:
            width = table_width(model, free // size, BLOCK_SIZE)
            free = max(free - graph_bytes(model, self.max_running, dtype.itemsize, width), 0)
        fits = int(free * share) // size
        context = context_length(model)
        return fits if context is None else min(fits, self.max_running * -(-context // BLOCK_SIZE))


def free_memory(device: torch.device) -> int:
    """Bytes that this process may still take on a device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return 4 << 30  # not Linux: what nearly every machine can spare
    return min(available, _cgroup_rest(available))


def _cgroup_rest(unlimited: int) -> int:
    """What a container has left of its own limit."""
    try:
        folder = Path("/sys/fs/cgroup")
        limit = (folder / "memory.max").read_text().strip()
        return unlimited if limit == "max" else int(limit) - int((folder / "memory.current").read_text())
    except (OSError, ValueError):
        return unlimited
