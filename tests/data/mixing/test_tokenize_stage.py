"""The stage `tokenize`: the same shards as one pass over the documents gives, whatever the tasks and workers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from puyulm.data.documents import Document
from puyulm.data.mixing.settings import TokenizeSettings
from puyulm.data.mixing.tokenize import group_of, load_groups
from puyulm.data.pipeline.counts import Counts
from puyulm.data.pipeline.stage import StageRun
from puyulm.data.shards import TokenShards, tokenize_documents, tokenizer_fingerprint
from puyulm.data.split import is_validation
from puyulm.data.stream import Mixture, TokenStream
from puyulm.errors import DataError
from puyulm.text.tokenizer import Tokenizer
from tests.data.mixing.conftest import files_of, made_documents
from tests.text.small_tokenizers import small_tokenizer

Run = Callable[..., StageRun]


@pytest.mark.parametrize(("bos", "eos"), [(True, False), (True, True), (False, False)])
def test_same_as_one_pass(run_stage: Run, tokenizer_folder: Path, tmp_path: Path, bos: bool, eos: bool) -> None:
    documents = made_documents(60)
    stage = run_stage(TokenizeSettings(tokenizer_folder, bos, eos, validation_fraction=0.2), "t", documents)
    tokenizer = Tokenizer.load(tokenizer_folder)
    for side in ("train", "valid"):
        expected = [d for d in documents if is_validation(d.id, 0.2) == (side == "valid")]
        tokenize_documents(expected, tokenizer, tmp_path / side, bos=bos, eos=eos)
        serial, stage_files = files_of(tmp_path / side), files_of(stage.folder / "tokens" / side)
        assert serial["00000.bin"] == stage_files["00000.bin"] and serial["00000.idx"] == stage_files["00000.idx"]
        metas = [json.loads(files["meta.json"]) for files in (serial, stage_files)]
        assert metas[0] == metas[1]
        TokenShards.open(stage.folder / "tokens" / side).verify()


def test_groups_hold_their_documents(token_stage: Run, tokenizer_folder: Path) -> None:
    documents = made_documents(90)
    stage = token_stage(documents, validation_fraction=0.1, group_by=("language", "tier"), shard_tokens=300)
    tokenizer = Tokenizer.load(tokenizer_folder)
    groups = load_groups(stage.folder)["groups"]
    assert sorted(groups) == ["code/high", "code/moderate", "en/none", "zh/none"]
    for group, sides in groups.items():
        for side, facts in sides.items():
            shards = TokenShards.open(stage.folder / facts["folder"])
            mine = [d for d in documents if group_of(d, ("language", "tier")) == group]
            mine = [d for d in mine if is_validation(d.id, 0.1) == (side == "valid")]
            found = [shards.document(i).tolist() for i in range(shards.num_documents)]
            assert found == [[tokenizer.bos_id, *tokenizer.encode(d.text)] for d in mine]
            names = [shards.sources[i] for i in shards.document_source]
            assert [(s.source, s.language) for s in names] == [(d.source, d.language) for d in mine]
            assert (facts["documents"], facts["tokens"]) == (shards.num_documents, shards.num_tokens)
            shards.verify()
            shards.check_tokenizer(tokenizer)
    assert len(list((stage.folder / "tokens/en/none/train").glob("*.bin"))) > 1
    assert not (stage.folder / "parts").exists()


def test_workers_and_order_change_nothing(run_stage: Run, tokenizer_folder: Path) -> None:
    settings = TokenizeSettings(tokenizer_folder, group_by=("source",), validation_fraction=0.1, shard_tokens=400)
    made = [run_stage(settings, name, made_documents(40), workers=workers) for name, workers in (("a", 1), ("b", 2))]
    files = [files_of(stage.folder) for stage in made]
    assert files[0] == files[1]
    assert "tokens/web_0/train/00001.bin" in files[0] and "groups.json" in files[0]


@pytest.mark.parametrize("after", [1, 4, 8, 10])
def test_interrupted_runs_end_the_same(
    run_stage: Run, tokenizer_folder: Path, interrupt: Callable[[int], Any], after: int
) -> None:
    settings = TokenizeSettings(tokenizer_folder, group_by=("language",), validation_fraction=0.1)
    documents = made_documents(40)  # 8 tasks that encode, and one that joins for each group and side
    whole = files_of(run_stage(settings, "whole", documents).folder)
    with interrupt(after), pytest.raises(KeyboardInterrupt):
        run_stage(settings, "cut", documents)
    assert files_of(run_stage(settings, "cut", documents).folder) == whole


def test_counts(token_stage: Run) -> None:
    documents = [*made_documents(20), Document("empty", "", "en", "web 0")]
    stage = token_stage(documents, validation_fraction=0.3)
    tasks = sorted((stage.folder / "tasks").glob("encode-*.json"))
    counts = Counts.merged(json.loads(path.read_text())["counts"] for path in tasks)
    assert (counts.documents_in, counts.documents_out) == (21, 20)
    assert counts.dropped == {"tokenize: empty": [1, 0]}
    groups = load_groups(stage.folder)["groups"]
    total = sum(facts["tokens"] for sides in groups.values() for facts in sides.values())
    assert counts.notes["tokens"] == total
    assert counts.notes["tokens: en/none/train"] == groups["en/none"]["train"]["tokens"]


@pytest.mark.parametrize(
    ("tier", "source", "name"),
    [("high", "a", "high/a"), ("", "", "none/none"), ("../x", "..", ".._x/__"), ("a b", "中文", "a_b/中文")],
)
def test_group_names_are_safe_folders(tier: str, source: str, name: str) -> None:
    document = Document("d", "t", "en", source, metadata={"tier": tier})
    assert group_of(document, ("tier", "source")) == name
    assert group_of(document, ()) == "all"


def test_trainer_reads_the_shards_and_refuses_another_tokenizer(token_stage: Run, tmp_path: Path) -> None:
    stage = token_stage(made_documents(40), group_by=())
    shards = TokenShards.open(stage.folder / "tokens" / "train")
    batch = Mixture([TokenStream(shards)], [1.0], 32).batch(0, 2)
    assert batch.tokens.shape == (64,) and batch.tokens.max() < shards.vocab_size
    other = small_tokenizer(tmp_path / "other", ("<|x|>",))
    assert tokenizer_fingerprint(other) != shards.tokenizer_hash
    with pytest.raises(DataError, match="another tokenizer"):
        shards.check_tokenizer(other)


def test_bad_input(run_stage: Run, tokenizer_folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    with pytest.raises(DataError, match="none of the 1 input shards has a document with text"):
        run_stage(TokenizeSettings(tokenizer_folder), "a", [Document("e", "", "en", "s")])
    monkeypatch.setattr("puyulm.data.mixing.tokenize.MAX_GROUPS", 1)
    with pytest.raises(DataError, match="over 1 groups of tokens"):
        run_stage(TokenizeSettings(tokenizer_folder, group_by=("language",)), "b", made_documents(20), shard=20)
    assert not list((tmp_path / "b" / "parts").iterdir())
    for options, message in (({"validation_fraction": 1.0}, "validation_fraction"),
                             ({"shard_tokens": 0}, "shard_tokens"),
                             ({"group_by": ("tier", "tier")}, "twice")):  # fmt: skip
        with pytest.raises(DataError, match=message):
            TokenizeSettings(tokenizer_folder, **options)
    with pytest.raises(DataError, match="no token groups"):
        load_groups(tmp_path)


def test_damaged_parts_are_found(run_stage: Run, tokenizer_folder: Path, tmp_path: Path, monkeypatch: Any) -> None:
    from puyulm.data.mixing import tokenize

    planned = tokenize._plan_folder

    def cutting(parts: Any, shard_tokens: int) -> Any:
        (tmp_path / "a" / f"{parts[0].name}.bin").write_bytes(b"")
        return planned(parts, shard_tokens)

    monkeypatch.setattr(tokenize, "_plan_folder", cutting)
    with pytest.raises(DataError, match="damaged"):
        run_stage(TokenizeSettings(tokenizer_folder), "a", made_documents(10))
    monkeypatch.undo()
    stage = run_stage(TokenizeSettings(tokenizer_folder), "a", made_documents(10))  # the damaged part is made again
    assert np.all(TokenShards.open(stage.folder / "tokens" / "train").document(0) >= 0)


def test_half_surrogate_pairs(token_stage: Run) -> None:
    stage = token_stage(
        [Document("a\ud800", "text with \ud800", "en", "s\ud800")], group_by=(), validation_fraction=0.0
    )
    shards = TokenShards.open(stage.folder / "tokens" / "train")
    assert (shards.num_documents, shards.sources[0].source) == (1, "s\ud800")
