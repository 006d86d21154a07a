"""What is found in documents and what is not, against made items and an independent search."""

from __future__ import annotations

import json
import random
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from puyulm.data.decontaminate import index as index_module
from puyulm.data.decontaminate import match as match_module
from puyulm.data.decontaminate.index import load_index
from puyulm.data.decontaminate.match import Hit, containment, find_hits
from puyulm.data.decontaminate.settings import DecontaminateSettings, EvalSet
from puyulm.data.decontaminate.streams import numbers_in
from puyulm.errors import DataError

QUESTION = (
    "Mira keeps 14 hens in a wooden shed behind the mill. Each hen lays 5 eggs a week, and Mira sells every egg at "
    "the market for 2.50 dollars. After paying 30 dollars for grain, how many dollars does she have left each week?"
)
_FIRST, _SECOND = ("a", "the", "this", "that", "each", "every"), ("red", "green", "old", "new", "cold", "warm", "dry")
LONG = " ".join(f"{first} {second}" for first in _FIRST for second in _SECOND)
CHINESE = (
    "某工厂计划在三个月内生产一批零件，第一个月完成了全部任务的五分之二，第二个月比第一个月多生产了一百二十个，"
    "请问第三个月还需要生产多少个零件才能完成任务？"
)
PROGRAM = (
    'def rolling_total(values, width):\n    """Sum of each window."""\n    totals = []\n'
    "    for start in range(len(values) - width + 1):\n        totals.append(sum(values[start:start + width]))\n"
    "    return totals\n"
)
SHORT = "Which river runs through the old town of Veltheim"  # nine words
FILLER = "Nothing in this page has to do with any test; it tells of walks along the coast in the rain, and of the sea. "


@pytest.fixture
def settings(tmp_path: Path) -> DecontaminateSettings:
    def write(name: str, *texts: str) -> Path:
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps({"question": text}) + "\n" for text in texts))
        return path

    return DecontaminateSettings((
        EvalSet("sums", (write("sums", QUESTION),), kind="math"),
        EvalSet("facts", (write("facts", LONG, CHINESE, SHORT, "Too short to tell"),)),
        EvalSet("programs", (write("programs", PROGRAM),), kind="code"),
    ))  # fmt: skip


def find(text: str, settings: DecontaminateSettings, **changes: Any) -> list[Hit]:
    settings = replace(settings, **changes)
    return find_hits([text], load_index(settings), settings)[0]


def names(text: str, settings: DecontaminateSettings, **changes: Any) -> list[str]:
    return [settings.sets[hit.evaluation].name for hit in find(text, settings, **changes)]


@pytest.mark.parametrize(
    ("item", "name"), [(QUESTION, "sums"), (LONG, "facts"), (CHINESE, "facts"), (SHORT, "facts"), (PROGRAM, "programs")]
)
def test_verbatim_copies_are_found_where_they_are(settings: DecontaminateSettings, item: str, name: str) -> None:
    around = [("", ""), ("\u0130" * 50 + " ", " \u0130"), (FILLER * 30, "\n" + FILLER * 9), (CHINESE[:8] + "\n", "\n")]
    for before, after in around:
        text = before + item + after
        [hit] = find(text, settings)
        assert settings.sets[hit.evaluation].name == name and hit.share == 1.0 and not hit.near
        assert hit.item.startswith(f"{name}.jsonl#")
        found = text[hit.start : hit.end]
        assert abs(len(before) - hit.start) < 4 and found.strip(" ?.\n\"'") == text[hit.start : hit.end].strip(
            " ?.\n\"'"
        )
        assert abs(hit.end - len(before) - len(item)) < 4
    assert not find(FILLER * 40, settings)


@pytest.mark.parametrize("item", [QUESTION, LONG, CHINESE, SHORT])
def test_case_punctuation_and_white_space_do_not_matter(settings: DecontaminateSettings, item: str) -> None:
    for changed in (item.upper(), re.sub(r"[,;?，。？]", "", item), re.sub(r"\s+", "\n\t ", item),
                    json.dumps({"q": f"Task\n{item}\nAnswer"}), json.dumps([f"\n{item}\n"], ensure_ascii=False),
                    " ".join(item) if item == CHINESE else item,
                    "".join(chr(ord(c) + 0xFEE0) if c.isascii() and c.isalnum() else c for c in item)):  # fmt: skip
        if changed.startswith(("{", "[")) and item == CHINESE and "\\u" in changed:
            continue  # escaped characters are other words
        assert find(FILLER + changed + FILLER, settings), changed


def test_programs_in_another_style(settings: DecontaminateSettings) -> None:
    for changed in (PROGRAM.replace("    ", "\t"), PROGRAM.replace('"""', "'''"), PROGRAM.replace(" + ", "+"),
                    json.dumps(PROGRAM), f"```python\n{PROGRAM}```", PROGRAM.replace(", ", ",\n  ")):  # fmt: skip
        assert names(FILLER + changed, settings) == ["programs"], changed
    other = PROGRAM.replace("+", "-").replace("range", "sorted").replace("(", "[").replace(")", "]")
    assert not find(other, settings)  # the same names, and another program


def test_templates_with_other_numbers_are_other_items(settings: DecontaminateSettings) -> None:
    for old, new in (("14", "15"), ("30", "31"), ("2.50", "2.60"), ("2.50", "250"), ("5 eggs", "five eggs")):
        assert not find(FILLER + QUESTION.replace(old, new) + FILLER, settings), (old, new)
    for old, new in (("2.50", "2.5"), ("14", "014"), ("30 dollars", "$30 dollars"), ("14", "１４")):
        assert names(FILLER + QUESTION.replace(old, new) + FILLER, settings) == ["sums"], (old, new)
    both = QUESTION.replace("14", "99") + "\n" + QUESTION + "\n" + QUESTION.replace("30", "99")
    [hit] = find(both, settings)
    assert both[hit.start : hit.end] in QUESTION
    assert names("17. " + QUESTION + " 3", settings) == ["sums"]  # numbers around it are not its own


def test_numbers_at_an_items_edges_count(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(
        json.dumps({"question": "12 plus the sum of all the odd numbers that lie below 90"})
    )
    settings = DecontaminateSettings((EvalSet("a", (tmp_path,), kind="math"),))
    text = "plus the sum of all the odd numbers that lie below"
    for first, last, found in ((12, 90, 1), (13, 90, 0), (12, 91, 0), ("7) 12", "90, 91", 1), ("", 90, 0), (12, "", 0)):
        assert len(find(f"{first} {text} {last}", settings)) == found, (first, last)


def test_a_templates_opening_is_not_an_item(tmp_path: Path) -> None:
    opening = "If you follow these instructions, do you return to the starting point? Always face forward and then"
    (tmp_path / "a.jsonl").write_text(
        json.dumps({"question": f"{opening} go 4 steps left, 3 steps right, 1 step left."})
    )
    settings = DecontaminateSettings((EvalSet("a", (tmp_path,), kind="math"),))
    assert find(f"{opening} go 4 steps left, 3 steps right, 1 step left.", settings)
    assert not find(f"{opening} sit down.", settings)
    assert not find(f"{opening} go 6 steps left, 3 steps right, 1 step left.", settings)


def test_parts_of_an_item(settings: DecontaminateSettings) -> None:
    words = LONG.split()  # 84 of them
    for begin in (0, 5, 42):
        for count, found in ((42, True), (41, False), (13, False)):
            part = " ".join(words[begin : begin + count])
            assert bool(find(f"{FILLER}{part}; {FILLER}", settings)) is found, (begin, count)
    for count in (61, 62, 63):  # 61 words have 49 n-grams
        text = f"{FILLER}{' '.join(words[:count])}; {FILLER}"
        assert bool(find(text, settings, min_share=1.0, near="off")) is (count > 61)
        assert not find(text, settings, min_share=1.0, near="off", min_ngrams=None)


def test_short_items_are_matched_whole(settings: DecontaminateSettings) -> None:
    assert names(SHORT, settings) == ["facts"]
    assert not find(SHORT.replace("Veltheim", "Altdorf"), settings, near="off")
    assert not find("Too short to tell", settings)
    assert load_index(settings).too_short == {"sums": 0, "facts": 1, "programs": 0}


@pytest.mark.parametrize("near", ["exact", "minhash"])
def test_near_copies(settings: DecontaminateSettings, near: str) -> None:
    words = QUESTION.split()
    edited = " ".join("some" if i % 11 == 9 and not re.search(r"\d", w) else w for i, w in enumerate(words))
    assert edited != QUESTION
    [hit] = find(FILLER + edited + FILLER, settings, near=near)
    assert hit.near and 0.5 < hit.share < 1
    assert not find(FILLER + edited + FILLER, settings, near="off")
    assert not find(FILLER + edited.replace("14", "15") + FILLER, settings, near=near)
    assert not find(FILLER + " ".join(random.Random(0).sample(words, len(words))) + FILLER, settings, near=near)


def test_minhash_estimates_what_is_counted() -> None:
    generator = np.random.default_rng(0)
    values = generator.integers(0, 1 << 63, size=400, dtype=np.uint64)
    for shared in (0, 50, 100, 190, 200):
        field, stretch = values[:200], np.concatenate([values[:shared], values[200 : 400 - shared]])
        exact = containment(field, stretch, "exact", 0)
        assert exact == shared / 200
        assert abs(containment(field, stretch, "minhash", 512) - exact) < 0.08
    small, large = values[:100], values  # the share is of the first set, not a similarity
    assert containment(small, large, "exact", 0) == 1.0
    assert containment(small, large, "minhash", 1024) > 0.8
    assert containment(small, values[:0], "minhash", 128) == 0.0


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("He has 1,200 and 3.50, then 007.", ["1200", "3.5", "7"]),
        ("<<16-3-4=9>>9 eggs", ["9"]),
        ("x2 + 3y = 4.0", ["2", "3", "4"]),
        ("１２，０００元", ["12000"]),
        ("none", []),
        ("1,2,3", ["1", "2", "3"]),
    ],
)
def test_numbers_in_one_spelling(text: str, numbers: list[str]) -> None:
    assert numbers_in(text) == numbers


def test_items_across_the_joints_of_long_documents(settings: DecontaminateSettings, monkeypatch: Any) -> None:
    monkeypatch.setattr(match_module, "PIECE", 3000)
    monkeypatch.setattr(match_module, "OVERLAP", 600)
    for place in (0, 2300, 2350, 2400, 2700, 2990, 3100, 9000):
        text = (FILLER * 200)[:place] + "\n" + QUESTION + "\n" + FILLER * 20
        [hit] = find(text, settings)
        assert text[hit.start : hit.end] == QUESTION.rstrip("?"), place


def test_against_a_plain_search(tmp_path: Path) -> None:
    """Random words of a small vocabulary: an item is hit where a copied run covers enough of it, and nowhere else."""
    rng = random.Random(4)
    vocabulary = [f"w{i}" for i in range(3000)]
    items = [" ".join(rng.choices(vocabulary, k=rng.randrange(8, 60))) for _ in range(60)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"question": item}) + "\n" for item in items))
    settings = DecontaminateSettings((EvalSet("a", (tmp_path,)),), near="off", min_ngrams=None)
    index = load_index(settings)
    texts, expected = [], []
    for number in range(300):
        item = rng.randrange(len(items))
        words = items[item].split()
        begin = rng.randrange(len(words))
        run = words[begin : begin + rng.randrange(1, 60)]
        texts.append(" ".join([*rng.choices(vocabulary, k=number % 50), *run, *rng.choices(vocabulary, k=30)]))
        length = min(13, len(words))
        expected.append({f"a.jsonl#{item}"} if len(run) >= length and len(run) / len(words) >= 0.5 else set())
    found = [{hit.item for hit in hits} for hits in find_hits(texts, index, settings)]
    assert found == expected
    assert 60 < sum(map(bool, expected)) < 240


def test_probes_of_many_items_and_of_many_places(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(index_module, "MOST_PLACES", 3)
    monkeypatch.setattr(index_module, "MOST_OCCURRENCES", 2)
    common = "which of the following statements about the matter in hand"
    items = [f"{common} is true when all of the {word} are gone for good and forever more" for word in "abcdefgh"]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"question": item}) + "\n" for item in items))
    settings = DecontaminateSettings((EvalSet("a", (tmp_path,)),), near="off")
    for number, item in enumerate(items):
        found = {hit.item for hit in find(f"{common} {FILLER} {common} {FILLER} {item}", settings)}
        assert f"a.jsonl#{number}" in found


def test_changed_files_are_read_again(settings: DecontaminateSettings) -> None:
    assert names(QUESTION, settings) == ["sums"]
    settings.sets[0].paths[0].write_text(json.dumps({"question": LONG + " " + LONG}))
    assert not find(QUESTION, settings)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sets": ()}, "one or more sets"), ({"probe": 14}, "probe 14"), ({"ngram_zh": 5}, "ngram_zh is 5"),
        ({"min_share": 0.0}, "min_share"), ({"near_share": 1.5}, "near_share"), ({"min_ngrams": 0}, "min_ngrams"),
        ({"shingle": 9}, "shingle"), ({"hashes": 3}, "even"), ({"margin": -1}, "margin"),
    ],
)  # fmt: skip
def test_bad_settings(settings: DecontaminateSettings, change: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        replace(settings, **change)
    with pytest.raises(DataError, match="different names"):
        replace(settings, sets=(settings.sets[0], settings.sets[0]))
