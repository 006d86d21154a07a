"""What may be asked of generation, and how a wrong wish is told."""

from __future__ import annotations

import math

import pytest

from puyulm.engine.grammar import Grammar
from puyulm.engine.params import SamplingParams
from puyulm.errors import GenerationError


def test_parameters_can_be_keys_however_they_were_given() -> None:
    given = SamplingParams(logit_bias={5: 1, 2: -1.5}, stop=["END"], stop_ids=[3])  # type: ignore[arg-type]
    assert given.logit_bias == ((2, -1.5), (5, 1.0)) and given.stop == ("END",) and given.stop_ids == (3,)
    assert len({given, given.evolve(), SamplingParams(grammar=Grammar.json_object())}) == 2


def test_samples_differ_in_their_seeds_and_the_first_stays_as_it_was() -> None:
    params = SamplingParams(n=4, seed=9)
    samples = params.samples()
    assert samples[0] == params.evolve(n=1)
    assert len({sample.seed for sample in samples}) == 4
    assert SamplingParams(n=6, seed=9).samples()[:4] == samples
    assert {sample.seed for sample in SamplingParams(n=3).samples()} == {None}
    assert {s.seed for s in SamplingParams(n=50, seed=9).samples()}.isdisjoint(
        s.seed for s in SamplingParams(n=50, seed=10).samples()
    )


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
        ("top_k", True, "whole number"),
        ("temperature", "hot", "0 (greedy)"),
        ("presence_penalty", math.inf, "a finite number"),
        ("frequency_penalty", math.nan, "a finite number"),
        ("logit_bias", [1, 2], "map token ids to numbers"),
        ("logit_bias", {"1": 2.0}, "not '1' to 2.0"),
        ("logit_bias", {-1: 2.0}, "ids (0 or more)"),
        ("logit_bias", {1: math.inf}, "finite"),
        ("n", 0, "1 or more"),
        ("logprobs", -1, "None, or 0 or more"),
        ("prompt_logprobs", 1.5, "None, or 0 or more"),
        ("thinking_budget", -1, "None, or 0 or more"),
        ("grammar", "root ::= x", "must be a Grammar"),
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
    assert str(caught.value).startswith(field) and allowed in str(caught.value) and "\n" not in str(caught.value)
