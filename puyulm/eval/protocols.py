"""Published protocols: how each generation's scores were taken.

A protocol says for every benchmark of its model card which mode, how many examples, and whether the model thinks. The
names follow the generation: "internlm2" (report, 2024), "internlm2.5" and "internlm3" (model cards). A benchmark that a
protocol does not name is run in its own first mode that fits the model, without examples.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from puyulm.errors import DataError
from puyulm.eval.benchmark import Benchmark, Generation, Likelihood
from puyulm.eval.task import Setting


@dataclass(frozen=True)
class Protocol:
    """How a generation was evaluated.

    Attributes:
        base, chat: Setting of each benchmark, for base models and for chat models.
        card: The benchmarks of the model card, in its order, for base and for chat models: what is run by default.
    """

    base: Mapping[str, Setting]
    chat: Mapping[str, Setting]
    base_card: tuple[str, ...]
    chat_card: tuple[str, ...]


def _likelihood(shots: int = 0) -> Setting:
    return Setting(mode="likelihood", shots=shots)


def _plain(shots: int = 0) -> Setting:
    return Setting(mode="plain", shots=shots)


def _chat(shots: int = 0, mode: str = "chat") -> Setting:
    return Setting(mode=mode, shots=shots)


THINKING = Setting(mode="chat", think=True, max_new_tokens=16_384)  # greedy, in a window of 32K

# What all protocols have in common. RewardBench is for reward models, whichever their generation.
_BASE = {
    "mmlu": _likelihood(5), "cmmlu": _likelihood(5), "ceval": _likelihood(5), "gpqa": _likelihood(),
    "gpqa_diamond": _likelihood(), "mmlu_pro": _plain(5), "agieval": _plain(), "gaokao": _plain(),
    "triviaqa": _plain(4), "nq": _plain(5), "bbh": _plain(), "hellaswag": _likelihood(), "winogrande": _likelihood(),
    "arc_easy": _likelihood(), "arc_challenge": _likelihood(), "piqa": _likelihood(), "drop": _plain(3),
    "gsm8k": _plain(4), "math": _plain(4), "theoremqa": _plain(), "humaneval": _plain(), "mbpp": _plain(3),
    "ruler": _plain(), "needle": _plain(), "rewardbench": Setting(mode="reward"),
}  # fmt: skip
_CHAT = {
    "mmlu": _chat(5), "cmmlu": _chat(5), "ceval": _chat(5), "triviaqa": _chat(4), "nq": _chat(5), "gsm8k": _chat(4),
    "math": _chat(4), "mbpp": _chat(3), "rewardbench": Setting(mode="reward"),
}  # fmt: skip
# Tools by the roles of InternLM2's chat format.
_ROLES = {
    **dict.fromkeys(("teval", "teval_zh"), _chat(mode="tools")),
    **dict.fromkeys(("cibench", "cibench_zh"), _chat(mode="interpreter")),
}
_REPORT_BASE_CARD = (
    "mmlu", "cmmlu", "ceval", "agieval", "gaokao", "triviaqa", "nq", "winogrande", "hellaswag", "bbh", "gsm8k", "math",
    "theoremqa", "humaneval", "mbpp",
)  # fmt: skip

PROTOCOLS: Mapping[str, Protocol] = {
    # Technical report, tables 5 to 17. Where its headers and its text contradict each other, the headers are followed.
    "internlm2": Protocol(
        _BASE,
        {**_CHAT, **_ROLES},
        _REPORT_BASE_CARD,
        (
            *_REPORT_BASE_CARD, "leval", "longbench", *_ROLES, "ifeval", "mt_bench", "alpaca_eval", "alignbench",
        ),
    ),
    "internlm2.5": Protocol(
        _BASE,
        {**_CHAT, **_ROLES, "gsm8k": _chat(), "math": _chat()},
        ("mmlu", "cmmlu", "bbh", "math", "gsm8k", "gpqa"),
        ("mmlu", "cmmlu", "bbh", "math", "gsm8k", "gpqa"),
    ),
    # The card says 0-shot of all but HellaSwag.
    "internlm3": Protocol(
        {**_BASE, "hellaswag": _likelihood(10)},
        {
            **_CHAT, "mmlu": _chat(mode="cot"), "cmmlu": _chat(mode="cot"), "mmlu_pro": _chat(mode="cot"),
            "drop": _chat(), "hellaswag": _chat(10), "math500": THINKING, "aime24": THINKING, "gsm8k": _chat(),
            "math": _chat(), "triviaqa": _chat(), "nq": _chat(),
        },
        ("mmlu", "cmmlu", "mmlu_pro", "gpqa_diamond", "drop", "hellaswag", "math", "humaneval", "ruler"),
        (
            "cmmlu", "mmlu", "mmlu_pro", "gpqa_diamond", "drop", "hellaswag", "math500", "aime24", "humaneval",
            "ifeval", "ruler", "alpaca_eval",
        ),
    ),
}  # fmt: skip


def find_protocol(name: str) -> Protocol:
    """The protocol of this name.

    Raises:
        DataError: There is none.
    """
    if name not in PROTOCOLS:
        raise DataError(f"there is no protocol '{name}'; known: {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


def setting_for(benchmark: Benchmark, protocol: Protocol, chat: bool) -> Setting:
    """How a protocol runs a benchmark."""
    named = (protocol.chat if chat else protocol.base).get(benchmark.name)
    if named is not None:
        return named
    for name, mode in benchmark.modes.items():
        if isinstance(mode, Generation) and mode.chat == chat:
            return Setting(mode=name)
        if not chat and isinstance(mode, Likelihood):
            return Setting(mode=name)
    return Setting(mode=next(iter(benchmark.modes)))
