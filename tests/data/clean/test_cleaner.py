"""The stage as a whole: settings, lines that are dropped, reasons, order, and what a recipe says."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from puyulm.data.clean.cleaner import CHUNK_CHARACTERS
from puyulm.data.clean.gopher import GopherRules
from puyulm.data.clean.settings import CleanSettings
from puyulm.data.documents import Document, read_documents, write_documents
from puyulm.data.pipeline.counts import Dropped, Outcome
from puyulm.data.pipeline.executor import SerialExecutor
from puyulm.data.pipeline.stage import StageRun, map_documents
from puyulm.errors import DataError, RecipeError
from puyulm.recipe import dump_recipe, load_recipe
from tests.data.clean.corpus import CODE, ENGLISH, MODERN, chinese, english

OFF = CleanSettings(own=None, gopher=None, repetition=None, c4=None, refinedweb=None, fineweb=None, chinese=None)
GOOD = english(20)
DIRTY = "\ufeff" + GOOD.replace("\n", " \r\n", 3) + "\n\n\n"


def document(text: str, language: str = "en", name: str = "d", source: str = "web") -> Document:
    return Document(id=name, text=text, language=language, source=source, url="u", metadata={"kept": 1})


def clean(documents: Sequence[Document], settings: CleanSettings | None = None) -> list[Outcome]:
    return list((settings or CleanSettings()).transform()(documents))


def test_good_documents_come_out_normalised_and_otherwise_as_they_were() -> None:
    before = [document(DIRTY), document(chinese(20), "zh"), document("\ufeff" + CODE[0], "code")]
    after = clean(before)
    assert after == [replace(before[0], text=GOOD), before[1], replace(before[2], text=CODE[0])]


def test_a_dropped_document_is_as_it_came_in_and_names_all_reasons() -> None:
    bad = document("Lorem ipsum {dolor}. " + DIRTY)
    [outcome] = clean([bad])
    assert isinstance(outcome, Dropped) and outcome.reason == "c4: lorem ipsum"
    assert outcome.document.text == bad.text
    assert outcome.document.metadata == {"kept": 1, "reasons": ["c4: lorem ipsum", "c4: curly braces"]}


def test_lines_go_before_documents_are_judged() -> None:
    page = "\n".join(["Home", "", "3 likes", "", GOOD, "", "Please enable Javascript in your browser {now}.",
                      "This web site uses cookies, as all of them do.", "", "Sign in or register"])  # fmt: skip
    [outcome] = clean([document(page)])
    assert outcome == replace(document(GOOD), metadata={"kept": 1, "dropped_lines": {
        "c4: short lines": 3, "c4: lines with javascript": 1, "c4: policy lines": 1}})  # fmt: skip
    [few] = clean([document("\n".join(["ALL CAPITALS IN THIS LINE OF MANY WORDS"] * 2) + "\n" + english(10))])
    assert isinstance(few, Dropped) and few.reason == "refinedweb: words in flagged lines"


def test_line_rules_keep_the_shape_of_what_stays() -> None:
    text = f"{english(5)}\n\nHome\n\nMenu\n{english(5, 5)}\n\n  {english(5, 10)}\n\nHome"
    [outcome] = clean([document(text)], replace(OFF, c4=CleanSettings().c4))
    assert not isinstance(outcome, Dropped)
    assert outcome.text == f"{english(5)}\n\n{english(5, 5)}\n\n  {english(5, 10)}"


def test_a_letter_that_grows_in_lower_case_stays() -> None:
    text = "İstanbul'da bir gün geçirdim ve çok sevdim.\nİyi\n" + english(6)
    [outcome] = clean([document(text, "tr")], replace(OFF, c4=CleanSettings().c4))
    assert not isinstance(outcome, Dropped)
    assert outcome.text == text.replace("İyi\n", "")


def test_order_and_division_of_work_change_nothing() -> None:
    kinds = [(GOOD, "en"), (chinese(20), "zh"), (CODE[0], "code"), ("{" + GOOD, "en"), (MODERN, "zh"),
             (ENGLISH[0], "en"), ("", "en"), ("短", "zh"), (GOOD * 9, "de")]  # fmt: skip
    documents = [document(f"{text} Number {i}.", kind, f"{kind}{i}") for i in range(6) for text, kind in kinds]
    together = clean(documents)
    assert [outcome.document.id if isinstance(outcome, Dropped) else outcome.id for outcome in together] == [
        document.id for document in documents
    ]
    assert together == [outcome for document in documents for outcome in clean([document])]
    assert together[::-1] == clean(documents[::-1])
    assert sum(isinstance(outcome, Dropped) for outcome in together) >= 12


def test_long_documents_and_many_chunks() -> None:
    long = english(2000)
    documents = [document(long, name=str(i)) for i in range(3)] + [document(GOOD)]
    assert len(long) * 3 > CHUNK_CHARACTERS
    assert clean(documents) == documents
    [outcome] = clean([document(GOOD)], CleanSettings(max_characters=len(GOOD) - 1))
    assert isinstance(outcome, Dropped) and outcome.reason == "own: more characters than the stage reads"
    assert clean([], CleanSettings()) == []


def test_no_rules_only_normalise() -> None:
    assert clean([document("x\r\n{}"), document("", "zh")], OFF) == [document("x\n{}"), document("", "zh")]
    assert clean([document("Ａ１")], replace(OFF, half_width=True)) == [document("A1")]


def test_code_passes_what_text_does_not() -> None:
    code = "#!/bin/sh\n{\n  x\n}\n" + "    return None\n" * 50 + "log('Javascript uses cookies')\n" * 2
    assert clean([document(code, "code")]) == [document(code, "code")]
    [outcome] = clean([document(code, "en")])
    assert isinstance(outcome, Dropped)


def test_exempt_sources() -> None:
    braces = document("{" + GOOD)
    settings = CleanSettings(exempt={"manuals": ("c4: curly braces",), "*": ("c4: short lines",)})
    assert isinstance(clean([braces], settings)[0], Dropped)
    manual = replace(braces, source="manuals")
    assert clean([manual], settings) == [manual]
    kept = document(GOOD + "\n\nTwo words.", source="manuals")
    assert clean([kept, braces, kept], settings)[::2] == [kept, kept]
    cited = document(GOOD + "\nAs he said.[12] And so it was.")
    assert clean([cited], CleanSettings(exempt={"*": ("c4: citations", "c4: short lines")})) == [cited]
    [without] = clean([cited])
    assert isinstance(without, Document) and without.text.endswith("As he said. And so it was.")


def test_extra_rules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_rules.py").write_text(
        "import numpy as np\n"
        "def too_much_shouting(features):\n    return features.occurrences('!') > 3\n"
        "def wrong(features):\n    return np.zeros(1)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    settings = CleanSettings(extra_rules=("my_rules:too_much_shouting",))
    assert list(settings.files()) == [tmp_path / "my_rules.py"]
    loud = document(GOOD + "\nAnd so he went to the sea!!!!")
    first, second = clean([loud, document(GOOD)], settings)
    assert isinstance(first, Dropped) and first.reason == "extra: too much shouting"
    assert second == document(GOOD)
    exempt = replace(settings, exempt={"web": ("extra: too much shouting",)})
    assert clean([loud], exempt) == [loud]
    with pytest.raises(DataError, match="boolean array of 2"):
        clean([document("a"), document("b")], CleanSettings(extra_rules=("my_rules:wrong",)))
    for name, message in (("my_rules:none", "cannot be loaded"), ("no_rules:f", "cannot be loaded")):
        with pytest.raises(DataError, match=message):
            CleanSettings(extra_rules=(name,)).transform()
    with pytest.raises(DataError, match="no module 'no_rules'"):
        list(CleanSettings(extra_rules=("no_rules:f",)).files())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"extra_rules": ["nonsense"]}, "extra_rules: 'nonsense' is no name of a rule: write package.module:function"),
        ({"exempt": {"web": ["c4: curly bracket"]}}, "the nearest one is 'c4: curly braces'"),
        ({"max_characters": 0}, "max_characters is 0"),
        ({"gopher": {"min_words": 10, "max_words": 5}}, "give 0 <= min_words <= max_words"),
        ({"gopher": {"max_bullet_lines": 90}}, "max_bullet_lines is 90: it is a share"),
        ({"gopher": {"stop_words": {"de": ["der"]}}}, "stop_words.de has 1 words"),
        ({"repetition": {"top_2_gram": -0.1}}, "top_2_gram is -0.1"),
        ({"chinese": {"repetition": {"top_2_gram": 2}}}, "top_2_gram is 2"),
        ({"own": {"max_digit": 0.1}}, "the nearest known one is 'own.max_digits'"),
    ],
)
def test_bad_settings_are_refused_in_one_line(tmp_path: Path, values: dict[str, object], message: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(values))
    with pytest.raises(RecipeError) as error:
        load_recipe(CleanSettings, path)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_recipe(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "gopher:\n  min_words: 20\n  stop_words: {en: [the, of], de: [der, die, und]}\n"
        "refinedweb: null\nchinese: {repetition: {top_2_gram: 0.3}}\nexempt: {books: ['gopher: too many words']}\n"
    )
    settings = load_recipe(CleanSettings, path)
    assert settings.gopher == GopherRules(min_words=20, stop_words={"en": ("the", "of"), "de": ("der", "die", "und")})
    assert settings.refinedweb is None and settings.fineweb is not None
    assert settings.chinese is not None and settings.chinese.repetition.top_2_gram == 0.3
    assert settings.exempt == {"books": ("gopher: too many words",)}
    path.write_text(dump_recipe(settings))
    assert load_recipe(CleanSettings, path) == settings
    assert pickle.loads(pickle.dumps(settings)) == settings


def test_as_a_stage(tmp_path: Path) -> None:
    documents = [document(GOOD + f"\n\nNumber {i} of the list.", name=str(i)) for i in range(20)]
    documents += [document("too short", name=f"short{i}") for i in range(5)]
    source = tmp_path / "in" / "00000.jsonl.gz"
    write_documents(source, documents)
    folder = tmp_path / "out"
    run = StageRun("clean", folder, [source], source.parent, SerialExecutor(), "jsonl.gz", 10**9)
    map_documents(CleanSettings(), run)
    assert [d.id for d in read_documents(folder / "00000.jsonl.gz")] == [str(i) for i in range(20)]
    dropped = list(read_documents(folder / "dropped" / "00000.jsonl.gz"))
    assert len(dropped) == 5 and dropped[0].metadata["reasons"][0] == dropped[0].metadata["dropped"] == "own: too short"
