"""What the page shows of a run, section by section, cut to what a page can hold."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from puyulm.data.report.charts import Curve, Histogram, draw_curve, draw_lengths, draw_sizes
from puyulm.data.report.contamination import NOTE
from puyulm.data.report.differences import Part, differences
from puyulm.data.report.facts import Cluster, Run, StageFacts, find_setting
from puyulm.data.report.flow import Drop, Flow, FlowStage, draw_flow, shortened
from puyulm.data.report.numbers import common_unit, count, in_unit, size

COLOURS = 8
LONG_EQUAL, EQUAL_EDGE = 320, 100  # characters of text that two duplicates share, and how many of them are shown


@dataclass(frozen=True)
class Limits:
    """How much of everything the page shows."""

    rules: int = 40
    samples: int = 4
    sample_characters: int = 1200
    groups: int = 30
    clusters: int = 12
    members: int = 3
    notes: int = 60
    rows: int = 200

    def halved(self) -> Limits:
        """About half of it, and never nothing."""
        return Limits(**{name: max(getattr(self, name) // 2, 1) for name in self.__dataclass_fields__})


@dataclass(frozen=True)
class Sample:
    """A document to read; `text` may be its beginning only."""

    id: str
    source: str
    language: str
    url: str
    characters: int
    text: str
    notes: str


@dataclass(frozen=True)
class Rule:
    """What one rule of a stage dropped."""

    reason: str
    colour: int
    documents: int
    bytes: int
    samples: tuple[Sample, ...]


@dataclass(frozen=True)
class StageDrops:
    """What a stage dropped, by rule, most first, and what it kept beside it."""

    stage: StageFacts
    rules: tuple[Rule, ...]
    hidden: int
    most: int
    dropped: int
    kept: tuple[Sample, ...]


@dataclass(frozen=True)
class GroupRow:
    """Documents and bytes of a language or source, before and after."""

    name: str
    before: tuple[int, int]
    after: tuple[int, int]


@dataclass(frozen=True)
class Table:
    """Rows as text, ready to show; `numeric` tells which columns hold numbers."""

    title: str
    facts: str
    columns: tuple[str, ...]
    numeric: tuple[bool, ...]
    rows: tuple[tuple[str, ...], ...]
    hidden: int = 0


@dataclass(frozen=True)
class MemberView:
    """A member of a cluster with its text in parts."""

    id: str
    language: str
    place: str
    similarity: float | None
    kept: bool
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class ClusterView:
    """A cluster with some of its members, the kept one first, whose text's `beginning` stands in the summary."""

    size: int
    beginning: str
    members: tuple[MemberView, ...]


@dataclass(frozen=True)
class Duplicates:
    """What deduplication found in one stage."""

    label: str
    facts: str
    sizes: Histogram | None
    curve: Curve | None
    clusters: tuple[ClusterView, ...]


def family(reason: str) -> str:
    """The family of a reason: what stands before its colon."""
    return reason.partition(":")[0].strip() or reason


def family_colours(run: Run) -> dict[str, int]:
    """A colour for each of the families that dropped most documents."""
    totals: dict[str, int] = {}
    for stage in run.stages:
        for reason, (documents, _) in stage.result.counts.dropped.items():
            totals[family(reason)] = totals.get(family(reason), 0) + documents
    ordered = sorted(totals, key=lambda name: (-totals[name], name))
    return {name: i if i < COLOURS else -1 for i, name in enumerate(ordered)}


def flows(run: Run, colours: Mapping[str, int]) -> list[tuple[str, Flow]]:
    """The flow of documents and the flow of bytes."""
    stages = run.document_stages
    if not stages:
        return []
    said: list[tuple[str, int, Callable[[float], str], str]] = [
        ("documents", 0, count, "joined or cut"),
        ("bytes", 1, size, "markup, changed text"),
    ]
    drawn = []
    for title, which, say, difference in said:
        drawn.append((title, draw_flow([_flow_stage(stage, which, colours, difference) for stage in stages], say)))
    return drawn


def drops(run: Run, limits: Limits, colours: Mapping[str, int]) -> list[StageDrops]:
    """Stages that dropped something, their rules and samples."""
    shown = []
    for stage in run.stages:
        counts = stage.result.counts
        if not counts.dropped:
            continue
        ordered = sorted(counts.dropped.items(), key=lambda item: (-item[1][0], item[0]))
        rules = tuple(
            Rule(reason, colours.get(family(reason), -1), documents, num_bytes,
                 samples(counts.dropped_samples.get(reason, []), limits))
            for reason, (documents, num_bytes) in ordered[: limits.rules]
        )  # fmt: skip
        dropped = sum(pair[0] for pair in counts.dropped.values())
        kept = samples(counts.kept_samples, replace(limits, samples=limits.samples + 1))
        shown.append(StageDrops(stage, rules, len(ordered) - len(rules), ordered[0][1][0], dropped, kept))
    return shown


def samples(found: Iterable[Any], limits: Limits) -> tuple[Sample, ...]:
    """Samples as `Counts` keeps them, their texts cut."""
    chosen = [item for item in found if isinstance(item, Mapping)][: limits.samples]
    return tuple(sample(item, limits) for item in chosen)


def sample(item: Mapping[str, Any], limits: Limits) -> Sample:
    """One sample from a mapping with the fields of a document."""
    scores, metadata = item.get("scores"), item.get("metadata")
    notes = [f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}"
             for name, value in sorted(scores.items())] if isinstance(scores, Mapping) else []  # fmt: skip
    if isinstance(metadata, Mapping):
        notes += [f"{name}: {value if isinstance(value, str) else json.dumps(value, default=str, ensure_ascii=False)}"
                  for name, value in sorted(metadata.items()) if name != "dropped"]  # fmt: skip
    text = str(item.get("text", ""))
    characters = item.get("characters", len(text))
    return Sample(
        id=str(item.get("id", ""))[:200], source=str(item.get("source", ""))[:100],
        language=str(item.get("language", ""))[:20], url=str(item.get("url", ""))[:300],
        characters=characters if isinstance(characters, int) else len(text),
        text=text[: limits.sample_characters], notes=" · ".join(note[:120] for note in notes[:12]),
    )  # fmt: skip


def lengths(run: Run) -> Histogram | None:
    """Lengths of documents after the first and after the last stage."""
    stages = run.counted_stages
    return draw_lengths(stages[0].result.counts.lengths, stages[-1].result.counts.lengths) if stages else None


def group_rows(run: Run, by_language: bool, limits: Limits) -> list[GroupRow]:
    """Languages or sources after the first stage and after the last, largest first."""
    stages = run.counted_stages
    if not stages:
        return []
    before, after = (_totals(stage, by_language) for stage in (stages[0], stages[-1]))
    names = sorted({*before, *after}, key=lambda n: (-before.get(n, (0, 0))[1], -after.get(n, (0, 0))[1], n))
    rows = [GroupRow(name, before.get(name, (0, 0)), after.get(name, (0, 0))) for name in names]
    if len(rows) > limits.groups:
        rest = rows[limits.groups :]
        sums = [tuple(sum(getattr(row, side)[i] for row in rest) for i in (0, 1)) for side in ("before", "after")]
        rows = [*rows[: limits.groups],
                GroupRow(f"{len(rest):,} others", (sums[0][0], sums[0][1]), (sums[1][0], sums[1][1]))]  # fmt: skip
    return rows


def domain_table(run: Run, limits: Limits) -> Table | None:
    """Language and source, documents, bytes and byte share of what is kept in the end.

    The shape of the table is that of the InternLM2 technical report (Table 1).
    """
    if not run.counted_stages:
        return None
    groups = run.counted_stages[-1].result.counts.groups
    cells = sorted((language, source, documents, num_bytes) for source, languages in groups.items()
                   for language, (documents, num_bytes) in languages.items())  # fmt: skip
    if not cells:
        return None
    total_documents, total_bytes = sum(cell[2] for cell in cells), sum(cell[3] for cell in cells)
    per_document, documents_unit = common_unit([cell[2] for cell in cells], bytes_=False)
    per_byte, bytes_unit = common_unit([cell[3] for cell in cells], bytes_=True)
    hidden: list[tuple[str, str, int, int]] = []
    if len(cells) > limits.rows:
        least = sorted((cell[3] for cell in cells), reverse=True)[limits.rows - 1]
        hidden = [cell for cell in cells if cell[3] < least]
        cells = [cell for cell in cells if cell[3] >= least][: limits.rows]
    named = [(f"{language}-{source}", documents, num_bytes) for language, source, documents, num_bytes in cells]
    rows = [(name, in_unit(d, per_document), in_unit(b, per_byte), f"{100 * b / max(total_bytes, 1):.2f} %")
            for name, d, b in [*named, ("total", total_documents, total_bytes)]]  # fmt: skip
    columns = ("source", f"documents ({documents_unit})" if documents_unit else "documents",
               f"bytes ({bytes_unit})", "byte share")  # fmt: skip
    return Table("", "", columns, (False, True, True, True), tuple(rows), len(hidden))


def duplicates(run: Run, limits: Limits) -> list[Duplicates]:
    """The clusters of each stage that wrote some, and the curve of its LSH settings."""
    views = []
    for stage in run.stages:
        found = stage.clusters
        if found is None:
            continue
        bands, rows = find_setting(stage.settings, "bands"), find_setting(stage.settings, "rows")
        curve = None
        if bands is not None and rows is not None and found.method in ("", "minhash"):
            curve = draw_curve(int(bands), int(rows), find_setting(stage.settings, "threshold"))
        facts = f"{count(found.clusters)} clusters, of which {count(found.duplicates)} documents were dropped"
        facts += f"; {count(found.earlier)} more stood in an earlier crawl" if found.earlier else ""
        facts += f". Of each cluster, the {found.keep} copy stays" if found.keep else ""
        clusters = tuple(_cluster(cluster, limits) for cluster in _varied(found.shown, limits.clusters))
        views.append(Duplicates(stage.result.label, f"{facts}.", draw_sizes(found.sizes), curve, clusters))
    return views


def notes(run: Run, limits: Limits) -> list[tuple[str, list[tuple[str, float]]]]:
    """The counters of each stage's own, without those that the sections on contamination and tokens show."""
    shown = []
    for stage in run.stages:
        elsewhere = (NOTE, "tokens") if stage.tokens else (NOTE,)
        pairs = sorted(item for item in stage.result.counts.notes.items() if not item[0].startswith(elsewhere))
        if pairs:
            shown.append((stage.result.label, pairs[: limits.notes]))
    return shown


def _flow_stage(stage: StageFacts, which: int, colours: Mapping[str, int], difference: str) -> FlowStage:
    counts = stage.result.counts
    entering, leaving = ((counts.documents_in, counts.documents_out), (counts.bytes_in, counts.bytes_out))[which]
    families = {family(reason) for reason in counts.dropped}
    leaving_as: dict[tuple[str, str], int] = {}
    for reason, pair in counts.dropped.items():
        # Where all reasons are of one family, which is usually the stage's own name, they are told apart themselves.
        name = family(reason) if len(families) > 1 else reason.partition(":")[2].strip() or reason
        leaving_as[name, family(reason)] = leaving_as.get((name, family(reason)), 0) + pair[which]
    leaves = [Drop(name, amount, colours.get(kind, -1)) for (name, kind), amount in sorted(leaving_as.items())]
    if (unexplained := entering - leaving - sum(leaving_as.values())) > 0:
        if which == 0:  # files that were never documents, and files that became parts of one
            difference = {"format": "skipped", "repositories": "joined"}.get(stage.result.kind, difference)
        leaves.append(Drop(difference, unexplained, -1))
    return FlowStage(stage.result.label, entering, leaving, tuple(leaves))


def _totals(stage: StageFacts, by_language: bool) -> dict[str, tuple[int, int]]:
    totals: dict[str, tuple[int, int]] = {}
    for source, languages in stage.result.counts.groups.items():
        for language, (documents, num_bytes) in languages.items():
            name = language if by_language else source
            old = totals.get(name, (0, 0))
            totals[name] = (old[0] + documents, old[1] + num_bytes)
    return totals


def _varied(clusters: Sequence[Cluster], limit: int) -> list[Cluster]:
    """Some clusters that show members: half of them the largest, the others from the whole range of sizes."""
    readable = [cluster for cluster in clusters if sum(bool(member.text) for member in cluster.members) > 1]
    largest, rest = readable[: (limit + 1) // 2], readable[(limit + 1) // 2 :]
    wanted = limit - len(largest)
    if not wanted or len(rest) <= wanted:
        return largest + rest[:wanted]
    return largest + [rest[(i * len(rest)) // wanted] for i in range(wanted)]


def _cluster(cluster: Cluster, limits: Limits) -> ClusterView:
    readable = [member for member in cluster.members if member.text]
    ordered = sorted(readable, key=lambda member: not member.kept)[: max(limits.members, 2)]
    texts = [member.text[: limits.sample_characters] for member in ordered]
    views = []
    for position, member in enumerate(ordered):
        cut = any(ordered[i].characters > len(texts[i]) for i in (0, position or 1))
        kept, other = differences(texts[0], texts[position or 1], beginnings=cut)
        parts = _shortened_parts(kept if position == 0 else other)
        views.append(
            MemberView(member.id[:200], member.language, member.place[:200], member.similarity, member.kept, parts)
        )
    return ClusterView(cluster.size, shortened(texts[0][:400], 90), tuple(views))


def _shortened_parts(parts: Sequence[Part]) -> tuple[Part, ...]:
    """The parts without the middles of long equal ones, so that differences are in sight; equal texts stay whole."""
    if all(part.kind != "different" for part in parts):
        return tuple(parts)
    shown: list[Part] = []
    for part in parts:
        if part.kind == "same" and len(part.text) > LONG_EQUAL:
            skipped = len(part.text) - 2 * EQUAL_EDGE
            shown += [Part(part.text[:EQUAL_EDGE], "same"), Part(f" … {skipped:,} equal characters … ", "unknown"),
                      Part(part.text[-EQUAL_EDGE:], "same")]  # fmt: skip
        else:
            shown.append(part)
    return tuple(shown)
