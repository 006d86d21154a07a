"""Recipes: strict, complete in their complaints, and read back as they were written."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from puyulm.errors import RecipeError
from puyulm.recipe import dump_recipe, load_recipe, recipe_dict


@dataclass(frozen=True, kw_only=True)
class Shape:
    layers: int
    rope: float = 10_000.0

    def __post_init__(self) -> None:
        if self.layers < 1:
            raise ValueError(f"layers must be positive, not {self.layers}")


@dataclass(frozen=True, kw_only=True)
class Inner:
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.95)
    schedule: Literal["cosine", "constant"] = "cosine"
    tokens: int | None = None


@dataclass(frozen=True, kw_only=True)
class Recipe:
    model: str | Shape
    out: Path
    inner: Inner = field(default_factory=Inner)
    files: tuple[Path, ...] = ()
    weights: dict[str, float] = field(default_factory=dict)
    shapes: list[Shape] = field(default_factory=list)
    shuffle: bool = True
    name: str = "run"


GOOD = "model: {layers: 2}\nout: runs/a\n"


def load(tmp_path: Path, text: str, *overrides: str) -> Recipe:
    path = tmp_path / "r.yaml"
    path.write_text(text, encoding="utf-8")
    return load_recipe(Recipe, path, list(overrides))


def problems(tmp_path: Path, text: str, *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        load(tmp_path, text, *overrides)
    return str(caught.value)


def test_every_kind_of_value(tmp_path: Path) -> None:
    recipe = load(
        tmp_path,
        "model: small\nout: runs/a\nname: 名字\nshuffle: false\nfiles: [a, b/c]\nweights: {en: 1, zh: 2.5}\n"
        "shapes: [{layers: 3}]\ninner: {lr: 3e-4, betas: [0.8, 0.99], schedule: constant, tokens: 2e9}\n",
    )
    assert recipe == Recipe(
        model="small", out=Path("runs/a"), name="名字", shuffle=False, files=(Path("a"), Path("b/c")),
        weights={"en": 1.0, "zh": 2.5}, shapes=[Shape(layers=3)],
        inner=Inner(lr=3e-4, betas=(0.8, 0.99), schedule="constant", tokens=2_000_000_000),
    )  # fmt: skip
    assert isinstance(recipe.weights["en"], float) and isinstance(recipe.inner.tokens, int)


@pytest.mark.parametrize("text", ["1e-3", "1.0e-3", "1E-3", ".001", "0.001", "+1e-03"])
def test_numbers_with_exponents_are_numbers(tmp_path: Path, text: str) -> None:
    assert load(tmp_path, GOOD + f"inner: {{lr: {text}}}\n").inner.lr == pytest.approx(1e-3)
    assert load(tmp_path, GOOD, "--inner.lr", text).inner.lr == pytest.approx(1e-3)


def test_overrides_win_and_take_both_spellings(tmp_path: Path) -> None:
    recipe = load(
        tmp_path, GOOD, "--inner.lr", "0.5", "--inner.betas=[0.1, 0.2]", "--name", "123", "--model", "tiny",
        "--inner.tokens", "none", "--shuffle=false", "--inner.lr=-1",
    )  # fmt: skip
    assert recipe.inner == Inner(lr=-1.0, betas=(0.1, 0.2))
    assert recipe.name == "123" and recipe.model == "tiny" and recipe.shuffle is False
    assert load(tmp_path, GOOD, "--model.rope", "5e5").model == Shape(layers=2, rope=500_000.0)


def test_written_recipe_reads_back(tmp_path: Path) -> None:
    recipe = load(tmp_path, GOOD + "inner: {lr: 1e-8}\nname: 'null'\nfiles: [甲.jsonl]\n")
    assert load(tmp_path, dump_recipe(recipe)) == recipe
    assert recipe_dict(recipe)["inner"]["betas"] == [0.9, 0.95] and recipe_dict(recipe)["files"] == ["甲.jsonl"]


def test_all_problems_at_once(tmp_path: Path) -> None:
    text = problems(
        tmp_path,
        "modle: x\nlr: 1\nshuffle: maybe\nfiles: a\nshapes: [{layers: 2, rop: 1}]\n"
        "inner: {lr: fast, betas: [1], schedule: cosin, tokens: 1.5, learning_rate: 1}\n",
        "--name",
    )
    for expected in (
        "unknown key 'modle'; the nearest known one is 'model'",
        "unknown key 'lr'; the nearest known one is 'inner.lr'",
        "unknown key 'shapes.0.rop'; the nearest known one is 'shapes.rope'",
        "unknown key 'inner.learning_rate'; the nearest known one is 'inner.",
        "'shuffle' must be true or false, not 'maybe'",
        "'files' must be a list, not 'a'",
        "'inner.lr' must be a number, not 'fast'",
        "'inner.betas' must be a list of 2 values, not a list",
        "'inner.schedule' must be one of cosine, constant, not 'cosin'",
        "'inner.tokens' must be a whole number, not 1.5",
        "'model' is missing",
        "'out' is missing",
        "--name needs a value",
    ):
        assert expected in text
    assert "has 13 problems" in text


def test_checks_of_the_dataclass_are_problems_too(tmp_path: Path) -> None:
    assert "r.yaml: model: layers must be positive, not 0" in problems(tmp_path, "model: {layers: 0}\nout: a\n")


def test_booleans_and_text_are_not_numbers(tmp_path: Path) -> None:
    assert "'model.layers' must be a whole number" in problems(tmp_path, "model: {layers: true}\nout: a\n")
    assert "'model.layers' must be a whole number, not '2'" in problems(tmp_path, "model: {layers: '2'}\nout: a\n")
    assert "'name' must be text, not 5" in problems(tmp_path, GOOD + "name: 5\n")
    assert "'model' must be text or a mapping of layers, rope, not 7" in problems(tmp_path, "model: 7\nout: a\n")


def test_infinite_and_not_a_number_are_not_whole(tmp_path: Path) -> None:
    assert "'model.layers' must be a whole number" in problems(tmp_path, "model: {layers: .inf}\nout: a\n")
    assert "'model.layers' must be a whole number" in problems(tmp_path, "model: {layers: .nan}\nout: a\n")


def test_files_that_are_no_recipes(tmp_path: Path) -> None:
    assert "expected 'key: value' lines" in problems(tmp_path, "- a\n")
    assert "line 3: the key 'out' is given twice" in problems(tmp_path, GOOD + "out: b\n")
    assert "line 1" in problems(tmp_path, "model: [\n") or "line 2" in problems(tmp_path, "model: [\n")
    with pytest.raises(RecipeError, match=r"cannot read the recipe .*none\.yaml: No such file"):
        load_recipe(Recipe, tmp_path / "none.yaml")


def test_an_unexpected_word_on_the_command_line(tmp_path: Path) -> None:
    assert "expected --key.path value, found 'lr=3'" in problems(tmp_path, GOOD, "lr=3")


def test_overrides_reach_items_of_lists(tmp_path: Path) -> None:
    text = GOOD + "shapes: [{layers: 1}, {layers: 2, rope: 3}]\n"
    recipe = load(tmp_path, text, "--shapes.1.layers", "7", "--shapes.rope=5")
    assert recipe.shapes == [Shape(layers=1), Shape(layers=7, rope=5.0)]
    assert "no such item" in problems(tmp_path, text, "--shapes.2.layers", "7")
    assert "no such item" in problems(tmp_path, text, "--shapes.width.layers", "7")


@dataclass(frozen=True, kw_only=True)
class Start:
    from_: str
    step: int = 0


@dataclass(frozen=True, kw_only=True)
class Stretch:
    name: str = "all"
    tokens: int
    data: Path | dict[str, float] | None = None

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise RecipeError(f"tokens must be above 0, not {self.tokens}")


@dataclass(frozen=True, kw_only=True)
class Journey:
    model: str | Shape | Start
    data: Path | dict[str, float] | None = None
    phases: tuple[Stretch, ...] = ()

    def __post_init__(self) -> None:
        if not self.phases:
            raise RecipeError("phases must have at least one")


def journey(tmp_path: Path, text: str, *overrides: str) -> Journey:
    path = tmp_path / "j.yaml"
    path.write_text(text, encoding="utf-8")
    found = load_recipe(Journey, path, list(overrides))
    path.write_text(dump_recipe(found), encoding="utf-8")
    assert load_recipe(Journey, path) == found  # what is written reads back
    return found


PHASES = "phases: [{name: short, tokens: 2e12}, {name: long, tokens: 5, data: {a/b: 1, c: 0.25}}]\n"


def test_unions_of_texts_paths_and_mappings(tmp_path: Path) -> None:
    assert journey(tmp_path, "model: {from: some/where}\n" + PHASES).model == Start(from_="some/where")
    assert journey(tmp_path, "model: {layers: 3}\n" + PHASES).model == Shape(layers=3)
    assert journey(tmp_path, "model: tiny\ndata: shards\n" + PHASES).data == Path("shards")
    mixed = journey(tmp_path, "model: tiny\ndata: {shards/web: 0.7, shards/code: 1}\n" + PHASES)
    assert mixed.data == {"shards/web": 0.7, "shards/code": 1.0} and mixed.phases[1].data == {"a/b": 1.0, "c": 0.25}
    assert mixed.phases[0] == Stretch(name="short", tokens=2_000_000_000_000)
    text = "model: tiny\ndata: {shards/web: 0.7}\n" + PHASES
    assert journey(tmp_path, text, "--data", "shards").data == Path("shards")
    assert journey(tmp_path, text, "--data", "{shards: 2, more: 1}").data == {"shards": 2.0, "more": 1.0}
    assert journey(tmp_path, text, "--data.shards/web", "0.1").data == {"shards/web": 0.1}
    assert journey(tmp_path, text, "--model", "{from: there}").model == Start(from_="there")
    assert journey(tmp_path, text, "--model.from", "there", "--model.step", "3").model == Start(from_="there", step=3)
    assert journey(tmp_path, text, "--phases.long.tokens", "7").phases[1].tokens == 7
    assert journey(tmp_path, text, "--phases.short.data", "other").phases[0].data == Path("other")


def test_problems_inside_lists_and_unions_are_told_together(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        journey(
            tmp_path,
            "model: {form: x}\ndata: {a: much}\nphases: [{tokens: 0}, {token: 3}, {tokens: 1, data: [a]}, 5]\n",
            "--phases.long.tokens", "1",
        )  # fmt: skip
    text = str(caught.value)
    for expected in (
        "unknown key 'model.form'; the nearest known one is 'model.from'",
        "'data.a' must be a number, not 'much'",
        "phases.0: tokens must be above 0, not 0",
        "unknown key 'phases.1.token'; the nearest known one is 'phases.tokens'",
        "'phases.1.tokens' is missing",
        "'phases.2.data' must be a path or a mapping, not a list",
        "'phases.3' must be a mapping of name, tokens, data, not 5",
        "command line: --phases.long.tokens: there is no such item in the list",
    ):
        assert expected in text, text
    assert "has 9 problems" in text
