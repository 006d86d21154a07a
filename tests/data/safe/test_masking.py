"""Masking: what is planted is found, what only looks like it stays, and no text takes long."""

from __future__ import annotations

import random
import re
from pydoc_data.topics import topics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from puyulm.data.safe.keys import find_keys, is_random
from puyulm.data.safe.masking import KINDS, PLACEHOLDERS, mask
from puyulm.data.safe.personal import find_ips, is_card, is_resident_id
from tests.data.safe.planted import (
    CONTEXTS,
    LUHN_TEST_CARDS,
    MAKERS,
    NOT_PERSONAL,
    card,
    resident_digit,
    resident_id,
)

USUAL = ("key", "email", "ip", "resident_id", "ssn", "bank_card", "phone")
REFERENCE = "\n\n".join(topics[name] for name in sorted(topics))  # 0.4 MB of the language reference


def masked(text: str, *kinds: str) -> tuple[str, dict[str, int]]:
    return mask(text, kinds or USUAL, PLACEHOLDERS)


@pytest.mark.parametrize("kind", list(MAKERS))
def test_planted_values_are_masked_whole_and_as_what_they_are(kind: str) -> None:
    """At least 99 % of 300 values of each kind, in English and Chinese contexts."""
    generator = random.Random(kind)
    found = 0
    for _ in range(300):
        value = generator.choice(MAKERS[kind])(generator)
        context = generator.choice(CONTEXTS[generator.choice(["en", "zh"])])
        text, counts = masked(context.format(value))
        found += text == context.format(PLACEHOLDERS[kind]) and counts == {kind: 1}
    assert found >= 297


def test_planted_values_in_real_text() -> None:
    """200 values between paragraphs of real text: all are counted once, and the text around them stays."""
    generator = random.Random(0)
    paragraphs = [p for p in REFERENCE.split("\n\n") if p.strip()][:400]
    planted, expected, counts = [], [], dict.fromkeys(USUAL, 0)
    for i, paragraph in enumerate(paragraphs):
        kind = generator.choice(USUAL)
        plant = i % 2 == 0
        value = generator.choice(MAKERS[kind])(generator)
        planted.append(paragraph + (f" Contact {value} now." if plant else ""))
        expected.append(paragraph + (f" Contact {PLACEHOLDERS[kind]} now." if plant else ""))
        counts[kind] += plant
    text, found = masked("\n\n".join(planted))
    assert text == "\n\n".join(expected)
    assert found == {kind: count for kind, count in counts.items() if count}


def test_what_only_looks_personal_stays() -> None:
    for line in NOT_PERSONAL.split("\n"):
        assert masked(line) == (line, {})


def test_reference_texts_have_nothing_to_mask() -> None:
    assert masked(REFERENCE) == (REFERENCE, {})


def test_published_numbers() -> None:
    assert is_resident_id("11010519491231002X")  # the example of GB 11643-1999
    assert is_resident_id("440524188001010014") is False  # its other example: born in 1880
    assert all(is_card(number) for number in LUHN_TEST_CARDS)
    generator = random.Random(1)
    for _ in range(200):
        good = resident_id(generator)
        wrong = str((int(good[9]) + 1) % 10)
        assert is_resident_id(good) and not is_resident_id(good[:9] + wrong + good[10:])
        digits = re.sub("[ -]", "", card(generator))
        place = generator.randrange(6, len(digits))
        changed = digits[:place] + str((int(digits[place]) + 1) % 10) + digits[place + 1 :]
        assert is_card(digits) and not is_card(changed)
    assert not is_resident_id("110105199902300" + "02" + resident_digit("11010519990230002"))  # 30 February


def test_old_numbers_passports_and_plates_only_when_asked_for() -> None:
    text = "旧证130503670401001，护照号码E12345678，车牌京A·12345和沪AD12345，型号E87654321。"
    assert masked(text) == (text, {})
    found = "旧证<id_number>，护照号码<passport>，车牌<number_plate>和<number_plate>，型号E87654321。"
    assert masked(text, "resident_id_15", "passport", "plate") == (
        found, {"resident_id_15": 1, "passport": 1, "plate": 2},
    )  # fmt: skip


def test_only_the_kinds_that_are_asked_for() -> None:
    text = "a@gmail.com 13800138000 8.219.33.10"
    assert masked(text, "email") == ("<email> 13800138000 8.219.33.10", {"email": 1})
    assert masked(text, "phone", "ip") == ("a@gmail.com <phone> <ip_address>", {"ip": 1, "phone": 1})
    assert mask(text, ("ip",), {"ip": "X"})[0] == "a@gmail.com 13800138000 X"


def test_an_earlier_kind_has_what_two_claim() -> None:
    assert masked("http://a@" + "8.219.33.10")[1] == {"ip": 1}
    token = "ghp_" + "a1B2c3D4e5F6" * 3
    assert masked(f"https://{token}:x@8.219.33.10 {token}") == (
        "https://<key>:x@<ip_address> <key>",
        {"key": 2, "ip": 1},
    )
    assert masked("ID 11010519491231002X", "phone", "bank_card", "resident_id")[1] == {"resident_id": 1}
    assert masked("138-0013-8000-12") == ("138-0013-8000-12", {})
    both = "+86 13800138000"
    assert masked(both) == ("<phone>", {"phone": 1})


def test_emails_end_where_the_domain_ends() -> None:
    assert masked("Write to a.b@mail.org.Then wait")[0] == "Write to <email>.Then wait"
    assert masked("x@y.shape and self.W@x.T")[0] == "x@y.shape and self.W@x.T"
    assert masked("<a@b.com>, mailto:c@d.net?subject=x")[0] == "<<email>>, mailto:<email>?subject=x"
    assert masked("a" * 65 + "@b.com")[1] == {}


def test_public_addresses_only() -> None:
    text = "8.8.8.8 104.16.132.229 172.16.5.4 2606:4700:4700::1111 100.64.1.1 169.254.10.20"
    assert [text[a:b] for a, b in find_ips(text)] == ["104.16.132.229", "2606:4700:4700::1111"]


def test_addresses_with_ports_and_masks() -> None:
    assert masked("at 8.219.33.10:8080, 8.219.33.0/24 and [2a01:4f8::1]:443")[0] == (
        "at <ip_address>:8080, <ip_address>/24 and [<ip_address>]:443"
    )
    assert masked("version 8.219.33.10 and v8.219.33.10 and 8.219.33.10.5")[1] == {}


def test_a_key_block_without_its_end_and_named_values() -> None:
    block = "-----BEGIN PRIVATE KEY-----\n" + "MIIEvQIBADANBgkqhkiG9w0B\n" * 4
    text = f"before\n{block}end of the file, cut"
    assert [text[a:b].strip() for a, b in find_keys(text)] == [block.strip()]
    secret = "q8Zt3LwP0vKx7RbN2mYcH5dJ"
    line = f'API_KEY = "{secret}"; client_secret: {secret}, comment = "{secret}"'
    assert masked(line)[0] == f'API_KEY = "<key>"; client_secret: <key>, comment = "{secret}"'
    assert is_random(secret) and not is_random("aaaaaaaaaaaaaaaaaaaaaaaa1") and not is_random("YOUR_ACCESS_TOKEN_HERE")


TRICKY = (
    "a 1 1- (( + +1 @ a@ a@a. 1. 1.1.1. : 2001: eyJ eyJaaaaaaaaaa. sk- api_key= http:// 138 (010) é １ x. 京A 护照E"
)
UNITS = [*TRICKY.split(), "1 ", "4111 ", "-----BEGIN PRIVATE KEY-----"]


@pytest.mark.parametrize("unit", UNITS)
def test_no_text_takes_long(unit: str) -> None:
    """Half a million characters of what patterns begin with: with a pattern of quadratic time this would take hours."""
    text = unit * (500_000 // len(unit))
    assert len(mask(text, KINDS, PLACEHOLDERS)[0]) > 0


PIECES = st.sampled_from([
    "13800138000", "a@b.com", "8.219.33.10", " ", "-", "1", "电话", "+86", ".", "AKIAIOSFODNN7EXAMPLE", "x", "\n", "/",
    "11010519491231002X", "4111111111111111", "123-45-6789",
])  # fmt: skip


@given(st.lists(PIECES, max_size=12).map("".join))
def test_masked_text_has_as_many_placeholders_as_are_counted(text: str) -> None:
    result, counts = masked(text)
    placeholders = re.findall("<[a-z_]+>", result)
    assert len(placeholders) == sum(counts.values())
    for kind, count in counts.items():
        assert placeholders.count(PLACEHOLDERS[kind]) >= count
    rest = re.split("<[a-z_]+>", result)
    position = 0
    for piece in rest:  # what is left of the text is a subsequence of it, in order
        position = text.index(piece, position) + len(piece)
