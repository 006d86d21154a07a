"""What a pretraining run reads: folders of token shards with their weights in each phase, and what its losses are told
apart by."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from puyulm.data.shards import TokenShards
from puyulm.data.stream import TokenStream
from puyulm.errors import DataError
from puyulm.text.tokenizer import Tokenizer
from puyulm.train.phases import Data

MOST_NAMES, OTHERS = 64, "others"


@dataclass(frozen=True)
class Sources:
    """All token shards that any phase reads, each opened once.

    Attributes:
        streams: One for each folder.
        weights: Of each phase, one a stream.
        names: What `PackedBatch.sources` points into; empty where there is but one.
    """

    streams: list[TokenStream]
    weights: list[list[float]]
    names: list[str]


def open_sources(data: Mapping[str, Data], seed: int, tokenizer: Tokenizer) -> Sources:
    """Opens the shards of all phases.

    Folders that hold the same are one stream, which later phases read on. What order a stream is read in depends on the
    seed and on what it holds: not on where it lies, what it is called or what else is read.

    Where each phase reads one folder, losses are told apart by the shards' own sources: `crawl`, or `crawl/en` where it
    has several languages. Where a phase mixes folders, by folder and source: `web/crawl`, or `web` where it has one.
    The 63 with the most tokens have a name; the rest are `others`.

    Args:
        data: What each phase reads, by its name.

    Raises:
        DataError: A folder holds no shards, or those of another tokenizer; or a phase names the same shards twice, or
            has no weight above 0.
    """
    shares = {phase: read if isinstance(read, dict) else {str(read): 1.0} for phase, read in data.items()}
    shards: dict[str, TokenShards] = {}  # by what they hold
    keys: dict[str, str] = {}
    for name in dict.fromkeys(name for share in shares.values() for name in share):
        opened = TokenShards.open(Path(name).expanduser())
        opened.check_tokenizer(tokenizer)
        keys[name] = opened.content_hash
        shards.setdefault(opened.content_hash, opened)
    weights = [_weights(phase, share, keys, list(shards)) for phase, share in shares.items()]
    labels = folder_labels([part.folder for part in shards.values()])
    several = any(sum(weight > 0 for weight in row) > 1 for row in weights)
    own = [_own_names(part, label if several else "") for part, label in zip(shards.values(), labels, strict=True)]
    names = _most_tokens(list(shards.values()), own)
    places = {name: place for place, name in enumerate(names)}
    streams = []
    for part, label, mine in zip(shards.values(), labels, own, strict=True):
        ids = [places.get(name, len(names) - 1) for name in mine] if len(names) > 1 else None
        streams.append(TokenStream(part, seed, label, ids))
    return Sources(streams, weights, names if len(names) > 1 else [])


def folder_labels(folders: Sequence[Path]) -> list[str]:
    """Short different names: what is left of the paths without the folders that all begin and end with.

    `["a/web/train", "a/code/train"]` -> `["web", "code"]`; one folder is called by its own name.
    """
    paths = [Path(os.path.abspath(folder)).parts for folder in folders]
    if len(set(paths)) < 2:
        return [path[-1] for path in paths]
    while min(map(len, paths)) > 1 and len({path[0] for path in paths}) == 1:
        paths = [path[1:] for path in paths]
    while min(map(len, paths)) > 1 and len({path[-1] for path in paths}) == 1:
        paths = [path[:-1] for path in paths]
    return ["/".join(path) for path in paths]


def _weights(phase: str, share: Mapping[str, float], keys: Mapping[str, str], order: Sequence[str]) -> list[float]:
    by_content: dict[str, str] = {}
    for name in share:
        if (other := by_content.setdefault(keys[name], name)) != name:
            raise DataError(f"phase {phase}: {other} and {name} hold the same tokens: give them once, with one weight")
    if not any(weight > 0 for weight in share.values()) or not all(0 <= weight < 1e300 for weight in share.values()):
        shown = ", ".join(f"{name}: {weight:g}" for name, weight in share.items()) or "nothing"
        raise DataError(f"phase {phase}: the weights of data must be 0 or more, and one above 0, found {shown}")
    return [share[by_content[key]] if key in by_content else 0.0 for key in order]


def _own_names(shards: TokenShards, folder: str) -> list[str]:
    """What each of a folder's sources is called."""
    languages = Counter(source.source for source in shards.sources)
    names = []
    for source in shards.sources:
        name = source.source or "none"
        names.append(f"{name}/{source.language or 'none'}" if languages[source.source] > 1 else name)
    if not folder:
        return names
    return [f"{folder}/{name}" for name in names] if len(names) > 1 else [folder]


def _most_tokens(shards: Sequence[TokenShards], own: Sequence[Sequence[str]]) -> list[str]:
    """The names in their order; those with the fewest tokens as one, where there are too many."""
    tokens: Counter[str] = Counter()
    for part, names in zip(shards, own, strict=True):
        for source, name in zip(part.sources, names, strict=True):
            tokens[name] += source.tokens
    if len(tokens) <= MOST_NAMES:
        return list(tokens)
    most = {name for name, _ in tokens.most_common(MOST_NAMES - 1)}
    return [*(name for name in tokens if name in most), OTHERS]
