"""Answers with guesses against answers without: the same, token for token and bit for bit, whatever is guessed."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from puyulm.engine.config import EngineConfig
from puyulm.engine.cpu import pack_for_inference
from puyulm.engine.engine import Engine
from puyulm.engine.grammar import Grammar
from puyulm.engine.params import SamplingParams
from puyulm.engine.request import Completion, Request, TokenEvent
from puyulm.engine.speculate import NgramIndex, Pace, Speculation, continuation
from puyulm.errors import GenerationError
from puyulm.model.config import RopeConfig
from puyulm.model.decoder import Decoder
from puyulm.text.tokenizer import Tokenizer
from tests.conftest import tiny_decoder
from tests.engine.adapters import write_adapter
from tests.text.small_tokenizers import CHATML, small_tokenizer

FAMILIES = {
    "v1": {"family": "internlm", "num_kv_heads": 4, "qkv_bias": True, "out_bias": True},
    "v2 dynamic": {"family": "internlm2", "rope": RopeConfig(theta=1e6, scaling="dynamic", factor=2.0)},
    "v3": {"family": "internlm3", "num_kv_heads": 1, "head_dim": 24, "mlp_bias": True},
    "llama tied": {"family": "llama", "tie_embeddings": True},
}
GREEDY = SamplingParams(temperature=0, max_new_tokens=40, ignore_eos=True)
DRAWN = SamplingParams(temperature=0.7, top_p=0.9, seed=3, max_new_tokens=40, ignore_eos=True)


def packed(seed: int = 1, **shape: object) -> Decoder:
    return pack_for_inference(tiny_decoder(seed, **shape))


def nearly(seed: int = 1, noise: float = 0.02, **shape: object) -> Decoder:
    """A model whose guesses are often right and often wrong: another one's weights, and noise."""
    decoder = tiny_decoder(seed, **shape)
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter += noise * torch.randn(parameter.shape, generator=generator)
    return pack_for_inference(decoder)


def speculation(kind: str, shape: dict, **sizes: int) -> Speculation:
    return Speculation(draft=nearly(**shape) if kind == "draft" else None, **({"shortest_match": 1} | sizes))


def engine_of(decoder: Decoder, tokenizer: Tokenizer | None = None, **config: object) -> Engine:
    return Engine(decoder, tokenizer, EngineConfig(**{"memory": 1 << 23, **config}))


def prompt_of(length: int, seed: int = 0) -> list[int]:
    return torch.randint(3, 128, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def periodic(length: int, period: int, seed: int = 0) -> list[int]:
    return (prompt_of(period, seed) * length)[:length]


def same(one: Completion, other: Completion) -> bool:
    """But for what was found in the cache."""
    fields = ("ids", "logprobs", "finish_reason", "text", "stop_text", "stop_id", "top", "prompt_logprobs")
    return all(getattr(one, name) == getattr(other, name) for name in fields)


@pytest.mark.parametrize("kind", ["n-gram", "draft"])
@pytest.mark.parametrize("name", FAMILIES)
def test_answers_are_the_same_bit_for_bit(name: str, kind: str) -> None:
    """Greedy and drawn, in a batch, with little room for guesses in a step, and preempted for want of blocks."""
    shape = FAMILIES[name]
    decoder = packed(**shape)
    prompts = [periodic(30, 7), prompt_of(5), periodic(21, 3), prompt_of(40, 2), [9]]
    params = [GREEDY, DRAWN, GREEDY.evolve(max_new_tokens=1), DRAWN.evolve(logprobs=3, temperature=0.2), GREEDY]
    expected = [engine_of(decoder).generate([one], own)[0] for one, own in zip(prompts, params, strict=True)]
    block = (2 * 2 * decoder.config.num_kv_heads * decoder.config.head_dim * 16 * 4) * (1 + (kind == "draft"))
    for config in ({}, {"step_tokens": 7, "max_running": 4}, {"memory": 9 * block}):
        engine = engine_of(decoder, speculation=speculation(kind, shape), **config)
        done = engine.generate(prompts, params)
        engine.scheduler.check()
        assert engine.scheduler.pool.held == 0
        assert all(map(same, done, expected))
        assert 0 < engine.counters.accepted <= engine.counters.proposed
        assert engine.counters.new_tokens == sum(len(one.ids) for one in expected)
    assert engine.scheduler.preemptions > 0


@pytest.mark.parametrize("kind", ["n-gram", "draft"])
@pytest.mark.parametrize(
    "edits",
    [
        {"repetition_penalty": 1.2},
        {"presence_penalty": 0.4, "frequency_penalty": 0.3},
        {"logit_bias": {17: 3.0, 40: 2.0}},
        {"min_new_tokens": 15, "stop_ids": tuple(range(3, 80))},
        {"stop_ids": tuple(range(3, 10))},
    ],
    ids=["repetition", "presence and frequency", "bias", "late stop", "stop"],
)
@pytest.mark.parametrize("params", [GREEDY, DRAWN], ids=["greedy", "drawn"])
def test_penalties_bias_and_stops_apply_token_by_token(params: SamplingParams, edits: dict, kind: str) -> None:
    decoder, prompts = packed(), [periodic(40, 5, seed) for seed in range(4)]
    params = params.evolve(**edits)
    expected = engine_of(decoder).generate(prompts, params)
    engine = engine_of(decoder, speculation=speculation(kind, {}))
    assert all(map(same, engine.generate(prompts, params), expected))
    assert engine.counters.proposed > 0


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return small_tokenizer(tmp_path_factory.mktemp("tokenizer"), CHATML)


@pytest.mark.parametrize("kind", ["n-gram", "draft"])
def test_stop_texts_end_inside_what_was_guessed(kind: str, tokenizer: Tokenizer) -> None:
    shape = {"vocab_size": tokenizer.vocab_size}
    decoder, prompt = packed(**shape), tokenizer.encode("abcabcabcabc")
    [free] = engine_of(decoder, tokenizer).generate([prompt], GREEDY)
    assert free.text
    for start in range(0, len(free.text) - 2, 3):
        params = GREEDY.evolve(stop=(free.text[start : start + 2],))
        engine = engine_of(decoder, tokenizer, speculation=speculation(kind, shape))
        [expected] = engine_of(decoder, tokenizer).generate([prompt], params)
        events = list(engine.stream(prompt, params))
        assert [event.token for event in events] == expected.ids and expected.stop_text == params.stop[0]
        assert "".join(event.text for event in events) == expected.text


@pytest.mark.parametrize("kind", ["n-gram", "draft"])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_grammars_hold_and_cut_guesses(kind: str, temperature: float, tokenizer: Tokenizer) -> None:
    pytest.importorskip("llguidance")
    shape = {"vocab_size": tokenizer.vocab_size}
    decoder, prompt = packed(**shape), tokenizer.encode('{"a": [1, 2, 3], "b": [1, 2, 3]} {"a": [')
    grammar = Grammar.json_schema(
        {"type": "array", "items": {"enum": [1, 2, 3, "b"]}, "minItems": 12, "maxItems": 12}
    )  # fmt: skip
    params = SamplingParams(temperature=temperature, seed=1, grammar=grammar, max_new_tokens=100)
    expected = engine_of(decoder, tokenizer).generate([prompt], params)
    engine = engine_of(decoder, tokenizer, speculation=speculation(kind, shape))
    assert all(map(same, engine.generate([prompt], params), expected))
    assert engine.counters.proposed > 0


@pytest.mark.parametrize("kind", ["n-gram", "draft"])
def test_what_is_drawn_follows_the_models_distribution(kind: str) -> None:
    """Chi-square over answers of two tokens after guesses, against the product of the model's own probabilities; the
    guesser proposes a distribution of its own. Eight tokens, so 64 cells."""
    shape = {"vocab_size": 8, "eos_token_ids": ()}
    decoder = packed(3, **shape)
    settings = Speculation(draft=packed(8, **shape) if kind == "draft" else None, shortest_match=1)
    prompt, draws, temperature = [1, 2, 3, 4, 5, 1, 2, 3, 4, 5, 1, 2], 6000, 3.0
    engine = engine_of(decoder, speculation=settings, max_running=64)
    params = [
        SamplingParams(temperature=temperature, seed=seed, max_new_tokens=4, ignore_eos=True) for seed in range(draws)
    ]
    done = engine.generate([prompt] * draws, params)
    assert 0 < engine.counters.accepted < engine.counters.proposed
    counts = Counter(tuple(one.ids[1:3]) for one in done)
    expected = pair_probabilities(decoder, prompt, temperature)
    statistic = sum((counts[pair] - draws * p) ** 2 / (draws * p) for pair, p in expected.items())
    assert min(expected.values()) * draws > 5
    assert statistic < 103.4, statistic  # 63 degrees of freedom: exceeded by chance once in a thousand


def pair_probabilities(decoder: Decoder, prompt: list[int], temperature: float) -> dict[tuple[int, int], float]:
    """Of the second and third token of an answer, the first summed out; by log-probabilities of whole sequences."""
    vocab = decoder.config.vocab_size
    reader = engine_of(decoder)

    def after(*tokens: int) -> torch.Tensor:
        ends = [[*prompt, *tokens, last] for last in range(vocab)]
        logprobs = torch.tensor(reader.logprobs(ends, len(prompt) + len(tokens))).squeeze(1).double()
        return (logprobs / temperature).softmax(0)

    first, total = after(), dict.fromkeys(((a, b) for a in range(vocab) for b in range(vocab)), 0.0)
    for x in range(vocab):
        second = after(x)
        for a in range(vocab):
            third = after(x, a)
            for b in range(vocab):
                total[a, b] += float(first[x] * second[a] * third[b])
    return total


@pytest.mark.parametrize("kind", ["n-gram", "draft"])
def test_a_seed_gives_the_same_answer_in_any_company(kind: str) -> None:
    decoder, prompt = packed(), periodic(30, 6)
    settings = speculation(kind, {}, step_guesses=5)
    alone = engine_of(decoder, speculation=settings).generate([prompt], DRAWN)[0]
    others = [periodic(20 + seed, 4, seed) for seed in range(9)]
    engine = engine_of(decoder, speculation=settings)
    together = engine.generate([*others[:4], prompt, *others[4:]], DRAWN.evolve(seed=None))
    engine = engine_of(decoder, speculation=settings)
    params = [DRAWN.evolve(seed=None)] * 4 + [DRAWN] + [GREEDY] * 5
    together = engine.generate([*others[:4], prompt, *others[4:]], params)
    assert same(together[4], alone)


def test_a_draft_model_like_the_model_is_always_right() -> None:
    """So its cache holds the right keys: after whole acceptance, rests, shared prefixes and preemption too."""
    decoder = packed()
    settings = Speculation(draft=packed(), guesses=4, step_guesses=8)
    engine = engine_of(decoder, speculation=settings, memory=16 * 2 * 2 * 2 * 2 * 16 * 16 * 4)
    prefix = prompt_of(40)
    for start in range(3):
        prompts = [prefix + prompt_of(3, start + seed) for seed in range(6)]
        engine.generate(prompts, [GREEDY, DRAWN] * 3)
    assert engine.counters.accepted == engine.counters.proposed > 200
    assert engine.counters.cached_tokens > 0 and engine.scheduler.preemptions > 0
    [alone] = [engine_of(decoder, speculation=settings)]
    [done] = alone.generate([prompt_of(9)], GREEDY)
    # The first token of a step, and 2, 4, 4, ... guesses.
    assert alone.counters.steps == 1 + 1 + -(-(len(done.ids) - 4) // 5)


def test_a_resting_request_is_caught_up_block_by_block() -> None:
    """Wrong guesses put a request to rest; the draft model's keys must be right once guesses are."""
    decoder = packed()
    engine = engine_of(decoder, speculation=Speculation(draft=packed(), guesses=4))
    request = engine.submit(prompt_of(9), GREEDY.evolve(max_new_tokens=60))
    runner, forwards = engine.speculator.runner, []  # type: ignore[union-attr]
    run = runner.run
    runner.run = lambda *step: (forwards.append(request.answer_length), run(*step))[1]  # type: ignore[method-assign]
    for _ in range(60):
        if request.answer_length in range(8, 48):
            engine.speculator._paces._pace(request)._rest = 1  # type: ignore[union-attr]
        engine.step()
        if request.finished:
            break
    assert request.finished and len([length for length in forwards if 10 <= length < 48]) in (2, 3)
    assert engine.counters.accepted == engine.counters.proposed > 10


def test_guesses_need_no_place_beyond_the_longest_answer() -> None:
    """The last token of an answer is never run, so two blocks hold 17 + 16 tokens."""
    decoder, params = packed(), GREEDY.evolve(max_new_tokens=16)
    engine = engine_of(
        decoder, memory=2 * 2 * 2 * 2 * 2 * 16 * 16 * 4, speculation=Speculation(draft=packed(), guesses=8)
    )
    assert engine.scheduler.limits.tokens == 32
    [done] = engine.generate([prompt_of(17)], params)
    assert same(done, engine_of(decoder).generate([prompt_of(17)], params)[0])
    assert engine.counters.accepted == engine.counters.proposed > 0 and engine.scheduler.preemptions == 0


@pytest.mark.parametrize("kind", ["n-gram", "draft"])
def test_the_next_turn_finds_the_accepted_tokens_in_the_prefix_cache(kind: str) -> None:
    decoder = packed()
    engine = engine_of(decoder, speculation=speculation(kind, {}))
    prompt = periodic(40, 5)
    [first] = engine.generate([prompt], GREEDY)
    assert engine.counters.accepted > 0
    longer = [*prompt, *first.ids, *prompt_of(9)]
    [second] = engine.generate([longer], GREEDY)
    assert second.cached_tokens == (len(prompt) + len(first.ids) - 1) // 16 * 16
    assert same(second, engine_of(decoder).generate([longer], GREEDY)[0])


def test_adapters_and_guesses(tmp_path: Path) -> None:
    decoder = packed()
    folder = write_adapter(tmp_path / "a", decoder.config)
    prompts = [periodic(30, 5), periodic(30, 4, 1)]
    answers = []
    for settings in (None, speculation("n-gram", {}), speculation("draft", {})):
        engine = engine_of(packed(), speculation=settings)
        engine.load_adapter("a", folder)
        requests = [engine.submit(one, GREEDY, adapter=key) for one, key in zip(prompts, ("a", None), strict=True)]
        while not engine.idle:
            engine.step()
        answers.append([request.completion() for request in requests])
    for other in answers[1:]:
        assert all(map(same, other, answers[0]))


def test_scoring_beside_generation() -> None:
    decoder = packed()
    engine = engine_of(decoder, speculation=speculation("draft", {}))
    request = engine.submit(periodic(30, 5), GREEDY)
    [found] = engine.logprobs([prompt_of(50, 4)])
    while not request.finished:
        engine.step()
    assert found == engine_of(decoder).logprobs([prompt_of(50, 4)])[0]
    assert same(request.completion(), engine_of(decoder).generate([periodic(30, 5)], GREEDY)[0])


def test_repeating_text_takes_few_steps() -> None:
    """A model that always says the next token of a cycle: what is repeated is guessed in full."""
    decoder = tiny_decoder(vocab_size=16, num_layers=1)
    with torch.no_grad():
        for layer in decoder.layers:
            layer.attention.out.weight.zero_()
            layer.mlp.down.weight.zero_()
        decoder.embed.weight.zero_()
        decoder.embed.weight[range(16), range(16)] = 1.0
        decoder.head.weight.zero_()
        decoder.head.weight[[(token + 1) % 12 for token in range(16)], range(16)] = 1.0
    engine = engine_of(decoder, speculation=Speculation(guesses=7))
    [done] = engine.generate([[*range(12), 0, 1]], SamplingParams(temperature=0, max_new_tokens=400, ignore_eos=True))
    assert done.ids == [(2 + number) % 12 for number in range(400)]
    assert engine.counters.steps <= 400 / 8 + 5
    assert engine.counters.accepted == engine.counters.proposed


def test_guesses_that_fail_cost_little() -> None:
    """Random answers: with every rest as long as it may be, less than one guess in eight tokens."""
    decoder = packed(vocab_size=128)
    engine = engine_of(decoder, speculation=Speculation(shortest_match=1))
    params = SamplingParams(temperature=100.0, seed=0, max_new_tokens=600, ignore_eos=True)
    engine.generate([prompt_of(60)], params)
    assert 0 < engine.counters.proposed < 600 / 8


class TestPace:
    def test_grows_with_success_and_shrinks_with_failure(self) -> None:
        pace = Pace(8)
        sizes = []
        for accepted in (2, 4, 8, 3, 0, 0, 0):
            sizes.append(pace.allowed())
            pace.observe(sizes[-1], min(accepted, sizes[-1]))
        assert sizes == [2, 4, 8, 8, 4, 2, 1]
        rests = []
        for _ in range(7):
            rests.append(0)
            while not pace.allowed():
                rests[-1] += 1
            pace.observe(1, 0)
        assert rests == [1, 2, 4, 8, 16, 16, 16]

    def test_one_success_wakes_it(self) -> None:
        pace = Pace(8)
        for _ in range(20):
            while not pace.allowed():
                pass
            pace.observe(1, 0)
        while not pace.allowed():
            pass
        pace.observe(1, 1)
        assert pace.allowed() == 2


class TestNgramIndex:
    @staticmethod
    def reference(tokens: Sequence[int], longest: int, shortest: int) -> int | None:
        for length in range(min(longest, len(tokens) - 1), shortest - 1, -1):
            for end in range(len(tokens) - 1, length - 1, -1):
                if tokens[end - length : end] == tokens[len(tokens) - length :]:
                    return end
        return None

    @pytest.mark.parametrize(("longest", "shortest"), [(1, 1), (4, 1), (4, 2), (3, 3), (8, 5)])
    def test_equals_a_search_through_everything(self, longest: int, shortest: int) -> None:
        generator = random.Random(longest * 10 + shortest)
        index, tokens = NgramIndex(), []
        for _ in range(60):
            tokens += [generator.randrange(6) for _ in range(generator.choice((1, 1, 1, 4)))]
            assert index.find(tokens, longest, shortest) == self.reference(tokens, longest, shortest)

    def test_a_token_costs_the_same_however_long_the_sequence(self) -> None:
        class Counted(list):
            reads = 0

            def __getitem__(self, place: object) -> object:
                Counted.reads += 1
                return super().__getitem__(place)  # type: ignore[index]

        index, tokens = NgramIndex(), Counted([5] * 10_000)
        index.find(tokens, 8, 1)
        Counted.reads = 0
        tokens.append(5)
        index.find(tokens, 8, 1)
        assert Counted.reads < 50

    def test_what_runs_into_the_end_repeats(self) -> None:
        assert continuation([1, 2, 3, 7, 8], 3, 5) == [7, 8, 7, 8, 7]
        assert continuation([1, 2, 3, 7, 8], 1, 3) == [2, 3, 7]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"guesses": 0}, "guesses must be a positive whole number"),
        ({"step_guesses": 1.5}, "step_guesses must be"),
        ({"shortest_match": 9}, "shortest_match (9) is above longest_match (8)"),
        ({"draft": tiny_decoder(head="reward")}, "a reward model"),
        ({"draft": tiny_decoder(vocab_size=256)}, "256 tokens and the model 128"),
    ],
)
def test_settings_that_cannot_be(settings: dict, message: str) -> None:
    with pytest.raises(GenerationError) as caught:
        engine_of(tiny_decoder(), speculation=Speculation(**settings))
    assert message in str(caught.value)


def test_a_draft_models_cache_is_counted() -> None:
    decoder, draft = packed(), packed(num_layers=1)
    without = engine_of(decoder).scheduler.limits.num_blocks
    engine = engine_of(decoder, speculation=Speculation(draft=draft))
    assert engine.scheduler.limits.num_blocks == without * 2 // 3
    assert engine.speculator.runner.cache.num_blocks == engine.runner.cache.num_blocks  # type: ignore[union-attr]


@pytest.mark.parametrize("other", [False, True])
def test_a_request_may_be_aborted_by_what_is_called_with_its_tokens(other: bool) -> None:
    decoder = packed()
    long = GREEDY.evolve(max_new_tokens=60)

    def leave_after(length: int) -> None:
        def leave(event: TokenEvent) -> None:
            if requests[0].answer_length == length:
                engine.abort(requests[other])

        engine = engine_of(decoder, speculation=Speculation(draft=decoder))  # all guesses are right
        requests: list[Request] = []
        requests += [engine.submit(prompt_of(9), long, on_event=leave), engine.submit(prompt_of(20), long)]
        while not engine.idle:
            engine.step()
        engine.scheduler.check()
        assert engine.scheduler.pool.held == 0
        assert requests[other].finish_reason == "aborted" and requests[not other].answer_length == 60

    for length in range(1, 40):
        leave_after(length)
