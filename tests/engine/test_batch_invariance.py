"""On CPUs a request's tokens and log-probabilities are the same bits alone and in any company, with or without the
prefix cache, in one piece or many, and after it had to give its blocks back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from puyulm.engine.config import EngineConfig
from puyulm.engine.cpu import pack_for_inference
from puyulm.engine.engine import Engine
from puyulm.engine.paged import KVType, block_bytes
from puyulm.engine.params import SamplingParams
from puyulm.engine.request import Completion
from puyulm.model.attention import PackedAttention
from puyulm.model.config import RopeConfig
from puyulm.model.decoder import Decoder
from tests.conftest import tiny_decoder

SHAPES = {
    "v1": {"family": "internlm", "num_kv_heads": 4, "qkv_bias": True, "out_bias": True},
    "v2": {"hidden_size": 96, "intermediate_size": 200, "vocab_size": 1003},
    "v3 dynamic": {
        "family": "internlm3", "num_heads": 8, "num_kv_heads": 1, "head_dim": 24, "mlp_bias": True,
        "rope": RopeConfig(theta=5e7, scaling="dynamic", factor=6.0),
    },
    "llama tied": {"family": "llama", "tie_embeddings": True},
}  # fmt: skip
ENDLESS = {"max_new_tokens": 24, "ignore_eos": True, "prompt_logprobs": 2, "logprobs": 3}
PARAMS = [
    SamplingParams(temperature=0, **ENDLESS),
    SamplingParams(seed=1, top_p=0.9, **ENDLESS),
    SamplingParams(seed=2, repetition_penalty=1.2, top_k=40, **ENDLESS),
]


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def prompts(vocab_size: int) -> list[list[int]]:
    """Some begin alike, and their blocks and chunks end at different places."""
    generator = torch.Generator().manual_seed(0)
    common = torch.randint(3, vocab_size, (48,), generator=generator).tolist()
    tails = [torch.randint(3, vocab_size, (length,), generator=generator).tolist() for length in (1, 7, 30, 90, 16, 33)]
    return [common[: 16 * (number % 4)] + tail for number, tail in enumerate(tails)]


def answers(model: Decoder, asked: list[tuple[list[int], SamplingParams]], **config: object) -> list[Completion]:
    engine = Engine(model, config=EngineConfig(**{"memory": 1 << 22, **config}))  # type: ignore[arg-type]
    return engine.generate([prompt for prompt, _ in asked], [params for _, params in asked])


def bits(done: list[Completion]) -> list[object]:
    return [(one.ids, one.logprobs, one.prompt_logprobs, one.top, one.prompt_top) for one in done]


@pytest.mark.parametrize("kv_type", ["model", "int8"])
@pytest.mark.parametrize("name", SHAPES)
def test_the_company_does_not_show(name: str, kv_type: KVType) -> None:
    model = pack_for_inference(tiny_decoder(seed=3, **{"max_position_embeddings": 64, **SHAPES[name]}).eval())
    asked = [(prompt, PARAMS[n % 3]) for n, prompt in enumerate(prompts(model.config.vocab_size))]
    torch.set_num_threads(1)
    alone = bits([answers(model, [one], kv_type=kv_type, prefix_cache=False)[0] for one in asked])
    block = block_bytes(model.config, torch.float32, kv_type)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        for config in (
            {},
            {"prefix_cache": False},
            {"step_tokens": 7, "max_running": 3},
            {"max_running": 1},
            {"memory": 13 * block},
        ):
            together = bits(answers(model, asked, kv_type=kv_type, **config))
            for number, (one, other) in enumerate(zip(alone, together, strict=True)):
                assert one == other, f"prompt {number} with {config} on {threads} threads"


def test_giving_way_and_shared_blocks_were_part_of_it() -> None:
    model = pack_for_inference(tiny_decoder(seed=3).eval())
    asked = [(prompt, PARAMS[0]) for prompt in prompts(128)]
    block = block_bytes(model.config, torch.float32)
    engine = Engine(model, config=EngineConfig(memory=13 * block))
    engine.generate([prompt for prompt, _ in asked], PARAMS[0])
    assert engine.scheduler.preemptions > 0
    engine = Engine(model, config=EngineConfig(memory=1 << 22))
    done = [engine.generate([prompt], PARAMS[0].evolve(prompt_logprobs=None))[0] for prompt, _ in asked]
    assert sum(one.cached_tokens for one in done) > 0


@pytest.mark.parametrize("name", SHAPES)
def test_the_engine_judges_as_the_trainer(name: str) -> None:
    decoder = tiny_decoder(seed=3, **SHAPES[name]).eval()
    sequences = prompts(decoder.config.vocab_size)
    expected = []
    with torch.no_grad():
        for tokens in sequences:
            attention = PackedAttention([len(tokens)])
            hidden = decoder(torch.tensor(tokens), attention.positions, attention)
            rows = decoder.logits(hidden).log_softmax(-1)[:-1]
            expected.append(rows.gather(1, torch.tensor(tokens[1:])[:, None]).squeeze(1).tolist())
    engine = Engine(pack_for_inference(decoder), config=EngineConfig(memory=1 << 22, step_tokens=24, max_running=4))
    for found, trained in zip(engine.logprobs(sequences), expected, strict=True):
        assert found == pytest.approx(trained, abs=1e-6 * max(map(abs, trained), default=1) + 1e-6)
