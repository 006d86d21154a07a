"""The demo's report: figures in the terminal, and a self-contained page with the loss curves."""

from __future__ import annotations

import html
import json
import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

Json = dict[str, Any]


@dataclass(frozen=True)
class Curve:
    """A line of a chart."""

    label: str
    points: Sequence[tuple[float, float]]
    colour: str
    dashed: bool = False


def write_report(folder: Path, results: dict[str, Json]) -> Path:
    """Writes `report.html` and returns its path."""
    page = folder / "report.html"
    partial = page.with_name(".report.html.partial")
    partial.write_text(_page(folder, results), "utf-8")
    partial.replace(page)
    return page


def summary(results: dict[str, Json]) -> str:
    """The demo in a few lines."""
    baselines, measured = results["baselines"]["bits_per_byte"], results["pretrain"]["bits_per_byte"]
    base, tuned = results["evaluate"]["base"][-1], results["evaluate"]["tuned"][-1]
    lines = [f"{'validation, bits per byte':<28}"]
    lines += [f"  {name:<26}{value:6.3f}" for name, value in baselines.items()]
    lines += [f"  {'this model':<26}{measured:6.3f}", "held-out questions, right answers"]
    lines += [
        f"  {name:<26}{100 * score['rate']:5.1f} %  ({score['correct']} of {score['total']})"
        for name, score in (("base model", base), ("tuned model", tuned))
    ]
    lines += [f"{'time':<28}{sum(result['seconds'] for result in results.values()):6.0f} s"]
    return "\n".join(lines)


def _page(folder: Path, results: dict[str, Json]) -> str:
    pretrain, sft = folder / "pretrain", folder / "sft"
    baselines = results["baselines"]["bits_per_byte"]
    steps = max(results["pretrain"]["steps"], 1)
    flat = [
        Curve(name, [(0, value), (steps, value)], colour, dashed=True)
        for (name, value), colour in zip(baselines.items(), ("#999", "#b58900", "#6c71c4", "#cb4b16"), strict=False)
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
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads, PyTorch {torch.__version__}, float32"
    return _TEMPLATE.format(
        style=_STYLE,
        summary=html.escape(summary(results)),
        machine=html.escape(machine),
        corpus=_corpus_table(results["corpus"]),
        missing=_missing(results["corpus"]),
        bits=chart("Pretraining: bits per byte by step", bits),
        tuning=chart("Fine-tuning: loss in nats per answer token by step", tuning),
        speed=chart("Pretraining: tokens a second by step", speed, from_zero=True),
        scores=_score_table(results["evaluate"]),
        samples=_sample_table(folder / "evaluation"),
        seconds=_table(["stage", "seconds"], [[name, f"{r['seconds']:.0f}"] for name, r in results.items()]),
    )


def chart(title: str, curves: Sequence[Curve], from_zero: bool = False) -> str:
    """A line chart as inline SVG, with a legend and labelled axes."""
    points = [point for curve in curves for point in curve.points]
    if not points:
        return f"<p>{html.escape(title)}: nothing recorded.</p>"
    width, height, left, bottom = 760, 300, 56, 28
    x_high = max(x for x, _ in points) or 1
    y_low, y_high = (0.0 if from_zero else min(y for _, y in points)), max(y for _, y in points)
    y_high = y_high if y_high > y_low else y_low + 1

    def place(x: float, y: float) -> str:
        across = left + (width - left - 12) * x / x_high
        return f"{across:.1f},{12 + (height - bottom - 12) * (1 - (y - y_low) / (y_high - y_low)):.1f}"

    parts = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{html.escape(title)}">']
    for i, anchor in enumerate(["start", "middle", "middle", "middle", "end"]):
        y, x = y_low + (y_high - y_low) * i / 4, x_high * i / 4
        across, down = place(0, y).split(",")
        parts.append(f'<line x1="{across}" x2="{width - 12}" y1="{down}" y2="{down}" class="grid"/>')
        parts.append(f'<text x="{left - 6}" y="{float(down) + 4:.1f}" text-anchor="end">{_axis(y)}</text>')
        parts.append(
            f'<text x="{place(x, y_low).split(",")[0]}" y="{height - 8}" text-anchor="{anchor}">{_axis(x)}</text>'
        )
    for curve in curves:
        line = " ".join(place(x, y) for x, y in curve.points)
        dash = ' stroke-dasharray="6 4"' if curve.dashed else ""
        parts.append(f'<polyline points="{line}" stroke="{curve.colour}"{dash}/>')
    parts.append("</svg>")
    legend = "".join(
        f'<span><i style="background:{curve.colour}"></i>{html.escape(curve.label)}'
        f"{f' {_axis(curve.points[-1][1])}' if curve.points else ''}</span>"
        for curve in curves
    )
    return (
        f"<figure><figcaption>{html.escape(title)}</figcaption>{''.join(parts)}<p class='legend'>{legend}</p></figure>"
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


def _axis(value: float) -> str:
    return f"{value:,.0f}" if value == 0 or abs(value) >= 100 else f"{value:.2f}"


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


def _score_table(evaluation: Json) -> str:
    rows = [
        [tuned["kind"], str(tuned["total"]), f"{100 * base['rate']:.1f} %", f"{100 * tuned['rate']:.1f} %",
         f"{100 * tuned['low']:.1f} to {100 * tuned['high']:.1f} %"]
        for base, tuned in zip(evaluation["base"], evaluation["tuned"], strict=True)
    ]  # fmt: skip
    return _table(["questions", "held out", "base model", "tuned model", "95 % interval"], rows)


def _sample_table(folder: Path, each: int = 2) -> str:
    """A few held-out questions of every kind, with both models' answers."""
    base, tuned = (
        [json.loads(line) for line in (folder / name / "samples.jsonl").read_text("utf-8").split("\n") if line]
        for name in ("base", "tuned")
    )
    shown: dict[str, int] = {}
    rows = []
    for before, after in zip(base, tuned, strict=True):
        kind = after["kind"]
        shown[kind] = shown.get(kind, 0) + 1
        if shown[kind] <= each:
            mark = "right" if after["correct"] else "wrong"
            rows.append([kind, after["prompt"], after["answer"], before["output"][:80], after["output"][:80], mark])
    rows.sort(key=lambda row: row[0])
    return _table(["kind", "question", "answer", "base model", "tuned model", ""], rows)


_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 60rem; margin: 2rem auto;
  padding: 0 1rem }
h1 { font-size: 1.6rem } h2 { font-size: 1.15rem; margin-top: 2.2rem }
pre { background: #f5f5f5; padding: .8rem 1rem; overflow-x: auto }
table { border-collapse: collapse; font-size: .9rem; display: block; overflow-x: auto }
th, td { text-align: left; padding: .25rem .8rem .25rem 0; border-bottom: 1px solid #e4e4e4; vertical-align: top }
figure { margin: 1.5rem 0 } figcaption { font-weight: 600 } svg { width: 100%; height: auto }
svg text { font-size: 11px; fill: #555 } .grid { stroke: #eee } polyline { fill: none; stroke-width: 1.8 }
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
the tuned model in its chat format; both answer greedily.</p>
{scores}
<h2>Some answers</h2>
{samples}
<h2>Text</h2>
{corpus}{missing}
<h2>Time</h2>
{seconds}
</body></html>
"""
