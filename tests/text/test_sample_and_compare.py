"""Samples by language and source, and tokenizers side by side, as functions and on the command line."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from puyulm.cli import main
from puyulm.data.documents import Document, write_documents
from puyulm.errors import TokenizerError
from puyulm.text.compare import compare_tokenizers, comparison_table
from puyulm.text.sample import draw_each, draw_sample, draw_strata, read_labelled_texts
from puyulm.text.tokenizer import Tokenizer
from tests.text.conftest import made_text


def pairs(counts: dict[str, int]) -> Iterator[tuple[str, str]]:
    """Texts of 2,000 bytes, each of one letter, the strata mixed."""
    names = [name for name, count in counts.items() for _ in range(count)]
    random.Random(0).shuffle(names)
    return ((f"{n:06d}" + name[0] * 1993 + "\n", name) for n, name in enumerate(names))


def sizes(segments: list[str]) -> Counter[str]:
    return Counter({letter: sum(len(s) for s in segments if s[6] == letter) for letter in {s[6] for s in segments}})


def test_every_stratum_gives_its_share() -> None:
    sample = draw_strata(
        pairs({"zh": 400, "en": 900, "code": 60, "other": 500}), {"zh": 2, "en": 2, "code": 1}, 500_000, 0
    )
    taken = sizes(sample.segments)
    assert set(taken) == set("zec")
    assert 196_000 <= taken["z"] <= 200_000 and 196_000 <= taken["e"] <= 200_000 and 96_000 <= taken["c"] <= 100_000
    assert sample.sample_bytes == sum(taken.values()) == sum(s.sample_bytes for s in sample.strata)
    assert sample.seen_bytes == 1860 * 2000
    assert [(s.name, s.share, s.seen_bytes) for s in sample.strata] == [
        ("zh", 0.4, 800_000), ("en", 0.4, 1_800_000), ("code", 0.2, 120_000)]  # fmt: skip
    positions = [int(s[:6]) for s in sample.segments if s[6] == "e"]
    assert positions == sorted(positions) and positions[0] < 200 and positions[-1] > 1600  # from all of the text
    assert sample.held_out and not set(sample.held_out) & set(sample.segments)


def test_a_small_stratum_gives_what_it_has() -> None:
    sample = draw_strata(pairs({"zh": 10, "en": 900}), {"zh": 1, "en": 1}, 500_000, 0)
    assert sizes(sample.segments)["z"] == 20_000 and sizes(sample.segments)["e"] <= 250_000
    with pytest.raises(TokenizerError, match="no text of code, fr to draw from"):
        draw_strata(pairs({"zh": 10}), {"zh": 1, "code": 1, "fr": 1}, 500_000, 0)


def test_draws_depend_on_the_seed_alone() -> None:
    texts, weights = list(pairs({"zh": 300, "en": 300})), {"zh": 1.0, "en": 3.0}
    one = draw_strata(texts, weights, 200_000, 1)
    assert one == draw_strata(iter(texts), weights, 200_000, 1)
    assert one.segments != draw_strata(texts, weights, 200_000, 2).segments
    assert draw_sample([text for text, _ in texts], 100_000, 1).strata == ()
    each = draw_each(texts, 100_000, 1)
    assert list(each) == ["en", "zh"] and all(90_000 < sum(map(len, s)) <= 100_000 for s in each.values())
    assert draw_each(iter([("", "a"), ("\ud800x", "b")]), 10, 0) == {"b": ["x"]}


def test_labels_of_files(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "x", "language": "zh", "source": 3}\n{"text": "y"}\n')
    assert [(t.text, t.language, t.source) for t in read_labelled_texts(tmp_path / "a.jsonl")] == [
        ("x", "zh", ""),
        ("y", "", ""),
    ]
    (tmp_path / "b.jsonl").write_text("[1]\n")
    with pytest.raises(TokenizerError, match=r"b\.jsonl:1: not a json object"):
        list(read_labelled_texts(tmp_path / "b.jsonl"))


def test_comparison_against_counting(sentencepiece_folder: Path, bytelevel_folder: Path) -> None:
    tokenizers = {"sp": Tokenizer.load(sentencepiece_folder), "bl": Tokenizer.load(bytelevel_folder)}
    texts = {"en": [made_text(3), "x"], "zh": ["今天天气很好。▁"]}
    rows = compare_tokenizers(tokenizers, texts)
    assert [(row.stratum, row.tokenizer) for row in rows] == [
        (stratum, name) for stratum in ("en", "zh", "all") for name in ("sp", "bl")]  # fmt: skip
    for row in rows[:4]:
        assert row.tokens == sum(len(tokenizers[row.tokenizer].encode(text)) for text in texts[row.stratum])
        assert row.bytes == sum(len(text.encode()) for text in texts[row.stratum])
        assert row.changed == 0 and row.bytes_per_token == row.bytes / row.tokens and row.speed > 0
    assert rows[4].tokens == rows[0].tokens + rows[2].tokens and rows[4].bytes == rows[0].bytes + rows[2].bytes
    assert rows[4].vocab_size == 1500

    class Forgetful(Tokenizer):
        def decode(self, ids: object, **_: object) -> str:
            return ""

    tokenizers["sp"].__class__ = Forgetful
    rows = compare_tokenizers(tokenizers, texts)
    assert [row.changed for row in rows] == [2, 0, 1, 0, 3, 0]
    assert "2 segments change" in comparison_table(rows) and "exact" in comparison_table(rows)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    lines = made_text(300).split("\n\n")
    documents = [
        Document(f"{i}", line * 20, ["en", "zh", "code"][i % 3], ["web", "book"][i % 2]) for i, line in enumerate(lines)
    ]
    folder = tmp_path / "shards"
    for number, suffix in enumerate(("jsonl.zst", "parquet", "jsonl.gz")):
        write_documents(folder / "run" / f"{number:05d}.{suffix}", documents[number::3] * 2)
    return folder


def test_training_on_folders_of_shards_by_weights(
    shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--vocab-size", "600", "--kind", "bytelevel", "--out", str(tmp_path / "out"), "--sample-mb", "0.1"]
    (tmp_path / "more.txt").write_text("今天天气很好。\n" * 3000, encoding="utf-8")
    train = ["tokenizer", "train", str(shards), str(tmp_path / "more.txt"), *arguments]
    assert main([*train, "--weights", "zh=0.5,code=0.25,book=0.25"]) == 0
    shown = capsys.readouterr().out
    assert "bytelevel tokenizer of 600 ids" in shown
    for name, share in (("zh", 50), ("code", 25), ("book", 25)):
        assert f"  {name}: 0.0" in shown and f"of the sample ({share}% wanted)" in shown
    assert main(train) == 0 and "wanted" not in capsys.readouterr().out
    for weights in ("zh", "zh=x", "=1", "zh=0", "zh=-1,en=2", "zh=inf"):
        assert main([*train, "--weights", weights]) == 2
        assert "--weights should be" in capsys.readouterr().err
    assert main([*train, "--weights", "fr=1"]) == 2
    assert "no text of fr" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert main(["tokenizer", "train", str(tmp_path / "empty"), *arguments]) == 2
    assert "no .jsonl, .jsonl.gz, .jsonl.zst, .parquet in this folder" in capsys.readouterr().err


def test_training_on_a_stage_takes_what_it_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stage = tmp_path / "run" / "02-clean"
    write_documents(stage / "00000.jsonl.zst", [Document("a", made_text(40), "en", "web")])
    write_documents(stage / "dropped" / "00000.jsonl.zst", [Document("b", made_text(40), "en", "rubbish")])
    arguments = ["--vocab-size", "400", "--kind", "bytelevel", "--out", str(tmp_path / "out")]
    assert main(["tokenizer", "train", str(stage), *arguments, "--weights", "web=0.5,rubbish=0.5"]) == 2
    assert "no text of rubbish" in capsys.readouterr().err
    (tmp_path / "run" / "pipeline.json").write_text("{}")
    assert main(["tokenizer", "train", str(tmp_path / "run"), *arguments]) == 2
    assert "holds all stages of a run: give the folder of one" in capsys.readouterr().err


def test_comparing_on_the_command_line(
    shards: Path, tmp_path: Path, sentencepiece_folder: Path, bytelevel_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = [str(sentencepiece_folder), str(bytelevel_folder)]
    assert main(["tokenizer", "compare", *models, "--on", str(shards), "--json", str(tmp_path / "j" / "f.json")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + 2 * (6 + 1) and all(line.endswith("exact") for line in lines[1:])
    rows = json.loads((tmp_path / "j" / "f.json").read_text())
    names = {f"{language} {source}" for language in ("en", "zh", "code") for source in ("web", "book")}
    assert {row["stratum"] for row in rows} == names | {"all"}
    for row in rows:
        assert row["bytes_per_token"] == row["bytes"] / row["tokens"]
    (tmp_path / "none.txt").write_text("")
    assert main(["tokenizer", "compare", models[0], "--on", str(tmp_path / "none.txt")]) == 2
    assert "no text in" in capsys.readouterr().err
