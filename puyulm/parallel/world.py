"""The processes of a run: who they are, and the device meshes they form."""

from __future__ import annotations

import datetime
import os
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from puyulm.errors import Preempted, PuyuError, TrainError
from puyulm.parallel.plan import ParallelPlan

TIMEOUT = datetime.timedelta(minutes=10)


@dataclass(frozen=True)
class World:
    """One process's view of all processes; as a context manager it is left at the end.

    Attributes:
        plan: Resolved.
        mesh: ("pipeline", "replicate", "fsdp", "tensor"), where "fsdp" is shard x context; None for one process.
        context_mesh: ("pipeline", "replicate", "shard", "context", "tensor") over the same ranks; None for one process.
    """

    rank: int
    size: int
    device: torch.device
    plan: ParallelPlan
    mesh: DeviceMesh | None = None
    context_mesh: DeviceMesh | None = None

    @classmethod
    def alone(cls, device: torch.device | str = "cpu", plan: ParallelPlan | None = None) -> World:
        """One process, no process group."""
        return cls(0, 1, torch.device(device), (plan or ParallelPlan()).resolved(1))

    @classmethod
    def join(cls, plan: ParallelPlan, device: torch.device) -> World:
        """Joins the processes that torchrun started, or whatever else sets its variables: `MASTER_ADDR`, `MASTER_PORT`,
        `RANK`, `WORLD_SIZE`, and for several GPUs on a machine `LOCAL_RANK`.

        A process group that exists already is used. Without one, and without torchrun's variables, the process is
        alone.

        Args:
            device: "cpu", or "cuda" for the GPU of `LOCAL_RANK`.

        Raises:
            RecipeError: The plan's sizes do not multiply to the number of processes.
        """
        size = dist.get_world_size() if dist.is_initialized() else int(os.environ.get("WORLD_SIZE", "1"))
        plan = plan.resolved(size)
        if size == 1 and not dist.is_initialized():
            return cls.alone(device, plan)
        if device.type == "cuda":
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
            torch.cuda.set_device(device)
        if not dist.is_initialized():
            backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
            dist.init_process_group(backend, timeout=TIMEOUT)
        assert plan.shard is not None
        four = (plan.pipeline, plan.replicate, plan.shard * plan.context, plan.tensor)
        five = (plan.pipeline, plan.replicate, plan.shard, plan.context, plan.tensor)
        return cls(
            dist.get_rank(),
            size,
            device,
            plan,
            init_device_mesh(device.type, four, mesh_dim_names=("pipeline", "replicate", "fsdp", "tensor")),
            init_device_mesh(device.type, five, mesh_dim_names=("pipeline", "replicate", "shard", "context", "tensor")),
        )

    @property
    def main(self) -> bool:
        """Whether this is the process that prints and writes the run's files."""
        return self.rank == 0

    @property
    def data_rank(self) -> int:
        """Which part of each global batch this process reads, of `plan.data_size`."""
        plan = self.plan
        assert plan.shard is not None
        return (self.rank // (plan.context * plan.tensor)) % (plan.replicate * plan.shard)

    def coordinate(self, name: str) -> int:
        """This process's place along a dimension of either mesh; 0 when alone."""
        for mesh in (self.mesh, self.context_mesh):
            if mesh is not None and name in (mesh.mesh_dim_names or ()):
                return mesh.get_local_rank(name)
        return 0

    @property
    def first_stage(self) -> bool:
        """Whether the pipeline begins here."""
        return self.coordinate("pipeline") == 0

    @property
    def last_stage(self) -> bool:
        """Whether the pipeline, and so the loss, ends here."""
        return self.coordinate("pipeline") == self.plan.pipeline - 1

    def sum(self, values: Tensor) -> Tensor:
        """The element-wise sum over all processes; where a value exists on several, all but one give 0."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def share(self, value: Any) -> Any:
        """The main process's value, on all."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            dist.barrier()

    def raise_alike(self, error: Exception | None) -> None:
        """Raises on every process what went wrong on one: none is left waiting for those that gave up.

        Raises:
            Exception: This process's own error; or else another's, a TrainError where it is none of `PuyuError`.
        """
        if self.size == 1:
            if error is not None:
                raise error
            return
        errors: list[tuple[type[PuyuError], str] | None] = [None] * self.size
        kind = type(error) if isinstance(error, PuyuError) else TrainError
        dist.all_gather_object(errors, None if error is None else (kind, str(error)))
        if error is not None:
            raise error
        for found in filter(None, errors):
            raise found[0](found[1])

    def leave(self) -> None:
        """Ends the process group, also one that it found. Every process does it: on GPUs it waits for the others."""
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # After an error the others may still wait for this process, and leaving would wait for them: nobody would see
        # the error. The group ends with the process.
        if error is None or isinstance(error, Preempted):
            self.leave()
