"""Numbers as models write them."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from puyulm.eval.extract.numbers import (
    Number,
    chinese_number,
    final_number,
    flexible_number,
    last_number,
    marked_number,
    parse_number,
    same_number,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("So she has 18 eggs.", "18"),
        ("16 - 3 - 4 = 9, and 9 * 2 = $18.", "18"),
        ("The answer is $1,234,567.50.", "1234567.50"),
        ("**Answer: 42**", "42"),
        ("\\boxed{72}", "72"),
        ("first 3, then 4,5", "5"),  # not thousands
        ("It fell by -7 degrees", "-7"),
        ("8-3=5", "5"),
        ("He eats 2.5 apples", "2.5"),
        ("#### 10,000", "10000"),
        ("None of them.", None),
        ("", None),
    ],
)
def test_the_last_number(text: str, expected: str | None) -> None:
    assert last_number(text) == expected


@pytest.mark.parametrize(
    ("text", "strict", "flexible"),
    [  # as lm-evaluation-harness scores them
        ("It is 9.\n#### 18", "18", "18"),
        ("#### 1,800\n\nQuestion: 7", "1800", "7"),
        ("#### $18", None, "18"),
        ("The answer is $18.", None, "18"),
        ("The answer is 18", None, "18"),
        ("#### -4.", "-4", "-4"),
        ("In 2 days. Then 5... done", None, "5.."),
        ("no number", None, None),
    ],
)
def test_the_harness_rules(text: str, strict: str | None, flexible: str | None) -> None:
    assert marked_number(text) == strict
    assert flexible_number(text) == flexible


PARSED = [
    ("18", "18"), ("-3", "-3"), ("- 3", "-3"), ("+7", "7"), ("−12.5", "-12.5"), (".5", "0.5"), ("1,234,567", "1234567"),
    ("$1,200.50", "1200.5"), ("-$5", "-5"), ("$-5", "-5"), ("€20", "20"), ("100元", "100"), ("￥３０", "30"),
    ("\\$32,348", "32348"), ("3/4", "3/4"), ("-3/4", "-3/4"), ("1 1/2", "3/2"), ("\\frac{3}{4}", "3/4"),
    ("-\\frac{3}{4}", "-3/4"), ("\\dfrac34", "3/4"), ("2\\frac{1}{2}", "5/2"), ("\\frac{-1}{2}", "-1/2"),
    ("50%", "1/2"), ("50\\%", "1/2"), ("12.5 percent", "1/8"), ("百分之五", "1/20"), ("５０％", "1/2"),
    ("1e3", "1000"), ("1.5E-2", "0.015"), ("3 x 10^4", "30000"), ("3\\times 10^{-2}", "0.03"), ("2·10^3", None),
    ("5 cm", "5"), ("5\\text{ cm}", "5"), ("5 cm^2", "5"), ("20 m/s", "20"), ("90^\\circ", "90"), ("90°", "90"),
    ("5 square feet", "5"), ("3 apples.", "3"), ("**42**", "42"), ("$42$", "42"), ("\\(42\\)", "42"), ("42。", "42"),
    ("10{,}000", "10000"), ("10\\,000", "10000"), ("3 million", "3000000"), ("1.2亿", "120000000"), ("3万元", "30000"),
    ("一百二十三", "123"), ("三分之二", "2/3"), ("负五", "-5"), ("两万", "20000"), ("零点五", "1/2"),
    ("五个", "5"), ("12 hours 30 minutes", None), ("x", None), ("2x", None), ("3 or 4", None), ("1/0", None),
    ("", None), ("１２．５", "12.5"),
    ("1,23", None), ("5 + 3", None), ("(3, 4)", None), ("-", None), ("1e999999", None), ("九" * 500, None),
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), PARSED)
def test_a_text_that_is_a_number(text: str, expected: str | None) -> None:
    found = parse_number(text)
    assert (None if found is None else found.value) == (None if expected is None else Fraction(expected))


def test_without_units() -> None:
    assert parse_number("5", units=False) == Number(Fraction(5))
    assert parse_number("5 cm", units=False) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("First 3, then 10-4 = 6 apples.", "6"),
        ("It lies between 2-5", "5"),
        ("The change is -5 degrees.", "-5"),
        ("The answer is 3/4 of them.", "3/4"),
        ("所以答案是一百二十三。", "123"),
        ("答案是三分之二。", "2/3"),
        ("他一共有五个苹果。", "5"),
        ("答案：１，２３４", "1234"),
        ("一起去公园吧，12 元", "12"),
        ("我们一起去公园", None),
        ("No idea", None),
    ],
)
def test_the_last_number_in_prose(text: str, expected: str | None) -> None:
    found = final_number(text)
    assert (None if found is None else found.value) == (None if expected is None else Fraction(expected))


@pytest.mark.parametrize(
    ("gold", "answer", "equal"),
    [("50", "50%", True), ("50%", "0.5", True), ("0.5", "1/2", True), ("50%", "5%", False), ("0.5", "50", False)],
)
def test_percentages_are_compared_either_way(gold: str, answer: str, equal: bool) -> None:
    one, other = parse_number(gold), parse_number(answer)
    assert one and other and same_number(one, other) is equal


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("零", 0), ("十", 10), ("十五", 15), ("二十", 20), ("一百零五", 105), ("一百二", 120), ("一百一十", 110),
        ("两千", 2000), ("三千五", 3500), ("一万零三百", 10300), ("三万五", 35000), ("一百二十万", 1200000),
        ("一亿零五", 100000005), ("两万亿", 2 * 10**12), ("二〇二四", 2024), ("叁佰贰拾", 320), ("负十二", -12),
        ("三点一四", Fraction("3.14")), ("三点五万", 35000), ("百分之十二点五", Fraction(1, 8)), ("百分之一百", 1),
        ("千", None), ("二二十", None), ("十百", None), ("零十", None), ("万", None), ("点五", None), ("三点", None),
        ("零分之一", None), ("负负五", None), ("", None), ("五a", None),
    ],
)  # fmt: skip
def test_chinese_numerals(text: str, expected: int | Fraction | None) -> None:
    assert chinese_number(text) == expected


def to_chinese(number: int) -> str:
    """As it is written in full: groups of four digits, and a 零 for each gap."""
    text, gap = "", False
    for power in range(7, -1, -1):
        digit = number // 10**power % 10
        if digit:
            text += ("零" if gap and text else "") + "零一二三四五六七八九"[digit] + ("", "十", "百", "千")[power % 4]
        gap = not digit
        if power == 4 and text:
            text += "万"
            gap = False if number % 10**4 >= 1000 else gap or number % 10**4 > 0
    return text or "零"


@given(st.integers(0, 10**8 - 1))
def test_chinese_numerals_there_and_back(number: int) -> None:
    assert chinese_number(to_chinese(number)) == number


@given(st.integers(-(10**9), 10**9), st.integers(1, 10**6))
def test_numbers_there_and_back(above: int, below: int) -> None:
    for text, value in (
        (f"{above:,}", Fraction(above)), (f"{above}/{below}", Fraction(above, below)),
        (f"\\frac{{{above}}}{{{below}}}", Fraction(above, below)), (f"{above}%", Fraction(above, 100)),
        (f"${above / 100:.2f}", Fraction(above, 100)),
    ):  # fmt: skip
        found = parse_number(text)
        assert found is not None and found.value == value, text


@given(st.text(alphabet="0123456789.,-+/%$eE^{}\\ frac一二十百千万亿零点分之负cmx×*", max_size=60))
def test_any_text_is_read_without_an_error(text: str) -> None:
    for rule in (last_number, marked_number, flexible_number, parse_number, final_number, chinese_number):
        rule(text)
