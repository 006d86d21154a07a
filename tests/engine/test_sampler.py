"""The sampler against a plain one-row reference, against transformers, and alone against in company."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from puyulm.engine import sampler as sampler_module
from puyulm.engine.filters import MORE_CANDIDATES, draw, filtered, total
from puyulm.engine.params import SamplingParams
from puyulm.engine.sampler import RowSampler, edited, probabilities, sample
from puyulm.engine.uniform import uniforms

VOCAB = 50
DEVICE = torch.device("cpu")


def logits_of(rows: int, vocab: int = VOCAB, seed: int = 0) -> Tensor:
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)) * 3


def row(params: SamplingParams, prompt: tuple[int, ...] = (), stop_ids: tuple[int, ...] = (), vocab: int = VOCAB):
    return RowSampler(params, prompt, stop_ids, vocab, DEVICE)


def reference_filter(scores: list[float], params: SamplingParams) -> set[int]:
    """The tokens that may be drawn, by the definitions, one row at a time in Python floats."""
    scores = [score / params.temperature for score in scores]
    kept = sorted(range(len(scores)), key=lambda token: -scores[token])
    if params.top_k:
        kept = kept[: params.top_k]
    total = sum(math.exp(scores[token]) for token in kept)
    nucleus, mass = [], 0.0
    for token in kept:
        if mass < params.top_p or params.top_p == 1:
            nucleus.append(token)
        mass += math.exp(scores[token]) / total
    best = scores[nucleus[0]]
    return {token for token in nucleus if math.exp(scores[token] - best) >= params.min_p}


FILTERS = {
    "nothing": SamplingParams(),
    "temperature": SamplingParams(temperature=0.3),
    "top-k": SamplingParams(top_k=7),
    "top-k beyond the vocabulary": SamplingParams(top_k=1000),
    "top-p": SamplingParams(top_p=0.8),
    "tiny top-p": SamplingParams(top_p=1e-6),
    "min-p": SamplingParams(min_p=0.1),
    "top-p of what top-k left": SamplingParams(temperature=2.0, top_k=12, top_p=0.7),
    "all": SamplingParams(temperature=1.7, top_k=20, top_p=0.9, min_p=0.05),
}


@pytest.mark.parametrize("params", FILTERS.values(), ids=FILTERS.keys())
def test_each_filter_keeps_what_its_definition_keeps(params: SamplingParams) -> None:
    logits = logits_of(6)
    kept = filtered(logits, [params] * 6)
    for index in range(6):
        expected = reference_filter(logits[index].double().tolist(), params)
        assert set(kept[index].isfinite().nonzero().flatten().tolist()) == expected
        chosen = sorted(expected)
        torch.testing.assert_close(kept[index, chosen], logits[index, chosen] / params.temperature)


def test_rows_with_different_filters_do_not_disturb_each_other() -> None:
    each = list(FILTERS.values())
    logits = logits_of(len(each))
    together = filtered(logits, each)
    for index, params in enumerate(each):
        torch.testing.assert_close(together[index], filtered(logits[index : index + 1], [params])[0], rtol=0, atol=0)


@pytest.mark.parametrize("spread", [0.01, 3.0], ids=["flat", "peaked"])
def test_a_nucleus_wider_than_the_candidates_is_found_whole(spread: float) -> None:
    vocab = 4 * MORE_CANDIDATES
    logits = logits_of(2, vocab) * spread
    params = SamplingParams(top_p=0.9)
    kept = filtered(logits, [params, SamplingParams(top_k=3)])
    assert set(kept[0].isfinite().nonzero().flatten().tolist()) == reference_filter(logits[0].double().tolist(), params)
    assert kept[1].isfinite().sum() == 3


def test_tied_scores_stay_together() -> None:
    logits = torch.tensor([[1.0, 2.0, 2.0, 2.0, 0.0]])
    assert filtered(logits, [SamplingParams(top_k=2)]).isfinite().tolist() == [[False, True, True, True, False]]


def test_repetition_penalty_counts_prompt_and_answer() -> None:
    rows = [row(SamplingParams(repetition_penalty=2.0), prompt=(0,), vocab=4), row(SamplingParams(), vocab=4)]
    logits = torch.tensor([[4.0, -4.0, 3.0, 1.0]]).repeat(2, 1)
    assert edited(logits, rows)[0].tolist() == [[2.0, -4.0, 3.0, 1.0], [4.0, -4.0, 3.0, 1.0]]
    rows[0].record(1)
    assert edited(logits, rows)[0][0].tolist() == [2.0, -8.0, 3.0, 1.0]


def test_presence_and_frequency_penalties_count_the_answer_alone() -> None:
    """OpenAI's formula: logit - count * frequency - (count > 0) * presence."""
    sampler = row(SamplingParams(presence_penalty=0.5, frequency_penalty=0.25), prompt=(0, 0, 1), vocab=4)
    logits = torch.tensor([[4.0, -4.0, 3.0, 1.0]])
    assert edited(logits, [sampler])[0].tolist() == logits.tolist()
    for token in (1, 1, 1, 3):
        sampler.record(token)
    assert edited(logits, [sampler])[0].tolist() == [[4.0, -4.0 - 0.5 - 0.75, 3.0, 1.0 - 0.5 - 0.25]]


def test_penalties_come_in_their_order_and_bias_last() -> None:
    params = SamplingParams(
        repetition_penalty=2.0, presence_penalty=-1.0, frequency_penalty=0.25, logit_bias={1: 10.0, 2: -3.0}
    )
    sampler = row(params, prompt=(0,), vocab=4)
    sampler.record(1)
    logits = torch.tensor([[4.0, -4.0, 3.0, 1.0]])
    assert edited(logits, [sampler])[0].tolist() == [[2.0, (-4.0 * 2 + 1.0 - 0.25) + 10.0, 0.0, 1.0]]


@pytest.mark.parametrize("seed", range(5))
def test_penalties_follow_the_formula_over_a_long_answer(seed: int) -> None:
    dice = torch.Generator().manual_seed(seed)
    params = SamplingParams(repetition_penalty=1.3, presence_penalty=0.7, frequency_penalty=-0.2)
    prompt = torch.randint(VOCAB * 4, (30,), generator=dice).tolist()
    answer = torch.randint(VOCAB * 4, (150,), generator=dice).tolist()  # more distinct ids than there is room for first
    rows = [row(SamplingParams(), vocab=VOCAB * 4), row(params, tuple(prompt), vocab=VOCAB * 4)]
    for token in answer:
        rows[1].record(token)
    logits = logits_of(2, VOCAB * 4, seed)
    expected = logits[1].double()
    for token in set(prompt + answer):
        expected[token] *= 1 / 1.3 if expected[token] > 0 else 1.3
        expected[token] -= 0.7 * (token in answer) - 0.2 * answer.count(token)
    scores = edited(logits, rows)[0]
    torch.testing.assert_close(scores[1], expected.float())
    assert torch.equal(scores[0], logits[0])


def test_bias_reaches_the_choice() -> None:
    logits = logits_of(2)
    rows = [row(SamplingParams(temperature=0, logit_bias={7: 100.0, 1000: 5.0})), row(SamplingParams(temperature=0))]
    sampled = sample(logits, rows)
    assert sampled.tokens == [7, int(logits[1].argmax())]
    assert sampled.logprobs[0] == pytest.approx(float(logits.log_softmax(-1)[0, 7]))  # the model's own all the same


def test_filters_agree_with_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    params = SamplingParams(temperature=1.3, top_k=25, top_p=0.85, min_p=0.03, repetition_penalty=1.2)
    prompt = (3, 9, 9, 41)
    logits = logits_of(4)
    chain = transformers.LogitsProcessorList(
        [
            transformers.RepetitionPenaltyLogitsProcessor(params.repetition_penalty),
            transformers.TemperatureLogitsWarper(params.temperature),
            transformers.TopKLogitsWarper(params.top_k),
            transformers.TopPLogitsWarper(params.top_p),
            transformers.MinPLogitsWarper(params.min_p),
        ]
    )
    expected = chain(torch.tensor([prompt] * 4), logits.clone())
    rows = [row(params, prompt) for _ in range(4)]
    torch.testing.assert_close(filtered(edited(logits, rows)[0], [params] * 4), expected)


CHI_SQUARE = {2: 13.8, 31: 61.1}  # exceeded once in a thousand times, by degrees of freedom


def chi_square(counts: Tensor, expected: Tensor) -> float:
    return float(((counts - expected) ** 2 / expected).sum())


def test_draws_follow_the_distribution() -> None:
    draws = 4000
    logits = torch.tensor([[0.0, math.log(3), -math.inf, math.log(4)]]).repeat(draws, 1)
    rows = [row(SamplingParams(seed=seed), vocab=4) for seed in range(draws)]
    counts = torch.bincount(torch.tensor(sample(logits, rows).tokens), minlength=4)
    assert counts[2] == 0
    assert chi_square(counts[[0, 1, 3]], draws * torch.tensor([1 / 8, 3 / 8, 1 / 2])) < CHI_SQUARE[2]


def test_one_rows_draws_follow_the_distribution_one_after_another() -> None:
    """Over several chunks of the vocabulary, and independent from one draw to the next."""
    draws, vocab = 6000, 1000
    sampler = row(SamplingParams(seed=11), vocab=vocab)
    logits = logits_of(1, vocab, seed=2).repeat(draws, 1)
    rows = []
    for number in range(draws):
        rows.append(row(SamplingParams(seed=11), vocab=vocab))
        rows[-1].drawn = number
    tokens = torch.tensor(sample(logits, rows).tokens)
    assert [sample(logits[:1], [sampler]).tokens[0] for _ in range(5)] == tokens[:5].tolist()
    groups = torch.arange(vocab) % 32
    shares = torch.zeros(32).index_add_(0, groups, logits[0].softmax(-1))
    assert chi_square(torch.bincount(groups[tokens], minlength=32), draws * shares) < CHI_SQUARE[31]
    pairs = torch.bincount((groups[tokens[:-1]] % 4) * 8 + groups[tokens[1:]] % 8, minlength=32)
    left = torch.zeros(4).index_add_(0, torch.arange(32) % 4, shares)
    right = torch.zeros(8).index_add_(0, torch.arange(32) % 8, shares)
    assert chi_square(pairs, (draws - 1) * torch.outer(left, right).flatten()) < CHI_SQUARE[31]


def test_a_draw_is_the_inverse_of_the_cumulative_distribution() -> None:
    mass = torch.rand(1, 700, generator=torch.Generator().manual_seed(4))
    mass[0, 100:400] = 0
    cumulative = mass[0].double().cumsum(0) / mass[0].double().sum()
    targets = torch.linspace(0, 1 - 1e-9, 2001, dtype=torch.float64)
    drawn = draw(mass.repeat(2001, 1), targets)
    near = torch.searchsorted(cumulative, torch.stack((targets - 1e-6, targets + 1e-6)).clamp(0, 1 - 1e-12), right=True)
    assert ((near[0] <= drawn) & (drawn <= near[1])).all()
    assert (mass[0, drawn] > 0).all()


@pytest.mark.parametrize("uniform", [0.0, 1 - 2**-53])
def test_the_ends_of_the_unit_interval_draw_a_token_that_may_be_drawn(uniform: float) -> None:
    mass = torch.zeros(3, 300)
    mass[0, 150], mass[1, 299], mass[2, 0] = 1.0, 1e-30, 3.0
    assert draw(mass, torch.full((3,), uniform, dtype=torch.float64)).tolist() == [150, 299, 0]


def test_uniform_numbers_are_known_and_spread() -> None:
    # SplitMix64's finaliser twice, worked out in whole numbers of Python
    assert uniforms([7], [3])[0] == reference_uniform(7, 3)
    assert uniforms([2**63 - 1], [10**9], stream=2)[0] == reference_uniform(2**63 - 1, 10**9, 2)
    numbers = torch.from_numpy(uniforms(list(range(3200)), [0] * 3200))
    assert chi_square(torch.bincount((numbers * 32).long(), minlength=32), torch.full((32,), 100.0)) < CHI_SQUARE[31]
    assert not set(uniforms([5] * 50, range(50))) & set(uniforms([5] * 50, range(50), stream=1))


def reference_uniform(seed: int, count: int, stream: int = 0) -> float:
    def mix(x: int) -> int:
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
        return x ^ x >> 31

    golden = 0x9E3779B97F4A7C15
    start = mix((seed + golden + stream * 0xD1B54A32D192ED03) % 2**64)
    return (mix((start + (count + 1) * golden) % 2**64) >> 11) * 2.0**-53


def test_a_seeded_row_draws_the_same_in_any_company() -> None:
    logits = logits_of(12, seed=5)
    seeded = SamplingParams(seed=7, top_p=0.95)
    alone = row(seeded)
    expected = [sample(logits[step : step + 1], [alone]).tokens[0] for step in range(12)]
    others = [SamplingParams(seed=1, top_k=30, repetition_penalty=1.3), SamplingParams(temperature=0), seeded]
    rows = [row(params, prompt=(1, 2)) for params in others]
    company = [
        sample(torch.stack([logits[-step], logits[step - 3], logits[step]]), rows).tokens[2] for step in range(12)
    ]
    assert company == expected


EACH_KIND = [
    *FILTERS.values(),
    SamplingParams(temperature=0),
    SamplingParams(temperature=0, repetition_penalty=1.4, logprobs=3),
    SamplingParams(presence_penalty=0.4, frequency_penalty=0.1, logit_bias={1: 2.0}, top_p=0.7),
    SamplingParams(min_new_tokens=5, logprobs=25),
]


@pytest.mark.parametrize("vocab", [1000, 33_000], ids=["small", "wide"])
@pytest.mark.parametrize("block", [1, 2**20], ids=["row by row", "together"])
def test_every_bit_of_a_row_is_its_own(vocab: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens, logprobs and alternatives of a row alone, and among rows of every kind in any order. Wide enough, a
    single row's sums are split among threads."""
    logits = logits_of(len(EACH_KIND), vocab, seed=1).round(decimals=1)  # with ties
    threads = torch.get_num_threads()

    def rows() -> list[RowSampler]:
        made = [row(p.evolve(seed=i), (1, 2, 3), (4,), vocab) for i, p in enumerate(EACH_KIND)]
        for one in made:
            one.record(5)
        return made

    try:
        torch.set_num_threads(2)
        alone = [sample(logits[i : i + 1], [one]) for i, one in enumerate(rows())]
        monkeypatch.setattr(sampler_module, "CPU_BLOCK", block)
        order = torch.randperm(len(EACH_KIND), generator=torch.Generator().manual_seed(0)).tolist()
        made = rows()
        together = sample(logits[order], [made[i] for i in order])
    finally:
        torch.set_num_threads(threads)
    for place, i in enumerate(order):
        assert together.tokens[place] == alone[i].tokens[0]
        assert together.logprobs[place] == alone[i].logprobs[0]
        assert together.top.get(place) == alone[i].top.get(0)


def test_a_sum_is_the_same_bits_alone_and_together() -> None:
    mass = torch.rand(8, 100_000, generator=torch.Generator().manual_seed(0))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        alone = torch.cat([total(mass[i : i + 1]) for i in range(8)])
        assert torch.equal(alone, total(mass))
    finally:
        torch.set_num_threads(threads)
    torch.testing.assert_close(alone, mass.double().sum(-1), rtol=1e-6, atol=0)


def test_a_row_can_be_made_again_from_its_tokens() -> None:
    params = SamplingParams(seed=3, repetition_penalty=1.2, frequency_penalty=0.3, top_p=0.9)
    logits = logits_of(20, seed=9)
    first = row(params, prompt=(1,))
    tokens = [sample(logits[step : step + 1], [first]).tokens[0] for step in range(20)]
    again = row(params, prompt=(1,))
    for token in tokens[:10]:
        again.record(token)
    assert [sample(logits[step : step + 1], [again]).tokens[0] for step in range(10, 20)] == tokens[10:]


@pytest.mark.parametrize("params", [
    SamplingParams(seed=3, repetition_penalty=1.5, presence_penalty=1.0, top_k=20), SamplingParams(temperature=0),
    SamplingParams(temperature=0, frequency_penalty=2.0, min_new_tokens=3), SamplingParams(seed=1),
])  # fmt: skip
def test_looking_ahead_chooses_what_one_draw_at_a_time_chooses(params: SamplingParams) -> None:
    logits = logits_of(6, seed=3)
    step_by_step = row(params, prompt=(1,), stop_ids=(2,))
    tokens = [sample(logits[step : step + 1], [step_by_step]).tokens[0] for step in range(6)]
    sampler = row(params, prompt=(1,), stop_ids=(2,))
    ahead = sampler.ahead(tokens[:5])
    assert len(ahead) == 6
    together = sample(logits, ahead, record=False)
    assert together.tokens == tokens and sampler.drawn == 0
    wrong = sampler.ahead([tokens[0], (tokens[1] + 1) % VOCAB, *tokens[2:5]])
    assert sample(logits, wrong, record=False).tokens[:2] == tokens[:2]
    assert sampler.uniforms(4)[2] == ahead[2].uniforms(1)[0]
    assert sampler.drawn == 0 and (sampler.seen is None or not sampler.seen.counts.any())


def test_probabilities_are_those_of_the_draws() -> None:
    logits = logits_of(3)
    params = [SamplingParams(temperature=0.7, top_k=9, top_p=0.9), SamplingParams(temperature=0), SamplingParams()]
    rows = [row(p, prompt=(1,)) for p in params]
    found, errors = probabilities(logits, rows)
    assert not errors and found.shape == logits.shape
    kept = reference_filter(logits[0].double().tolist(), params[0])
    expected = logits[0].double() / 0.7
    expected[[token for token in range(VOCAB) if token not in kept]] = -math.inf
    torch.testing.assert_close(found[0], expected.softmax(-1).float())
    assert found[1].tolist() == [float(token == logits[1].argmax()) for token in range(VOCAB)]
    torch.testing.assert_close(found[2], logits[2].softmax(-1))


def test_alternatives_come_only_where_asked_and_in_order() -> None:
    logits = logits_of(4)
    rows = [row(SamplingParams(temperature=0, logprobs=count)) for count in (None, 0, 3, 60)]
    sampled = sample(logits, rows)
    own = logits.log_softmax(-1)
    assert sampled.top.keys() == {2, 3}
    assert sampled.top[2][0] == logits[2].topk(3).indices.tolist()
    assert sampled.top[2][1] == own[2].topk(3).values.tolist()
    assert sampled.top[3][0] == logits[3].argsort(descending=True).tolist()
    assert sampled.logprobs == own.amax(-1).tolist()


def test_unseeded_rows_follow_torchs_default_generator() -> None:
    logits = logits_of(1).repeat(8, 1) / 3

    def draw() -> list[int]:
        return sample(logits, [row(SamplingParams()) for _ in range(8)]).tokens

    torch.manual_seed(3)
    first, second = draw(), draw()
    torch.manual_seed(3)
    assert draw() == first != second


def test_greedy_takes_the_best_and_leaves_the_logits_alone() -> None:
    logits = logits_of(3)
    before = logits.clone()
    rows = [row(SamplingParams(temperature=0, min_new_tokens=2), stop_ids=(int(logits[0].argmax()),))]
    rows += [row(SamplingParams(temperature=0)), row(SamplingParams(seed=0, top_k=1))]
    tokens = sample(logits, rows).tokens
    assert tokens[0] == logits[0].topk(2).indices[1]  # the best may not come yet
    assert tokens[1:] == logits[1:].argmax(-1).tolist()
    assert torch.equal(logits, before)


def test_the_lowest_temperature_takes_the_best() -> None:
    logits = 1e4 * logits_of(3)
    sampled = sample(logits, [row(SamplingParams(temperature=1e-4, seed=0))] * 3)
    assert sampled.tokens == logits.argmax(-1).tolist() and all(map(math.isfinite, sampled.logprobs))


@pytest.mark.parametrize("params", [SamplingParams(seed=0), SamplingParams(seed=0, top_k=5, top_p=0.9)])
def test_a_row_without_numbers_gives_a_token_whose_logprob_says_so(params: SamplingParams) -> None:
    logits = logits_of(2)
    logits[1] = math.nan
    sampled = sample(logits, [row(params), row(params)])
    assert 0 <= sampled.tokens[1] < VOCAB and math.isnan(sampled.logprobs[1])
    assert math.isfinite(sampled.logprobs[0])


def test_stop_ids_are_banned_exactly_until_the_minimum() -> None:
    logits = torch.tensor([[5.0, 1.0, 0.0]])
    sampler = row(SamplingParams(temperature=0, min_new_tokens=2), stop_ids=(0,), vocab=3)
    assert [sample(logits, [sampler]).tokens[0] for _ in range(3)] == [1, 1, 0]


def test_logprobs_are_the_models_own() -> None:
    logits = logits_of(3)
    params = SamplingParams(temperature=0.2, top_k=2, repetition_penalty=1.5, seed=0)
    sampled = sample(logits, [row(params, prompt=(1, 2, 3)) for _ in range(3)])
    expected = logits.double().log_softmax(-1)[range(3), sampled.tokens]
    torch.testing.assert_close(torch.tensor(sampled.logprobs), expected.float())
