"""What a run found: scores of samples, files and back, and the table in the terminal."""

from __future__ import annotations

import csv
import json
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from puyulm.errors import DataError
from puyulm.eval.report.terminal import aligned, effective, published_shown, short_length, table
from puyulm.eval.results import (
    RESULTS_FILE,
    TABLE_FILE,
    Result,
    Run,
    read_run,
    read_samples,
    score,
    write_results,
    write_samples,
)
from tests.eval.made_runs import SCRIPT, answers, benchmark, full_run, result, sample, write


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    full_run(folder)
    return folder


def test_scores_of_subsets_groups_and_both_averages() -> None:
    known = benchmark(subsets={"a": "g", "b": "g", "c": "h"}, average="subsets")
    rows = [sample(f"{subset}{n}", float(n < right), subset) for subset, right, count in (("a", 4, 4), ("b", 1, 2),
            ("c", 0, 10)) for n in range(count)]  # fmt: skip
    found = score(known, rows)
    assert found.main.value == pytest.approx((1 + 0.5 + 0) / 3) and found.main.count == 16
    assert found.other is not None and found.other.value == pytest.approx(5 / 16)
    assert {name: one.value for name, one in found.subsets.items()} == {"a": 1, "b": 0.5, "c": 0}
    assert {name: one.value for name, one in found.groups.items()} == {"g": 0.75, "h": 0}
    assert found.members == {"a": "g", "b": "g", "c": "h"} and found.lengths == {}


def test_one_subset_has_no_parts() -> None:
    found = score(benchmark(metrics=("accuracy", "strict")), [
        sample("1", 1.0, extra={}), sample("2", 0.0),
    ])  # fmt: skip
    assert found.subsets == found.groups == found.members == {} and found.other is None
    assert list(found.metrics) == ["accuracy"]  # what no row has is of another mode


def test_effective_length_ends_where_the_threshold_is_first_missed(tmp_path: Path) -> None:
    def of(*rights: int) -> Result:
        rows = [sample(f"{place}/{n}", float(n < right), extra={"length": 4096 << place})
                for place, right in enumerate(rights) for n in range(100)]  # fmt: skip
        return result(benchmark("ruler"), rows, tmp_path)

    assert of(95, 86, 85, 90).scores.effective_length() == 8192
    assert effective(of(95, 86, 85, 90)) == "8K" and effective(of(85, 99)) == "<4K" and effective(of(99)) == "4K"


def test_a_run_is_read_as_it_was_written(folder: Path, tmp_path: Path) -> None:
    run = read_run(folder)
    assert run.published(run.results[0]) == 70.5 and [one.name for one in run.results][:2] == ["mmlu", "gsm8k"]
    write_results(run, tmp_path)
    assert read_run(tmp_path) == run
    assert (tmp_path / RESULTS_FILE).read_bytes() == (folder / RESULTS_FILE).read_bytes()


def test_bounds_that_nobody_knows_are_null(tmp_path: Path) -> None:
    write(tmp_path, [result(benchmark(), [sample("1", 0.3)], tmp_path)])
    row = json.loads((tmp_path / RESULTS_FILE).read_text())["results"][0]["scores"]["metrics"]["accuracy"]
    assert row["low"] is None and row["value"] == 0.3
    assert math.isnan(read_run(tmp_path).results[0].scores.main.low)
    assert table(read_run(tmp_path)).split()[-2:] == ["30.0", "70.5"]


def test_samples_are_read_as_they_were_written(tmp_path: Path) -> None:
    outputs = ("half \ud83d", "\u2028line", SCRIPT)
    rows = [sample("1", 1.0, outputs=outputs, target=["a", 2], note="汉字", extra={"x": [1]}),
            sample("2", 0.0, answer=None)]  # fmt: skip
    found = result(benchmark(), rows, tmp_path)
    assert list(read_samples(tmp_path, found)) == rows


@pytest.mark.parametrize("line", ["{}", "[1]", "nonsense", '{"id": "1"}', "null", '{"outputs": 3}'])
def test_damaged_samples(line: str, tmp_path: Path) -> None:
    rows = [sample("1", 1.0)]
    found = result(benchmark(), rows, tmp_path)
    with (tmp_path / found.samples).open("a") as file:
        file.write(line + "\n")
    with pytest.raises(DataError, match=r"gsm8k.jsonl:2: not a sample; run gsm8k again"):
        list(read_samples(tmp_path, found))
    (tmp_path / found.samples).unlink()
    with pytest.raises(DataError, match="is missing"):
        list(read_samples(tmp_path, found))


def test_what_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no results.json: give a folder"):
        read_run(tmp_path)
    (tmp_path / RESULTS_FILE).write_text('{"format": 99}')
    with pytest.raises(DataError, match="of format 99"):
        read_run(tmp_path)


def _paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path] * bool(path) + [one for key, child in children for one in _paths(child, (*path, key))]


@settings(max_examples=150, deadline=None, derandomize=True)
@given(pick=st.randoms(use_true_random=False), junk=st.sampled_from([None, 3, "text", [], {}, [1], {"a": 1}, True]))
def test_damaged_results_never_give_a_traceback(folder: Path, pick: random.Random, junk: Any) -> None:
    text = (folder / RESULTS_FILE).read_text()
    row = json.loads(text)
    path = pick.choice(_paths(row))
    owner = row
    for key in path[:-1]:
        owner = owner[key]
    if pick.random() < 0.3:
        del owner[path[-1]]
    else:
        owner[path[-1]] = junk
    damaged = json.dumps(row) if pick.random() < 0.9 else text[: pick.randrange(len(text))]
    broken = folder / "broken"
    broken.mkdir(exist_ok=True)
    (broken / RESULTS_FILE).write_text(damaged)
    try:
        assert isinstance(table(read_run(broken), subsets=True), str)
    except DataError as error:
        assert "\n" not in str(error) and str(broken) in str(error)


def test_csv_has_a_row_for_each_score(folder: Path) -> None:
    run = read_run(folder)
    rows = list(csv.DictReader((folder / TABLE_FILE).open(encoding="utf-8")))
    [whole] = [row for row in rows if row["benchmark"] == "mmlu" and row["of"] == "all"]
    main = run.results[0].scores.main
    assert float(whole["score"]) == pytest.approx(100 * main.value, abs=1e-4)
    assert whole["published"] == "70.5" and whole["shots"] == "5" and whole["mode"] == "likelihood"
    assert {row["name"] for row in rows if row["of"] == "subset" and row["benchmark"] == "mmlu"} == {
        "algebra", "physics", "law",
    }  # fmt: skip
    [rating] = [row for row in rows if row["benchmark"] == "mt_bench" and row["of"] == "all"]
    assert float(rating["score"]) == pytest.approx(6.5)  # not a percentage


def test_the_table(tmp_path: Path) -> None:
    exam = benchmark("ceval", title="测验", subsets={"a": "理科", "b": "文科"}, average="subsets")
    rows = [sample(f"a{n}", float(n < 30), "a") for n in range(40)] + [sample(f"b{n}", 0.0, "b") for n in range(10)]
    rated = [sample(str(n), 5.0 + n % 3, metric="rating") for n in range(9)]
    run = write(tmp_path, [
        result(exam, rows, tmp_path),
        result(benchmark("mt_bench", metrics=("rating",), percent=False), rated, tmp_path, published={"model_a": 7.7}),
    ])  # fmt: skip
    assert table(run, subsets=True).splitlines() == [
        "                asked        questions  score  95 % interval  published",
        "测验            4-shot chat         50   37.5  30.8 to 43.6        70.5",
        "  mean of rows                      50   60.0  46.2 to 72.4",
        "  理科                              40   75.0  59.8 to 85.8",
        "    a                               40   75.0  59.8 to 85.8",
        "  文科                              10    0.0  0.0 to 27.8",
        "    b                               10    0.0  0.0 to 27.8",
        "MT_BENCH        4-shot chat          9   6.00  5.50 to 6.62         7.7",
    ]


def test_shares_of_judgements_are_percents_beside_ratings(tmp_path: Path) -> None:
    rows = [sample(str(n), 0, metric="score") for n in range(10)]
    rows = [replace(one, scores={"score": 5.0 + n % 3} if n else {}) for n, one in enumerate(rows)]
    rows = [replace(one, scores={**one.scores, "unread": float(not n)}) for n, one in enumerate(rows)]
    known = benchmark("judged", metrics=("score", "unread"), percent=False)
    found = result(known, rows, tmp_path, published={})
    assert [found.shown(0.1, name) for name in (None, "score", "unread")] == ["0.10", "0.10", "10.0 %"]
    run = write(tmp_path, [found])
    assert [line.split() for line in table(run).splitlines()[1:]] == [
        ["JUDGED", "4-shot", "chat", "9", "6.00", "5.50", "to", "6.62"],
        ["unread", "10", "10.0", "%", "1.8", "%", "to", "40.4", "%"],
    ]
    scores = {row["metric"]: row["score"] for row in csv.DictReader((tmp_path / TABLE_FILE).open(encoding="utf-8"))}
    assert scores == {"score": "6.0000", "unread": "10.0000"}
    page = (tmp_path / "report.html").read_text("utf-8")
    assert '<td class="n">10.0 %</td><td class="n">1.8 % to 40.4 %</td>' in page


def test_the_published_score_is_found_whatever_way_the_model_is_written(tmp_path: Path) -> None:
    found = result(benchmark(), answers(0.5, 1, 20), tmp_path, published={"internlm2_5-7b-chat": 86.0})
    for name, value in {
        "internlm/internlm2_5-7b-chat": 86.0,
        "InternLM2.5-7B-Chat": 86.0,
        "internlm2_5-7b": None,
    }.items():
        run = Run(model=name, fingerprint="", command="", versions={}, date="", results=(found,))
        assert run.published(found) == value


def test_published_scores_keep_their_decimals() -> None:
    assert [published_shown(score) for score in (71.6, 83.0, 62.05)] == ["71.6", "83.0", "62.05"]


def test_lengths_in_short() -> None:
    assert [short_length(n) for n in (500, 1024, 4096, 1536, 131072, 1 << 20)] == [
        "500",
        "1K",
        "4K",
        "1.5K",
        "128K",
        "1M",
    ]


def test_wide_signs_are_two_columns() -> None:
    assert aligned([["", "score"], ["汉字", "1"], ["abcde", "10"]]).splitlines() == [
        "       score",
        "汉字       1",
        "abcde     10",
    ]


def test_sample_files_are_replaced_whole(tmp_path: Path) -> None:
    place = write_samples([sample("1", 1.0)], tmp_path, "gsm8k")
    assert write_samples([sample("2", 1.0)], tmp_path, "gsm8k") == place == "judged/gsm8k.jsonl"
    assert len((tmp_path / place).read_text().splitlines()) == 1 and len(list((tmp_path / "judged").iterdir())) == 1
