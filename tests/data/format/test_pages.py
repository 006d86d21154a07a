"""Main text out of pages: limits on their size, their markup and the time that they take."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from puyulm.data.format import pages
from puyulm.data.format.limits import TimeUpError, time_limit
from puyulm.data.format.pages import all_text, page_text
from puyulm.data.format.quarantine import QuarantineError, Reason
from puyulm.data.pipeline.counts import Counts

from .helpers import BOILERPLATE, TEXTS, kept, page, read_all, reasons, settings_for


def endless(*_: Any, **__: Any) -> str:
    while True:
        pass


def test_html_files(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a.html").write_bytes(page("x", TEXTS["en"]))
    (tmp_path / "b.htm").write_bytes(page("x", TEXTS["zh"], "gbk"))
    (tmp_path / "c.xhtml").write_bytes(b"<html><body></body></html>")
    outcomes, _ = read_all(settings_for(tmp_path, kind="html", date="2020-01-01"))
    found = {document.id: document for document in kept(outcomes)}
    assert set(found) == {"s:deep/a.html", "s:b.htm"} and reasons(outcomes) == ["quarantine: no main text"]
    assert found["s:b.htm"].language == "zh" and found["s:b.htm"].date == "2020-01-01"
    assert TEXTS["zh"][1] in found["s:b.htm"].text
    assert found["s:deep/a.html"].url == "deep/a.html"


def test_tables_stay_and_comments_go() -> None:
    rows = "".join(f"<tr><td>Station {i}</td><td>{i * 7} millimetres of rain</td></tr>" for i in range(4))
    comments = '<div id="comments"><h3>Comments</h3><div class="comment"><p>First! Great story.</p></div></div>'
    body = page("x", TEXTS["en"]).replace(b"</article>", f"<table>{rows}</table></article>{comments}".encode())
    for extractor in ("trafilatura", "resiliparse"):
        text = page_text(body, "", settings_for("x", extractor=extractor), Counts())
        assert "Station 3" in text and "21 millimetres of rain" in text
        assert "First! Great story." not in text


def test_when_the_time_is_up_the_faster_extractor_reads_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "_trafilatura", lambda: endless)
    counts = Counts()
    text = page_text(page("x", TEXTS["de"]), "", settings_for("x", seconds_per_page=0.02), counts)
    assert TEXTS["de"][2] in text and BOILERPLATE[0] not in text
    assert counts.notes == {"pages for which trafilatura's time was up": 1}


def test_a_limit_ends_a_block_that_catches_exceptions() -> None:
    def stubborn() -> None:
        while True:
            try:
                endless()
            except Exception:
                continue

    with pytest.raises(TimeUpError), time_limit(0.02):
        stubborn()
    with time_limit(0.02):
        pass
    sum(range(3_000_000))  # no alarm is left behind
    with time_limit(0):
        pass


def test_an_extractor_that_fails_costs_one_page(monkeypatch: pytest.MonkeyPatch) -> None:
    class Panic(BaseException):
        pass

    def fail(*_: Any, **__: Any) -> str:
        raise Panic if settings.extractor == "resiliparse" else RecursionError

    monkeypatch.setattr(pages, "_trafilatura", lambda: fail)
    monkeypatch.setattr(pages, "_resiliparse", lambda: fail)
    for extractor in ("trafilatura", "resiliparse"):
        settings = settings_for("x", extractor=extractor)
        with pytest.raises(QuarantineError) as error:
            page_text(page("x", TEXTS["en"]), "", settings, Counts())
        assert error.value.reason == Reason.EXTRACTION_FAILED and "<html>" in str(error.value.sample)


def test_many_tags_are_no_depth() -> None:
    flat = "<html><body>" + "<div><p>Some words here.</p></div>" * 12_000 + "</body></html>"
    assert all_text(flat).count("Some words here.") == 12_000
    with pytest.raises(QuarantineError, match="out of hand"):
        all_text("<html><body>" + "<div>" * 6000 + "x")


def test_pages_without_text_write_nothing_to_the_terminal(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG), pytest.raises(QuarantineError, match="no main text"):
        page_text(b"<html><body><div></div></body></html>", "", settings_for("x"), Counts())
    assert not [record for record in caplog.records if record.name.startswith("trafilatura")]
