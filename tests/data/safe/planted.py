"""Made personal data, with checksums computed here, and true text that looks like it and is none."""

from __future__ import annotations

import random
from collections.abc import Callable

LUHN_TEST_CARDS = (  # published by payment services for tests
    "4111111111111111", "4012888888881881", "5555555555554444", "2223003122003222", "378282246310005",
    "6011111111111117", "30569309025904", "3530111333300000", "6200000000000005",
)  # fmt: skip


def luhn_digit(digits: str) -> str:
    """The last digit of a card number: the one with which the weighted sum is a multiple of ten."""
    for last in "0123456789":
        number = digits + last
        total = 0
        for position, digit in enumerate(reversed(number)):
            value = int(digit) * (2 if position % 2 else 1)
            total += value // 10 + value % 10
        if total % 10 == 0:
            return last
    raise AssertionError


def resident_digit(digits: str) -> str:
    """The check character c of ISO 7064, MOD 11-2, from its definition: sum of a_i * 2^(i-1) = 1 (mod 11)."""
    total = sum(int(digit) * 2 ** (17 - i) for i, digit in enumerate(digits))
    value = (1 - total) % 11
    return "X" if value == 10 else str(value)


def _digits(generator: random.Random, count: int) -> str:
    return "".join(generator.choice("0123456789") for _ in range(count))


def email(g: random.Random) -> str:
    local = "".join(g.choice("abcdefghijkmnpqrstuvwxyz") for _ in range(g.randint(3, 9)))
    domains = ["gmail.com", "qq.com", "163.com", "mail.uni-bonn.de", "sina.com.cn", "acme.io", "Web.CO.UK"]
    return local + g.choice(["", "_", ".x", "+x", "-2"]) + "@" + g.choice(domains)


def china_mobile(g: random.Random) -> str:
    head, a, b = g.choice(["130", "138", "147", "151", "166", "177", "189", "199"]), _digits(g, 4), _digits(g, 4)
    return g.choice(["", "+86 ", "+86", "86-"]) + g.choice(["", " ", "-"]).join((head, a, b))


def china_landline(g: random.Random) -> str:
    area = g.choice(["010", "021", "0755", "0571"])
    number = g.choice("2568") + _digits(g, 7)
    return g.choice(
        [f"{area}-{number}", f"({area}){number}", f"（{area}）{number}", f"{area} {number[:4]} {number[4:]}"]
    )


def american_phone(g: random.Random) -> str:
    a, b, c = g.choice("23456789") + _digits(g, 2), g.choice("23456789") + _digits(g, 2), _digits(g, 4)
    return g.choice([f"({a}) {b}-{c}", f"{a}-{b}-{c}", f"{a}.{b}.{c}", f"+1 {a} {b} {c}", f"1-{a}-{b}-{c}"])


def international_phone(g: random.Random) -> str:
    return g.choice(["+44 20 7946 ", "+49 (0)30 9018 ", "+81-3-1234-", "+33 1 70 18 ", "+91 98765 4"]) + _digits(g, 4)


def resident_id(g: random.Random) -> str:
    date = f"{g.randint(1930, 2015)}{g.randint(1, 12):02}{g.randint(1, 28):02}"
    digits = g.choice(["110105", "310104", "440306", "510107", "650102"]) + date + _digits(g, 3)
    return digits + resident_digit(digits)


def social_security_number(g: random.Random) -> str:
    return f"{g.randint(1, 665):03}-{g.randint(1, 99):02}-{g.randint(1, 9999):04}"


def card(g: random.Random) -> str:
    prefix, length = g.choice([("4", 16), ("53", 16), ("37", 15), ("622848", 19), ("6217", 16), ("2221", 16)])
    digits = prefix + _digits(g, length - len(prefix) - 1)
    digits += luhn_digit(digits)
    separator = g.choice(["", " ", "-"])
    groups = [4, 6, 5] if length == 15 else [4, 4, 4, 4, 3]
    parts, start = [], 0
    for size in groups:
        parts.append(digits[start : start + size])
        start += size
    return separator.join(part for part in parts if part)


def ip_address(g: random.Random) -> str:
    if g.random() < 0.3:
        return "2a01:4f8:" + ":".join(f"{g.randint(1, 65535):x}" for _ in range(6))
    return f"{g.choice([5, 23, 61, 88, 114, 203])}.{g.randint(120, 250)}.{g.randint(10, 250)}.{g.randint(1, 254)}"


def key(g: random.Random) -> str:
    def text(count: int, letters: str = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789") -> str:
        return "".join(g.choice(letters) for _ in range(count))

    return g.choice([
        "AKIA" + text(16, "ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"), "ghp_" + text(36),
        "github_pat_" + text(22) + "_" + text(59),
        "sk-" + text(48), "sk-proj-" + text(40) + "-" + text(30), "xoxb-123456789012-1234567890123-" + text(24),
        "AIza" + text(35), "glpat-" + text(20), "hf_" + text(34), "sk_live_" + text(24),
        f"eyJhbGciOiJIUzI1NiJ9.eyJ{text(40)}.{text(43)}",
        f"-----BEGIN RSA PRIVATE KEY-----\n{text(64)}\n{text(64)}\n{text(30)}==\n-----END RSA PRIVATE KEY-----",
    ])  # fmt: skip


MAKERS: dict[str, tuple[Callable[[random.Random], str], ...]] = {
    "email": (email,), "phone": (china_mobile, china_landline, american_phone, international_phone),
    "resident_id": (resident_id,), "ssn": (social_security_number,), "bank_card": (card,), "ip": (ip_address,),
    "key": (key,),
}  # fmt: skip

CONTEXTS = {
    "en": ("You can reach her at {}.", "Contact: {}", "It was {}, as far as I know, and nobody checked.", "({})",
           "{}\n", "see {} for more", "value={}", "[{}], then wait"),
    "zh": ("请联系{}。", "联系方式：{}", "他说是{}，后来没有人核对。", "（{}）", "{}\n",
           "资料里写着{}等内容", "号码{}已停用", "“{}”"),
}  # fmt: skip

NOT_PERSONAL = """
ISBN 978-3-16-148410-0, ISBN-10 0-306-40615-2, ISBN 9787111213826, ISSN 0378-5955.
Python 3.11.7, Chrome/91.0.4472.124, version 10.15.7.1, v4.18.0.305, release 2.31.1.12, 版本 12.10.11.3
OID 1.3.6.1.4.1.311, sections 4.2.1.3 and 1.2.3.4
2023-01-15, 15/01/2023, 2023.01.15, 20230115, 2023-01-15T10:00:00+08:00, 1999-2004, 10:30:45.123456, 20:15-21:45
The table: 1990 2034 4512 7789 9012 | 233 377 610 987 1597 2584 | 12 345 678 901 | 5123 4123 4123 4123 4123
Revenue was 13,800,138,000 yuan; pi is 3.14159265358979323846; 6.02214076e23; 0.13800138000; -12345678901; 1e-10
DOI 10.1038/s41586-020-2649-2, arXiv:2403.17297, PMID 32939066, RFC 2606, ISO 8601-1:2019, GB 11643-1999
UUID 123e4567-e89b-12d3-a456-426614174000, sha1 da39a3ee5e6b4b0d3255bfef95601890afd80709, 0x7fff5fbff8c0
git clone git@github.com:user/repo.git; npm install react@18.2.0; foo@2x.png; user@localhost; a@b; @property; x @ y.T
admin@example.com, 127.0.0.1, 192.168.1.100, 10.20.30.40, 0.0.0.0, 255.255.255.0, 2001:db8::1, ::1, fe80::1, std::vector
scores 3-2, 102-98, lot 12-345-678, part no. 000-12-3456, 666-12-3456, 900-12-3456, 123-00-4567
EAN 4006381333931, tracking 1Z999AA10123456784, order #100200300400, IMEI 490154203237518, 1699999999999
4111111111111112, 1234567890123456, 5555 5555 5555 4445
https://www.example.com/item/13912345678.html?id=4111111111111111&t=13800138000 and https://t.cn/a/010-12345678
第12345678号，邮编100000，2008年08月08日，面积1380.0138平方米，110105194912310021，440306199902301234
task-oriented-dialogue-systems-2023-benchmark-v2, sk-estimator-doc-link-1234-abc, ghp_short, AKIA1234, eyJhbGciOi
api_key = os.environ["OPENAI_API_KEY"], secret_key: changeme, access_token=YOUR_ACCESS_TOKEN_GOES_HERE_PLEASE
37.7749, -122.4194; 1/3, 22/7; 8 800 555; 2^62 = +4611686018427387904; 1 000 000 000; +500 000 000; C12H22O11
""".strip()
