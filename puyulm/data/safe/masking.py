"""Masking: personal data and keys are replaced by placeholders that say what stood there."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Literal, get_args

from puyulm.data.safe.keys import find_keys
from puyulm.data.safe.personal import (
    NUMBER_KINDS,
    Span,
    find_emails,
    find_ips,
    find_numbers,
    find_passports,
    find_plates,
)

Kind = Literal[
    "key", "email", "ip", "resident_id", "ssn", "bank_card", "phone", "resident_id_15", "passport", "plate"
]  # fmt: skip
KINDS: tuple[Kind, ...] = get_args(Kind)
"""What can be masked. Where two kinds claim the same characters, the earlier in this order has them."""
_RANK: Mapping[str, int] = {kind: rank for rank, kind in enumerate(KINDS)}

PLACEHOLDERS: Mapping[str, str] = {
    "key": "<key>", "email": "<email>", "ip": "<ip_address>", "resident_id": "<id_number>", "ssn": "<id_number>",
    "bank_card": "<bank_card>", "phone": "<phone>", "resident_id_15": "<id_number>", "passport": "<passport>",
    "plate": "<number_plate>",
}  # fmt: skip


def mask(text: str, kinds: Collection[str], placeholders: Mapping[str, str]) -> tuple[str, dict[str, int]]:
    """Replaces what is found of the given kinds.

    Args:
        text: Any text; the time taken is in proportion to its length.
        kinds: Some of `KINDS`.
        placeholders: What to put in place, by kind.

    Returns:
        The masked text, and how many of each kind were masked, kinds in the order of `KINDS`.
    """
    chosen = _without_overlaps(sorted((_RANK[kind], *span) for kind, span in _find(text, kinds)))
    if not chosen:
        return text, {}
    pieces, position = [], 0
    counts = dict.fromkeys(KINDS, 0)
    for start, end, rank in chosen:
        pieces += [text[position:start], placeholders[KINDS[rank]]]
        position = end
        counts[KINDS[rank]] += 1
    return "".join([*pieces, text[position:]]), {kind: count for kind, count in counts.items() if count}


def _without_overlaps(claims: Iterable[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """Of (rank, start, end), by rank, those that no earlier one overlaps; as (start, end, rank), by place."""
    chosen: list[tuple[int, int, int]] = []
    for rank, start, end in claims:
        place = bisect_left(chosen, (start,))
        free_before = place == 0 or chosen[place - 1][1] <= start
        if free_before and (place == len(chosen) or end <= chosen[place][0]):
            chosen.insert(place, (start, end, rank))
    return chosen


def _find(text: str, kinds: Collection[str]) -> Iterator[tuple[str, Span]]:
    for kind, find in (("key", find_keys), ("email", find_emails), ("ip", find_ips), ("passport", find_passports),
                       ("plate", find_plates)):  # fmt: skip
        if kind in kinds:
            yield from ((kind, span) for span in find(text))
    if any(kind in kinds for kind, _ in NUMBER_KINDS):
        yield from find_numbers(text, kinds)
