"""Settings."""

from dataclasses import dataclass


@dataclass(frozen=True)
class MixSettings:
    pass


@dataclass(frozen=True)
class TokenizeSettings:
    pass
