"""Tensor parallelism for the engine: each rank computes some kv groups, with the very split of training.

Rank 0 schedules, draws and answers; the others follow: they get what a step works on, run their part of it, and keep
the keys and values of their own heads. Hidden states are whole on every rank (`layer_plan(sequence=False)`), so a layer
needs two sums over the ranks (Megatron-LM, section 3).
"""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Iterator
from dataclasses import fields
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import parallelize_module

from puyulm.engine.config import EngineConfig
from puyulm.engine.engine import Engine
from puyulm.engine.paged import KVCache, StepLayout
from puyulm.engine.runner import Runner
from puyulm.errors import EngineLost, GenerationError
from puyulm.model.config import ModelConfig
from puyulm.model.decoder import Decoder, Linear
from puyulm.parallel.tensor import layer_plan
from puyulm.text.tokenizer import Tokenizer

_PATIENCE = datetime.timedelta(days=365)  # followers of an idle engine wait, and that is no fault

Order = tuple[Literal["forward", "logits", "end"], Any]  # what the followers do next, and with what


def parallel_engine(
    model: Decoder, mesh: DeviceMesh, tokenizer: Tokenizer | None = None, config: EngineConfig | None = None
) -> Engine | None:
    """An engine over all ranks of a mesh; all of them call this.

    Args:
        model: Of `split_for_inference`.

    Returns:
        On rank 0 the engine, whose `close` lets the others go on; on the others None, after they have followed.
    """
    config = config or EngineConfig()
    weight, shape = model.embed.weight, shard_config(model.config, mesh.size())
    control = dist.new_group(backend="gloo", timeout=_PATIENCE)
    num_blocks = torch.tensor(config.num_blocks(shape, weight.dtype, weight.device))
    dist.all_reduce(num_blocks, dist.ReduceOp.MIN, group=control)
    cache = KVCache(shape, int(num_blocks), weight.dtype, weight.device, config.kv_type)
    if mesh.get_rank() > 0:
        follow(model, cache, control)
        return None
    return Engine(model, tokenizer, config, runner=LeadingRunner(model, cache, control))


@torch.no_grad()
def split_for_inference(model: Decoder, mesh: DeviceMesh) -> Decoder:
    """Leaves each rank its part of a whole model, in place.

    The split is training's; what remains are ordinary linear layers of a rank's own rows or columns, which
    `pack_for_inference` and quantisation may replace as in a whole model.

    Args:
        mesh: Of one dimension.

    Raises:
        GenerationError: The kv groups cannot be shared evenly.
    """
    ranks = mesh.size()
    config = model.config
    if config.num_kv_heads % ranks or config.mlp_groups % ranks:
        raise GenerationError(
            f"{config.num_kv_heads} key/value heads cannot be split over {ranks} ranks: use a number that divides them"
        )
    for layer in model.layers:
        parallelize_module(layer, mesh, layer_plan(sequence=False))
        for name, module in list(layer.named_modules()):
            if isinstance(module, nn.Linear):
                owner = layer.get_submodule(name.rpartition(".")[0])
                own = _own_part(module)
                summed = name in ("attention.out", "mlp.down")
                setattr(owner, name.rpartition(".")[2], SummedLinear(own, mesh) if summed else own)
    if config.head == "lm" and config.vocab_size % ranks == 0:
        model.head = GatheredLinear(_rows(model.head, mesh), mesh)  # type: ignore[assignment]
    return model


def shard_config(config: ModelConfig, ranks: int) -> ModelConfig:
    """The shape of a rank's own keys and values."""
    return config.evolve(
        num_heads=config.num_heads // ranks, num_kv_heads=config.num_kv_heads // ranks, head_dim=config.head_dim
    )


class SummedLinear(nn.Module):
    """A linear layer of some columns: the ranks' results are summed, then the bias is added once."""

    def __init__(self, linear: nn.Linear, mesh: DeviceMesh) -> None:
        super().__init__()
        self.bias = linear.bias
        linear.register_parameter("bias", None)
        self.linear, self._group = linear, mesh.get_group()

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x)
        dist.all_reduce(y, group=self._group)
        return y if self.bias is None else y.add_(self.bias)

    def add_to(self, residual: Tensor, x: Tensor) -> Tensor:
        return residual.add_(self(x))


class GatheredLinear(nn.Module):
    """A linear layer of some rows: every rank gets all of the result, `[N, in]` -> `[N, out]`."""

    def __init__(self, linear: nn.Linear, mesh: DeviceMesh) -> None:
        super().__init__()
        self.linear, self._group, self._ranks = linear, mesh.get_group(), mesh.size()

    def forward(self, x: Tensor) -> Tensor:
        own = self.linear(x).contiguous()
        parts = [torch.empty_like(own) for _ in range(self._ranks)]
        dist.all_gather(parts, own, group=self._group)
        return torch.cat(parts, dim=-1)


class LeadingRunner(Runner):
    """Rank 0's: tells the followers what it runs itself.

    Args:
        control: A group of all ranks for messages between hosts (gloo).
    """

    def __init__(self, model: Decoder, cache: KVCache, control: dist.ProcessGroup) -> None:
        super().__init__(model, cache)
        self._control = control
        self._state: Literal["leading", "lost", "ended"] = "leading"

    def forward(self, ids: Tensor, layout: StepLayout) -> Tensor:
        with self._together(("forward", (ids.cpu(), *_parts(layout)))):
            return super().forward(ids, layout)

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        if not isinstance(self.model.head, GatheredLinear):
            return super().logits(hidden)
        with self._together(("logits", hidden.cpu())):
            return super().logits(hidden)

    def end(self) -> None:
        """Lets the followers go, unless they are gone or lost."""
        if self._state == "leading":
            with self._together(("end", None)):
                self._state = "ended"

    @contextlib.contextmanager
    def _together(self, order: Order) -> Iterator[None]:
        """Tells the followers what this rank does inside.

        Where it fails, they stay in the middle of it, and their sums would meet those of another step.

        Raises:
            EngineLost: That has happened before, or they were let go.
        """
        if self._state != "leading":
            raise EngineLost(
                "the engine is closed" if self._state == "ended"
                else "a step has failed on the first of several processes, and the others wait for it: start them again"
            )  # fmt: skip
        try:
            dist.broadcast_object_list([order], src=0, group=self._control)
            yield
        except BaseException:
            self._state = "lost"
            raise


@torch.inference_mode()
def follow(model: Decoder, cache: KVCache, control: dist.ProcessGroup) -> None:
    """What the other ranks do until the leader ends."""
    runner = Runner(model, cache)
    while True:
        received: list[Any] = [None]
        dist.broadcast_object_list(received, src=0, group=control)
        what, content = received[0]
        if what == "end":
            return
        if what == "forward":
            ids, *parts = content
            runner.forward(ids.to(runner.device), _layout(parts, runner.device))
        else:
            runner.logits(content.to(runner.device))


def _parts(layout: StepLayout) -> list[Any]:
    values = (getattr(layout, field.name) for field in fields(layout))
    return [value.cpu() if isinstance(value, Tensor) else value for value in values]


def _layout(parts: list[Any], device: torch.device) -> StepLayout:
    moved: list[Any] = [part.to(device) if isinstance(part, Tensor) else part for part in parts]
    return StepLayout(*moved)


def _own_part(module: nn.Linear) -> nn.Linear:
    """A plain layer of what this rank holds of a distributed one."""
    weight = module.weight
    assert isinstance(weight, DTensor)
    own = weight.to_local()
    linear = Linear(own.shape[1], own.shape[0], bias=module.bias is not None, device="meta")
    linear.weight = nn.Parameter(own.clone(), requires_grad=False)
    if module.bias is not None:
        bias = module.bias
        assert isinstance(bias, DTensor)
        linear.bias = nn.Parameter(bias.to_local().clone(), requires_grad=False)
    return linear


def _rows(head: nn.Linear, mesh: DeviceMesh) -> nn.Linear:
    own = head.weight.detach().chunk(mesh.size())[mesh.get_local_rank()].clone()
    linear = Linear(own.shape[1], own.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(own, requires_grad=False)
    return linear
