"""PDF and EPUB files made by hand, whole and damaged."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pypdf
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .helpers import TEXTS, kept, read_all, reasons, settings_for

CONTAINER = """<?xml version="1.0"?><container xmlns="urn:oasis:names:tc:opendocument:xmlns:container" version="1.0">
<rootfiles><rootfile full-path="OEBPS/book.opf" media-type="application/oebps-package+xml"/></rootfiles></container>"""
PACKAGE = """<?xml version="1.0"?><package xmlns="http://www.idpf.org/2007/opf" version="3.0"
 xmlns:dc="http://purl.org/dc/elements/1.1/"><metadata><dc:title>A Long
 Winter</dc:title><dc:creator>N. N.</dc:creator><dc:date>1901-02-03T00:00:00Z</dc:date></metadata>
<manifest><item id="a" href="text/one.xhtml" media-type="application/xhtml+xml"/>
<item id="b" href="text/chapter%20two.xhtml" media-type="application/xhtml+xml"/>
<item id="n" href="nav.xhtml" media-type="application/xhtml+xml" properties="nav"/>
<item id="i" href="cover.png" media-type="image/png"/>
<item id="x" href="notes.xhtml" media-type="application/xhtml+xml"/></manifest>
<spine><itemref idref="n"/><itemref idref="i"/><itemref idref="b"/><itemref idref="a"/>
<itemref idref="x" linear="no"/><itemref idref="none"/></spine></package>"""


def chapter(*paragraphs: str) -> str:
    body = "".join(f"<p>{paragraph}</p>" for paragraph in paragraphs)
    return (
        f'<?xml version="1.0" encoding="utf-8"?><html xmlns="http://www.w3.org/1999/xhtml"><body>{body}</body></html>'
    )


def write_epub(path: Path, **replaced: str) -> Path:
    files = {
        "META-INF/container.xml": CONTAINER, "OEBPS/book.opf": PACKAGE,
        "OEBPS/text/one.xhtml": chapter(*TEXTS["en"]),
        "OEBPS/text/chapter two.xhtml": chapter("The beginning.", "Two."), "OEBPS/nav.xhtml": chapter("Contents"),
        "OEBPS/notes.xhtml": chapter("Notes"), "OEBPS/cover.png": "png",
    } | {name.replace("__", "/").replace("_dot_", "."): text for name, text in replaced.items()}  # fmt: skip
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as book:
        book.writestr("mimetype", "application/epub+zip", zipfile.ZIP_STORED)
        for name, text in files.items():
            book.writestr(name, text)
    return path


def pdf_file(objects: list[bytes], info: bytes = b"") -> bytes:
    """A PDF file out of its objects, the first of which is the catalogue."""
    data = b"%PDF-1.4\n"
    places = []
    for number, content in enumerate(objects, start=1):
        places.append(len(data))
        data += b"%d 0 obj\n%s\nendobj\n" % (number, content)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    count = len(objects) + 1
    start = len(data)
    data += b"xref\n0 %d\n0000000000 65535 f \n%s" % (count, table)
    return data + b"trailer\n<< /Size %d /Root 1 0 R /Info << %s >> >>\nstartxref\n%d\n%%%%EOF\n" % (count, info, start)


def stream(content: bytes) -> bytes:
    return b"<< /Length %d >>\nstream\n%s\nendstream" % (len(content), content)


def write_pdf(path: Path, *pages: str) -> Path:
    """A PDF file with a line of Latin text for each line of a page."""
    kids = b" ".join(b"%d 0 R" % (4 + 2 * i) for i in range(len(pages)))
    objects = [b"<< /Type /Catalog /Pages 2 0 R >>", b"<< /Type /Pages /Kids [%s] /Count %d >>" % (kids, len(pages)),
               b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>"]  # fmt: skip
    for i, text in enumerate(pages):
        shown = b" T* ".join(b"(%s) Tj" % line.encode("latin-1") for line in text.splitlines())
        objects.append(b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 600 800] /Contents %d 0 R "
                       b"/Resources << /Font << /F1 3 0 R >> >> >>" % (5 + 2 * i))  # fmt: skip
        objects.append(stream(b"BT /F1 12 Tf 14 TL 40 700 Td " + shown + b" ET"))
    path.write_bytes(pdf_file(objects, b"/Title (Winter) /CreationDate (D:20200304120000)"))
    return path


def test_an_epub_is_read_in_the_order_of_its_spine(tmp_path: Path) -> None:
    [book] = kept(read_all(settings_for(write_epub(tmp_path / "winter.epub")))[0])
    assert book.text == "The beginning.\n\nTwo.\n\n" + "\n\n".join(TEXTS["en"])
    assert book.metadata == {"title": "A Long Winter", "author": "N. N."}
    assert (book.id, book.date, book.language) == ("s:winter.epub", "1901-02-03", "en")


def test_long_books_are_cut_into_parts(tmp_path: Path) -> None:
    write_epub(tmp_path / "winter.epub")
    (tmp_path / "a.txt").write_text("\n\n".join(TEXTS["zh"] * 4), encoding="utf-8")
    (tmp_path / "b.md").write_text("# Short\n", encoding="utf-8")
    documents = kept(read_all(settings_for(tmp_path, split_bytes=200))[0])
    names = [document.id for document in documents]
    assert names[-1] == "s:winter.epub#2" and "s:b.md" in names and names[:2] == ["s:a.txt#0", "s:a.txt#1"]
    parts = [document for document in documents if document.url == "a.txt"]
    assert "".join(part.text for part in parts) == "\n\n".join(TEXTS["zh"] * 4)
    assert [part.metadata["part"] for part in parts] == list(range(len(parts)))
    assert documents[-1].metadata == {"title": "A Long Winter", "author": "N. N.", "part": 2}


@pytest.mark.parametrize(
    ("change", "reason"),
    [({"META-INF__container_dot_xml": "<broken"}, "damaged archive"),
     ({"META-INF__container_dot_xml": "<empty/>"}, "damaged archive"),
     ({"OEBPS__book_dot_opf": PACKAGE.replace("text/one.xhtml", "gone.xhtml")}, "damaged archive"),
     ({"OEBPS__book_dot_opf": PACKAGE.replace("itemref", "ref")}, "empty text"),
     ({"OEBPS__text__one_dot_xhtml": chapter("x" * 40_000)}, "too large"),
     ({"OEBPS__text__one_dot_xhtml": "<div>" * 6000}, "markup out of hand")],
)  # fmt: skip
def test_bad_books(tmp_path: Path, change: dict[str, str], reason: str) -> None:
    path = write_epub(tmp_path / "a.epub", **change)
    assert reasons(read_all(settings_for(path, max_document_mb=0.035))[0]) == [f"quarantine: {reason}"]


def test_a_cut_book(tmp_path: Path) -> None:
    path = write_epub(tmp_path / "a.epub")
    path.write_bytes(path.read_bytes()[:-200])
    assert reasons(read_all(settings_for(path))[0]) == ["quarantine: damaged archive"]


def test_a_pdf_is_read_page_by_page(tmp_path: Path) -> None:
    text = "\n".join(TEXTS["en"])
    path = write_pdf(tmp_path / "winter.pdf", text, "", "The second page\nhas two lines.")
    [document] = kept(read_all(settings_for(path))[0])
    assert document.text == f"{text}\n\nThe second page\nhas two lines."
    assert document.metadata == {"pages": 3, "title": "Winter"}
    assert (document.date, document.language) == ("2020-03-04", "en")


def test_words_of_a_font_without_a_space(tmp_path: Path) -> None:
    unicode_map = (b"/CIDInit /ProcSet findresource begin begincmap 1 begincodespacerange <0000> <ffff> "
                   b"endcodespacerange 1 beginbfrange <0001> <001a> <0061> endbfrange endcmap end")  # fmt: skip

    def shown(word: str) -> bytes:
        return b"<%s>" % b"".join(b"%04x" % (ord(letter) - ord("a") + 1) for letter in word)

    text = b"BT /F1 10 Tf 40 700 Td [" + b" -290 ".join(map(shown, ["the", "long", "winter"])) + b" 60 <0001>] TJ ET"
    (tmp_path / "a.pdf").write_bytes(pdf_file([
        b"<< /Type /Catalog /Pages 2 0 R >>", b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 600 800] /Contents 4 0 R "
        b"/Resources << /Font << /F1 5 0 R >> >> >>",
        stream(text), b"<< /Type /Font /Subtype /Type0 /BaseFont /X /Encoding /Identity-H /DescendantFonts [6 0 R] "
        b"/ToUnicode 7 0 R >>", b"<< /Type /Font /Subtype /CIDFontType2 /BaseFont /X /CIDSystemInfo << /Registry "
        b"(Adobe) /Ordering (Identity) /Supplement 0 >> /W [1 26 500 32 32 1000] >>", stream(unicode_map),
    ]))  # fmt: skip
    [document] = kept(read_all(settings_for(tmp_path / "a.pdf"))[0])
    assert document.text == "the long wintera"


def test_bad_pdfs(tmp_path: Path) -> None:
    write_pdf(tmp_path / "a.pdf", "", "")
    (tmp_path / "b.pdf").write_bytes(b"%PDF-1.4\nnothing")
    writer = pypdf.PdfWriter(clone_from=write_pdf(tmp_path / "secret.pdf", "secret"))
    writer.encrypt("password", algorithm="RC4-128")
    writer.write(tmp_path / "secret.pdf")
    write_pdf(tmp_path / "z.pdf", "x" * 500)
    outcomes, _ = read_all(settings_for(tmp_path, max_document_mb=0.0004))
    assert reasons(outcomes) == [
        "quarantine: PDF without text", "quarantine: extraction failed", "quarantine: encrypted",
        "quarantine: too large",
    ]  # fmt: skip


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(0, 5000), junk=st.binary(min_size=1, max_size=60), kind=st.sampled_from(["pdf", "epub"]))
def test_damage_never_ends_the_run(tmp_path: Path, place: int, junk: bytes, kind: str) -> None:
    write = {"pdf": lambda path: write_pdf(path, "text", "text"), "epub": write_epub}[kind]
    path = write(tmp_path / f"a.{kind}")
    data = path.read_bytes()
    place %= len(data)
    path.write_bytes(data[:place] + junk + data[place + len(junk) :])
    outcomes, _ = read_all(settings_for(path, seconds_per_page=1.0, detector="none"))
    assert len(outcomes) == 1
