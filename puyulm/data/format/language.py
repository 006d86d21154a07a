"""Which language a text is in."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from puyulm.data.extras import needs
from puyulm.errors import DataError

UNKNOWN = "und"  # ISO 639: undetermined
MAX_CHARACTERS = 100_000  # more of a text does not make the answer surer
MIN_PROBABILITY = 0.5  # of fastText's first guess
FASTTEXT_CHARACTERS = 2_000  # it averages over all words: more of a text takes time and changes nothing
# Where CLD2 is not sure: its first guess counts if it covers so many per cent of the text; it is seldom wrong then, as
# `python -m benchmarks data --only language` shows.
MIN_SHARE = 50
MIN_SCRIPT = 0.3  # share of ideographs, kana and Hangul among letters
MIN_KANA = 0.1

# What CLD2 refuses, besides halves of surrogate pairs: control characters and the code points that are no characters.
_REFUSED = re.compile(
    "[\x00-\x08\x0b\x0e-\x1f\x7f-\x9f\ud800-\udfff\ufdd0-\ufdef"
    + "".join(f"{chr(plane + 0xFFFE)}{chr(plane + 0xFFFF)}" for plane in range(0, 0x110000, 0x10000))
    + "]"
)
_IDEOGRAPHS, _KANA, _HANGUL = map(re.compile, ("[\u3400-\u4dbf\u4e00-\u9fff]", "[\u3041-\u30ff]", "[\uac00-\ud7a3]"))
_RENAMED = {"iw": "he", "jw": "jv", "in": "id", "ji": "yi", "mo": "ro", "nb": "no", "wuu": "zh", "yue": "zh"}
# ISO 639-3, the labels of GlotLID and others: the languages that the web has most of.
_THREE_LETTERS = """
    eng en zho zh cmn zh deu de fra fr spa es rus ru jpn ja kor ko por pt ita it arb ar ara ar nld nl pol pl tur tr
    vie vi tha th ind id ukr uk ces cs swe sv heb he hin hi ell el hun hu ron ro dan da fin fi nob no nno nn bul bg
    hrv hr slk sk slv sl srp sr lit lt lvs lv est et cat ca fas fa pes fa ben bn tam ta tel te urd ur msa ms zsm ms
"""
_RENAMED |= dict(re.findall(r"(\w+) (\w+)", _THREE_LETTERS))
_NO_LANGUAGE = re.compile(r"un|xx.*|zz.*|tlh")  # CLD2's codes of scripts, of jokes, and of Klingon


def detect_languages(
    texts: Sequence[str], detector: Literal["pycld2", "fasttext"] = "pycld2", model: Path | None = None
) -> list[str]:
    """Finds the language of each text.

    Args:
        texts: Of any length; the first 100,000 characters count, and the first 2,000 for fastText.
        detector: CLD2, as in the InternLM2 report (section 3.1.1), or a fastText model.
        model: The fastText model's file, with labels such as `__label__en` (lid.176) or `__label__eng_Latn` (GlotLID).

    Returns:
        ISO 639-1 codes ("zh" for Chinese in either script), three-letter codes of languages that have none of these,
        and "und" where the detector is not sure.

    Raises:
        DataError: The detector is not installed, or its model is missing.
    """
    if detector == "fasttext":
        return _with_fasttext(texts, model)
    cld2 = needs("pycld2", "pycld2")
    return [_cld2_language(cld2, text) for text in texts]


def _cld2_language(cld2: Any, text: str) -> str:
    text = text[:MAX_CHARACTERS]
    try:
        reliable, _, guesses = cld2.detect(text, isPlainText=True)
    except (cld2.error, ValueError):  # few texts need this, which takes as long as the detection
        reliable, _, guesses = cld2.detect(_REFUSED.sub(" ", text), isPlainText=True)
    if reliable:
        return _code(guesses[0][1])
    return _by_script(text) or (_code(guesses[0][1]) if guesses[0][2] >= MIN_SHARE else UNKNOWN)


def _by_script(text: str) -> str:
    """Chinese, Japanese or Korean by what they are written in, where they are a good part of a text; else empty.

    CLD2 is not sure of a few Chinese sentences, nor of Chinese with terms in Latin letters.
    """
    letters = sum(map(str.isalpha, text))
    ideographs, kana, hangul = (len(script.findall(text)) for script in (_IDEOGRAPHS, _KANA, _HANGUL))
    if not letters or ideographs + kana + hangul < MIN_SCRIPT * letters:
        return ""
    if hangul > ideographs + kana:
        return "ko"
    return "ja" if kana > MIN_KANA * (ideographs + kana) else "zh"


def _with_fasttext(texts: Sequence[str], model: Path | None) -> list[str]:
    if model is None or not model.is_file():
        raise DataError(f"no fastText model at {model}: download lid.176.ftz, or use the detector pycld2")
    predict = _load_fasttext(model).predict
    languages = []
    for text in texts:
        line = " ".join(_REFUSED.sub(" ", text[:FASTTEXT_CHARACTERS]).split())
        labels, probabilities = predict(line) if line else ([], [])
        sure = len(labels) > 0 and probabilities[0] >= MIN_PROBABILITY
        languages.append(_code(labels[0].removeprefix("__label__")) if sure else UNKNOWN)
    return languages


@functools.lru_cache(maxsize=2)
def _load_fasttext(model: Path) -> Any:
    try:
        return needs("fasttext", "fasttext-predict", extra="").load_model(str(model))
    except ValueError as error:
        raise DataError(f"{model} is no fastText model ({error})") from None


def _code(code: str) -> str:
    code = code.replace("_", "-").partition("-")[0].lower()
    return UNKNOWN if _NO_LANGUAGE.fullmatch(code) or not code else _RENAMED.get(code, code)
