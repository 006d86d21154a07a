"""Models on the same questions."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from puyulm.errors import DataError
from puyulm.eval.benchmark import Sample
from puyulm.eval.benchmarks import gaokao, perplexity
from puyulm.eval.compare import compare, p_shown, page_of, signed, text, write_comparison
from puyulm.eval.results import read_run
from puyulm.eval.statistics import mcnemar_p, paired_interval
from puyulm.eval.task import Setting
from tests.eval.made_runs import answers, benchmark, full_run, result, sample, write


def _run(folder: Path, values: dict[str, float], model: str, **changes: Any) -> Path:
    target = changes.pop("target", None)
    rows = [sample(id, value, **({"target": target} if target and id == "q0" else {})) for id, value in values.items()]
    write(folder, [result(benchmark(), rows, folder, **changes)], model)
    return folder


def test_two_models_with_known_answers(tmp_path: Path) -> None:
    first = {f"q{n}": float(n < 60) for n in range(100)}
    second = {f"q{n}": float(n < 50 or n >= 75) for n in range(100)}  # loses 10, gains 25
    found = compare([_run(tmp_path / "a", first, "a"), _run(tmp_path / "b", second, "b")])
    [one] = found.benchmarks
    [gap] = one.differences
    assert (gap.better, gap.worse, gap.test) == (25, 10, "McNemar") and gap.value == pytest.approx(0.15)
    assert gap.p == mcnemar_p(10, 25) == gap.corrected and gap.sure
    assert (gap.low, gap.high) == paired_interval(10, 25, 100)
    assert [estimate.value for estimate in one.estimates] == [0.6, 0.75] and one.warnings == ()


def test_only_common_questions_count(tmp_path: Path) -> None:
    first = {f"q{n}": 1.0 for n in range(10)}
    second = {f"q{n}": 0.0 for n in range(5, 20)} | {"q0": 0.0}
    a = _run(tmp_path / "a", first, "a", target="right")
    b = _run(tmp_path / "b", second, "b", target="another", prompts_hash="other")
    [one] = compare([a, b]).benchmarks
    assert (one.count, one.left_out) == (5, 15)  # the same id is not the same question
    assert one.differences[0].value == -1 and one.warnings == ("prompts are not the same",)
    assert "15 questions were not asked, or not the same, for all" in text(compare([a, b]))


def test_models_that_are_alike(tmp_path: Path) -> None:
    values = {f"q{n}": float(n % 3 == 0) for n in range(30)}
    [one] = compare([_run(tmp_path / name, values, "same") for name in "ab"]).benchmarks
    assert one.differences[0].p == 1 and not one.differences[0].sure
    assert compare([tmp_path / "a", tmp_path / "b"]).names == ("same (a)", "same (b)")


def test_partly_right_answers_and_subsets_are_tested_by_flipping_signs(tmp_path: Path) -> None:
    known = benchmark(subsets={"s": "", "t": ""}, average="subsets")
    for name, less in (("a", 0.0), ("b", 0.25)):
        rows = [sample(f"{subset}{n}", max((n % 5) / 4 - less, 0), subset) for subset, count in (("s", 40), ("t", 20))
                for n in range(count)]  # fmt: skip
        write(tmp_path / name, [result(known, rows, tmp_path / name)], name)
    [gap] = compare([tmp_path / "a", tmp_path / "b"]).benchmarks[0].differences
    assert gap.test == "sign flips" and gap.value == pytest.approx(-0.2) and gap.p < 0.001
    assert gap.low < -0.2 < gap.high < 0
    scores = [read_run(tmp_path / name).results[0].scores.main.value for name in "ab"]
    assert gap.value == pytest.approx(scores[1] - scores[0])


def test_subsets_without_any_difference_still_leave_room(tmp_path: Path) -> None:
    known = benchmark(subsets={"s": "", "t": ""}, average="subsets")
    for name in "ab":
        rows = [sample(f"{subset}{n}", float(n < 5), subset) for subset, count in (("s", 10), ("t", 30))
                for n in range(count)]  # fmt: skip
        write(tmp_path / name, [result(known, rows, tmp_path / name)], name)
    [gap] = compare([tmp_path / "a", tmp_path / "b"]).benchmarks[0].differences
    assert (gap.value, gap.p) == (0, 1) and (gap.low, gap.high) == pytest.approx(paired_interval(0, 0, 30))
    assert gap.high > 0.05


def test_three_models_are_corrected_together(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in "abc"]
    for seed, folder in enumerate(folders):
        write(folder, [result(benchmark(), answers(0.5 + 0.15 * seed, seed), folder)], folder.name)
    [one] = compare(folders).benchmarks
    assert [(gap.first, gap.second) for gap in one.differences] == [(0, 1), (0, 2), (1, 2)]
    least = min(one.differences, key=lambda gap: gap.p)
    assert least.corrected == pytest.approx(min(1, 3 * least.p))
    assert all(gap.corrected >= gap.p for gap in one.differences)


def test_scores_that_are_no_means_of_rows_are_resampled(tmp_path: Path) -> None:
    known = replace(gaokao.BENCHMARK, subsets={"a": ""})
    for name, right in (("a", 20), ("b", 34)):
        rows = [sample(f"{n}", float(n < right), "a", metric="score", extra={"points": 1 + n % 3}) for n in range(40)]
        write(tmp_path / name, [result(known, rows if name == "a" else rows[::-1], tmp_path / name)], name)
    [one] = compare([tmp_path / "a", tmp_path / "b"]).benchmarks
    [gap] = one.differences
    scores = [read_run(tmp_path / name).results[0].scores.main.value for name in "ab"]
    assert [estimate.value for estimate in one.estimates] == scores
    points = [1 + n % 3 for n in range(40)]
    assert gap.test == "bootstrap" and gap.value == pytest.approx(sum(points[20:34]) / sum(points))
    assert gap.low < gap.value < gap.high and gap.high - gap.low < 0.4  # pairs: far less than two intervals' width
    assert 0 < gap.p < 0.001 and "bootstrap</td>" not in text(compare([tmp_path / "a", tmp_path / "b"]))
    lines = (tmp_path / "a" / "judged" / "gaokao.jsonl").read_text().replace('"points"', '"other"')
    (tmp_path / "a" / "judged" / "gaokao.jsonl").write_text(lines)
    with pytest.raises(DataError, match="is not what this version needs"):
        compare([tmp_path / "a", tmp_path / "b"])


def test_perplexities_have_no_score_of_a_row(tmp_path: Path) -> None:
    for name, nats in (("a", 1.5), ("b", 2.5)):
        scores = [{"nats": nats * (9 + n), "tokens": 9 + n, "bytes": 40} for n in range(5)]
        rows = [Sample(str(n), "", 0, "", (), None, own, extra={"words": 8}) for n, own in enumerate(scores)]
        write(tmp_path / name, [result(perplexity.BENCHMARK, rows, tmp_path / name)], name)
    found = compare([tmp_path / "a", tmp_path / "b"])
    assert found.benchmarks[0].differences[0].value == pytest.approx(math.exp(2.5) - math.exp(1.5))
    assert found.benchmarks[0].count == 5 and "4.48" in text(found) and "12.18" in text(found)


def test_what_cannot_be_compared(tmp_path: Path) -> None:
    a = _run(tmp_path / "a", {"q0": 1.0}, "a")
    write(tmp_path / "b", [result(benchmark("other"), [sample("q0", 1.0)], tmp_path / "b")], "b")
    with pytest.raises(DataError, match="needs two folders"):
        compare([a])
    with pytest.raises(DataError, match="no benchmark in common"):
        compare([a, tmp_path / "b"])
    with pytest.raises(DataError, match=r"has no results\.json"):
        compare([a, tmp_path / "c"])


def test_ways_of_asking_that_differ_are_named(tmp_path: Path) -> None:
    a = _run(tmp_path / "a", {"q0": 1.0}, "a")
    b = _run(tmp_path / "b", {"q0": 1.0}, "b", prompts_hash="x", protocol="internlm2")
    [one] = compare([a, b]).benchmarks
    assert one.warnings == ("asked in different ways: a 4-shot chat, internlm3; b 4-shot chat, internlm2",)


def test_each_model_has_its_own_way_where_they_differ(tmp_path: Path) -> None:
    for name, shots in (("a", 5), ("b", 0)):
        _run(
            tmp_path / name, {"q0": 1.0, name: 1.0}, name, prompts_hash=name, setting=Setting(mode="chat", shots=shots)
        )
    write_comparison([tmp_path / "a", tmp_path / "b"], tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text("utf-8")
    assert page.index("5-shot chat</span></td>") < page.index("0-shot chat</span></td>")
    assert "a 5-shot chat, internlm3; b 0-shot chat, internlm3" in page
    assert "Bold: below 0.05." in page and "Holm" not in page  # a single test
    _run(tmp_path / "b", {"q0": 1.0, "b": 1.0}, "b", setting=Setting(mode="chat", shots=5))
    write_comparison([tmp_path / "a", tmp_path / "b"], tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text("utf-8").count("5-shot chat</span>") == 1


def test_one_question_is_not_several(tmp_path: Path) -> None:
    a = _run(tmp_path / "a", {"q0": 1.0, "q1": 1.0}, "a")
    assert "1 question was not asked" in text(compare([a, _run(tmp_path / "b", {"q0": 1.0}, "b")]))


def test_a_folder_is_given_for_the_page(tmp_path: Path) -> None:
    folders = [_run(tmp_path / name, {"q0": 1.0}, name) for name in "ab"]
    write_comparison(folders, folders[0])
    assert (folders[0] / "compare.html").is_file() and page_of(folders[0]) == folders[0] / "compare.html"
    assert page_of(tmp_path / "new.html") == tmp_path / "new.html"


def test_the_page_and_the_text(tmp_path: Path) -> None:
    full_run(tmp_path / "a", 0.8, 1, "org/first")
    full_run(tmp_path / "b", 0.5, 2, "org/second")
    found = write_comparison([tmp_path / "a", tmp_path / "b"], tmp_path / "compare.html")
    assert len(found.benchmarks) == 5 and found.missing == ()
    lines = text(found).splitlines()
    assert lines[0].split() == ["questions", "org/first", "org/second"] and lines[1].startswith("MMLU")
    page = (tmp_path / "compare.html").read_text("utf-8")
    assert (
        "models disagree" in page
        and "Holm for all 5 tests" in page
        and page.count("sign flips</td>") >= 3
        and "McNemar</td>" in page
    )


def test_numbers_as_they_are_shown(tmp_path: Path) -> None:
    known = result(benchmark(), [sample("1", 1.0)], tmp_path)
    assert [signed(known, value) for value in (0.051, -0.2, 0.0, float("nan"))] == ["+5.1", "-20.0", "+0.0", "-"]
    assert [p_shown(p) for p in (0.00001, 0.0012, 0.0456, 0.456)] == ["<0.0001", "0.0012", "0.046", "0.46"]
