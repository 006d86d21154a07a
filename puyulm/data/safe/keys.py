"""Finding keys, tokens and private key blocks in text, by the forms that their makers give them."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator

Span = tuple[int, int]

MAX_BLOCK = 20_000  # characters of a private key block
_LEFT, _RIGHT = r"(?<![A-Za-z0-9_\-])", r"(?![A-Za-z0-9_\-])"

# Text that must be there -> pattern: the first is looked for much faster than the second.
_FORMS: dict[str, str] = {
    "AKIA": r"AKIA[0-9A-Z]{16}" + _RIGHT,  # AWS access key ids
    "ASIA": r"ASIA[0-9A-Z]{16}" + _RIGHT,
    **{f"gh{kind}_": rf"gh{kind}_[A-Za-z0-9]{{36,255}}" + _RIGHT for kind in "pousr"},  # GitHub
    "github_pat_": r"github_pat_[A-Za-z0-9_]{22,255}" + _RIGHT,
    "glpat-": r"glpat-[A-Za-z0-9_\-]{20,64}" + _RIGHT,  # GitLab
    "sk-": r"sk-(?:(?:proj|svcacct|admin|ant)-[A-Za-z0-9_\-]{20,255}|[A-Za-z0-9]{32,255})" + _RIGHT,  # OpenAI's form
    "xox": r"xox[abeoprs]-[A-Za-z0-9\-]{10,255}" + _RIGHT,  # Slack
    "hooks.slack.com": r"hooks\.slack\.com/services/T[A-Za-z0-9]{6,16}/B[A-Za-z0-9]{6,16}/[A-Za-z0-9]{16,48}",
    "AIza": r"AIza[0-9A-Za-z_\-]{35}" + _RIGHT,  # Google
    "ya29.": r"ya29\.[0-9A-Za-z_\-]{20,500}",
    "_live_": r"[sr]k_live_[0-9A-Za-z]{16,128}" + _RIGHT,  # Stripe
    "hf_": r"hf_[A-Za-z0-9]{30,64}" + _RIGHT,  # Hugging Face
    "npm_": r"npm_[A-Za-z0-9]{36}" + _RIGHT,
    "pypi-": r"pypi-[A-Za-z0-9_\-]{50,500}" + _RIGHT,
    "eyJ": r"eyJ[A-Za-z0-9_\-]{10,4000}\.eyJ[A-Za-z0-9_\-]{10,8000}\.[A-Za-z0-9_\-]{10,2000}",  # JSON web tokens
}
_COMPILED = {literal: re.compile(_LEFT + pattern) for literal, pattern in _FORMS.items()}
_LIKE_WORDS = ("sk-", "xox", "pypi-")  # whose forms names may have, too

_NAMES = ("api_key", "api-key", "apikey", "access_key", "secret_key", "secretkey", "access_token", "accesstoken",
          "auth_token", "authtoken", "client_secret", "clientsecret", "app_secret", "appsecret")  # fmt: skip
_VALUE = re.compile(r"[\"']?[ ]{0,4}(?:=>|:=|:|=)[ ]{0,4}[\"']?([A-Za-z0-9/+_=\-]{20,128})(?![A-Za-z0-9/+_=\-])")
_BLOCK = re.compile(r"-----BEGIN (?:[A-Z0-9]{1,12} ){0,3}PRIVATE KEY(?: BLOCK)?-----")
_BLOCK_END = re.compile(r"-----END (?:[A-Z0-9]{1,12} ){0,3}PRIVATE KEY(?: BLOCK)?-----")
_BASE64 = re.compile(r"(?:[\s\\n]*+[A-Za-z0-9+/=:,\-]{16,})*+")


def find_keys(text: str) -> Iterator[Span]:
    """Keys and tokens of AWS, GitHub, GitLab, OpenAI, Slack, Google, Stripe, Hugging Face, npm, PyPI; JSON web tokens;
    private key blocks; and random values behind names such as `api_key`, `access_token` and `client_secret`."""
    for literal, pattern in _COMPILED.items():
        if literal in text:
            for match in pattern.finditer(text):
                if literal not in _LIKE_WORDS or is_random(match.group()):
                    yield match.span()
    if "PRIVATE KEY" in text:
        yield from _blocks(text)
    yield from _named_values(text)


def is_random(value: str) -> bool:
    """Whether a value looks drawn at random: letters, digits, and at least 3.5 bits a character of entropy."""
    counts = Counter(value)
    entropy = -sum(count / len(value) * math.log2(count / len(value)) for count in counts.values())
    return _has_digit_and_letter(value) and entropy >= 3.5


def _named_values(text: str) -> Iterator[Span]:
    lowered = text.lower()
    if len(lowered) != len(text):  # a character that gets longer in lower case: look for names as they stand
        lowered = text
    for name in _NAMES:
        place = lowered.find(name)
        while place >= 0:
            match = _VALUE.match(text, place + len(name))
            if match and is_random(match.group(1)):
                yield match.span(1)
            place = lowered.find(name, place + len(name))


def _blocks(text: str) -> Iterator[Span]:
    position = 0
    while begin := _BLOCK.search(text, position):
        end = _BLOCK_END.search(text, begin.end(), begin.end() + MAX_BLOCK)
        if end:
            position = end.end()
        else:  # cut short
            rest = _BASE64.match(text, begin.end(), begin.end() + MAX_BLOCK)
            position = rest.end() if rest else begin.end()
        yield begin.start(), position


def _has_digit_and_letter(value: str) -> bool:
    return any(c.isdigit() for c in value) and any(c.isalpha() for c in value)
