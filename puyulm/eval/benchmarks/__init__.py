"""All benchmarks."""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
from dataclasses import replace
from pathlib import Path

from puyulm.errors import DataError
from puyulm.eval.benchmark import Benchmark
from puyulm.eval.benchmarks import (
    agieval,
    aime,
    alignbench,
    alpaca_eval,
    arc,
    bbh,
    ceval,
    cibench,
    cmmlu,
    contamination,
    drop,
    gaokao,
    gpqa,
    gsm8k,
    hellaswag,
    humaneval,
    ifeval,
    judged,
    leval,
    longbench,
    longbench_v2,
    math,
    mbpp,
    mmlu,
    mmlu_pro,
    mt_bench,
    needle,
    nq,
    perplexity,
    piqa,
    rewardbench,
    ruler,
    scireasoner,
    teval,
    theoremqa,
    triviaqa,
    winogrande,
)


def all_benchmarks() -> tuple[Benchmark, ...]:
    """By what they measure."""
    exams = (
        mmlu.BENCHMARK, cmmlu.BENCHMARK, ceval.BENCHMARK, mmlu_pro.BENCHMARK, *gpqa.BENCHMARKS, agieval.BENCHMARK,
        gaokao.BENCHMARK,
    )  # fmt: skip
    knowledge = (triviaqa.BENCHMARK, nq.BENCHMARK)
    reasoning = (
        bbh.BENCHMARK, hellaswag.BENCHMARK, winogrande.BENCHMARK, *arc.BENCHMARKS, piqa.BENCHMARK, drop.BENCHMARK,
    )  # fmt: skip
    mathematics = (gsm8k.BENCHMARK, *math.BENCHMARKS, *aime.BENCHMARKS, theoremqa.BENCHMARK)
    code = (*humaneval.BENCHMARKS, mbpp.BENCHMARK, scireasoner.BENCHMARK)
    tools = (*teval.BENCHMARKS, *cibench.BENCHMARKS)
    instruction = (ifeval.BENCHMARK, alpaca_eval.BENCHMARK, mt_bench.BENCHMARK, alignbench.BENCHMARK)
    judges = (*judged.BENCHMARKS, rewardbench.BENCHMARK)
    long = (ruler.BENCHMARK, needle.BENCHMARK, longbench.BENCHMARK, longbench_v2.BENCHMARK, leval.BENCHMARK)
    texts = (perplexity.BENCHMARK, contamination.BENCHMARK)
    return (*exams, *knowledge, *reasoning, *mathematics, *code, *tools, *instruction, *judges, *long, *texts)


def find_benchmark(name: str) -> Benchmark:
    """The benchmark of this name, or the one that a Python file (`.py`) calls `BENCHMARK`.

    Raises:
        DataError: There is none.
    """
    if name.endswith(".py"):
        return _of_file(Path(name))
    known = {one.name: one for one in all_benchmarks()}
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean '{near[0]}'? " if near else ""
    raise DataError(f"there is no benchmark '{name}'; {hint}puyu eval --list shows all")


def _of_file(file: Path) -> Benchmark:
    if not file.is_file():
        raise DataError(f"there is no file {file}")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None  # of a file that ends in .py
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise DataError(f"{file}: {type(error).__name__}: {error}") from error
    found = getattr(module, "BENCHMARK", None)
    if not isinstance(found, Benchmark):
        raise DataError(f"{file}: defines no BENCHMARK of the type puyulm.eval.benchmark.Benchmark")
    return replace(found, version=hashlib.sha256(file.read_bytes()).hexdigest()[:16])
