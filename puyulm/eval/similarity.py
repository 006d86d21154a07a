"""How alike two texts are, or two pictures."""

from __future__ import annotations

import io
import math
import re
from collections import Counter

import numpy as np

from puyulm.errors import DataError

_WORD = re.compile(r"[a-z0-9]+|[\u3400-\u9fff]")  # Chinese by characters: no dictionary decides a score
WINDOW = 7  # pixels
LARGEST = 4096  # pixels of a side


def lexical_similarity(first: str, second: str) -> float:
    """Cosine of the counts of three neighbouring characters, in lower case; between 0 and 1.

    It stands in for the cosine of sentence embeddings where no embedding model is at hand: other words for the same
    thing count as different.
    """
    one, other = _threes(first), _threes(second)
    if one == other:
        return 1.0
    dot = sum(count * other[part] for part, count in one.items())
    norm = math.sqrt(sum(n * n for n in one.values()) * sum(n * n for n in other.values()))
    return min(dot / norm, 1.0) if norm else 0.0


def _threes(text: str) -> Counter[str]:
    framed = f" {' '.join(text.lower().split())} "
    return Counter(framed[i : i + 3] for i in range(len(framed) - 2))


def rouge_1(answer: str, reference: str) -> float:
    """F1 of the words that two texts share, each as often as it stands in both (ROUGE-1; Lin, 2004)."""
    found, right = Counter(_WORD.findall(answer.lower())), Counter(_WORD.findall(reference.lower()))
    shared = (found & right).total()
    return 2 * shared / (found.total() + right.total()) if shared else 0.0


def ssim(first: np.ndarray, second: np.ndarray) -> float:
    """Structural similarity of two pictures (Wang et al., 2004): 1 of equal ones, about 0 of unrelated ones.

    Means, variances (of samples, by n - 1) and covariances are taken over square windows of 7 pixels, all that lie
    within the picture; K1 is 0.01 and K2 0.03. Channels are averaged. These are scikit-image's defaults.

    Args:
        first, second: `[height, width, channels]`, from 0 to 255, of the same shape.
    """
    if first.shape != second.shape:
        raise ValueError(f"pictures of {first.shape} and {second.shape} cannot be compared")
    if min(first.shape[:2]) < WINDOW:
        return float(np.array_equal(first, second))
    x, y = first.astype(np.float64), second.astype(np.float64)
    mean_x, mean_y = _means(x), _means(y)
    sample = WINDOW**2 / (WINDOW**2 - 1)
    var_x, var_y = sample * (_means(x * x) - mean_x**2), sample * (_means(y * y) - mean_y**2)
    both = sample * (_means(x * y) - mean_x * mean_y)
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return float(np.mean(luminance * (2 * both + c2) / (var_x + var_y + c2)))


def _means(picture: np.ndarray) -> np.ndarray:
    """Over all windows: `[height - 6, width - 6, channels]`."""
    sums = np.pad(picture, ((1, 0), (1, 0), (0, 0))).cumsum(0).cumsum(1)
    w = WINDOW
    return (sums[w:, w:] - sums[:-w, w:] - sums[w:, :-w] + sums[:-w, :-w]) / w**2


def picture_similarity(found: bytes, reference: bytes) -> float:
    """SSIM of two PNG files, between 0 and 1; the first is brought to the size of the second. A damaged one: 0."""
    pictures = _picture(found), _picture(reference)
    if pictures[0] is None or pictures[1] is None:
        return 0.0
    first, second = pictures
    if first.size != second.size:
        first = first.resize(second.size)
    return max(0.0, ssim(np.asarray(first), np.asarray(second)))


def need_pillow() -> None:
    """Raises DataError where pictures cannot be read."""
    try:
        import PIL  # noqa: F401
    except ImportError:
        raise DataError("comparing pictures needs Pillow: pip install 'puyulm[eval]'") from None


def _picture(data: bytes):  # type: ignore[no-untyped-def]  # Pillow is an extra
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as picture:
            return picture.convert("RGB") if max(picture.size) <= LARGEST else None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
