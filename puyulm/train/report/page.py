"""Runs as one page of HTML that needs nothing else."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from puyulm.data import report as data_report
from puyulm.data.documents import replacing
from puyulm.data.report.visible import spelled
from puyulm.train.report.charts import axes, charts, marks
from puyulm.train.report.runs import Event, Run, load_runs
from puyulm.train.report.summary import differences, summary, table

MAX_EVENTS = 500
COLOURS = 8
_HERE = Path(__file__).parent
_TILES = ("loss, smoothed", "best validation, bits per byte", "best validation, loss", "tokens", "steps",
          "training time", "tokens/s", "MFU (PaLM)")  # fmt: skip


def write_report(folders: Sequence[Path], html: Path) -> list[Run]:
    """Writes a page that shows runs, and compares them where there are several.

    The page is a file of its own: no network, no library. Runs may still be going on.

    Args:
        folders: Of the runs.
        html: The file to write.

    Returns:
        The runs as they were read.

    Raises:
        TrainError: A folder holds no steps.
    """
    runs = load_runs(folders)
    with replacing(html) as partial:
        partial.write_text(render(runs), encoding="utf-8", newline="\n")
    return runs


def render(runs: Sequence[Run]) -> str:
    """The page."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, finalize=_harmless, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    script = (_HERE / "script.js").read_text(encoding="utf-8")
    # One look for all our pages: what is said there of type, tables and colours holds here, too.
    style = "".join((folder / "style.css").read_text("utf-8") for folder in (Path(data_report.__file__).parent, _HERE))
    drawn = charts(runs)
    facts = summary(runs[0])
    return environment.get_template("page.html").render(
        runs=runs, title=runs[0].name if len(runs) == 1 else f"{len(runs)} runs",
        charts=drawn, tiles=[(name, facts[name]) for name in _TILES if name in facts],
        table=table(runs), differences=differences(runs) if len(runs) > 1 else [],
        events=[_listed(run) for run in runs], phases=any(run.phases for run in runs), colours=COLOURS,
        style=Markup(style), script=Markup(script), data=Markup(_embedded(runs, drawn)),
        script_hash="sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )  # fmt: skip


def _embedded(runs: Sequence[Run], drawn: list[dict[str, Any]]) -> str:
    """The data for the script. Nothing in it ends the element that holds it."""
    data = {
        "charts": drawn,
        "runs": [
            {"name": spelled(run.name), "axes": axes(run), "marks": marks(run), "phases": list(run.phases)}
            for run in runs
        ],
    }
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _listed(run: Run) -> dict[str, Any]:
    """Events to read: all but checkpoints, of very many the last; and how many checkpoints there are."""
    shown: list[Event] = [event for event in run.events if event.kind != "checkpoint"]
    return {
        "events": shown[-MAX_EVENTS:],
        "hidden": max(len(shown) - MAX_EVENTS, 0),
        "checkpoints": len(run.events) - len(shown),
    }


def _harmless(value: Any) -> Any:
    return spelled(value) if isinstance(value, str) and not hasattr(value, "__html__") else value
