"""The pipeline finds what was planted, at stated rates, and leaves what is good.

A crawl file of real English and made Chinese pages holds exact copies, near copies of known similarity, look-alikes,
advertisements, garbled text, other languages, personal data and questions of an evaluation set. Every page's fate is
known from the shards that the stages write.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import pytest

from puyulm.data.clean.settings import CleanSettings
from puyulm.data.decontaminate.settings import DecontaminateSettings, EvalSet
from puyulm.data.dedup.settings import DedupSettings
from puyulm.data.documents import Document, read_documents
from puyulm.data.format.settings import FormatSettings, InputSettings
from puyulm.data.format.warc import make_warc
from puyulm.data.pipeline.executor import SerialExecutor
from puyulm.data.pipeline.recipe import DataRecipe, Step
from puyulm.data.pipeline.run import StageResult, run_pipeline
from puyulm.data.pipeline.stage import shards_in
from puyulm.data.safe.settings import SafeSettings
from puyulm.data.score.labelled import Labelled, write_labelled
from puyulm.data.score.seeds import ADVERTISEMENT, OTHER, advertisement_seeds
from puyulm.data.score.settings import QualitySettings, ScorerSettings
from puyulm.data.score.train import train_scorer
from tests.data.truth.planted import (
    ADS_EN,
    ADS_ZH,
    FOREIGN,
    THINGS,
    THINGS_ZH,
    Page,
    as_page,
    chinese_text,
    edited,
    english_texts,
    garbled,
    jaccard,
)

PHRASES = tuple(f"chinese: duplicate {n}-grams" for n in range(5, 11))  # the made Chinese has few words
SECRETS = {
    "email": "anna.becker{n}@post-becker.net", "phone_cn": "1385551{n:04d}", "phone_us": "(415) 555-{n:04d}",
    "ip": "81.23.{n}.7", "key": "AKIAIOSFODNN7EXAM{n:03d}",
}  # fmt: skip


@dataclass
class Fates:
    """What became of every page: its last version, and the stage's label and reason where it was dropped."""

    pages: list[Page]
    kept: dict[str, Document]
    dropped: dict[str, tuple[str, str]]
    results: list[StageResult]

    def of(self, problem: str) -> list[Page]:
        return [page for page in self.pages if page.problem == problem]

    def share_dropped(self, pages: list[Page], stage: str) -> float:
        return sum(self.dropped.get(p.url, ("", ""))[0] == stage for p in pages) / len(pages)


def _pages(questions: list[str]) -> list[Page]:
    generator = random.Random(7)
    texts = [*english_texts(200), *(chinese_text(generator) for _ in range(120))]
    good = [Page(f"https://site{i % 40}.example/{i}", text) for i, text in enumerate(texts)]
    pages = list(good)

    def plant(problem: str, text: str, of: Page | None = None, **facts: object) -> None:
        url = f"https://other.example/{problem.replace(' ', '-')}/{len(pages)}"
        page = Page(url, text, problem, of.url if of else "", "2024-06-01")
        pages.append(replace(page, **facts))  # type: ignore[arg-type]

    for page in generator.sample(good, 40):
        plant("exact duplicate", page.text, page)
    near = look = 0
    for page in generator.sample(good, 300):
        copy = edited(page.text, 0.008 if near < 60 else 0.16, generator)
        similarity = jaccard(page.text, copy)
        if near < 60 and 0.8 <= similarity < 0.97:
            near += 1
            plant("near duplicate", copy, page)
        elif near >= 60 and look < 100 and 0.2 <= similarity <= 0.5:
            look += 1
            plant("lookalike", copy, page)
    assert (near, look) == (60, 100)
    for i in range(20):
        things = [generator.choice(THINGS) for _ in range(3)]
        plant("advertisement", "\n\n".join(ADS_EN.format(thing=t, n=10 + 3 * i) for t in things))
        plant(
            "advertisement", "\n\n".join(ADS_ZH.format(thing=generator.choice(THINGS_ZH), n=i % 9 + 1) for _ in "123")
        )
    for i, page in enumerate(generator.sample(good, 30)):
        plant("garbled", garbled(page.text, generator, i), page)
    for i in range(6):
        for text in FOREIGN.values():
            plant("foreign", f"{i}. " + text * (3 + i % 2))
    for i, page in enumerate(generator.sample(good[:200], 20)):
        secrets = [form.format(n=100 + i) for form in SECRETS.values()]
        lines = [
            f"Contact: {secrets[0]} or {secrets[1]}.",
            f"Office {secrets[2]}, server {secrets[3]}.",
            f"The key was {secrets[4]}. Version 3.11.{i} of 2023-05-17, ISBN 978-3-16-148410-0, 1234567 items.",
        ]
        plant("personal data", " ".join(reversed(page.text.split(" "))) + "\n\n" + "\n\n".join(lines), secrets=secrets)
    for question in questions:
        text = " ".join(generator.sample(texts[0].split(" "), 60))
        plant("contaminated", f"{text}\n\n{question}\n\n{chinese_text(generator, 8)}")
    generator.shuffle(pages)
    return pages


def _questions() -> list[str]:
    names, things = ("Maria", "Tom", "Li Lei", "Olga"), ("apples", "marbles", "stamps", "postcards", "coins")
    return [
        f"{names[i % 4]} had {17 + i} {things[i % 5]} in a box and gave {3 + i % 7} of them to each of two friends "
        f"before buying {5 * i + 2} more at the market on Saturday. How many {things[i % 5]} are in the box now?"
        for i in range(12)
    ]


def _labelled() -> Iterator[Labelled]:
    """Made advertisements, other made texts, and good text of the kind that the crawl holds (but none of its pages)."""
    yield from advertisement_seeds(count=250)
    generator = random.Random(8)
    for text in [*english_texts(280)[200:], *(chinese_text(generator, 12) for _ in range(80))]:
        for start in range(0, min(len(text), 3000), 500):
            yield Labelled(text[start : start + 500], OTHER)


@pytest.fixture(scope="module")
def fates(tmp_path_factory: pytest.TempPathFactory) -> Fates:
    for module in ("fastwarc", "trafilatura", "pycld2", "zstandard"):
        pytest.importorskip(module)
    folder = tmp_path_factory.mktemp("truth")
    questions = _questions()
    pages = _pages(questions)
    make_warc(folder / "crawl.warc.gz", ((p.url, f"{p.date}T00:00:00Z", as_page(p)) for p in pages))
    (folder / "set.jsonl").write_text("".join(json.dumps({"question": q}) + "\n" for q in questions))
    write_labelled(folder / "ads.jsonl", _labelled())
    train_scorer(folder / "ads.jsonl", folder / "ads")
    [model] = (folder / "ads").glob("*.safetensors")
    crawl = InputSettings((str(folder / "crawl.warc.gz"),), source="web")
    recipe = DataRecipe(
        folder / "out",
        (
            Step(format=FormatSettings((crawl,), languages=("en", "zh"))),
            Step(clean=CleanSettings(c4=None, fineweb=None, refinedweb=None, repetition=None, exempt={"web": PHRASES})),
            Step(dedup=DedupSettings()),
            Step(decontaminate=DecontaminateSettings((EvalSet("sums", (folder / "set.jsonl",), kind="math"),))),
            Step(safe=SafeSettings()),
            Step(quality=QualitySettings((ScorerSettings("ad", path=model, label=ADVERTISEMENT, drop_above=0.5),))),
        ),
        task_mb=0.1,
    )  # fmt: skip
    results = run_pipeline(recipe, SerialExecutor())
    dropped: dict[str, tuple[str, str]] = {}
    for result in results:
        for shard in shards_in(result.folder / "dropped"):
            for document in read_documents(shard):
                assert document.url not in dropped
                dropped[document.url] = (result.label, document.metadata["dropped"])
    kept = {d.url: d for shard in shards_in(results[-1].folder) for d in read_documents(shard)}
    return Fates(pages, kept, dropped, results)


def test_no_page_is_lost(fates: Fates) -> None:
    assert set(fates.kept) | set(fates.dropped) == {page.url for page in fates.pages}
    assert not set(fates.kept) & set(fates.dropped)
    for before, after in zip(fates.results, fates.results[1:], strict=False):
        assert before.counts.documents_out == after.counts.documents_in
        lost = sum(documents for documents, _ in after.counts.dropped.values())
        assert after.counts.documents_in == after.counts.documents_out + lost


def test_duplicates(fates: Fates) -> None:
    """Similarity 0.8 and more: 95 % found; 0.5 and less: 1 % merged. The newest copy stays."""
    in_dedup: Callable[[Page], bool] = lambda p: fates.dropped.get(p.url, ("dedup", ""))[0] == "dedup"  # noqa: E731
    by_url = {page.url: page for page in fates.pages}

    def merged(problem: str) -> tuple[int, int]:
        pairs = [(p, by_url[p.of]) for p in fates.of(problem)]
        pairs = [pair for pair in pairs if all(in_dedup(p) or p.url in fates.kept for p in pair)]
        gone = [(a.url in fates.dropped) or (b.url in fates.dropped) for a, b in pairs]
        return sum(gone), len(pairs)

    found, pairs = merged("exact duplicate")
    assert pairs >= 25
    assert found == pairs
    found, pairs = merged("near duplicate")
    assert pairs >= 40
    assert found >= 0.95 * pairs
    copies = [p for p in fates.pages if p.problem in ("exact duplicate", "near duplicate")]
    planted = {p.url for p in copies} | {p.of for p in copies}
    gone = {url for url, (stage, _) in fates.dropped.items() if stage == "dedup"}
    gone -= {p.url for p in fates.of("advertisement")}  # which copy one another
    assert len(gone - planted) <= 0.01 * len(fates.of("lookalike"))
    copied_twice = {of for of in (p.of for p in copies) if sum(of == p.of for p in copies) > 1}
    assert all(by_url[url].date == "2024-01-01" or by_url[url].of in copied_twice for url in gone)


def test_advertisements(fates: Fates) -> None:
    ads = [p for p in fates.of("advertisement") if fates.dropped.get(p.url, ("quality", ""))[0] == "quality"]
    assert len(ads) >= 10
    assert fates.share_dropped(ads, "quality") >= 0.9
    good = [p for p in fates.of("") if p.url in fates.kept or fates.dropped[p.url][0] == "quality"]
    assert fates.share_dropped(good, "quality") <= 0.03


def test_garbled_text(fates: Fates) -> None:
    assert sum(p.url in fates.dropped for p in fates.of("garbled")) >= 0.9 * len(fates.of("garbled"))
    assert fates.share_dropped(fates.of(""), "clean") <= 0.15


def test_other_languages(fates: Fates) -> None:
    assert fates.share_dropped(fates.of("foreign"), "format") == 1
    assert fates.share_dropped(fates.of(""), "format") <= 0.02


def test_personal_data(fates: Fates) -> None:
    pages = [p for p in fates.of("personal data") if p.url in fates.kept]
    assert len(pages) >= 10
    texts = {p.url: fates.kept[p.url].text for p in pages}
    masked = [secret not in texts[p.url] for p in pages for secret in p.secrets]
    assert sum(masked) >= 0.95 * len(masked)
    for text in texts.values():
        assert "2023-05-17" in text
        assert "978-3-16-148410-0" in text
        assert "1234567 items" in text
    clean = [p for p in fates.of("") if p.url in fates.kept]
    # Of the good pages a few have real addresses: the documentation of `ipaddress`, authors of modules.
    assert sum("masked" in fates.kept[p.url].metadata for p in clean) <= 0.03 * len(clean)


def test_evaluation_questions(fates: Fates) -> None:
    asked = [p for p in fates.of("contaminated") if p.url in fates.kept or fates.dropped[p.url][0] == "decontaminate"]
    assert len(asked) >= 8
    assert fates.share_dropped(asked, "decontaminate") == 1
    assert sum(stage == "decontaminate" for stage, _ in fates.dropped.values()) == len(asked)
