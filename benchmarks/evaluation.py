"""`python -m benchmarks evaluation`: our evaluation against lm-evaluation-harness, same model, rows and prompts.

The model has random weights: what it answers does not matter, but both must find the same choices the most likely ones
and write the same answers. Its questions are made of the texts of Python's own help pages.

What bounds likelihoods of 5-shot prompts: the examples, 5/6 of all tokens, are the same for every question of a
subject, and the four choices differ in one token. A harness that runs each prompt whole computes 6 times what is needed
with one forward a question, 24 times with one a choice.

The third group is what the sandbox adds to a bare Python process, for verdicts by programs.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.harness import Row, installed, missing, throughput
from puyulm.engine.load import load_chat_model
from puyulm.eval.benchmark import Benchmark, Generation, Likelihood, Question, Record, Sample, Verdict
from puyulm.eval.engine_model import EngineModel
from puyulm.eval.extract.numbers import last_number
from puyulm.eval.run import run_task
from puyulm.eval.source import Dataset, SourceContext
from puyulm.eval.task import Setting, make_task

PEER, PACKAGE = "lm-evaluation-harness", "lm_eval[hf]>=0.4.9"
LETTERS = "ABCD"
NEW_TOKENS = 64
STARTS = 20
BATCH = 16  # of the peer; larger ones were not faster here


@dataclass(frozen=True)
class Size:
    """How much is asked."""

    hidden: int = 512
    layers: int = 8
    choices: int = 80
    answers: int = 32
    pairs: int = 5


def run(only: str = "", smoke: bool = False) -> list[Row]:
    """Rows of both comparisons."""
    size = Size(hidden=64, layers=2, choices=8, answers=4, pairs=1) if smoke else Size()
    groups: dict[str, Callable[[Path, Size], list[Row]]] = {
        "likelihood": _likelihood_rows, "generation": _answer_rows, "sandbox": _sandbox_rows,
    }  # fmt: skip
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["HF_DATASETS_CACHE"] = str(folder / "cache")
        os.environ["HF_HUB_OFFLINE"] = "1"
        if installed("lm_eval") and installed("transformers"):
            _write_rows(folder, size)
            _write_model(folder / "model", size)
        for group, measure in groups.items():
            if only in group:
                rows += measure(folder, size)
    return rows


def _likelihood_rows(folder: Path, size: Size) -> list[Row]:
    name = f"5-shot likelihood, {size.choices} questions of 4 choices"
    if not (installed("lm_eval") and installed("transformers")):
        return [missing(name, "rows/s", PACKAGE, 5.0)]
    ours, theirs = _Ours(folder, CHOICES, Setting(mode="likelihood", shots=5)), _Theirs(folder, _their_choices(folder))
    row = throughput(name, "rows/s", size.choices, ours, theirs, PEER, 5.0, size.pairs)
    chosen = {sample.id: sample.extra["chosen"] for sample in ours.samples}
    return [row, _agreement("same choice", chosen, {
        str(one["doc_id"]): max(range(4), key=lambda i: one["filtered_resps"][i][0]) for one in theirs.samples
    })]  # fmt: skip


def _answer_rows(folder: Path, size: Size) -> list[Row]:
    name = f"4-shot generation, {size.answers} answers of {NEW_TOKENS} tokens"
    if not (installed("lm_eval") and installed("transformers")):
        return [missing(name, "rows/s", PACKAGE, 3.0)]
    ours, theirs = _Ours(folder, ANSWERS, Setting(mode="plain", shots=4)), _Theirs(folder, _their_answers(folder))
    row = throughput(name, "rows/s", size.answers, ours, theirs, PEER, 3.0, size.pairs)
    written = {sample.id: sample.outputs[0] for sample in ours.samples}
    return [row, _agreement("same answer", written, {str(one["doc_id"]): one["resps"][0][0] for one in theirs.samples})]


def _sandbox_rows(folder: Path, size: Size) -> list[Row]:
    from puyulm.sandbox import run_python

    name = "one program in the sandbox"
    if shutil.which("bwrap") is None:
        return [Row(name, "starts/s", None, None, "apt-get install bubblewrap", None, None)]

    def ours() -> None:
        for _ in range(STARTS):
            assert run_python("pass").status == "ok"

    def bare() -> None:
        for _ in range(STARTS):
            subprocess.run([sys.executable, "-I", "-S", "-c", "pass"], check=True)

    return [throughput(name, "starts/s", STARTS, ours, bare, "python -I -S, without one", None, size.pairs)]


def _agreement(what: str, ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Row:
    same = sum(ours[id] == theirs[id] for id in theirs) / len(theirs)
    return Row(what, "share", same, 1.0, PEER, same, None)


class _Ours:
    """One whole run, rows read from disk, nothing kept from the last one."""

    def __init__(self, folder: Path, benchmark: Benchmark, setting: Setting) -> None:
        self._model = EngineModel(load_chat_model(str(folder / "model"), needs_chat_format=False), "random")
        self._folder, self._benchmark, self._setting = folder, benchmark, setting
        self.samples: Sequence[Sample] = ()

    def __call__(self) -> None:
        self._model.engine.weights_changed()  # forgets the prefixes
        task = make_task(self._benchmark, self._setting, SourceContext(data_dir=self._folder, offline=True))
        with tempfile.TemporaryDirectory() as out:
            self.samples = list(run_task(task, self._model, Path(out)).values())


class _Theirs:
    """The same by the peer. Its model is loaded once, too."""

    def __init__(self, folder: Path, task: Mapping[str, Any]) -> None:
        from lm_eval.models.huggingface import HFLM

        self._model = HFLM(pretrained=str(folder / "model"), dtype="float32", device="cpu", batch_size=BATCH)
        self._task = task
        self.samples: Sequence[Mapping[str, Any]] = ()

    def __call__(self) -> None:
        import lm_eval

        found = lm_eval.simple_evaluate(self._model, tasks=[dict(self._task)], bootstrap_iters=0, verbosity="ERROR")
        [self.samples] = found["samples"].values()


# What is asked: both sides read the same files and write the same prompts


def _question(record: Record, subset: str, number: int) -> Question:
    return Question(str(number), record["question"], record["answer"], choices=tuple(record.get("choices", ())))


def _verdict(question: Question, outputs: Sequence[Any]) -> Verdict:
    answer = last_number(outputs[-1].text)
    return Verdict({"accuracy": float(answer == str(question.target))}, answer)


_FILES = Dataset(files={"test": ["test.jsonl"], "dev": ["dev.jsonl"]})

CHOICES = Benchmark(
    name="choices", title="choices", dimension="exam", source=_FILES, read=_question, examples="dev",
    modes={"likelihood": Likelihood(
        header=lambda question: "The following are multiple choice questions (with answers).",
        context=lambda question: question.text + "\n" + "".join(
            f"{letter}. {text}\n" for letter, text in zip(LETTERS, question.choices, strict=True)
        ) + "Answer:",
        answers=lambda question: [f" {letter}" for letter in LETTERS],
        right=lambda question: int(question.target),
    )},
)  # fmt: skip

ANSWERS = replace(
    CHOICES, name="answers", modes={"plain": Generation(
        prompt=lambda question: f"Question: {question.text}\nAnswer:", solution=lambda question: f" {question.target}",
        verdict=_verdict, chat=False, stop=("Question:",), max_new_tokens=NEW_TOKENS,
    )},
)  # fmt: skip


def _their_choices(folder: Path) -> dict[str, Any]:
    return _their_task(folder, "choices", 5) | {
        "description": "The following are multiple choice questions (with answers).\n\n",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}\n"
        + "".join(f"{letter}. {{{{choices[{place}]}}}}\n" for place, letter in enumerate(LETTERS))
        + "Answer:",
        "doc_to_choice": list(LETTERS),
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }


def _their_answers(folder: Path) -> dict[str, Any]:
    return _their_task(folder, "answers", 4) | {
        "output_type": "generate_until",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["Question:"], "max_gen_toks": NEW_TOKENS, "do_sample": False},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }


def _their_task(folder: Path, name: str, shots: int) -> dict[str, Any]:
    files = {role: str(folder / name / f"{role}.jsonl") for role in ("test", "dev")}
    return {
        "task": name, "dataset_path": "json", "dataset_kwargs": {"data_files": files}, "test_split": "test",
        "fewshot_split": "dev", "num_fewshot": shots, "fewshot_config": {"sampler": "first_n"},
    }  # fmt: skip


# The rows and the model


def _write_rows(folder: Path, size: Size) -> None:
    draw, sentences = random.Random(0), _sentences()
    for name, count in (("choices", size.choices), ("answers", size.answers)):
        (folder / name).mkdir()
        for role, rows in (("test", count), ("dev", 5)):
            lines = []
            for _ in range(rows):
                row: dict[str, Any] = {"question": " ".join(draw.sample(sentences, 4))[:500].strip()}
                if name == "choices":
                    row |= {"choices": [one[:60].strip() for one in draw.sample(sentences, 4)]}
                lines.append(json.dumps(row | {"answer": draw.randrange(4)}))
            (folder / name / f"{role}.jsonl").write_text("\n".join(lines) + "\n")


def _sentences() -> list[str]:
    from pydoc_data.topics import topics

    text = re.sub(r"[^\x20-\x7e]+", " ", " ".join(topics[name] for name in sorted(topics)))
    return [one for one in re.split(r"(?<=\.) +", re.sub(r" +", " ", text)) if 40 < len(one) < 200]


def _write_model(folder: Path, size: Size) -> None:
    """A Llama with random weights and a tokenizer, as transformers reads and writes them."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=8000, special_tokens=["<s>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(_sentences(), trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>").save_pretrained(folder)
    torch.manual_seed(0)
    heads, wide = max(size.hidden // 64, 1), size.hidden * 8 // 3 // 32 * 32
    config = LlamaConfig(
        vocab_size=tokenizer.get_vocab_size(), hidden_size=size.hidden, intermediate_size=wide,
        num_hidden_layers=size.layers, num_attention_heads=heads, num_key_value_heads=heads, bos_token_id=0,
        max_position_embeddings=4096, eos_token_id=1, initializer_range=0.1,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
