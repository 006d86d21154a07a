"""Settings."""

from dataclasses import dataclass


@dataclass(frozen=True)
class QualitySettings:
    pass
