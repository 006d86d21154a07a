"""Similarities of texts and pictures."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from puyulm.eval.similarity import WINDOW, lexical_similarity, picture_similarity, rouge_1, ssim


def test_texts() -> None:
    assert lexical_similarity("Find a hotel", "find  a hotel") == 1.0
    assert lexical_similarity("", "") == 1.0 and lexical_similarity("", "abc") == 0.0
    assert lexical_similarity("get the weather of Berlin", "get the weather in Berlin") > 0.7
    assert lexical_similarity("get the weather of Berlin", "buy seven oranges") < 0.2
    # by hand: " ab", "ab " against " ab", "abc", "bc "
    assert lexical_similarity("ab", "abc") == pytest.approx(1 / 6**0.5)


@given(st.text(), st.text())
def test_texts_are_as_alike_both_ways(one: str, other: str) -> None:
    assert 0.0 <= lexical_similarity(one, other) <= 1.0
    assert lexical_similarity(one, other) == pytest.approx(lexical_similarity(other, one))
    assert rouge_1(one, other) == pytest.approx(rouge_1(other, one))


def test_rouge_1() -> None:
    assert rouge_1("The cat sat", "the cat ran off") == pytest.approx(2 * 2 / 7)
    assert rouge_1("the the the", "the") == pytest.approx(2 * 1 / 4)
    assert rouge_1("平均值是3", "平均值 为 3") == pytest.approx(2 * 4 / 10)
    assert rouge_1("", "") == rouge_1("a", "b") == 0.0


def slow_ssim(x: np.ndarray, y: np.ndarray) -> float:
    """Window by window, as the paper writes it."""
    values = []
    for channel in range(x.shape[2]):
        for i in range(x.shape[0] - WINDOW + 1):
            for j in range(x.shape[1] - WINDOW + 1):
                a = x[i : i + WINDOW, j : j + WINDOW, channel].astype(float).ravel()
                b = y[i : i + WINDOW, j : j + WINDOW, channel].astype(float).ravel()
                (va, both), (_, vb) = np.cov(a, b)
                c1, c2 = 6.5025, 58.5225
                values.append(
                    (2 * a.mean() * b.mean() + c1) * (2 * both + c2)
                    / ((a.mean() ** 2 + b.mean() ** 2 + c1) * (va + vb + c2))
                )  # fmt: skip
    return float(np.mean(values))


def picture(seed: int, size: tuple[int, int] = (16, 20)) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)


def test_ssim_is_the_paper_s() -> None:
    for seed in range(3):
        x, y = picture(seed), picture(seed + 10)
        mixed = (0.7 * x + 0.3 * y).astype(np.uint8)
        for other in (y, mixed, 255 - x):
            assert ssim(x, other) == pytest.approx(slow_ssim(x, other), abs=1e-9)
        assert ssim(x, x) == pytest.approx(1.0)
    flat = np.full((9, 9, 3), 200, np.uint8)
    assert ssim(flat, flat // 2) == pytest.approx((2 * 200 * 100 + 6.5025) / (200**2 + 100**2 + 6.5025))
    assert ssim(picture(0, (5, 5)), picture(0, (5, 5))) == 1.0 and ssim(picture(0, (5, 5)), picture(1, (5, 5))) == 0.0
    with pytest.raises(ValueError, match="cannot be compared"):
        ssim(picture(0), picture(0, (9, 9)))


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def test_picture_files(tmp_path: Path) -> None:
    one = png(picture(0))
    assert picture_similarity(one, one) == pytest.approx(1.0)
    assert 0.0 <= picture_similarity(one, png(picture(1))) < 0.3
    smooth = np.repeat(np.repeat(picture(2, (4, 5)), 8, 0), 8, 1)
    assert picture_similarity(png(np.repeat(smooth, 2, 0)), png(smooth)) > 0.8  # of another size
    rgba = np.dstack([smooth, np.full(smooth.shape[:2], 255, np.uint8)])
    assert picture_similarity(png(rgba), png(smooth)) == pytest.approx(1.0)
    for damaged in (b"", b"PNG", one[:-30], b"\x89PNG\r\n\x1a\n"):
        assert picture_similarity(damaged, one) == 0.0
