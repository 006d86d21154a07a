"""Who owns which block of the key/value cache. Numbers only: nothing here knows of tensors.

A block is in one of three places: held by at least one sequence; free with contents that a later sequence may take up
again (the prefix cache); or free and empty. Full blocks are known by a hash of their tokens and of all tokens before
them, so that sequences with the same beginning share its blocks.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence

Digest = bytes


def root_digest(*salt: object) -> Digest:
    """What a sequence's chain of hashes begins with: whatever besides its tokens decides its keys and values."""
    return hashlib.blake2b(repr(salt).encode(), digest_size=16).digest()


def block_digest(parent: Digest, tokens: Sequence[int]) -> Digest:
    """The hash of a full block after the blocks that `parent` stands for."""
    return hashlib.blake2b(array("q", tokens).tobytes(), key=parent, digest_size=16).digest()


class BlockPool:
    """Blocks and their reference counts.

    Free blocks with contents are given away again oldest first, after all empty ones.

    Args:
        num_blocks: How many there are.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self._holders = [0] * num_blocks
        self._digests: list[Digest | None] = [None] * num_blocks
        self._by_digest: dict[Digest, int] = {}
        self._empty = list(reversed(range(num_blocks)))  # the last is taken first: few blocks are ever touched
        self._kept: OrderedDict[int, None] = OrderedDict()  # oldest first

    @property
    def free(self) -> int:
        """Blocks that nobody holds."""
        return len(self._empty) + len(self._kept)

    @property
    def held(self) -> int:
        return self.num_blocks - self.free

    @property
    def kept(self) -> int:
        """Blocks that nobody holds, but whose contents may be taken up again."""
        return len(self._kept)

    def find(self, digests: Iterable[Digest]) -> list[int]:
        """The blocks of the longest known beginning of a chain. They are not held yet (`share`)."""
        found = []
        for digest in digests:
            block = self._by_digest.get(digest)
            if block is None:
                break
            found.append(block)
        return found

    def idle(self, blocks: Sequence[int]) -> int:
        """How many of these nobody holds."""
        return sum(self._holders[block] == 0 for block in blocks)

    def share(self, blocks: Sequence[int]) -> None:
        """Holds blocks that `find` has found."""
        for block in blocks:
            if self._holders[block] == 0:
                del self._kept[block]
            self._holders[block] += 1

    def take(self, count: int) -> list[int]:
        """Holds `count` free blocks, whose contents are lost; the caller has seen that there are so many."""
        taken = []
        for _ in range(count):
            if self._empty:
                block = self._empty.pop()
            else:
                block, _ = self._kept.popitem(last=False)
                self._forget(block)
            self._holders[block] = 1
            taken.append(block)
        return taken

    def release(self, blocks: Sequence[int]) -> None:
        """Gives a sequence's blocks back, the last first: ends of sequences are then lost before their beginnings."""
        for block in reversed(blocks):
            self._holders[block] -= 1
            if self._holders[block] == 0:
                if self._digests[block] is None:
                    self._empty.append(block)
                else:
                    self._kept[block] = None

    def seal(self, block: int, digest: Digest) -> None:
        """Says what a full block holds. Where another block holds the same, that one stays the known one."""
        if digest not in self._by_digest:
            self._by_digest[digest] = block
            self._digests[block] = digest

    def forget_all(self) -> None:
        """Empties the prefix cache; blocks that are held stay held and are not found any more."""
        for block in list(self._by_digest.values()):
            self._forget(block)
        self._empty.extend(self._kept)
        self._kept.clear()

    def check(self, holders: Iterable[Sequence[int]]) -> None:
        """Raises an AssertionError unless the books agree with the block tables of all living sequences."""
        counted = [0] * self.num_blocks
        for blocks in holders:
            for block in blocks:
                counted[block] += 1
        assert counted == self._holders, "blocks are held by nobody, or by more than are counted"
        places = [*self._empty, *self._kept, *(block for block, count in enumerate(counted) if count)]
        assert sorted(places) == list(range(self.num_blocks)), "a block is in two places, or in none"
        assert all(self._digests[block] == digest for digest, block in self._by_digest.items())
        assert sum(digest is not None for digest in self._digests) == len(self._by_digest)
        assert all(self._digests[block] is not None for block in self._kept)

    def _forget(self, block: int) -> None:
        digest = self._digests[block]
        if digest is not None:
            del self._by_digest[digest]
            self._digests[block] = None
