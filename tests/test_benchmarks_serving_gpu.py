"""`benchmarks serving_gpu`: that all runs with a tiny model on a CPU, and what its rows say. No speed is asserted."""

from __future__ import annotations

import pytest
import torch

from benchmarks import serving_gpu
from tests.conftest import tiny_config

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving_gpu, "ROUNDS", 1)
    serving_gpu.peer_throughput.cache_clear()


def test_all_cases_run_without_the_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving_gpu, "installed", lambda _: False)
    rows = serving_gpu.run(smoke=True)
    for case in serving_gpu.cases(smoke=True):
        mine = [row for row in rows if row.name.startswith(case.name)]
        assert [row.unit for row in mine] == ["tok/s", "%", "new tok/s", "new tok/s"]
        assert [row.target for row in mine] == [None, case.share and 1.0, 3.0, 3.0]
        assert mine[2].peer_name == "pip install 'transformers>=5.0'"
    assert {case.name for case in serving_gpu.cases(False)} == {case.name for case in serving_gpu.cases(True)}
    prefill, decode = (row for row in rows if row.name.startswith("7B-1M"))
    assert (prefill.unit, decode.unit) == ("s", "tok/s") and prefill.ours and decode.ours


@pytest.mark.slow  # transformers compiles
def test_the_peer_makes_as_many_tokens() -> None:
    pytest.importorskip("transformers")
    rows = serving_gpu.run("1.8B bf16", smoke=True)
    batches = [row for row in rows if row.unit == "new tok/s"]
    assert [row.peer_name for row in batches] == [f"{serving_gpu.PEER} bf16"] * 2
    assert all(row.ratio == pytest.approx(row.ours / row.peer) for row in batches if row.ours and row.peer)


def test_a_peer_that_fails_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = pytest.importorskip("transformers")

    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("no paged attention")

    monkeypatch.setattr(transformers.LlamaForCausalLM, "generate_batch", fails)
    assert serving_gpu.peer_throughput(tiny_config(), 2, 3, 2, CPU) == (None, ": RuntimeError: no paged attention")


def test_bytes_that_a_token_reads() -> None:
    config = tiny_config()
    matrices = sum(p.numel() for n, p in serving_gpu.random_model(config, CPU, "bf16").named_parameters()
                   if not n.startswith("embed."))  # fmt: skip
    assert serving_gpu.weight_bytes(serving_gpu.random_model(config, CPU, "bf16")) == 2 * matrices
    assert serving_gpu.weight_bytes(serving_gpu.random_model(config, CPU, "int4")) < 1.3 * matrices


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_without_a_device_it_says_so() -> None:
    with pytest.raises(SystemExit, match="needs a CUDA device"):
        serving_gpu.run()
