"""The engine over 2 and 4 ranks answers as over one."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from puyulm.engine.async_engine import AsyncEngine
from puyulm.engine.config import EngineConfig
from puyulm.engine.engine import Engine
from puyulm.engine.params import SamplingParams
from puyulm.engine.tensor import parallel_engine, split_for_inference
from puyulm.errors import EngineLost, GenerationError
from puyulm.model.decoder import Decoder
from tests.conftest import tiny_decoder
from tests.parallel.ranks import run_ranks
from tests.waiting import wait_until

SHAPES = {
    "v1": {"family": "internlm", "num_kv_heads": 4, "qkv_bias": True, "out_bias": True},
    "v2 tied": {"family": "internlm2", "num_kv_heads": 4, "tie_embeddings": True},
    "v3": {
        "family": "internlm3", "num_kv_heads": 4, "num_heads": 8, "head_dim": 24, "mlp_bias": True, "vocab_size": 127,
    },
}  # fmt: skip
PARAMS = [
    SamplingParams(temperature=0, max_new_tokens=20, ignore_eos=True),
    SamplingParams(seed=3, max_new_tokens=20, ignore_eos=True),
]
CONFIG = EngineConfig(memory=1 << 20, step_tokens=24, max_running=3)


def decoder_of(name: str) -> Decoder:
    return tiny_decoder(seed=1, **SHAPES[name])


def prompts() -> list[list[int]]:
    return [torch.randint(3, 120, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in (5, 40, 17, 40)]


def answers(engine: Engine) -> Any:
    done = engine.generate(prompts(), PARAMS * 2)
    return [(one.ids, one.logprobs) for one in done], engine.logprobs(prompts(), 2)


def answers_of_rank(names: list[str]) -> list[Any]:
    found = []
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    with pytest.raises(GenerationError, match="1 key/value heads cannot be split over"):
        split_for_inference(tiny_decoder(num_kv_heads=1), mesh)
    for name in names:
        model = split_for_inference(decoder_of(name), mesh)
        engine = parallel_engine(model, mesh, config=CONFIG)
        if engine is not None:
            found.append(answers(engine))
            engine.close()
    return found


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_answer_as_one(ranks: int, tmp_path: Path) -> None:
    names = list(SHAPES)
    first, *others = run_ranks(ranks, answers_of_rank, tmp_path, names)
    assert all(other == [] for other in others)
    for name, (completions, judged) in zip(names, first, strict=True):
        expected, expected_judged = answers(Engine(decoder_of(name), config=CONFIG))
        assert [ids for ids, _ in completions] == [ids for ids, _ in expected], name
        for (_, one), (_, other) in zip(completions, expected, strict=True):
            assert one == pytest.approx(other, abs=1e-4)
        for one, other in zip(judged, expected_judged, strict=True):
            assert one == pytest.approx(other, abs=1e-4)


def served_after_a_failure() -> bool:
    """One rank alone: another would wait in the middle of the step, which is why nothing more may be asked of it."""
    mesh = init_device_mesh("cpu", (1,))
    for ends in (False, True):
        engine = parallel_engine(split_for_inference(decoder_of("v1"), mesh), mesh, config=CONFIG)
        assert engine is not None
        if ends:
            engine.close()
            engine.close()
        else:
            broken = engine.model.layers[1].mlp
            with patch.object(broken, "forward", side_effect=MemoryError), pytest.raises(MemoryError):
                engine.generate(prompts(), PARAMS * 2)
        with pytest.raises(EngineLost, match="closed" if ends else "start them again"):
            engine.generate(prompts(), PARAMS * 2)
    served = AsyncEngine(engine)

    with pytest.raises(GenerationError, match="closed"):
        asyncio.run(served.generate([5], PARAMS[0]))
    wait_until(lambda: not served.alive)
    engine.close()
    return True


def test_a_step_that_fails_is_the_last(tmp_path: Path) -> None:
    assert run_ranks(1, served_after_a_failure, tmp_path) == [True]
