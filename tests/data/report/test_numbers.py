"""Figures are said as people say them, and rounding never crosses a unit."""

from __future__ import annotations

import pytest

from puyulm.data.report.numbers import common_unit, count, duration, in_unit, share, size


@pytest.mark.parametrize(
    ("amount", "said"),
    [(0, "0"), (7, "7"), (9_999, "9,999"), (10_000, "10.0 k"), (12_345, "12.3 k"), (999_499, "999 k"),
     (999_600, "1.0 M"), (1_200_000, "1.2 M"), (3_614_070_000, "3.6 B"), (2.6e12, "2.6 T"), (0.5, "0.5"),
     (72.8, "72.8")],
)  # fmt: skip
def test_counts(amount: float, said: str) -> None:
    assert count(amount) == said


@pytest.mark.parametrize(
    ("amount", "said"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (3_400_000_000, "3.4 GB"), (99_960_000, "100 MB"),
     (999_700_000, "1.0 GB"), (13_523_900_000_000, "13.5 TB")],
)  # fmt: skip
def test_sizes(amount: float, said: str) -> None:
    assert size(amount) == said


@pytest.mark.parametrize(
    ("part", "whole", "said"),
    [(0, 10, "0 %"), (10, 10, "100 %"), (1, 10_000, "<0.1 %"), (9_999, 10_000, ">99.9 %"), (1, 3, "33.3 %"),
     (1, 0, "-")],
)  # fmt: skip
def test_shares_are_whole_only_when_they_are(part: int, whole: int, said: str) -> None:
    assert share(part, whole) == said


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.004, "4 ms"), (7.44, "7.4 s"), (59.96, "1 min 00 s"), (252, "4 min 12 s"), (11_100, "3 h 05 min")],
)
def test_durations(seconds: float, said: str) -> None:
    assert duration(seconds) == said


def test_a_column_has_one_unit() -> None:
    # InternLM2 report, table 1: documents in millions, bytes in GB, two decimals.
    documents, bytes_ = [500_000, 3_614_070_000], [220_140_000_000, 9_129_390_000_000]
    assert common_unit(documents, bytes_=False) == (1e9, "B")
    assert common_unit([500_000, 59_270_000], bytes_=False) == (1e6, "M")
    divisor, name = common_unit([220_140_000_000, 576_480_000_000], bytes_=True)
    assert (name, in_unit(bytes_[0], divisor)) == ("GB", "220.14")
    assert common_unit([], bytes_=True) == (1, "B")
    assert in_unit(25, 1.0) == "25"
