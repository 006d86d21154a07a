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


_MULTIPLE_CHOICE = {"mmlu": Setting(mode="likelihood", shots=5)}
_BASE = {**_MULTIPLE_CHOICE, "gsm8k": Setting(mode="plain", shots=4)}
_CHAT = {"gsm8k": Setting(mode="chat", shots=4)}

PROTOCOLS: Mapping[str, Protocol] = {
    "internlm2": Protocol(_BASE, _CHAT, ("mmlu", "gsm8k"), ("mmlu", "gsm8k")),
    "internlm2.5": Protocol(_BASE, _CHAT, ("mmlu", "gsm8k"), ("mmlu", "gsm8k")),
    "internlm3": Protocol(_BASE, _CHAT, ("mmlu", "gsm8k"), ("mmlu", "gsm8k")),
}


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
