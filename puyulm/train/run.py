"""A run's folder: who may write to it, and what it says about itself."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from puyulm.errors import PuyuError, TrainError
from puyulm.parallel.build import ParallelModel
from puyulm.parallel.weights import save_weights
from puyulm.parallel.world import World
from puyulm.recipe import dump_recipe, recipe_dict
from puyulm.train.checkpoint import FOLDER, latest_checkpoint, read_state, remove_leftovers
from puyulm.train.settings import RESUME_FREE

FINGERPRINT_BYTES = 2**20
RECIPE_FILE, MODEL_FOLDER, EXPORTS = "recipe.yaml", "model", "exports"


def run_identity(recipe: Any, free: Iterable[str], inputs: Mapping[str, Path]) -> dict[str, Any]:
    """What may not change between a run and its resumption.

    Args:
        recipe: With a field `settings`; its values count, but for `RESUME_FREE` settings and `free` fields.
        free: Fields that say where things are, or what does not change what is learned; `*` stands for anything.
        inputs: What the run reads, by name: files, or folders of which all files count. Their content counts and
            their place does not.
    """
    skipped = [*(f"settings.{name}" for name in RESUME_FREE), *free]
    flat = {
        name: value
        for name, value in flatten(recipe_dict(recipe)).items()
        if not any(fnmatchcase(name, pattern) for pattern in skipped)
    }
    return flat | {f"{name} (content)": fingerprint(path) for name, path in inputs.items()}


def begin_run(world: World, recipe: Any, identity: Mapping[str, Any], *, overwrite: bool = False) -> None:
    """Makes a recipe's folder ready and saves the recipe there, on the main process; what goes wrong is told to all."""
    error: Exception | None = None
    if world.main:
        try:
            open_run(recipe.out, identity, overwrite=overwrite)
            write_recipe(recipe, recipe.out)
        except (PuyuError, OSError) as caught:
            error = caught
    world.raise_alike(error)


def save_export(model: ParallelModel, folder: Path, step: int, write_extra: Callable[[Path], None]) -> None:
    """Writes the model of a step in the published layout, to `exports/step-...` in a run's folder."""
    save_weights(model, folder / EXPORTS / f"step-{step:08d}", write_extra=write_extra)


def open_run(folder: Path, identity: Mapping[str, Any], *, overwrite: bool = False) -> None:
    """Makes a run's folder ready to start or to resume.

    Args:
        identity: Flat names to scalars: every setting that changes what is learned, and a fingerprint of the data.
        overwrite: Forget what is there, if it was another run.

    Raises:
        TrainError: The folder holds another run's checkpoints.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if overwrite:
        for name in (FOLDER, EXPORTS):
            shutil.rmtree(folder / name, ignore_errors=True)
        return
    remove_leftovers(folder)
    latest = latest_checkpoint(folder)
    if latest is None:
        return
    state, wanted = read_state(latest), _plain(identity)
    found = state.identity
    different = [
        name for name in {**wanted, **found} if found.get(name) != wanted.get(name) and not _to_come(name, state.phase)
    ]
    if different:
        changes = [f"{name} is {_brief(wanted.get(name))}, was {_brief(found.get(name))}" for name in different[:3]]
        more = f", and {len(different) - 3} more" if len(different) > 3 else ""
        raise TrainError(
            f"the run in {folder} was made with another recipe or data: {', '.join(changes)}{more}; "
            "choose another folder (--out), or start it over (--overwrite)"
        )


def write_recipe(recipe: Any, folder: Path) -> None:
    """Saves a recipe with all its values beside the run."""
    partial = folder / f".{RECIPE_FILE}.partial"
    partial.write_text(dump_recipe(recipe), encoding="utf-8")
    os.replace(partial, folder / RECIPE_FILE)


def fingerprint(path: Path) -> str:
    """A short digest of a file, or of all files of a folder: names, sizes, first and last megabyte of each."""
    digest = hashlib.sha256()
    for file in sorted(path.iterdir()) if path.is_dir() else [path]:
        if not file.is_file():
            continue
        size = file.stat().st_size
        digest.update(f"{file.name}:{size}:".encode())
        with file.open("rb") as stream:
            digest.update(stream.read(FINGERPRINT_BYTES))
            stream.seek(max(0, size - FINGERPRINT_BYTES))
            digest.update(stream.read(FINGERPRINT_BYTES))
    return digest.hexdigest()[:16]


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}, "c": [{"d": 2}]}` -> `{"a.b": 1, "c.0.d": 2}`."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
            value = {str(number): item for number, item in enumerate(value)}
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def _to_come(name: str, phase: int) -> bool:
    """Whether a value is of a phase that has not begun: it may still be changed."""
    parts = name.split(".")
    return parts[0] == "phases" and int(parts[1]) > phase


def _plain(identity: Mapping[str, Any]) -> dict[str, Any]:
    return dict(json.loads(json.dumps(identity)))  # tuples become lists, as they do in the file


def _brief(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
