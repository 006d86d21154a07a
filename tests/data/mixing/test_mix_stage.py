"""The stage `mix`: what it writes is made of whole documents in the planned amounts, and training reads it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from puyulm.data.documents import Document
from puyulm.data.mixing.settings import MixSettings, Phase
from puyulm.data.pipeline.counts import Counts
from puyulm.data.pipeline.stage import StageRun
from puyulm.data.shards import TokenShards
from puyulm.data.split import is_validation
from puyulm.data.stream import Mixture, TokenStream
from puyulm.errors import DataError
from puyulm.recipe import load_recipe
from puyulm.text.tokenizer import Tokenizer
from puyulm.train.mixture import open_mixture
from puyulm.train.phases import Phase as TrainingPhase
from tests.data.mixing.conftest import files_of, made_documents

Run = Callable[..., StageRun]
DOCUMENTS = made_documents(120)
SHORT = 50  # tokens; the made documents are far from it on both sides


def mix(*phases: Phase, **options: Any) -> MixSettings:
    return MixSettings(phases, **{"short_tokens": SHORT, "shard_tokens": 2000, **options})


def texts(folder: Path, tokenizer_folder: Path) -> list[str]:
    tokenizer, shards = Tokenizer.load(tokenizer_folder), TokenShards.open(folder)
    shards.verify()
    return [tokenizer.decode(shards.document(i)[1:].tolist()) for i in range(shards.num_documents)]


def test_one_epoch_is_every_document_once(mix_stage: Run, tokenizer_folder: Path) -> None:
    settings = mix(Phase("all", 10**6, {"*": 1}), max_epochs={"*": 1})
    stage = mix_stage(DOCUMENTS, settings, validation_fraction=0.1)
    for name, side in (("all/train", False), ("valid", True)):
        expected = sorted(d.text for d in DOCUMENTS if is_validation(d.id, 0.1) == side)
        found = texts(stage.folder / name, tokenizer_folder)
        assert sorted(found) == expected and found != expected
    shards = TokenShards.open(stage.folder / "all" / "train")
    by_text = {d.text: d for d in DOCUMENTS}
    for i, text in enumerate(texts(shards.folder, tokenizer_folder)):
        source = shards.sources[shards.document_source[i]]
        assert (source.source, source.language) == (by_text[text].source, by_text[text].language)
        assert shards.byte_starts[i + 1] - shards.byte_starts[i] == by_text[text].num_bytes
    assert sum(s.tokens for s in shards.sources) == shards.num_tokens
    assert not (stage.folder / "draws").exists()


def test_epochs_use_every_document_as_often(mix_stage: Run, tokenizer_folder: Path) -> None:
    settings = mix(Phase("a", 10**6, {"code/high": 1, "code/moderate": 1}), max_epochs={"*/high": 3, "*/moderate": 1})
    stage = mix_stage(DOCUMENTS, settings, validation_fraction=0.0)
    uses = Counter(texts(stage.folder / "a" / "train", tokenizer_folder))
    assert {uses[d.text] for d in DOCUMENTS if d.metadata.get("tier") == "high"} == {3}
    assert {uses[d.text] for d in DOCUMENTS if d.metadata.get("tier") == "moderate"} == {1}
    assert {uses[d.text] for d in DOCUMENTS if "tier" not in d.metadata} == {0}
    mixture = json.loads((stage.folder / "mixture.json").read_text())
    assert mixture["unused_groups"] == ["en/none", "zh/none"]
    assert [g["epochs"] for g in mixture["phases"][0]["groups"]] == [3.0, 1.0]
    assert not (stage.folder / "valid").exists()


def test_later_phases_take_what_earlier_ones_left(token_stage: Run, run_stage: Run, tokenizer_folder: Path) -> None:
    before = token_stage(DOCUMENTS, validation_fraction=0.0).folder

    def uses(name: str, *tokens: int, cap: float) -> Counter[str]:
        phases = [Phase("abc"[i], amount, {"*": 1}) for i, amount in enumerate(tokens)]
        folder = run_stage(mix(*phases, max_epochs={"*": cap}), name, before=before).folder
        return Counter(text for phase in phases for text in texts(folder / phase.name / "train", tokenizer_folder))

    assert set(uses("m", 4000, 2500, 3000, cap=1).values()) == {1}
    assert uses("n", 4000, 2500, 10**6, cap=2) == Counter({d.text: 2 for d in DOCUMENTS})
    assert uses("o", 10**6, cap=2) == Counter({d.text: 2 for d in DOCUMENTS})


def test_amounts_are_near_the_plan(mix_stage: Run) -> None:
    documents = made_documents(600, seed=3)
    phase = Phase("a", 12_000, {"en*": 0.5, "zh*": 0.25, "code/high": 0.25}, short_share=0.25, sequence_length=150)
    stage = mix_stage(documents, mix(phase), validation_fraction=0.0)
    [facts] = json.loads((stage.folder / "mixture.json").read_text())["phases"]
    shards = TokenShards.open(stage.folder / "a" / "train")
    lengths = np.diff(shards.token_starts)
    assert facts["tokens"] == shards.num_tokens == lengths.sum()
    assert abs(shards.num_tokens - 12_000) < 1000  # half of a document for each source shard and length, at most
    assert abs(lengths[lengths < SHORT].sum() / shards.num_tokens - 0.25) < 0.05
    assert facts["short_share"] == lengths[lengths < SHORT].sum() / shards.num_tokens
    assert facts["filling_share"] == lengths[lengths >= 150].sum() / shards.num_tokens
    assert [(p["pattern"], p["planned"]) for p in facts["patterns"]] == [
        ("en*", 6000), ("zh*", 3000), ("code/high", 3000)]  # fmt: skip
    by_language = Counter[str]()
    for source in shards.sources:
        by_language[source.language] += source.tokens
    for language, share in (("en", 0.5), ("zh", 0.25), ("code", 0.25)):
        assert abs(by_language[language] / shards.num_tokens - share) < 0.06
    assert facts["shortfall"] == 0


def test_every_shard_is_a_sample_of_the_phase(mix_stage: Run) -> None:
    documents = [Document(f"{i}", "abcdefgh" * 4, ["en", "zh"][i // 400], "s") for i in range(800)]
    stage = mix_stage(documents, mix(Phase("a", 10**6, {"*": 1}), max_epochs={"*": 1}), validation_fraction=0.0,
                      group_by=("language",))  # fmt: skip
    shards = TokenShards.open(stage.folder / "a" / "train")
    names = sorted((stage.folder / "a" / "train").glob("*.bin"))
    assert len(names) == round(shards.num_tokens / 2000) > 3
    languages = np.array([s.language == "zh" for s in shards.sources])[shards.document_source]
    for part in np.array_split(languages, len(names)):
        assert 0.3 < part.mean() < 0.7


def test_workers_and_seeds(mix_stage: Run, run_stage: Run, token_stage: Run) -> None:
    before = token_stage(DOCUMENTS, validation_fraction=0.1, shard_tokens=500).folder
    phase = Phase("a", 5000, {"en*": 1, "code*": 1})
    files = [files_of(run_stage(mix(phase, seed=seed), name, before=before, workers=workers).folder)
             for name, workers, seed in (("one", 1, 0), ("two", 2, 0), ("other", 1, 1))]  # fmt: skip
    assert files[0] == files[1] != files[2]
    assert set(files[0]) == set(files[2])


@pytest.mark.parametrize("share", [0.1, 0.5, 0.8, 0.95])
def test_interrupted_runs_end_the_same(
    token_stage: Run, run_stage: Run, interrupt: Callable[[int], Any], share: float
) -> None:
    before = token_stage(DOCUMENTS, validation_fraction=0.1, shard_tokens=900).folder
    settings = mix(Phase("a", 5000, {"*": 1}), Phase("b", 3000, {"en*": 1}))
    whole = run_stage(settings, "whole", before=before).folder
    with interrupt(int(share * len(list((whole / "tasks").iterdir())))), pytest.raises(KeyboardInterrupt):
        run_stage(settings, "cut", before=before)
    assert files_of(run_stage(settings, "cut", before=before).folder) == files_of(whole)


def test_counts_and_table(mix_stage: Run, capsys: pytest.CaptureFixture[str]) -> None:
    settings = mix(Phase("a", 20_000, {"en*": 1, "code/high": 1}), max_epochs={"*": 1})
    stage = mix_stage(DOCUMENTS, settings, validation_fraction=0.0)
    table = capsys.readouterr().err
    assert "phase a:" in table and "of 20,000 wanted" in table and "in no phase: code/moderate, zh/none" in table
    assert "short of" in table and "en/none" in table
    tasks = sorted((stage.folder / "tasks").glob("*.json"))
    results = [json.loads(path.read_text()) for path in tasks]
    counts = Counts.merged(result["counts"] for result in results if "counts" in result)
    shards = TokenShards.open(stage.folder / "a" / "train")
    assert (counts.documents_in, counts.documents_out) == (len(DOCUMENTS), shards.num_documents)
    assert counts.dropped["mix: not drawn"][0] == len(DOCUMENTS) - shards.num_documents
    assert counts.bytes_out == shards.num_bytes
    assert counts.notes == {"tokens: a": shards.num_tokens}


def test_training_reads_the_phases(mix_stage: Run, tokenizer_folder: Path) -> None:
    stage = mix_stage(DOCUMENTS, mix(Phase("a", 5000, {"*": 1})), validation_fraction=0.1)
    tokenizer = Tokenizer.load(tokenizer_folder)
    for name in ("a/train", "valid"):
        shards = TokenShards.open(stage.folder / name)
        shards.check_tokenizer(tokenizer)
        assert (shards.bos_id, shards.eos_id) == (tokenizer.bos_id, None)
        assert Mixture([TokenStream(shards)], [1.0], 64).batch(6, 8).tokens.shape == (128,)
    mixture = open_mixture(stage.folder, [TrainingPhase(name="a", tokens=5000, seq_len=64, batch_tokens=128)])
    assert (mixture.train("a"), mixture.valid) == (stage.folder / "a" / "train", stage.folder / "valid")
    assert mixture.phases["a"].tokens == TokenShards.open(mixture.train("a")).num_tokens


def test_bad_input(run_stage: Run, token_stage: Run, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no stage before"):
        run_stage(mix(Phase("a", 1, {"*": 1})), "m")
    with pytest.raises(DataError, match="no token groups"):
        run_stage(mix(Phase("a", 1, {"*": 1})), "m", before=tmp_path)
    before = token_stage(DOCUMENTS).folder
    with pytest.raises(DataError, match=r"no group matches 'de\*'"):
        run_stage(mix(Phase("a", 1, {"de*": 1})), "m", before=before)
    with pytest.raises(DataError, match="nothing is drawn for a"):
        run_stage(mix(Phase("a", 1, {"*": 1})), "m", before=before)
    next(before.rglob("*.idx")).write_bytes(b"x")
    with pytest.raises(DataError, match=r"\.idx is missing or damaged"):
        run_stage(mix(Phase("a", 1, {"*": 1})), "m2", before=before)


def test_settings_in_a_recipe(tmp_path: Path) -> None:
    (tmp_path / "mix.yaml").write_text(
        "phases:\n- {name: one, tokens: 9e3, weights: {'en*': 0.6, 'zh*': 0.4}}\n"
        "- {name: two, tokens: 1e3, weights: {'*': 1}, short_share: 0.5, sequence_length: 32768}\n"
        "max_epochs: {'*/high': 4, '*/moderate': 1}\n"
    )
    settings = load_recipe(MixSettings, tmp_path / "mix.yaml")
    assert settings.phases[0] == Phase("one", 9000, {"en*": 0.6, "zh*": 0.4})
    assert settings.phases[1].short_share == 0.5 and settings.max_epochs == {"*/high": 4, "*/moderate": 1}
