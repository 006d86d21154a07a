"""Generation against a full forward at every step, alone against in a batch, in pieces against whole."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from puyulm.engine.config import EngineConfig
from puyulm.engine.context import context_length, fit_to_context, ntk_length
from puyulm.engine.engine import Engine
from puyulm.engine.judge import judge
from puyulm.engine.params import SamplingParams
from puyulm.engine.request import Completion
from puyulm.errors import GenerationError
from puyulm.model.attention import PackedAttention
from puyulm.model.config import RopeConfig
from puyulm.model.decoder import Decoder
from tests.conftest import tiny_config, tiny_decoder

# Sixteen positions only, so that short prompts are long ones.
FAMILIES = {
    "v1": {"family": "internlm", "num_kv_heads": 4, "qkv_bias": True, "out_bias": True},
    "v1 dynamic": {"family": "internlm", "num_kv_heads": 4, "rope": RopeConfig(scaling="dynamic", factor=1.0)},
    "v2": {"family": "internlm2"},
    "v2 linear": {"family": "internlm2", "rope": RopeConfig(theta=1e6, scaling="linear", factor=2.0)},
    "v2 dynamic": {"family": "internlm2", "rope": RopeConfig(theta=1e6, scaling="dynamic", factor=2.0)},
    "v3 dynamic": {
        "family": "internlm3", "num_kv_heads": 1, "head_dim": 24, "mlp_bias": True,
        "rope": RopeConfig(theta=5e7, scaling="dynamic", factor=6.0),
    },
    "llama tied": {"family": "llama", "tie_embeddings": True},
}  # fmt: skip
GREEDY = SamplingParams(temperature=0, max_new_tokens=20, ignore_eos=True)


def decoder_of(name: str) -> Decoder:
    return tiny_decoder(seed=1, max_position_embeddings=16, **FAMILIES[name])


def prompt_of(length: int, seed: int = 0) -> list[int]:
    return torch.randint(3, 128, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def engine_of(decoder: Decoder, **sizes: int) -> Engine:
    return Engine(decoder, config=EngineConfig(**{"memory": 1 << 22, **sizes}))


def generate(
    decoder: Decoder,
    prompts: list[list[int]],
    params: SamplingParams | list[SamplingParams] | None = None,
    **sizes: int,
) -> list[Completion]:
    """By an engine of its own, whose books must agree afterwards."""
    engine = engine_of(decoder, **sizes)
    done = engine.generate(prompts, params)
    engine.scheduler.check()
    assert engine.idle and engine.scheduler.pool.held == 0
    return done


def joined(sequences: list[list[int]]) -> Tensor:
    return torch.tensor([id for tokens in sequences for id in tokens])


@torch.no_grad()
def full_logits(decoder: Decoder, tokens: Sequence[int], reach: int) -> Tensor:
    """Logits after each token of one plain forward, at the rotary base of a sequence of `reach` tokens."""
    attention = PackedAttention([len(tokens)])
    attention.seq_lens = torch.full((len(tokens),), reach)
    return decoder.logits(decoder(torch.tensor(tokens), attention.positions, attention))


def check_against_full_forwards(decoder: Decoder, prompt: list[int], done: Completion, reach: int) -> None:
    """The completion is what a full forward at every step would have chosen, with its probabilities."""
    for step, (token, logprob) in enumerate(zip(done.ids, done.logprobs, strict=True)):
        row = full_logits(decoder, prompt + done.ids[:step], reach)[-1].log_softmax(-1)
        assert token == int(row.argmax()), f"step {step}"
        assert abs(logprob - row[token].item()) < 1e-4


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("length", [1, 30], ids=["short", "beyond the positions"])
def test_greedy_equals_a_full_forward_at_every_step(name: str, length: int) -> None:
    decoder, prompt = decoder_of(name), prompt_of(length)
    (done,) = generate(decoder, [prompt], GREEDY)
    assert done.finish_reason == "length" and len(done.ids) == GREEDY.max_new_tokens
    check_against_full_forwards(decoder, prompt, done, length + GREEDY.max_new_tokens)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_batch_equals_its_prompts_alone(name: str) -> None:
    decoder = decoder_of(name)
    prompts = [prompt_of(length, seed=length) for length in (5, 40, 1, 17, 9, 23)]
    params = [
        SamplingParams(max_new_tokens=count, ignore_eos=True, **kind)
        for count, kind in zip(
            (20, 3, 12, 30, 1, 7), ({"temperature": 0}, {"seed": 3}, {"seed": 4, "top_p": 0.9}) * 2, strict=True
        )
    ]
    alone = [generate(decoder, [prompt], one)[0] for prompt, one in zip(prompts, params, strict=True)]
    for batch_size in (2, 6):  # in turns, and all at once
        together = generate(decoder, prompts, params, max_running=batch_size)
        for one, other in zip(alone, together, strict=True):
            assert one.ids == other.ids
            torch.testing.assert_close(torch.tensor(one.logprobs), torch.tensor(other.logprobs), atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["v2", "v3 dynamic"])
@pytest.mark.parametrize("prefill_tokens", [1, 7, 32])
def test_prefill_in_pieces_equals_prefill_at_once(name: str, prefill_tokens: int) -> None:
    decoder = decoder_of(name)
    prompts = [prompt_of(length, seed=length) for length in (30, 4, 11)]
    whole = generate(decoder, prompts, GREEDY)
    pieces = generate(decoder, prompts, GREEDY, step_tokens=prefill_tokens, max_running=min(prefill_tokens, 3))
    for one, other in zip(whole, pieces, strict=True):
        assert one.ids == other.ids
        torch.testing.assert_close(torch.tensor(one.logprobs), torch.tensor(other.logprobs), atol=1e-4, rtol=0)


class TestPrefixCache:
    def test_the_next_turn_runs_only_what_is_new(self, decoder: Decoder) -> None:
        engine, ran = engine_of(decoder), []
        original = decoder.forward
        decoder.forward = lambda tokens, *rest: (ran.append(len(tokens)), original(tokens, *rest))[1]  # type: ignore
        first = prompt_of(30)
        (answer,) = engine.generate([first], GREEDY.evolve(max_new_tokens=5))
        assert ran == [30, 1, 1, 1, 1] and answer.cached_tokens == 0
        ran.clear()
        second = first + answer.ids + prompt_of(7, 2)
        (again,) = engine.generate([second], GREEDY)
        assert ran[0] == 42 - 32 and again.cached_tokens == 32  # whole blocks, also of the answer
        assert again.ids == generate(decoder, [second], GREEDY)[0].ids
        ran.clear()
        edited = [*second[:20], 3, *second[21:]]  # an earlier message was changed
        (other,) = engine.generate([edited], GREEDY)
        assert ran[0] == len(edited) - 16
        assert other.ids == generate(decoder, [edited], GREEDY)[0].ids

    def test_the_same_prompt_again_still_runs_its_last_token(self, decoder: Decoder) -> None:
        engine, prompt = engine_of(decoder), prompt_of(32)
        first, second = (engine.generate([prompt], GREEDY)[0] for _ in range(2))
        assert first.ids == second.ids and second.cached_tokens == 16

    def test_an_answer_left_early_can_be_gone_on_from(self, decoder: Decoder) -> None:
        engine, prompt = engine_of(decoder), prompt_of(30)
        stream = engine.stream(prompt, GREEDY)
        answer = [next(stream).token for _ in range(4)]
        stream.close()
        assert engine.idle and engine.scheduler.pool.held == 0
        (rest,) = engine.generate([prompt + answer], GREEDY)
        assert rest.cached_tokens == 32
        assert answer + rest.ids[:16] == generate(decoder, [prompt], GREEDY)[0].ids

    def test_another_rotary_base_shares_nothing(self) -> None:
        decoder = decoder_of("v2 dynamic")
        engine, prompt = engine_of(decoder), prompt_of(40)
        (first,) = engine.generate([prompt], GREEDY)
        (other,) = engine.generate([prompt], GREEDY.evolve(max_new_tokens=30))
        (same,) = engine.generate([prompt], GREEDY)
        assert (other.cached_tokens, same.cached_tokens) == (0, 32) and same.ids == first.ids
        check_against_full_forwards(decoder, prompt, other, 70)

    def test_requests_that_come_together_compute_a_common_beginning_once(self, decoder: Decoder) -> None:
        common = prompt_of(48)
        prompts = [common + prompt_of(9, seed) for seed in range(5)]
        engine = engine_of(decoder)
        done = engine.generate(prompts, GREEDY)
        assert sorted(one.cached_tokens for one in done) == [0, 48, 48, 48, 48]
        assert [one.ids for one in done] == [generate(decoder, [prompt], GREEDY)[0].ids for prompt in prompts]

    def test_changed_weights_find_nothing_of_the_old(self, decoder: Decoder) -> None:
        engine, prompt = engine_of(decoder), prompt_of(40)
        (before,) = engine.generate([prompt], GREEDY)
        with torch.no_grad():
            for parameter in decoder.parameters():
                parameter.copy_(parameter.flip(0))
        engine.weights_changed()
        (after,) = engine.generate([prompt], GREEDY)
        assert after.cached_tokens == 0 and after.ids != before.ids
        assert after.ids == generate(decoder, [prompt], GREEDY)[0].ids

    def test_weights_may_not_change_under_a_running_request(self, decoder: Decoder) -> None:
        engine = engine_of(decoder)
        stream = engine.stream(prompt_of(5), GREEDY)
        next(stream)
        with pytest.raises(GenerationError, match="1 requests are running"):
            engine.weights_changed()


class TestMemory:
    def test_sequences_that_do_not_fit_together_take_turns(self, decoder: Decoder) -> None:
        prompts = [prompt_of(length, seed=length) for length in (20, 33, 17, 40)]
        params = [GREEDY.evolve(max_new_tokens=40), GREEDY.evolve(max_new_tokens=40, temperature=1, seed=5)] * 2
        alone = [generate(decoder, [prompt], one)[0] for prompt, one in zip(prompts, params, strict=True)]
        block = engine_of(decoder).config.memory // engine_of(decoder).scheduler.limits.num_blocks
        engine = engine_of(decoder, memory=7 * block)
        together = engine.generate(prompts, params)
        assert engine.scheduler.preemptions > 0
        assert [one.ids for one in together] == [one.ids for one in alone]
        engine.scheduler.check()

    def test_what_can_never_fit_is_refused_at_once(self, decoder: Decoder) -> None:
        block = engine_of(decoder).config.memory // engine_of(decoder).scheduler.limits.num_blocks
        engine = engine_of(decoder, memory=4 * block)
        assert len(engine.generate([prompt_of(45)], GREEDY)[0].ids) == 20  # the last token needs no place
        with pytest.raises(
            GenerationError, match=r"prompt of 46 tokens and an answer of up to 20 .* cache of 64 tokens"
        ):
            engine.generate([prompt_of(5), prompt_of(46)], GREEDY)
        assert engine.idle
        with pytest.raises(GenerationError, match="needs at least"):
            engine_of(decoder, memory=block - 1)


class TestReading:
    def test_logprobs_are_those_of_a_full_forward(self, decoder: Decoder) -> None:
        sequences = [prompt_of(length, seed=length) for length in (2, 40, 17, 100)]
        engine = engine_of(decoder, step_tokens=24, max_running=3)
        for start in (1, 2):
            for tokens, found in zip(sequences, engine.logprobs(sequences, start), strict=True):
                rows = full_logits(decoder, tokens, len(tokens)).log_softmax(-1)
                expected = [rows[at - 1, tokens[at]].item() for at in range(start, len(tokens))]
                assert found == pytest.approx(expected, abs=1e-5)

    def test_logprobs_take_what_comes_before_from_the_cache(self, decoder: Decoder) -> None:
        engine, common = engine_of(decoder), prompt_of(50)
        choices = [common + prompt_of(4, seed) for seed in range(3)]
        expected = engine_of(decoder).logprobs(choices, 50)
        engine.logprobs([common])
        assert engine.logprobs(choices, 50) == [pytest.approx(one, abs=1e-6) for one in expected]
        assert engine.counters.cached_tokens == 3 * 48

    def test_prompt_logprobs_come_with_an_answer_also_after_it_had_to_wait_again(self, decoder: Decoder) -> None:
        prompts = [prompt_of(length, seed=length) for length in (20, 33, 17, 40)]
        params = GREEDY.evolve(max_new_tokens=40, prompt_logprobs=3)
        block = engine_of(decoder).config.memory // engine_of(decoder).scheduler.limits.num_blocks
        engine = engine_of(decoder, memory=7 * block)
        for prompt, done in zip(prompts, engine.generate(prompts, params), strict=True):
            rows = full_logits(decoder, prompt, len(prompt)).log_softmax(-1)
            assert done.prompt_logprobs == pytest.approx(
                [rows[at - 1, prompt[at]].item() for at in range(1, len(prompt))], abs=1e-5
            )
            assert [one.ids for one in done.prompt_top] == rows[:-1].topk(3).indices.tolist()
        assert engine.scheduler.preemptions > 0

    def test_rewards_are_read_at_the_last_token(self) -> None:
        decoder = tiny_decoder(head="reward")
        sequences = [prompt_of(length, seed=length) for length in (3, 40, 17)]
        found = engine_of(decoder, step_tokens=16, max_running=2).score(sequences)
        with torch.no_grad():
            attention = PackedAttention([3, 40, 17])
            hidden = decoder(joined(sequences), attention.positions, attention)
            expected = decoder.scores(hidden, attention.cu_seqlens).tolist()
        assert found == pytest.approx(expected, abs=1e-5)
        with pytest.raises(GenerationError, match="load a reward model"):
            engine_of(tiny_decoder()).score(sequences)

    def test_embeddings_have_length_one(self, decoder: Decoder) -> None:
        sequences = [prompt_of(length, seed=length) for length in (3, 40)]
        engine = engine_of(decoder, step_tokens=16, max_running=2)
        with torch.no_grad():
            attention = PackedAttention([3, 40])
            first, second = decoder(joined(sequences), attention.positions, attention).split([3, 40])
        for pooling, expected in (("last", (first[-1], second[-1])), ("mean", (first.mean(0), second.mean(0)))):
            for vector, row in zip(engine.embed(sequences, pooling), expected, strict=True):
                torch.testing.assert_close(vector, torch.nn.functional.normalize(row, dim=0), atol=1e-5, rtol=0)


def test_several_answers_to_one_prompt_share_its_blocks(decoder: Decoder) -> None:
    engine, prompt = engine_of(decoder), prompt_of(40)
    params = SamplingParams(n=3, seed=7, max_new_tokens=12, ignore_eos=True)
    done = engine.generate([prompt, prompt_of(4)], [params, GREEDY])
    assert len(done) == 4 and [one.cached_tokens for one in done] == [0, 32, 32, 0]
    for one, alone in zip(done, params.samples(), strict=False):
        assert one.ids == generate(decoder, [prompt], alone)[0].ids
    assert len({tuple(one.ids) for one in done[:3]}) == 3


class TestEnding:
    """The greedy continuation of one prompt, ended in every way."""

    @pytest.fixture
    def greedy_ids(self, decoder: Decoder) -> list[int]:
        return generate(decoder, [prompt_of(6)], GREEDY)[0].ids

    def test_a_stop_id_ends_and_is_told_apart(self, decoder: Decoder, greedy_ids: list[int]) -> None:
        stop = greedy_ids[4]
        (done,) = generate(decoder, [prompt_of(6)], GREEDY.evolve(stop_ids=(stop,)))
        assert done.ids == greedy_ids[: greedy_ids.index(stop) + 1] and done.finish_reason == "stop"
        assert done.stop_id == stop and done.content_ids == done.ids[:-1] and len(done.logprobs) == len(done.ids)

    def test_the_models_eos_ends_unless_ignored(self, decoder: Decoder, greedy_ids: list[int]) -> None:
        ending = tiny_decoder(eos_token_ids=(greedy_ids[3],))
        params = GREEDY.evolve(ignore_eos=False)
        assert generate(ending, [prompt_of(6)], params)[0].finish_reason == "stop"
        assert generate(ending, [prompt_of(6)], GREEDY)[0].ids == greedy_ids

    def test_the_last_token_allowed_may_be_a_stop(self, decoder: Decoder, greedy_ids: list[int]) -> None:
        new = [id for at, id in enumerate(greedy_ids) if id not in greedy_ids[:at]]
        at = greedy_ids.index(new[-1])
        params = GREEDY.evolve(stop_ids=(new[-1],), max_new_tokens=at + 1)
        assert generate(decoder, [prompt_of(6)], params)[0].finish_reason == "stop"

    def test_min_new_tokens_bans_stop_ids_until_then(self, decoder: Decoder, greedy_ids: list[int]) -> None:
        params = GREEDY.evolve(stop_ids=(greedy_ids[0],), min_new_tokens=5)
        (done,) = generate(decoder, [prompt_of(6)], params)
        assert greedy_ids[0] not in done.ids[:5] and len(done.ids) >= 5

    def test_callbacks_see_every_token_and_every_end(self, decoder: Decoder) -> None:
        prompts, seen, ended = [prompt_of(4), prompt_of(6)], [], {}
        params = [GREEDY.evolve(max_new_tokens=3), GREEDY.evolve(max_new_tokens=5)]
        done = engine_of(decoder).generate(prompts, params, on_token=seen.append, on_finish=ended.__setitem__)
        assert [[e.token for e in seen if e.index == index] for index in range(2)] == [one.ids for one in done]
        assert [e.index for e in seen if e.finish_reason] == [0, 1] and ended == dict(enumerate(done))

    def test_stream_gives_the_ids(self, decoder: Decoder, greedy_ids: list[int]) -> None:
        assert [event.token for event in engine_of(decoder).stream(prompt_of(6), GREEDY)] == greedy_ids

    def test_streams_may_be_read_in_turn(self, decoder: Decoder) -> None:
        engine, prompts = engine_of(decoder), [prompt_of(6), prompt_of(9)]
        streams = [engine.stream(prompt, GREEDY) for prompt in prompts]
        pairs = list(zip(*streams, strict=True))
        for number, prompt in enumerate(prompts):
            assert [pair[number].token for pair in pairs] == generate(decoder, [prompt], GREEDY)[0].ids


def test_generating_leaves_autograd_as_it_was(decoder: Decoder) -> None:
    for _ in engine_of(decoder).stream(prompt_of(3), GREEDY):
        assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
        break


def test_no_prompts_no_completions(decoder: Decoder) -> None:
    assert generate(decoder, []) == []


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([[5], []], {}, "prompt 1 is empty"),
        ([[5, 128]], {}, "prompt 0 holds the id 128, but the model has 128 tokens"),
        ([[5]], {"params": [SamplingParams()] * 2}, "1 prompts but 2 sampling parameters"),
        ([[5]], {"params": SamplingParams(stop=("x",))}, "need a tokenizer"),
        ([[5]], {"max_running": 0}, "max_running must be a positive whole number, not 0"),
    ],
)
def test_impossible_requests_are_refused(
    decoder: Decoder, prompts: list[list[int]], options: dict, message: str
) -> None:
    with pytest.raises(GenerationError) as caught:
        generate(decoder, prompts, **options)
    assert message in str(caught.value)


def test_a_reward_model_cannot_generate() -> None:
    with pytest.raises(GenerationError, match="reward model"):
        generate(tiny_decoder(head="reward"), [[5]])


def test_damaged_weights_are_reported(decoder: Decoder) -> None:
    with torch.no_grad():
        decoder.norm.weight[0] = math.nan
    with pytest.raises(GenerationError, match="NaN"):
        generate(decoder, [[5]], GREEDY)


def test_context_lengths() -> None:
    plain, dynamic = tiny_config(), tiny_config(rope=RopeConfig(scaling="dynamic", factor=2.0))
    linear = tiny_config(rope=RopeConfig(scaling="linear", factor=4.0))
    assert (context_length(plain), context_length(linear), context_length(dynamic)) == (64, 256, None)
    assert (ntk_length(plain, 100), ntk_length(dynamic, 64), ntk_length(dynamic, 65)) == (None, None, 65)
    params = SamplingParams(max_new_tokens=20, min_new_tokens=18)
    assert fit_to_context(plain, 44, params) is params
    assert fit_to_context(plain, 48, params) == params.evolve(max_new_tokens=16, min_new_tokens=16)
    assert fit_to_context(dynamic, 1000, params) is params
    with pytest.raises(GenerationError, match="has 64 tokens, but the model's context is 64"):
        fit_to_context(plain, 64, params)


def test_types_other_than_float32_take_the_fused_kernel_to_the_same_end(decoder: Decoder) -> None:
    prompts = [prompt_of(12), prompt_of(3), prompt_of(90)]
    expected = generate(decoder, prompts, GREEDY)
    for one, other in zip(expected, generate(decoder.double(), prompts, GREEDY), strict=True):
        assert one.ids == other.ids
        torch.testing.assert_close(torch.tensor(one.logprobs), torch.tensor(other.logprobs), atol=1e-4, rtol=0)


def test_an_interrupted_step_ends_what_ran_and_nothing_answers_wrongly(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Engine(decoder, config=EngineConfig(memory=1 << 20))
    params = SamplingParams(temperature=0, max_new_tokens=12, ignore_eos=True)
    expected = engine.generate([[5, 6, 7]], params)[0].ids
    others = engine.stream([8, 9], params)
    next(others)

    def interrupted(hidden: torch.Tensor) -> torch.Tensor:
        monkeypatch.undo()
        raise KeyboardInterrupt

    monkeypatch.setattr(engine.runner, "logits", interrupted)
    with pytest.raises(KeyboardInterrupt):
        engine.generate([[5, 6, 7]], params)
    with pytest.raises(GenerationError, match="KeyboardInterrupt"):
        list(others)
    engine.scheduler.check()
    assert engine.idle and engine.generate([[5, 6, 7]], params)[0].ids == expected


def test_more_alternatives_than_tokens_are_all_tokens(decoder: Decoder) -> None:
    params = SamplingParams(max_new_tokens=1, logprobs=1000, prompt_logprobs=1000)
    [done] = Engine(decoder, config=EngineConfig(memory=1 << 20)).generate([[5, 6, 7]], params)
    assert done.prompt_top is not None
    assert [len(top.ids) for top in (*done.top, *done.prompt_top)] == [decoder.config.vocab_size] * 3


def test_how_many_alternatives_a_neighbour_lists_does_not_show() -> None:
    """Which of equally likely tokens come first depends on the sort, and which sort on the number that is wanted."""
    hidden = torch.zeros(2, 8)

    def head(rows: Tensor) -> Tensor:
        return torch.zeros(len(rows), 5000)

    for other in (0, 3, 20, 100, 9999):
        judged = judge(hidden, [1, 2], head, 5000, [3, other])
        assert judged.top[0] == judge(hidden[:1], [1], head, 5000, [3]).top[0]
        assert len(judged.top[1].ids if other else ()) == min(other, 5000)
