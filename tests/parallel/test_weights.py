"""Weights over ranks: each fills what it holds, and a checkpoint does not tell how the model was spread."""

from __future__ import annotations

import json
import os
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from puyulm.errors import PuyuError
from puyulm.model.checkpoint import load_config, load_model, save_model
from puyulm.model.config import ModelConfig
from puyulm.model.decoder import Decoder
from puyulm.model.memory import count_parameters
from puyulm.model.presets import preset
from puyulm.parallel import weights
from puyulm.parallel.build import ParallelModel, build_model
from puyulm.parallel.plan import ParallelPlan
from puyulm.parallel.weights import init_weights, load_weights, save_weights, shard_of
from puyulm.parallel.world import World
from tests.conftest import tiny_config
from tests.parallel.ranks import run_ranks

# Sizes that four ranks cannot share evenly, and every kind of head and bias.
CONFIGS = {
    "plain": tiny_config(hidden_size=60, intermediate_size=90, vocab_size=134, dtype="bfloat16"),
    "biases": tiny_config(family="internlm3", qkv_bias=True, out_bias=True, mlp_bias=True, dtype="float16"),
    "tied": tiny_config(family="llama", tie_embeddings=True),
    "reward": tiny_config(head="reward", reward_token_id=7, dtype="bfloat16"),
}
PLANS = {
    "shard": dict(shard=4),
    "hybrid": dict(replicate=2, shard=2),
    "tensor": dict(shard=2, tensor=2),
    "pipeline": dict(pipeline=2, shard=2),
    "interleaved": dict(pipeline=2, tensor=2, schedule="interleaved"),
}


def cases() -> list[tuple[str, str]]:
    """Every plan with every model that it can hold."""
    names = []
    for name, config in CONFIGS.items():
        for plan, sizes in PLANS.items():
            layers = 4 if plan == "interleaved" else 2
            if not ParallelPlan(**sizes).resolved(4).problems(config.evolve(num_layers=layers)):  # type: ignore[arg-type]
                names.append((name, plan))
    return names


def config_of(name: str, plan: str) -> ModelConfig:
    return CONFIGS[name].evolve(num_layers=4) if plan == "interleaved" else CONFIGS[name]


def filled(config: ModelConfig, seed: int) -> Decoder:
    """Random everywhere: biases begin at zero and norms at one, which would hide a swap."""
    decoder = Decoder(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.normal_(generator=generator)
    return decoder


def differences(model: ParallelModel, expected: Decoder) -> list[str]:
    """Names of parameters whose shard on this rank is not what one process has there."""
    whole = dict(expected.named_parameters())
    wrong = []
    for name, parameter in model.named_parameters():
        local, part = shard_of(parameter)
        if not torch.equal(local, whole[name].detach()[part]) or tuple(parameter.shape) != tuple(whole[name].shape):
            wrong.append(name)
    return wrong


def join(plan: str) -> World:
    return World.join(ParallelPlan(**PLANS[plan]), torch.device("cpu"))  # type: ignore[arg-type]


def _everything(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {"held": {}}
    for name, plan in cases():
        config = config_of(name, plan)
        model = build_model(config, join(plan), micro_tokens=16)
        init_weights(model, seed=3)
        fresh = Decoder(config)
        fresh.init_weights(3)
        found[f"{name} {plan} fresh"] = differences(model, fresh)
        if config.tie_embeddings:
            decoder = model.stages[0].decoder
            found[f"{name} {plan} fresh"] += [] if decoder.head.weight is decoder.embed.weight else ["the tie"]
        save_weights(model, folder / f"{name}-{plan}", write_extra=lambda path: (path / "extra").touch())
        for kind in ("safetensors", "bin"):
            load_weights(model, folder / f"{name}-{config.num_layers}-{kind}")
            stored = load_model(folder / f"{name}-{config.num_layers}-{kind}", torch.float32)
            found[f"{name} {plan} {kind}"] = differences(model, stored)
        found["held"][name, plan] = sum(shard_of(parameter)[0].numel() for parameter in model.parameters())
    found["errors"] = _errors(model, folder)
    return found


def _errors(model: ParallelModel, folder: Path) -> list[str]:
    """What each rank raises; a rank that raised nothing, or waits for others, fails the test."""
    messages = []

    def told(function: Any, *arguments: Any) -> None:
        try:
            function(*arguments)
            messages.append("nothing")
        except PuyuError as error:
            messages.append(str(error))

    told(load_weights, model, folder / "nowhere")
    told(load_weights, model, folder / "plain-2-safetensors")  # of another shape
    original = weights.each_published

    def broken(*arguments: Any) -> Any:
        for count, item in enumerate(original(*arguments)):
            if count == 5:
                raise OSError("the disk is gone")
            yield item

    if dist.get_rank() == 2:
        weights.each_published = broken  # type: ignore[assignment]
    told(load_weights, model, folder / f"reward-{model.config.num_layers}-safetensors")
    weights.each_published = original
    told(save_weights, model, folder / "file" / "model")
    return messages


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Published folders of every model, in both kinds of file."""
    folder = tmp_path_factory.mktemp("weights")
    (folder / "file").touch()
    for name, config in CONFIGS.items():
        for layers in (2, 4):
            decoder = filled(config.evolve(num_layers=layers), seed=5)
            for kind in ("safetensors", "bin"):
                target = folder / f"{name}-{layers}-{kind}"
                save_model(decoder, target, max_shard_bytes=40_000)
                if kind == "bin":
                    to_bin(target)
    return folder


def to_bin(folder: Path) -> None:
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    for name in set(index["weight_map"].values()):
        torch.save(load_file(folder / name), folder / name.replace("safetensors", "bin"))
        (folder / name).unlink()
    index["weight_map"] = {key: name.replace("safetensors", "bin") for key, name in index["weight_map"].items()}
    (folder / "model.safetensors.index.json").unlink()
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))


def test_every_layout_begins_loads_and_saves_as_one_process(folder: Path):
    found = run_ranks(4, _everything, folder, folder)
    for rank, results in enumerate(found):
        held, errors = results.pop("held"), results.pop("errors")
        assert {key: wrong for key, wrong in results.items() if wrong} == {}, f"rank {rank}"
        assert len(results) == 3 * len(cases())
        assert "no such folder" in errors[0] or "no weights" in errors[0]
        assert "shape" in errors[1] or "missing" in errors[1]
        assert "the disk is gone" in errors[2]
        assert "model: cannot be written" in errors[3]
        for name, plan in cases():
            assert held[name, plan] < 0.5 * count_parameters(config_of(name, plan)).total or "hybrid" in plan
    for name, plan in cases():
        config = config_of(name, plan)
        saved, expected = folder / f"{name}-{plan}", folder / f"expected-{name}-{plan}"
        decoder = Decoder(config)
        decoder.init_weights(3)
        save_model(decoder.to(getattr(torch, config.dtype)), expected)
        assert {path.name for path in saved.iterdir()} == {path.name for path in expected.iterdir()} | {"extra"}
        for file in expected.iterdir():
            assert (saved / file.name).read_bytes() == file.read_bytes(), (name, plan, file.name)
        assert load_config(saved) == config
    assert not list(folder.glob(".*"))


BIG = tiny_config(
    vocab_size=32_000, hidden_size=1536, intermediate_size=6144, num_layers=6, num_heads=12, num_kv_heads=4,
    head_dim=128, dtype="bfloat16",
)  # fmt: skip


def _big(folder: Path) -> dict[str, int]:
    """Bytes by which this process's memory has grown at most, after each way to fill a model."""
    peaks = {}
    start = _reset_peak()
    model = build_model(BIG, join("tensor"))
    init_weights(model, seed=1)
    peaks["init"] = _peak() - start
    save_weights(model, folder / "big")
    peaks["save"] = _peak() - start
    _reset_peak()
    load_weights(model, folder / "big")
    peaks["load"] = _peak() - start
    return peaks


def _reset_peak() -> int:
    Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _peak() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="the peak of memory is read from /proc")
def test_no_rank_ever_holds_a_big_model_whole(tmp_path: Path):
    whole = 4 * count_parameters(BIG).total
    assert whole > 1.2e9  # 300 million parameters
    for peaks in run_ranks(4, _big, tmp_path, tmp_path):
        for moment, peak in peaks.items():
            one = 2 * BIG.vocab_size * BIG.hidden_size if moment == "save" else 0  # the largest, as it is stored
            assert 0.25 * whole < peak < 0.45 * whole + one, (moment, peak / whole)


@pytest.mark.parametrize("sizes", [dict(shard=64), dict(shard=8, tensor=8), dict(replicate=2, shard=8, tensor=4)])
def test_a_rank_of_sixty_four_holds_its_part_of_20b(sizes: dict[str, int]):
    fake = pytest.importorskip("torch.testing._internal.distributed.fake_pg")
    config = preset("internlm2-20b").config
    dist.init_process_group("fake", store=fake.FakeStore(), rank=5, world_size=64)
    try:
        world = World.join(ParallelPlan(**sizes), torch.device("cpu"))  # type: ignore[arg-type]
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        model = build_model(config, world)
        grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
        held = sum(shard_of(parameter)[0].numel() for parameter in model.parameters())
    finally:
        dist.destroy_process_group()
    share = count_parameters(config).total / (64 / sizes.get("replicate", 1))
    assert held == pytest.approx(share, rel=1e-2)
    assert grown < 8 * share, "pages that nobody has written to take no memory"


def test_exports_of_training_are_stored_in_the_type_of_the_configuration(tmp_path: Path):
    model = build_model(CONFIGS["plain"], World.alone())
    init_weights(model, seed=0)
    save_weights(model, tmp_path / "model")
    stored = load_file(tmp_path / "model" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    assert load_config(tmp_path / "model") == model.config
    for loaded, parameter in zip(load_model(tmp_path / "model").parameters(), model.parameters(), strict=True):
        assert parameter.dtype == loaded.dtype == torch.float32
        assert torch.equal(loaded, parameter.bfloat16().float())
    model.evolve(dtype="float32")
    save_weights(model, tmp_path / "model")
    for loaded, parameter in zip(load_model(tmp_path / "model").parameters(), model.parameters(), strict=True):
        assert torch.equal(loaded, parameter)
