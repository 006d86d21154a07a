"""Typed recipes: a YAML file plus command-line overrides becomes one validated, frozen dataclass.

A recipe class is a frozen dataclass whose fields are annotated with `int`, `float`, `bool`, `str`, `Path`, `Literal`,
`X | None`, `tuple`, `list`, `dict[str, X]`, other dataclasses, or a union of these. Loading is strict: unknown and
repeated keys, missing values and values of the wrong kind are errors, and all of them are reported at once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, Union, cast

import yaml

from puyulm.errors import PuyuError, RecipeError

R = TypeVar("R")


def load_recipe(cls: type[R], path: Path | str, overrides: Sequence[str] = ()) -> R:
    """Reads a recipe.

    Args:
        cls: The recipe's dataclass.
        path: A YAML file; keys are field names, nested dataclasses are nested mappings.
        overrides: `["--key.path", "value", ...]` or `["--key.path=value", ...]`; they win over the file.

    Raises:
        RecipeError: With one line for every problem found: unknown keys (and the nearest known one), missing values,
            values of the wrong kind.
    """
    values = _read_yaml(Path(path))
    problems: list[str] = []
    _apply_overrides(values, overrides, problems)
    recipe = _convert_dataclass(values, cls, "", _Report(problems, list(_key_paths(cls))))
    if len(problems) == 1:
        raise RecipeError(f"{path}: {problems[0]}")
    if problems:
        raise RecipeError("\n  ".join([f"{path} has {len(problems)} problems:", *problems]))
    return cast(R, recipe)


def recipe_dict(value: Any) -> Any:
    """A recipe, or a value of one, as plain mappings, lists and scalars; fields keep their order."""
    if dataclasses.is_dataclass(value):
        return {_key(field.name): recipe_dict(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: recipe_dict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [recipe_dict(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def dump_recipe(recipe: Any) -> str:
    """A recipe as YAML text that `load_recipe` reads back to an equal recipe."""
    return yaml.safe_dump(recipe_dict(recipe), sort_keys=False, allow_unicode=True)


def _key(name: str) -> str:
    """How a field is called in a recipe: Python's reserved words are written with a trailing underscore there."""
    return name.rstrip("_")


class _Loader(yaml.SafeLoader):
    """YAML that reads 1e-3 as a number (YAML 1.2) and refuses repeated keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = str(self.construct_object(key_node, deep=True))
            if key in seen:
                raise yaml.MarkedYAMLError(problem=f"the key '{key}' is given twice", problem_mark=key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


_EXPONENT = re.compile(r"[-+]?([0-9][0-9_]*\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+.0123456789"))


class _Raw(str):
    """The text of a command-line value, whose kind is decided by the field that it is for."""


class _Wrong(Exception):
    """A value cannot be taken for a type; the message says what was expected."""


class _Report(NamedTuple):
    problems: list[str]  # one line each
    known: list[str]  # every key path, to compare typing mistakes with


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(
            f"cannot read the recipe {path}: {getattr(error, 'strerror', 'it is not UTF-8 text')}"
        ) from None
    except yaml.YAMLError as error:
        mark, what = getattr(error, "problem_mark", None), getattr(error, "problem", None) or "not YAML"
        raise RecipeError(f"{path}{f' line {mark.line + 1}' if mark else ''}: {what}") from None
    if not isinstance(values, dict | None):
        raise RecipeError(f"{path} is not a recipe: expected 'key: value' lines, found {_describe(values)}")
    return values or {}


def _apply_overrides(values: dict[str, Any], overrides: Sequence[str], problems: list[str]) -> None:
    words = list(overrides)
    while words:
        word = words.pop(0)
        key, equals, text = word.removeprefix("--").partition("=")
        if not word.startswith("--") or not key:
            problems.append(f"command line: expected --key.path value, found '{word}'")
            continue
        if not equals:
            if not words or words[0].startswith("--"):
                problems.append(f"command line: --{key} needs a value")
                continue
            text = words.pop(0)
        *parents, leaf = key.split(".")
        place: Any = values
        items: list[Any] = []
        for parent in parents:
            items = place if isinstance(place, list) else items
            place = _child(place, parent)
        if isinstance(place, list):
            place = _named_item(place, leaf)
        if isinstance(place, dict):
            place[leaf] = _Raw(text)
        else:
            names = [str(item["name"]) for item in items if isinstance(item, dict) and "name" in item]
            there = f"; there are {', '.join(names)}" if names else ""
            problems.append(f"command line: --{key}: there is no such item in the list{there}")


def _child(place: Any, key: str) -> Any:
    """Where the next name of an override leads: into a mapping, which is made, or an item of a list; None if nowhere.

    An item of a list is named by its number, by its `name`, or by a key of it: of the stages `[{clean: ...}, {dedup:
    ...}]`, `stages.dedup` is what the second has under `dedup`.
    """
    if isinstance(place, list):
        if key.isdigit():
            return place[int(key)] if int(key) < len(place) else None
        named = next((item for item in place if isinstance(item, dict) and str(item.get("name")) == key), None)
        if named is not None:
            return named
        place = _named_item(place, key)
    if not isinstance(place, dict):
        return None
    if not isinstance(place.get(key), dict | list):
        place[key] = {}  # an override inside what was a name or null replaces it by a mapping
    return place[key]


def _named_item(items: list[Any], key: str) -> Any:
    return next((item for item in items if isinstance(item, dict) and key in item), None)


def _key_paths(cls: Any, prefix: str = "") -> Iterator[str]:
    for field, hint in typing.get_type_hints(cls).items():
        name = _key(field)
        yield prefix + name
        for option in (hint, *typing.get_args(hint)):
            if dataclasses.is_dataclass(option):
                yield from _key_paths(option, f"{prefix}{name}.")


def _convert_dataclass(value: Mapping[str, Any], cls: Any, prefix: str, report: _Report) -> Any:
    """The dataclass, or None when something was wrong inside (and has been reported)."""
    before = len(report.problems)
    hints, fields = typing.get_type_hints(cls), {_key(field.name): field for field in dataclasses.fields(cls)}
    converted: dict[str, Any] = {}
    for key, item in value.items():
        where = f"{prefix}{key}"
        if key not in fields:
            report.problems.append(f"unknown key '{where}'; the nearest known one is '{_nearest(where, report.known)}'")
            continue
        try:
            converted[fields[key].name] = _convert(item, hints[fields[key].name], where, report)
        except _Wrong as wrong:
            report.problems.append(f"'{where}' must be {wrong}, not {_describe(item)}")
    for name, field in fields.items():
        if name not in value and field.default is field.default_factory is dataclasses.MISSING:
            report.problems.append(f"'{prefix}{name}' is missing")
    if len(report.problems) > before:
        return None
    try:
        return cls(**converted)
    except (PuyuError, ValueError) as error:  # what the dataclass itself checks
        report.problems.append(f"{prefix[:-1] + ': ' if prefix else ''}{error}")
        return None


def _convert(value: Any, hint: Any, where: str, report: _Report) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (Union, types.UnionType):
        return _convert_union(value, arguments, where, report)
    if isinstance(value, _Raw) and hint not in (str, Path):
        with contextlib.suppress(yaml.YAMLError):
            value = yaml.load(value, Loader=_Loader)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise _Wrong("a mapping of " + ", ".join(field.name for field in dataclasses.fields(hint)))
        return _convert_dataclass(value, hint, f"{where}.", report)
    if origin is Literal:
        if value in arguments and not isinstance(value, bool | float):
            return value
        raise _Wrong("one of " + ", ".join(map(str, arguments)))
    if origin in (tuple, list):
        return _convert_sequence(value, origin, arguments, where, report)
    if origin is dict and isinstance(value, Mapping):
        items = _convert_items(((str(key), item, arguments[1]) for key, item in value.items()), where, report)
        return dict(zip(map(str, value), items, strict=True))
    return _convert_scalar(value, hint)


def _convert_union(value: Any, options: tuple[Any, ...], where: str, report: _Report) -> Any:
    if type(None) in options and (value is None or (isinstance(value, _Raw) and value in ("null", "none", "~"))):
        return None
    options = tuple(option for option in options if option is not type(None))
    if isinstance(value, _Raw) and any(dataclasses.is_dataclass(o) or typing.get_origin(o) is dict for o in options):
        with contextlib.suppress(yaml.YAMLError):
            value = read if isinstance(read := yaml.load(value, Loader=_Loader), dict) else value
    if isinstance(value, Mapping) and (classes := tuple(filter(dataclasses.is_dataclass, options))):
        # The class whose keys are most like these is meant: its own problems are the useful ones.
        options = (max(classes, key=lambda cls: _likeness(value, [_key(f.name) for f in dataclasses.fields(cls)])),)
    wanted = []
    for option in options:
        try:
            return _convert(value, option, where, report)
        except _Wrong as wrong:
            wanted.append(str(wrong))
    raise _Wrong(" or ".join(wanted))


def _convert_sequence(value: Any, origin: Any, arguments: tuple[Any, ...], where: str, report: _Report) -> Any:
    fixed = origin is tuple and not (len(arguments) == 2 and arguments[1] is Ellipsis)
    if not isinstance(value, list | tuple) or (fixed and len(value) != len(arguments)):
        raise _Wrong(f"a list of {len(arguments)} values" if fixed else "a list")
    kinds = arguments if fixed else (arguments[0],) * len(value)
    numbered = ((str(index), item, kind) for index, (item, kind) in enumerate(zip(value, kinds, strict=True)))
    return origin(_convert_items(numbered, where, report))


def _convert_items(items: Iterable[tuple[str, Any, Any]], where: str, report: _Report) -> list[Any]:
    """The items of a list or mapping, each (key, value, type); None for one that is wrong, which is reported."""
    converted = []
    for key, item, kind in items:
        try:
            converted.append(_convert(item, kind, f"{where}.{key}", report))
        except _Wrong as wrong:
            report.problems.append(f"'{where}.{key}' must be {wrong}, not {_describe(item)}")
            converted.append(None)
    return converted


_KINDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    Path: "a path",
    dict: "a mapping",
}


def _convert_scalar(value: Any, kind: Any) -> Any:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind is bool and isinstance(value, bool):
        return value
    if kind is int and number and float(value).is_integer():  # 2e9 tokens
        return int(value)
    if kind is float and number:
        return float(value)
    if kind in (str, Path) and isinstance(value, str):
        return str(value) if kind is str else Path(value).expanduser()
    raise _Wrong(_KINDS[typing.get_origin(kind) or kind])


def _nearest(key: str, known: list[str]) -> str:
    """The known key path that looks most like `key`; the last name counts most, so that a misplaced key is found."""

    def likeness(path: str) -> float:
        pairs = ((key.rpartition(".")[2], path.rpartition(".")[2]), (key, path))
        leaves, whole = (difflib.SequenceMatcher(None, *pair).ratio() for pair in pairs)
        return 2 * leaves + whole

    return max(known, key=likeness)


def _likeness(given: Iterable[str], known: Sequence[str]) -> float:
    """How much of some keys a class knows: 1 for a key of its own, less for one that looks like it."""
    ratios = ([difflib.SequenceMatcher(None, str(key), name).ratio() for name in known] for key in given)
    return sum(max(each) for each in ratios)


def _describe(value: Any) -> str:
    return {type(None): "nothing", dict: "a mapping", list: "a list"}.get(type(value), repr(value))
