"""Compilation: once for all layers and all documents, the same gradients, and the same names."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from puyulm.parallel import compile as compiling
from puyulm.parallel.batch import MicroBatch
from puyulm.parallel.build import ParallelModel
from puyulm.parallel.stage import Stage
from puyulm.train.step import to_device
from tests.parallel.ranks import random_batch, run_ranks
from tests.parallel.test_recompute import CONFIG, TOKENS, built, gradients

BEFORE_AND_BEHIND = 2


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def use_backend(monkeypatch: pytest.MonkeyPatch, backend: str | Callable[..., Any]) -> None:
    """A backend that compiles in no time takes the place of inductor."""
    monkeypatch.setattr(compiling, "apply_compile", functools.partial(compiling.apply_compile, backend=backend))


def assert_close(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert list(found) == list(expected)
    for name, grad in found.items():
        torch.testing.assert_close(grad, expected[name], rtol=1e-4, atol=1e-5 * float(expected[name].abs().max() + 1))


def loss_of(model: ParallelModel, tokens: int, seed: int) -> None:
    batch = random_batch(128, seed, tokens)
    model.forward_backward(to_device(model, [batch]), 100.0)


@pytest.mark.parametrize("how", ["none", "selective", "full"])
def test_layers_and_documents_share_what_is_compiled(monkeypatch: pytest.MonkeyPatch, how: str):
    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    use_backend(monkeypatch, backend)
    model = built(CONFIG, compile=True, recompute=how)
    assert not graphs, "nothing is compiled before the first step"
    loss_of(model, 64, seed=0)
    assert len(graphs) == BEFORE_AND_BEHIND
    for seed in range(1, 5):
        loss_of(model, 64, seed)
    assert len(graphs) == BEFORE_AND_BEHIND, "one row, other documents"
    for seed, tokens in enumerate((96, 80, 72, 120)):
        loss_of(model, tokens, seed)
    assert len(graphs) == 2 * BEFORE_AND_BEHIND, "once more for any number of tokens"
    for tokens in (64, 96, 104):
        model.token_losses(to_device(model, [random_batch(128, tokens, tokens)]))
    validating = len(graphs)
    assert validating <= 4 * BEFORE_AND_BEHIND, "without gradients"
    model.evolve(rope=CONFIG.rope.__class__(theta=1e6))
    loss_of(model, 64, seed=7)
    loss_of(model, 88, seed=8)
    model.token_losses(to_device(model, [random_batch(128, 9, 112)]))
    assert len(graphs) == validating


def kept(stage: Stage) -> int:
    """Bytes that autograd saves in a forward, without the parameters."""
    seen: dict[int, int] = {}
    known = {parameter.untyped_storage().data_ptr() for parameter in stage.parameters()}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    batch = MicroBatch.of(*[random_batch(128, 0).tokens] * 2, [TOKENS])
    held = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: held.append(tensor) or pack(tensor), lambda t: t):
        stage(None, batch)
    return sum(seen.values())


def test_gradients_and_bytes_with_every_kind_of_recomputation(monkeypatch: pytest.MonkeyPatch):
    use_backend(monkeypatch, "aot_eager")
    expected = gradients(built(CONFIG))
    bytes_per_layer = {}
    for how in ("none", "selective", "full"):
        sizes = []
        for layers in (3, 5):
            model = built(CONFIG.evolve(num_layers=layers), compile=True, recompute=how)
            sizes.append(kept(model.stages[0]))
            if layers == CONFIG.num_layers:
                assert_close(gradients(model), expected)
                assert_close(gradients(model), expected)
        bytes_per_layer[how] = (sizes[1] - sizes[0]) / 2
    hidden, mlp, heads = CONFIG.hidden_size, CONFIG.intermediate_size, CONFIG.num_heads
    # The input, queries, keys, values and what is mixed of them, the product of `out`, gate and up.
    selective = hidden + CONFIG.qkv_size + heads * CONFIG.head_dim + heads + hidden + 2 * mlp
    assert bytes_per_layer["full"] == 4 * TOKENS * hidden
    assert bytes_per_layer["selective"] == 4 * TOKENS * selective
    assert bytes_per_layer["none"] > bytes_per_layer["selective"]


def test_inductor():
    model = built(CONFIG, compile=True, recompute="selective")
    assert_close(gradients(model), gradients(built(CONFIG)))


def test_names_do_not_change(monkeypatch: pytest.MonkeyPatch):
    use_backend(monkeypatch, "eager")
    plain = built(CONFIG).stages[0]
    for how in ("none", "selective", "full"):
        stage = built(CONFIG, compile=True, recompute=how).stages[0]
        loss_of(built(CONFIG, compile=True, recompute=how), 64, seed=0)
        assert list(stage.state_dict()) == list(plain.state_dict())
        assert [name for name, _ in stage.named_modules()] == [name for name, _ in plain.named_modules()]


def _over_ranks() -> list[str]:
    compiling.apply_compile = functools.partial(compiling.apply_compile, backend="aot_eager")  # type: ignore[assignment]
    wrong = []
    for sizes, ways in (
        (dict(shard=2), ("none", "selective")),
        (dict(tensor=2), ("selective", "full")),
        (dict(context=2), ("full",)),
    ):
        plain = built(CONFIG, **sizes)
        expected = {tokens: gradients(plain, tokens=tokens) for tokens in (64, 96, 80)}
        for how in ways:
            torch._dynamo.reset()
            torch._dynamo.utils.counters.clear()
            model = built(CONFIG, compile=True, recompute=how, **sizes)
            for tokens, graphs in ((64, 2), (64, 2), (96, 4), (80, 4)):
                for name, grad in gradients(model, tokens=tokens).items():
                    if not torch.allclose(grad, expected[tokens][name], rtol=1e-4, atol=1e-5):
                        wrong.append(f"{sizes} {how} {tokens} tokens: {name}")
                found = torch._dynamo.utils.counters["stats"]["unique_graphs"]
                if found != graphs:
                    wrong.append(f"{sizes} {how} {tokens} tokens: {found} graphs instead of {graphs}")
    return wrong


def test_with_every_kind_of_sharing_among_ranks(tmp_path: Path):
    assert run_ranks(2, _over_ranks, tmp_path) == [[], []]
