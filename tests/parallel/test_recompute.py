"""Recomputation: the same gradients from fewer bytes."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from puyulm.model.config import ModelConfig
from puyulm.parallel.batch import MicroBatch
from puyulm.parallel.build import ParallelModel, build_model
from puyulm.parallel.plan import ParallelPlan
from puyulm.parallel.stage import Stage
from puyulm.parallel.weights import init_weights
from puyulm.parallel.world import World
from puyulm.train.step import to_device
from tests.conftest import tiny_config
from tests.parallel.ranks import random_batch, run_ranks

CONFIG = tiny_config(initializer_range=0.2, num_layers=3)
TOKENS = 64


def built(config: ModelConfig, **sizes: Any) -> ParallelModel:
    plan = ParallelPlan(**sizes)
    world = World.join(plan, torch.device("cpu")) if torch.distributed.is_initialized() else World.alone("cpu", plan)
    model = build_model(config, world)
    init_weights(model, seed=1)
    return model


def gradients(model: ParallelModel, batches: int = 2, tokens: int = TOKENS) -> dict[str, torch.Tensor]:
    """Of this rank's shards; every rank of a plan reads the same batches here."""
    for parameter in model.parameters():
        parameter.grad = None
    read = [random_batch(128, number, tokens) for number in range(batches)]
    model.forward_backward(to_device(model, read), 100.0, 1e-3)
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    return {name: grad.to_local() if hasattr(grad, "to_local") else grad for name, grad in found.items()}


class Alive(TorchDispatchMode):
    """Bytes of everything computed that is still held by someone, other than what was there before."""

    def __init__(self, before: Iterable[torch.Tensor]) -> None:
        super().__init__()
        self.before = {StorageWeakRef(tensor.untyped_storage()).cdata for tensor in before}
        self.made: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        result = function(*arguments, **(options or {}))
        for tensor in torch.utils._pytree.tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                reference = StorageWeakRef(storage)
                if reference.cdata not in self.before:  # a view of a parameter is not new
                    self.made[reference.cdata] = (reference, storage.nbytes())
        return result

    def bytes(self) -> int:
        return sum(size for reference, size in self.made.values() if not reference.expired())


def kept_by_layers(how: str, batch: MicroBatch, **changes: Any) -> float:
    """Bytes that a forward leaves for the backward, a layer."""

    def kept(layers: int) -> int:
        stage = built(CONFIG.evolve(num_layers=layers, **changes), recompute=how).stages[0]
        with Alive(stage.parameters()) as alive:
            loss = stage(None, batch)
        assert loss.requires_grad
        return alive.bytes()

    return (kept(5) - kept(3)) / 2


@pytest.mark.parametrize("changes", [{}, dict(qkv_bias=True, out_bias=True, mlp_bias=True)])
def test_what_each_kind_keeps(changes: dict[str, bool]):
    batch = MicroBatch.of(*[random_batch(128, 0).tokens] * 2, [TOKENS])
    none, selective, full = (kept_by_layers(how, batch, **changes) for how in ("none", "selective", "full"))
    hidden, mlp, heads = CONFIG.hidden_size, CONFIG.intermediate_size, CONFIG.num_heads
    mixed = heads * CONFIG.head_dim + heads  # with the logarithm of each head's sum
    assert full == 4 * TOKENS * hidden
    assert selective == 4 * TOKENS * (hidden + CONFIG.qkv_size + mixed + hidden + 2 * mlp)
    assert none > 1.5 * selective


@pytest.mark.parametrize("how", ["selective", "full"])
def test_gradients_are_the_same_to_the_bit(how: str):
    expected, model = gradients(built(CONFIG)), built(CONFIG, recompute=how)
    assert list(expected) == [name for name, _ in model.named_parameters()]
    for _ in range(2):  # nothing stays behind from the first step
        found = gradients(model)
        assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_wrong_recomputation_would_be_seen(monkeypatch: pytest.MonkeyPatch):
    """The comparison above can fail: something that is made again and comes out differently changes gradients."""
    expected, model = gradients(built(CONFIG)), built(CONFIG, recompute="full")
    layer = model.stages[0].layer(1)
    original, calls = layer.mlp.forward, []  # type: ignore[union-attr]

    def drifting(x: torch.Tensor) -> torch.Tensor:
        calls.append(len(calls))
        return original(x if len(calls) % 2 else x * 1.5)

    monkeypatch.setattr(layer.mlp, "forward", drifting)
    found = gradients(model, batches=2)
    assert len(calls) == 4
    assert not torch.equal(found["layers.1.mlp.down.weight"], expected["layers.1.mlp.down.weight"])


def test_autocast_is_entered_again():
    """Under autocast what is made again has the same type as before; otherwise PyTorch refuses it."""
    results = []
    for how in ("none", "selective", "full"):
        model = built(CONFIG, recompute=how)
        (stage,) = model.stages
        assert isinstance(stage, Stage)
        stage.dtype, stage.autocast = torch.bfloat16, True
        results.append(gradients(model))
    for found in results[1:]:
        assert all(torch.equal(found[name], results[0][name]) for name in found)


class Products(TorchDispatchMode):
    """Counts matrix products; results that were kept are not computed again."""

    count = 0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        self.count += function is torch.ops.aten.mm.default
        return function(*arguments, **(options or {}))


def products(model: ParallelModel) -> int:
    with Products() as products:
        gradients(model)
    return products.count


def _over_ranks() -> list[str]:
    wrong = []
    for sizes in (dict(shard=2), dict(tensor=2), dict(context=2)):
        plain = built(CONFIG, **sizes)
        expected, usual = gradients(plain), products(plain)
        again = 2 * 3 * CONFIG.num_layers  # micro-batches, products that come before what the backward needs last
        for how in ("selective", "full"):
            model = built(CONFIG, recompute=how, **sizes)
            if (more := products(model) - usual) != (again if how == "full" else 0):
                wrong.append(f"{sizes} {how}: {more} matrix products more than {usual}")
            for found in (gradients(model), gradients(model)):
                wrong += [f"{sizes} {how} {name}" for name in found if not torch.equal(found[name], expected[name])]
    return wrong


def test_with_every_kind_of_sharing_among_ranks(tmp_path: Path):
    assert run_ranks(2, _over_ranks, tmp_path) == [[], []]
