"""The methods minhash and exact, from shards to shards."""

from __future__ import annotations

import random
import re
import tracemalloc
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from puyulm.data.dedup.settings import DedupSettings, ExactSettings, MinHashSettings
from puyulm.data.documents import Document, write_documents
from puyulm.errors import DataError
from tests.data.dedup.helpers import Result, prepare, prose, run, words

SHINGLE = 5


def jaccard(one: Document, other: Document) -> float:
    """True similarity of the sets of word 5-grams, with a tokeniser of its own."""

    def grams(document: Document) -> set[tuple[str, ...]]:
        tokens = re.findall(r"[a-z]+" if document.language == "en" else r"[一-鿿]", document.text.lower())
        return {tuple(tokens[start : start + SHINGLE]) for start in range(len(tokens) - SHINGLE + 1)}

    first, second = grams(one), grams(other)
    return len(first & second) / len(first | second)


def planted(count: int, seed: int = 0) -> list[tuple[Document, Document]]:
    """Pairs from unlike to equal: in every second one scattered words are replaced, in the others the end is."""
    source = random.Random(seed)

    def tokens(language: str, number: int) -> list[str]:
        if language == "en":
            return words(source, number)
        return [chr(source.randrange(0x4E00, 0x9FA5)) for _ in range(number)]

    pairs = []
    for number in range(count):
        language = "en" if number % 4 < 2 else "zh"
        length = source.randrange(80, 240)
        one = tokens(language, length)
        other = list(one)
        like = 0.3 + 0.7 * number / (count - 1)
        if number % 2:
            lost = round(length * (1 - 2 * like / (1 + like)))
            other[length - lost :] = tokens(language, lost)
        else:  # each edit touches five shingles
            for place in source.sample(range(length), round(length * (1 - (2 * like / (1 + like)) ** 0.2))):
                other[place] = tokens(language, 1)[0]
        join, stop = (" ".join, ".") if language == "en" else ("".join, "。")
        first = Document(f"{number}a", join(one).capitalize() + stop, language, "t")
        pairs.append((first, Document(f"{number}b", join(other) + stop, language, "t")))
    return pairs


def test_near_duplicates_are_found_and_others_left_alone(tmp_path: Path) -> None:
    pairs = planted(1600)
    documents = [pair[0] for pair in pairs] + [pair[1] for pair in pairs]
    result = run(DedupSettings(), prepare(tmp_path, documents))
    similar = {one.id: jaccard(one, other) for one, other in pairs}
    merged = {one.id for one, other in pairs if result.copies.get(other.id) == one.id}
    assert set(result.copies) == {name[:-1] + "b" for name in merged}  # nobody else was taken for a copy
    for low, high, least, most in ((0.8, 1.01, 0.95, 1.0), (0.75, 0.8, 0.8, 1.0), (0.0, 0.5, 0.0, 0.01)):
        for language in ("en", "zh"):
            band = [one.id for one, _ in pairs if low <= similar[one.id] < high and one.language == language]
            share = sum(name in merged for name in band) / len(band)
            assert len(band) >= 50 and least <= share <= most, (low, high, language, share)
    for document in result.dropped:
        truth = similar[document.metadata["duplicate_of"]]
        assert abs(document.metadata["similarity"] - truth) < 0.17  # four standard deviations at most


def crawl(seed: int, count: int, prefix: str = "") -> list[Document]:
    """Documents of which about half are near copies, with dates; a third are equal."""
    source = random.Random(seed)
    documents: list[Document] = []
    for number in range(count):
        kind = source.random()
        text = prose(source, source.randrange(3, 90))
        if documents and kind < 0.4:
            text = source.choice(documents).text
            if kind < 0.3:
                text = " ".join(text.split()[: -max(1, len(text) // 200)]) + " end"
        elif kind < 0.75:
            text = "The same words on many pages, number one to a hundred of them."
        date = source.choice(["", "2021", "2022-05", "2022-05-02", "2023-01-01T10:00:00Z"])
        documents.append(Document(f"{prefix}{number}", text, "en", "t", date=date))
    return documents


CRAWL = crawl(1, 300)


def with_memory(settings: DedupSettings, megabytes: float) -> DedupSettings:
    """Less than the settings take: batches of some 100 records, in which the equal documents do not fit."""
    changed = replace(settings)
    object.__setattr__(changed, "memory_mb", megabytes)
    return changed


def verdicts(result: Result) -> tuple[Any, ...]:
    """All that must not depend on how the work was divided."""
    names = ("dropped", "duplicate_of", "similarity", "cluster")
    facts = [(document.id, *map(document.metadata.get, names)) for document in result.dropped]
    clusters = result.json("clusters.json") if (result.stage.folder / "clusters.json").exists() else {}
    for cluster in [*clusters.get("largest", []), *clusters.get("sample", [])]:
        for member in cluster["members"]:
            del member["shard"], member["row"]
    return result.kept_ids, facts, result.counts.notes, clusters


@pytest.mark.parametrize("method", ["minhash", "exact"])
def test_the_division_of_the_work_changes_nothing(tmp_path: Path, method: str) -> None:
    settings = DedupSettings(method=method)
    base = run(settings, prepare(tmp_path / "base", CRAWL, shards=1))
    assert 50 < len(base.kept) < 200
    expected = verdicts(base)
    for name, shards, task_bytes in (("many", 7, 1), ("grouped", 7, 20_000)):
        assert verdicts(run(settings, prepare(tmp_path / name, CRAWL, shards, task_bytes))) == expected
    small = replace(settings, memory_mb=1)
    assert verdicts(run(small, prepare(tmp_path / "small", CRAWL, 2))) == expected
    tiny = run(with_memory(settings, 0.02), prepare(tmp_path / "tiny", CRAWL, 2))
    assert verdicts(tiny)[:2] == expected[:2]  # pairs that were seen twice are counted twice


def test_an_interrupted_run_ends_with_the_same_bytes(tmp_path: Path) -> None:
    stage = prepare(tmp_path, CRAWL, shards=4)
    settings = DedupSettings(memory_mb=1)
    whole = run(settings, stage)
    expected, marks = whole.files(), sorted((stage.folder / "tasks").iterdir())
    assert {"runs/00000-000.npy", "clusters.json", "index.json", "00003.jsonl.zst"} < set(expected)
    for mark in marks[1::2]:
        mark.unlink()
    (stage.folder / "index" / "00000.signatures.npy").unlink()  # a result whose file is gone
    run0 = stage.folder / "runs" / "00002-000.npy"
    run0.write_bytes(run0.read_bytes()[:-100])  # and one that was cut
    (stage.folder / "clusters.json").unlink()
    assert run(settings, stage).files() == expected
    before = {path: path.stat().st_mtime_ns for path in marks}
    assert run(settings, stage).files() == expected  # and a finished run does nothing
    assert {path: path.stat().st_mtime_ns for path in marks} == before


def copies_of(text: str, dates: list[str]) -> list[Document]:
    return [Document(f"c{place}", text + "!" * place, "en", "t", date=date) for place, date in enumerate(dates)]


@pytest.mark.parametrize(
    ("keep", "kept"),
    [("newest", ["c2", "z"]), ("first", ["c0", "z"]), ("longest", ["c4", "z"])],
)
def test_the_newest_copy_stays(tmp_path: Path, keep: str, kept: list[str]) -> None:
    copies = copies_of("A day in the life of seven words", ["2020-01-02", "", "2024-05", "2024-05-01", "2023"])
    other = Document("z", "Nothing here is like it at all, dear reader.", "en", "t")
    result = run(DedupSettings(keep=keep), prepare(tmp_path, [*copies[:2], other, *copies[2:]]))
    assert sorted(result.kept_ids) == kept
    assert set(result.copies.values()) == {kept[0]} and len(result.copies) == 4
    assert result.reasons[next(iter(result.copies))] == "dedup: near duplicate"
    assert result.dropped[0].metadata | {"dropped": "", "duplicate_of": ""} == {
        "duplicate_of": "", "similarity": 1.0, "cluster": 0, "dropped": "",
    }  # fmt: skip
    assert result.counts.documents_in == 6 and result.counts.documents_out == 2
    assert result.counts.dropped == {"dedup: near duplicate": [4, sum(d.num_bytes for d in result.dropped)]}


def test_documents_that_stay_are_unchanged(tmp_path: Path) -> None:
    stranger = Document("s", "\ud800 half a pair\n", "zh", "x", "u", "2020", "MIT", {"a": 0.5}, {"b": [1]})
    stage = prepare(tmp_path, [*CRAWL[:20], stranger], suffix="jsonl.zst")
    result = run(DedupSettings(), stage)
    assert [d for d in [*CRAWL[:20], stranger] if d.id in result.kept_ids] == result.kept
    parquet = run(DedupSettings(), prepare(tmp_path / "p", CRAWL[:20], suffix="parquet"))
    assert parquet.kept == [d for d in result.kept if d.id != "s"]


def test_exact_copies_with_other_case_and_space(tmp_path: Path) -> None:
    texts = ["One two", "one  two\n", "One two three", "ONE TWO", "One two"]
    documents = [Document(str(place), text, "en", "t", date="2020") for place, text in enumerate(texts)]
    for ignore_case, ignore_space, expected in (
        (False, True, {"1": None, "4": "0"}), (True, True, {"1": "0", "3": "0", "4": "0"}), (False, False, {"4": "0"}),
    ):  # fmt: skip
        settings = DedupSettings(method="exact", exact=ExactSettings(ignore_case, ignore_space))
        result = run(settings, prepare(tmp_path / f"{ignore_case}{ignore_space}", documents, shards=2))
        assert result.copies == {name: other for name, other in expected.items() if other}
        assert set(result.reasons.values()) == {"dedup: exact duplicate"}
        assert not any((result.stage.folder / "index").glob("*.signatures.npy"))


@pytest.mark.parametrize("method", ["minhash", "exact"])
def test_documents_of_an_earlier_crawl_leave(tmp_path: Path, method: str) -> None:
    old, older = crawl(1, 60, "old"), crawl(3, 60, "older")
    source = random.Random(7)
    fresh = [Document(f"fresh{place}", prose(source, 50), "en", "t") for place in range(10)]
    again = [replace(document, id=f"again-{document.id}", date="2030") for document in [*old[:30], *older[:30]]]
    settings = DedupSettings(method=method)
    first = run(settings, prepare(tmp_path / "first", older))
    second = run(replace(settings, against=first.stage.folder), prepare(tmp_path / "second", old))
    third = replace(settings, against=second.stage.folder)
    result = run(third, prepare(tmp_path / "third", [*again[:30], *fresh, fresh[0], *again[30:]]))
    assert result.kept_ids == [document.id for document in fresh]
    assert result.reasons[fresh[0].id] == f"dedup: {'near' if method == 'minhash' else 'exact'} duplicate"
    texts = {document.id: document.text for document in [*old, *older]}
    for document in result.dropped:
        if document.id.startswith("again"):
            assert document.metadata["dropped"] == "dedup: in the earlier crawl"
            assert document.metadata["similarity"] == 1 and "cluster" not in document.metadata
            assert " ".join(texts[document.metadata["duplicate_of"]].split()) == " ".join(document.text.split())
    assert result.json("clusters.json")["earlier"] == 60
    tiny = run(with_memory(third, 0.02), prepare(tmp_path / "tiny", [*again[:30], *fresh, fresh[0], *again[30:]], 2))
    assert verdicts(tiny)[:2] == verdicts(result)[:2]


def test_a_near_copy_of_what_leaves_for_the_earlier_crawl_is_judged_for_itself(tmp_path: Path) -> None:
    """A is in the earlier crawl; B is like A, but not like the earlier document: B stays, whatever its date."""
    source = random.Random(4)
    base = words(source, 400)
    old = Document("old", " ".join(base), "en", "t")
    a = Document("a", " ".join([*base[:355], *words(source, 45)]), "en", "t", date="2024")
    b = Document("b", " ".join([*words(source, 45), *a.text.split()[45:]]), "en", "t")
    assert jaccard(old, a) > 0.78 and jaccard(a, b) > 0.78 and jaccard(old, b) < 0.64
    first = run(DedupSettings(), prepare(tmp_path / "1", [old], 1))
    result = run(DedupSettings(against=first.stage.folder), prepare(tmp_path / "2", [a, b], 1))
    assert result.kept_ids == ["b"] and result.copies == {"a": "old"}
    assert run(DedupSettings(), prepare(tmp_path / "3", [a, b], 1)).copies == {"b": "a"}


def test_another_kind_of_earlier_run_is_refused(tmp_path: Path) -> None:
    stage = prepare(tmp_path / "1", CRAWL[:9])
    run(DedupSettings(), stage)
    for settings, message in (
        (DedupSettings(against=tmp_path), "holds no finished minhash dedup"),
        (DedupSettings(against=stage.folder, method="exact"), "method: minhash, here exact"),
        (DedupSettings(against=stage.folder, minhash=MinHashSettings(n=4)), "n: 5, here 4"),
    ):
        with pytest.raises(DataError, match=message):
            run(settings, prepare(tmp_path / "2", CRAWL[:9]))
    with pytest.raises(DataError, match="the folder that this run writes"):
        run(DedupSettings(against=stage.folder), stage)
    threshold = DedupSettings(against=stage.folder, minhash=MinHashSettings(threshold=0.9))
    assert not run(threshold, prepare(tmp_path / "3", CRAWL[:9])).kept


def test_clusters_for_the_report(tmp_path: Path) -> None:
    source = random.Random(8)
    documents = []
    for size, number in ((2, 70), (3, 20), (30, 1)):
        for _ in range(number):
            text, first = prose(source, 60) + "x" * 1500, len(documents)
            documents += [
                Document(f"{first + place}", text + " a" * place, "en", "t", date=str(2000 + place), url="u")
                for place in range(size)
            ]
    result = run(DedupSettings(), prepare(tmp_path, documents, shards=2))
    facts = result.json("clusters.json")
    assert facts["clusters"] == 91 and facts["duplicates"] == 70 + 2 * 20 + 29 and facts["documents"] == 230
    assert facts["sizes"] == [[2, 2, 70, 140], [3, 4, 20, 60], [17, 32, 1, 30]]
    assert [cluster["size"] for cluster in facts["largest"]] == [30] + [3] * 20 + [2] * 29
    assert [cluster["size"] for cluster in facts["sample"]] == [2] * 41  # all the others
    largest = facts["largest"][0]
    assert largest["number"] == 90 and len(largest["members"]) == 20
    assert [member["id"] for member in largest["members"]] == ["229", *(str(place) for place in range(200, 219))]
    kept, other = largest["members"][:2]
    assert kept["kept"] and kept["similarity"] == 1 and not other["kept"] and 0.7 < other["similarity"] < 1
    assert (other["shard"], other["row"]) == (1, 85) and other["date"] == "2000" and other["url"] == "u"
    assert [len(member.get("text", "")) for member in largest["members"]] == [1500] * 4 + [0] * 16
    assert other["text"] == documents[200].text[:1500] and other["characters"] == len(documents[200].text)
    assert facts["parameters"]["bands"] == 25 and facts["s_curve"][14] == [0.7, pytest.approx(0.99, abs=0.001)]


def test_memory_does_not_grow_with_the_input(tmp_path: Path) -> None:
    """Peaks of Python's and NumPy's memory: 8,000 documents have records of 3.3 MB, which take
    20 MB while they are sorted; the limit is 1 MB."""
    source = random.Random(6)
    pool = words(source, 3000)

    def documents(count: int) -> Iterator[Document]:
        for number in range(count):
            text = " ".join(source.choices(pool, k=12)) if number % 3 else "the very same text each time"
            yield Document(str(number), text, "en", "t")

    peaks = []
    for count in (1000, 8000):
        for shard in range(count // 1000):
            write_documents(tmp_path / str(count) / "before" / f"{shard:05d}.jsonl", documents(1000))
        stage = prepare(tmp_path / str(count), [], 0)
        stage = replace(stage, inputs=sorted(stage.folder.parent.glob("before/*")))
        tracemalloc.start()
        DedupSettings(memory_mb=1).run(stage)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 1e6


def test_equal_documents_by_the_thousand_take_no_square(tmp_path: Path) -> None:
    documents = [Document(str(place), "The very same text, each and every time.", "en", "t") for place in range(3000)]
    result = run(DedupSettings(), prepare(tmp_path, documents, 2))
    assert result.kept_ids == ["0"] and result.counts.notes["candidate pairs"] == 2 * 2999 - 1


def test_empty_input(tmp_path: Path) -> None:
    for method in ("minhash", "exact", "paragraphs", "substring"):
        result = run(DedupSettings(method=method), prepare(tmp_path / method, [], shards=2))
        assert not result.kept and not result.dropped
    assert not run(DedupSettings(), prepare(tmp_path / "none", [], shards=0)).kept


def test_bad_settings_are_refused() -> None:
    for make, message in (
        (lambda: MinHashSettings(bands=30), "30 bands of 5 rows need 150 hashes, there are 128"),
        (lambda: MinHashSettings(hashes=127), "even"), (lambda: MinHashSettings(n=0), "n is 0"),
        (lambda: MinHashSettings(threshold=0), "threshold is 0"),
        (lambda: DedupSettings(memory_mb=0), "memory_mb is 0"),
        (lambda: DedupSettings(method="substring", against=Path("x")), "'against' works with minhash and exact"),
    ):  # fmt: skip
        with pytest.raises(DataError, match=message):
            make()


def test_settings_come_from_a_recipe(tmp_path: Path) -> None:
    from puyulm.recipe import dump_recipe, load_recipe

    settings = DedupSettings(method="exact", against=Path("x/y"), keep="first")
    (tmp_path / "r.yaml").write_text(dump_recipe(settings))
    assert load_recipe(DedupSettings, tmp_path / "r.yaml") == settings
