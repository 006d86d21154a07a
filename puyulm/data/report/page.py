"""The report of a run as one page of HTML that needs nothing else."""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from puyulm.data.documents import replacing
from puyulm.data.report import numbers, plans, sections
from puyulm.data.report.compression import Compression, measure, sample_texts
from puyulm.data.report.contamination import Hits, Masked, find_hits, find_masked
from puyulm.data.report.facts import Run, document_shards, load_run
from puyulm.data.report.visible import spelled, with_marks
from puyulm.errors import DataError

if TYPE_CHECKING:
    from jinja2 import Environment

MAX_PAGE_BYTES = 2_800_000
_HERE = Path(__file__).parent
_TITLES = {
    "stages": "Stages", "flow": "Flow", "dropped": "Dropped", "lengths": "Lengths", "sources": "Languages and sources",
    "duplicates": "Duplicates", "contamination": "Contamination", "counters": "Masked and counted", "tokens": "Tokens",
    "mixture": "Mixture", "recipe": "Recipe",
}  # fmt: skip


def write_report(out: Path, html: Path, tokenizers: Sequence[Path] = ()) -> None:
    """Writes a page that shows what a pipeline run did. The same run gives the same bytes.

    The page is a file of its own: no network, no library; it can be read without JavaScript and printed, and is under
    3 MB whatever the run. Texts of documents are shown as text: nothing in them is taken for HTML.

    Args:
        out: Folder of the run (`out` in its recipe).
        html: The file to write.
        tokenizers: Tokenizer files or folders whose compression is measured on a sample of the kept documents.

    Raises:
        DataError: There is no run, or no stage of it is finished.
        TokenizerError: One of the tokenizers cannot be loaded.
    """
    run = load_run(out)
    page = render(run, _measured(run, tokenizers), find_hits(run.stages), find_masked(run.stages))
    with replacing(html) as partial:
        partial.write_text(page, encoding="utf-8", newline="\n")


def render(
    run: Run, measured: Sequence[Compression] = (), hits: Sequence[Hits] = (), masked: Sequence[Masked] = ()
) -> str:
    """The page of a run; less of everything is shown until it is small enough."""
    limits = sections.Limits()
    environment = _environment()
    for _ in range(12):
        content = _content(run, measured, limits) | {"hits": hits, "masked": masked, "limits": limits}
        page = environment.get_template("page.html").render(content, contents=_contents(content))
        if len(page.encode("utf-8")) <= MAX_PAGE_BYTES:
            return page
        limits = limits.halved()
    raise DataError(f"the report of {run.name} does not fit a page: it has {len(run.stages):,} stages")


def _content(run: Run, measured: Sequence[Compression], limits: sections.Limits) -> dict[str, Any]:
    from markupsafe import Markup

    colours = sections.family_colours(run)
    script = (_HERE / "script.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    stages = run.document_stages
    content: dict[str, Any] = {
        "run": run,
        "first": stages[0].result.counts if stages else None,
        "last": stages[-1].result.counts if stages else None,
        "num_tokens": plans.corpus_tokens(run),
        "seconds": sum(stage.result.seconds for stage in run.stages),
        "flows": sections.flows(run, colours),
        "drops": sections.drops(run, limits, colours),
        "lengths": sections.lengths(run),
        "languages": sections.group_rows(run, True, limits),
        "sources": sections.group_rows(run, False, limits),
        "domains": sections.domain_table(run, limits),
        "duplicates": sections.duplicates(run, limits),
        "notes": sections.notes(run, limits),
        "tokens": plans.token_tables(run, limits),
        "compression": plans.compression_table(measured, limits),
        "phases": plans.phases(run, limits),
        "style": Markup((_HERE / "style.css").read_text(encoding="utf-8")),
        "script": Markup(script),
        "script_hash": f"sha256-{digest}",
        "count": numbers.count,
        "size": numbers.size,
    }
    return content


def _contents(content: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Anchors and titles of the sections that have something to show."""
    needs: dict[str, tuple[str, ...]] = {
        "flow": ("flows",), "dropped": ("drops",), "lengths": ("lengths",), "sources": ("languages",),
        "duplicates": ("duplicates",), "contamination": ("hits",), "counters": ("notes", "masked"),
        "tokens": ("tokens", "compression"), "mixture": ("phases",),
    }  # fmt: skip
    shown = {anchor: any(content[name] for name in names) for anchor, names in needs.items()}
    shown["recipe"] = bool(content["run"].recipe)
    return [(anchor, title) for anchor, title in _TITLES.items() if shown.get(anchor, True)]


def _measured(run: Run, tokenizers: Sequence[Path]) -> list[Compression]:
    if not tokenizers:
        return []
    from puyulm.text.tokenizer import Tokenizer

    found = document_shards(run)
    if found is None:
        raise DataError(f"{run.name} has no documents to measure tokenizers on: leave --tokenizer out")
    texts = sample_texts(found[1])
    return [measure(path.resolve().name, Tokenizer.load(path), texts) for path in tokenizers]


@functools.cache
def _environment() -> Environment:
    """Templates that escape everything: HTML by autoescape, and odd characters of any text by being spelled out."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, finalize=_harmless, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    environment.filters |= {
        "count": numbers.count, "size": numbers.size, "share": numbers.share, "duration": numbers.duration,
        "percent": _percent, "text": _text, "lang": _lang,
    }  # fmt: skip
    return environment


def _harmless(value: Any) -> Any:
    return spelled(value) if isinstance(value, str) and not hasattr(value, "__html__") else value


def _text(text: str) -> Any:
    """A document's text, its odd characters spelled out in another colour."""
    from markupsafe import Markup, escape

    return Markup(with_marks(str(escape(text)), '<span class="odd">{}</span>'.format))


def _lang(language: str) -> Any:
    """A `lang` attribute, which chooses the forms of Chinese characters; none for what is no language code."""
    from markupsafe import Markup

    known = re.fullmatch("[a-z]{2,3}", language)
    return Markup(f' lang="{language}"') if known else ""


def _percent(part: float, whole: float) -> str:
    """A part in percent of the whole, 0 to 100, as a width."""
    return f"{min(max(100 * part / whole, 0), 100):.1f}" if whole else "0"
