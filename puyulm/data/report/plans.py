"""Tables of tokens, compression and mixtures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from puyulm.data.report.compression import Compression
from puyulm.data.report.facts import MIX, Run, Tokens
from puyulm.data.report.numbers import count, share, size
from puyulm.data.report.sections import Limits, Table


@dataclass(frozen=True)
class PhaseGroup:
    """What a phase takes of a group of documents.

    Attributes:
        group: Its name.
        available: Tokens of its documents, each once.
        documents, tokens: Taken.
        epochs, epochs_so_far, epochs_cap: How often a document comes in this phase, up to its end, and at most.
    """

    group: str
    available: float
    documents: float
    tokens: float
    epochs: float
    epochs_so_far: float
    epochs_cap: float


@dataclass(frozen=True)
class PhaseView:
    """One phase of training; most tokens first."""

    name: str
    facts: str
    tokens: float
    groups: tuple[PhaseGroup, ...]
    hidden: int


def token_tables(run: Run, limits: Limits) -> list[Table]:
    """Documents, bytes, tokens and bytes per token by language and source: a table for each stage that wrote some.

    Mixtures repeat documents of the stage before, so they have a table for each phase instead.
    """
    tables = []
    for stage in run.stages:
        folders: dict[str, list[Tokens]] = {}
        for tokens in stage.tokens:
            phase = f": {tokens.name.partition('/')[0]}" if stage.result.kind == MIX else ""
            folders.setdefault(f"{stage.result.label}{phase}", []).append(tokens)
        tables += [_token_table(title, found, limits) for title, found in folders.items()]
    return tables[: limits.groups]


def corpus_tokens(run: Run) -> int:
    """Tokens of the whole corpus, each document once."""
    made = [stage for stage in run.stages if stage.tokens and stage.result.kind != MIX]
    return sum(group.tokens for tokens in made[-1].tokens for group in tokens.groups) if made else 0


def _token_table(title: str, found: Sequence[Tokens], limits: Limits) -> Table:
    sums: dict[str, list[int]] = {}
    for group in (group for tokens in found for group in tokens.groups):
        row = sums.setdefault(f"{group.language}-{group.source}", [0, 0, 0])
        for i, amount in enumerate((group.documents, group.bytes, group.tokens)):
            row[i] += amount
    total = [sum(row[i] for row in sums.values()) for i in range(3)]
    shown = [*sorted(sums.items())[: limits.rows], ("total", total)]
    return Table(
        title, f"vocabulary of {found[0].vocab_size:,}" if found[0].vocab_size else "",
        ("source", "documents", "bytes", "tokens", "share of tokens", "bytes per token"),
        (False, True, True, True, True, True),
        tuple((name, count(d), size(b), count(t), share(t, total[2]), _ratio(b, t)) for name, (d, b, t) in shown),
        max(len(sums) - limits.rows, 0),
    )  # fmt: skip


def compression_table(measured: Sequence[Compression], limits: Limits) -> Table | None:
    """Bytes per token of sampled documents: a row for each language and source, a column for each tokenizer."""
    if not measured:
        return None
    keys = sorted({key for one in measured for key in one.groups}, key=lambda key: (key[1], key[0]))
    rows = []
    for source, language in keys[: limits.rows]:
        cells = [one.groups.get((source, language), (0, 0)) for one in measured]
        rows.append((f"{language}-{source}", size(max(cell[0] for cell in cells)), *(_ratio(*cell) for cell in cells)))
    sums = [[sum(pair[i] for pair in one.groups.values()) for i in (0, 1)] for one in measured]
    rows.append(("all", size(max((pair[0] for pair in sums), default=0)), *(_ratio(*pair) for pair in sums)))
    columns = ("source", "sample", *(f"{one.name} ({one.vocab_size:,})" for one in measured))
    return Table("Tokenizers on the same sample", "", columns, (False, *[True] * (len(columns) - 1)), tuple(rows),
                 max(len(keys) - limits.rows, 0))  # fmt: skip


def phases(run: Run, limits: Limits) -> list[PhaseView]:
    """The phases of each mixture: what was wanted, what was drawn, how often each group's documents come."""
    views: list[PhaseView] = []
    for stage in run.stages:
        listed = stage.mixture.get("phases") if isinstance(stage.mixture, Mapping) else None
        for phase in listed if isinstance(listed, list) else []:
            if isinstance(phase, Mapping):
                views.append(_phase(phase, limits))
    return views[: limits.rows]


def _phase(phase: Mapping[str, Any], limits: Limits) -> PhaseView:
    groups = _mappings(phase.get("groups"))
    total = _number(phase, "tokens") or sum(_number(group, "tokens") for group in groups)
    rows = tuple(
        PhaseGroup(
            str(group.get("group", "")), _number(group, "available"), _number(group, "documents"),
            _number(group, "tokens"), _number(group, "epochs"), _number(group, "epochs_so_far"),
            _number(group, "epochs_cap"),
        ) for group in groups
    )  # fmt: skip
    wanted, context = _number(phase, "wanted"), _number(phase, "sequence_length")
    facts = [f"{count(total)} tokens" + (f" of {count(wanted)} wanted" if wanted else "")]
    if "short_share" in phase:
        facts.append(f"{share(_number(phase, 'short_share'), 1)} of them in short documents")
    if context:
        facts.append(f"{share(_number(phase, 'filling_share'), 1)} in documents that fill a context of {context:,.0f}")
    if shortfall := _number(phase, "shortfall"):
        facts.append(f"short of {count(shortfall)} tokens, since no group may be repeated more often")
    for pattern in _mappings(phase.get("patterns")):
        planned, asked = _number(pattern, "planned"), _number(pattern, "wanted")
        if abs(planned - asked) > 1:
            facts.append(f"{pattern.get('pattern')} gave {count(planned)} of {count(asked)}")
    ordered = tuple(sorted(rows, key=lambda row: (-row.tokens, row.group)))
    return PhaseView(str(phase.get("name", "")), "; ".join(facts[:12]), total, ordered[: limits.rows],
                     max(len(ordered) - limits.rows, 0))  # fmt: skip


def _mappings(value: Any) -> list[Mapping[str, Any]]:
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, list) else []


def _number(item: Mapping[str, Any], name: str) -> float:
    value = item.get(name)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else 0


def _ratio(num_bytes: int, tokens: int) -> str:
    return f"{num_bytes / tokens:.2f}" if tokens else "-"
