"""The optimizers against PyTorch's own, whole and in shards; clipping and skipping are to the bit."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from puyulm.errors import TrainError
from puyulm.parallel.build import build_model
from puyulm.parallel.weights import init_weights
from puyulm.parallel.world import World
from puyulm.train import optimizer as optimizer_module
from puyulm.train.guard import Guard
from puyulm.train.optimizer import Optimizer, layer_matrices, orthogonalized
from puyulm.train.settings import SpikeSettings, TrainSettings
from puyulm.train.step import to_device, train_step
from tests.conftest import tiny_config
from tests.parallel.ranks import random_batch, run_ranks

ONE, NO, YES = torch.tensor(1.0), torch.tensor(False), torch.tensor(True)
CONFIG = tiny_config(qkv_bias=True)
SHAPES = {"a.weight": (7, 5), "b.weight": (33, 4), "b.bias": (33,), "norm.weight": (5,)}


def small(seed: int = 0) -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return {name: nn.Parameter(torch.randn(shape, generator=generator)) for name, shape in SHAPES.items()}


def give_gradients(parameters: dict[str, nn.Parameter], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in parameters.values():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def reference(parameters: dict[str, nn.Parameter], settings: TrainSettings) -> torch.optim.AdamW:
    groups = [[p for p in parameters.values() if (p.dim() >= 2) == wanted] for wanted in (True, False)]
    return torch.optim.AdamW(
        [dict(params=groups[0], weight_decay=settings.weight_decay), dict(params=groups[1], weight_decay=0.0)],
        betas=settings.betas, eps=settings.eps, fused=True,
    )  # fmt: skip


def test_adamw_equals_pytorch_to_the_bit():
    settings = TrainSettings(weight_decay=0.3)
    ours, theirs = small(), small()
    mine, peer = Optimizer(ours, settings), reference(theirs, settings)
    for step in range(4):
        for parameters in (ours, theirs):
            give_gradients(parameters, step)
        for group in peer.param_groups:
            group["lr"] = 0.01 * (step + 1)
        mine.step(0.01 * (step + 1), ONE, NO)
        peer.step()
        mine.zero_grad()
        assert all(parameter.grad is None for parameter in ours.values())
    for name in SHAPES:
        assert torch.equal(ours[name], theirs[name])
        for kind in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(mine.state_tensors()[f"{kind}.{name}"], peer.state[theirs[name]][kind])
    assert mine.steps == 4


def test_gradients_are_multiplied_with_the_scale():
    ours, theirs = small(), small()
    settings = TrainSettings(eps=0.1)  # large, for the update to depend on the size of gradients
    mine, peer = Optimizer(ours, settings), reference(theirs, settings)
    for parameters, scale in ((ours, 1.0), (theirs, 0.25)):
        give_gradients(parameters, 0)
        for parameter in parameters.values():
            parameter.grad *= scale
    for group in peer.param_groups:
        group["lr"] = 0.1
    mine.step(0.1, torch.tensor(0.25), NO)
    peer.step()
    assert all(torch.equal(ours[name], theirs[name]) for name in SHAPES)


@pytest.mark.parametrize("state_dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_skipped_step_changes_nothing(kind: str, state_dtype: str):
    parameters, optimizer = model_and_optimizer(kind, state_dtype)
    for seed, skip in ((0, NO), (1, YES), (2, NO)):
        give_gradients(parameters, seed)
        before = [t.detach().clone() for t in (*parameters.values(), *optimizer.state_tensors().values())]
        if skip:
            for parameter in parameters.values():
                parameter.grad.view(-1)[::3] = math.nan
        optimizer.step(0.1, torch.tensor(math.nan) if skip else ONE, skip)
        after = [*parameters.values(), *optimizer.state_tensors().values()]
        assert all(torch.equal(a, b) == bool(skip) for a, b in zip(after, before, strict=True))
    assert optimizer.steps == 2


def model_and_optimizer(kind: str, state_dtype: str = "float32") -> tuple[dict[str, nn.Parameter], Optimizer]:
    model = build_model(CONFIG, World.alone())
    init_weights(model, seed=0)
    parameters = dict(model.named_parameters())
    settings = TrainSettings(optimizer=kind, state_dtype=state_dtype)  # type: ignore[arg-type]
    return parameters, Optimizer(parameters, settings, CONFIG)


def test_parameters_without_a_gradient_stay():
    for kind in ("adamw", "muon"):
        parameters, optimizer = model_and_optimizer(kind)
        give_gradients(parameters, 0)
        still = ["layers.0.mlp.down.weight", "embed.weight", "layers.1.attention.qkv.bias"]
        before = {name: parameters[name].detach().clone() for name in still}
        for name in still:
            parameters[name].grad = None
        optimizer.step(0.1, ONE, NO)
        assert all(torch.equal(parameters[name], before[name]) for name in still)


def test_frozen_parameters_have_no_state():
    parameters = small()
    parameters["a.weight"].requires_grad_(False)
    assert not any("a.weight" in name for name in Optimizer(parameters, TrainSettings()).state_tensors())
    for parameter in parameters.values():
        parameter.requires_grad_(False)
    with pytest.raises(TrainError, match="nothing to train"):
        Optimizer(parameters, TrainSettings())


def losses(steps: int, **changes: object) -> tuple[list[float], Optimizer]:
    """A short run, and its optimizer."""
    settings = replace(TrainSettings(lr=1e-2, clip_norm=0.5), **changes)  # type: ignore[arg-type]
    config = tiny_config(initializer_range=0.2)
    model = build_model(config, World.alone())
    init_weights(model, seed=1)
    optimizer = Optimizer(dict(model.named_parameters()), settings, config)
    guard, found = Guard(SpikeSettings(), torch.device("cpu")), []
    batches = to_device(model, [random_batch(config.vocab_size, 0)])
    for _ in range(steps):
        result = train_step(model, optimizer, guard, batches, settings.lr, settings)
        found.append(float(result.values[0]))
    return found, optimizer


def test_the_z_loss_is_learned_from_and_not_counted():
    plain, _ = losses(3)
    steered, _ = losses(3, z_loss=1.0)
    assert steered[0] == pytest.approx(plain[0], rel=1e-6)
    assert steered[2] != pytest.approx(plain[2], rel=1e-3)


def test_states_of_half_the_size_learn_alike(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(optimizer_module, "CHUNK_VALUES", 1000)  # parameters are cut, and share chunks
    wide, full = losses(40)
    narrow, half = losses(40, state_dtype="bfloat16")
    monkeypatch.undo()
    assert losses(40, state_dtype="bfloat16")[0] == narrow  # chunks are not seen
    assert wide[-1] < 0.2 * wide[0]
    assert narrow == pytest.approx(wide, rel=0.05)
    assert narrow[1:] != wide[1:]
    sizes = [sum(t.numel() * t.element_size() for t in o.states.values()) for o in (full, half)]
    assert sizes[0] == 2 * sizes[1]


def test_widened_states_are_few_at_a_time():
    flat = [tuple(torch.arange(float(size)) + kind for kind in range(2)) for size in (3, 0, 10, 1)]
    chunks = list(optimizer_module._chunks([(a.view(-1, 1), b) for a, b in flat], 4))
    assert [sum(len(part) for part, _ in chunk) for chunk in chunks] == [4, 4, 4, 2]
    for kind in range(2):
        whole = torch.cat([parts[kind] for chunk in chunks for parts in chunk])
        assert torch.equal(whole, torch.cat([group[kind] for group in flat]))


def test_orthogonalised_matrices_keep_their_singular_vectors():
    for shape in ((20, 50), (50, 20), (32, 32)):
        matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        u, s, v = torch.linalg.svd(matrix, full_matrices=False)
        inside = u.T @ orthogonalized(matrix) @ v.T
        assert (inside - torch.diag(inside.diagonal())).abs().max() < 1e-10
        large = inside.diagonal()[s > 0.05 * s.max()]
        assert large.min() > 0.6 and large.max() < 1.25
    assert not orthogonalized(torch.zeros(3, 4)).any()


def test_muon_is_pytorchs_on_each_matrix():
    """A step on the fused parameters is a step on q, k, v, gate, up, out and down, each as a matrix of its own."""
    parameters, optimizer = model_and_optimizer("muon")
    start = {name: parameter.detach().clone() for name, parameter in parameters.items()}
    slots = layer_matrices(CONFIG)
    assert sum(map(len, slots.values())) == 7 * CONFIG.num_layers
    assert [len(slots[f"layers.0.{name}.weight"]) for name in ("attention.qkv", "mlp.gate_up", "mlp.down")] == [3, 2, 1]
    apart = {
        (name, i): nn.Parameter(slot.extract(start[name].clone()))
        for name in slots
        for i, slot in enumerate(slots[name])
    }
    peer = torch.optim.Muon(apart.values(), lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    for seed in range(3):
        give_gradients(parameters, seed)
        for (name, i), parameter in apart.items():
            parameter.grad = slots[name][i].extract(parameters[name].grad)
        optimizer.step(0.02, ONE, NO)
        peer.step()
    for (name, i), parameter in apart.items():
        moved, wanted = (
            slots[name][i].extract(parameters[name] - start[name]),
            parameter - slots[name][i].extract(start[name]),
        )
        # The peer iterates in bfloat16.
        assert (moved - wanted).norm() < 0.02 * wanted.norm()
        assert 0.2 * 0.02 < moved.square().mean().sqrt() < 3 * 0.2 * 0.02  # three steps, each as long as AdamW's
    assert not torch.equal(parameters["layers.0.attention.qkv.bias"], start["layers.0.attention.qkv.bias"])


def test_muon_learns_and_its_settings_are_heard():
    found, optimizer = losses(30, optimizer="muon")
    assert found[-1] < 0.5 * found[0]
    kinds = {name.split(".")[0] for name in optimizer.states}
    assert kinds == {"momentum", "exp_avg", "exp_avg_sq"}
    assert {name for name in optimizer.states if "embed" in name} == {"exp_avg.embed.weight", "exp_avg_sq.embed.weight"}
    still, _ = losses(2, optimizer="muon", muon_lr_ratio=1e-9)
    assert still[1] != found[1]


def sharded_steps(kind: str, state_dtype: str, sizes: tuple[int, int]) -> dict[str, Tensor]:
    """Three steps on parameters that are cut first by "tensor", then by FSDP; the third is skipped."""
    model = build_model(CONFIG, World.alone())
    init_weights(model, seed=0)
    decoder = model.decoder
    if dist.is_initialized():
        mesh = init_device_mesh("cpu", sizes, mesh_dim_names=("fsdp", "tensor"))
        for layer in decoder.layers:
            for module, dim in (
                (layer.attention.qkv, 0),
                (layer.attention.out, 1),
                (layer.mlp.gate_up, 0),
                (layer.mlp.down, 1),
            ):
                module.weight = nn.Parameter(distribute_tensor(module.weight.detach(), mesh["tensor"], [Shard(dim)]))
            fully_shard(layer, mesh=mesh["fsdp"])
        fully_shard(decoder, mesh=mesh["fsdp"])
    parameters = dict(decoder.named_parameters())
    settings = TrainSettings(optimizer=kind, state_dtype=state_dtype)  # type: ignore[arg-type]
    optimizer = Optimizer(parameters, settings, CONFIG)
    for seed in range(3):
        generator = torch.Generator().manual_seed(seed)
        for parameter in parameters.values():
            gradient = torch.randn(parameter.shape, generator=generator)
            parameter.grad = like(gradient, parameter)
        optimizer.step(0.02, torch.tensor(0.5), torch.tensor(seed == 2))
    tensors = {**parameters, **optimizer.state_tensors()}
    assert all(isinstance(t, DTensor) == dist.is_initialized() for name, t in tensors.items() if name != "step")
    return {name: t.full_tensor().detach() if isinstance(t, DTensor) else t.detach() for name, t in tensors.items()}


def like(whole: Tensor, parameter: nn.Parameter) -> Tensor:
    if not isinstance(parameter, DTensor):
        return whole
    return distribute_tensor(whole, parameter.device_mesh).redistribute(placements=parameter.placements)


CASES = [
    (kind, dtype, sizes)
    for kind in ("adamw", "muon")
    for dtype in ("float32", "bfloat16")
    for sizes in ((4, 1), (2, 2), (1, 4))
]


def all_sharded_steps() -> list[dict[str, np.ndarray]]:
    return [{name: t.float().numpy() for name, t in sharded_steps(*case).items()} for case in CASES]


def test_shards_are_stepped_as_the_whole(tmp_path: Path):
    expected = all_sharded_steps()
    for found in run_ranks(4, all_sharded_steps, tmp_path):
        for ours, whole in zip(found, expected, strict=True):
            assert ours.keys() == whole.keys()
            for name, values in whole.items():
                np.testing.assert_allclose(ours[name], values, atol=1e-6, rtol=1e-5)
