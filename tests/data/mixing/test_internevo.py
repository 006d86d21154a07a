"""InternEvo's files: read as InternEvo reads them, and back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from puyulm.data.documents import Document
from puyulm.data.mixing.internevo import export_internevo, read_internevo
from puyulm.data.shards import tokenize_documents
from puyulm.errors import DataError
from puyulm.text.tokenizer import Tokenizer

LANGUAGES = ["zh", "en", "code", "fr", "zh", "code", "en"]


@pytest.fixture
def exported(tmp_path: Path, tokenizer_folder: Path) -> tuple[list[list[int]], Path]:
    documents = [Document(str(i), f"text {i} " * (i + 1), language, "s") for i, language in enumerate(LANGUAGES)]
    shards = tokenize_documents(
        documents, Tokenizer.load(tokenizer_folder), tmp_path / "shards", eos=True, shard_tokens=40
    )
    assert export_internevo(shards.folder, tmp_path / "out", "part0") == {"cn": 2, "code": 2, "en": 3}
    return [shards.document(i).tolist() for i in range(len(documents))], tmp_path / "out"


def test_files_are_what_internevo_reads(exported: tuple[list[list[int]], Path]) -> None:
    """Its reader: offsets are column 0, lengths the last column; seek, read a line, parse, take "tokens"."""
    documents, out = exported
    assert sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file()) == [
        f"{folder}/part0.bin{suffix}" for folder in ("cn", "code", "en") for suffix in ("", ".meta")]  # fmt: skip
    for folder, languages in (("cn", ["zh"]), ("code", ["code"]), ("en", ["en", "fr"])):
        with open(out / folder / "part0.bin.meta", "rb") as file:
            meta = np.load(file)
        assert meta.dtype == np.int64 and meta.shape[1] == 2
        expected = [ids for ids, language in zip(documents, LANGUAGES, strict=True) if language in languages]
        with open(out / folder / "part0.bin", "rb") as file:
            for (offset, length), ids in zip(meta, expected, strict=True):
                file.seek(offset)
                assert json.loads(file.readline().decode())["tokens"] == ids
                assert length == len(ids)
            assert not file.read()


@pytest.mark.parametrize("dtype", [np.int32, np.int64, None])
def test_reading_back(exported: tuple[list[list[int]], Path], dtype: type | None) -> None:
    documents, out = exported
    path, meta = out / "en" / "part0.bin", out / "en" / "part0.bin.meta"
    rows = np.load(meta)
    if dtype is None:
        meta.unlink()
    else:
        with open(meta, "wb") as file:
            np.save(file, rows.astype(dtype))
    found = [ids.tolist() for ids in read_internevo(path)]
    assert found == [ids for ids, language in zip(documents, LANGUAGES, strict=True) if language in ("en", "fr")]


def test_the_meta_may_choose_and_order(exported: tuple[list[list[int]], Path]) -> None:
    path = exported[1] / "en" / "part0.bin"
    all_ids = [ids.tolist() for ids in read_internevo(path)]
    rows = np.load(f"{path}.meta")
    with open(f"{path}.meta", "wb") as file:
        np.save(file, rows[[2, 0]])
    assert [ids.tolist() for ids in read_internevo(path)] == [all_ids[2], all_ids[0]]


def test_negative_tokens_are_kept(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b'{"tokens": [-5, 7]}\n{"tokens":[1]}\n')
    assert [ids.tolist() for ids in read_internevo(tmp_path / "a.bin")] == [[-5, 7], [1]]


def test_damage_is_named(exported: tuple[list[list[int]], Path], tmp_path: Path) -> None:
    path = exported[1] / "cn" / "part0.bin"
    meta, rows = Path(f"{path}.meta"), np.load(f"{path}.meta")
    for content, message in ((np.add(rows, [0, 1]), "does not fit part0.bin: row 0"),
                             (np.add(rows, [1, 0]), "byte 1: expected"),
                             (np.subtract(rows, [1, 0]), "below 0"), (rows.astype(float), "expected whole numbers"),
                             (rows[:, :1], "expected whole numbers")):  # fmt: skip
        with open(meta, "wb") as file:
            np.save(file, content)
        with pytest.raises(DataError, match=message):
            list(read_internevo(path))
    meta.write_bytes(b"junk")
    with pytest.raises(DataError, match="cannot be read as a NumPy array"):
        list(read_internevo(path))
    meta.unlink()
    for line in (
        b"junk\n",
        b"[1]\n",
        b'{"tokens": "x"}\n',
        b'{"tokens": [[1], 2]}\n',
        b'{"tokens": [1e400]}\n',
        b"\xff\n",
    ):
        path.write_bytes(b'{"tokens": [1]}\n' + line)
        with pytest.raises(DataError, match="line 2: expected"):
            list(read_internevo(path))
    with pytest.raises(DataError, match="no tokens at"):
        next(read_internevo(tmp_path / "none.bin"))
