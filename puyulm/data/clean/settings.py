"""Settings of the stage `clean`."""

from dataclasses import dataclass


@dataclass(frozen=True)
class CleanSettings:
    pass
