"""Published scores, to be printed beside ours.

Sources: the InternLM2 technical report (arXiv 2403.17297, tables 5 to 17), the model cards of InternLM2.5, InternLM3
and SmolLM2, and RULER's own table. Scores are as published, in percent unless the benchmark counts otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePath

# Models in the columns, benchmarks in the rows; None where nothing was published.
_REPORT_MODELS = (
    "internlm2-base-7b", "internlm2-7b", "internlm2-base-20b", "internlm2-20b",
    "internlm2-chat-7b-sft", "internlm2-chat-7b", "internlm2-chat-20b-sft", "internlm2-chat-20b",
)  # fmt: skip
_REPORT: Mapping[str, tuple[float | None, ...]] = {
    "mmlu": (64.0, 65.8, None, 67.7, 63.8, 63.7, 66.5, 66.5),
    "cmmlu": (63.0, 66.3, None, 68.7, 63.2, 63.0, 65.3, 65.1),
    "ceval": (60.7, 65.8, None, 68.5, 60.9, 60.8, 63.7, 63.0),
    "agieval": (38.7, 49.9, None, 53.0, 49.0, 47.2, 51.2, 50.3),
    "gaokao": (40.7, 58.6, None, 57.1, 57.3, 58.0, 58.6, 58.3),
    "triviaqa": (57.0, 58.9, 63.7, 60.1, 51.4, 50.8, 55.5, 53.9),
    "nq": (28.4, 42.2, 30.3, 44.6, 24.5, 24.1, 27.8, 25.9),
    "winogrande": (74.6, 84.7, 76.2, 85.2, 65.8, 65.8, 75.0, 74.8),
    "hellaswag": (76.3, 79.3, 78.1, 81.6, 83.5, 83.0, 85.9, 85.8),
    "bbh": (55.5, 65.0, 62.0, 72.1, 60.9, 61.2, 66.9, 68.3),
    "gsm8k": (36.0, 70.8, 54.3, 76.1, 68.8, 70.7, 77.1, 79.6),
    "math": (8.9, 20.2, 13.6, 25.5, 23.2, 23.6, 31.9, 32.4),
    "theoremqa": (2.6, 10.5, 3.3, 13.5, 11.3, 9.5, 13.6, 14.1),
    "humaneval": (31.1, 56.1, 32.3, 48.8, 61.6, 59.2, 67.1, 67.7),
    "mbpp": (54.1, 51.8, 59.9, 63.0, 47.5, 52.5, 63.4, 65.8),
    "ifeval": (None, None, None, None, 48.5, 45.9, 48.7, 42.2),
    "alpaca_eval": (None, None, None, None, 6.9, 11.3, 8.0, 21.8),
    "mt_bench": (None, None, None, None, 7.1, 7.7, 7.3, 7.9),
    "alignbench": (None, None, None, None, 4.9, 6.1, 5.3, 6.8),
    "leval": (None, None, None, None, 48.6, 48.5, 49.4, 48.4),
    "longbench": (None, None, None, None, 48.1, 46.1, 46.8, 44.8),
    "teval": (None, None, None, None, 64.1, 66.1, 64.7, 65.6),
    "teval_zh": (None, None, None, None, 66.8, 65.4, 64.1, 62.9),
    "cibench": (None, None, None, None, 52.1, 57.1, 49.0, 56.0),
    "cibench_zh": (None, None, None, None, 27.8, 40.7, 43.7, 54.7),
}

_CARDS: Mapping[str, Mapping[str, float]] = {
    "internlm2-1_8b": {
        "mmlu": 46.9, "agieval": 33.4, "bbh": 37.5, "gsm8k": 31.2, "math": 5.6, "humaneval": 25.0, "mbpp": 22.2,
    },
    "internlm2-chat-1_8b-sft": {
        "mmlu": 47.1, "agieval": 38.8, "bbh": 35.2, "gsm8k": 39.7, "math": 11.8, "humaneval": 32.9, "mbpp": 23.2,
    },
    "internlm2-chat-1_8b": {
        "mmlu": 44.1, "agieval": 34.6, "bbh": 34.3, "gsm8k": 34.3, "math": 10.7, "humaneval": 29.3, "mbpp": 27.0,
    },
    "internlm2_5-7b": {"mmlu": 71.6, "cmmlu": 79.1, "bbh": 70.1, "math": 34.0, "gsm8k": 74.8, "gpqa": 31.3},
    "internlm2_5-7b-chat": {"mmlu": 72.8, "cmmlu": 78.0, "bbh": 71.6, "math": 60.1, "gsm8k": 86.0, "gpqa": 38.4},
    "internlm2_5-7b-chat-1m": {"ruler": 80.9},
    "internlm2_5-20b": {
        "mmlu": 74.25, "cmmlu": 82.22, "bbh": 77.82, "math": 48.0, "humaneval": 71.95, "gpqa": 37.88,
    },
    "internlm2_5-20b-chat": {"mmlu": 73.5, "cmmlu": 79.7, "bbh": 76.3, "math": 64.7, "gpqa": 33.3},
    "internlm3-8b-instruct": {
        "cmmlu": 83.1, "mmlu": 76.6, "mmlu_pro": 57.6, "gpqa_diamond": 37.4, "drop": 83.1, "hellaswag": 91.2,
        "math500": 83.0, "aime24": 20.0, "humaneval": 82.3, "ifeval": 79.3, "ruler": 87.9, "alpaca_eval": 51.1,
    },
    "internlm-20b": {"mmlu": 62.05, "ceval": 58.8, "humaneval": 25.61, "mbpp": 35.6},
    "internlm-104b": {
        "mmlu": 67.2, "agieval": 49.2, "ceval": 62.7, "gaokao": 65.6, "triviaqa": 69.8, "nq": 27.6, "gsm8k": 62.9,
        "math": 14.9, "humaneval": 28.1, "mbpp": 41.4,
    },
    "internlm2-1_8b-reward": {"rewardbench": 80.6},
    "internlm2-7b-reward": {"rewardbench": 86.6},
    "internlm2-20b-reward": {"rewardbench": 89.5},
    # Of float weights; the model that `puyu` downloads by default is rounded to 4 bits.
    "smollm2-135m-instruct": {"ifeval": 29.9, "gsm8k": 1.4},
}  # fmt: skip


# Where what was published is not the benchmark's first metric.
_OTHER_METRICS = {
    "ifeval": {**dict.fromkeys(_REPORT_MODELS, "mean"), "smollm2-135m-instruct": "strict"},
    "alpaca_eval": dict.fromkeys(_REPORT_MODELS, "win_rate"),
}


def published_for(benchmark: str) -> dict[str, float]:
    """Published scores of a benchmark by model, "MODEL (METRIC)" where it is not the benchmark's first metric.

    Models are called as in `puyulm.model.presets`.
    """
    row = _REPORT.get(benchmark, ())
    found = {model: value for model, value in zip(_REPORT_MODELS, row, strict=False) if value is not None}
    found |= {model: scores[benchmark] for model, scores in _CARDS.items() if benchmark in scores}
    others = _OTHER_METRICS.get(benchmark, {})
    return {f"{model} ({others[model]})" if model in others else model: value for model, value in found.items()}


def model_name(name: str) -> str:
    """A preset's name where this is another way to write it: a hub name, an alias, a folder called like it."""
    from puyulm.model.presets import find_preset

    last = PurePath(name).name.lower()
    preset = find_preset(last)
    return last if preset is None else preset.name
