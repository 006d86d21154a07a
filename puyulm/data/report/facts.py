"""What the folder of a run tells: its stages' figures, clusters of duplicates, token shards and mixture plans.

Everything is read as data that may be incomplete: the page is made of what is there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from puyulm.data.pipeline.run import PIPELINE_FILE, RECIPE_FILE, StageResult, load_results
from puyulm.data.pipeline.stage import STAGE_FILE, shards_in
from puyulm.data.shards import META_FILE
from puyulm.errors import DataError

CLUSTERS_FILE = "clusters.json"
MIXTURE_FILE = "mixture.json"
MIX = "mix"
MAX_JSON_BYTES = 64_000_000  # a larger file is not read: the page could not show it
MAX_TOKEN_FOLDERS = 2000
MAX_RECIPE_CHARACTERS = 50_000


@dataclass(frozen=True)
class Member:
    """A document of a cluster of duplicates.

    Attributes:
        id: The document's.
        place: Shard and row.
        text: Its beginning; empty where it was not written down.
        characters: Of the whole text.
        similarity: Jaccard similarity to the one that is kept; None where it was not measured.
        kept: It is the one that was kept.
    """

    id: str
    language: str
    place: str
    text: str
    characters: int
    similarity: float | None
    kept: bool


@dataclass(frozen=True)
class Cluster:
    """Documents that are nearly the same; `members` may be some of the `size`."""

    size: int
    members: tuple[Member, ...]


@dataclass(frozen=True)
class Clusters:
    """What deduplication found.

    Attributes:
        method, keep: How, and which copy stays; empty where it is not told.
        clusters, duplicates, earlier: How many clusters, documents that left for another of their cluster, and
            documents that left for an earlier crawl's.
        sizes: (least, greatest, clusters) of each bin of sizes.
        shown: Some clusters: the largest, and a sample of others.
    """

    method: str
    keep: str
    clusters: int
    duplicates: int
    earlier: int
    sizes: tuple[tuple[int, int, int], ...]
    shown: tuple[Cluster, ...]


@dataclass(frozen=True)
class TokenGroup:
    """Documents, tokens and UTF-8 bytes of one source and language."""

    source: str
    language: str
    documents: int
    tokens: int
    bytes: int


@dataclass(frozen=True)
class Tokens:
    """Token shards of one folder, named by its path below the stage's."""

    name: str
    vocab_size: int
    groups: tuple[TokenGroup, ...]


@dataclass(frozen=True)
class StageFacts:
    """A finished stage with what else stands in its folder.

    Attributes:
        result: Its figures.
        settings: As in the recipe.
        clusters: What deduplication found; None where nothing is told.
        tokens: Token shards that it wrote.
        mixture: The mixture's plan as it was written; None without one.
    """

    result: StageResult
    settings: Mapping[str, Any]
    clusters: Clusters | None
    tokens: tuple[Tokens, ...]
    mixture: Any

    @property
    def has_documents(self) -> bool:
        """Whether documents went through it; a mixture draws them, some several times."""
        counts = self.result.counts
        return self.result.kind != MIX and (counts.documents_in > 0 or counts.documents_out > 0)


@dataclass(frozen=True)
class Run:
    """A whole run.

    Attributes:
        name: Of its folder.
        recipe: Its YAML.
        stages: The finished ones.
        unfinished: Names of the folders of the others.
    """

    name: str
    recipe: str
    stages: tuple[StageFacts, ...]
    unfinished: tuple[str, ...]

    @property
    def document_stages(self) -> tuple[StageFacts, ...]:
        """The stages that documents went through."""
        return tuple(stage for stage in self.stages if stage.has_documents)

    @property
    def counted_stages(self) -> tuple[StageFacts, ...]:
        """The stages that counted the documents they kept by source, language and length."""
        return tuple(stage for stage in self.document_stages if stage.result.counts.groups)


def load_run(out: Path) -> Run:
    """Reads the folder of a run.

    Raises:
        DataError: There is no run, none of its stages is finished, or a stage's file is damaged.
    """
    if not out.is_dir():
        raise DataError(f"no folder {out}: give the folder ('out' in the recipe) that puyu data run wrote")
    if (out / STAGE_FILE).is_file() and not (out / PIPELINE_FILE).is_file():
        raise DataError(f"{out} is one stage of a run: give the folder above it")
    try:
        results = load_results(out)
        names = [str(name) for name in json.loads((out / PIPELINE_FILE).read_text(encoding="utf-8"))["stages"]]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"a stage of {out} has a damaged {STAGE_FILE} ({error!r}): run the pipeline again") from error
    if not results:
        raise DataError(f"no stage of {out} is finished yet: wait for the run, or go on with it (puyu data run)")
    finished = {result.folder.name for result in results}
    try:
        recipe = (out / RECIPE_FILE).read_text(encoding="utf-8", errors="replace")
    except OSError:
        recipe = ""
    return Run(
        name=out.resolve().name,
        recipe=recipe[:MAX_RECIPE_CHARACTERS],
        stages=tuple(_stage(result) for result in results),
        unfinished=tuple(name for name in names if name not in finished),
    )


def document_shards(run: Run) -> tuple[StageFacts, list[Path]] | None:
    """The last stage that wrote documents, and its shards."""
    for stage in reversed(run.stages):
        if shards := shards_in(stage.result.folder):
            return stage, shards
    return None


def find_setting(settings: Any, name: str) -> float | None:
    """A number among nested settings by its name; the first in the order of the settings."""
    if isinstance(settings, Mapping):
        if isinstance(value := settings.get(name), int | float) and not isinstance(value, bool):
            return float(value)
        for value in settings.values():
            if (found := find_setting(value, name)) is not None:
                return found
    return None


def _stage(result: StageResult) -> StageFacts:
    state = _read_json(result.folder / STAGE_FILE)
    settings = state.get("settings") if isinstance(state, Mapping) else None
    return StageFacts(
        result=result,
        settings=settings if isinstance(settings, Mapping) else {},
        clusters=_clusters(_read_json(result.folder / CLUSTERS_FILE)),
        tokens=tuple(_tokens(result.folder)),
        mixture=_read_json(result.folder / MIXTURE_FILE),
    )


def _read_json(path: Path) -> Any:
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            return None
        return json.loads(path.read_text(encoding="utf-8", errors="surrogatepass"))
    except (OSError, ValueError, RecursionError):
        return None


def _clusters(written: Any) -> Clusters | None:
    """What `clusters.json` of the stage `dedup` tells; a plain list of clusters does too."""
    if isinstance(written, list):
        written = {"largest": written}
    if not isinstance(written, Mapping):
        return None
    shown = [
        cluster
        for name in ("largest", "sample")
        for item in (written[name] if isinstance(written.get(name), list) else [])
        if (cluster := _cluster(item)) is not None
    ]
    sizes = tuple(_bins(written["sizes"]) if isinstance(written.get("sizes"), list) else _binned(shown))
    return Clusters(
        method=str(written.get("method", "")), keep=str(written.get("keep", "")),
        clusters=_whole(written.get("clusters"), len(shown)),
        duplicates=_whole(written.get("duplicates"), sum(cluster.size - 1 for cluster in shown)),
        earlier=_whole(written.get("earlier"), 0), sizes=sizes, shown=tuple(shown),
    )  # fmt: skip


def _bins(rows: list[Any]) -> Iterator[tuple[int, int, int]]:
    for row in rows:
        if isinstance(row, list) and len(row) >= 3 and all(isinstance(number, int) for number in row[:3]):
            yield row[0], row[1], row[2]


def _binned(clusters: list[Cluster]) -> Iterator[tuple[int, int, int]]:
    """Clusters by size in bins of powers of two: 2, 3 to 4, 5 to 8, and so on."""
    bins: dict[int, int] = {}
    for cluster in clusters:
        bits = max(cluster.size - 1, 1).bit_length()
        bins[bits] = bins.get(bits, 0) + 1
    for bits, number in sorted(bins.items()):
        yield (1 << bits - 1) + 1, 1 << bits, number


def _whole(value: Any, otherwise: int) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else otherwise


def _cluster(item: Any) -> Cluster | None:
    if not isinstance(item, Mapping) or not isinstance(item.get("members"), list):
        return None
    members = tuple(_member(member, position) for position, member in enumerate(item["members"])
                    if isinstance(member, Mapping))  # fmt: skip
    return Cluster(max(_whole(item.get("size"), len(members)), 0), members)


def _member(member: Mapping[str, Any], position: int) -> Member:
    similarity = member.get("similarity")
    place = f"shard {member['shard']}, row {member.get('row')}" if "shard" in member else ""
    text = str(member.get("text") or "")
    return Member(
        id=str(member.get("id", "")),
        language=str(member.get("language", "")),
        place=place,
        text=text,
        characters=_whole(member.get("characters"), len(text)),
        similarity=float(similarity) if isinstance(similarity, int | float) else None,
        kept=bool(member.get("kept", position == 0)),
    )


def _tokens(folder: Path) -> Iterator[Tokens]:
    for path in islice(sorted(folder.rglob(META_FILE)), MAX_TOKEN_FOLDERS):
        meta = _read_json(path)
        if not isinstance(meta, Mapping) or not isinstance(meta.get("sources"), list):
            continue
        try:
            groups = tuple(
                TokenGroup(str(row["source"]), str(row["language"]), int(row["documents"]), int(row["tokens"]),
                           int(row["bytes"])) for row in meta["sources"]
            )  # fmt: skip
            yield Tokens(path.parent.relative_to(folder).as_posix(), int(meta.get("vocab_size", 0)), groups)
        except (KeyError, TypeError, ValueError):
            continue
