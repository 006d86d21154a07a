"""Numbers in what a model wrote."""

from __future__ import annotations

import re

_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?|-?\.\d+")


def last_number(text: str) -> str | None:
    """The last number, without commas and a full stop behind it (GSM8K's rule in OpenCompass)."""
    found = _NUMBER.findall(text)
    return found[-1].replace(",", "") if found else None
