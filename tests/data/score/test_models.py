"""fastText files and Hugging Face classifiers, made here by hand so that their answers are known."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from puyulm.data.score.models import FastTextScorer, HuggingFaceScorer
from puyulm.errors import DataError

WORDS = ["buy", "now", "river", "词", "</s>"]  # the last stands for the end of the line, and is in every text
LABELS = ["__label__ad", "__label__ok", "__label__odd"]


def write_fasttext(path: Path, words: np.ndarray, outputs: np.ndarray) -> None:
    """A supervised model with a softmax, without subwords: the layout of fastText's version 12."""
    dim = words.shape[1]
    entries = [(word, 10, 0) for word in WORDS] + [(label, 10, 1) for label in LABELS]
    with open(path, "wb") as file:
        file.write(struct.pack("<ii", 793712314, 12))
        file.write(struct.pack("<12i", dim, 5, 5, 1, 5, 1, 3, 3, 0, 0, 0, 100))  # loss 3: softmax, model 3: supervised
        file.write(struct.pack("<d", 1e-4))
        file.write(struct.pack("<iiiqq", len(entries), len(WORDS), len(LABELS), 100, -1))
        for word, count, kind in entries:
            file.write(word.encode() + b"\0" + struct.pack("<qb", count, kind))
        for matrix in (words, outputs):
            file.write(struct.pack("<?", False))  # not quantised
            file.write(struct.pack("<qq", *matrix.shape) + matrix.astype("<f4").tobytes())


@pytest.fixture
def matrices() -> tuple[np.ndarray, np.ndarray]:
    pytest.importorskip("fasttext", reason="pip install fasttext-predict")
    generator = np.random.default_rng(0)
    return generator.normal(size=(len(WORDS), 4)), generator.normal(size=(len(LABELS), 4))


def test_fasttext_gives_the_softmax_of_mean_vectors(tmp_path: Path, matrices: tuple[np.ndarray, np.ndarray]) -> None:
    path = tmp_path / "model.bin"
    write_fasttext(path, *matrices)
    words, outputs = matrices
    texts = {
        "buy now": [0, 1],
        "buy\nnow": [0, 1],
        "river": [2],
        "buy buy river 词 unknown \ud800": [0, 0, 2, 3],
        "": [],
    }
    for number, label in enumerate(["ad", "ok", "__label__odd"]):
        scores = FastTextScorer(path, label).score(list(texts))
        for score, rows in zip(scores, texts.values(), strict=True):
            powers = np.exp(outputs @ words[[*rows, 4]].mean(axis=0))
            assert score == pytest.approx(powers[number] / powers.sum(), abs=2e-3)  # fastText's exp is a table
    assert ((scores >= 0) & (scores <= 1)).all()


def test_files_that_are_no_fasttext_models(tmp_path: Path, matrices: tuple[np.ndarray, np.ndarray]) -> None:
    with pytest.raises(DataError, match="no fastText model at"):
        FastTextScorer(tmp_path / "missing", "ad")
    (tmp_path / "text").write_text("no model at all, only text")
    with pytest.raises(DataError, match="is no fastText model"):
        FastTextScorer(tmp_path / "text", "ad")
    write_fasttext(tmp_path / "model.bin", *matrices)
    with pytest.raises(DataError, match="no label 'spam': it knows ad, odd, ok"):
        FastTextScorer(tmp_path / "model.bin", "spam")


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny BERT with random weights and a vocabulary of letters."""
    transformers = pytest.importorskip("transformers")
    import torch
    from tokenizers import BertWordPieceTokenizer

    folder = tmp_path_factory.mktemp("bert")
    letters = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghij", *(f"##{c}" for c in "abcdefghij")]
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(letters), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=24, num_labels=3, id2label={0: "bad", 1: "fair", 2: "good"}, initializer_range=0.5,
    )  # fmt: skip
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    pieces = BertWordPieceTokenizer({letter: i for i, letter in enumerate(letters)})
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=pieces._tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        model_max_length=24,
    ).save_pretrained(folder)  # fmt: skip
    return folder


TEXTS = ["abc def", "a", "", "jihgf edcba " * 20, "abcj", "cab"]


def test_a_classifier_gives_the_same_alone_and_in_a_batch(classifier: Path) -> None:
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(classifier)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(classifier).eval()
    expected = []
    for text in TEXTS:
        inputs = tokenizer(text, truncation=True, max_length=24, return_tensors="pt")
        with torch.inference_mode():
            expected.append(model(**inputs).logits.softmax(-1)[0].tolist())
    for number, label in enumerate(["bad", "fair", "good"]):
        for batch_size in (1, 4):
            scores = HuggingFaceScorer(classifier, label, batch_size).score(TEXTS)
            assert scores == pytest.approx([row[number] for row in expected], abs=1e-5)
    assert np.ptp(scores) > 0.01
    assert HuggingFaceScorer(classifier, "good", 4).score([]).tolist() == []


def test_heads_of_other_kinds(classifier: Path, tmp_path: Path) -> None:
    import torch
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(classifier)
    inputs = tokenizer("abc", return_tensors="pt")
    for kind, labels, function in (
        ("multi_label_classification", 2, torch.sigmoid),
        ("regression", 1, lambda x: x.clamp(0, 1)),
        (None, 1, torch.sigmoid),
    ):
        folder = tmp_path / f"{kind}"
        model = transformers.AutoModelForSequenceClassification.from_pretrained(
            classifier, num_labels=labels, problem_type=kind, ignore_mismatched_sizes=True
        )
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        with torch.inference_mode():
            expected = function(model.eval()(**inputs).logits)[0, -1].item()
        scorer = HuggingFaceScorer(folder, "LABEL_1" if labels == 2 else "", 2)
        assert scorer.score(["abc"]) == pytest.approx([expected], abs=1e-5)


def test_folders_that_are_no_classifiers(classifier: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no Hugging Face model"):
        HuggingFaceScorer(tmp_path, "a", 1)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(DataError, match="cannot be loaded"):
        HuggingFaceScorer(tmp_path, "a", 1)
    with pytest.raises(DataError, match="it knows bad, fair, good"):
        HuggingFaceScorer(classifier, "", 1)
