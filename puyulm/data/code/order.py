"""The order of a repository's files: what is imported stands before what imports it."""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from puyulm.data.code.graph import circles_of
from puyulm.data.code.imports.index import ancestors, folder_of

MAX_VISITS = 5_000_000  # of imports, while circles are taken apart: a few seconds

CircleStart = Literal["name", "most_used"]


@dataclass(frozen=True)
class Order:
    """Files in the order of their imports.

    Attributes:
        paths: Every file once.
        edges: How many imports there are between them.
        cycles: How many groups of files import each other in a circle.
    """

    paths: list[str]
    edges: int
    cycles: int


def dependency_order(
    paths: Iterable[str], imports: Mapping[str, Iterable[str]], circle_start: CircleStart = "name"
) -> Order:
    """Sorts files topologically, so that a file stands behind all that it imports (InternLM2 report, section 3.1.2).

    Among files that are ready, those come first that are furthest from the files that nobody imports, and of equally
    far ones the first by name. How far a file is counts along the shortest chain of imports that leads to it. So a file
    is followed soon by those that need it, whatever folders they lie in.

    Files that import each other in a circle stand together, behind all that one of them imports from outside. One of
    them is the start; without it the others are sorted like a repository of their own, with what circles are left. (Of
    very large circles, from `MAX_VISITS` on, the rest is in the order in which starts are taken.)

    Args:
        paths: All files.
        imports: File -> files that it imports; files not in `paths` and a file itself are passed over.
        circle_start: Which file of a circle is its start: "name" takes the first by name, as the report does;
            "most_used" the one that most files import, the first by name of equals.
    """
    nodes = sorted(set(paths))
    known = set(nodes)
    needs = {node: {n for n in imports.get(node, ()) if n in known and n != node} for node in nodes}
    users: dict[str, list[str]] = defaultdict(list)
    for node in nodes:
        for target in needs[node]:
            users[target].append(node)

    def starts_first(node: str) -> tuple[int, str]:
        return -len(users[node]) if circle_start == "most_used" else 0, node

    circles = circles_of(nodes, needs)
    depth = _depths(nodes, needs, users, circles)
    order: list[str] = []
    visits = 0
    work = [iter(_groups(nodes, needs, circles, depth))]
    while work:
        group = next(work[-1], None)
        if group is None:
            work.pop()
            continue
        start, *rest = sorted(group, key=starts_first)
        order.append(start)
        visits += sum(len(needs[node]) for node in rest)
        if visits > MAX_VISITS:
            order += rest
        elif rest:
            inside = set(rest)
            needed = {node: needs[node] & inside for node in rest}
            work.append(iter(_groups(sorted(rest), needed, circles_of(sorted(rest), needed), depth)))
    num_circles = sum(count > 1 for count in Counter(circles.values()).values())
    return Order(order, sum(map(len, needs.values())), num_circles)


def place_documents(code: Sequence[str], documents: Iterable[str]) -> list[str]:
    """Puts documents (README and others that are no code) right before the first code file of their folder.

    A folder that has no code itself counts with those below it; where these have none either, with the folder above.
    At one place a README comes first, then the order is by path. Without any code, all are in that order.
    """
    first: dict[str, int] = {}  # folder -> place of its first code file
    below: dict[str, int] = {}  # the same, with the folders below it
    for place, path in enumerate(code):
        first.setdefault(folder_of(path), place)
        for folder in ancestors(folder_of(path)):
            below.setdefault(folder, place)
    before: dict[int, list[str]] = defaultdict(list)
    for path in documents:
        places = [found for f in ancestors(folder_of(path)) if (found := first.get(f, below.get(f))) is not None]
        before[places[0] if places else 0].append(path)
    if not code:
        return sorted(before[0], key=_reading_order)
    return [each for place, path in enumerate(code) for each in (*sorted(before[place], key=_reading_order), path)]


def _reading_order(path: str) -> tuple[str, bool, str]:
    folder, _, name = path.rpartition("/")
    return folder, not name.lower().startswith("readme"), name


def _groups(
    nodes: Sequence[str], needs: Mapping[str, set[str]], circles: Mapping[str, str], depth: Mapping[str, int]
) -> list[list[str]]:
    """Circles, most of a single file, each behind those that it imports from; of ready ones the deepest first."""
    members: dict[str, list[str]] = defaultdict(list)
    for node in nodes:
        members[circles[node]].append(node)
    needed: dict[str, set[str]] = {c: set() for c in members}
    users: dict[str, list[str]] = defaultdict(list)
    for node in nodes:
        needed[circles[node]].update(circles[target] for target in needs[node])
    for circle, targets in needed.items():
        for target in targets - {circle}:
            users[target].append(circle)
    missing = {circle: len(targets - {circle}) for circle, targets in needed.items()}
    rank = {c: (-max(depth[node] for node in group), group[0]) for c, group in members.items()}
    ready = [(*rank[circle], circle) for circle in members if not missing[circle]]
    heapq.heapify(ready)
    found = []
    while ready:
        circle = heapq.heappop(ready)[2]
        found.append(members[circle])
        for user in users[circle]:
            missing[user] -= 1
            if not missing[user]:
                heapq.heappush(ready, (*rank[user], user))
    return found


def _depths(
    nodes: Sequence[str],
    needs: Mapping[str, set[str]],
    users: Mapping[str, Sequence[str]],
    circles: Mapping[str, str],
) -> dict[str, int]:
    """Imports on the shortest chain from a file that nothing outside its own circle imports."""
    inner = {circles[node] for node in nodes if any(circles[user] != circles[node] for user in users.get(node, ()))}
    starts: dict[str, str] = {}
    for node in nodes:  # of a circle, the first by name
        if circles[node] not in inner:
            starts.setdefault(circles[node], node)
    depth = dict.fromkeys(starts.values(), 0)
    waiting = deque(depth)
    while waiting:
        node = waiting.popleft()
        for target in sorted(needs[node]):
            if target not in depth:
                depth[target] = depth[node] + 1
                waiting.append(target)
    return depth
