"""Finding personal data in text: addresses, telephone, identity and card numbers, checked as far as they can be.

Every finder takes time in proportion to the text. Numbers are looked for only in runs of digits and the marks that
stand in numbers, and most patterns are followed by a check: a checksum, a calendar, a table of prefixes.
"""

from __future__ import annotations

import datetime
import ipaddress
import re
import sys
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator

from puyulm.data.safe.tables import COUNTRY_CODES, PROVINCES, TOP_LEVEL_DOMAINS

Span = tuple[int, int]

_RUN = re.compile(r"[0-9+(（][0-9 \u00a0().（）+\-\u2010-\u2013]*+")  # a possessive repeat: never tried again
_URL = re.compile(r"https?://[^\s<>\"'，。；）]++")
_LEFT, _RIGHT = r"(?<![0-9])", r"(?![0-9])"

_IPV4 = re.compile(_LEFT + r"(?:(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])\.){3}"
                   r"(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])" + _RIGHT)  # fmt: skip
_VERSION = re.compile(
    r"(?:\b(?:v|ver|version|release|build|firmware|revision|section|chapter)\b|版本|章|节)[ .:：]*$", re.I
)
_IPV6 = re.compile(r"[23][0-9A-Fa-f]{3}:[0-9A-Fa-f:]{2,35}")

# GB 11643-1999: six digits of a place, the date of birth, three digits, a check digit.
_RESIDENT = re.compile(_LEFT + r"[1-9][0-9]{5}(?:19|20)[0-9]{2}[01][0-9][0-3][0-9]{4}[0-9Xx]")
_RESIDENT_15 = re.compile(_LEFT + r"[1-9][0-9]{7}[01][0-9][0-3][0-9]{4}" + _RIGHT)
_RESIDENT_WEIGHTS = [2**power % 11 for power in range(17, 0, -1)]  # ISO 7064, MOD 11-2
LAST_BIRTH_YEAR = 2040

_SSN = re.compile(_LEFT + r"(?!000|666)[0-8][0-9]{2}-(?!00)[0-9]{2}-(?!0000)[0-9]{4}" + _RIGHT)
_CARD = re.compile(
    _LEFT + r"(?:[2-9][0-9]{3}([ -])[0-9]{4}\1[0-9]{4}\1[0-9]{4}(?:\1[0-9]{3})?"
    r"|3[0-9]{3}([ -])[0-9]{6}\2[0-9]{4,5}|6[0-9]{5}[ -][0-9]{13}|[2-9][0-9]{13,18})" + _RIGHT
)

_MOBILE = re.compile(
    _LEFT + r"(?:(?:\+|00)?86[ -]?)?(?:13[0-9]|14[014-9]|15[0-35-9]|16[2567]|17[0-8]|18[0-9]|19[0-35-9])"
    r"([ -]?)[0-9]{4}\1[0-9]{4}" + _RIGHT
)
_CHINA_AREA = r"0(?:10|2[0-57-9]|[3-9][0-9]{2})"
_CHINA_LANDLINE = re.compile(
    rf"(?:[(（]{_CHINA_AREA}[)）][ -]?|{_LEFT}{_CHINA_AREA}[ \-\u2013])[2-9][0-9]{{2,3}}[ -]?[0-9]{{4}}"
    rf"(?:-[0-9]{{1,4}})?{_RIGHT}"
)
_NORTH_AMERICA = re.compile(
    _LEFT + r"(?:\+?1[ .\-])?(?:\([2-9][0-9]{2}\) ?|[2-9][0-9]{2}([ .\-]))[2-9][0-9]{2}[ .\-][0-9]{4}" + _RIGHT
)
_INTERNATIONAL = re.compile(
    r"\+[1-9][0-9]{0,2}[ .\-]?(?:\(0?[0-9]{1,5}\)[ .\-]?)?[0-9]{1,14}(?:[ .\-][0-9]{2,5}){0,6}" + _RIGHT
)

_PASSPORT = re.compile(r"(?<![A-Za-z0-9])(?:E[A-HJ-NP-Z]?|[DSPHG])[0-9]{7,8}(?![A-Za-z0-9])")
_PLATE = re.compile(r"[京津沪渝冀豫云辽黑湘皖鲁新苏浙赣鄂桂甘晋蒙陕吉闽贵粤青藏川宁琼][A-HJ-NP-Z][·• ]?"
                    r"(?=[A-HJ-NP-Z]{0,5}[0-9])[A-HJ-NP-Z0-9]{5,6}(?![A-Za-z0-9])")  # fmt: skip

_LOCAL = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._%+-"
_DOMAIN = re.compile(r"[A-Za-z0-9.\-]{4,253}")
_LABEL = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9\-]{0,61}[A-Za-z0-9])?$")
_RESERVED_DOMAINS = re.compile(
    r"(?:^|\.)(?:example\.(?:com|org|net)|example|test|invalid|localhost)$", re.I
)  # RFC 2606


def find_emails(text: str) -> Iterator[Span]:
    """E-mail addresses with a top-level domain that exists; not those of reserved domains, nor `git@host`."""
    at = text.find("@")
    while at >= 0:
        before = text[max(0, at - 65) : at]
        local = before[len(before.rstrip(_LOCAL)) :]
        domain = _mail_domain(text, at + 1) if local and len(local) <= 64 else ""
        local = local.lstrip(".-+%")
        if domain and local and local != "git":
            yield at - len(local), at + 1 + len(domain)
        at = text.find("@", at + 1)


def find_ips(text: str) -> Iterator[Span]:
    """Public IPv4 and IPv6 addresses; private and reserved ones, and what looks like a version number, stay.

    An IPv4 address needs two numbers of two digits: 4.2.1.3 is a section or a version more often than a person's.
    """
    for match in _IPV4.finditer(text):
        start, end = match.span()
        if (sum(len(part) > 1 for part in match.group().split(".")) >= 2 and _alone(text, start, end)
                and not _VERSION.search(text, max(0, start - 12), start) and _is_public(match.group())):  # fmt: skip
            yield start, end
    for match in _IPV6.finditer(text):
        start, end = match.span()
        address = match.group()
        if address.endswith(":") and not address.endswith("::"):
            address, end = address[:-1], end - 1
        if _alone(text, start, end) and _is_public(address):
            yield start, end


def find_numbers(text: str, kinds: Collection[str]) -> Iterator[tuple[str, Span]]:
    """Numbers of the wanted kinds (see `NUMBER_KINDS`), in the order of runs of digits; spans may overlap.

    Telephone and card numbers inside web addresses stay: most of those are numbers of articles.
    """
    wanted = [(kind, find) for kind, find in NUMBER_KINDS if kind in kinds]
    urls = [match.span() for match in _URL.finditer(text)] if "://" in text else []
    for run in _RUN.finditer(text):
        start, end = run.span()
        if end - start < 8:
            continue
        in_url = bool(urls) and _inside(urls, start)
        for kind, find in wanted:
            if not (in_url and kind in ("phone", "bank_card")):
                yield from ((kind, span) for span in find(text, start, end))


def find_passports(text: str) -> Iterator[Span]:
    """Chinese passport numbers within 20 characters after the word passport or 护照."""
    for match in _PASSPORT.finditer(text) if "护照" in text or "assport" in text else ():
        before = text[max(0, match.start() - 20) : match.start()].lower()
        if "护照" in before or "passport" in before:
            yield match.span()


def find_plates(text: str) -> Iterator[Span]:
    """Chinese number plates (GA 36-2018): province, letter, five or six letters and digits."""
    return (match.span() for match in _PLATE.finditer(text))


def is_resident_id(number: str) -> bool:
    """Whether 18 characters are a resident identity number: province, date and check digit (GB 11643-1999)."""
    total = sum(int(digit) * weight for digit, weight in zip(number[:17], _RESIDENT_WEIGHTS, strict=True))
    return (number[:2] in PROVINCES and _is_date(number[6:14])
            and "10X98765432"[total % 11] == number[17].upper())  # fmt: skip


def is_card(digits: str) -> bool:
    """Whether digits have an issuer's prefix, a length that it uses, and the Luhn check digit (ISO/IEC 7812-1)."""
    four, two, length = int(digits[:4]), int(digits[:2]), len(digits)
    known = (
        (digits[0] == "4" and length in (16, 19))
        or (length == 16 and (51 <= two <= 55 or 2200 <= four <= 2204 or 2221 <= four <= 2720 or 3528 <= four <= 3589))
        or (length == 15 and two in (34, 37))
        or (length == 14 and (two in (36, 38, 39) or 3000 <= four <= 3059))
        or (length in (16, 17, 18, 19) and (two == 62 or four in (6011, 9558, 6013, 6210) or 6440 <= four <= 6599))
    )
    doubled = (int(digit) * (1 + (position + length) % 2) for position, digit in enumerate(digits, start=1))
    # From the right every second digit counts twice; the last counts once.
    return known and sum(value - 9 if value > 9 else value for value in doubled) % 10 == 0


def _resident_ids(text: str, start: int, end: int) -> Iterator[Span]:
    found = _matches(_RESIDENT, text, start, min(end + 1, len(text)))  # the run ends before an X
    return (span for span in found if is_resident_id(text[slice(*span)]))


def _old_resident_ids(text: str, start: int, end: int) -> Iterator[Span]:
    for a, b in _matches(_RESIDENT_15, text, start, end):
        if text[a : a + 2] in PROVINCES and _is_date("19" + text[a + 6 : a + 12]):
            yield a, b


def _ssns(text: str, start: int, end: int) -> Iterator[Span]:
    return _matches(_SSN, text, start, end)


def _cards(text: str, start: int, end: int) -> Iterator[Span]:
    for a, b in _matches(_CARD, text, start, end):
        signed = text[a - 1 : a] in ("+", "-")  # 2^62 with its sign has the form of a card number
        if not signed and not _in_row(text, a, b) and is_card(re.sub("[ -]", "", text[a:b])):
            yield a, b


def _phones(text: str, start: int, end: int) -> Iterator[Span]:
    for pattern in (_MOBILE, _CHINA_LANDLINE, _NORTH_AMERICA):
        yield from (span for span in _matches(pattern, text, start, end) if not _in_row(text, *span))
    if text.find("+", start, end) >= 0:
        for a, b in _matches(_INTERNATIONAL, text, start, end):
            if length := _international_length(text[a:b]):
                yield a, a + length


def _in_row(text: str, start: int, end: int) -> bool:
    """Whether a number with spaces in it stands in a longer row of numbers: 233 377 610 987 1597."""
    if " " not in text[start:end]:
        return False
    return (text[start - 1 : start] == " " and _digit_at(text, start - 2)) or (
        text[end : end + 1] == " " and _digit_at(text, end + 1)
    )


NUMBER_KINDS: tuple[tuple[str, Callable[[str, int, int], Iterator[Span]]], ...] = (
    ("resident_id", _resident_ids), ("ssn", _ssns), ("bank_card", _cards), ("phone", _phones),
    ("resident_id_15", _old_resident_ids),
)  # fmt: skip


def _matches(pattern: re.Pattern[str], text: str, start: int, end: int) -> Iterator[Span]:
    return ((a, b) for a, b in (match.span() for match in pattern.finditer(text, start, end)) if _alone(text, a, b))


def _alone(text: str, start: int, end: int) -> bool:
    """Whether a number is no part of a longer word or number: 1.2.3.4.5, x86-13800138000 and 3.13800138000 are."""
    before, after = text[start - 1 : start], text[end : end + 1]
    if before and before.isascii() and (before.isalnum() or before in "_"):
        return False
    if before and before in ".-+" and (before == "." or _digit_at(text, start - 2)):
        return False
    if after and after.isascii() and (after.isalnum() or after == "_"):
        return False
    return not (after and after in ".-" and _digit_at(text, end + 1))


def _digit_at(text: str, position: int) -> bool:
    return 0 <= position < len(text) and text[position] in "0123456789"


def _inside(spans: list[Span], position: int) -> bool:
    place = bisect_right(spans, (position, sys.maxsize)) - 1
    return place >= 0 and position < spans[place][1]


def _international_length(number: str) -> int:
    """Characters of a number that begins with `+`, without groups that are too many; 0 if it is none (E.164)."""
    while number:
        digits = re.sub("[^0-9]", "", number)
        if len(digits) <= 15:
            break
        number = re.sub(r"[ .\-]?[0-9]+$", "", number) if re.search(r"[ .\-)][0-9]+$", number) else ""
    if not number or len(digits) < 8 or digits.endswith("00000"):
        return 0
    if digits[0] == "1":
        return len(number) if re.match(r"1[2-9][0-9]{2}[2-9][0-9]{6}$", digits) else 0
    return len(number) if any(digits[:n] in COUNTRY_CODES for n in (1, 2, 3)) else 0


def _is_date(digits: str) -> bool:
    year, month, day = int(digits[:4]), int(digits[4:6]), int(digits[6:])
    try:
        datetime.date(year, month, day)
    except ValueError:
        return False
    return 1900 <= year <= LAST_BIRTH_YEAR


def _is_public(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_global
    except ValueError:
        return False


def _mail_domain(text: str, start: int) -> str:
    """The longest domain at a place whose last label is a top-level domain; empty if there is none."""
    match = _DOMAIN.match(text, start)
    labels = match.group().split(".") if match else []
    good = 0
    for count, label in enumerate(labels, start=1):
        if not _LABEL.match(label):
            break
        if count > 1 and label.lower() in TOP_LEVEL_DOMAINS:
            good = count
    domain = ".".join(labels[:good])
    after = text[start + len(domain) : start + len(domain) + 1]
    if not domain or _RESERVED_DOMAINS.search(domain) or (after.isascii() and (after.isalnum() or after == "_")):
        return ""
    return domain
