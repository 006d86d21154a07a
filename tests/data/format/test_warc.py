"""A crawl in small: pages in many languages and encodings, and everything else that a crawler brings home."""

from __future__ import annotations

import gzip
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from puyulm.data.format.warc import make_warc, response_record
from puyulm.data.pipeline.counts import Dropped

from .helpers import BOILERPLATE, TEXTS, kept, page, read_all, read_ranges, reasons, settings_for

DATE = "2024-05-06T07:08:09Z"
ENGLISH = page("A long winter", TEXTS["en"])
ENCODINGS = [
    ("en", "utf-8"), ("zh", "utf-8"), ("zh", "gbk"), ("zh", "gb18030"), ("ja", "shift_jis"), ("ja", "euc-jp"),
    ("ko", "euc-kr"), ("ru", "windows-1251"), ("ru", "koi8-r"), ("de", "iso-8859-1"), ("pl", "iso-8859-2"),
    ("ar", "utf-8"), ("fr", "windows-1252"), ("es", "utf-8"), ("it", "utf-8"), ("he", "utf-8"),
]  # fmt: skip


def write(path: Path, *records: bytes) -> Path:
    path.write_bytes(b"".join(gzip.compress(record, mtime=0) for record in records))
    return path


@pytest.mark.parametrize("extractor", ["trafilatura", "resiliparse"])
def test_main_text_language_and_origin_of_pages(tmp_path: Path, extractor: str) -> None:
    pages = [(f"http://{language}.example/{i}", DATE, page(TEXTS[language][2][:12], TEXTS[language], charset))
             for i, (language, charset) in enumerate(ENCODINGS)]  # fmt: skip
    make_warc(tmp_path / "crawl.warc.gz", pages)
    outcomes, counts = read_all(settings_for(tmp_path / "crawl.warc.gz", extractor=extractor, licence="CC0-1.0"))
    assert [document.language for document in kept(outcomes)] == [language for language, _ in ENCODINGS]
    for document, (url, _, _), (language, _) in zip(kept(outcomes), pages, ENCODINGS, strict=True):
        assert all(paragraph in document.text for paragraph in TEXTS[language])
        assert not any(words in document.text for words in BOILERPLATE)
        assert (document.url, document.date, document.source, document.licence) == (url, DATE, "s", "CC0-1.0")
    assert counts.documents_in == len(pages)
    assert counts.bytes_in > sum(len(body) for _, _, body in pages)


def test_the_http_header_declares_what_the_page_does_not(tmp_path: Path) -> None:
    body = page("x", TEXTS["ru"], "koi8-r", declare=False)
    make_warc(tmp_path / "a.warc.gz", [("http://a/", DATE, body)], "text/html; charset=KOI8-R")
    [document] = read_all(settings_for(tmp_path / "a.warc.gz"))[0]
    assert TEXTS["ru"][1] in document.text


def test_what_is_no_page_is_counted_and_not_kept(tmp_path: Path) -> None:
    about = b"WARC/1.0\r\nWARC-Type: warcinfo\r\nWARC-Record-ID: <urn:uuid:1>\r\nContent-Length: 4\r\n\r\nabcd\r\n\r\n"
    request = response_record("http://a/", DATE, b"").replace(b"WARC-Type: response", b"WARC-Type: request")
    path = write(
        tmp_path / "a.warc.gz", about, request, response_record("http://a/1", DATE, ENGLISH),
        response_record("http://a/2", DATE, b"\x89PNG\r\n", "image/png"),
        response_record("http://a/3", DATE, ENGLISH, status="404 Not Found"),
        response_record("http://a/4", DATE, b'{"a": 1}', "application/json"),
    )  # fmt: skip
    outcomes, counts = read_all(settings_for(path))
    assert [document.url for document in kept(outcomes)] == ["http://a/1"] and not reasons(outcomes)
    assert counts.notes == {
        "records about records": 2, "skipped: not a page": 2, "skipped: status other than 200": 1,
    }  # fmt: skip
    assert counts.documents_in == 4


def test_bodies_as_servers_send_them(tmp_path: Path) -> None:
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (ENGLISH[:700], ENGLISH[700:])) + b"0\r\n\r\n"
    path = write(
        tmp_path / "a.warc.gz",
        response_record("http://a/1", DATE, chunks, headers="Transfer-Encoding: chunked\r\n"),
        response_record("http://a/2", DATE, gzip.compress(ENGLISH), headers="Content-Encoding: gzip\r\n"),
        response_record("http://a/3", DATE, ENGLISH, "application/xhtml+xml"),
        response_record("http://a/4", DATE, ENGLISH, "TEXT/HTML;charset=utf-8"),
        response_record("http://a/5", DATE, ENGLISH).replace(b"Content-Type: text/html", b"X-Content-T: text/html"),
        response_record("http://a/6", DATE, ENGLISH, headers="Content-Encoding: gzip\r\n"),
        response_record("http://a/7", DATE, b"no chunk", headers="Transfer-Encoding: chunked\r\n"),
        response_record("http://a/8", DATE, zlib.compress(ENGLISH)[:50], headers="Content-Encoding: gzip\r\n"),
    )
    outcomes, _ = read_all(settings_for(path))
    assert [document.url[-1] for document in kept(outcomes)] == list("123456")
    assert len({document.text for document in kept(outcomes)}) == 1
    assert reasons(outcomes) == ["quarantine: damaged WARC record"] * 2


def test_pages_without_text_are_quarantined_with_their_address(tmp_path: Path) -> None:
    broken = b"<html><body><p>" + bytes(range(128, 256)).replace(b"\x80", b"\0") * 20 + b"</p></body></html>"
    nested = b"<html><body>" + b"<div>" * 20_000 + b"deep" + b"</body></html>"
    attributes = b"<html><body><a " + b" ".join(b"x%d=1" % i for i in range(30_000)) + b">deep</a></body></html>"
    pages = [b"", b"<html><body></body></html>", nested, attributes, ENGLISH + b" " * 200_001, broken]
    make_warc(tmp_path / "a.warc.gz", [(f"http://a/{i}", DATE, body) for i, body in enumerate(pages)])
    settings = settings_for(tmp_path / "a.warc.gz", max_page_bytes=200_000)
    outcomes, counts = read_all(replace(settings, max_page_bytes=400_000))
    assert reasons(outcomes) == [
        "quarantine: no main text", "quarantine: no main text", "quarantine: markup out of hand",
        "quarantine: markup out of hand", "quarantine: broken encoding",
    ]  # fmt: skip
    outcomes, counts = read_all(settings)
    assert reasons(outcomes)[3:5] == ["quarantine: too large"] * 2
    assert counts.documents_in == len(pages)
    dropped = [outcome.document for outcome in outcomes if isinstance(outcome, Dropped)]
    assert [document.url for document in dropped] == [f"http://a/{i}" for i in range(len(pages))]
    assert all(len(document.text) <= 4096 for document in dropped) and dropped[2].text.startswith("<html>")


def test_ids_do_not_depend_on_the_file(tmp_path: Path) -> None:
    make_warc(tmp_path / "a.warc.gz", [("http://a/", DATE, ENGLISH)])
    make_warc(tmp_path / "b.warc", [("http://b/", DATE, ENGLISH), ("http://a/", DATE, ENGLISH)])
    [first] = kept(read_all(settings_for(tmp_path / "a.warc.gz"))[0])
    [_, second] = kept(read_all(settings_for(tmp_path / "b.warc"))[0])
    assert first == second and first.id.startswith("s:")
    nameless = response_record("http://a/", DATE, ENGLISH).replace(b"WARC-Record-ID", b"X-Record")
    [third] = kept(read_all(settings_for(write(tmp_path / "c.warc.gz", nameless)))[0])
    [fourth] = kept(read_all(settings_for(write(tmp_path / "e.warc.gz", nameless)))[0])
    assert third.id == fourth.id != first.id


def test_texts_of_a_wet_archive(tmp_path: Path) -> None:
    text = "\n".join(TEXTS["zh"]).encode()
    record = (
        f"WARC/1.0\r\nWARC-Type: conversion\r\nWARC-Target-URI: http://a/\r\nWARC-Date: {DATE}\r\n"
        f"WARC-Record-ID: <urn:uuid:5>\r\nContent-Type: text/plain\r\nContent-Length: {len(text)}\r\n\r\n"
    )
    path = write(tmp_path / "a.warc.wet.gz", record.encode() + text + b"\r\n\r\n")
    [document] = read_all(settings_for(path, kind="warc"))[0]
    assert (document.id, document.text, document.language) == ("s:5", text.decode(), "zh")


def test_a_truncated_crawl_keeps_what_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.warc.gz"
    make_warc(path, [(f"http://a/{i}", DATE, page(f"{i}", TEXTS["fr"])) for i in range(5)])
    path.write_bytes(path.read_bytes()[:-100])
    outcomes, counts = read_all(settings_for(path))
    assert len(kept(outcomes)) == 4 and reasons(outcomes) == ["quarantine: truncated compression"]
    assert counts.documents_in == 5


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(0, 12_000), max_size=8), compressed=st.booleans())
def test_any_ranges_give_the_same_documents(tmp_path: Path, cuts: list[int], compressed: bool) -> None:
    path = tmp_path / ("a.warc.gz" if compressed else "a.warc")
    make_warc(path, [(f"http://a/{i}", DATE, page(f"{i}", texts)) for i, texts in enumerate(TEXTS.values())])
    settings_ = settings_for(path, extractor="resiliparse")
    outcomes, counts = read_ranges(settings_, cuts)
    whole, whole_counts = read_ranges(settings_, [])
    assert outcomes == whole and len(kept(whole)) == len(TEXTS)
    assert (counts.documents_in, counts.bytes_in) == (whole_counts.documents_in, whole_counts.bytes_in)
