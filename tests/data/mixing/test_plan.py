"""The plan: weights are kept, caps hold, what a capped group cannot give goes to the others by their weights."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from puyulm.data.mixing.plan import plan_phases, share_out
from puyulm.data.mixing.settings import MixSettings, Phase
from puyulm.errors import DataError

PAIRS = st.lists(
    st.tuples(st.sampled_from([0.0, 0.1, 1 / 3, 1.0, 7.0, 1e3]), st.integers(0, 10**13)), min_size=1, max_size=8
)


@pytest.mark.parametrize(
    ("total", "weights", "caps", "expected"),
    [
        (100, [0.6, 0.3, 0.1], [1000, 1000, 1000], [60, 30, 10]),
        (100, [0.6, 0.3, 0.1], [20, 1000, 1000], [20, 60, 20]),  # 80 left, as 3 to 1
        (100, [1, 1, 2], [5, 30, 1000], [5, 30, 65]),
        (100, [6, 2, 2], [30, 34, 1000], [30, 34, 36]),  # the second is full only after the first has been cut
        (100, [1, 1], [10, 20], [10, 20]),
        (100, [1, 0], [10, 1000], [10, 0]),
        (10, [1, 1, 1], [100, 100, 100], [4, 3, 3]),
        (0, [1, 1], [1, 1], [0, 0]),
    ],
)
def test_sharing_out(total: int, weights: list[float], caps: list[int], expected: list[int]) -> None:
    assert share_out(total, weights, caps) == expected


@given(st.integers(0, 10**13), PAIRS)
def test_sharing_out_keeps_caps_sum_and_proportions(total: int, pairs: list[tuple[float, int]]) -> None:
    weights, caps = [w for w, _ in pairs], [c for _, c in pairs]
    given_ = share_out(total, weights, caps)
    assert all(0 <= g <= c for g, c in zip(given_, caps, strict=True))
    assert sum(given_) == min(total, sum(c for w, c in pairs if w > 0))
    free = [(g / w, w) for g, (w, c) in zip(given_, pairs, strict=True) if w > 0 and g < c]
    for a, weight_a in free:  # all that are not capped have one price, but for rounding to whole tokens
        for b, weight_b in free:
            assert abs(a - b) <= 1 / weight_a + 1 / weight_b + 1e-9 * max(a, b)
    for g, (w, c) in zip(given_, pairs, strict=True):  # and the capped ones would have had more
        if w > 0 and g == c and free:
            assert g / w <= free[0][0] + 1 / free[0][1] + 1 / w + 1e-9 * free[0][0]


def tokens(**groups: tuple[int, int]) -> dict[str, dict]:
    return {name.replace("_", "/"): {"short": a, "long": b} for name, (a, b) in groups.items()}


def by_group(plan) -> dict[str, int]:
    totals: dict[str, int] = {}
    for draw in plan.draws:
        totals[draw.group] = totals.get(draw.group, 0) + draw.stop - draw.start
    return totals


def test_weights_are_shares_of_patterns_and_the_first_match_counts() -> None:
    phase = Phase("p", 1000, {"en*": 3.0, "code/high": 1.0, "code*": 1.0})
    available = tokens(en_web=(600, 300), en_books=(0, 300), code_high=(900, 0), code_low=(100, 900), fr=(5, 5))
    [plan] = plan_phases(MixSettings((phase,)), available)
    assert by_group(plan) == {"en/web": 450, "en/books": 150, "code/high": 200, "code/low": 200}
    assert [(p.pattern, p.share, p.wanted, p.planned) for p in plan.patterns] == [
        ("en*", 0.6, 600, 600), ("code/high", 0.2, 200, 200), ("code*", 0.2, 200, 200)]  # fmt: skip
    assert plan.shortfall == 0 and "fr" not in plan.group_patterns
    of_low = {d.length: d.stop - d.start for d in plan.draws if d.group == "code/low"}
    assert of_low == {"short": 20, "long": 180}  # lengths as they come


def test_caps_hold_over_phases_and_are_made_up_for() -> None:
    phases = (Phase("a", 900, {"en": 1, "code/*": 2}), Phase("b", 900, {"en": 1, "code/*": 2}))
    settings = MixSettings(phases, max_epochs={"*/high": 4, "*/moderate": 1, "en": 100})
    available = tokens(en=(100, 0), code_high=(0, 100), code_moderate=(200, 200))
    first, second = plan_phases(settings, available)
    assert by_group(first) == {"en": 300, "code/high": 200, "code/moderate": 400}  # moderate may give 400 in all
    assert by_group(second) == {"en": 700, "code/high": 200}
    assert [(d.start, d.stop) for d in second.draws if d.group == "code/high"] == [(200, 400)]  # goes on
    assert second.patterns[1].wanted == 600 and second.patterns[1].planned == 200 and second.shortfall == 0


def test_shortfall_where_all_are_capped() -> None:
    [plan] = plan_phases(MixSettings((Phase("a", 1000, {"*": 1}),), {"*": 1}), tokens(en=(10, 20), zh=(30, 40)))
    assert by_group(plan) == {"en": 30, "zh": 70} and plan.shortfall == 900
    [plan] = plan_phases(MixSettings((Phase("a", 1000, {"*": 1}),), {}), tokens(en=(10, 20)))
    assert by_group(plan) == {"en": 30}  # once, where no pattern says otherwise
    [plan] = plan_phases(MixSettings((Phase("a", 1000, {"*": 1}),), {"*": 0.5}), tokens(en=(10, 20)))
    assert by_group(plan) == {"en": 15}


def test_half_of_a_long_phase_is_short() -> None:
    phase = Phase("long", 1000, {"en": 0.5, "zh": 0.5}, short_share=0.5, sequence_length=32768)
    [plan] = plan_phases(MixSettings((phase,), {"*": 1}), tokens(en=(10_000, 100), zh=(10_000, 10_000)))
    given_ = {(d.group, d.length): d.stop - d.start for d in plan.draws}
    # English has too few long documents: Chinese ones make up for them, and the short half stays as it was.
    assert given_ == {("en", "short"): 250, ("zh", "short"): 250, ("en", "long"): 100, ("zh", "long"): 400}
    [plan] = plan_phases(MixSettings((phase,), {"*": 1}), tokens(en=(10_000, 100), zh=(10_000, 100)))
    assert plan.shortfall == 300  # rather than another share


def test_bad_settings() -> None:
    with pytest.raises(DataError, match=r"no group matches 'de\*'; the groups are en"):
        plan_phases(MixSettings((Phase("a", 10, {"de*": 1}),)), tokens(en=(1, 1)))
    for options, message in (({"name": "a/b"}, "folder"), ({"name": "valid"}, "folder"), ({"tokens": 0}, "tokens is 0"),
                             ({"weights": {}}, "weights"), ({"weights": {"a": -1, "b": 2}}, "weights"),
                             ({"weights": {"a": 0}}, "weights"), ({"short_share": 1.5}, "short_share")):  # fmt: skip
        with pytest.raises(DataError, match=message):
            Phase(**{"name": "a", "tokens": 1, "weights": {"*": 1}, **options})
    phase = Phase("a", 1, {"*": 1})
    for options, message in (({"phases": ()}, "none"), ({"phases": (phase, phase)}, "different names"),
                             ({"max_epochs": {"x": -1}}, "max_epochs of 'x'"),
                             ({"short_tokens": 0}, "short_tokens")):  # fmt: skip
        with pytest.raises(DataError, match=message):
            MixSettings(**{"phases": (phase,), **options})
