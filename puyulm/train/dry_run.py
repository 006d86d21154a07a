"""What a recipe takes, said before anything is read or allocated: memory of a rank, steps, operations, hours; and the
plans that suit some GPUs best."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
import yaml

from puyulm.errors import PuyuError, RecipeError
from puyulm.model.config import ModelConfig
from puyulm.model.memory import count_parameters, format_bytes
from puyulm.parallel.estimate import Job, Memory, flops_per_token, rank_memory, worst_rank
from puyulm.parallel.plan import ParallelPlan
from puyulm.parallel.search import Candidate, Hardware, Work, search
from puyulm.train.checks import padded_micro_tokens, shape_of, works_of, world_size
from puyulm.train.flops import known_peak, measured_peak
from puyulm.train.phases import Timeline
from puyulm.train.pretrain import FromCheckpoint, PretrainRecipe

ASSUMED_MEMORY, ASSUMED_PEAK = 80 * 2**30, 989.0

MEMORY_ROWS = {
    "parameters": "parameters, float32",
    "gradients": "gradients, float32",
    "optimizer": "optimizer",
    "gathered": "weights to compute with",
    "activations": "activations",
    "loss": "head and a chunk of logits",
    "layer": "one layer's backward",
    "communication": "communication buffers",
}


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What is known or assumed of the devices of a run.

    Attributes:
        kind: "cpu" or "cuda".
        hardware: Of so many devices as the recipe's plan has ranks.
        assumed: What no one has told, a line each.
    """

    kind: str
    hardware: Hardware
    assumed: tuple[str, ...]

    @classmethod
    def of(
        cls, recipe: PretrainRecipe, *, memory: int | None, peak_tflops: float | None, mfu: float, gpus_per_node: int,
        bandwidth: int, node_bandwidth: int,
    ) -> Machine:  # fmt: skip
        """The devices that a recipe would run on; None asks this machine, or assumes a GPU of 80 GiB.

        Raises:
            RecipeError: A number is out of range.
        """
        if not 0 < mfu <= 1 or gpus_per_node < 1 or (peak_tflops is not None and not peak_tflops > 0):
            raise RecipeError("--mfu must be above 0 and at most 1, --gpus-per-node and --peak-tflops above 0")
        settings, assumed = recipe.settings, []
        here = torch.cuda.is_available()
        cpu = settings.device == "cpu" or (settings.device == "auto" and settings.dtype == "float32" and not here)
        peak = peak_tflops or settings.peak_tflops
        if peak is None and cpu:
            peak = measured_peak()
            assumed.append(f"a peak of {peak:.3g} TFLOP/s, measured on this CPU")
        elif peak is None:
            peak = known_peak(torch.cuda.get_device_name()) if here else None
        if peak is None:
            peak = ASSUMED_PEAK
            assumed.append(f"a peak of {peak:g} TFLOP/s, an H100's in bfloat16 (--peak-tflops)")
        if memory is None and cpu:
            memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        elif memory is None and here:
            memory = torch.cuda.get_device_properties(0).total_memory
        if memory is None:
            memory = ASSUMED_MEMORY
            assumed.append(f"{format_bytes(memory)} of memory (--memory)")
        hardware = Hardware(
            gpus=world_size(recipe), gpus_per_node=gpus_per_node, memory=memory, peak=peak * 1e12, mfu=mfu,
            bandwidth=bandwidth, node_bandwidth=node_bandwidth,
        )  # fmt: skip
        return cls(kind="cpu" if cpu else "cuda", hardware=hardware, assumed=tuple(assumed))

    def job(self, recipe: PretrainRecipe, config: ModelConfig) -> Job:
        """What a recipe trains."""
        settings = recipe.settings
        return Job(
            config=config, dtype=settings.dtype, state_dtype=settings.state_dtype, optimizer=settings.optimizer,
            device="cpu" if self.kind == "cpu" else "cuda",
        )  # fmt: skip


def describe_run(recipe: PretrainRecipe, machine: Machine) -> tuple[str, bool]:
    """Tables of phases and memory under the recipe's own plan, and whether the memory is enough."""
    config = shape_of(recipe)
    plan = recipe.parallel.resolved(machine.hardware.gpus)
    job = machine.job(recipe, config)
    memory, fits = _memory_table(recipe, job, plan, machine)
    parts = [_headline(recipe, config, plan, machine), _phase_table(recipe, config, plan, machine), memory]
    return "\n\n".join([*parts, *_remarks(recipe, machine)]), fits


def describe_plans(recipe: PretrainRecipe, machine: Machine, gpus: int, best: int = 5) -> tuple[str, bool]:
    """The best plans for some GPUs, the first of them to paste into a recipe; and whether there is one that fits."""
    config = shape_of(recipe)
    if gpus < 1:
        raise RecipeError(f"--gpus must be at least 1, not {gpus}")
    machine = replace(machine, hardware=replace(machine.hardware, gpus=gpus))
    hardware, job, works = machine.hardware, machine.job(recipe, config), works_of(recipe)
    found = search(job, works, hardware, base=recipe.parallel, best=best)
    usable = f"{format_bytes(hardware.usable)} of {format_bytes(hardware.memory)}"
    if not found:
        return (
            f"no plan fits {gpus:,} GPUs with {usable} usable, whose batches and layers can be divided among them; "
            "take another number of GPUs, larger batches, shorter rows, or settings.state_dtype: bfloat16"
        ), False
    rows = [("", "plan", "micro_tokens", "memory", "received a step", "seconds a step", "hours", "MFU")]
    for number, one in enumerate(found, start=1):
        rows.append((
            f"{number}", plan_words(one.plan), f"{one.micro_tokens:,}", format_bytes(one.memory.total),
            format_bytes(one.traffic), ", ".join(f"{seconds:,.3g}" for seconds in dict.fromkeys(one.step_seconds)),
            _number(one.run_seconds / 3600), f"{one.mfu(job, hardware, works):.1%}",
        ))  # fmt: skip
    title = (
        f"{_model_words(recipe, config)} on {gpus} GPUs, {hardware.gpus_per_node} a node, {usable} usable: "
        "the best plans by estimated time; within 1 % the simpler comes first"
    )
    chosen = replace(recipe, parallel=found[0].plan, micro_tokens=found[0].micro_tokens)
    memory, _ = _memory_table(chosen, job, found[0].plan, machine)
    how = (
        f"Times assume that arithmetic alone reaches an MFU of {hardware.mfu:.0%} and that GPUs receive "
        f"{hardware.node_bandwidth / 1e9:g} GB/s within a node and {hardware.bandwidth / 1e9:g} GB/s from others; "
        "measure before you trust a difference of a few percent."
    )
    parts = [title, _table(rows, left=2), "The first one, for a recipe:", snippet(found[0]).rstrip(), memory, how]
    return "\n\n".join([*parts, *_remarks(recipe, machine)]), True


def snippet(found: Candidate) -> str:
    """A plan as it is written in a recipe."""
    usual = ParallelPlan()
    values = {
        field.name: getattr(found.plan, field.name)
        for field in fields(ParallelPlan)
        if getattr(found.plan, field.name) != getattr(usual, field.name)
        and (field.name != "stages_per_rank" or found.plan.schedule == "interleaved")
    }
    return yaml.safe_dump({"micro_tokens": found.micro_tokens, "parallel": values}, sort_keys=False)


def plan_words(plan: ParallelPlan) -> str:
    """A plan in a few words: "replicate 2 x shard 8, recompute selective"."""
    names = ("pipeline", "replicate", "shard", "context", "tensor")
    sizes = " x ".join(f"{name} {size}" for name in names if (size := getattr(plan, name)) != 1) or "one rank"
    words = [sizes]
    if plan.pipeline > 1 and plan.schedule == "interleaved":
        words.append(f"interleaved, {plan.stages_per_rank} stages a rank")
    if plan.recompute != "none":
        words.append(f"recompute {plan.recompute}")
    if not plan.reshard:
        words.append("no reshard")
    words += [name for name in ("compile", "float8") if getattr(plan, name)]
    return ", ".join(words)


def _model_words(recipe: PretrainRecipe, config: ModelConfig) -> str:
    names = {ModelConfig: config.family, str: recipe.model, FromCheckpoint: getattr(recipe.model, "from_", "")}
    return f"{names[type(recipe.model)]} ({count_parameters(config).total:,} parameters)"


def _headline(recipe: PretrainRecipe, config: ModelConfig, plan: ParallelPlan, machine: Machine) -> str:
    kind = "GPU" if machine.kind == "cuda" else "CPU process"
    many = f"{plan.world_size} {kind}{'s' if plan.world_size > 1 and kind == 'GPU' else 'es' * (plan.world_size > 1)}"
    return (
        f"{_model_words(recipe, config)} in {recipe.settings.dtype} on {many}: {plan_words(plan)}\n"
        f"FLOPs a token: {flops_per_token(config, recipe.phases[0].seq_len):.3e} by PaLM's convention, "
        f"{flops_per_token(config, recipe.phases[0].seq_len, causal=True):.3e} with the causal half of attention "
        f"(rows of {recipe.phases[0].seq_len:,})"
    )


def _phase_table(recipe: PretrainRecipe, config: ModelConfig, plan: ParallelPlan, machine: Machine) -> str:
    timeline, hardware = Timeline(recipe.phases, recipe.settings), machine.hardware
    rows = [
        ("phase", "tokens", "rows of", "tokens a step", "micro-batches", "steps", "lr", "FLOPs", "hours", "device-days")
    ]
    speed = hardware.gpus * hardware.peak * hardware.mfu
    all_tokens, all_flops = 0, 0.0
    for index, phase in enumerate(recipe.phases):
        segments = [segment for segment in timeline.segments if segment.phase == index]
        tokens = sum(segment.steps * segment.rows for segment in segments) * phase.seq_len
        steps = timeline.phase_steps(index)
        flops = tokens * flops_per_token(config, phase.seq_len)
        last = segments[-1]
        load = Work(seq_len=phase.seq_len, rows=last.rows, steps=1).load(plan, _micro_or_padded(recipe, plan))
        seconds = flops / speed
        rows.append((
            phase.name, f"{tokens:,}", f"{phase.seq_len:,}",
            f"{last.rows * phase.seq_len:,}" + (" (ramp)" if len(segments) > 1 else ""),
            f"{load.micro_batches:,} x {load.micro_tokens:,}", f"{len(steps):,}",
            f"{timeline.lr(steps.start + len(steps) // 2):.2e}", f"{flops:.3e}", _number(seconds / 3600),
            _number(seconds / 86400 * hardware.gpus),
        ))  # fmt: skip
        all_tokens, all_flops = all_tokens + tokens, all_flops + flops
    seconds = all_flops / speed
    rows.append((
        "all", f"{all_tokens:,}", "", "", "", f"{timeline.steps:,}", "", f"{all_flops:.3e}",
        _number(seconds / 3600), _number(seconds / 86400 * hardware.gpus),
    ))  # fmt: skip
    return (
        _table(rows, left=1)
        + "\nMicro-batches of a rank and step; lr in the middle of a phase; hours at an MFU of "
        + f"{hardware.mfu:.0%} (PaLM's convention) of {hardware.peak / 1e12:.4g} TFLOP/s each (--mfu)."
    )


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def _micro_or_padded(recipe: PretrainRecipe, plan: ParallelPlan) -> int:
    return padded_micro_tokens(recipe) if plan.pipeline > 1 else recipe.micro_tokens


def _memory_table(recipe: PretrainRecipe, job: Job, plan: ParallelPlan, machine: Machine) -> tuple[str, bool]:
    """Memory of a rank: a column for each phase, and under a pipeline for the first, the last and the worst rank."""
    columns: dict[str, Memory] = {}
    for phase, work in _last_works(recipe):
        load = work.load(plan, _micro_or_padded(recipe, plan))
        worst = worst_rank(job, plan, load)
        if plan.pipeline == 1:
            columns[phase] = rank_memory(job, plan, load)
            continue
        for rank in sorted({0, worst, plan.pipeline - 1}):
            columns[f"{phase}, stage rank {rank}"] = rank_memory(job, plan, load, rank)
    columns = _distinct(columns)
    rows: list[tuple[str, ...]] = [("bytes of a rank, at most", *columns)]
    for name, words in MEMORY_ROWS.items():
        words += f", {job.state_dtype}" if name == "optimizer" else ""
        values = [getattr(memory, name) for memory in columns.values()]
        if any(values):
            rows.append((words, *map(format_bytes, values)))
    rows.append(("in all", *(format_bytes(memory.total) for memory in columns.values())))
    hardware, peak = machine.hardware, max(memory.total for memory in columns.values())
    fits = peak <= hardware.usable
    verdict = "fits" if fits else "DOES NOT FIT; see the plans that do with --gpus N"
    recomputed = {"none": "", "selective": ", cheap ones made again", "full": ", made again layer by layer"}
    return (
        _table(rows, left=1)
        + f"\nActivations as they are kept{recomputed[plan.recompute]}. "
        + "The head and a layer's backward are not there at once: the larger counts.\n"
        + f"{format_bytes(peak)} of {format_bytes(hardware.memory)}, of which {hardware.reserve:.0%} are left for the "
        + f"allocator and libraries: {verdict}."
    ), fits


def _last_works(recipe: PretrainRecipe) -> list[tuple[str, Work]]:
    """The largest steps of each phase."""
    works = {recipe.phases[s.phase].name: s for s in Timeline(recipe.phases, recipe.settings).segments}
    return [
        (name, Work(seq_len=recipe.phases[s.phase].seq_len, rows=s.rows, steps=s.steps)) for name, s in works.items()
    ]


def _distinct(columns: dict[str, Memory]) -> dict[str, Memory]:
    """Columns that are alike become one."""
    names: dict[Memory, list[str]] = {}
    for name, memory in columns.items():
        names.setdefault(memory, []).append(name)
    return {" = ".join(same): memory for memory, same in names.items()}


def _remarks(recipe: PretrainRecipe, machine: Machine) -> list[str]:
    """What is assumed, what is missing, and how often each source is read."""
    lines = [f"Assumed {line}." for line in machine.assumed]
    if missing := missing_files(recipe):
        lines.append(f"Not here yet, and needed to train: {', '.join(missing)}.")
    lines += [f"Data {line}." for line in epochs(recipe)]
    return ["\n".join(lines)] if lines else []


def missing_files(recipe: PretrainRecipe) -> list[str]:
    """What a run needs and this machine lacks."""
    wanted = [f"tokenizer {recipe.tokenizer}"] if not recipe.tokenizer.expanduser().exists() else []
    folders = {folder: None for phase in recipe.phases for folder in _shares(recipe, phase.name)}
    wanted += [f"data {folder}" for folder in folders if not (Path(folder).expanduser() / "meta.json").exists()]
    if recipe.valid is not None and not recipe.valid.expanduser().exists():
        wanted.append(f"valid {recipe.valid}")
    if isinstance(recipe.model, FromCheckpoint) and not Path(recipe.model.from_).expanduser().exists():
        wanted.append(f"model {recipe.model.from_} (looked for when the run begins)")
    return wanted


def epochs(recipe: PretrainRecipe) -> list[str]:
    """How often each folder of shards that is here is read, all phases together."""
    from puyulm.data.shards import TokenShards

    timeline, read = Timeline(recipe.phases, recipe.settings), dict[str, float]()
    for index, phase in enumerate(recipe.phases):
        tokens, shares = timeline.phase_rows(index) * phase.seq_len, _shares(recipe, phase.name)
        for folder, share in shares.items():
            read[folder] = read.get(folder, 0.0) + tokens * share / sum(shares.values())
    lines = []
    for folder, taken in read.items():
        try:
            there = TokenShards.open(Path(folder).expanduser()).num_tokens
        except PuyuError:
            continue
        lines.append(f"{folder}: {there:,} tokens, read {taken / there:.2f} times")
    return lines


def _shares(recipe: PretrainRecipe, name: str) -> dict[str, float]:
    (phase,) = (phase for phase in recipe.phases if phase.name == name)
    data = recipe.phase_data(phase)
    return data if isinstance(data, dict) else {str(data): 1.0}


def _table(rows: Sequence[Sequence[str]], left: int) -> str:
    """Columns of text, the first `left` of them ranged left."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.ljust(w) if i < left else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in lines)
