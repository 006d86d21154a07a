"""Who trains in `benchmarks training`: ours, transformers and litgpt, with the same weights and the same tokens."""

from __future__ import annotations

import importlib
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.harness import installed
from puyulm.data.packing import PackedBatch
from puyulm.model.checkpoint import save_model
from puyulm.model.config import ModelConfig
from puyulm.model.loss import IGNORE
from puyulm.parallel.build import ParallelModel, build_model
from puyulm.parallel.plan import ParallelPlan
from puyulm.parallel.weights import init_weights
from puyulm.parallel.world import World
from puyulm.train.guard import Guard
from puyulm.train.optimizer import Optimizer
from puyulm.train.settings import TrainSettings
from puyulm.train.step import to_device, train_step

OURS, TRANSFORMERS, LITGPT = "puyulm", "transformers", "litgpt"
INSTALL = {TRANSFORMERS: "transformers>=5.0", LITGPT: "litgpt>=0.5"}
LR = 1e-5

Step = Callable[[], Tensor]
"""Forward, backward, clipping and update; gives the loss."""


@dataclass(frozen=True)
class Work:
    """Tokens of a step: rows with some documents of one length each, which see only themselves."""

    vocab_size: int
    rows: int
    length: int
    documents: int = 1

    @property
    def tokens(self) -> int:
        return self.rows * self.length

    @property
    def lengths(self) -> list[int]:
        return [self.length // self.documents] * (self.rows * self.documents)

    def ids(self) -> Tensor:
        """`[rows, length]`."""
        generator = torch.Generator().manual_seed(0)
        return torch.randint(3, self.vocab_size, (self.rows, self.length), generator=generator)

    def targets(self) -> Tensor:
        """`[rows, length]`: the next token, nothing at a document's end."""
        targets = torch.roll(self.ids(), -1, dims=1)
        targets[:, self.length // self.documents - 1 :: self.length // self.documents] = IGNORE
        return targets


Contender = Callable[[Work], Step]
"""A model and its optimizer, made ready for some work."""


def ours(config: ModelConfig, *, compiled: bool = False) -> Contender:
    """Our own training step, as the loop takes it: from packed batches on."""
    model = build_model(config, World.alone("cpu", ParallelPlan(compile=compiled)))
    init_weights(model, seed=0)
    return _contender(model, TrainSettings())


def _contender(model: ParallelModel, settings: TrainSettings) -> Contender:
    optimizer = Optimizer(dict(model.named_parameters()), settings, model.config)
    guard = Guard(settings.spikes, model.world.device)

    def ready(work: Work) -> Step:
        tokens, targets = (values.flatten().numpy() for values in (work.ids(), work.targets()))
        batch = PackedBatch(tokens, targets, work.lengths, 0)

        def step() -> Tensor:
            return train_step(model, optimizer, guard, to_device(model, [batch]), LR, settings).values[0]

        return step

    return ready


def peer(name: str, config: ModelConfig, *, compiled: bool = False) -> Contender:
    """A peer's model with our fresh weights, and a plain loop around it: clipping, fused AdamW."""
    model = _transformers_model(config)
    if name == LITGPT:
        model = _litgpt_model(config, model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    loss_of = _litgpt_loss if name == LITGPT else _transformers_loss
    # Shapes as they are: told that they may vary, the compiler would make slower code.
    called = torch.compile(model, dynamic=False) if compiled else model

    def ready(work: Work) -> Step:
        inputs = _inputs(work)

        def step() -> Tensor:
            loss = loss_of(called, *inputs)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            return loss.detach()

        return step

    return ready


def keeps_documents_apart(name: str) -> bool:
    """Whether a peer can train on packed rows without letting documents see each other."""
    return name == TRANSFORMERS


def present() -> list[str]:
    """Peers that are installed."""
    return [name for name in INSTALL if installed(name) and installed(TRANSFORMERS)]


def _inputs(work: Work) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Ids, targets, and where a row has several documents, the mask and positions that keep them apart."""
    if work.documents == 1:
        return work.ids(), work.targets(), {}
    size = work.length // work.documents
    document = torch.arange(work.length) // size
    seen = (document[:, None] == document).tril()
    mask = torch.zeros(work.length, work.length).masked_fill(~seen, torch.finfo(torch.float32).min)
    positions = (torch.arange(work.length) % size)[None].expand(work.rows, -1)
    extra = {"attention_mask": mask[None, None].expand(work.rows, 1, -1, -1), "position_ids": positions}
    return work.ids(), work.targets(), extra


def _transformers_loss(model: Any, ids: Tensor, targets: Tensor, extra: dict[str, Tensor]) -> Tensor:
    return model(input_ids=ids, labels=targets, shift_labels=targets, use_cache=False, **extra).loss


def _litgpt_loss(model: Any, ids: Tensor, targets: Tensor, extra: dict[str, Tensor]) -> Tensor:
    return importlib.import_module("litgpt.utils").chunked_cross_entropy(model(ids), targets, ignore_index=IGNORE)


def _transformers_model(config: ModelConfig) -> nn.Module:
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    model = build_model(config, World.alone())
    init_weights(model, seed=0)
    with tempfile.TemporaryDirectory(prefix="puyulm-bench-") as folder:
        save_model(model.decoder, Path(folder) / "m", layout="llama")
        loaded = transformers.AutoModelForCausalLM.from_pretrained(Path(folder) / "m", attn_implementation="sdpa")
        with torch.no_grad():  # out of the mapped file, which is about to go
            for parameter in loaded.parameters():
                parameter.data = parameter.data.clone()
    return cast(nn.Module, loaded).train()


def _litgpt_model(config: ModelConfig, source: nn.Module) -> nn.Module:
    litgpt = importlib.import_module("litgpt")
    model = litgpt.GPT(
        litgpt.Config(
            name="benchmark", block_size=config.max_position_embeddings, vocab_size=config.vocab_size,
            padded_vocab_size=config.vocab_size, n_layer=config.num_layers, n_head=config.num_heads,
            n_query_groups=config.num_kv_heads, n_embd=config.hidden_size, head_size=config.head_dim,
            intermediate_size=config.intermediate_size, rotary_percentage=1.0, rope_base=int(config.rope.theta),
            parallel_residual=False, bias=False, norm_class_name="RMSNorm", norm_eps=config.rms_norm_eps,
            mlp_class_name="LLaMAMLP",
        )
    )  # fmt: skip
    weights = source.state_dict()
    names = {"lm_head.weight": "lm_head.weight", "transformer.wte.weight": "model.embed_tokens.weight"}
    names["transformer.ln_f.weight"] = "model.norm.weight"
    for layer in range(config.num_layers):
        mine, theirs = f"transformer.h.{layer}", f"model.layers.{layer}"
        for part, of in (
            ("norm_1", "input_layernorm"), ("norm_2", "post_attention_layernorm"), ("attn.proj", "self_attn.o_proj"),
            ("mlp.fc_1", "mlp.gate_proj"), ("mlp.fc_2", "mlp.up_proj"), ("mlp.proj", "mlp.down_proj"),
        ):  # fmt: skip
            names[f"{mine}.{part}.weight"] = f"{theirs}.{of}.weight"
        qkv = [weights[f"{theirs}.self_attn.{part}_proj.weight"] for part in "qkv"]
        weights[f"{theirs}.qkv"] = torch.cat(qkv)
        names[f"{mine}.attn.qkv.weight"] = f"{theirs}.qkv"
    model.load_state_dict({name: weights[of].clone() for name, of in names.items()})
    return cast(nn.Module, model).train()


def write_shards(folder: Path, work: Work, steps: int) -> None:
    """Token shards of random documents as long as the work's, enough for some steps."""
    from puyulm.data.shard_writer import DocumentEnds, ShardFile, SourceTokens, write_meta

    rng = np.random.default_rng(0)
    size = work.lengths[0]
    count = steps * work.tokens // size + 1
    folder.mkdir(parents=True)
    with ShardFile(folder / "00000.bin", folder / "00000.idx", work.vocab_size) as file:
        lengths, sources = np.full(count, size), np.zeros(count, dtype=np.int64)
        file.add(rng.integers(3, work.vocab_size, count * size), lengths, 4 * lengths, sources)
    shard = {"name": "00000", **file.facts}
    source = SourceTokens("random", "en", count, count * size, 4 * count * size)
    write_meta(folder, [shard], [source], work.vocab_size, "none", DocumentEnds(None, None))
