"""Records of web archives: the same whatever ranges the file is read in, and all that damage leaves."""

from __future__ import annotations

import gzip
import io
import random
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from fastwarc.warc import ArchiveIterator
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from puyulm.data.format.quarantine import Reason
from puyulm.data.format.warc import make_warc, response_record
from puyulm.data.format.warc_records import RawRecord, read_records

LIMIT = 1_000_000
TRICKY = [
    b"", b"x\r\n\r\n", b"\nWARC/1.0\r\n", b"<p>" * 3000,
    b"<pre>\r\n\r\nWARC/1.0\r\nWARC-Type: response\r\nContent-Length: 5\r\n\r\nabc and more</pre>",
    b"<pre>\n\nWARC/1.1\nWARC-Type: response\nContent-Length: 9999999\n\nabc</pre>",
]  # fmt: skip
BODIES = st.lists(st.one_of(st.sampled_from(TRICKY), st.binary(max_size=300)), max_size=6)
LAYOUTS: dict[str, Callable[[list[bytes]], bytes]] = {
    "plain": b"".join,
    "a member each": lambda records: b"".join(gzip.compress(record, mtime=0) for record in records),
    "one member": lambda records: gzip.compress(b"".join(records), mtime=0) if records else b"",
    "two members each": lambda records: b"".join(
        gzip.compress(record[:40], mtime=0) + gzip.compress(record[40:], mtime=0) for record in records
    ),
    "empty members between": lambda records: b"".join(
        gzip.compress(record, mtime=0) + gzip.compress(b"", mtime=0) for record in records
    ),
}
relaxed = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])


def records_of(bodies: list[bytes]) -> list[bytes]:
    return [response_record(f"http://a/{i}", "2024-05-06T07:08:09Z", body) for i, body in enumerate(bodies)]


def write(folder: Path, layout: str, data: bytes) -> Path:
    path = folder / ("a.warc" if layout == "plain" else "a.warc.gz")
    path.write_bytes(data)
    return path


def in_ranges(path: Path, cuts: list[int], limit: int = LIMIT) -> list[RawRecord]:
    size = path.stat().st_size
    ends = sorted({0, size, *(cut % (size + 1) for cut in cuts)})
    return [record for start, stop in pairwise(ends) for record in read_records(path, start, stop, limit)]


def good(found: list[RawRecord]) -> list[bytes]:
    return [record.data for record in found if record.problem is None]


def problems(found: list[RawRecord]) -> list[Reason]:
    return [record.problem for record in found if record.problem is not None]


@relaxed
@given(bodies=BODIES, layout=st.sampled_from(sorted(LAYOUTS)), cuts=st.lists(st.integers(0, 20_000), max_size=6))
def test_any_ranges_give_every_record_once(tmp_path: Path, bodies: list[bytes], layout: str, cuts: list[int]) -> None:
    records = records_of(bodies)
    path = write(tmp_path, layout, LAYOUTS[layout](records))
    assert [record.data for record in in_ranges(path, cuts)] == [record[:-4] for record in records]
    assert in_ranges(path, cuts) == in_ranges(path, [])


@relaxed
@given(bodies=BODIES, layout=st.sampled_from(sorted(LAYOUTS)))
def test_records_are_those_that_fastwarc_finds(tmp_path: Path, bodies: list[bytes], layout: str) -> None:
    path = write(tmp_path, layout, LAYOUTS[layout](records_of(bodies)))
    stream = io.BytesIO(gzip.decompress(path.read_bytes()) if layout != "plain" else path.read_bytes())
    theirs = [record.reader.read() for record in ArchiveIterator(stream, parse_http=False)] if bodies else []
    assert [record.data.split(b"\r\n\r\n", 1)[1] for record in in_ranges(path, [])] == theirs


@relaxed
@given(
    bodies=st.lists(st.binary(max_size=300), max_size=6),
    layout=st.sampled_from(sorted(LAYOUTS)),
    cuts=st.lists(st.integers(0, 20_000), max_size=6),
    place=st.integers(0, 20_000),
    damage=st.sampled_from(["flip", "truncate", "insert"]),
    junk=st.binary(min_size=1, max_size=40),
)
def test_damage_costs_what_it_touches(
    tmp_path: Path, bodies: list[bytes], layout: str, cuts: list[int], place: int, damage: str, junk: bytes
) -> None:
    records = records_of(bodies)
    data = LAYOUTS[layout](records)
    place %= len(data) + 1
    data = {
        "flip": data[:place] + bytes(byte ^ 0x11 for byte in data[place : place + 1]) + data[place + 1 :],
        "truncate": data[:place],
        "insert": data[:place] + junk + data[place:],
    }[damage]
    path = write(tmp_path, layout, data)
    found = in_ranges(path, [])
    assert in_ranges(path, cuts) == found
    lost = [record for record in records if record[:-4] not in good(found)]
    if layout == "a member each" and damage != "truncate":  # the damaged one, or those on both sides
        assert len(lost) <= 2
        assert not lost or problems(found)
    if damage == "truncate":
        assert all(data in [record[:-4] for record in records] for data in good(found))


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_a_truncated_file_keeps_the_records_before(tmp_path: Path, layout: str) -> None:
    records = records_of([bytes([65 + i]) * 500 for i in range(4)])
    data = LAYOUTS[layout](records)
    found = in_ranges(write(tmp_path, layout, data[: -10 if layout == "one member" else -30]), [70, 150])
    assert good(found) == [record[:-4] for record in records[:3]]
    [problem] = problems(found)
    assert problem == (Reason.DAMAGED_RECORD if layout == "plain" else Reason.TRUNCATED_COMPRESSION)
    assert found[-1].data


def test_a_damaged_member_is_skipped(tmp_path: Path) -> None:
    noise = random.Random(0)
    records = records_of([noise.randbytes(2000) for _ in range(5)])
    members = [gzip.compress(record, mtime=0) for record in records]
    members[2] = members[2][:900] + b"\0\0\0\0" + members[2][904:]
    path = write(tmp_path, "a member each", b"".join(members))
    for cuts in ([], [len(members[0]) + 5, 4500, 5000]):
        found = in_ranges(path, cuts)
        assert good(found) == [record[:-4] for i, record in enumerate(records) if i != 2]
        assert problems(found) == [Reason.DAMAGED_COMPRESSION]
        assert found[2].place == f"#{len(members[0]) + len(members[1])}"


def test_a_member_that_breaks_at_once_costs_nothing_before_it(tmp_path: Path) -> None:
    records = records_of([b"a" * 100, b"b" * 100, b"c" * 100])
    broken = gzip.compress(b"no record at all, and damaged", mtime=0)[:-12] + b"\xff" * 12
    members = [gzip.compress(record, mtime=0) for record in records]
    path = write(tmp_path, "a member each", members[0] + broken + members[1] + members[2])
    for cuts in ([], [len(members[0]), len(members[0]) + 10]):
        found = in_ranges(path, cuts)
        assert good(found) == [record[:-4] for record in records] and problems(found) == [Reason.DAMAGED_COMPRESSION]


def test_a_length_that_lies_does_not_hide_the_records_behind(tmp_path: Path) -> None:
    records = records_of([b"a" * 100, b"b" * 100, b"c" * 100])
    lying = records[1].replace(b"Content-Length: 14", b"Content-Length: 34")
    assert lying != records[1]
    path = write(tmp_path, "plain", records[0] + lying + records[2])
    found = in_ranges(path, [])
    assert good(found) == [records[0][:-4], records[2][:-4]]
    assert problems(found) == [Reason.DAMAGED_RECORD]
    assert found[1].size == len(lying)


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_a_record_beyond_the_limit_is_reported_and_passed(tmp_path: Path, layout: str) -> None:
    records = records_of([b"a" * 100, b"b" * 700_000, b"c" * 100])
    path = write(tmp_path, layout, LAYOUTS[layout](records))
    for cuts in ([], [300, 1000, 5000]):
        found = in_ranges(path, cuts, limit=50_000)
        assert good(found) == [records[0][:-4], records[2][:-4]]
        assert problems(found) == [Reason.TOO_LARGE]
        assert found[1].size == len(records[1]) - 4


def test_a_compressed_record_beyond_the_limit_is_not_held(tmp_path: Path) -> None:
    import tracemalloc

    path = write(tmp_path, "one member", LAYOUTS["one member"](records_of([b"b" * 60_000_000, b"c"])))
    tracemalloc.start()
    try:
        found = in_ranges(path, [], limit=1_000_000)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert problems(found) == [Reason.TOO_LARGE] and len(good(found)) == 1
    assert peak < 6_000_000


def test_what_is_no_archive_is_reported_once(tmp_path: Path) -> None:
    for name, reason in (("a.warc", Reason.DAMAGED_RECORD), ("a.warc.gz", Reason.DAMAGED_COMPRESSION)):
        (tmp_path / name).write_bytes(b"this is no archive\n" * 50)
        [record] = in_ranges(tmp_path / name, [10, 500])
        assert (record.problem, record.size, record.place) == (reason, 950, "#0")


def test_the_same_pages_give_the_same_file(tmp_path: Path) -> None:
    pages = [("http://a/", "2024-01-02T03:04:05Z", b"<p>x</p>")] * 2
    for name in ("a.warc.gz", "b.warc.gz"):
        make_warc(tmp_path / name, pages)
    assert (tmp_path / "a.warc.gz").read_bytes() == (tmp_path / "b.warc.gz").read_bytes()
    with open(tmp_path / "a.warc.gz", "rb") as file:
        found = [(record.headers["WARC-Target-URI"], record.reader.read()) for record in ArchiveIterator(file)]
    assert found == [("http://a/", b"<p>x</p>")] * 2
