"""The order of a repository's files."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from puyulm.data.code import order as order_module
from puyulm.data.code.order import dependency_order, place_documents

NAMES = [f"{folder}{name}" for folder in ("", "a/", "a/b/", "z/") for name in ("m.py", "n.py", "o.py")]
GRAPHS = st.dictionaries(st.sampled_from(NAMES), st.sets(st.sampled_from(NAMES), max_size=4))
STARTS = st.sampled_from(["name", "most_used"])


def reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    """Files that imports lead to from a file, by repeated steps."""
    found: set[str] = set()
    waiting = set(graph.get(start, ()))
    while waiting:
        found |= waiting
        waiting = {t for node in waiting for t in graph.get(node, ())} - found
    return found


@given(st.sets(st.sampled_from(NAMES)), GRAPHS, STARTS)
def test_imports_come_first_and_every_file_once(paths, graph, start):
    order = dependency_order(paths, graph, start)
    assert sorted(order.paths) == sorted(paths)
    inside = {a: {b for b in graph.get(a, ()) if b in paths and b != a} for a in paths}
    place = {path: i for i, path in enumerate(order.paths)}
    circles = {frozenset({b for b in reachable(inside, a) if a in reachable(inside, b)}) for a in paths} - {frozenset()}
    for a, targets in inside.items():
        for b in targets:
            if a not in reachable(inside, b):
                assert place[b] < place[a]
    assert order.edges == sum(map(len, inside.values()))
    assert order.cycles == len(circles)
    for circle in circles:
        places = sorted(place[node] for node in circle)
        assert places == list(range(places[0], places[0] + len(circle)))  # they stand together
        if start == "name":
            assert order.paths[places[0]] == min(circle)
        else:
            users = {n: sum(n in targets for targets in inside.values()) for n in circle}
            assert users[order.paths[places[0]]] == max(users.values())


@given(st.sets(st.sampled_from(NAMES)), GRAPHS, STARTS, st.randoms(use_true_random=False))
def test_order_does_not_depend_on_the_input_order(paths, graph, start, random):
    shuffled = list(paths)
    random.shuffle(shuffled)
    items = [(a, random.sample(sorted(targets), len(targets))) for a, targets in graph.items()]
    random.shuffle(items)
    assert dependency_order(shuffled, dict(items), start) == dependency_order(sorted(paths), graph, start)


def test_without_imports_by_path():
    assert dependency_order(["b", "a/x", "c"], {}).paths == ["a/x", "b", "c"]
    assert dependency_order([], {}).paths == []


def test_folders_may_interleave_and_users_follow_soon():
    graph = {"app/main.py": {"lib/z.py", "app/a.py"}, "app/a.py": {"lib/y.py"}}
    files = ["app/a.py", "app/main.py", "lib/y.py", "lib/z.py", "other.py"]
    assert dependency_order(files, graph).paths == ["lib/y.py", "app/a.py", "lib/z.py", "app/main.py", "other.py"]


def test_the_shorter_chain_counts():
    """x is imported by main directly and through y: it is one import away from main, as z is."""
    graph = {"main": {"x", "y", "z"}, "y": {"x"}, "z": {"far"}}
    order = dependency_order(["main", "x", "y", "z", "far"], graph).paths
    assert order == ["far", "x", "y", "z", "main"]  # far is two away


def test_a_circle_begins_with_the_first_by_name():
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a"}}
    order = dependency_order("abc", graph)
    assert order.paths == ["a", "c", "b"] and order.cycles == 1
    assert dependency_order("abc", {**graph, "a": {"b", "c"}}, "most_used").paths[0] == "c"


def test_without_its_start_a_circle_is_sorted():
    """Without a, the others are no circle any more and stand in the order of their imports."""
    graph = {"a": {"b"}, "b": {"d"}, "c": {"a"}, "d": {"c"}}
    assert dependency_order("abcd", graph).paths == ["a", "c", "d", "b"]
    graph = {"a": {"b"}, "b": {"c", "a"}, "c": {"d", "a"}, "d": {"c"}}  # c and d still are one
    assert dependency_order("abcd", graph).paths == ["a", "c", "d", "b"]


def test_what_a_circle_imports_comes_before_it():
    graph = {"a": {"b"}, "b": {"a", "z"}, "user": {"a"}}
    assert dependency_order(["a", "b", "z", "user"], graph).paths == ["z", "a", "b", "user"]


def test_very_large_circles_end(monkeypatch):
    monkeypatch.setattr(order_module, "MAX_VISITS", 100)
    names = [f"{i:02d}" for i in range(30)]
    graph = {a: set(names) for a in names}
    assert dependency_order(names, graph).paths == names
    chain = {a: {b} for a, b in itertools.pairwise(names)}
    assert dependency_order(names, chain).paths == names[::-1]


def test_long_chains_need_no_recursion():
    names = [f"{i:05d}" for i in range(5000)]
    graph = {a: {b} for a, b in itertools.pairwise(names)}
    assert dependency_order(names, graph).paths == names[::-1]
    assert dependency_order(names, {**graph, names[-1]: {names[0]}}).paths == [names[0], *names[:0:-1]]


@pytest.mark.parametrize(
    "code, documents, expected",
    [
        (
            ["z.py", "a/x.py", "y.py"],
            ["README.md", "a/notes.txt"],
            ["README.md", "z.py", "a/notes.txt", "a/x.py", "y.py"],
        ),
        (["src/b.py", "a.py"], ["README.md"], ["src/b.py", "README.md", "a.py"]),  # the folder's own first
        (["src/b.py", "src/c.py"], ["README.md"], ["README.md", "src/b.py", "src/c.py"]),  # or one below it
        (["src/b.py", "x/c.py"], ["x/docs/guide.md"], ["src/b.py", "x/docs/guide.md", "x/c.py"]),  # or one above it
        (["a.py"], ["b.md", "a.md", "README.md"], ["README.md", "a.md", "b.md", "a.py"]),
        ([], ["b/x.md", "a.md", "readme"], ["readme", "a.md", "b/x.md"]),
        (["a.py"], [], ["a.py"]),
    ],
)
def test_documents_stand_before_the_code_of_their_folder(code, documents, expected):
    assert place_documents(code, documents) == expected
