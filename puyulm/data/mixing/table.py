"""What a mixture is made of: `mixture.json`, and the same as a printed table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from puyulm.data.mixing.plan import LENGTHS, Length, PhasePlan, epochs_cap
from puyulm.data.mixing.settings import MixSettings

_COUNTS = ("documents", "tokens", "bytes", "short_tokens", "filling_tokens")


def mixture_facts(
    settings: MixSettings,
    plans: Sequence[PhasePlan],
    tokens: Mapping[tuple[str, str], Mapping[Length, int]],
    owners: Sequence[tuple[str, str]],
    drawn: Sequence[Mapping[str, Mapping[str, Any]]],
) -> dict[str, Any]:
    """Plan and outcome of all phases, as `mixture.json` holds them.

    Args:
        tokens: (group, side) -> tokens available in short and in long documents.
        owners: (group, side) of each source shard.
        drawn: What each source shard gave to each output, by name.
    """
    totals: dict[tuple[str, str], dict[str, int]] = {}
    for (group, _), outputs in zip(owners, drawn, strict=True):
        for name, facts in outputs.items():
            total = totals.setdefault((name, group), dict.fromkeys(_COUNTS, 0))
            for count in _COUNTS:
                total[count] += facts[count]
    groups = sorted({group for group, side in tokens if side == "train"})
    used = sorted({group for plan in plans for group in plan.group_patterns})
    return {
        "seed": settings.seed,
        "short_tokens": settings.short_tokens,
        "phases": [_phase_facts(settings, plan, tokens, totals) for plan in plans],
        "unused_groups": [group for group in groups if group not in used],
        "valid": {name: sum(total[name] for (output, _), total in totals.items() if output == "valid")
                  for name in ("documents", "tokens", "bytes")},
    }  # fmt: skip


def mixture_table(mixture: Mapping[str, Any]) -> str:
    """The phases of a `mixture.json` as a table, one line for each group."""
    lines = []
    for phase in mixture["phases"]:
        share = f", {phase['short_share']:.0%} in short documents" if phase["tokens"] else ""
        fills = (f", {phase['filling_share']:.0%} in documents of {phase['sequence_length']:,} tokens or more"
                 if phase["sequence_length"] else "")  # fmt: skip
        lines.append(f"phase {phase['name']}: {phase['tokens']:,} tokens of {phase['wanted']:,} wanted{share}{fills}")
        lines.append(f"  {'group':<28}{'available':>16}{'tokens':>16}{'share':>8}{'epochs':>8}{'in all':>8}{'cap':>6}")
        for group in phase["groups"]:
            part = group["tokens"] / phase["tokens"] if phase["tokens"] else 0.0
            lines.append(f"  {group['group']:<28}{group['available']:>16,}{group['tokens']:>16,}{part:>8.1%}"
                         f"{group['epochs']:>8.2f}{group['epochs_so_far']:>8.2f}{group['epochs_cap']:>6g}")  # fmt: skip
        lines += [f"  {pattern['pattern']}: {pattern['planned']:,} tokens instead of {pattern['wanted']:,}; "
                  f"{'others make up for it' if pattern['planned'] < pattern['wanted'] else 'to make up for others'}"
                  for pattern in phase["patterns"] if abs(pattern["planned"] - pattern["wanted"]) > 1]  # fmt: skip
        if phase["shortfall"]:
            lines.append(f"  short of {phase['shortfall']:,} tokens: no group may give more (max_epochs)")
    if mixture["unused_groups"]:
        lines.append(f"in no phase: {', '.join(mixture['unused_groups'])}")
    valid = mixture["valid"]
    lines.append(f"validation: {valid['documents']:,} documents, {valid['tokens']:,} tokens")
    return "\n".join(lines)


def _phase_facts(
    settings: MixSettings,
    plan: PhasePlan,
    tokens: Mapping[tuple[str, str], Mapping[Length, int]],
    totals: Mapping[tuple[str, str], Mapping[str, int]],
) -> dict[str, Any]:
    phase = plan.phase
    groups: list[dict[str, Any]] = []
    for group, pattern in sorted(plan.group_patterns.items()):
        available = sum(tokens[group, "train"].values())
        draws = [draw for draw in plan.draws if draw.group == group]
        planned = sum(draw.stop - draw.start for draw in draws)
        so_far = max((draw.stop / tokens[group, "train"][draw.length] for draw in draws), default=0.0)
        groups.append({
            "group": group, "pattern": pattern, "available": available,
            **{f"available_{length}": tokens[group, "train"][length] for length in LENGTHS},
            "planned": planned, **totals[phase.name, group],
            "epochs": planned / available if available else 0.0,
            "epochs_so_far": so_far, "epochs_cap": epochs_cap(settings, group),
        })  # fmt: skip
    total = sum(group["tokens"] for group in groups)
    of_total = {name: sum(group[f"{name}_tokens"] for group in groups) / max(total, 1) for name in ("short", "filling")}
    return {
        "name": phase.name, "folder": f"{phase.name}/train", "wanted": phase.tokens, "tokens": total,
        "shortfall": plan.shortfall, "documents": sum(group["documents"] for group in groups),
        "sequence_length": phase.sequence_length, "short_share_wanted": phase.short_share,
        "short_share": of_total["short"], "filling_share": of_total["filling"],
        "patterns": [{"pattern": p.pattern, "share": p.share, "wanted": p.wanted, "planned": p.planned}
                     for p in plan.patterns],
        "groups": groups,
    }  # fmt: skip
