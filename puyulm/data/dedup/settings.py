"""Settings."""

from dataclasses import dataclass


@dataclass(frozen=True)
class DedupSettings:
    pass
