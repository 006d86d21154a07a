"""Runs as one page of HTML that needs nothing else."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from puyulm.data import report as data_report
from puyulm.data.documents import replacing
from puyulm.data.report.numbers import count, duration
from puyulm.data.report.visible import spelled
from puyulm.eval.report import charts, terminal
from puyulm.eval.report.charts import DIMENSIONS, OTHERS, Curve, Heat
from puyulm.eval.report.png import write_png
from puyulm.eval.report.samples import Packed, pack
from puyulm.eval.results import Result, Run, read_run

if TYPE_CHECKING:
    from puyulm.eval.compare import Comparison

COLOURS = 8
_HERE = Path(__file__).parent


@dataclass(frozen=True)
class LongContext:
    """What is drawn of a benchmark with lengths.

    Attributes:
        title: The benchmark's.
        curve: Score by length of all runs.
        effective: RULER's effective length of each run; empty for others.
        tables: Of each run: subset by length, or None.
        maps: Of each run: depth by length, one for each kind of needle.
    """

    title: str
    curve: Curve | None
    effective: tuple[str, ...]
    tables: tuple[Heat | None, ...]
    maps: tuple[tuple[Heat, ...], ...]


def write_report(folders: Sequence[Path], html: Path, comparison: Comparison | None = None) -> list[Path]:
    """Writes a page that shows runs: scores with intervals, charts, and every sample.

    The page is a file of its own: no network, no library. The heat maps of a single run are written as pictures beside
    it, where Pillow is installed.

    Args:
        folders: Of the runs.
        html: The file to write.
        comparison: Of these runs, where there are several.

    Returns:
        All files that were written.

    Raises:
        DataError: A folder holds no results, or samples are missing or damaged.
    """
    runs = [read_run(folder) for folder in folders] if comparison is None else list(comparison.runs)
    names = [run.model for run in runs] if comparison is None else list(comparison.names)
    shown = [run.results for run in runs]
    if comparison is not None:
        common = {one.results[0].name for one in comparison.benchmarks}
        shown = [tuple(result for result in run.results if result.name in common) for run in runs]
    packed = pack(folders, names, shown)
    long = _long_context(shown, packed)
    pictures = _pictures(long, names[0], html) if len(runs) == 1 else []
    with replacing(html) as partial:
        page = render(runs, names, shown, packed, long, comparison, [one.name for one in pictures])
        partial.write_bytes(page.encode("utf-8", "backslashreplace"))
    return [html, *pictures]


def render(
    runs: Sequence[Run], names: Sequence[str], shown: Sequence[Sequence[Result]], packed: Packed,
    long: Sequence[LongContext], comparison: Comparison | None, pictures: Sequence[str],
) -> str:  # fmt: skip
    """The page."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    from puyulm.eval import compare

    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, finalize=_harmless, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    script = (_HERE / "script.js").read_text(encoding="utf-8")
    # One look for all our pages: what is said there of type, tables and colours holds here, too.
    style = "".join((folder / "style.css").read_text("utf-8") for folder in (Path(data_report.__file__).parent, _HERE))
    return environment.get_template("page.html").render(
        runs=runs, names=names, title=" and ".join(filter(None, [", ".join(names[:-1]), names[-1]])), shown=shown,
        sections=_sections(shown[0]),
        has_published=any(runs[0].published(result) is not None for result in runs[0].results),
        means=[charts.dimension_means(own) for own in shown], dimensions=list(DIMENSIONS),
        radar=charts.draw_radar(shown), radius=charts.RADIUS, long=long, curve_size=charts.CURVE, pictures=pictures,
        comparison=comparison, compare=compare, terminal=terminal, colour=charts.colour, colours=COLOURS,
        count=count, duration=duration, parts=[Markup(part) for part in packed.parts], style=Markup(style),
        script=Markup(script), index=Markup(_embedded(packed.index)), total=len(packed.index["task"]),
        script_hash="sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )  # fmt: skip


def _sections(results: Sequence[Result]) -> list[tuple[str, list[Result]]]:
    """Results by dimension, in the report's order."""
    found = []
    for name, kinds in (DIMENSIONS | OTHERS).items():
        if own := [result for result in results if result.dimension in kinds]:
            found.append((name, own))
    known = {result.name for _, own in found for result in own}
    rest = [result for result in results if result.name not in known]
    return [*found, ("Others", rest)] if rest else found


def _long_context(shown: Sequence[Sequence[Result]], packed: Packed) -> list[LongContext]:
    found = []
    for name in dict.fromkeys(result.name for own in shown for result in own if result.scores.lengths):
        results = [next((result for result in own if result.name == name), None) for own in shown]
        points = [packed.points.get((run, name), []) for run in range(len(shown))]
        maps = [tuple(charts.needle_maps(own)) for own in points]
        tables = [
            None if len(own_maps) == 1 else charts.task_map(own) for own, own_maps in zip(points, maps, strict=True)
        ]
        effective = [terminal.effective(one) if one is not None else "-" for one in results]
        title = next(result.title for result in results if result is not None)
        found.append(LongContext(
            title, charts.draw_curve(results), tuple(effective) if name == "ruler" else (), tuple(tables), tuple(maps)
        ))  # fmt: skip
    return found


def _pictures(long: Sequence[LongContext], model: str, html: Path) -> list[Path]:
    """Needle maps as files beside the page; none without Pillow."""
    from importlib.util import find_spec

    if find_spec("PIL") is None:
        return []
    written = []
    for one in long:
        for heat in one.maps[0]:
            name = f"{one.title} {heat.title}".strip()
            file = "".join(sign if sign.isalnum() else "-" for sign in name.lower())
            written.append(html.with_name(f"{file}.png"))
            write_png(heat, f"{name}: {model}", written[-1])
    return written


def _embedded(index: dict[str, Any]) -> str:
    """The index for the script. Nothing in it ends the element that holds it."""
    return json.dumps(index, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _harmless(value: Any) -> Any:
    return spelled(value) if isinstance(value, str) and not hasattr(value, "__html__") else value
