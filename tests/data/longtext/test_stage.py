"""The stage: length, bounds by domain and language, and the model's part."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from puyulm.data.documents import Document
from puyulm.data.longtext.coherence import Windows, WindowScores, coherence_features, score_windows
from puyulm.data.longtext.judge import Judge
from puyulm.data.longtext.settings import Bounds, LongTextSettings, bounds_for
from puyulm.data.pipeline.counts import Dropped
from puyulm.errors import DataError
from puyulm.model.checkpoint import load_model, save_model
from puyulm.recipe import dump_recipe, load_recipe
from puyulm.text.tokenizer import Tokenizer
from tests.conftest import tiny_decoder
from tests.text.small_tokenizers import CHATML, small_tokenizer

WORDS = "she walks along the river because he said that they would wait there but nobody came and it was late"
CELLS = "the of and python shop buy price click here login home cart about free new sale"
SIZES = Windows(8, 2, 2)


def english(characters: int, seed: int = 0) -> str:
    generator = random.Random(seed)
    text = ""
    while len(text) < characters:
        words = generator.choices(WORDS.split(), k=12)
        endings = generator.choices(["", "", "s", "ed", str(generator.randrange(300))], k=12)
        text += " ".join(map(str.__add__, words, endings)) + ".\n"
    return text[:characters]


def chinese(lines: int) -> str:
    generator = random.Random(0)
    some = ["".join(chr(generator.randrange(0x4E00, 0x9FA5)) for _ in range(8)) for _ in range(lines)]
    return "".join(f"{words}，但是没有{words[::-1]}；于是大家。\n" for words in some)


def document(text: str, language: str = "en", source: str = "books", **fields: object) -> Document:
    return Document(**{"id": f"{source}:{len(text)}", "text": text, "language": language, "source": source, **fields})


def reasons(settings: LongTextSettings, *documents: Document) -> list[str | None]:
    outcomes = list(settings.transform()(documents))
    assert len(outcomes) == len(documents)
    return [outcome.reason if isinstance(outcome, Dropped) else None for outcome in outcomes]


def test_length_counts_bytes():
    exactly, longer = document(english(32_768)), document(english(32_769))
    wide = document(chinese(500), "zh")
    assert len(wide.text) < 32_768 < wide.num_bytes
    settings = LongTextSettings(thresholds={})
    assert reasons(settings, exactly, longer, wide) == ["long: too short", None, None]
    keep = LongTextSettings(short="keep", thresholds={"*/*": {"line_max": Bounds(max=1)}})
    assert reasons(keep, exactly, longer) == [None, "long: line max too high"]
    assert next(iter(keep.transform()([exactly]))) is exactly


def test_features_are_recorded():
    long = document(english(40_000), scores={"quality": 0.5})
    kept = next(iter(LongTextSettings().transform()([long])))
    assert kept.scores["quality"] == 0.5 and kept.scores["long.characters"] == 40_000
    assert kept.text == long.text
    assert next(iter(LongTextSettings(record=False).transform()([long]))) is long
    never = LongTextSettings(record=False, thresholds={"*/*": {"characters": Bounds(max=0)}})
    [dropped] = never.transform()([long])
    assert dropped.document.scores["long.characters"] == 40_000  # to tune with


def junk() -> dict[str, str]:
    generator = random.Random(0)
    cells = CELLS.split()
    return {
        "navigation": "\n".join(" | ".join(generator.choices(cells, k=6)) for _ in range(1500)),
        "table": "\n".join(f"{i},{generator.random():.4f},{generator.random():.4f}" for i in range(3000)),
        "repetition": "This is a sentence, and it is here because of itself.\n" * 1000,
        "letters": "".join(generator.choices("abcdefghijklmnopqrstuvwxyz      \n", k=40_000)),
        "index": "\n".join(f"{generator.choice(cells)}{i}" for i in range(5000)),
    }


@pytest.mark.parametrize("kind", sorted(junk()))
def test_default_bounds_drop_what_makes_no_sense(kind):
    [reason] = reasons(LongTextSettings(), document(junk()[kind]))
    assert reason is not None and reason.startswith("long: ")


def test_default_bounds_keep_prose_and_code():
    import argparse

    code = Path(argparse.__file__).read_text(encoding="utf-8")
    assert reasons(
        LongTextSettings(), document(english(40_000)), document(code, "code"), document(chinese(800), "zh"),
        document(english(40_000), "fr"),
    ) == [None] * 4  # fmt: skip


def test_bounds_by_domain_and_language():
    thresholds = {
        "*/*": {"line_max": Bounds(max=1), "comma_rate": Bounds(max=2)},
        "*/en": {"line_max": Bounds(max=2)},
        "web/*": {"line_max": Bounds(max=3), "bar_rate": Bounds(max=5)},
        "web/en": {"line_max": Bounds(max=4)},
    }

    def line_max(domain: str, language: str) -> float | None:
        return bounds_for(thresholds, domain, language)["line_max"].max

    assert [line_max(*key) for key in (("books", "zh"), ("books", "en"), ("web", "zh"), ("web", "en"))] == [1, 2, 3, 4]
    assert set(bounds_for(thresholds, "web", "en")) == {"line_max", "comma_rate", "bar_rate"}
    assert bounds_for({}, "web", "en") == {}
    text = english(40_000)
    settings = LongTextSettings(thresholds={"web/en": {"characters": Bounds(min=50_000)}}, domains={"cc-1": "web"})
    assert reasons(settings, document(text, source="cc-1"), document(text, source="books")) == [
        "long: characters too low", None,
    ]  # fmt: skip


def test_bounds_include_their_ends():
    text = english(40_000)
    for bounds, expected in ((Bounds(40_000, 40_000), None), (Bounds(min=40_001), "low"), (Bounds(max=39_999), "high")):
        [reason] = reasons(LongTextSettings(thresholds={"*/*": {"characters": bounds}}), document(text))
        assert reason == (expected and f"long: characters too {expected}")


def test_features_that_a_document_lacks_are_passed_over():
    settings = LongTextSettings(thresholds={"*/*": {"conjunction_rate": Bounds(min=2), "ppl_delta": Bounds(min=9)}})
    assert reasons(settings, document(english(40_000), "code"), document(english(40_000))) == [
        None, "long: conjunction rate too low",
    ]  # fmt: skip


def stub(deltas: dict[int, float], calls: list[int]):
    """Tokens are code points; a window's loss falls by `deltas[its first token]` when its first part is seen."""

    def encode(texts: list[str]) -> list[list[int]]:
        return [[ord(c) for c in text] for text in texts]

    def score(windows: list[np.ndarray]) -> WindowScores:
        calls.append(len(windows))
        delta = np.array([deltas[int(window[0])] for window in windows])
        return WindowScores(2.0 - delta, np.full(len(delta), 2.0), np.zeros(len(delta)), np.zeros(len(delta)))

    return encode, score


def test_the_models_part():
    """Windows of all documents of a batch are scored at once, and each document has the mean of its own."""
    calls: list[int] = []
    settings = LongTextSettings(
        min_bytes=10, model=Path("none"), windows=SIZES,
        thresholds={"*/*": {"loss_delta": Bounds(min=0.1), "line_max": Bounds(max=60)}},
    )  # fmt: skip
    judge = Judge(settings, *stub({ord("a"): 0.5, ord("b"): -0.2, ord("c"): 0.1}, calls))
    documents = [
        document("a" * 16, "code"),
        document("short"),
        document("b" * 24, "code"),
        document("x" * 61, "code"),  # out of bounds before the model sees it
        document("c" * 8 + "dd\n", "code"),
        document("a" * 8 + "b" * 8 + "b" * 7, "code"),
    ]
    outcomes = list(judge(documents))
    assert calls == [2 + 3 + 1 + 2]
    found = [outcome.reason if isinstance(outcome, Dropped) else round(outcome.scores["long.loss_delta"], 6)
             for outcome in outcomes]  # fmt: skip
    worse = "long: context does not help"
    assert found == [0.5, "long: too short", worse, "long: line max too high", 0.1, 0.15]
    assert outcomes[2].document.scores["long.loss_delta"] == pytest.approx(-0.2)


def test_texts_without_a_whole_window_are_not_judged():
    bounds = {"*/*": {"loss_delta": Bounds(min=9)}}
    settings = LongTextSettings(min_bytes=3, thresholds=bounds, model=Path("none"), windows=SIZES)
    judge = Judge(settings, *stub({}, []))
    [outcome] = judge([document("abcdefg", "code")])
    assert isinstance(outcome, Document) and "long.loss_delta" not in outcome.scores
    assert outcome.scores["long.unique_token_rate"] == 1


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = small_tokenizer(tmp_path_factory.mktemp("tokenizer"), CHATML)
    folder = tmp_path_factory.mktemp("model") / "model"
    save_model(
        tiny_decoder(vocab_size=tokenizer.vocab_size, max_position_embeddings=128), folder, write_extra=tokenizer.save
    )
    return folder


def test_a_checkpoint_scores_documents(checkpoint):
    sizes = Windows(64, 16, 16)
    settings = LongTextSettings(min_bytes=100, thresholds={}, model=checkpoint, windows=sizes, batch_tokens=500)
    documents = [document(english(300, seed)) for seed in range(3)] + [document("too short")]
    outcomes = list(settings.transform()(documents))
    decoder, tokenizer = load_model(checkpoint), Tokenizer.load(checkpoint)
    for each, outcome in zip(documents[:3], outcomes, strict=False):
        windows = sizes.cut(tokenizer.encode(each.text))
        assert windows
        expected = coherence_features(score_windows(decoder, windows, sizes, 10_000), 0, len(windows))
        for name, value in expected.items():
            assert outcome.scores[f"long.{name}"] == pytest.approx(value, rel=1e-4, abs=1e-4)
    assert outcomes[3].reason == "long: too short"


def test_a_model_that_cannot_do_it_is_refused(checkpoint):
    with pytest.raises(DataError, match="longer than the context"):
        LongTextSettings(model=checkpoint).transform()


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"thresholds": {"web": {}}}, "domain/language"),
        ({"thresholds": {"/en": {}}}, "domain/language"),
        ({"thresholds": {"*/*": {"beauty": Bounds(min=1)}}}, "beauty"),
        ({"min_bytes": -1}, "min_bytes"),
        ({"batch_tokens": 0}, "batch_tokens"),
        ({"tokenizer": Path("x")}, "model"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(DataError, match=message):
        LongTextSettings(**settings)


@pytest.mark.parametrize("low, high", [(None, None), (2, 1)])
def test_bad_bounds(low, high):
    with pytest.raises(DataError):
        Bounds(low, high)


def test_settings_travel_through_a_recipe(tmp_path):
    settings = LongTextSettings(domains={"cc": "web"}, model=Path("m"), windows=SIZES)
    (tmp_path / "r.yaml").write_text(dump_recipe(settings), encoding="utf-8")
    assert load_recipe(LongTextSettings, tmp_path / "r.yaml") == settings
