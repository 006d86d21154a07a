"""The sampler against a plain one-row reference, against transformers, and alone against in company."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from puyulm.engine.params import SamplingParams
from puyulm.engine.sampler import NUCLEUS_CANDIDATES, RowSampler, filtered, penalised, sample
from puyulm.errors import GenerationError

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
    vocab = 4 * NUCLEUS_CANDIDATES
    logits = logits_of(2, vocab) * spread
    params = SamplingParams(top_p=0.9)
    kept = filtered(logits, [params, SamplingParams(top_k=3)])
    assert set(kept[0].isfinite().nonzero().flatten().tolist()) == reference_filter(logits[0].double().tolist(), params)
    assert kept[1].isfinite().sum() == 3


def test_tied_scores_stay_together() -> None:
    logits = torch.tensor([[1.0, 2.0, 2.0, 2.0, 0.0]])
    assert filtered(logits, [SamplingParams(top_k=2)]).isfinite().tolist() == [[False, True, True, True, False]]


def test_repetition_penalty_counts_prompt_and_answer() -> None:
    rows = [row(SamplingParams(repetition_penalty=2.0), prompt=(0,)), row(SamplingParams())]
    logits = torch.tensor([[4.0, -4.0, 3.0, 1.0]]).repeat(2, 1)
    rows[0] = row(SamplingParams(repetition_penalty=2.0), prompt=(0,), vocab=4)
    assert penalised(logits, rows).tolist() == [[2.0, -4.0, 3.0, 1.0], [4.0, -4.0, 3.0, 1.0]]
    rows[0].record(1)
    assert penalised(logits, rows)[0].tolist() == [2.0, -8.0, 3.0, 1.0]


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
    torch.testing.assert_close(filtered(penalised(logits, rows), [params] * 4), expected)


def test_draws_follow_the_distribution() -> None:
    draws = 4000
    logits = torch.tensor([[0.0, math.log(3), -math.inf, math.log(4)]]).repeat(draws, 1)
    rows = [row(SamplingParams(seed=seed), vocab=4) for seed in range(draws)]
    counts = torch.bincount(torch.tensor(sample(logits, rows)[0]), minlength=4) / draws
    torch.testing.assert_close(counts, torch.tensor([1 / 8, 3 / 8, 0, 1 / 2]), atol=0.03, rtol=0)


def test_a_seeded_row_draws_the_same_in_any_company() -> None:
    logits = logits_of(12, seed=5)
    seeded = SamplingParams(seed=7, top_p=0.95)
    alone = row(seeded)
    expected = [sample(logits[step : step + 1], [alone])[0][0] for step in range(12)]
    others = [SamplingParams(seed=1, top_k=30, repetition_penalty=1.3), SamplingParams(temperature=0), seeded]
    rows = [row(params, prompt=(1, 2)) for params in others]
    company = [sample(torch.stack([logits[-step], logits[step - 3], logits[step]]), rows)[0][2] for step in range(12)]
    assert company == expected


def test_unseeded_rows_follow_torchs_default_generator() -> None:
    logits = logits_of(1).repeat(8, 1) / 3

    def draw() -> list[int]:
        return sample(logits, [row(SamplingParams()) for _ in range(8)])[0]

    torch.manual_seed(3)
    first, second = draw(), draw()
    torch.manual_seed(3)
    assert draw() == first != second


def test_greedy_takes_the_best_and_leaves_the_logits_alone() -> None:
    logits = logits_of(3)
    before = logits.clone()
    rows = [row(SamplingParams(temperature=0, min_new_tokens=2), stop_ids=(int(logits[0].argmax()),))]
    rows += [row(SamplingParams(temperature=0)), row(SamplingParams(seed=0, top_k=1))]
    tokens, _ = sample(logits, rows)
    assert tokens[0] == logits[0].topk(2).indices[1]  # the best may not come yet
    assert tokens[1:] == logits[1:].argmax(-1).tolist()
    assert torch.equal(logits, before)


def test_the_lowest_temperature_takes_the_best() -> None:
    logits = 1e4 * logits_of(3)
    tokens, logprobs = sample(logits, [row(SamplingParams(temperature=1e-4, seed=0))] * 3)
    assert tokens == logits.argmax(-1).tolist() and all(map(math.isfinite, logprobs))


@pytest.mark.parametrize("params", [SamplingParams(seed=0), SamplingParams(seed=0, top_k=5, top_p=0.9)])
def test_a_row_without_numbers_gives_a_token_whose_logprob_says_so(params: SamplingParams) -> None:
    logits = logits_of(2)
    logits[1] = math.nan
    tokens, logprobs = sample(logits, [row(params), row(params)])
    assert 0 <= tokens[1] < VOCAB and math.isnan(logprobs[1])
    assert math.isfinite(logprobs[0])


def test_stop_ids_are_banned_exactly_until_the_minimum() -> None:
    logits = torch.tensor([[5.0, 1.0, 0.0]])
    sampler = row(SamplingParams(temperature=0, min_new_tokens=2), stop_ids=(0,), vocab=3)
    assert [sample(logits, [sampler])[0][0] for _ in range(3)] == [1, 1, 0]


def test_logprobs_are_the_models_own() -> None:
    logits = logits_of(3)
    params = SamplingParams(temperature=0.2, top_k=2, repetition_penalty=1.5, seed=0)
    tokens, logprobs = sample(logits, [row(params, prompt=(1, 2, 3)) for _ in range(3)])
    expected = logits.double().log_softmax(-1)[range(3), tokens]
    torch.testing.assert_close(torch.tensor(logprobs), expected.float())


@pytest.mark.parametrize(
    ("field", "value", "allowed"),
    [
        ("temperature", -0.1, "0 (greedy), or 0.0001 or more"),
        ("temperature", math.nan, "0 (greedy), or 0.0001 or more"),
        ("temperature", 1e-39, "0 (greedy), or 0.0001 or more"),
        ("top_k", -1, "0 (off) or a positive"),
        ("top_k", 1.5, "whole number"),
        ("top_p", 0.0, "above 0 and at most 1"),
        ("top_p", 1.1, "above 0 and at most 1"),
        ("min_p", 1.1, "between 0 and 1"),
        ("repetition_penalty", 0.0, "above 0"),
        ("seed", -1, "between 0 and"),
        ("stop", "END", "tuple of non-empty texts"),
        ("stop", ("",), "tuple of non-empty texts"),
        ("stop_ids", (-1,), "token ids"),
        ("max_new_tokens", 0, "1 or more"),
        ("min_new_tokens", 2000, "between 0 and max_new_tokens (1024)"),
    ],
)
def test_parameters_out_of_range_name_field_and_range(field: str, value: object, allowed: str) -> None:
    with pytest.raises(GenerationError) as caught:
        SamplingParams(**{field: value})  # type: ignore[arg-type]
    assert str(caught.value).startswith(field) and allowed in str(caught.value)
