"""Intervals and tests against closed forms, exact enumeration, and simulated data."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from fractions import Fraction

import numpy as np
import pytest

from puyulm.eval.benchmark import Sample
from puyulm.eval.statistics import (
    Z_95,
    bootstrap_p,
    estimates,
    holm,
    mcnemar_p,
    mean_estimate,
    paired_interval,
    resampled_interval,
    resampled_means,
    row_means,
    sign_flip_p,
    wilson_interval,
)
from tests.eval.made_runs import benchmark, sample


@pytest.mark.parametrize(("correct", "total"), [(0, 1), (1, 1), (0, 10), (3, 10), (10, 10), (699, 1319), (2.5, 7.5)])
def test_wilson_bounds_solve_its_equation(correct: float, total: float) -> None:
    low, high = wilson_interval(correct, total)
    assert 0 <= low <= correct / total <= high <= 1
    for bound in (low, high):
        if 0 < bound < 1:
            reach = Z_95 * math.sqrt(bound * (1 - bound) / total)
            assert abs(correct / total - bound) == pytest.approx(reach, rel=1e-9)


def test_wilson_of_nothing_right() -> None:
    assert wilson_interval(0, 10) == pytest.approx((0, Z_95**2 / (10 + Z_95**2)))


@pytest.mark.parametrize("rows", [np.arange(40) / 39, np.repeat([0.0, 0.25, 1.0], [5, 3, 12]), np.arange(500) ** 0.5])
def test_resampled_means_have_the_moments_of_theory(rows: np.ndarray) -> None:
    means = resampled_means(rows, np.random.default_rng(1))
    error = rows.std(ddof=1) / math.sqrt(len(rows))  # n - 1 drawn rows: the unbiased error
    assert means.shape == (1000,)
    assert means.mean() == pytest.approx(rows.mean(), abs=4 * error / math.sqrt(1000))
    assert means.std() == pytest.approx(error, rel=0.1)


def test_drawing_counts_is_drawing_rows() -> None:
    few = np.repeat([0.0, 0.5, 1.0], [10, 20, 30])
    many = few + np.linspace(0, 1e-9, len(few))  # so many values that rows are drawn
    low, high = resampled_interval([few])
    assert resampled_interval([many]) == pytest.approx((low, high), abs=0.02)


def test_intervals_cover_what_they_should() -> None:
    random, inside = np.random.default_rng(0), 0
    truth = np.array([0.9, 0.6, 0.3, 0.75])
    for _ in range(200):
        found = mean_estimate([(random.random(12 + 6 * i) < rate) * 1.0 for i, rate in enumerate(truth)], by_row=False)
        inside += found.low <= truth.mean() <= found.high
    assert 0.9 <= inside / 200 <= 0.985


def test_paired_intervals_cover_what_they_should() -> None:
    random, inside = np.random.default_rng(0), 0
    for only_first, only_second, *_ in random.multinomial(150, [0.1, 0.16, 0.74], size=400):
        low, high = paired_interval(only_first, only_second, 150)
        inside += low <= 0.06 <= high
    assert 0.92 <= inside / 400 <= 0.98


def test_means_of_strata_and_of_rows() -> None:
    strata = [np.array([1.0, 1.0, 0.0, 1.0]), np.array([0.0, 1.0])]
    assert mean_estimate(strata, by_row=False).value == pytest.approx((0.75 + 0.5) / 2)
    by_row = mean_estimate(strata)
    assert (by_row.value, by_row.count, by_row.how) == (4 / 6, 6, "binomial")
    assert (by_row.low, by_row.high) == wilson_interval(4, 6)


def test_where_resampling_sees_no_spread() -> None:
    right = mean_estimate([np.ones(10), np.ones(30)], by_row=False)
    assert (right.value, right.high, right.how) == (1, 1, "binomial")
    assert right.low == pytest.approx(wilson_interval(30, 30)[0])  # 4 / (1/10 + 1/30) rows are worth as much
    wrong = mean_estimate([np.zeros(1)])
    assert (wrong.value, wrong.low) == (0, 0) and 0.5 < wrong.high < 1
    alone = mean_estimate([np.array([0.4])])
    assert alone.value == 0.4 and math.isnan(alone.low) and alone.how == ""
    assert mean_estimate([]).count == 0 and math.isnan(mean_estimate([]).value)
    same = mean_estimate([np.full(5, 0.5)])
    assert same.low == same.high == 0.5


def test_strata_of_one_row_are_resampled_together() -> None:
    values = np.array([0.0, 1.0, 1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 1.0, 0.5])
    found = mean_estimate([np.array([one]) for one in values], by_row=False)
    together = mean_estimate([values])
    assert (found.value, found.low, found.high) == pytest.approx((together.value, together.low, together.high))
    assert found.low < 0.5 and found.high > 0.75


def test_the_same_rows_give_the_same_interval() -> None:
    rows = [np.random.default_rng(3).random(100), np.random.default_rng(4).random(50)]
    assert mean_estimate(rows, by_row=False) == mean_estimate(rows, by_row=False)


def test_repeats_of_a_question_are_one_row() -> None:
    samples = [sample("a", 1.0), sample("b", 0.0), sample("a", 0.0, repeat=1), sample("b", 0.0, repeat=1)]
    assert row_means(samples, "accuracy").tolist() == [0.5, 0.0]
    assert row_means(samples, "other").tolist() == []


def test_a_benchmark_of_subsets_both_ways() -> None:
    known = benchmark(average="subsets", metrics=("accuracy", "of another mode"))
    strata = [[sample(str(n), 1.0, "a") for n in range(3)], [sample("9", 0.0, "b")]]
    assert {name: one.value for name, one in estimates(known, strata).items()} == {"accuracy": 0.5}
    assert estimates(known, strata, other_way=True)["accuracy"].value == 0.75
    assert estimates(known, [])["accuracy"].count == 0


def test_summaries_are_resampled_by_question() -> None:
    ids: list[int] = []

    def ratio(samples: Sequence[Sample]) -> Mapping[str, float]:
        ids.append(len({one.id for one in samples}))
        ratio = sum(one.scores["a"] for one in samples) / sum(one.scores["b"] for one in samples)
        return {"ratio": ratio, "besides": 2 * ratio}

    known = benchmark(metrics=("ratio", "a"), summarise=ratio)
    draw = np.random.default_rng(0)
    weights = draw.integers(1, 9, size=60)
    rows = [Sample(str(n), "", r, "", (), None, {"a": float(w) * draw.random(), "b": float(w)})
            for n, w in enumerate(weights) for r in range(2)]  # fmt: skip
    everything = estimates(known, [rows[:40], rows[40:]])
    found = everything["ratio"]
    assert list(everything) == ["ratio", "a", "besides"] and everything["besides"].high == 2 * found.high
    assert found.value == ratio(rows)["ratio"] and found.count == 60
    assert set(ids) == {60}  # a question that is drawn twice is two questions
    assert found.low < found.value < found.high and 0.05 < found.high - found.low < 0.25
    assert everything["a"].value == pytest.approx(np.mean([one.scores["a"] for one in rows]))


@pytest.mark.parametrize(("first", "second"), [(0, 0), (0, 1), (2, 10), (10, 2), (7, 7), (40, 61), (700, 800)])
def test_mcnemar_is_an_exact_sum(first: int, second: int) -> None:
    total, fewer = first + second, min(first, second)
    exact = 2 * sum(Fraction(math.comb(total, k), 2**total) for k in range(fewer + 1))
    assert mcnemar_p(first, second) == pytest.approx(min(1.0, float(exact)), rel=1e-12)


def test_mcnemar_of_very_many_questions() -> None:
    assert mcnemar_p(3000, 3300) == pytest.approx(math.erfc((300 - 1) / math.sqrt(6300) / math.sqrt(2)), rel=0.01)
    assert 0 <= mcnemar_p(0, 20_000) < 1e-300


@pytest.mark.parametrize("levels", [[1.0], [0.25, 1.0], None])
def test_sign_flips_agree_with_all_of_them(levels: list[float] | None) -> None:
    random = np.random.default_rng(2)
    sizes = random.random(12) if levels is None else random.choice(levels, 12)
    gaps = sizes * np.array([1, 1, 1, -1, 1, 1, 1, 1, -1, 1, -1, 1])
    sums = [abs(float(np.dot(signs, sizes))) for signs in itertools.product((-1, 1), repeat=12)]
    exact = np.mean([one >= abs(gaps.sum()) - 1e-9 for one in sums])
    assert sign_flip_p(gaps) == pytest.approx(exact, abs=4 * math.sqrt(exact / 10_000))
    assert sign_flip_p(-gaps) == sign_flip_p(gaps)


def test_sign_flips_agree_with_mcnemar() -> None:
    gaps = np.repeat([1.0, -1.0, 0.0], [61, 40, 500])
    assert sign_flip_p(gaps) == pytest.approx(mcnemar_p(40, 61), abs=0.01)
    assert sign_flip_p(np.zeros(5)) == 1.0
    assert sign_flip_p(np.ones(200) / 3) == pytest.approx(1e-4, rel=0.01)


def test_bootstrap_p_is_a_normal_test() -> None:
    spread = np.random.default_rng(0).normal(1.0, 0.5, 4000)
    assert bootstrap_p(1.0, spread) == pytest.approx(math.erfc(2 / math.sqrt(2)), rel=0.1)
    assert bootstrap_p(0.0, np.zeros(5)) == 1.0 and bootstrap_p(0.3, np.full(5, 0.3)) == 0.0


def test_holm() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == [] and holm([0.9, 0.8]) == [1.0, 1.0]
