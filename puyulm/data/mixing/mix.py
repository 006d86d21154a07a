"""The stage `mix`: token groups to a folder of token shards for each phase of training.

The shards of the groups are measured (tokens in short and in long documents), the phases planned, the documents drawn
shard by shard, and the mixture written. Drawn documents that stand near each other form blocks; blocks are shuffled
over the shards of a phase, and documents within a shard. So a task reads few stretches of each source, holds one shard
in memory, and every shard is a fair sample of the phase.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from puyulm.data.documents import replacing
from puyulm.data.mixing.draw import DRAWS_FOLDER, Output, SourceShard, draw_task, measure_task
from puyulm.data.mixing.plan import LENGTHS, Draw, Length, PhasePlan, plan_phases
from puyulm.data.mixing.settings import MixSettings
from puyulm.data.mixing.table import mixture_facts, mixture_table
from puyulm.data.mixing.tokenize import load_groups
from puyulm.data.pipeline.stage import StageRun
from puyulm.data.shard_writer import META_FILE, DocumentEnds, ShardFile, SourceTable, token_dtype, write_meta
from puyulm.errors import DataError

MIXTURE_FILE, VALID = "mixture.json", "valid"


@dataclass(frozen=True)
class _WriteTask:
    output: str
    folder: str
    name: str
    seed: list[int]
    blocks: np.ndarray  # [B, 3] int64: source shard, first and last row of its drawn documents


def mix_stage(settings: MixSettings, stage: StageRun) -> None:
    """Runs the stage: `PHASE/train` for each phase, `valid` once, and `mixture.json`; prints the plan as a table.

    Raises:
        DataError: The stage before is not `tokenize`, a pattern matches no group, or nothing is drawn for a phase.
    """
    if not (stage.folder / MIXTURE_FILE).exists():  # else only its draws were left when it was interrupted
        if stage.before is None:
            raise DataError(f"{stage.label}: there is no stage before; put a stage 'tokenize' there")
        mixture = _mix(settings, stage, stage.before)
        with replacing(stage.folder / MIXTURE_FILE) as path:
            path.write_text(json.dumps(mixture, ensure_ascii=False, indent=1), encoding="utf-8")
    shutil.rmtree(stage.folder / DRAWS_FOLDER, ignore_errors=True)
    print(mixture_table(json.loads((stage.folder / MIXTURE_FILE).read_text(encoding="utf-8"))), file=sys.stderr)


def _mix(settings: MixSettings, stage: StageRun, before: Path) -> dict[str, Any]:
    shards, metas = _source_shards(before)
    measure = partial(measure_task, short_tokens=settings.short_tokens)
    measured = stage.map("measure", measure, shards, [shard.documents for shard in shards])
    tokens = _totals(shards, [result["tokens"] for result in measured])
    train = {group: tokens[group, "train"] for group, side in sorted(tokens) if side == "train"}
    plans = plan_phases(settings, train)
    outputs = _outputs(plans, tokens)
    draw = partial(draw_task, outputs=outputs, tokens=tokens, settings=settings, folder=stage.folder, metas=metas)
    drawn = stage.map("draw", draw, shards, [shard.documents for shard in shards])
    if empty := [o.name for o in outputs if not sum(result["drawn"][o.name]["tokens"] for result in drawn)]:
        raise DataError(f"{stage.label}: nothing is drawn for {empty[0]}: its groups are empty or used up")
    numbers = {output.name: _source_numbers([result["drawn"][output.name] for result in drawn]) for output in outputs}
    tasks = [
        task for place, output in enumerate(outputs) for task in _plan_shards(settings, stage, place, output, shards)
    ]
    write = partial(_write_task, shards=shards, folder=stage.folder, numbers=numbers, metas=metas)
    written = iter(stage.map("write", write, tasks, [int((t.blocks[:, 2] - t.blocks[:, 1]).sum()) for t in tasks]))
    meta = metas[str(shards[0].folder)]
    for output in outputs:
        files = [{"name": task.name, **next(written)["facts"]} for task in tasks if task.folder == output.folder]
        table = numbers[output.name].rows()
        ends = DocumentEnds(meta["bos_id"], meta["eos_id"])
        write_meta(stage.folder / output.folder, files, table, meta["vocab_size"], meta["tokenizer_hash"], ends)
    owners = [(shard.group, shard.side) for shard in shards]
    return mixture_facts(settings, plans, tokens, owners, [result["drawn"] for result in drawn])


def _source_shards(before: Path) -> tuple[list[SourceShard], dict[str, dict[str, Any]]]:
    """All shards of the stage before, by group, side and name; and what each folder's `meta.json` says."""
    groups = load_groups(before)["groups"]
    shards: list[SourceShard] = []
    metas: dict[str, dict[str, Any]] = {}
    for group, side in sorted((name, side) for name, sides in groups.items() for side in sides):
        folder = before / groups[group][side]["folder"]
        meta = json.loads((folder / META_FILE).read_text(encoding="utf-8"))
        metas[str(folder)] = {name: value for name, value in meta.items() if name != "shards"}
        for facts in meta["shards"]:
            size = facts["documents"], facts["tokens"]
            shards.append(SourceShard(len(shards), group, side, folder, facts["name"], *size))
    return shards, metas


def _totals(
    shards: Sequence[SourceShard], measured: Sequence[Mapping[Length, int]]
) -> dict[tuple[str, str], dict[Length, int]]:
    totals: dict[tuple[str, str], dict[Length, int]] = {}
    for shard, tokens in zip(shards, measured, strict=True):
        total = totals.setdefault((shard.group, shard.side), {"short": 0, "long": 0})
        for length in LENGTHS:
            total[length] += tokens[length]
    return totals


def _outputs(plans: Sequence[PhasePlan], tokens: Mapping[tuple[str, str], Mapping[Length, int]]) -> list[Output]:
    """The phases' folders, and that of the validation documents of all groups that a phase uses, each once."""
    outputs = [Output(plan.phase.name, f"{plan.phase.name}/train", plan.draws, "train", plan.phase.sequence_length)
               for plan in plans]  # fmt: skip
    used = sorted({draw.group for plan in plans for draw in plan.draws})
    valid = [Draw(group, length, 0, tokens[group, VALID][length]) for group in used if (group, VALID) in tokens
             for length in LENGTHS if tokens[group, VALID][length]]  # fmt: skip
    return [*outputs, *([Output(VALID, VALID, tuple(valid), VALID, None)] if valid else [])]


def _source_numbers(drawn: Sequence[Mapping[str, Any]]) -> SourceTable:
    table = SourceTable()
    for facts in drawn:
        for row in facts["sources"]:
            table.add_counts(*row)
    return table


def _plan_shards(
    settings: MixSettings, stage: StageRun, place: int, output: Output, shards: Sequence[SourceShard]
) -> list[_WriteTask]:
    """Shuffles the blocks of an output and divides them into shards of about as many tokens."""
    parts = []
    for shard in shards:
        rows = np.load(stage.folder / DRAWS_FOLDER / f"{shard.number:05d}.blocks.npy")
        rows = rows[rows[:, 0] == place]
        parts.append(np.column_stack([np.full(len(rows), shard.number), rows[:, 1:]]))
    blocks = np.random.default_rng([settings.seed, place]).permutation(np.concatenate(parts))
    total = int(blocks[:, 3].sum())
    count = max(round(total / settings.shard_tokens), 1)
    owner = (np.cumsum(blocks[:, 3]) - blocks[:, 3]) * count // total
    chosen = [blocks[owner == number, :3] for number in range(count)]
    return [_WriteTask(output.name, output.folder, f"{number:05d}", [settings.seed, place, number], rows)
            for number, rows in enumerate(rows for rows in chosen if len(rows))]  # fmt: skip


def _write_task(
    task: _WriteTask, shards: Sequence[SourceShard], folder: Path, numbers: Mapping[str, SourceTable],
    metas: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:  # fmt: skip
    """Gathers the documents of one shard's blocks, reading each source from front to back, in a random order."""
    rows = []
    for number in sorted(set(task.blocks[:, 0].tolist())):
        mine = task.blocks[task.blocks[:, 0] == number]
        documents = np.load(folder / DRAWS_FOLDER / f"{number:05d}.documents.npy", mmap_mode="r")
        chosen = np.concatenate([documents[start:stop] for _, start, stop in sorted(mine.tolist())])
        index = shards[number].index()
        table = numbers[task.output]
        renumbered = np.array([table.number(row["source"], row["language"])
                               for row in metas[str(shards[number].folder)]["sources"]], dtype=np.int64)  # fmt: skip
        rows.append(np.column_stack([
            np.full(len(chosen), number), index[chosen, 0], index[chosen + 1, 0] - index[chosen, 0],
            index[chosen + 1, 1] - index[chosen, 1], renumbered[index[chosen, 2]],
        ]))  # fmt: skip
    table_rows = np.concatenate(rows)
    order = np.random.default_rng(task.seed).permutation(len(table_rows))
    lengths, sizes, sources = (table_rows[order, column] for column in (2, 3, 4))
    begins = np.empty(len(order), dtype=np.int64)
    begins[order] = np.cumsum(lengths) - lengths
    vocab_size = int(metas[str(shards[0].folder)]["vocab_size"])
    tokens = _gather(table_rows, begins, shards, np.empty(int(lengths.sum()), dtype=token_dtype(vocab_size)))
    out = folder / task.folder
    names = [out / f"{task.name}{suffix}" for suffix in (".bin", ".idx")]
    with replacing(names[0]) as data, replacing(names[1]) as ends, ShardFile(data, ends, vocab_size) as shard:
        shard.add(tokens, lengths, sizes, sources)
    return {"facts": shard.facts, "files": {str(path.relative_to(folder)): path.stat().st_size for path in names}}


def _gather(rows: np.ndarray, begins: np.ndarray, shards: Sequence[SourceShard], tokens: np.ndarray) -> np.ndarray:
    """Copies each document (source shard, first token, length) to where it begins in `tokens`."""
    for number in sorted(set(rows[:, 0].tolist())):
        source = np.memmap(shards[number].folder / f"{shards[number].name}.bin", dtype=tokens.dtype, mode="r")
        mine = np.flatnonzero(rows[:, 0] == number)
        for start, length, begin in np.column_stack([rows[mine, 1:3], begins[mine]]).tolist():
            tokens[begin : begin + length] = source[start : start + length]
    return tokens
