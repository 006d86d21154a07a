"""Loading a model and generating with it, against transformers: same weights, same threads, float32.

The peer uses its fastest attention ("sdpa"). Generation goes through both public `generate` functions, greedy, with no
early stop.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import PAIRS, PEAK_MEMORY, Row, in_child, installed, missing, smaller_is_better, throughput
from puyulm.engine.config import EngineConfig
from puyulm.engine.cpu import pack_for_inference
from puyulm.engine.engine import Engine
from puyulm.engine.params import SamplingParams
from puyulm.model.attention import PackedAttention
from puyulm.model.checkpoint import load_model, save_model
from puyulm.model.config import ModelConfig
from puyulm.model.decoder import Decoder

PEER = "transformers"
SERVED = dict(hidden_size=768, intermediate_size=2048, num_layers=12, num_heads=12, num_kv_heads=12, head_dim=64)
STORED = dict(hidden_size=1024, intermediate_size=2816, num_layers=16, num_heads=16, num_kv_heads=8, head_dim=64)


def run(only: str = "") -> list[Row]:
    """All rows, or those of the groups whose name holds `only`."""
    groups: dict[str, Callable[[], list[Row]]] = {
        "generation": generation_rows,
        "loading": loading_rows,
    }
    rows: list[Row] = []
    for name, group in groups.items():
        if only in name:
            print(f"{name} ...", file=sys.stderr, flush=True)
            rows += group() if installed("transformers") else [missing(name, "", "transformers>=5.0", None)]
    return rows


def generation_rows() -> list[Row]:
    """A 134 M model: prefill of 512 tokens, decoding 32 tokens after a prompt of 32."""
    ours, peer = _pair(SERVED, vocab=32_000)
    engine = Engine(pack_for_inference(ours.eval()), config=EngineConfig(prefix_cache=False))
    peer.eval()
    rows = []
    for name, batch, prompt, new, target in (
        ("prefill of 512 tokens", 1, 512, 1, 1.0),
        ("decode, batch 1", 1, 32, 32, 1.5),
        ("decode, batch 8", 8, 32, 32, 2.0),
    ):
        ids = torch.randint(3, 32_000, (batch, prompt), generator=torch.Generator().manual_seed(0))
        params = SamplingParams(temperature=0.0, max_new_tokens=new, ignore_eos=True)
        prompts = ids.tolist()

        def mine(prompts: list[list[int]] = prompts, params: SamplingParams = params) -> None:
            engine.generate(prompts, params)

        def theirs(ids: Tensor = ids, new: int = new) -> None:
            mask = torch.ones_like(ids)
            peer.generate(ids, attention_mask=mask, do_sample=False, min_new_tokens=new, max_new_tokens=new)

        amount = batch * (prompt if new == 1 else new)
        rows.append(throughput(name, "tok/s", amount, mine, theirs, PEER, target))
    return rows


def loading_rows() -> list[Row]:
    """A 1 GB checkpoint, in fresh processes, until every weight has been read once."""
    rows = []
    with tempfile.TemporaryDirectory(prefix="puyulm-bench-") as folder:
        for dtype, layers in ((torch.float32, 16), (torch.bfloat16, 36)):
            path = Path(folder) / str(dtype).removeprefix("torch.")
            decoder = Decoder(_config(STORED | dict(num_layers=layers), 32_000))
            decoder.init_weights(0)
            save_model(decoder.to(dtype), path, layout="llama")
            del decoder
            pairs = [(_load(path, "ours"), _load(path, "peer")) for _ in range(1 + PAIRS)][1:]
            label = f"load {sum(f.stat().st_size for f in path.glob('*.safetensors')) / 1e9:.2f} GB of {path.name}"
            seconds = [(mine["seconds"], theirs["seconds"]) for mine, theirs in pairs]
            memory = [(mine["megabytes"], theirs["megabytes"]) for mine, theirs in pairs]
            rows.append(smaller_is_better(f"{label} as float32", "s", seconds, PEER, 1.0))
            rows.append(smaller_is_better(f"{label} as float32: peak memory", "MB", memory, PEER, 1.0))
    return rows


def _config(shape: dict[str, int], vocab: int) -> ModelConfig:
    return ModelConfig(family="llama", vocab_size=vocab, max_position_embeddings=4096, dtype="float32", **shape)  # type: ignore[arg-type]


def _pair(shape: dict[str, int], vocab: int) -> tuple[Decoder, Any]:
    """Our decoder and transformers' model with the same weights."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    decoder = Decoder(_config(shape, vocab))
    decoder.init_weights(0)
    with tempfile.TemporaryDirectory(prefix="puyulm-bench-") as folder:
        save_model(decoder, Path(folder) / "m", layout="llama")
        ours = load_model(Path(folder) / "m").train()
        peer = transformers.AutoModelForCausalLM.from_pretrained(Path(folder) / "m", attn_implementation="sdpa").train()
        with torch.no_grad():  # out of the mapped file, which is about to go
            for parameter in peer.parameters():
                parameter.data = parameter.data.clone()
    ids = torch.arange(3, 40)
    attention = PackedAttention([len(ids)])
    with torch.no_grad():
        mine, theirs = ours.logits(ours(ids, attention.positions, attention)), peer(ids[None]).logits[0]
    torch.testing.assert_close(mine, theirs, atol=1e-4, rtol=1e-4)
    return ours, peer


def _load(path: Path, who: str) -> dict[str, float]:
    return in_child(_LOADING, who, str(path), str(torch.get_num_threads()))


_LOADING = (
    """
import json, sys, time
from pathlib import Path
import torch
who, path = sys.argv[1], Path(sys.argv[2])
torch.set_num_threads(int(sys.argv[3]))
"""
    + PEAK_MEMORY
    + """
if who == "ours":
    from puyulm.model.checkpoint import load_model
    load = lambda: load_model(path, dtype=torch.float32)
else:
    from transformers import LlamaForCausalLM
    load = lambda: LlamaForCausalLM.from_pretrained(path, dtype=torch.float32)
before, started = status("VmRSS"), time.perf_counter()
model = load()
with torch.no_grad():
    sum(float(parameter.sum()) for parameter in model.parameters())
print(json.dumps({"seconds": time.perf_counter() - started, "megabytes": status("VmHWM") - before}))
"""
)
