"""The page: what it holds, that it is harmless, and what a browser makes of it."""

from __future__ import annotations

import base64
import gzip
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from puyulm.eval.compare import write_comparison
from puyulm.eval.report.charts import colour, dimension_means, draw_curve, draw_radar, kind_of, needle_maps, task_map
from puyulm.eval.report.samples import PART, Point, pack, shortened
from puyulm.eval.results import read_run
from tests.eval.made_runs import SCRIPT, answers, benchmark, full_run, result, sample, write

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    full_run(folder / "a", 0.8, 1, "org/<first>")
    full_run(folder / "b", 0.5, 2, "org/second")
    write_comparison([folder / "a", folder / "b"], folder / "compare.html")
    return folder


@pytest.fixture(scope="module")
def page(folder: Path) -> str:
    return (folder / "a" / "report.html").read_text("utf-8")


def test_the_page_needs_nothing_else(page: str) -> None:
    assert not re.search(r"""\s(?:src|href)\s*=\s*(?!"#)""", page.split("<script", 1)[0])
    assert "url(" not in page and "@import" not in page
    assert "default-src 'none'" in page


def test_what_the_page_says(folder: Path, page: str) -> None:
    run = read_run(folder / "a")
    main = run.results[0].scores.main
    for text in ("org/&lt;first&gt;", "puyu eval org/&lt;first&gt;", run.results[0].shown(main.value), "internlm3",
                 "5-shot likelihood", "torch 2.11.0", "effective length", "algebra", "d" * 16, "p" * 16):  # fmt: skip
        assert text.lower() in page.lower()
    assert "org/<first>" not in page


def test_what_is_not_there_is_not_spoken_of(tmp_path: Path) -> None:
    full_run(tmp_path / "full")
    page = (tmp_path / "full" / "report.html").read_text("utf-8")
    write(tmp_path, [result(benchmark(), answers(0.5, 1, 20), tmp_path, published={"another": 50.0})])
    alone = (tmp_path / "report.html").read_text("utf-8")
    assert "red mark" in page and 'class="tiles"' in page and " unpublished" not in page.split("</style>")[1]
    assert "red mark" not in alone and 'class="tiles"' not in alone and "alone unpublished" in alone
    assert "scores of 1 model<" in alone


def test_nothing_that_a_model_wrote_stands_in_the_page(folder: Path, page: str) -> None:
    assert SCRIPT not in page and "taken over" not in page and "onerror" not in page
    compared = (folder / "compare.html").read_text("utf-8")
    assert "onerror" not in compared and compared.count("</script>") == page.count("</script>")


def test_names_from_data_cannot_leave_their_place(tmp_path: Path) -> None:
    known = benchmark(SCRIPT[:9].strip("</>"), title=SCRIPT, subsets={SCRIPT: SCRIPT, "b": ""})
    rows = [sample(f"{n}", float(n % 2), SCRIPT if n % 2 else "b", note=SCRIPT) for n in range(10)]
    write(tmp_path, [result(known, rows, tmp_path, published={SCRIPT: 1.0})], SCRIPT)
    page = (tmp_path / "report.html").read_text("utf-8")
    assert "<img" not in page and "<script>document" not in page and "\u202e" not in page and "\x1b" not in page


def _unpacked(page: str) -> list[dict[str, Any]]:
    parts = re.findall(r'<script type="text/plain" class="samples">([^<]*)</script>', page)
    return [row for part in parts for row in json.loads(gzip.decompress(base64.b64decode(part)))]


def test_every_sample_is_in_the_page(folder: Path, page: str) -> None:
    rows = _unpacked(page)
    index = json.loads(re.findall(r'id="index">(.*?)</script>', page)[0])
    run = read_run(folder / "a")
    count = sum(result.scores.main.count for result in run.results)
    assert len(rows) == len(index["task"]) == len(index["state"][0]) == len(index["flags"][0]) == count > PART
    assert [task["title"] for task in index["tasks"]] == ["MMLU", "GSM8K", "RULER", "Needle", "MT-Bench"]
    [evil] = [row for row in rows if row["id"] == "3" and row["target"] == "3" and "How much" in row["prompt"]
              and "script" in row["answers"][0]["outputs"][0]]  # fmt: skip
    assert evil["answers"][0]["outputs"] == [SCRIPT]
    gsm8k = [place for place, task in enumerate(index["task"]) if task == 1]
    right = sum(index["state"][0][place] == "1" for place in gsm8k)
    assert right / len(gsm8k) == pytest.approx(run.results[1].scores.main.value)
    assert sum(index["flags"][0][place] == "3" for place in gsm8k) == 10  # cut off without an answer


def test_answers_of_several_models_stand_together(folder: Path, tmp_path: Path) -> None:
    runs = [read_run(folder / name) for name in "ab"]
    packed = pack([folder / "a", folder / "b"], ["a", "b"], [run.results for run in runs])
    assert len(packed.index["state"]) == 2 and "-" not in packed.index["state"][1]
    rows = json.loads(gzip.decompress(base64.b64decode(packed.parts[0])))
    assert all(len(row["answers"]) == 2 and "prompt" not in row["answers"][1] for row in rows)


def test_long_texts_lose_their_middle() -> None:
    assert shortened("a" * 1000, (300, 500)) == "a" * 1000
    assert (
        shortened("a" * 300 + "b" * 5000 + "c" * 500, (300, 500)) == f"{'a' * 300}\n[… 5,000 characters …]\n{'c' * 500}"
    )


def test_needle_maps() -> None:
    points = [Point(f"{kind}/{length}", length, depth, score)
              for kind in ("en", "zh") for length in (1024, 2048)
              for depth, score in ((0.0, 1.0), (50.0, 0.25), (50.0, 0.75))]  # fmt: skip
    found = needle_maps(points)
    assert [one.title for one in found] == ["en", "zh"]
    assert found[0].columns == ("1K", "2K") and found[0].rows == ("0 %", "50 %")
    assert found[0].cells == ((1.0, 1.0), (0.5, 0.5))
    assert needle_maps([*points, Point("x", 1024, None, 1.0)]) == needle_maps([]) == []
    many = needle_maps([Point("", 1024, depth / 2, 1.0) for depth in range(201)])
    assert len(many[0].rows) == 21 and many[0].rows[-1] == "100 %"


def test_lengths_are_no_part_of_a_task_s_name() -> None:
    assert [kind_of(name, 4096) for name in ("vt/4K", "vt/4096", "vt@4k", "vt", "4K")] == ["vt", "vt", "vt", "vt", ""]
    found = task_map([Point("vt/4K", 4096, None, 1.0), Point("cwe/8K", 8192, None, 0.5)])
    assert found is not None and found.rows == ("vt", "cwe") and found.cells == ((1.0, None), (None, 0.5))


def test_the_curve_goes_down_where_scores_do(folder: Path) -> None:
    run = read_run(folder / "a")
    curve = draw_curve([run.results[2], None])
    assert curve is not None and [label for _, label in curve.ticks] == ["4K", "8K", "16K"]
    line, nothing = curve.lines
    assert nothing is None and line is not None and curve.threshold is not None
    for (_, y, low, high, _), one in zip(line.points, run.results[2].scores.lengths.values(), strict=True):
        assert y == pytest.approx(250 * (1 - one.value)) and high <= y <= low  # down is less
    assert draw_curve([run.results[0]]) is None


def test_the_radar_has_the_dimensions_that_are_there(folder: Path) -> None:
    results = read_run(folder / "a").results
    means = dimension_means(results)
    assert list(means) == ["Exams", "Reasoning and mathematics", "Long context"]  # ratings are no percents
    assert means["Long context"] == pytest.approx(sum(one.scores.main.value for one in results[2:4]) / 2)
    radar = draw_radar([results])
    assert radar is not None and len(radar.axes) == 3 and draw_radar([results[:2]]) is None
    x, y = (float(one) for one in radar.shapes[0][0].split()[0].split(","))
    assert x == 0 and y == pytest.approx(-130 * means["Exams"], abs=0.1)


def test_colours() -> None:
    assert colour(0.0) == "#c44e52" and colour(1.0) == colour(1.5) and colour(None) == "transparent"
    assert len({colour(share / 20) for share in range(21)}) == 21


def test_needle_maps_as_pictures(folder: Path) -> None:
    images = pytest.importorskip("PIL.Image")
    with images.open(folder / "a" / "needle-en.png") as image:
        assert image.size[0] > 200 and image.getpixel((112, 58)) == (147, 179, 120)  # 0.8 at 1K and depth 0
    assert (folder / "a" / "needle-zh.png").is_file()


# In a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    if BROWSER is None:
        pytest.skip("needs Chromium")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield browser
        browser.close()


def _open(browser: Any, path: Path) -> tuple[Any, list[str]]:
    page, problems = browser.new_page(), []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    page.on("request", lambda sent: problems.append(sent.url) if not sent.url.startswith("file:") else None)
    page.goto(path.as_uri())
    page.wait_for_selector(".item")
    return page, problems


def _wait(page: Any, selector: str, beginning: str) -> None:
    """Until a text begins so; the page's own rules forbid scripts of others."""
    page.locator(selector, has_text=re.compile(f"^{re.escape(beginning)}")).wait_for()


def test_samples_in_a_browser(browser: Any, folder: Path) -> None:
    page, problems = _open(browser, folder / "a" / "report.html")
    total = len(_unpacked((folder / "a" / "report.html").read_text("utf-8")))
    found = page.locator("#found")
    assert found.inner_text() == f"{total} of {total}" and page.locator(".item").count() == 50
    page.select_option("#task", label="GSM8K")
    _wait(page, "#found", "200 ")
    page.check("#cut")
    _wait(page, "#found", "10 ")
    assert page.locator(".item .no").count() == 10
    page.uncheck("#cut")
    page.fill("#text", "taken OVER")
    _wait(page, "#found", "1 of")
    page.locator(".item summary").click()
    page.locator(".item .body").wait_for()
    shown = page.locator(".item .text").all_inner_texts()
    assert any("</script><script>" in text and "[U+202E][U+001B]" in text for text in shown)
    assert page.title() == "Evaluation: org/<first>" and page.locator("img").count() == 0
    page.fill("#text", "")
    page.select_option("#task", label="MMLU")
    _wait(page, "#found", "120 ")
    page.select_option("#subset", label="law")
    _wait(page, "#found", "50 ")
    page.locator(".item summary").first.click()
    page.locator(".item .choices").wait_for()
    assert page.locator(".choices .picked td").all_inner_texts()[-1] == "-0.500"
    assert problems == []
    page.close()


def test_pages_of_samples_in_a_browser(browser: Any, tmp_path: Path) -> None:
    write(tmp_path, [result(benchmark(), answers(0.5, 1, 6_123), tmp_path)])
    page, problems = _open(browser, tmp_path / "report.html")
    assert page.locator("#page").inner_text() == "1 / 123" and page.locator("#back").is_disabled()
    page.locator("#on").click()
    _wait(page, "#page", "2 / 123")
    assert "50" in page.locator(".item .what").first.inner_text()
    page.fill("#text", "6122。")
    _wait(page, "#found", "1 of 6,123")
    assert page.locator(".item").count() == 1 and problems == []
    page.close()


def test_ids_can_be_read(browser: Any, tmp_path: Path) -> None:
    subsets = {"a_subset_with_a_very_long_name": "", "another_subset_with_a_long_name": ""}
    rows = [sample(f"{subset}/1024/{n}", 1.0, subset) for subset in subsets for n in range(3)]
    known = [benchmark(name, title=f"A benchmark with a very long {name}", subsets=subsets) for name in ("x", "y")]
    write(tmp_path, [result(one, rows, tmp_path) for one in known])
    page, problems = _open(browser, tmp_path / "report.html")
    ids = page.locator(".item .id")
    assert ids.all_inner_texts()[:3] == ["1024/0", "1024/1", "1024/2"]
    right = "one.getBoundingClientRect().right <= one.parentNode.getBoundingClientRect().right"
    for width in (390, 800, 1200):
        page.set_viewport_size({"width": width, "height": 900})
        assert ids.evaluate_all(f"all => all.every(one => one.scrollWidth <= one.clientWidth && {right})")
        assert page.evaluate("document.documentElement.scrollWidth") == width and problems == []
    page.close()


def test_a_comparison_fits_a_telephone(browser: Any, folder: Path) -> None:
    page, problems = _open(browser, folder / "compare.html")
    page.set_viewport_size({"width": 390, "height": 900})
    heights = page.locator(".pairs tr, .again tr").evaluate_all("all => all.map(one => one.offsetHeight)")
    assert len(heights) > 10 and max(heights) < 70  # two lines
    assert page.evaluate("document.documentElement.scrollWidth") == 390 and problems == []
    page.close()


def test_a_comparison_in_a_browser(browser: Any, folder: Path) -> None:
    page, problems = _open(browser, folder / "compare.html")
    page.select_option("#task", label="GSM8K")
    page.check("#apart")
    page.select_option("#verdict", label="right")
    page.locator(".item .marks span:nth-child(1):not(.yes)").first.wait_for(state="detached")
    assert page.locator(".item .marks span:nth-child(2)").first.get_attribute("class") == "no"
    page.locator(".item summary").first.click()
    assert page.locator(".body .answers h4 b").first.inner_text() == "org/<first>" and problems == []
    page.close()
