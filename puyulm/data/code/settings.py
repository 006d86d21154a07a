"""Settings."""

from dataclasses import dataclass


@dataclass(frozen=True)
class CodeSettings:
    pass


@dataclass(frozen=True)
class RepositorySettings:
    pass
