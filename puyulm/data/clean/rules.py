"""What a rule is, and which languages it is for.

A rule of documents is a function of a batch's features and of its family's thresholds that gives a mask of the
documents to drop. To add one, write the function in its family's module (`own.py` if it has no published family) and a
line in the table `RULES` at the end of that module; its threshold is a field of the family's settings:

    def too_many_digits(features: Features, thresholds: OwnRules) -> Mask:
        return features.share(DIGIT) > thresholds.max_digits

    RULES = (..., Rule("own: digits", too_many_digits, TEXT))

Or, without touching the package, a function of the features alone, named in a recipe:

    extra_rules: [my.module:my_rule]
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from puyulm.data.clean.characters import Mask
from puyulm.data.clean.features import Features
from puyulm.data.clean.texts import Texts
from puyulm.errors import DataError

# Groups of languages, as a rule names them. A language belongs to itself, to its kind, to TEXT and to EVERYTHING.
EVERYTHING = ("everything",)
TEXT = ("text",)  # every natural language
SPACED = ("spaced",)  # written with spaces between words
CJK = ("cjk",)  # each character is a word to us
CHINESE = ("zh", "yue")
NOT_CHINESE = ("text but Chinese",)
CODE = ("code",)

KINDS = {
    "code": "code", "zh": "cjk", "ja": "cjk", "ko": "cjk", "yue": "cjk",
    "th": "unspaced", "lo": "unspaced", "km": "unspaced", "my": "unspaced", "bo": "unspaced", "dz": "unspaced",
}  # fmt: skip
"""Kind of each language that is not written with spaces between words."""

WORDS_PER_GRAM = {"cjk": 1.6}
"""How many of our words stand for a published n-gram's word: a Chinese word has about 1.6 characters (our estimate)."""


@dataclass(frozen=True)
class Rule:
    """A rule that drops documents.

    Attributes:
        reason: The counter's name, with its family in front.
        rejects: (features, thresholds of the family) -> mask `[D]`.
        languages: Groups of languages that it is for.
    """

    reason: str
    rejects: Callable[[Features, Any], Mask]
    languages: tuple[str, ...]


@dataclass(frozen=True)
class LineRule:
    """A rule that drops lines; what is left of the document goes on to the rules of documents.

    Attributes:
        reason: The counter's name.
        flags: (texts, thresholds of the family) -> mask `[N]` over the lines that are not blank.
        languages: Groups of languages that it is for.
        counted: Whether its lines' words count towards `Features.flagged_words`.
    """

    reason: str
    flags: Callable[[Texts, Any], Mask]
    languages: tuple[str, ...]
    counted: bool = False


def kind_of(language: str) -> str:
    """How a language is written: "spaced", "cjk", "unspaced" or "code"."""
    return KINDS.get(language.partition("-")[0], "spaced")


def groups_of(language: str) -> frozenset[str]:
    """All groups that a language is in ("zh-Hant" is "zh")."""
    base, kind = language.partition("-")[0], kind_of(language)
    groups = {base, kind, *EVERYTHING}
    if kind != "code":
        groups |= {*TEXT, *(() if base in CHINESE else NOT_CHINESE)}
    return frozenset(groups)


def extra_reason(name: str) -> str:
    """The reason of an extra rule, `package.module:function`: "extra: " and the function's name with spaces.

    Raises:
        DataError: The name has another form.
    """
    module, _, function = name.partition(":")
    if not (function.isidentifier() and all(part.isidentifier() for part in module.split("."))):
        raise DataError(f"extra_rules: {name!r} is no name of a rule: write package.module:function")
    return "extra: " + function.replace("_", " ")


def extra_rule(name: str) -> Rule:
    """The rule that a recipe names; its function takes the features alone.

    It is asked of everything, also of code: a rule that is for some languages looks at `features.languages`.

    Raises:
        DataError: There is no such module or function, or it does not give a mask.
    """
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise DataError(f"extra_rules: {name} cannot be loaded ({error}): check the name and PYTHONPATH") from None

    def rejects(features: Features, _: Any) -> Mask:
        mask = np.asarray(found(features))
        if mask.shape != (len(features.texts),) or mask.dtype != bool:
            raise DataError(f"extra_rules: {name} must give a boolean array of {len(features.texts)} documents, "
                            f"not {mask.dtype} of shape {mask.shape}")  # fmt: skip
        return mask

    return Rule(extra_reason(name), rejects, EVERYTHING)


def extra_rule_file(name: str) -> Path:
    """The source file of an extra rule's module, so that a run notices a change.

    Raises:
        DataError: There is no such module.
    """
    module = name.partition(":")[0]
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        spec = None
    if spec is None or spec.origin is None:
        raise DataError(f"extra_rules: there is no module {module!r}: check the name and PYTHONPATH")
    return Path(spec.origin)


def check_shares(settings: Any, *names: str) -> None:
    """Refuses thresholds that are no shares.

    Raises:
        DataError: A named field is below 0 or above 1.
    """
    for name in names:
        value = getattr(settings, name)
        if not 0 <= value <= 1:
            raise DataError(f"{name} is {value:g}: it is a share, give 0 to 1")


def check_range(settings: Any, low: str, high: str) -> None:
    """Refuses a range that holds nothing.

    Raises:
        DataError: The lower end is above the higher, or negative.
    """
    if not 0 <= getattr(settings, low) <= getattr(settings, high):
        raise DataError(f"{low} is {getattr(settings, low):g} and {high} is {getattr(settings, high):g}: "
                        f"give 0 <= {low} <= {high}")  # fmt: skip
