"""InternEvo's token files, written and read.

`X.bin` holds JSON lines `{"tokens": [...]}`, one a document; `X.bin.meta` is a saved NumPy array `[documents, 2]`: each
line's first byte and its number of tokens. Files lie in folders `cn/`, `en/` and `code/`, which InternEvo counts apart.
(InternEvo, `tools/tokenizer.py` and `internlm/data/tokenized/single_dataset.py`.)
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import numpy as np

from puyulm.data.documents import replacing
from puyulm.data.shards import TokenShards
from puyulm.errors import DataError
from puyulm.progress import Progress

FOLDERS = {"zh": "cn", "code": "code"}  # of a language; every other goes to "en"
OTHERS = "en"


def export_internevo(shards_folder: Path, out: Path, name: str = "tokens") -> dict[str, int]:
    """Writes token shards as `OUT/cn/NAME.bin`, `OUT/en/NAME.bin`, `OUT/code/NAME.bin`, each with its `.meta`.

    Lines keep the shards' order and hold what the shards hold, bos and eos included. Offsets are int64: InternEvo's own
    tool writes int32, which ends at 2 GiB, and its reader takes both. InternEvo leaves out documents of fewer than 50
    tokens when it reads.

    Args:
        shards_folder: Of `TokenShards.open`.
        out: Receives the folders; only those that get documents are made. Files of the same name are replaced.
        name: Of the files.

    Returns:
        Documents by folder.

    Raises:
        DataError: No shards are there, or they are damaged.
    """
    shards = TokenShards.open(shards_folder)
    folders = [FOLDERS.get(source.language, OTHERS) for source in shards.sources]
    used = sorted({folders[i] for i in np.unique(shards.document_source)})
    meta: dict[str, list[tuple[int, int]]] = {folder: [] for folder in used}
    with ExitStack() as stack, Progress("writing", total=shards.num_tokens, unit="token") as progress:
        files: dict[str, BinaryIO] = {}
        for folder in used:
            index = stack.enter_context(replacing(out / folder / f"{name}.bin.meta"))
            stack.callback(_save, index, meta[folder])  # when the .bin is whole, before the .meta has its name
            path = stack.enter_context(replacing(out / folder / f"{name}.bin"))
            files[folder] = stack.enter_context(open(path, "wb"))
        for i, source in enumerate(shards.document_source.tolist()):
            folder, ids = folders[source], shards.document(i)
            meta[folder].append((files[folder].tell(), len(ids)))
            files[folder].write(b'{"tokens": %s}\n' % json.dumps(ids.tolist()).encode())
            progress.advance(len(ids))
    return {folder: len(rows) for folder, rows in meta.items()}


def read_internevo(path: Path) -> Iterator[np.ndarray]:
    """Yields the ids of each document of a `.bin` file in order, `[N]` int64.

    With a `.meta` beside it (int32 or int64), its rows say where documents stand; without one, every line is one.
    Negative ids are kept: in data for fine-tuning they carry no loss.

    Raises:
        DataError: The file is missing, a line is none of these, or the meta does not fit.
    """
    if not path.is_file():
        raise DataError(f"no tokens at {path}: give an InternEvo .bin file")
    meta = path.with_name(f"{path.name}.meta")
    with open(path, "rb") as file:
        if not meta.is_file():
            for number, line in enumerate(file, start=1):
                yield _tokens(line, f"{path}, line {number}")
            return
        for row, (offset, length) in enumerate(_load(meta)):
            file.seek(offset)
            ids = _tokens(file.readline(), f"{path}, byte {offset:,}")
            if len(ids) != length:
                raise DataError(f"{meta} does not fit {path.name}: row {row} says {length} tokens, found {len(ids)}; "
                                "remove it, or write both files again")  # fmt: skip
            yield ids


def _save(path: Path, rows: list[tuple[int, int]]) -> None:
    with open(path, "wb") as file:
        np.save(file, np.array(rows, dtype=np.int64).reshape(-1, 2))


def _load(path: Path) -> Iterator[tuple[int, int]]:
    try:
        rows = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path} cannot be read as a NumPy array ({error}): write it again, or remove it") from None
    if rows.ndim != 2 or rows.shape[1] < 2 or rows.dtype.kind not in "iu":
        raise DataError(f"{path} holds {rows.dtype} {list(rows.shape)}, expected whole numbers [documents, 2]")
    for row in rows:
        if row[0] < 0:
            raise DataError(f"{path} has an offset below 0: int32 ends at 2 GiB; remove the file to read all lines")
        yield int(row[0]), int(row[-1])


def _tokens(line: bytes, where: str) -> np.ndarray:
    try:
        return np.array(json.loads(line)["tokens"], dtype=np.int64).reshape(-1)
    except (ValueError, TypeError, KeyError, OverflowError):
        raise DataError(f'{where}: expected {{"tokens": [...]}}, found {line[:40]!r}') from None
