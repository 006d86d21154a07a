"""Made examples: broken copies of good texts, and the demonstration set of advertisements."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from puyulm.data.documents import Document
from puyulm.data.score.corrupt import BROKEN, DAMAGES, FLUENT, fluency_examples, sample_documents
from puyulm.data.score.labelled import split
from puyulm.data.score.linear import LinearScorer
from puyulm.data.score.seed_templates import CHINESE_ADS, CHINESE_SLOTS, ENGLISH_ADS, ENGLISH_OTHERS, ENGLISH_SLOTS
from puyulm.data.score.seeds import ADVERTISEMENT, OTHER, advertisement_seeds
from puyulm.data.score.train import TrainSettings, train_on
from tests.data.score.texts import CHINESE_ADS as ZH_ADS
from tests.data.score.texts import CHINESE_OTHERS as ZH_OTHERS
from tests.data.score.texts import ENGLISH_ADS as EN_ADS
from tests.data.score.texts import ENGLISH_OTHERS as EN_OTHERS


def documents(count: int = 300) -> list[Document]:
    generator = random.Random(0)
    made = []
    for i in range(count):
        sentences, language = (EN_OTHERS, "en") if i % 2 else (ZH_OTHERS, "zh")
        text = (" " if i % 2 else "").join(generator.sample(sentences, 8))
        made.append(Document(f"d{i}", text, language, "s"))
    return made


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda f: f.__name__)
@pytest.mark.parametrize("texts", [EN_OTHERS, ZH_OTHERS], ids=["en", "zh"])
def test_every_damage_damages_and_keeps_much(damage: object, texts: list[str]) -> None:
    assert callable(damage)
    generator = random.Random(0)
    for text, other in itertools.pairwise(texts):
        broken = damage(text, other, generator)
        assert broken != text and 0.5 * len(text) <= len(broken) <= 12 * len(text)


def test_damages_do_what_they_say() -> None:
    named = {damage.__name__: damage for damage in DAMAGES}
    text, zh = EN_OTHERS[0], ZH_OTHERS[0]
    assert sorted(named["shuffled_words"](text, "", random.Random(1)).split()) == sorted(text.split())
    assert sorted(named["shuffled_words"](zh, "", random.Random(1))) == sorted(zh)
    dropped = iter(text)
    assert all(c in dropped for c in named["dropped_characters"](text, "", random.Random(1)))  # a subsequence
    doubled = iter(named["doubled_characters"](zh, "", random.Random(1)))
    assert all(c in doubled for c in zh)
    assert "Ã©" in named["mixed_encodings"]("café " * 20, "", random.Random(3))
    assert all(not set("中文") & set(named["mixed_encodings"]("中文" * 9, "", random.Random(i))) for i in range(9))
    joined = named["truncated_joins"](text, EN_OTHERS[1], random.Random(1))
    assert any(word in joined for word in EN_OTHERS[1].split()) and any(word in joined for word in text.split())


@given(st.text(max_size=60), st.text(max_size=20), st.integers(0, 2**32))
def test_damages_take_any_text(text: str, other: str, seed: int) -> None:
    for damage in DAMAGES:
        assert isinstance(damage(text, other, random.Random(seed)), str)


def test_examples_come_in_pairs_that_a_split_keeps_together() -> None:
    made = list(
        fluency_examples([*documents(), Document("c", "x = 1\n" * 90, "code", "s"), Document("s", "short", "en", "s")])
    )
    assert made == list(fluency_examples(documents()))
    assert {row.label for row in made} == {FLUENT, BROKEN}
    assert sum(row.label == BROKEN for row in made) > 0.95 * sum(row.label == FLUENT for row in made) > 250
    by_id = {document.id: document for document in documents()}
    assert all(row.text in by_id[row.id].text and len(row.text) <= 1500 for row in made if row.label == FLUENT)
    parts = split(made)
    assert not {row.group for row in parts.train} & {row.group for row in parts.held_out}
    assert made != list(fluency_examples(documents(), seed=1))


def test_a_sample_of_documents_is_bounded_and_does_not_depend_on_order() -> None:
    made = documents(200)
    sample = sample_documents(made, 50)
    assert len(sample) == 50 and sample == sample_documents(made[::-1], 50)
    assert {d.id for d in sample_documents(made, 20)} < {d.id for d in sample}
    assert {d.language for d in sample} == {"en", "zh"}
    twice = sample_documents(made + made, 500)
    assert len(twice) == 400
    long = sample_documents([Document("l", "x" * 300_000, "en", "s")], 1)
    assert len(long[0].text) == 200_000


def test_a_fluency_scorer_from_no_labels_finds_broken_texts_it_has_not_seen() -> None:
    """Trained on texts of other sentences; pairs are told apart with a ROC AUC of at least 0.75."""
    texts = [*EN_ADS, *ENGLISH_OTHERS[0], *ENGLISH_OTHERS[1], *ENGLISH_OTHERS[3], *ENGLISH_OTHERS[5]]
    generator = random.Random(0)
    train = [Document(f"t{i}", " ".join(generator.sample(texts, 10)), "en", "s") for i in range(250)]
    scorer, _ = train_on(list(fluency_examples(train)), TrainSettings(FLUENT, bits=16, epochs=6))
    new = list(fluency_examples([d for d in documents(160) if d.language == "en"], seed=5))
    scores, good = scorer.score([row.text for row in new]), np.array([row.label == FLUENT for row in new])
    assert np.mean([a > b for a in scores[good] for b in scores[~good]]) > 0.75


@pytest.fixture(scope="module")
def advertisements() -> LinearScorer:
    scorer, report = train_on(list(advertisement_seeds(400)), TrainSettings(ADVERTISEMENT, bits=18, epochs=8))
    assert report.accuracy > 0.97
    return scorer


def test_advertisements_of_other_wording_are_found(advertisements: LinearScorer) -> None:
    """At a threshold of 0.85, 90 % of 24 advertisements are found, and 10 % of 32 other texts are mistaken for one."""
    found = advertisements.score(EN_ADS + ZH_ADS) >= 0.85
    mistaken = advertisements.score(EN_OTHERS + ZH_OTHERS) >= 0.85
    assert found.mean() >= 0.9
    assert mistaken.mean() <= 0.1


def test_the_made_set_is_balanced_and_repeatable() -> None:
    made = list(advertisement_seeds(50))
    assert made == list(advertisement_seeds(50))
    assert made != list(advertisement_seeds(50, seed=1))
    for language in ("en", "zh"):
        for label in (ADVERTISEMENT, OTHER):
            assert sum(row.language == language and row.label == label for row in made) == 50
    assert not any("{" in row.text for row in made)


def test_every_slot_has_values() -> None:
    import re

    for groups, slots in ((ENGLISH_ADS, ENGLISH_SLOTS), (ENGLISH_OTHERS, ENGLISH_SLOTS), (CHINESE_ADS, CHINESE_SLOTS)):
        names = {name for group in groups for sentence in group for name in re.findall(r"\{(\w+)\}", sentence)}
        assert names - {"number"} <= set(slots)
    assert all(
        value.strip() for slots in (ENGLISH_SLOTS, CHINESE_SLOTS) for values in slots.values() for value in values
    )
