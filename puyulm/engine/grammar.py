"""Structured output."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Grammar:
    """What an answer must look like."""

    kind: str
    text: str


class Matcher: ...
