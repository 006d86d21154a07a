"""A bounded look at the documents of a stage: enough to show what there is, in seconds whatever the stage's size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from puyulm.data.documents import Document, read_documents
from puyulm.errors import DataError

MAX_SHARDS = 24
MAX_DOCUMENTS = 30_000
MAX_CHARACTERS = 32_000_000


class Scan:
    """The first documents of shards that lie evenly over all: at most 24 shards, 30,000 documents, 32 M characters.

    Args:
        shards: Of documents. A damaged one ends where it is damaged.

    Attributes:
        shards: The chosen ones.
        documents: Read so far.
        complete: Everything there was, was read.
    """

    def __init__(self, shards: Sequence[Path]) -> None:
        step = max(len(shards) / MAX_SHARDS, 1)
        self.shards = [shards[int(i * step)] for i in range(min(len(shards), MAX_SHARDS))]
        self.complete = len(self.shards) == len(shards)
        self.documents = 0

    def __iter__(self) -> Iterator[Document]:
        for number, shard in enumerate(self.shards):
            yield from self.of(number, shard)

    def of(self, number: int, shard: Path) -> Iterator[Document]:
        """The documents of one shard; what earlier shards left of the bounds is for the later ones."""
        left = len(self.shards) - number
        most_documents = (MAX_DOCUMENTS - self.documents) // left
        characters, most_characters = 0, MAX_CHARACTERS // len(self.shards)
        try:
            for read, document in enumerate(read_documents(shard)):
                if read >= most_documents or characters >= most_characters:
                    self.complete = False
                    return
                self.documents += 1
                characters += len(document.text)
                yield document
        except (DataError, TypeError, RecursionError):  # a damaged shard is no reason to have no page
            self.complete = False
