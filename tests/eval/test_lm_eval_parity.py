"""Row by row the same as lm-evaluation-harness: choices, log-likelihoods, and what GSM8K's filters take.

Its task definitions are read from the installed package; the model is a small random one, loaded from one folder.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval")
pytest.importorskip("transformers")

import torch

from puyulm.engine.config import EngineConfig
from puyulm.engine.load import load_chat_model
from puyulm.eval.benchmark import Benchmark, Generation, Question
from puyulm.eval.benchmarks import arc, cmmlu, gsm8k, hellaswag, mmlu, piqa, winogrande
from puyulm.eval.engine_model import EngineModel
from puyulm.eval.extract.numbers import flexible_number, marked_number
from puyulm.eval.model import Output
from puyulm.eval.run import run_task
from puyulm.eval.source import SourceContext
from tests.eval.benchmarks.choice_files import write_csv, write_jsonl
from tests.eval.fakes import task_of
from tests.text.small_tokenizers import small_tokenizer

Row = dict[str, Any]
WORDS = [
    "the",
    "old",
    "man",
    "saw",
    "a",
    "small",
    "boat",
    "near",
    "上海",
    "and",
    "it",
    "was",
    "12",
    "feet",
    "long,",
    "so",
    "he",
    "sold",
    "its",
    "sail",
    "for",
    "30",
    "coins",
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of random weights, large enough that choices differ clearly, in transformers' own layout."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("llama")
    tokenizer = small_tokenizer(folder, ())
    # Words are split as tokenizers of today do. Where a token spans the end of the context, the harness encodes the
    # context on its own and loses characters; we do not.
    file = folder / "tokenizer.json"
    settings = json.loads(file.read_text("utf-8"))
    settings["pre_tokenizer"]["use_regex"] = True
    file.write_text(json.dumps(settings), "utf-8")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=48, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=2048, initializer_range=0.3,
        bos_token_id=0, eos_token_id=1, tie_word_embeddings=False,
    )  # fmt: skip
    LlamaForCausalLM(config).to(torch.float32).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def ours(checkpoint: Path) -> Iterator[EngineModel]:
    chat = load_chat_model(str(checkpoint), device="cpu", needs_chat_format=False)
    model = EngineModel(chat, "tiny", EngineConfig())
    yield model
    model.close()


@pytest.fixture(scope="module")
def theirs(checkpoint: Path) -> Any:
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    return HFLM(pretrained=model, tokenizer=AutoTokenizer.from_pretrained(checkpoint), batch_size=4, device="cpu")


def words(seed: int, count: int) -> str:
    return " ".join(WORDS[(seed * 7 + place * (seed % 5 + 1)) % len(WORDS)] for place in range(count))


def lettered_rows(count: int) -> list[Row]:
    return [
        {"question": f" {words(n, 6)}?", "choices": [words(n + i, i + 2) for i in range(4)], "answer": n % 4}
        for n in range(count)
    ]


def chinese_rows(count: int) -> list[Row]:
    return [
        {
            "Question": f"{words(n, 4)}上海？",
            **{letter: words(n + i, 2) for i, letter in enumerate("ABCD")},
            "Answer": "ABCD"[n % 4],
        }
        for n in range(count)
    ]


def arc_rows(count: int) -> list[Row]:
    labels = [list("ABCD"), list("1234"), list("ABC")]
    return [
        {
            "id": f"q{n}",
            "question": f"{words(n, 7)}?",
            "answerKey": labels[n % 3][n % 3],
            "choices": {
                "text": [words(n + i, (n + i) % 3 + 1) for i in range(len(labels[n % 3]))],
                "label": labels[n % 3],
            },
        }
        for n in range(count)
    ]


def story_rows(count: int) -> list[Row]:
    endings = ["[step] {} and more", "{}  then [substeps] {}", "{}", "it {} [title] the end 上海"]
    return [
        {
            "activity_label": "Sailing",
            "ctx_a": f"[header] How to sail [title] {words(n, 6)}.",
            "ctx_b": words(n + 1, n % 3),
            "endings": [one.format(words(n + i, 3), "so") for i, one in enumerate(endings)],
            "label": str(n % 4),
        }
        for n in range(count)
    ]


def blank_rows(count: int) -> list[Row]:
    return [
        {
            "sentence": f"{words(n, 5)} because _ was  {words(n + 2, 3)}.",
            "option1": words(n, 1),
            "option2": words(n + 3, 2),
            "answer": str(n % 2 + 1),
        }
        for n in range(count)
    ]


def goal_rows(count: int) -> list[Row]:
    return [
        {"goal": words(n, 5), "sol1": words(n, 3), "sol2": words(n + 2, 2 + n % 3), "label": n % 2}
        for n in range(count)
    ]


@dataclass(frozen=True)
class Case:
    """A benchmark of ours, the harness's task file, and rows as the hub has them.

    Attributes:
        writes: Puts the rows where ours reads them, in the official form.
        metrics: Ours -> the harness's.
        subset: Ours.
    """

    benchmark: Benchmark
    task: str
    rows: Callable[[int], list[Row]]
    writes: Callable[[Path, Sequence[Row]], None]
    metrics: dict[str, str]
    subset: str = ""
    shots: int = 0


def write_mmlu(folder: Path, rows: Sequence[Row]) -> None:
    for role, own in (("test", rows), ("dev", lettered_rows(30)[-5:])):
        table = [[row["question"], *row["choices"], "ABCD"[row["answer"]]] for row in own]
        write_csv(folder / "mmlu" / role / f"anatomy_{role}.csv", table)


def write_arc(folder: Path, rows: Sequence[Row]) -> None:
    write_jsonl(folder / "arc" / "ARC-Easy-Test.jsonl", rows)


ARC_EASY = arc.BENCHMARKS[1]
SUM = {"accuracy": "acc"}
BOTH = {"accuracy": "acc", "normalised": "acc_norm"}
CASES = [
    Case(mmlu.BENCHMARK, "mmlu/default/mmlu_anatomy.yaml", lettered_rows, write_mmlu, SUM, "anatomy", 3),
    Case(mmlu.BENCHMARK, "mmlu/default/mmlu_anatomy.yaml", lettered_rows, write_mmlu, SUM, "anatomy"),
    Case(ARC_EASY, "arc/arc_easy.yaml", arc_rows, write_arc, BOTH),
    Case(
        hellaswag.BENCHMARK, "hellaswag/hellaswag.yaml", story_rows,
        lambda folder, rows: write_jsonl(folder / "hellaswag" / "hellaswag_val.jsonl", rows),
        {"accuracy": "acc_norm", "unnormalised": "acc"},
    ),
    Case(
        winogrande.BENCHMARK, "winogrande/default.yaml", blank_rows,
        lambda folder, rows: write_jsonl(folder / "winogrande" / "dev.jsonl", rows), SUM,
    ),
    Case(
        piqa.BENCHMARK, "piqa/piqa.yaml", goal_rows,
        lambda folder, rows: write_jsonl(folder / "piqa" / "valid.jsonl", rows), BOTH,
    ),
]  # fmt: skip


def harness_task(case: Case, rows: Sequence[Row]) -> Any:
    """The installed package's task, over these rows."""
    import lm_eval.tasks
    from datasets import Dataset, DatasetDict
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.tasks._yaml_loader import load_yaml

    config = load_yaml(Path(lm_eval.tasks.__file__).parent / case.task, resolve_func=True)
    splits = {name: Dataset.from_list(list(rows)) for name in ("train", "test", "validation")}
    splits["dev"] = Dataset.from_list(case.rows(30)[-5:])
    known = {"task", "description", "output_type", "test_split", "validation_split", "fewshot_split", "fewshot_config",
             "process_docs", "doc_to_text", "doc_to_target", "doc_to_choice", "metric_list"}  # fmt: skip
    kept = {name: value for name, value in config.items() if name in known}
    return ConfigurableTask(
        config={**kept, "custom_dataset": lambda **_: DatasetDict(splits), "num_fewshot": case.shots}
    )


def harness_results(task: Any, model: Any) -> list[tuple[list[float], dict[str, float]]]:
    """Log-likelihoods of the choices, and scores, of each row."""
    task.build_all_requests()
    answers = model.loglikelihood(task.instances, disable_tqdm=True)
    by_row: dict[int, list[tuple[int, tuple[float, bool]]]] = {}
    for instance, answer in zip(task.instances, answers, strict=True):
        by_row.setdefault(instance.doc_id, []).append((instance.idx, answer))
    found = []
    for number, doc in enumerate(task.eval_docs):
        results = [answer for _, answer in sorted(by_row[number])]
        found.append(([one for one, _ in results], task.process_results(doc, results)))
    return found


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.benchmark.name}-{case.shots}")
def test_likelihoods_are_the_harness_s(case: Case, ours: EngineModel, theirs: Any, tmp_path: Path) -> None:
    rows = case.rows(24)
    case.writes(tmp_path, rows)
    context = SourceContext(data_dir=tmp_path, offline=True)
    subsets = [case.subset] if case.subset else []
    task = task_of(case.benchmark, context, "likelihood", shots=case.shots, subsets=subsets)
    samples = list(run_task(task, ours, tmp_path / "samples").values())
    expected = harness_results(harness_task(case, rows), theirs)
    assert len(samples) == len(expected) == 24
    for sample, (likelihoods, scores) in zip(samples, expected, strict=True):
        assert [float(one) for one in sample.outputs] == pytest.approx(likelihoods, abs=1e-4)
        assert {name: sample.scores[name] for name in case.metrics} == {
            name: float(scores[harness]) for name, harness in case.metrics.items()
        }
    assert len({sample.extra["chosen"] for sample in samples}) > 1  # the model does choose


def test_chinese_prompts_differ_only_in_words(tmp_path: Path) -> None:
    """CMMLU follows OpenCompass: the harness has the same header and choices, another answer marker and separator."""
    rows = chinese_rows(6)
    for role, own in (("test", rows), ("dev", chinese_rows(30)[-5:])):
        table = [[n, *row.values()] for n, row in enumerate(own)]
        write_csv(tmp_path / "cmmlu" / role / "anatomy.csv", table, ["", *rows[0]])
    case = Case(cmmlu.BENCHMARK, "cmmlu/cmmlu_anatomy.yaml", chinese_rows, write_mmlu, {}, "anatomy", 2)
    theirs = harness_task(case, rows)
    context = theirs.fewshot_context(theirs.eval_docs[3], 2)
    ours = task_of(cmmlu.BENCHMARK, SourceContext(data_dir=tmp_path), "likelihood", shots=2, subsets=["anatomy"])
    shown = ours.shown(ours.questions[3]).split("\n-> ")[0]
    assert shown.replace("题目：", "").replace("答案是: ", "答案：") == re.sub("答案： ", "答案：", context).replace(
        "\n\n", "\n"
    )


ANSWERS = [
    ("She has 3 + 4 = 7 eggs.\n#### 7", "7"),
    ("The answer is 18.", "18"),
    ("The total is $1,234.", "1234"),
    ("The answer is 18", "19"),
    ("#### 1,000\nThat is 1000.", "1000"),
    ("#### -5", "-5"),
    ("I do not know.", "3"),
    ("", "3"),
    ("He pays $20 and gets 4 back, so 16.", "16"),
    ("#### 42 apples", "42"),
    ("####42", "42"),
    ("It is 7\n#### 8", "7"),
]


def test_filters_of_gsm8k_take_the_same_numbers() -> None:
    """Both filters on made outputs; and our verdict, the last number, is that of "flexible-extract" on all of them."""
    import lm_eval.tasks
    from lm_eval.filters import build_filter_ensemble
    from lm_eval.tasks._yaml_loader import load_yaml

    config = load_yaml(Path(lm_eval.tasks.__file__).parent / "gsm8k" / "gsm8k.yaml", resolve_func=True)
    rules = [rule for metric in config["metric_list"] for rule in metric["regexes_to_ignore"]]

    def bare(text: str) -> str:
        for rule in rules:
            text = re.sub(rule, "", text)
        return text

    mine = {"strict-match": marked_number, "flexible-extract": flexible_number}
    for one in config["filter_list"]:
        steps = [[step["function"], {k: v for k, v in step.items() if k != "function"}] for step in one["filter"]]
        taken = _filtered(build_filter_ensemble(one["name"], steps), [text for text, _ in ANSWERS])
        for (text, _), theirs in zip(ANSWERS, taken, strict=True):
            assert (mine[one["name"]](text) or "[invalid]") == bare(theirs), (one["name"], text)
    for text, target in ANSWERS:
        mode = gsm8k.BENCHMARK.mode("chat")
        assert isinstance(mode, Generation) and mode.verdict is not None
        right = mode.verdict(Question("1", "q", target), [Output(text=text)])
        assert right.scores["accuracy"] == float(flexible_number(text) == target), text


def _filtered(ensemble: Any, texts: Sequence[str]) -> list[str]:
    from lm_eval.api.instance import Instance

    instances = [
        Instance(
            request_type="generate_until", doc={}, arguments=("", {}), idx=0, metadata=("gsm8k", n, 1), resps=[text]
        )
        for n, text in enumerate(texts)
    ]
    ensemble.apply(instances)
    return [instance.filtered_resps[ensemble.name] for instance in instances]
