"""The demo's report: figures in the terminal, and a self-contained page with curves, scores and answers."""

from __future__ import annotations

import html
import json
import math
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from puyulm.demo.charts import Curve, chart, chart_by_length, heat_map
from puyulm.eval.benchmark import Sample
from puyulm.eval.benchmarks.needle import BENCHMARK as NEEDLE
from puyulm.eval.report.charts import needle_maps
from puyulm.eval.report.samples import Point
from puyulm.eval.report.terminal import effective, interval
from puyulm.eval.results import Result, read_run, read_samples
from puyulm.eval.statistics import Estimate

Json = dict[str, Any]
GREY, SOURCES = "#999", ("#b58900", "#6c71c4", "#cb4b16", "#2aa198")


@dataclass(frozen=True)
class Evaluated:
    """A model's results by benchmark, and where they are."""

    folder: Path
    results: Mapping[str, Result]

    @staticmethod
    def read(folder: Path) -> Evaluated:
        return Evaluated(folder, {one.name: one for one in read_run(folder).results})

    def samples(self, name: str) -> list[Sample]:
        return list(read_samples(self.folder, self.results[name]))


def write_report(folder: Path, results: dict[str, Json]) -> Path:
    """Writes `report.html` and returns its path."""
    page = folder / "report.html"
    partial = page.with_name(".report.html.partial")
    partial.write_text(_page(folder, results), "utf-8")
    partial.replace(page)
    return page


def summary(folder: Path, results: dict[str, Json]) -> str:
    """The demo in a few lines."""
    baselines, measured = results["baselines"]["bits_per_byte"], results["pretrain"]["bits_per_byte"]
    lines = [f"{'validation, bits per byte':<28}"]
    lines += [f"  {name:<26}{value:6.3f}" for name, value in baselines.items()]
    lines += [f"  {'this model':<26}{measured:6.3f}", "held-out questions, right answers"]
    for name in ("base", "tuned"):
        result = Evaluated.read(folder / "evaluation" / name).results["questions"]
        one = result.scores.main
        says = f"{result.shown(one.value)} %  ({interval(result, one)}; of {one.count:,})"
        lines.append(f"  {name + ' model':<26}{says}")
    lines += [f"{'time':<28}{sum(result['seconds'] for result in results.values()):6.0f} s"]
    return "\n".join(lines)


def _page(folder: Path, results: dict[str, Json]) -> str:
    pretrain, sft = folder / "pretrain", folder / "sft"
    baselines = results["baselines"]["bits_per_byte"]
    steps = max(results["pretrain"]["steps"], 1)
    flat = [
        Curve(name, [(0, value), (steps, value)], colour, dashed=True)
        for (name, value), colour in zip(baselines.items(), (GREY, *SOURCES), strict=False)
        if value < 6
    ]
    bits = [
        Curve("training", _smooth(_points(pretrain / "metrics.jsonl", "bits_per_byte")), "#9ecae1"),
        Curve("validation", _points(pretrain / "validation.jsonl", "bits_per_byte"), "#08519c"),
        *flat,
    ]
    tuning = [
        Curve("training", _smooth(_points(sft / "metrics.jsonl", "loss")), "#a1d99b"),
        Curve("held-out", _points(sft / "validation.jsonl", "loss"), "#006d2c"),
    ]
    speed = [Curve("tokens a second", _smooth(_points(pretrain / "metrics.jsonl", "tokens_per_second")), "#756bb1")]
    base, tuned = (Evaluated.read(folder / "evaluation" / name) for name in ("base", "tuned"))
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads, PyTorch {torch.__version__}, float32"
    return _TEMPLATE.format(
        style=_STYLE,
        summary=html.escape(summary(folder, results)),
        machine=html.escape(machine),
        corpus=_corpus_table(results["corpus"]),
        missing=_missing(results["corpus"]),
        bits=chart("Pretraining: bits per byte by step", bits),
        tuning=chart("Fine-tuning: loss in nats per answer token by step", tuning),
        speed=chart("Pretraining: tokens a second by step", speed, from_zero=True),
        scores=_question_table(base, tuned),
        samples=_sample_table(base, tuned),
        domains=_domain_table(results["corpus"], base, tuned),
        context=_context_chart(results["evaluate"]["context"]),
        needles=_needle_section(base, tuned),
        ruler=_ruler_section(base, tuned),
        window=results["evaluate"]["window"],
        seconds=_table(["stage", "seconds"], [[name, f"{r['seconds']:.0f}"] for name, r in results.items()]),
    )


def _points(file: Path, key: str) -> list[tuple[float, float]]:
    if not file.is_file():
        return []
    rows = (json.loads(line) for line in file.read_text("utf-8").split("\n") if line.strip())
    return [(row["step"], row[key]) for row in rows if row.get(key) is not None]


def _smooth(points: Sequence[tuple[float, float]], most: int = 150) -> list[tuple[float, float]]:
    """Means of neighbouring points, so that a chart has no more of them than it can show."""
    size = max(1, len(points) // most)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(group[-1][0], sum(y for _, y in group) / len(group)) for group in groups]


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    cells = "".join(f"<th>{html.escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table>"


def _corpus_table(corpus: Json) -> str:
    rows = [
        [s["source"], s["language"], ", ".join(s["licences"]), f"{s['train_documents']:,}",
         f"{s['train_bytes'] / 1e6:.2f}", f"{s['validation_bytes'] / 1e6:.2f}"]
        for s in corpus["sources"]
    ]  # fmt: skip
    return _table(["source", "language", "licence", "documents", "MB to train on", "MB held out"], rows)


def _missing(corpus: Json) -> str:
    lines = [f"{name}: left out, {reason}" for name, reason in corpus["missing"].items()] + corpus["notes"]
    return "".join(f"<p>{html.escape(line)}</p>" for line in lines)


def _question_table(base: Evaluated, tuned: Evaluated) -> str:
    before, after = base.results["questions"], tuned.results["questions"]
    rows = [
        [kind, f"{one.count:,}", *_percent(before, first), *_percent(after, one)]
        for kind, first, one in [
            *((kind, before.scores.subsets[kind], one) for kind, one in after.scores.subsets.items()),
            ("all", before.scores.main, after.scores.main),
        ]
    ]
    return _table(["questions", "held out", "base model", "95 % interval", "tuned model", "95 % interval"], rows)


def _percent(result: Result, one: Estimate) -> tuple[str, str]:
    return f"{result.shown(one.value)} %", interval(result, one)


def _domain_table(corpus: Json, base: Evaluated, tuned: Evaluated) -> str:
    """Bits per byte of each source's held-out text."""
    first, second = base.results["text"].scores, tuned.results["text"].scores
    languages = {source["source"]: source["language"] for source in corpus["sources"]}
    perplexity = _perplexities(base.samples("text"))
    rows = [
        [source or "all", languages.get(source, ""), f"{perplexity[source]:.1f}", f"{one.value:.3f}",
         f"{one.low:.3f} to {one.high:.3f}" if math.isfinite(one.low) else "", f"{other.value:.3f}"]
        for source, one, other in [
            *((source, one, second.subsets[source]) for source, one in first.subsets.items()),
            ("", first.main, second.main),
        ]
    ]  # fmt: skip
    head = ["source", "language", "perplexity of a token", "bits per byte", "95 % interval", "tuned: bits per byte"]
    return _table(head, rows)


def _perplexities(samples: Sequence[Sample]) -> dict[str, float]:
    """Of a token, by source; "": of all."""
    sums: dict[str, list[float]] = {}
    for sample in samples:
        for source in ("", sample.subset):
            nats, tokens = sums.get(source, (0.0, 0.0))
            sums[source] = [nats + sample.scores["nats"], tokens + sample.scores["tokens"]]
    return {source: math.exp(nats / tokens) for source, (nats, tokens) in sums.items()}


def _context_chart(context: Sequence[tuple[int, Mapping[str, Sequence[float]]]]) -> str:
    sources = list(dict.fromkeys(source for _, by_source in context for source in by_source))
    curves = [
        Curve(
            source or "all", [(window, by_source[source][0]) for window, by_source in context],
            "#08519c" if not source else SOURCES[number % len(SOURCES)], dashed=bool(source),
            reach=[] if source else [(window, by_source[""][1], by_source[""][2]) for window, by_source in context],
        )
        for number, source in enumerate(sources, -1)
    ]  # fmt: skip
    return chart_by_length("Bits per byte of held-out text by the tokens that the base model sees", curves)


def _needle_section(base: Evaluated, tuned: Evaluated) -> str:
    parts, found = [], []
    for name, model in (("base", base), ("tuned", tuned)):
        samples = model.samples("needle")
        points = [
            Point(one.subset, one.extra["length"], one.extra["depth"], one.scores["similarity"]) for one in samples
        ]
        parts += [
            heat_map(replace(heat, title=f"{name} model, {NEEDLE.subsets[heat.title]}"), "depth")
            for heat in needle_maps(points)
        ]
        found.append(f"the {name} model in {sum(one.scores['found'] == 1 for one in samples)} of {len(samples)} texts")
    return f'<div class="maps">{"".join(parts)}</div><p>What was hidden is named by {" and by ".join(found)}.</p>'


def _ruler_section(base: Evaluated, tuned: Evaluated) -> str:
    curves, says = [], []
    for name, model, colour in (("base model", base, "#9ecae1"), ("tuned model", tuned, "#006d2c")):
        result = model.results["ruler"]
        known = result.scores.lengths.items()
        curves.append(Curve(
            name, [(length, 100 * one.value) for length, one in known], colour, dashed=model is tuned,
            reach=[(length, 100 * one.low, 100 * one.high) for length, one in known if math.isfinite(one.low)],
        ))  # fmt: skip
        says.append(f"{name} {effective(result)}")
    drawn = chart_by_length("RULER: percent right by length of the text in tokens", curves, up=(0, 100))
    tasks = ", ".join(dict.fromkeys(name.partition("/")[0] for name in base.results["ruler"].scores.subsets))
    return f"{drawn}<p>Effective length: {html.escape('; '.join(says))}. Tasks: {html.escape(tasks)}.</p>"


def _sample_table(base: Evaluated, tuned: Evaluated, each: int = 2) -> str:
    """A few held-out questions of every kind, with both models' answers."""
    first = {sample.id: sample for sample in base.samples("questions")}
    shown: dict[str, int] = {}
    rows = []
    for after in tuned.samples("questions"):
        shown[after.subset] = shown.get(after.subset, 0) + 1
        if shown[after.subset] <= each:
            mark = "right" if after.scores["accuracy"] else "wrong"
            outputs = [sample.outputs[-1].strip()[:40] for sample in (first[after.id], after)]
            asked = after.prompt.strip().removeprefix("[user]").removesuffix("[assistant]").strip()
            rows.append([after.subset, asked, after.target, *outputs, mark])
    return _table(["kind", "question", "answer", "base model", "tuned model", ""], rows)


_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 60rem; margin: 2rem auto;
  padding: 0 1rem }
h1 { font-size: 1.6rem } h2 { font-size: 1.15rem; margin-top: 2.2rem } h3 { font-size: 1rem }
pre { background: #f5f5f5; padding: .8rem 1rem; overflow-x: auto }
table { border-collapse: collapse; font-size: .9rem; display: block; overflow-x: auto }
th, td { text-align: left; padding: .25rem .8rem .25rem 0; border-bottom: 1px solid #e4e4e4; vertical-align: top }
figure { margin: 1.5rem 0 } figcaption { font-weight: 600 } svg { width: 100%; height: auto }
svg text { font-size: 11px; fill: #555 } .grid { stroke: #eee } polyline { fill: none; stroke-width: 1.8 }
.maps { display: grid; grid-template-columns: repeat(auto-fit, minmax(20rem, 1fr)); gap: 0 2rem }
.maps figure { margin: 1rem 0 }
.heat { border-collapse: separate; border-spacing: 2px } .heat th { font-weight: 400; color: #555 }
.heat th, .heat td { border: 0; padding: .2rem .5rem; text-align: right }
.legend span { margin-right: 1.2rem; font-size: .85rem; white-space: nowrap }
.legend i { display: inline-block; width: .9rem; height: .25rem; margin-right: .4rem; vertical-align: middle }
"""

_TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>PuyuLM demo</title><style>{style}</style></head><body>
<h1>A small InternLM, from scratch</h1>
<p>Made by <code>puyu demo</code> on {machine}.</p>
<pre>{summary}</pre>
<h2>Pretraining</h2>
<p>Bits per byte of held-out text. The n-gram models are interpolated modified Kneser-Ney, counted on the same training
text and measured on the same held-out documents.</p>
{bits}{speed}
<h2>Fine-tuning</h2>
{tuning}
<h2>Held-out questions</h2>
<p>No content of these questions occurs in training. The base model is asked in plain text after two solved examples,
the tuned model in its chat format; both answer greedily. All that was asked and answered, here and below:
<a href="evaluation/base/report.html">base model</a>, <a href="evaluation/tuned/report.html">tuned model</a>.</p>
{scores}
<h3>Some answers</h3>
{samples}
<h2>Held-out text by source</h2>
<p>Read in windows as long as the rows of training. The tuned model has only seen questions since.</p>
{domains}
{context}
<p>A model that makes use of what came long before gets better with every token that it sees. Rows of training had
{window} tokens: what is beyond that, it has never seen.</p>
<h2>Long texts</h2>
<p>A needle is a sentence hidden at some depth of a text; asked for it, a model should repeat it. Shown is the answer's
similarity to the right one in percent; any other sentence gets some 20 in English and 5 in Chinese.</p>
{needles}
<p>RULER asks for numbers and frequent words in texts that are longer than the rows of training. The vertical lines are
95&nbsp;% intervals.</p>
{ruler}
<h2>Text</h2>
{corpus}{missing}
<h2>Time</h2>
{seconds}
</body></html>
"""
