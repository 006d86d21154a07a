"""Settings."""

from dataclasses import dataclass


@dataclass(frozen=True)
class SafeSettings:
    pass
