"""Generation against a full forward at every step, alone against in a batch, in pieces against whole."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from puyulm.engine import generate as generate_module
from puyulm.engine.cache import CachedAttention, KVCache, Span
from puyulm.engine.context import context_length, fit_to_context, ntk_length
from puyulm.engine.generate import Batch, Completion, Session, events, generate, stream
from puyulm.engine.params import SamplingParams
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
        together = generate(decoder, prompts, params, batch_size=batch_size)
        for one, other in zip(alone, together, strict=True):
            assert one.ids == other.ids
            torch.testing.assert_close(torch.tensor(one.logprobs), torch.tensor(other.logprobs), atol=1e-4, rtol=0)


def test_a_sequence_may_end_and_another_move_after_the_cache_has_grown(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder, prompts = decoder_of("v2"), [prompt_of(5, 1), prompt_of(7, 2)]
    params = [SamplingParams(temperature=0, max_new_tokens=count, ignore_eos=True) for count in (30, 40)]
    alone = [generate(decoder, [prompt], one)[0] for prompt, one in zip(prompts, params, strict=True)]
    monkeypatch.setattr(generate_module, "FIRST_CAPACITY", 4)
    together = generate(decoder, prompts, params)
    assert [done.ids for done in together] == [done.ids for done in alone]


@pytest.mark.parametrize("name", ["v2", "v3 dynamic"])
@pytest.mark.parametrize("prefill_tokens", [1, 7, 32])
def test_prefill_in_pieces_equals_prefill_at_once(name: str, prefill_tokens: int) -> None:
    decoder = decoder_of(name)
    prompts = [prompt_of(length, seed=length) for length in (30, 4, 11)]
    whole = generate(decoder, prompts, GREEDY)
    pieces = generate(decoder, prompts, GREEDY, prefill_tokens=prefill_tokens)
    for one, other in zip(whole, pieces, strict=True):
        assert one.ids == other.ids
        torch.testing.assert_close(torch.tensor(one.logprobs), torch.tensor(other.logprobs), atol=1e-4, rtol=0)


@torch.no_grad()
def test_one_forward_may_mix_beginnings_continuations_and_single_tokens(decoder: Decoder) -> None:
    tokens = {0: prompt_of(9, 1), 1: prompt_of(6, 2), 2: prompt_of(40, 3)}
    cache = KVCache(decoder.config, 3, 40, torch.float32, torch.device("cpu"))

    def forward(*spans: tuple[int, int, int]) -> Tensor:
        attention = CachedAttention(cache, [Span(slot, start, stop - start, 64) for slot, start, stop in spans])
        ids = [id for slot, start, stop in spans for id in tokens[slot][start:stop]]
        return decoder.logits(decoder(torch.tensor(ids), attention.positions, attention))

    first = forward((2, 0, 20), (0, 0, 8))
    second = forward((0, 8, 9), (2, 20, 37), (1, 0, 6))
    third = forward((2, 37, 38), (0, 8, 9))  # single tokens, but not one for each slot from the first
    expected = {slot: full_logits(decoder, ids, 64) for slot, ids in tokens.items()}
    torch.testing.assert_close(first, torch.cat((expected[2][:20], expected[0][:8])), atol=1e-4, rtol=0)
    parts = torch.cat((expected[0][8:9], expected[2][20:37], expected[1]))
    torch.testing.assert_close(second, parts, atol=1e-4, rtol=0)
    torch.testing.assert_close(third, torch.stack((expected[2][37], expected[0][8])), atol=1e-4, rtol=0)


@pytest.mark.parametrize("lengths", [(20, 17, 30), (200, 3, 5, 1)], ids=["alike", "one much longer"])
@torch.no_grad()
def test_decoding_sequences_of_different_lengths_at_once(decoder: Decoder, lengths: tuple[int, ...]) -> None:
    prompts = [prompt_of(length, seed=length) for length in lengths]
    cache = KVCache(decoder.config, len(lengths), 8, torch.float32, torch.device("cpu"))
    cache.reserve(max(lengths))
    spans = [Span(slot, 0, length - 1, 300) for slot, length in enumerate(lengths) if length > 1]
    attention = CachedAttention(cache, spans)
    ids = [id for span in spans for id in prompts[span.slot][:-1]]
    decoder(torch.tensor(ids), attention.positions, attention)
    attention = CachedAttention(cache, [Span(slot, length - 1, 1, 300) for slot, length in enumerate(lengths)])
    last = torch.tensor([prompt[-1] for prompt in prompts])
    logits = decoder.logits(decoder(last, attention.positions, attention))
    for row, prompt in zip(logits, prompts, strict=True):
        torch.testing.assert_close(row, full_logits(decoder, prompt, 300)[-1], atol=1e-4, rtol=0)


def test_the_cache_grows_by_doubling_and_keeps_what_it_holds() -> None:
    cache = KVCache(tiny_config(), 2, 10, torch.float32, torch.device("cpu"))
    cache.keys[1][:, :, :10] = marks = torch.randn(2, 2, 10, 16)
    capacities = []
    for length in range(1, 200):
        cache.reserve(length)
        assert cache.capacity >= length
        capacities.append(cache.capacity)
    assert sorted(set(capacities)) == [16, 32, 64, 128, 256]
    assert torch.equal(cache.keys[1][:, :, :10], marks) and not cache.keys[1][:, :, 10:].any()


def test_generation_beyond_the_first_capacity(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate_module, "FIRST_CAPACITY", 4)
    decoder, prompts = decoder_of("v2"), [prompt_of(5), prompt_of(3)]
    params = GREEDY.evolve(max_new_tokens=60)
    for prompt, done in zip(prompts, generate(decoder, prompts, params), strict=True):
        check_against_full_forwards(decoder, prompt, done, 65)


class TestSession:
    def test_the_next_turn_runs_only_what_is_new(self, decoder: Decoder) -> None:
        session, ran = Session(decoder), []
        original = decoder.forward
        decoder.forward = lambda tokens, *rest: (ran.append(len(tokens)), original(tokens, *rest))[1]  # type: ignore
        first = prompt_of(10)
        (answer,) = generate(decoder, [first], GREEDY.evolve(max_new_tokens=5), session=session)
        assert ran == [10, 1, 1, 1, 1]
        ran.clear()
        second = first + answer.ids + prompt_of(7, 2)
        (again,) = generate(decoder, [second], GREEDY, session=session)
        assert ran[0] == 8  # the last token of the answer was never run
        assert again.ids == generate(decoder, [second], GREEDY)[0].ids
        ran.clear()
        edited = [*second[:6], 3, *second[7:]]  # an earlier message was changed
        (other,) = generate(decoder, [edited], GREEDY, session=session)
        assert ran[0] == len(edited) - 6
        assert other.ids == generate(decoder, [edited], GREEDY)[0].ids

    def test_the_same_prompt_again_still_runs_its_last_token(self, decoder: Decoder) -> None:
        session, prompt = Session(decoder), prompt_of(10)
        first, second = (generate(decoder, [prompt], GREEDY, session=session)[0] for _ in range(2))
        assert first.ids == second.ids

    def test_an_answer_left_early_can_be_gone_on_from(self, decoder: Decoder) -> None:
        session, prompt = Session(decoder), prompt_of(10)
        answer = []
        for event in events(decoder, prompt, GREEDY, session=session):
            answer.append(event.token)
            if len(answer) == 4:
                break
        assert session.ids == prompt + answer[:3]
        (rest,) = generate(decoder, [prompt + answer], GREEDY, session=session)
        assert answer + rest.ids[:16] == generate(decoder, [prompt], GREEDY)[0].ids

    def test_another_rotary_base_starts_afresh(self) -> None:
        decoder, session = decoder_of("v2 dynamic"), Session(decoder_of("v2 dynamic"))
        prompt = prompt_of(8)
        for turn, extra in enumerate((4, 6, 30)):  # within the positions, over them, further over
            params = GREEDY.evolve(max_new_tokens=extra)
            (done,) = generate(decoder, [prompt], params, session=session)
            check_against_full_forwards(decoder, prompt, done, len(prompt) + extra)
            prompt = prompt + done.ids + prompt_of(3, seed=turn)


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
        done = generate(decoder, prompts, params, on_token=seen.append, on_finish=ended.__setitem__)
        assert [[e.token for e in seen if e.index == index] for index in range(2)] == [one.ids for one in done]
        assert [e.index for e in seen if e.finish_reason] == [0, 1] and ended == dict(enumerate(done))

    def test_stream_gives_the_ids(self, decoder: Decoder, greedy_ids: list[int]) -> None:
        assert list(stream(decoder, prompt_of(6), GREEDY)) == greedy_ids


def test_generating_leaves_autograd_as_it_was(decoder: Decoder) -> None:
    for _ in events(decoder, prompt_of(3), GREEDY):
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
        ([[5]], {"batch_size": 0}, "batch_size (0)"),
    ],
)
def test_impossible_requests_are_refused(
    decoder: Decoder, prompts: list[list[int]], options: dict, message: str
) -> None:
    with pytest.raises(GenerationError) as caught:
        generate(decoder, prompts, **options)
    assert message in str(caught.value)


def test_a_session_holds_one_conversation(decoder: Decoder) -> None:
    with pytest.raises(GenerationError, match="one conversation"):
        Batch(decoder, [[5], [6]], None, session=Session(decoder))


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
