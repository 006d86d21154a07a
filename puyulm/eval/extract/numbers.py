"""Numbers in what a model wrote.

Harnesses' rules, which give texts:

- `last_number`: OpenCompass's rule for GSM8K, the last number. OpenCompass itself reads "1,234" as 234; here separators
  of thousands are taken off, as its rule for the right answers does.
- `marked_number`: lm-evaluation-harness's "strict-match" and the data set's own rule, the number after `####`.
- `flexible_number`: lm-evaluation-harness's "flexible-extract", the last run of digits, `$`, full stops and commas.

And values: `parse_number` reads a text that is one number and nothing else, `final_number` finds the last one in prose;
both know what people write: separators, fractions, percent, currency, units, powers of ten, full-width digits, LaTeX,
and Chinese numerals.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction

_PLAIN = re.compile(r"-?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?")
_MARKED = re.compile(r"#### (-?[0-9.,]+)")
_FLEXIBLE = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")

LONGEST = 200  # digits of a number
LARGEST_POWER = 400  # of ten


def last_number(text: str) -> str | None:
    """The last number, without separators of thousands (GSM8K's rule in OpenCompass)."""
    found = _PLAIN.findall(text)
    return found[-1].replace(",", "") if found else None


def marked_number(text: str) -> str | None:
    """The first number after `#### ` (GSM8K's own mark; "strict-match" of lm-evaluation-harness)."""
    found = _MARKED.search(text)
    return _bare(found[1]) if found else None


def flexible_number(text: str) -> str | None:
    """The last match of lm-evaluation-harness's "flexible-extract", cleaned as it cleans before it compares."""
    found = _FLEXIBLE.findall(text)
    return _bare(next(part for part in found[-1] if part)) if found else None


def _bare(text: str) -> str:
    return text.replace(",", "").replace("$", "").removesuffix(".")


@dataclass(frozen=True)
class Number:
    """A number that somebody wrote.

    Attributes:
        value: What it says; of percentages a hundredth of what stands there.
        percent: Whether it was written as a percentage.
    """

    value: Fraction
    percent: bool = False


_DECIMAL = r"(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)"
_CURRENCY = r"(?:US\$|HK\$|A\$|[$€£¥₩₹]|RMB|USD|EUR|CNY)"
_PERCENT = r"(?:%|percent\b|per cent\b)"
_SIMPLE = r"(?:[A-Za-z°µΩ]{2,}|[mgshlLCFKNJWVA°′″Ω])[²³]?"
_WORD = rf"(?:{_SIMPLE}(?:\^\{{?-?\d\}}?)?(?:[/·-]{_SIMPLE}(?:\^\{{?-?\d\}}?)?)*\.?|[\u4e00-\u9fff]{{1,3}})"  # a unit
_ARABIC = re.compile(
    rf"(?P<sign>[-+]?) ?{_CURRENCY}? ?(?P<inner>[-+]?)"
    rf"(?:(?P<whole>\d+) (?P<part>\d+) ?/ ?(?P<parts>\d+)"
    rf"|(?P<number>{_DECIMAL})(?: ?/ ?(?P<by>{_DECIMAL}))?"
    rf"(?:[eE](?P<e>[-+]?\d+)| ?[x*×] ?10 ?\^ ?\{{? ?(?P<power>[-+]?\d+) ?\}}?)?)"
    rf" ?(?P<myriad>[万亿])?(?P<scale>(?:thousand|million|billion|trillion)\b)? ?(?P<percent>{_PERCENT})?",
)
_UNITS = re.compile(rf" ?{_CURRENCY}? ?(?:{_WORD}(?: {_WORD}){{0,2}})?")
_SCALES = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12, "万": 10**4, "亿": 10**8}

_DIGITS = {
    one: value
    for value, forms in enumerate(("零〇○", "一壹", "二贰两", "三叁", "四肆", "五伍", "六陆", "七柒", "八捌", "九玖"))
    for one in forms
}
_TENS = {"十": 10, "拾": 10, "百": 100, "佰": 100, "千": 1000, "仟": 1000}
_MYRIADS = {"万": 10**4, "萬": 10**4, "亿": 10**8, "億": 10**8}
_COUNT = "".join((*_DIGITS, *_TENS, *_MYRIADS))
_CHINESE = re.compile(rf"负?(?:百分之|[{_COUNT}]+分之)?[{_COUNT}]+(?:点[{_COUNT}]+)?")


def parse_number(text: str, *, units: bool = True) -> Number | None:
    """The value of a text that is one number.

    Args:
        text: Spaces, `$...$`, `\\(...\\)`, bold marks and a full stop around it do not count.
        units: Words behind it (at most three) do not count either.

    Returns:
        None for everything else: words, several numbers, expressions.
    """
    text = _clean(text)
    if found := _ARABIC.match(text):
        number, rest = _arabic(found), text[found.end() :]
        if number is not None and (not rest or (units and _UNITS.fullmatch(rest))):
            return number
    if found := _CHINESE.match(text):
        value, rest = chinese_number(found[0]), text[found.end() :]
        if value is not None and (not rest or (units and _UNITS.fullmatch(rest))):
            return Number(value, found[0].lstrip("负").startswith("百分之"))
    return None


def final_number(text: str) -> Number | None:
    """The last number in prose, in any form. A minus counts only where it is not one between two numbers."""
    text, end, last = _clean(text), 0, None
    for found in _ARABIC.finditer(text):
        number = _arabic(found)
        if number is None:
            continue
        before = text[: found.start()].rstrip()[-1:]
        between = found["sign"] == "-" and (before.isdigit() or before in (")", "]"))
        end, last = found.end(), Number(-number.value, number.percent) if between else number
    for found in _CHINESE.finditer(text):
        value = chinese_number(found[0])
        if value is not None and found.start() >= end and _counts(found[0], text[found.end() : found.end() + 1]):
            end, last = found.end(), Number(value, found[0].lstrip("负").startswith("百分之"))
    return last


def _counts(numeral: str, behind: str) -> bool:
    """Single characters are mostly parts of words (一起, 万能), but not at an end or before a measure word."""
    return len(numeral) > 1 or not behind.isalpha() or behind in "个只条件本元块人天米岁分次张辆台位棵朵年月日"


def same_number(gold: Number, answer: Number) -> bool:
    """Whether two numbers are equal; where only one is a percentage, with or without the hundredth."""
    if gold.value == answer.value:
        return True
    if gold.percent == answer.percent:
        return False
    plain, percentage = (answer, gold) if gold.percent else (gold, answer)
    return plain.value == percentage.value * 100


def chinese_number(text: str) -> Fraction | None:
    """The value of a Chinese numeral (一百二十三, 三分之二, 百分之五, 负两万零五, 零点五, 二〇二四); None: it is none.

    After 百, 千, 万 or 亿 a last digit stands for the next place (一百二 is 120), unless 零 is between.
    """
    if text.startswith("负"):
        value = chinese_number(text[1:])
        return None if value is None or text[1:].startswith("负") else -value
    if len(text) > LONGEST:
        return None
    if "分之" in text:
        below, _, above = text.partition("分之")
        bottom, top = chinese_number("一百" if below == "百" else below), chinese_number(above)
        return None if not bottom or top is None else top / bottom
    whole, point, decimals = text.partition("点")
    value = _chinese_whole(whole)
    if not point or value is None:
        return value
    myriad = 1
    if decimals and decimals[-1] in _MYRIADS:  # 三点五万
        decimals, myriad = decimals[:-1], _MYRIADS[decimals[-1]]
    if not decimals or any(one not in _DIGITS for one in decimals):
        return None
    return (value + Fraction(int("".join(str(_DIGITS[one]) for one in decimals)), 10 ** len(decimals))) * myriad


def _chinese_whole(text: str) -> Fraction | None:
    if not text or any(one not in _COUNT for one in text):
        return None
    if all(one in _DIGITS for one in text):  # read out digit by digit
        return Fraction(int("".join(str(_DIGITS[one]) for one in text)))
    return _chinese_part(text)


def _chinese_part(text: str) -> Fraction | None:
    """By the largest unit: what is before it counts so often, what is behind it is added."""
    if text[:1] and text[0] in "零〇○":
        return None
    for unit in (10**8, 10**4):
        places = [place for place, one in enumerate(text) if _MYRIADS.get(one) == unit]
        if places:  # 一万亿 is a myriad of 亿: the last one divides
            before = _chinese_part(text[: places[-1]])
            behind = _behind(text[places[-1] + 1 :], unit)
            if not places[-1] or before is None or behind is None or not before or behind >= unit:
                return None
            return before * unit + behind
    total, last, digit = 0, 10**4, -1
    for place, one in enumerate(text):
        if one in _TENS:
            unit, after_zero = _TENS[one], place == 0 or text[place - 1] in "零〇○"
            if unit >= last or digit == 0 or (digit < 0 and not (unit == 10 and after_zero)):
                return None
            total, last, digit = total + (digit if digit > 0 else 1) * unit, unit, -1
        elif one in "零〇○":
            if digit > 0 or place == len(text) - 1:
                return None
            digit = -1
        elif digit > 0:
            return None
        else:
            digit = _DIGITS[one]
    if digit > 0:
        short = len(text) > 1 and last > 10 and text[-2] in _TENS  # 一百二
        total += digit * (last // 10 if short else 1)
    return Fraction(total)


def _behind(text: str, unit: int) -> Fraction | None:
    """What follows 万 or 亿; a single digit stands for the next place (三万五 is 35,000)."""
    if not text:
        return Fraction(0)
    if len(text) == 1 and _DIGITS.get(text, 0) > 0:
        return Fraction(_DIGITS[text] * unit, 10)
    return _chinese_part(text.lstrip("零〇○")) if text.lstrip("零〇○") else None


def _arabic(found: re.Match[str]) -> Number | None:
    """The value of a match."""
    if len(found[0]) > LONGEST or (found["sign"] and found["inner"]):
        return None
    if found["whole"]:
        if int(found["parts"]) == 0:
            return None
        value = int(found["whole"]) + Fraction(int(found["part"]), int(found["parts"]))
    else:
        value = Fraction(found["number"].replace(",", ""))
        if found["by"]:
            by = Fraction(found["by"].replace(",", ""))
            if not by:
                return None
            value /= by
    power = int(found["e"] or found["power"] or 0)
    if abs(power) > LARGEST_POWER:
        return None
    value *= Fraction(10) ** power * _SCALES.get(found["scale"] or found["myriad"], 1)
    if "-" in (found["sign"], found["inner"]):
        value = -value
    return Number(value / 100, True) if found["percent"] else Number(value)


_LATEX_FRACTION = re.compile(r"\\[dt]?frac\s*(?:\{\s*(-?[\d.]+)\s*\}|(\d))\s*(?:\{\s*([\d.]+)\s*\}|(\d))")
_LATEX_SPACES = re.compile(r"\\[,;:! ]|(?<=\d)\{,\}(?=\d)|~|\u2009|\u202f|\u00a0")
_LATEX_TEXT = re.compile(r"\\(?:text|mathrm|mbox|textbf|mathbf|operatorname)\s*\{([^{}]*)\}")


def _clean(text: str) -> str:
    """One form of everything that is written in several: widths, minus signs, LaTeX."""
    text = unicodedata.normalize("NFKC", text).replace("−", "-").replace("–", "-").replace("，", ",")
    text = text.replace("\\$", "$").replace("\\%", "%").replace("\\times", "×").replace("\\cdot", "×")
    text = re.sub(r"\^\s*(?:\{\s*\\circ\s*\}|\\circ)|\\degree", "°", text)
    text = _LATEX_SPACES.sub(lambda found: "" if "," in found[0] or "!" in found[0] else " ", text)
    text = _LATEX_TEXT.sub(r" \1", text)
    text = _LATEX_FRACTION.sub(lambda found: f" {found[1] or found[2]}/{found[3] or found[4]}", text)
    text = "\n".join(" ".join(line.split()) for line in text.strip().split("\n"))
    text = re.sub(r"^(-?) (?=\d+/)", r"\1", text)
    text = text.strip().strip("*").strip()
    for before, behind in (("$$", "$$"), ("$", "$"), ("\\(", "\\)"), ("\\[", "\\]")):
        if len(text) > len(before + behind) and text.startswith(before) and text.endswith(behind):
            text = text[len(before) : -len(behind)]
    return text.strip().strip("*").rstrip(".。").strip()
