"""The stage `quality`: which documents are scored, which are dropped, and which settings are refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from puyulm.data.documents import Document
from puyulm.data.pipeline.counts import Dropped
from puyulm.data.safe.settings import SafeSettings
from puyulm.data.score.apply import LoadedScorer, apply_scorers, language_of
from puyulm.data.score.linear import FILE, LinearScorer, ScorerFacts, grams
from puyulm.data.score.settings import JudgeSettings, QualitySettings, ScorerSettings
from puyulm.errors import DataError
from puyulm.recipe import load_recipe


def document(text: str, language: str = "en", source: str = "web", **more: Any) -> Document:
    return Document(id=text, text=text, language=language, source=source, **more)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A scorer that gives texts with the word "spam" 0.9 and others 0.1 or less; it has learned nothing else."""
    facts = ScorerFacts(("ham", "spam"), (0, 0), 1, 16)
    weight = np.zeros((1 << 16, 1), np.float32)
    weight[grams(["spam"], facts).buckets] = 40
    LinearScorer(facts, weight, np.array([-4.0])).save(tmp_path / "model" / FILE)
    return tmp_path / "model"


def reasons(settings: QualitySettings, documents: list[Document]) -> list[str]:
    outcomes = list(settings.transform()(documents))
    assert [(o.document if isinstance(o, Dropped) else o).id for o in outcomes] == [d.id for d in documents]
    return [o.reason if isinstance(o, Dropped) else "kept" for o in outcomes]


def test_scores_are_recorded_and_documents_dropped(model: Path) -> None:
    documents = [document("buy spam"), document("good text", scores={"old": 0.5}), document("")]
    scored = list(QualitySettings((ScorerSettings("ad", path=model),)).transform()(documents))
    assert all(isinstance(o, Document) for o in scored)
    ad = [o.scores["ad"] for o in scored if isinstance(o, Document)]
    assert ad[0] > 0.9 and ad[1] == ad[2] == round(1 / (1 + np.exp(4)), 4)
    assert scored[1] == replace(documents[1], scores={"old": 0.5, "ad": ad[1]})
    above = ScorerSettings("ad", path=model, drop_above=0.5)
    below = ScorerSettings("ham", path=model, label="ham", drop_below=0.5)
    assert reasons(QualitySettings((above,)), documents) == ["quality: ad", "kept", "kept"]
    assert reasons(QualitySettings((below,)), documents) == ["quality: ham", "kept", "kept"]
    assert reasons(QualitySettings((replace(above, drop_above=ad[0]),)), documents) == ["kept"] * 3
    [dropped] = QualitySettings((above, below)).transform()(documents[:1])
    assert isinstance(dropped, Dropped) and list(dropped.document.scores) == ["ad"]  # the second one was not asked


def test_languages_sources_and_lengths(model: Path) -> None:
    scorer = ScorerSettings("ad", path=model, drop_above=0.5, languages=("en", "python"), only_sources=("web",))
    documents = [
        document("spam 1"), document("spam 2", "zh"), document("spam 3", source="books"), document("spam 4", "code"),
        document("spam 5", "code", metadata={"programming_language": "python"}), document("x " * 6000 + "spam"),
    ]  # fmt: skip
    assert reasons(QualitySettings((scorer,)), documents) == [
        "quality: ad", "kept", "kept", "kept", "quality: ad", "kept",
    ]  # fmt: skip
    assert language_of(documents[3]) == "code" and language_of(documents[4]) == "python"
    longer = replace(scorer, max_characters=20_000, drop_above=0.02)
    assert reasons(QualitySettings((longer,)), documents[-1:]) == ["quality: ad"]


def test_a_scorers_file_names_its_languages(model: Path) -> None:
    linear = LinearScorer.load(model)
    settings = QualitySettings((ScorerSettings("ad", path=model / FILE, drop_above=0.5),))
    documents = [document("spam", "en"), document("spam", "zh")]
    for languages, expected in (
        (None, ["quality: ad", "quality: ad"]), (("zh",), ["kept", "quality: ad"]), ((), ["kept", "kept"]),
    ):  # fmt: skip
        linear.with_facts(languages=languages, training={"round": str(languages)}).save(model / FILE)
        assert reasons(settings, documents) == expected
    [unscored, _] = settings.transform()(documents)
    assert isinstance(unscored, Document) and not unscored.scores and not unscored.metadata


def test_scorers_of_the_stage_safe_see_masked_text(model: Path) -> None:
    settings = SafeSettings(scorers=(ScorerSettings("toxic", path=model, drop_above=0.5),))
    bad, good = settings.transform()([document("spam a@gmail.com"), document("fine a@gmail.com")])
    assert isinstance(bad, Dropped) and bad.reason == "safe: toxic" and bad.document.text == "spam <email>"
    assert isinstance(good, Document) and good.text == "fine <email>" and good.scores["toxic"] < 0.1


def test_a_text_without_a_score_is_kept_and_noted() -> None:
    class Unsure:
        def score(self, texts: Any) -> Any:
            return np.array([np.nan if "?" in text else 0.7 for text in texts])

    settings = ScorerSettings("j", path=Path("x"), drop_above=0.5)
    outcomes = apply_scorers([document("?"), document("!")], [LoadedScorer(settings, Unsure())], "quality")
    assert outcomes[0] == document("?", metadata={"unscored": ["j"]})
    assert isinstance(outcomes[1], Dropped)


def test_settings_in_a_recipe(tmp_path: Path) -> None:
    recipe = tmp_path / "quality.yaml"
    recipe.write_text(
        "scorers:\n- {name: ad, path: m, drop_above: 0.9}\n"
        "- {name: j, kind: judge, judge: {base_url: 'http://h/v1', model: m, cache: c.sqlite}}\n"
    )
    settings = load_recipe(QualitySettings, recipe)
    assert settings.scorers[0].kind == "linear" and settings.scorers[1].judge is not None
    assert isinstance(settings.scorers[1].judge.cache, str)  # not watched as an input


def test_bad_settings_are_refused(tmp_path: Path) -> None:
    judge = JudgeSettings("http://h/v1", "m", "c")
    some = tmp_path / "m"
    for bad, message in (
        (lambda: ScorerSettings("", path=some), "needs a name"),
        (lambda: ScorerSettings("a"), "needs a path"),
        (lambda: ScorerSettings("a", "judge"), "judge"),
        (lambda: ScorerSettings("a", "judge", some, judge=judge), "needs no path"),
        (lambda: ScorerSettings("a", path=some, judge=judge), "judge"),
        (lambda: ScorerSettings("a", "fasttext", some), "label"),
        (lambda: ScorerSettings("a", path=some, drop_above=90), "from 0 to 1"),
        (lambda: ScorerSettings("a", path=some, max_characters=0), "at least 1"),
        (lambda: QualitySettings((ScorerSettings("a", path=some),) * 2), "called 'a'"),
        (lambda: QualitySettings((ScorerSettings("a", path=some),)).transform(), "no scorer at"),
    ):
        with pytest.raises(DataError, match=message) as caught:
            bad()
        assert "\n" not in str(caught.value)
