"""`clusters.json`: what the stage found, for the report and for people who choose the threshold.

- method, parameters, keep: Of the settings.
- documents: That came in.
- clusters, duplicates: Clusters, and documents that left for another of their cluster.
- earlier: Documents that left for an earlier crawl's.
- s_curve: [[similarity, probability that a pair is compared], ...], for minhash.
- sizes: [[least, greatest, clusters, documents], ...], clusters by size in bins of powers of two.
- largest: The 50 largest clusters, largest first.
- sample: A fixed random sample of 50 others, in the order of their first documents.

A cluster has number, size and members (at most 20): the document that stayed, then the first others. A member has id,
shard and row (its place in the input), kept (true for the one that stayed), similarity (estimated, to the one that
stayed), language, source, url, date, characters, and of the first 4 members text (the first 1500 characters).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from puyulm.data.dedup.index import ROW_BITS, DocumentIndex
from puyulm.data.dedup.minhash import s_curve
from puyulm.data.dedup.settings import DedupSettings
from puyulm.data.documents import Document, replacing
from puyulm.recipe import recipe_dict

CLUSTERS_FILE = "clusters.json"
TEXTS = 4  # members of a cluster that are shown with their texts
TEXT_CHARACTERS = 1500


def shown_members(figures: Mapping[str, Any]) -> dict[int, bool]:
    """Ordinals of the documents that the report needs, and whether with their texts.

    Args:
        figures: Of `clusters.find_clusters`.
    """
    shown: dict[int, bool] = {}
    for cluster in [*figures["largest"], *figures["sample"]]:
        for place, ordinal in enumerate(cluster["members"]):
            shown[ordinal] = place < TEXTS
    return shown


def member_of(document: Document, with_text: bool) -> dict[str, Any]:
    """What the report needs of a document."""
    facts: dict[str, Any] = {
        "id": document.id, "language": document.language, "source": document.source, "url": document.url,
        "date": document.date, "characters": len(document.text),
    }  # fmt: skip
    return {**facts, "text": document.text[:TEXT_CHARACTERS]} if with_text else facts


def write_clusters(
    folder: Path, settings: DedupSettings, index: DocumentIndex, figures: Mapping[str, Any], members: Mapping[int, Any]
) -> None:
    """Writes `clusters.json`.

    Args:
        folder: The stage's.
        settings: Of the stage.
        index: Of the input's documents.
        figures: Of `clusters.find_clusters`.
        members: What `member_of` gave, by ordinal.
    """

    def described(cluster: Mapping[str, Any]) -> dict[str, Any]:
        ordinals = np.array(cluster["members"], dtype=np.int64)
        items = index.items(ordinals)
        similar = index.similarities(items, np.full_like(items, items[0]), settings.method)
        return {
            "number": cluster["number"], "size": cluster["size"],
            "members": [
                {"shard": item >> ROW_BITS, "row": item & ((1 << ROW_BITS) - 1), "kept": ordinal == cluster["kept"],
                 "similarity": similarity, **members[ordinal]}
                for ordinal, item, similarity in zip(ordinals.tolist(), items.tolist(), similar, strict=True)
            ],
        }  # fmt: skip

    minhash = settings.minhash if settings.method == "minhash" else None
    facts = {
        "method": settings.method, "parameters": recipe_dict(minhash or settings.exact), "keep": settings.keep,
        "documents": index.documents, **{name: figures[name] for name in ("clusters", "duplicates", "earlier")},
        "s_curve": s_curve(minhash.bands, minhash.rows) if minhash else None, "sizes": figures["sizes"],
        **{name: [described(cluster) for cluster in figures[name]] for name in ("largest", "sample")},
    }  # fmt: skip
    with replacing(folder / CLUSTERS_FILE) as path:
        path.write_text(json.dumps(facts, ensure_ascii=True, indent=1), encoding="utf-8")
