"""What `puyu demo` is told: one small recipe, and the recipes of pretraining and fine-tuning beside it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from puyulm.align.tasks import KINDS
from puyulm.data.collect import CollectSettings
from puyulm.errors import RecipeError


@dataclass(frozen=True, kw_only=True)
class TokenizerSettings:
    """The tokenizer to train, see `puyulm.text.train.train_tokenizer`."""

    kind: Literal["sentencepiece", "bytelevel"] = "bytelevel"
    vocab_size: int = 2048
    max_digits: int = 1


@dataclass(frozen=True, kw_only=True)
class TaskSettings:
    """Questions with checkable answers, see `puyulm.align.tasks`.

    Attributes:
        train: Kind -> questions to fine-tune on.
        held_out: Questions of each kind to evaluate on; their contents never occur in training.
        seed: Chooses them.
    """

    train: dict[str, int]
    held_out: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        unknown = [kind for kind in self.train if kind not in KINDS]
        if unknown:
            raise RecipeError(f"unknown task {unknown[0]!r}; known: {', '.join(KINDS)}")
        if self.held_out < 1 or not self.train or min(self.train.values()) < 1:
            raise RecipeError("tasks: held_out and every number of questions to train on must be at least 1")


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """How the models are evaluated, see `puyulm.demo.evaluation`.

    Attributes:
        lengths: Of needles' and RULER's texts in tokens, answer included.
        depths: Where needles lie, in percent of the text.
        ruler: RULER's tasks.
        ruler_count: Samples of each task and length.
        windows: Tokens that the base model sees at once where it reads held-out text, to tell how much context it uses.
        context_bytes: Of each source's held-out text, that are read so.
    """

    lengths: tuple[int, ...] = (512, 640, 768, 896, 1024)
    depths: tuple[float, ...] = (0, 25, 50, 75, 100)
    ruler: tuple[str, ...] = ("niah_single_1", "niah_single_2", "niah_multikey_1", "niah_multivalue", "fwe")
    ruler_count: int = 4
    windows: tuple[int, ...] = (32, 64, 128, 256, 512, 1024)
    context_bytes: int = 25_000


@dataclass(frozen=True, kw_only=True)
class DemoRecipe:
    """All stages.

    Attributes:
        questions: What the published small model is asked first.
        pretrain, sft: Recipes of `puyu train` and `puyu sft`; their folders are replaced by the demo's own.
    """

    questions: tuple[str, ...] = ()
    corpus: CollectSettings = field(default_factory=CollectSettings)
    tokenizer: TokenizerSettings = field(default_factory=TokenizerSettings)
    tasks: TaskSettings
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)
    pretrain: str = "demo/pretrain.yaml"
    sft: str = "demo/sft.yaml"


def recipe_path(name: str) -> Path:
    """A recipe that comes with PuyuLM, by its name below `recipes/`: from the installed package, or the source tree."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "recipes", package.parent / "recipes"):
        if (folder / name).is_file():
            return folder / name
    raise RecipeError(f"no recipe {name!r} comes with this installation; name a file")
