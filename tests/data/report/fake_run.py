"""A run of a pipeline as one would find it on disk: a few thousand documents, real shards, real counts.

`python -m tests.data.report.fake_run FOLDER` makes one to look at.
"""

from __future__ import annotations

import json
import random
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from puyulm.data.documents import Document, read_documents
from puyulm.data.pipeline.counts import Counts, Dropped, Outcome
from puyulm.data.pipeline.stage import shards_in, write_outcomes
from puyulm.data.shards import tokenize_documents
from tests.data.conftest import ByteTokenizer

_SUBJECTS = ["The river", "A small committee", "Her grandfather", "The new library", "Every engineer in the team",
             "The winter of that year", "A recent study of bees", "The old harbour", "Our neighbour", "The compiler",
             "The village council", "A flock of starlings", "The second movement", "This method"]  # fmt: skip
_VERBS = ["changed its course twice", "kept careful records of the weather", "was repaired with local stone",
          "published its findings in a thin yellow book", "taught us how to read the tide tables",
          "reduces the error by about a third", "took longer than anyone had expected", "grew along the southern wall",
          "was translated into nine languages", "depends on the order of the terms", "slept through the storm",
          "asked for a second opinion", "collected stamps, coins and railway tickets"]  # fmt: skip
_ENDS = ["before the bridge was built.", "although the budget had been cut.", "and nobody thought it strange.",
         "which explains the gap in the archive.", "as the letters from that summer show.",
         "when the last ferry had left.", "because the first draft was lost.", "in spite of the noise.",
         "until the committee met again in March.", "so the results can be compared."]  # fmt: skip
_WHO = ["这座小城", "老图书馆", "研究小组", "我的外婆", "清晨的码头", "那位工程师", "这本薄薄的书", "山脚下的茶园",
        "新修的铁路", "江边的芦苇", "课程的第二部分", "这个算法"]  # fmt: skip
_WHAT = ["记录了一百多年的天气变化", "在冬天显得格外安静", "把结果发表在一份地方志里", "教会了我们怎样看潮汐表",
         "比原来的方法快了三倍左右", "吸引了许多从外地来的学生", "用当地的石头重新修好了", "被翻译成九种语言",
         "依赖于各项的先后次序", "保存着许多手写的信件"]  # fmt: skip
_THEN = ["后来的人常常提起这件事。", "当时谁也没有料到。", "这在档案里写得很清楚。", "因此可以互相比较。",
         "直到第二年的三月才有了结论。", "大家都觉得很自然。", "这一点值得注意。", "桥是后来才建的。"]  # fmt: skip
_NAMES = ["total", "index", "buffer", "names", "offset", "result", "weights", "batch", "node", "edges"]
FOUND = {f"documents with text of {name}": 1.0 for name in ("gsm8k", "mmlu", "ceval", "humaneval")}
RECIPE = """out: corpus
workers: 2
stages:
- format: {inputs: [crawl/*.warc.gz]}
- clean: {}
- dedup: {method: minhash}
- safe: {}
- quality: {}
- decontaminate: {}
- tokenize: {tokenizer: internlm2.model}
- mix: {}
"""
_SOURCES = {"en": ("webpages", "books", "techlit"), "zh": ("webpages", "books", "techlit"), "code": ("github",)}


def sentences(generator: random.Random, language: str, number: int) -> str:
    """Some sentences of a language."""
    table = (_WHO, _WHAT, _THEN) if language == "zh" else (_SUBJECTS, _VERBS, _ENDS)
    made = [("，" if language == "zh" else " ").join(generator.choice(part) for part in table) for _ in range(number)]
    return ("" if language == "zh" else " ").join(made)


def code(generator: random.Random, functions: int) -> str:
    """A module of small functions."""
    parts = ["from __future__ import annotations\n"]
    for number in range(functions):
        a, b, c = generator.sample(_NAMES, 3)
        parts.append(
            f"\n\ndef {a}_{b}_{number}({a}: list[int], {b}: int) -> int:\n"
            f'    """Sums what lies above {b}."""\n'
            f"    {c} = 0\n    for value in {a}:\n        if value > {b} << {generator.randint(1, 9)}:\n"
            f"            {c} += value\n    return {c}\n"
        )
    return "".join(parts)


def fake_documents(number: int, seed: int = 7) -> list[Document]:
    """Documents as a crawl gives them: good ones, fragments, advertisements, lists, near-duplicates."""
    generator = random.Random(seed)
    documents: list[Document] = []
    for i in range(number):
        language = generator.choices(["en", "zh", "code", "fr"], [55, 30, 12, 3])[0]
        source = generator.choice(_SOURCES.get(language, ("webpages",)))
        kind = generator.random()
        length = int(generator.lognormvariate(3.0, 1.1)) + 1
        if language == "code":
            text = code(generator, min(length, 60))
        elif kind < 0.10:
            text = sentences(generator, language, 1)[:30]
        elif kind < 0.16:
            text = "\n".join(
                ["点击购买 限时优惠 100%" if language == "zh" else "BUY NOW!!! >>> click here <<<"] * length
            )
        elif kind < 0.21:
            text = "\n".join(f"• {generator.choice(_NAMES)} | {generator.randint(1, 99)} |" for _ in range(length + 3))
        else:
            text = "\n\n".join(sentences(generator, language, 3) for _ in range(min(length, 120)))
            if kind > 0.95:
                text += f"\n\n{'联系' if language == 'zh' else 'Write to'} someone{i}@example.com"
        like = [document for document in documents[-200:] if (document.language, document.source) == (language, source)]
        if like and generator.random() < 0.14 and source != "books":
            text = _edited(generator, generator.choice(like))
        documents.append(Document(
            id=f"{source}:{language}/{i:06d}", text=text, language=language, source=source,
            url=f"https://example{generator.randint(1, 40)}.org/{language}/{i}" if source == "webpages" else "",
            date=f"2023-{generator.randint(1, 12):02d}-{generator.randint(1, 28):02d}",
        ))  # fmt: skip
    return documents


def make_run(folder: Path, number: int = 3000, shards: int = 4) -> Path:
    """Writes a whole run to `folder`; several shards a stage."""
    generator = random.Random(11)
    stages: list[str] = []
    documents: list[list[Document]] = [fake_documents(number)[i::shards] for i in range(shards)]

    def stage(kind: str, judge: Callable[[Document], Outcome], settings: dict[str, object] | None = None,
              notes: dict[str, float] | None = None, raw: float = 0.0, seconds: float = 1.0) -> Path:  # fmt: skip
        nonlocal documents
        place = folder / f"{len(stages) + 1:02d}-{kind}"
        parts = []
        for i, part in enumerate(documents):
            counts = Counts()
            for document in part:
                counts.add_input(int(document.num_bytes * raw) if raw else document.num_bytes)
            for name, amount in (notes or {}).items():
                counts.note(name, amount * (i + 1))
            parts.append(
                write_outcomes(place, i, [judge(document) for document in part], counts, "jsonl.zst")["counts"]
            )
        write_stage(place, kind, parts, settings or {}, seconds)
        stages.append(place.name)
        documents = [list(read_documents(path)) for path in shards_in(place)]
        return place

    stage("format", _readable, {"inputs": ["crawl/*.warc.gz"]}, raw=3.7, seconds=41.2)
    stage("clean", _clean, {"gopher": {"min_words": 50}}, {"normalise: control characters removed": 412}, seconds=12.9)
    pairs = _duplicates([document for part in documents for document in part])
    minhash = {"bands": 25, "rows": 5, "threshold": 0.7}
    place = stage("dedup", lambda d: Dropped(d, "dedup: near duplicate") if d.id in pairs else d,
                  {"method": "minhash", "minhash": minhash}, seconds=7.4)  # fmt: skip
    by_id = {document.id: document for part in [*documents, list(pairs.values())] for document in part}
    (place / "clusters.json").write_text(json.dumps(_clusters(pairs, by_id)), encoding="utf-8")
    stage("safe", lambda d: _safe(d, generator), {}, seconds=3.3)
    stage("quality", lambda d: _scored(d, generator), {"fluency": {"least": 0.4}}, seconds=22.0)
    stage("decontaminate", lambda d: _contaminated(d, generator), {"action": "drop"}, FOUND, seconds=2.1)
    kept = [document for part in documents for document in part]
    tokens = folder / f"{len(stages) + 1:02d}-tokenize"
    counts = Counts(documents_in=len(kept), bytes_in=sum(d.num_bytes for d in kept), documents_out=len(kept),
                    bytes_out=sum(d.num_bytes for d in kept))  # fmt: skip
    for language in ("en", "zh", "code"):
        group = [document for document in kept if document.language == language]
        tokenize_documents(group, ByteTokenizer(), tokens / "tokens" / language / "train")
    write_stage(tokens, "tokenize", [asdict(counts)], {"tokenizer": "internlm2.model"}, 4.0)
    stages.append(tokens.name)
    mix = folder / f"{len(stages) + 1:02d}-mix"
    write_stage(mix, "mix", [], {}, 0.4)
    (mix / "mixture.json").write_text(json.dumps(_mixture()), encoding="utf-8")
    stages.append(mix.name)
    write_plan(folder, stages, RECIPE)
    return folder


def write_stage(
    place: Path, kind: str, parts: Sequence[dict[str, object]], settings: dict[str, object], seconds: float = 1.0
) -> None:
    """Writes a finished `stage.json` with the sum of some counts."""
    place.mkdir(parents=True, exist_ok=True)
    state = {"version": 1, "fingerprint": "f", "label": place.name.partition("-")[2], "kind": kind, "done": True,
             "settings": settings, "seconds": seconds, "peak_memory": 312_000_000, "workers": 2,
             "counts": asdict(Counts.merged(parts))}  # fmt: skip
    (place / "stage.json").write_text(json.dumps(state), encoding="utf-8")


def write_plan(folder: Path, stages: Iterable[str], recipe: str = "") -> None:
    """Writes what makes a folder a run."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pipeline.json").write_text(json.dumps({"version": 1, "stages": list(stages)}), encoding="utf-8")
    (folder / "recipe.yaml").write_text(recipe, encoding="utf-8")


def _edited(generator: random.Random, document: Document) -> str:
    """A near-duplicate: a few places changed."""
    text = document.text
    for _ in range(generator.randint(0, 3)):
        at = generator.randrange(len(text) + 1)
        text = text[:at] + generator.choice(["", "很", " very", "2023", "旧"]) + text[at + generator.randint(0, 4) :]
    return text


def _readable(document: Document) -> Outcome:
    if document.language == "fr":
        return Dropped(document, "language: not wanted")
    return Dropped(document, "format: no main text") if len(document.text) < 12 else document


def _clean(document: Document) -> Outcome:
    text = document.text
    lines = text.split("\n")
    if document.language != "code":
        if len(text) < 60:
            return Dropped(document, "gopher: too few words")
        if len(set(lines)) < 0.5 * len(lines) and "" not in lines:
            return Dropped(document, "gopher: repeated lines")
        if text.count("•") > 0.6 * len(lines):
            return Dropped(document, "gopher: bullet lines")
        if "{" in text:
            return Dropped(document, "c4: curly bracket")
    elif max(map(len, lines)) > 120:
        return Dropped(document, "code: long lines")
    return replace(document, text=text.strip())


def _duplicates(documents: list[Document]) -> dict[str, Document]:
    """Later documents that begin and end like an earlier one, with that one in their metadata."""
    first: dict[tuple[str, str], str] = {}
    found = {}
    for document in documents:
        key = (document.text[:24] + document.text[90:130], document.text[-12:])
        if key in first:
            found[document.id] = replace(document, metadata={"of": first[key]})
        else:
            first[key] = document.id
    return found


def _clusters(pairs: dict[str, Document], by_id: dict[str, Document]) -> dict[str, object]:
    """As the stage `dedup` writes them."""
    groups: dict[str, list[Document]] = {}
    for document in pairs.values():
        groups.setdefault(document.metadata["of"], []).append(document)

    def member(document: Document, position: int) -> dict[str, object]:
        return {"shard": 0, "row": position, "kept": position == 0, "similarity": round(1 - position / 19, 3),
                "id": document.id, "language": document.language, "source": document.source, "url": document.url,
                "date": document.date, "characters": len(document.text), "text": document.text[:1500]}  # fmt: skip

    clusters = [
        {"number": number, "size": len(group) + 1,
         "members": [member(d, i) for i, d in enumerate([by_id[kept], *group][:4])]}
        for number, (kept, group) in enumerate(groups.items()) if kept in by_id
    ]  # fmt: skip
    clusters.sort(key=lambda cluster: -int(str(cluster["size"])))
    sizes = [int(str(cluster["size"])) for cluster in clusters]
    bins = [[low, high, sum(low <= size <= high for size in sizes), 0] for low, high in ((2, 2), (3, 4), (5, 8))]
    return {"method": "minhash", "parameters": {}, "keep": "newest", "documents": 3000, "clusters": len(clusters),
            "duplicates": sum(sizes) - len(sizes), "earlier": 0, "s_curve": None, "sizes": bins,
            "largest": clusters[:50], "sample": clusters[50:100]}  # fmt: skip


def _safe(document: Document, generator: random.Random) -> Outcome:
    if generator.random() < 0.012:
        return Dropped(document, generator.choice(["safe: domain", "safe: words, adult", "safe: toxicity"]))
    number = document.text.count("@example.com")
    if not number:
        return document
    text = re.sub(r"\S+@example\.com", "<email>", document.text)
    return replace(document, text=text, metadata={"masked": {"email": number, "phone": 1}})


def _scored(document: Document, generator: random.Random) -> Outcome:
    score = generator.betavariate(5, 2)
    document = replace(document, scores={"fluency": round(score, 4)})
    return Dropped(document, "quality: fluency") if score < 0.4 and document.language != "code" else document


def _contaminated(document: Document, generator: random.Random) -> Outcome:
    if generator.random() > 0.012:
        return document
    name = generator.choice(list(FOUND)).removeprefix("documents with text of ")
    at = min(len(document.text) // 2, 2000)
    hit = {
        "set": name,
        "item": f"test/{generator.randrange(1319)}",
        "share": 0.93,
        "text": document.text[at : at + 160],
    }
    return Dropped(replace(document, metadata={"contamination": [hit]}), f"decontaminate: {name}")


def _mixture() -> dict[str, object]:
    """As the stage `mix` writes it."""

    def phase(name: str, wanted: int, context: int, shares: dict[str, float]) -> dict[str, object]:
        groups = [{
            "group": group, "pattern": group, "available": int(4e9 * share), "documents": int(wanted * share / 900),
            "tokens": int(wanted * share), "epochs": wanted / 4e9, "epochs_so_far": wanted / 2e9, "epochs_cap": 4.0,
        } for group, share in shares.items()]  # fmt: skip
        return {
            "name": name, "wanted": wanted, "tokens": sum(int(wanted * share) for share in shares.values()),
            "shortfall": 0, "sequence_length": context, "short_share": 0.5, "filling_share": 0.31, "patterns": [],
            "groups": groups,
        }  # fmt: skip

    web = {"en/high": 0.42, "en/moderate": 0.2, "zh/high": 0.22, "code/high": 0.12, "code/moderate": 0.04}
    return {"seed": 0, "short_tokens": 4096, "unused_groups": [], "phases": [
        phase("4k", 2_000_000_000, 4096, web), phase("32k", 200_000_000, 32768, {"en/books": 0.6, "zh/books": 0.4}),
    ], "valid": {"documents": 20, "tokens": 31_000, "bytes": 99_000}}  # fmt: skip


if __name__ == "__main__":
    make_run(Path(sys.argv[1]))
