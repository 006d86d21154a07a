"""Training: splits, fitted weights, calibration and the report's figures."""

from __future__ import annotations

import itertools
import json
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from puyulm.data.score.fit import fit
from puyulm.data.score.labelled import Labelled, read_labelled, split, without_repeats, write_labelled
from puyulm.data.score.linear import LinearScorer, ScorerFacts
from puyulm.data.score.report import calibration_error, roc_auc
from puyulm.data.score.train import TrainSettings, train_on, train_scorer
from puyulm.errors import DataError

SMALL = TrainSettings("good", (1, 2), 1, 12, 6)


def rows(count: int = 300, noise: float = 0.0, seed: int = 0) -> list[Labelled]:
    """Texts of random words; good ones hold "alpha" or 甲, bad ones "omega" or 乙; `noise` of the labels are wrong."""
    generator = random.Random(seed)
    made = []
    for i in range(count):
        good, language = i % 2 == 0, "zh" if i % 3 == 0 else "en"
        mark = {"en": ("omega", "alpha"), "zh": ("乙", "甲")}[language][good]
        words = [generator.choice(["tree", "stone", "river", "cloud", "road"]) for _ in range(8)]
        words.insert(generator.randrange(8), mark)
        label = good != (generator.random() < noise)
        made.append(Labelled(f"{' '.join(words)} {i}x{seed}", "good" if label else "bad", language))
    return made


def test_what_can_be_learned_is_learned() -> None:
    scorer, report = train_on(rows(), SMALL)
    assert report.accuracy == 1.0 and report.roc_auc == 1.0
    assert scorer.facts.labels == ("bad", "good")
    new = rows(200, seed=1)
    found = scorer.score([row.text for row in new]) > 0.5
    assert (found == [row.label == "good" for row in new]).mean() >= 0.99
    assert "alpha" in report.ngrams["good"] and "omega" in report.ngrams["bad"]
    assert not {"alpha", "tree"} & set(report.ngrams["bad"])
    assert scorer.facts.training["texts"]["held_out"] == report.texts["held_out"]


def test_the_same_texts_give_the_same_scorer_in_any_order() -> None:
    first, _ = train_on(rows(), SMALL)
    again, _ = train_on(rows()[::-1], SMALL)
    assert (first.weight == again.weight).all() and (first.bias == again.bias).all()
    other, _ = train_on(rows(), TrainSettings("good", (1, 2), 1, 12, 6, seed=1))
    assert not (first.weight == other.weight).all()


def test_probabilities_follow_the_share_of_wrong_labels() -> None:
    """With a fifth of the labels wrong the right scores are 0.8 and 0.2, not 1 and 0."""
    scorer, report = train_on(rows(2000, noise=0.2), SMALL)
    new = rows(400, seed=1)
    scores, good = scorer.score([row.text for row in new]), np.array([row.label == "good" for row in new])
    assert 0.75 < scores[good].mean() < 0.85 and 0.15 < scores[~good].mean() < 0.25
    assert report.calibration_error < 0.1 and 0.7 < report.accuracy < 0.9


def test_few_texts_of_a_label_are_found_and_keep_their_probability() -> None:
    generator = random.Random(0)
    made = [row for row in rows(2000, noise=0.1) if row.label == "bad" or generator.random() < 0.1]
    scorer, report = train_on(made, SMALL)
    assert report.texts["train"]["good"] < 0.2 * report.texts["train"]["bad"]
    assert report.roc_auc > 0.75
    share = sum(row.label == "good" for row in made) / len(made)
    assert abs(float(scorer.score([row.text for row in made]).mean()) - share) < 0.05


def test_three_labels() -> None:
    words = {"low": "omega", "mid": "beta", "high": "gamma"}
    labels = itertools.cycle(words)
    plain = [row.text.replace("alpha", "").replace("omega", "") for row in rows(300)]
    made = [Labelled(f"{text} {words[label]}", label) for text, label in zip(plain, labels, strict=False)]
    scorer, report = train_on(made, TrainSettings("high", (0, 0), 1, 12, 12))
    assert scorer.facts.labels == ("low", "mid", "high") and report.positive == "high"
    assert report.accuracy > 0.95
    assert np.array(report.confusion).sum() == sum(report.texts["held_out"].values())


def test_fit_takes_the_best_pass() -> None:
    texts = [row.text for row in rows(200)]
    labels = np.array([row.label == "good" for row in rows(200)], dtype=np.int64)
    facts = ScorerFacts(("bad", "good"), (0, 0), 1, 10)
    scorer = fit((texts, labels), (texts, labels), facts, epochs=1)
    assert isinstance(scorer, LinearScorer) and ((scorer.score(texts) > 0.5) == labels).mean() > 0.95


def test_the_report_is_written_and_adds_up(tmp_path: Path) -> None:
    path = tmp_path / "labelled.jsonl"
    made = [*rows(300, noise=0.1), *rows(3)]
    write_labelled(path, [*made, Labelled("said twice", "good"), Labelled("said twice", "bad")])
    report = train_scorer(path, tmp_path / "out", SMALL)
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"scorer.safetensors", "report.json", "report.txt"}
    stored = json.loads((tmp_path / "out" / "report.json").read_text())
    assert stored["accuracy"] == report.accuracy and stored["left_out"] == {"repeats": 4, "contradicting": 1}
    held_out = split(without_repeats(made)[0]).held_out
    scorer = LinearScorer.load(tmp_path / "out")
    scores = scorer.score([row.text for row in held_out])
    good = np.array([row.label == "good" for row in held_out])
    assert report.accuracy == pytest.approx(((scores > 0.5) == good).mean())
    true_positives = ((scores > 0.5) & good).sum()
    assert report.by_label["good"]["precision"] == pytest.approx(true_positives / (scores > 0.5).sum())
    assert report.by_label["good"]["recall"] == pytest.approx(true_positives / good.sum())
    assert report.confusion == [[int(((scores <= 0.5) & ~good).sum()), int(((scores > 0.5) & ~good).sum())],
                                [int(((scores <= 0.5) & good).sum()), int(true_positives)]]  # fmt: skip
    for row in report.thresholds:
        above = scores >= row["threshold"]
        assert row["share"] == pytest.approx(above.mean())
        assert row["recall"] == pytest.approx((above & good).sum() / good.sum())
    wrong = {row.text for row, score, label in zip(held_out, scores, good, strict=True) if (score > 0.5) != label}
    assert {error["text"] for error in report.errors} == wrong
    text = (tmp_path / "out" / "report.txt").read_text()
    assert f"accuracy {report.accuracy:.4f}" in text and "score >=" in text and "zh" in text


@given(st.lists(st.tuples(st.sampled_from([0.0, 0.25, 0.5, 0.75, 1.0]), st.booleans()), min_size=2, max_size=12))
def test_roc_auc_is_the_share_of_pairs_in_order(pairs: list[tuple[float, bool]]) -> None:
    scores, labels = np.array([score for score, _ in pairs]), np.array([label for _, label in pairs])
    good, bad = scores[labels], scores[~labels]
    if not len(good) or not len(bad):
        assert np.isnan(roc_auc(scores, labels))
        return
    wins = sum((a > b) + 0.5 * (a == b) for a in good for b in bad)
    assert roc_auc(scores, labels) == pytest.approx(wins / (len(good) * len(bad)))


def test_calibration_error_of_known_cases() -> None:
    half = np.full(10, 0.5)
    assert calibration_error(half, np.arange(10) < 5) == pytest.approx(0.0)
    assert calibration_error(half, np.arange(10) < 10) == pytest.approx(0.5)
    assert calibration_error(np.array([0.95, 0.15]), np.array([True, False])) == pytest.approx(0.1)
    assert calibration_error(np.array([1.0, 0.0]), np.array([True, False])) == 0.0


def test_a_split_keeps_groups_together_and_texts_in_their_part() -> None:
    made = [Labelled(f"text {i}", "ab"[i % 2], group=f"g{i // 4}") for i in range(800)]
    parts = split(made)
    groups = [{row.group for row in part} for part in (parts.train, parts.calibration, parts.held_out)]
    assert not groups[0] & groups[1] and not groups[0] & groups[2] and not groups[1] & groups[2]
    assert 40 < len(parts.held_out) < 130 and 40 < len(parts.calibration) < 130
    fewer = split(made[:400])
    assert {row.text for row in fewer.held_out} <= {row.text for row in parts.held_out}
    assert sorted(row.text for part in (parts.train, parts.calibration, parts.held_out) for row in part) == sorted(
        row.text for row in made
    )


def test_every_part_has_every_label() -> None:
    made = [Labelled(f"common {i}", "a") for i in range(500)] + [Labelled(f"rare {i}", "b") for i in range(20)]
    for seed in range(10):
        parts = split(made, seed)
        for part in (parts.train, parts.calibration, parts.held_out):
            assert {row.label for row in part} == {"a", "b"}


def test_labelled_files(tmp_path: Path) -> None:
    path = tmp_path / "l.jsonl.gz"
    made = [Labelled("text 一", "1", "zh", "g", "i"), Labelled("two", "no")]
    write_labelled(path, made)
    assert read_labelled(path) == made
    path = tmp_path / "l.jsonl"
    path.write_text('{"text": "a", "label": 1, "more": 2}\n\n{"text": "b", "label": null}\n')
    assert [row.label for row in read_labelled(path, unlabelled=True)] == ["1"]
    with pytest.raises(DataError, match="line 3"):
        read_labelled(path)
    for line in ("[]", "{", '{"text": 1, "label": "a"}', '{"text": "a"}', '{"text": "a", "label": true}'):
        path.write_text(line)
        with pytest.raises(DataError, match="line 1"):
            read_labelled(path)
    with pytest.raises(DataError, match="no labelled texts"):
        read_labelled(tmp_path / "missing")


def test_too_little_to_train_on() -> None:
    with pytest.raises(DataError, match="only 10 texts are labelled 'bad'"):
        train_on(rows(20), SMALL)
    with pytest.raises(DataError, match="1 of them"):
        train_on([row for row in rows() if row.label == "bad"], SMALL)
    with pytest.raises(DataError, match="'best'"):
        train_on(rows(), TrainSettings("best"))
