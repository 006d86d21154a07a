"""The page: whole, self-contained, the same each time, small, and harmless whatever the documents hold."""

from __future__ import annotations

import base64
import hashlib
import re
import shutil
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from puyulm.data.documents import Document
from puyulm.data.pipeline.counts import Counts, Dropped
from puyulm.data.report.contamination import find_hits, find_masked
from puyulm.data.report.facts import load_run
from puyulm.data.report.page import MAX_PAGE_BYTES, render, write_report
from tests.data.report.fake_run import make_run, write_plan, write_stage

VOID = {"meta", "input", "br", "link", "img", "path", "rect"}
EVIL = [
    "<script>alert(1)</script>", "</div></section><h1>owned</h1>", '"><img src=x onerror=alert(1)>', "&lt;b&gt; &#60;",
    "{{ 7 * 7 }}{% raw %}", "a\x00b\x1b[31mc\x9b", "abc\u202egnp.exe\u2066", "half \ud83d of a pair",
    "]]><!-- --><style>",
    "javascript:alert(1)", "' onmouseover='alert(1)", "\u2028\u2029\ufeff", "Z" + "\u0301" * 400,
]  # fmt: skip


class Page(HTMLParser):
    """Parses a page strictly: tags must nest. Keeps tags with attributes, and the text outside of script and style."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert not self._open, self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.text += " " if tag == "td" else ""
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open and self._open.pop() == tag, (tag, self.getpos())

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self._open):
            self.text += data


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory) -> Path:
    return make_run(tmp_path_factory.mktemp("run") / "corpus", 900, 2)


@pytest.fixture(scope="module")
def page_text(run_folder: Path, tmp_path_factory) -> str:
    target = tmp_path_factory.mktemp("page") / "report.html"
    write_report(run_folder, target)
    return target.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(page_text: str) -> Page:
    return Page(page_text)


def counted(documents: list[Document], reason: str = "") -> Counts:
    """Counts of documents that are all kept, or all dropped."""
    counts = Counts()
    for document in documents:
        counts.add_input(document.num_bytes)
        counts.add(Dropped(document, reason) if reason else document)
    return counts


def one_stage(folder: Path, counts: Counts, kind: str = "clean", settings: dict[str, object] | None = None) -> Path:
    write_plan(folder, [f"01-{kind}"], "out: x\n")
    write_stage(folder / f"01-{kind}", kind, [asdict(counts)], settings or {})
    return folder


def test_every_section_is_there(page: Page) -> None:
    sections = [attributes["id"] for tag, attributes in page.tags if tag == "section"]
    assert sections == ["stages", "flow", "dropped", "lengths", "sources", "duplicates", "contamination", "counters",
                        "tokens", "mixture", "recipe"]  # fmt: skip
    links = [attributes["href"] for tag, attributes in page.tags if tag == "a"]
    assert links == [f"#{section}" for section in sections]


def test_it_needs_nothing_else(page: Page, page_text: str) -> None:
    for tag, attributes in page.tags:
        assert tag not in ("link", "img", "iframe", "object", "embed", "form", "base")
        assert not {"src", "srcset", "action", "background", "xlink:href"} & set(attributes)
        assert tag == "a" or "href" not in attributes
        assert not any(name.startswith("on") for name in attributes)
    assert "@import" not in page_text and "url(" not in page_text
    assert len(page_text.encode()) < 1_000_000


def test_only_its_own_script_may_run(page: Page, page_text: str) -> None:
    [policy] = [a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy"]
    [script] = re.findall(r"<script>(.*?)</script>", page_text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in str(policy) and "default-src 'none'" in str(policy)


def test_figures_are_those_of_the_run(run_folder: Path, page: Page) -> None:
    run = load_run(run_folder)
    text = " ".join(page.text.split())
    for stage in run.stages[:6]:
        counts = stage.result.counts
        assert f"dropped {sum(d for d, _ in counts.dropped.values()):,} of {counts.documents_in:,} documents" in text
        for reason in counts.dropped:
            assert reason in text
        assert counts.documents_in == counts.documents_out + sum(d for d, _ in counts.dropped.values())
    kept = run.stages[5].result.counts
    for source, languages in kept.groups.items():
        for language, (documents, size) in languages.items():
            assert f"{language}-{source} {documents:,} {size / 1e6:,.2f} {100 * size / kept.bytes_out:.2f} %" in text
    assert "25 bands of 5 rows find half of the pairs of similarity 0.49, and 99 % at the threshold of 0.70" in text
    assert "2.0 B tokens of 2.0 B wanted" in text


def test_samples_can_be_read(run_folder: Path, page: Page) -> None:
    for stage in load_run(run_folder).stages[:6]:
        for samples in stage.result.counts.dropped_samples.values():
            for sample in samples:
                assert sample["id"] in page.text
                assert sample["text"][:200] in page.text


def test_chinese_is_told_to_the_browser(page: Page) -> None:
    texts = [attributes for tag, attributes in page.tags if "text" in str(attributes.get("class", "")).split()]
    assert {attributes.get("lang") for attributes in texts} >= {"en", "zh", "code"} - {"code"}
    assert all(attributes.get("dir") == "auto" for attributes in texts if attributes.get("lang"))
    assert any("code" in str(attributes["class"]) for attributes in texts)


def test_the_same_run_gives_the_same_page(run_folder: Path, page_text: str, tmp_path: Path) -> None:
    write_report(run_folder, tmp_path / "again.html")
    assert (tmp_path / "again.html").read_text(encoding="utf-8") == page_text


@pytest.mark.parametrize("evil", EVIL)
def test_hostile_documents_are_only_text(tmp_path: Path, evil: str) -> None:
    pages = []
    for name, word in (("evil", evil), ("plain", "word")):
        document = Document(
            word, word, word, word, url=word, scores={word: 0.5}, metadata={word: [word], "dropped": word}
        )
        counts = counted([document], f"gopher: {word}")
        counts.merge(counted([replace(document, id=f"b{word}")]))
        counts.note(word, 3)
        folder = one_stage(tmp_path / name, counts, settings={"bands": 1, "rows": 1, word: word})
        (folder / "recipe.yaml").write_text(word, encoding="utf-8", errors="replace")
        pages.append(render(load_run(folder)))
    text, plain = pages[0], Page(pages[1])
    text.encode("utf-8")
    page = Page(text)
    without_odd = [(tag, attributes) for tag, attributes in page.tags if attributes.get("class") != "odd"]
    assert [tag for tag, _ in without_odd] == [tag for tag, _ in plain.tags]
    assert [set(a) - {"lang"} for _, a in without_odd] == [set(a) - {"lang"} for _, a in plain.tags]
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", text)


def test_numbers_that_are_no_numbers(tmp_path: Path) -> None:
    document = Document("a", "text", "en", "s", scores={"x": float("nan"), "y": 1e400}, metadata={"deep": [[[[]]]]})
    text = render(load_run(one_stage(tmp_path, counted([document], "gopher: x"))))
    assert "x nan" in text


def test_a_huge_run_stays_small(tmp_path: Path) -> None:
    counts = Counts(documents_in=10**12, bytes_in=10**16, documents_out=10**11, bytes_out=10**15)
    sample = {
        "key": "k", "id": "i" * 500, "source": "s" * 300, "language": "zh", "url": "u" * 3000, "characters": 1200,
        "text": "\u202e汉字<汉字汉字" * 150, "scores": {f"s{i}": 0.5 for i in range(50)}, "metadata": {"m": "<" * 500},
    }  # fmt: skip
    for rule in range(60):
        reason = f"family {rule % 20}: rule {rule} " + "of a very long name " * 5
        counts.dropped[reason] = [10**9 // (rule + 1), 10**12]
        counts.dropped_samples[reason] = [sample] * 4
    counts.groups = {f"source {i}": {"en": [1, 1], "zh": [2, 2]} for i in range(500)}
    counts.notes = {f"note {i}": 1.0 for i in range(500)}
    names = [f"{number:02d}-clean" for number in range(8)]
    write_stage(tmp_path / names[0], "clean", [asdict(counts)], {})
    for name in names[1:]:
        shutil.copytree(tmp_path / names[0], tmp_path / name)
    write_plan(tmp_path, names, "x: y\n" * 100_000)
    text = render(load_run(tmp_path))
    assert len(text.encode()) <= MAX_PAGE_BYTES < 3_000_000
    assert "1.0 T" in text and "more rules dropped fewer documents" in text and "rows are not shown" in text
    Page(text)


def test_an_empty_run(tmp_path: Path) -> None:
    page = Page(render(load_run(one_stage(tmp_path, Counts(), "format"))))
    assert [a["id"] for tag, a in page.tags if tag == "section"] == ["stages", "recipe"]


def test_contamination_and_masking(tmp_path: Path) -> None:
    from puyulm.data.pipeline.stage import write_outcomes

    hits = [{"set": "gsm8k", "item": "test/7", "share": 0.93, "text": "a dozen eggs"}]
    bad = Document("bad", "She buys a dozen eggs each day.", "en", "web", metadata={"contamination": hits})
    cut = Document("cut", "Nothing is left.", "en", "web", metadata={"contamination": hits})
    masked = [Document(f"m{i}", "x <email>", "en", "web", metadata={"masked": {"email": i + 1}}) for i in range(3)]
    folders = {"01-safe": masked, "02-decontaminate": [Dropped(bad, "decontaminate: gsm8k"), cut]}
    for name, outcomes in folders.items():
        counts = Counts()
        if name == "02-decontaminate":
            counts.note("documents with text of gsm8k", 2)
        result = write_outcomes(tmp_path / name, 0, outcomes, counts, "jsonl.zst")
        write_stage(tmp_path / name, name[3:], [result["counts"]], {"action": "cut"})
    write_plan(tmp_path, folders)
    stages = load_run(tmp_path).stages
    [found] = find_hits(stages)
    assert [(s.name, s.documents, s.dropped) for s in found.sets] == [("gsm8k", 2, 1)]
    first, second = found.examples
    assert (first.before, first.match, first.after) == ("She buys ", "a dozen eggs", " each day.")
    assert (second.id, second.before, second.match) == ("cut", "", "a dozen eggs")
    [masks] = find_masked(stages)
    assert (masks.kinds, masks.documents, masks.complete) == ((("email", 6, 3),), 3, True)
    write_report(tmp_path, tmp_path / "r.html")
    text = (tmp_path / "r.html").read_text()
    assert "<mark>a dozen eggs</mark>" in text and "such text is cut out" in text
    assert "documents with text of gsm8k" not in text  # the table above says it


def test_tokenizers_are_measured(run_folder: Path, tmp_path: Path) -> None:
    from puyulm.data.report.compression import measure, sample_texts
    from puyulm.data.report.facts import document_shards
    from puyulm.data.report.plans import compression_table
    from puyulm.data.report.sections import Limits
    from tests.data.conftest import ByteTokenizer

    found = document_shards(load_run(run_folder))
    assert found is not None
    texts = sample_texts(found[1])
    assert all(len(t) <= 4000 for group in texts.values() for t in group)
    table = compression_table([measure("bytes", ByteTokenizer(), texts)], Limits())  # type: ignore[arg-type]
    assert table is not None
    assert table.columns == ("source", "sample", "bytes (259)")
    assert [row[0] for row in table.rows][:2] == ["code-github", "en-books"] and table.rows[-1][0] == "all"
    assert {row[2] for row in table.rows} == {"1.00"}
