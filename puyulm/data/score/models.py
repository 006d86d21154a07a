"""Scorers that others trained: fastText files and Hugging Face sequence classifiers, from local files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from puyulm.data.extras import needs
from puyulm.data.score.linear import Floats
from puyulm.errors import DataError


class FastTextScorer:
    """A fastText classifier (.bin or .ftz).

    Args:
        path: The model.
        label: The class that is the score, with or without `__label__`.

    Raises:
        DataError: fasttext-predict is not installed, the file is no model, or it has no such label.
    """

    def __init__(self, path: Path, label: str) -> None:
        if not path.is_file():
            raise DataError(f"no fastText model at {path}: check the path in the recipe")
        try:
            self._model: Any = needs("fasttext", "fasttext-predict", extra="").load_model(str(path))
        except (ValueError, RuntimeError, MemoryError) as error:
            raise DataError(f"{path} is no fastText model ({str(error).splitlines()[0]})") from None
        known = sorted(name for name, _ in self._predict("a"))
        self._label = label if label.startswith("__label__") else f"__label__{label}"
        if known and self._label not in known:
            names = ", ".join(name.removeprefix("__label__") for name in known[:20])
            raise DataError(f"{path} has no label {label!r}: it knows {names}")

    def score(self, texts: Sequence[str]) -> Floats:
        """The label's probability for each text, `[N]`; 0 for an empty text."""
        rows = [dict(self._predict(text)).get(self._label, 0.0) for text in texts]
        return np.clip(np.array(rows, dtype=np.float64), 0.0, 1.0)  # fastText's probabilities pass 1 by 1e-5

    def _predict(self, text: str) -> list[tuple[str, float]]:
        line = " ".join(text.split()).encode("utf-8", "replace").decode()  # a line end would end the text
        labels, probabilities = self._model.predict(line, k=-1, threshold=-1.0)
        return list(zip(labels, (float(p) for p in probabilities), strict=True))


class HuggingFaceScorer:
    """A sequence classifier in a folder, run on a GPU if there is one.

    With several outputs the score is a softmax (or a sigmoid, where the model's problem type is
    `multi_label_classification`); with one it is a sigmoid, or the value itself cut to 0..1 for `regression`.

    Args:
        path: The folder, as `save_pretrained` writes it, with its tokenizer.
        label: The class that is the score, by the model's `id2label`; may be empty for one output.
        batch_size: Texts at once; those of like length go together.

    Raises:
        DataError: transformers is not installed, the folder holds no classifier, or it has no such label.
    """

    def __init__(self, path: Path, label: str, batch_size: int) -> None:
        transformers = needs("transformers", "transformers", extra="")
        if not (path / "config.json").is_file():
            raise DataError(f"no Hugging Face model at {path}: give the folder that holds its config.json")
        try:
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(path, local_files_only=True)
            model = transformers.AutoModelForSequenceClassification.from_pretrained(path, local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            raise DataError(f"{path} cannot be loaded as a classifier ({str(error).splitlines()[0]})") from None
        import torch

        self._torch: Any = torch
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._model: Any = model.to(self._device).eval()
        self._batch_size = batch_size
        self._column = self._column_of(label, path)
        limit = getattr(model.config, "max_position_embeddings", None) or 512
        limit -= 2 if "roberta" in model.config.model_type else 0  # whose positions begin at 2
        self._max_tokens = min(limit, self._tokenizer.model_max_length)

    def score(self, texts: Sequence[str]) -> Floats:
        """The label's probability for each text, `[N]`."""
        encoded = (
            self._tokenizer(list(texts), truncation=True, max_length=self._max_tokens)["input_ids"] if texts else []
        )
        order = sorted(range(len(texts)), key=lambda i: (len(encoded[i]), i))
        scores = np.empty(len(texts))
        for start in range(0, len(order), self._batch_size):
            batch = order[start : start + self._batch_size]
            inputs = self._tokenizer.pad({"input_ids": [encoded[i] for i in batch]}, return_tensors="pt")
            with self._torch.inference_mode():
                logits = self._model(**inputs.to(self._device)).logits.float().cpu().numpy().astype(np.float64)
            scores[batch] = self._probabilities(logits)[:, self._column]
        return scores

    def _probabilities(self, logits: Floats) -> Floats:
        kind = self._model.config.problem_type
        if logits.shape[1] == 1 and kind == "regression":
            return np.clip(logits, 0.0, 1.0)
        if logits.shape[1] == 1 or kind == "multi_label_classification":
            return np.asarray(1.0 / (1.0 + np.exp(-logits)))
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        return np.asarray(powers / powers.sum(axis=1, keepdims=True))

    def _column_of(self, label: str, path: Path) -> int:
        names = {str(name): int(number) for number, name in self._model.config.id2label.items()}
        if not label and len(names) == 1:
            return 0
        if label not in names:
            raise DataError(f"{path} has no label {label!r}: it knows {', '.join(sorted(names))}")
        return names[label]
