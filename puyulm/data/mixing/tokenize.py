"""The stage `tokenize`: tasks encode a few input shards each, then their parts are joined to folders of token shards.

Each task writes a part, a `.bin` and an `.idx`, for every group and side that it meets. The parts of one group and
side, in the tasks' order, are then copied end to end into shards. Tasks depend on the input shards alone, so that the
result is the same whatever the number of workers.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from puyulm.data.documents import Document, read_documents, replacing
from puyulm.data.mixing.settings import TokenizeSettings
from puyulm.data.pipeline.counts import Counts, Dropped
from puyulm.data.pipeline.stage import StageRun, batches, group_by_size
from puyulm.data.shard_writer import (
    DocumentEnds,
    EncodedBatch,
    ShardFile,
    SourceTable,
    document_ends,
    encode_documents,
    token_dtype,
    write_meta,
)
from puyulm.data.shards import tokenizer_fingerprint
from puyulm.data.split import is_validation
from puyulm.errors import DataError

if TYPE_CHECKING:
    from puyulm.text.tokenizer import Tokenizer

TOKENS_FOLDER, PARTS_FOLDER, GROUPS_FILE = "tokens", "parts", "groups.json"
MAX_GROUPS = 200  # of each task: every one keeps two files open
ALL = "all"  # the name of the only group where nothing tells groups apart
_COPY_BYTES = 1 << 23


def tokenize_stage(settings: TokenizeSettings, stage: StageRun) -> None:
    """Runs the stage: `tokens/GROUP/train` and `tokens/GROUP/valid` for `TokenShards.open`, and `groups.json`.

    Raises:
        DataError: No document has text, a tokenizer without the wanted bos or eos, or too many groups.
        TokenizerError: The tokenizer cannot be loaded.
    """
    if not (stage.folder / GROUPS_FILE).exists():  # else only its parts were left when it was interrupted
        _tokenize(settings, stage)
    shutil.rmtree(stage.folder / PARTS_FOLDER, ignore_errors=True)


def group_of(document: Document, group_by: Sequence[str]) -> str:
    """The name of a document's group: the values of `group_by` with slashes between, each fit for a folder."""
    values = {"source": document.source, "language": document.language, "tier": document.metadata.get("tier", "")}
    return "/".join(_folder_name(str(values[name])) for name in group_by) or ALL


def load_groups(folder: Path) -> dict[str, Any]:
    """What a finished stage `tokenize` holds: its `groups.json`.

    Returns:
        "groups" (name -> side -> folder below the stage's, documents, tokens, bytes), "tokenizer_hash", "vocab_size".

    Raises:
        DataError: The folder is not that of a finished stage `tokenize`.
    """
    try:
        return dict(json.loads((folder / GROUPS_FILE).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        raise DataError(
            f"no token groups at {folder} ({GROUPS_FILE} is missing): put a stage 'tokenize' there"
        ) from None


def _tokenize(settings: TokenizeSettings, stage: StageRun) -> None:
    from puyulm.text.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(settings.tokenizer)
    made = _Made(tokenizer.vocab_size, tokenizer_fingerprint(tokenizer),
                 document_ends(tokenizer, settings.bos, settings.eos))  # fmt: skip
    inputs = group_by_size(stage.inputs, stage.task_bytes)
    encode = partial(_encode_task, settings=settings, folder=stage.folder, made=made)
    sizes = [sum(path.stat().st_size for path in paths) for paths in inputs]
    results = stage.map("encode", encode, list(enumerate(inputs)), sizes)
    parts: dict[tuple[str, str], list[_Part]] = {}
    for part in (_Part(**part) for result in results for part in result["parts"]):
        parts.setdefault((part.group, part.side), []).append(part)
    if not parts:
        raise DataError(f"{stage.label}: none of the {len(stage.inputs)} input shards has a document with text")
    folders = [_plan_folder(parts[key], settings.shard_tokens) for key in sorted(parts)]
    tasks = [task for planned in folders for task in planned.tasks]
    join = partial(_join_task, folder=stage.folder, itemsize=token_dtype(made.vocab_size).itemsize)
    facts = iter(stage.map("join", join, tasks, [sum(part.tokens for part in task.parts) for task in tasks]))
    groups: dict[str, dict[str, Any]] = {}
    for planned in folders:
        shards = [{"name": task.name, **next(facts)["facts"]} for task in planned.tasks]
        write_meta(stage.folder / planned.folder, shards, planned.sources.rows(), made.vocab_size, made.tokenizer_hash,
                   made.ends)  # fmt: skip
        total = {name: sum(shard[name] for shard in shards) for name in ("documents", "tokens", "bytes")}
        groups.setdefault(planned.group, {})[planned.side] = {"folder": planned.folder, **total}
    with replacing(stage.folder / GROUPS_FILE) as path:
        content = {"groups": groups, "tokenizer_hash": made.tokenizer_hash, "vocab_size": made.vocab_size,
                   "group_by": list(settings.group_by)}  # fmt: skip
        path.write_text(json.dumps(content, ensure_ascii=False, indent=1), encoding="utf-8")


@dataclass(frozen=True)
class _Made:
    """What all shards of a run have in common."""

    vocab_size: int
    tokenizer_hash: str
    ends: DocumentEnds


@dataclass(frozen=True)
class _Part:
    """What one task gave one group and side; the files' names lack .bin and .idx."""

    group: str
    side: str
    name: str
    documents: int
    tokens: int
    bytes: int
    sources: list[list[Any]]  # source, language, documents, tokens, bytes


@dataclass(frozen=True)
class _JoinTask:
    folder: str
    name: str
    parts: list[_Part]
    sources: list[list[int]]  # for each part, the folder's number of each of its sources


@dataclass(frozen=True)
class _Folder:
    group: str
    side: str
    folder: str
    sources: SourceTable
    tasks: list[_JoinTask]


def _encode_task(
    task: tuple[int, Sequence[Path]], settings: TokenizeSettings, folder: Path, made: _Made
) -> dict[str, Any]:
    number, paths = task
    tokenizer = _load(str(settings.tokenizer), made.tokenizer_hash)
    counts = Counts()
    parts: dict[tuple[str, str], _PartWriter] = {}
    with contextlib.ExitStack() as stack:
        for batch in batches(document for path in paths for document in read_documents(path)):
            documents = [document for document in batch if _count(document, counts)]
            encoded = encode_documents(documents, tokenizer, made.ends)
            for key, some in _by_key(encoded, [_key(document, settings) for document in documents]):
                if key not in parts:
                    if len(parts) >= 2 * MAX_GROUPS:
                        raise DataError(f"over {MAX_GROUPS} groups of tokens: group by fewer things than "
                                        f"{', '.join(settings.group_by)}")  # fmt: skip
                    name = f"{PARTS_FOLDER}/{number:05d}-{len(parts):03d}"
                    parts[key] = stack.enter_context(_PartWriter(folder, name, made.vocab_size))
                parts[key].add(some)
                counts.note("tokens", len(some.tokens))
                counts.note(f"tokens: {'/'.join(key)}", len(some.tokens))
    results = [writer.result(*key) for key, writer in parts.items()]
    files = [folder / f"{result['name']}{suffix}" for result in results for suffix in (".bin", ".idx")]
    return {"counts": asdict(counts), "parts": results,
            "files": {str(path.relative_to(folder)): path.stat().st_size for path in files}}  # fmt: skip


def _count(document: Document, counts: Counts) -> bool:
    """Counts a document, and tells whether it has text to encode."""
    counts.add_input(document.num_bytes)
    counts.add(document if document.text else Dropped(document, "tokenize: empty"))
    return bool(document.text)


def _key(document: Document, settings: TokenizeSettings) -> tuple[str, str]:
    held_out = is_validation(document.id, settings.validation_fraction, settings.seed)
    return group_of(document, settings.group_by), "valid" if held_out else "train"


def _by_key(batch: EncodedBatch, keys: Sequence[tuple[str, str]]) -> Iterable[tuple[tuple[str, str], EncodedBatch]]:
    """A batch's documents by key, in their order."""
    known = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    numbers = np.array([known[key] for key in keys], dtype=np.int64)
    token_numbers = np.repeat(numbers, batch.lengths)
    for key, number in known.items():
        chosen = numbers == number
        documents = [document for document, wanted in zip(batch.documents, chosen, strict=True) if wanted]
        yield (
            key,
            EncodedBatch(documents, batch.tokens[token_numbers == number], batch.lengths[chosen], batch.sizes[chosen]),
        )


class _PartWriter(contextlib.ExitStack):
    """Writes a part's two files, which appear when it ends well."""

    def __init__(self, folder: Path, name: str, vocab_size: int) -> None:
        super().__init__()
        self.name = name
        self._sources = SourceTable()
        paths = [self.enter_context(replacing(folder / f"{name}{suffix}")) for suffix in (".bin", ".idx")]
        self._shard = self.enter_context(ShardFile(paths[0], paths[1], vocab_size))

    def add(self, batch: EncodedBatch) -> None:
        self._shard.add(batch.tokens, batch.lengths, batch.sizes, self._sources.add(batch))

    def result(self, group: str, side: str) -> dict[str, Any]:
        facts = {name: self._shard.facts[name] for name in ("documents", "tokens", "bytes")}
        sources = [[row.source, row.language, row.documents, row.tokens, row.bytes] for row in self._sources.rows()]
        return asdict(_Part(group, side, self.name, **facts, sources=sources))


def _plan_folder(parts: Sequence[_Part], shard_tokens: int) -> _Folder:
    """Which parts go into which shard, and how sources are numbered in the folder."""
    group, side = parts[0].group, parts[0].side
    folder = "/".join([TOKENS_FOLDER, *([] if group == ALL else [group]), side])
    sources = SourceTable()
    numbers = [[sources.add_counts(*row) for row in part.sources] for part in parts]
    shards: list[list[int]] = []
    size = shard_tokens
    for index, part in enumerate(parts):
        if size + part.tokens > shard_tokens:
            shards.append([])
            size = 0
        shards[-1].append(index)
        size += part.tokens
    tasks = [_JoinTask(folder, f"{number:05d}", [parts[i] for i in shard], [numbers[i] for i in shard])
             for number, shard in enumerate(shards)]  # fmt: skip
    return _Folder(group, side, folder, sources, tasks)


def _join_task(task: _JoinTask, folder: Path, itemsize: int) -> dict[str, Any]:
    """Copies parts end to end into one shard."""
    digest = hashlib.blake2b(digest_size=16)
    out = folder / task.folder
    with replacing(out / f"{task.name}.bin") as path, open(path, "wb") as file:
        for part in task.parts:
            with open(folder / f"{part.name}.bin", "rb") as source:
                while block := source.read(_COPY_BYTES):
                    digest.update(block)
                    file.write(block)
        if file.tell() != itemsize * sum(part.tokens for part in task.parts):
            raise DataError(f"a part of {out / task.name}.bin was damaged: run the same command again")
    rows, total = [], np.zeros(2, dtype=np.int64)
    for part, numbers in zip(task.parts, task.sources, strict=True):
        index = np.fromfile(folder / f"{part.name}.idx", dtype="<i8").reshape(-1, 3)[:-1]
        index[:, :2] += total
        index[:, 2] = np.array(numbers, dtype=np.int64)[index[:, 2]]
        rows.append(index)
        total += (part.tokens, part.bytes)
    data = np.concatenate([*rows, np.array([[*total, -1]])]).astype("<i8").tobytes()
    digest.update(data)
    with replacing(out / f"{task.name}.idx") as path:
        path.write_bytes(data)
    facts = {"documents": sum(part.documents for part in task.parts), "tokens": int(total[0]), "bytes": int(total[1]),
             "hash": digest.hexdigest()}  # fmt: skip
    files = [out / f"{task.name}{suffix}" for suffix in (".bin", ".idx")]
    return {"facts": facts, "files": {str(path.relative_to(folder)): path.stat().st_size for path in files}}


@functools.lru_cache(maxsize=2)
def _load(path: str, fingerprint: str) -> Tokenizer:
    """The tokenizer, once in each process; the fingerprint tells a changed file from the one loaded before."""
    from puyulm.text.tokenizer import Tokenizer

    return Tokenizer.load(path)


def _folder_name(value: str) -> str:
    name = "".join(c if c.isalnum() or c in "-_+." else "_" for c in value)
    return name if name.strip(".") else "_" * len(name) or "none"
