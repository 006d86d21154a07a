"""The folder that the stage `mix` of `puyu data` wrote, as training reads it: shards for each phase and to validate."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from puyulm.data.mixing.mix import MIXTURE_FILE, VALID
from puyulm.errors import RecipeError
from puyulm.train.phases import Phase, Timeline

LITTLE_MORE = 1.01  # whole steps take a little more than was asked for: nobody needs to hear of that


@dataclass(frozen=True)
class MixedPhase:
    """One phase's shards.

    Attributes:
        folder: Where they are.
        tokens: How many they hold.
        sequence_length: The context that they were mixed for, if that was told.
    """

    folder: Path
    tokens: int
    sequence_length: int | None


@dataclass(frozen=True)
class MixtureFolder:
    """What a mixture has.

    Attributes:
        phases: By name.
        valid: Documents to validate on, if there are any.
    """

    folder: Path
    phases: dict[str, MixedPhase]
    valid: Path | None

    def train(self, name: str) -> Path:
        """The shards of a phase. Raises RecipeError where the mixture has no phase of this name."""
        if name not in self.phases:
            raise RecipeError(
                f"phase {name}: the mixture {self.folder} has no phase of this name, but {_listed(self.phases)}; name "
                f"the phases as the mixture does, or give this one data of its own"
            )
        return self.phases[name].folder

    def notes(self, timeline: Timeline) -> list[str]:
        """What a recipe asks of this mixture that it was not made for, a line each."""
        lines = []
        for index, phase in enumerate(timeline.phases):
            mixed = self.phases.get(phase.name)
            if mixed is None or phase.data is not None:
                continue
            tokens = timeline.phase_tokens(index)
            if tokens > mixed.tokens * LITTLE_MORE:
                lines.append(
                    f"phase {phase.name} takes {tokens:,} tokens, but the mixture has {mixed.tokens:,} for it: they "
                    f"are read {tokens / mixed.tokens:.2f} times; mix more, or lower the phase's tokens"
                )
            if mixed.sequence_length not in (None, phase.seq_len):
                lines.append(
                    f"phase {phase.name} has rows of {phase.seq_len:,} tokens, but was mixed for a context of "
                    f"{mixed.sequence_length:,}"
                )
        return lines


def open_mixture(folder: Path, phases: Iterable[Phase]) -> MixtureFolder:
    """Reads `mixture.json`; `phases` are those of the recipe, of which all without data of their own must be there.

    Raises:
        RecipeError: The folder holds no mixture, or it lacks a phase.
    """
    path = folder / MIXTURE_FILE
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        mixed = {
            phase["name"]: MixedPhase(folder / phase["folder"], phase["tokens"], phase["sequence_length"])
            for phase in facts["phases"]
        }
    except FileNotFoundError:
        inside = sorted(folder.glob(f"*/{MIXTURE_FILE}"))
        meant = f"did you mean {inside[-1].parent}?" if inside else "give the folder of a stage mix of puyu data"
        raise RecipeError(f"mixture: {folder} holds no {MIXTURE_FILE}; {meant}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RecipeError(f"mixture: {path} cannot be read ({error!r}); run the stage mix again") from None
    found = MixtureFolder(folder, mixed, folder / VALID if (folder / VALID).is_dir() else None)
    for phase in phases:
        if phase.data is None:
            found.train(phase.name)
    return found


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names) or "none"
