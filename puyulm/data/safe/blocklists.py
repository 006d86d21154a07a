"""Block lists of domains and addresses, as sorted arrays of 64-bit hashes: 13 million domains take 104 MB.

A list is a text file with one entry a line; what follows `#` is a comment. Two different entries share a hash with a
chance of one in 10^12 for a list of 13 million, so that hashes alone decide.
"""

from __future__ import annotations

import functools
import gzip
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from urllib.parse import unquote

import numpy as np
import numpy.typing as npt

from puyulm.data.documents import CompressionError, open_compressed
from puyulm.data.words import base_powers, mix
from puyulm.errors import DataError

Hashes = npt.NDArray[np.uint64]

CHUNK_BYTES = 1 << 18  # of a list's file that are hashed at a time, small enough for a processor's cache
MAX_CUTS = 64  # places in an address at which a listed prefix may end
_UNTIDY = re.compile(rb"[\s#/*\x80-\xff]")  # in a domain list, newlines apart: lines to look at one by one
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*://")
_TOKENS = re.compile(r"[^\W_]+")


@dataclass(frozen=True)
class BlockList:
    """Hashes of a list's entries, ascending."""

    hashes: Hashes

    def __len__(self) -> int:
        return len(self.hashes)

    def contains(self, entries: Sequence[str]) -> npt.NDArray[np.bool_]:
        """Which of the entries are listed, `[N]`."""
        if not len(self.hashes) or not entries:
            return np.zeros(len(entries), dtype=bool)
        wanted = line_hashes("".join(entry + "\n" for entry in entries).encode("utf-8", "replace"))
        place = np.minimum(np.searchsorted(self.hashes, wanted), len(self.hashes) - 1)
        return np.asarray(self.hashes[place] == wanted)

    def blocks(self, candidates: Sequence[Sequence[str]]) -> list[bool]:
        """For each document, whether any of its candidates is listed; one look-up for all of them."""
        owners = np.repeat(np.arange(len(candidates)), [len(group) for group in candidates]).astype(np.int64)
        found = self.contains([entry for group in candidates for entry in group])
        return [bool(n) for n in np.bincount(owners[found], minlength=len(candidates))]


def load_domains(paths: Iterable[Path]) -> BlockList:
    """Reads domain lists; a listed domain also stands for its subdomains (see `domain_candidates`).

    Raises:
        DataError: A file is missing.
    """
    return _load(paths, _tidy_domain, _UNTIDY)


def load_urls(paths: Iterable[Path]) -> BlockList:
    """Reads lists of address prefixes, such as `example.com/adult`; scheme and `www.` do not matter.

    Raises:
        DataError: A file is missing.
    """
    return _load(paths, normal_url, re.compile(b""))


def load_url_words(paths: Iterable[Path]) -> frozenset[str]:
    """Reads lists of words that speak against an address. Raises DataError if a file is missing."""
    words: set[str] = set()
    for path in paths:
        for chunk in _chunks(path):
            words.update(word for line in chunk.decode("utf-8", "replace").lstrip("\ufeff").splitlines()
                         if (word := line.partition("#")[0].strip().lower()))  # fmt: skip
    return frozenset(words)


def normal_url(url: str) -> str:
    """An address without scheme, user, `www.`, port and fragment, host in lower case: what lists hold."""
    address = _SCHEME.sub("", "".join(url.split()), count=1).partition("#")[0]
    cut = next((i for i, c in enumerate(address) if c in "/?"), len(address))
    host = _ascii_host(re.sub(r":\d*$", "", address[:cut].rpartition("@")[2]))
    return host.removeprefix("www.") + address[cut:]


def domain_candidates(url: str) -> list[str]:
    """The host of an address and the domains above it, and each with `www.`, which lists hold now and then."""
    host = re.split(r"[/?]", normal_url(url), maxsplit=1)[0]
    labels = host.split(".")[-16:]
    domains = [".".join(labels[i:]) for i in range(len(labels))] if host else []
    return [*domains, *("www." + domain for domain in domains)]


def url_candidates(url: str) -> list[str]:
    """The prefixes of an address that end where a part of it ends, with and without the mark that ends it."""
    address = normal_url(url)
    cuts = [match.start() for match in re.finditer(r"[/?&]", address)][:MAX_CUTS]
    prefixes = [address[:end] for cut in cuts for end in (cut, cut + 1)]
    return list(dict.fromkeys([*prefixes, address])) if address else []


def url_words(url: str) -> set[str]:
    """The words of an address: its runs of letters and of letters with digits, in lower case, decoded."""
    return set(_TOKENS.findall(unquote(_SCHEME.sub("", url, count=1)).lower()))


def line_hashes(data: bytes) -> Hashes:
    """A hash of each line of `data`, `[lines]`; lines end in a line feed, the last may go without.

    Polynomial hashes of the bytes modulo 2^64, as differences of one prefix sum, so that the work is a few passes of
    NumPy over the data.
    """
    codes = np.frombuffer(data if data.endswith(b"\n") else data + b"\n", dtype=np.uint8)
    ends = np.flatnonzero(codes == 10)
    starts = np.concatenate([[0], ends[:-1] + 1])
    powers, inverses = base_powers(1 << max(len(codes) - 1, 1).bit_length())
    with np.errstate(over="ignore"):
        sums = np.zeros(len(codes) + 1, dtype=np.uint64)
        np.cumsum(_byte_table()[codes] * powers[: len(codes)], out=sums[1:])
        return mix((sums[ends] - sums[starts]) * inverses[starts])


def _load(paths: Iterable[Path], tidy: Callable[[str], str], untidy: re.Pattern[bytes]) -> BlockList:
    """Hashes of all entries; lines are tidied one by one only in pieces of a file in which `untidy` is found."""
    parts = [np.zeros(0, dtype=np.uint64)]
    for path in paths:
        for chunk in _chunks(path):
            if untidy.search(chunk.replace(b"\n", b"")):
                lines = (line.partition("#")[0].strip() for line in chunk.decode("utf-8", "replace").split("\n"))
                chunk = "".join(tidy(line) + "\n" for line in lines if line).encode("utf-8", "replace")
            if chunk:
                parts.append(np.unique(line_hashes(chunk.lower() if tidy is _tidy_domain else chunk)))
    hashes = np.concatenate(parts)
    hashes.sort()
    first = np.concatenate([[True], hashes[1:] != hashes[:-1]])[: len(hashes)]
    return BlockList(hashes[first & (hashes != line_hashes(b"\n")[0])])  # without blank lines


def _chunks(path: Path) -> Iterator[bytes]:
    """Whole lines of a file, plain, .gz or .zst, a piece at a time."""
    if not path.is_file():
        raise DataError(f"no block list at {path}: check the path in the recipe")
    try:
        with open_compressed(path, "rb") as file:
            yield from _whole_lines(file)
    except (EOFError, gzip.BadGzipFile, zlib.error, CompressionError) as error:
        raise DataError(f"the block list {path} is damaged ({error}): make the file again") from error


def _whole_lines(file: IO[bytes]) -> Iterator[bytes]:
    rest = b""
    while piece := file.read(CHUNK_BYTES):
        lines, newline, tail = piece.rpartition(b"\n")
        if not newline:
            rest += tail
            continue
        yield rest + lines + newline
        rest = tail
    if rest:
        yield rest + b"\n"


def _tidy_domain(line: str) -> str:
    """A domain as look-ups spell it; lists also hold `*.example.com`, `http://example.com/` and `.example.com`."""
    host = re.split(r"[/?]", _SCHEME.sub("", line, count=1), maxsplit=1)[0]
    return _ascii_host(host.removeprefix("*"))


def _ascii_host(host: str) -> str:
    host = host.strip(".").lower()
    if host.isascii():
        return host
    try:
        return host.encode("idna").decode()
    except UnicodeError:
        return host


@functools.cache
def _byte_table() -> Hashes:
    """A random odd 64-bit number for every byte."""
    return mix(np.arange(1, 257, dtype=np.uint64) * np.uint64(0xD6E8FEB86659FD93)) | np.uint64(1)
