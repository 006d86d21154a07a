"""Paths of a repository, found by how they end."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

Edges = dict[str, set[str]]
"""File -> files that it imports."""


def folder_of(path: str) -> str:
    """The folder of a path; "" for the repository's own."""
    return path.rpartition("/")[0]


def joined(folder: str, path: str) -> str | None:
    """A path relative to a folder, with "." and ".." resolved; None where it leaves the repository."""
    parts = folder.split("/") if folder else []
    for part in path.split("/"):
        if part == "..":
            if not parts:
                return None
            parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    return "/".join(parts)


def ancestors(folder: str) -> list[str]:
    """A folder, the folder it lies in, and so on up to ""."""
    found = [folder]
    while folder:
        folder = folder_of(folder)
        found.append(folder)
    return found


def shared_folders(one: str, other: str) -> int:
    """How many folders two paths have in common, from the top."""
    count = 0
    for a, b in zip(one.split("/")[:-1], other.split("/")[:-1], strict=False):
        if a != b:
            break
        count += 1
    return count


def nearest(paths: Iterable[str], origin: str) -> str | None:
    """Of several paths the one that shares most folders with `origin`; of equals the shorter, then by name."""
    return min(paths, key=lambda path: (-shared_folders(path, origin), path.count("/"), path), default=None)


class FileIndex:
    """Finds paths by their last parts."""

    def __init__(self, paths: Iterable[str]) -> None:
        self.paths = frozenset(paths)
        self._by_name: dict[str, list[str]] = defaultdict(list)
        for path in sorted(self.paths):
            self._by_name[path.rpartition("/")[2]].append(path)

    def ending(self, suffix: str) -> list[str]:
        """Paths that are `suffix` or end in "/" and `suffix`, sorted."""
        suffix = suffix.lstrip("/")
        found = self._by_name.get(suffix.rpartition("/")[2], [])
        return [path for path in found if path == suffix or path.endswith("/" + suffix)]
