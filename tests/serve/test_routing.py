"""Which replica gets what, and their metrics as one."""

from __future__ import annotations

import pytest

from puyulm.serve.proxy import merged_metrics
from puyulm.serve.routing import PIECE, SLACK, PrefixRouter, beginning_of


def test_the_same_beginning_goes_to_the_same_replica() -> None:
    router = PrefixRouter(3)
    first, second = "a" * 3 * PIECE, "b" * 3 * PIECE
    home = router.choose(first, [0, 1, 2])
    other = router.choose(second, [0, 1, 2])
    assert home != other
    for _ in range(3):
        assert router.choose(first + "and more", [0, 1, 2]) == home
        router.done(home)
    assert router.choose("a" * PIECE + "c" * 2 * PIECE, [0, 1, 2]) == home


def test_load_goes_before_the_cache_when_it_is_too_uneven() -> None:
    router = PrefixRouter(2)
    text = "a" * PIECE
    chosen = [router.choose(text, [0, 1]) for _ in range(SLACK + 3)]
    assert chosen[: SLACK + 1] == [chosen[0]] * (SLACK + 1) and chosen[SLACK + 1] != chosen[0]
    assert sorted(router.active) == sorted([SLACK + 1, 2])


def test_who_is_away_is_not_chosen_and_a_lost_cache_is_forgotten() -> None:
    router = PrefixRouter(2)
    text = "a" * PIECE
    home = router.choose(text, [0, 1])
    router.done(home)
    assert router.choose(text, [1 - home]) == 1 - home
    router.done(1 - home)
    router.forget(1 - home)
    router.active[1 - home] = 1
    assert router.choose(text, [0, 1]) == home
    assert not any(known == 1 - home for known in router._seen.values())


def test_the_beginning_is_what_a_cache_would_share() -> None:
    def chat(*messages: str, **more: object) -> str:
        return beginning_of({"messages": [{"role": "user", "content": text} for text in messages], **more})

    assert chat("a", "b").startswith(chat("a"))
    assert chat("a", temperature=0) == chat("a", seed=1)
    assert chat("a", tools=[{"type": "function"}]) != chat("a")
    assert beginning_of({"prompt": "abc"}) == beginning_of({"prompt": "abc", "max_tokens": 4})
    assert beginning_of({"prompt": [1, 2]}) != beginning_of({"prompt": [1, 3]})


@pytest.mark.parametrize("body", [{}, {"messages": 3}, {"messages": [None, {"content": None}]}, {"prompt": {"a": 1}}])
def test_any_body_has_a_beginning(body: dict) -> None:
    assert isinstance(beginning_of(body), str)


def test_metrics_of_all_replicas_are_told_apart() -> None:
    text = '# HELP n Numbers.\n# TYPE n gauge\nn 1.0\n# HELP h Times.\n# TYPE h histogram\nh_bucket{le="1"} 2.0\nh_sum 1.5\n'  # noqa: E501
    merged = merged_metrics({0: text, 2: text.replace("n 1.0", "n 7.0")}, {0: 1, 1: 4, 2: 1})
    lines = merged.splitlines()
    assert lines.count("# TYPE n gauge") == 1
    assert 'n{replica="0"} 1.0' in lines and 'n{replica="2"} 7.0' in lines
    assert 'h_bucket{replica="0",le="1"} 2.0' in lines and 'h_sum{replica="2"} 1.5' in lines
    assert 'puyu_replica_starts_total{replica="1"} 4' in lines
    assert lines.index('n{replica="2"} 7.0') < lines.index("# TYPE h histogram")


def test_what_has_no_beginning_to_share_is_spread() -> None:
    router = PrefixRouter(3)
    chosen = []
    for _ in range(6):
        chosen.append(router.choose("short", [0, 1, 2]))
        router.done(chosen[-1])
    assert chosen == [0, 1, 2, 0, 1, 2]
