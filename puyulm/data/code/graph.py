"""Circles in a directed graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set


def circles_of(nodes: Sequence[str], needs: Mapping[str, Set[str]]) -> dict[str, str]:
    """The strongly connected component of each node, named by one of its members (Tarjan's algorithm, no recursion).

    Args:
        nodes: All of them.
        needs: Node -> nodes; each of them is in `nodes`.
    """
    number: dict[str, int] = {}
    low: dict[str, int] = {}
    found: dict[str, str] = {}
    path: list[str] = []
    for start in nodes:
        if start in number:
            continue
        number[start] = low[start] = len(number)
        path.append(start)
        work = [(start, iter(sorted(needs[start])))]
        while work:
            node, targets = work[-1]
            for target in targets:
                if target not in number:
                    number[target] = low[target] = len(number)
                    path.append(target)
                    work.append((target, iter(sorted(needs[target]))))
                    break
                if target not in found:  # still on the path
                    low[node] = min(low[node], number[target])
            else:
                work.pop()
                if work:
                    parent = work[-1][0]
                    low[parent] = min(low[parent], low[node])
                if low[node] == number[node]:
                    while True:
                        member = path.pop()
                        found[member] = node
                        if member == node:
                            break
    return found
