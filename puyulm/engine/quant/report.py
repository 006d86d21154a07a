"""What quantising a model did to it: perplexity, size and speed, before and after."""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from puyulm.engine.quant.settings import QuantSettings
from puyulm.model.attention import PackedAttention
from puyulm.model.decoder import Decoder
from puyulm.model.memory import format_bytes
from puyulm.model.shards import weight_files

REPORT_FILE = "quantization.json"
ROWS_TOKENS = 2048  # run at once
LOGIT_TOKENS = 512
WARM_UP, DECODE_STEPS = 3, 20


@dataclass(frozen=True)
class QuantReport:
    """Before and after.

    Attributes:
        settings: What was asked for.
        perplexity: Of held-out text, in the float model (float32) and in the quantised one as this machine runs it;
            None for reward models.
        held_out_tokens: Tokens predicted for it.
        calibration_tokens: Tokens looked at; 0 for methods that look at none.
        bytes: Of the weight files.
        tokens_per_second: Of decoding one sequence without a context; None where it was not measured.
        seconds: Taken to quantise, writing included.
        device: Where all of this ran.
    """

    settings: QuantSettings
    perplexity: tuple[float, float] | None
    held_out_tokens: int
    calibration_tokens: int
    bytes: tuple[int, int]
    tokens_per_second: tuple[float, float] | None
    seconds: float
    device: str

    def table(self) -> str:
        """A few lines of text."""
        rows = [("", "before", "after", "")]
        if self.perplexity is not None:
            before, after = self.perplexity
            change = f"{100 * (after / before - 1):+.2f} %, on {self.held_out_tokens:,} held-out tokens"
            rows.append(("perplexity", f"{before:.4f}", f"{after:.4f}", change))
        before_bytes, after_bytes = self.bytes
        ratio = f"{before_bytes / after_bytes:.2f} times smaller"
        rows.append(("weight files", format_bytes(before_bytes), format_bytes(after_bytes), ratio))
        if self.tokens_per_second is not None:
            slow, fast = self.tokens_per_second
            how = f"{fast / slow:.2f} times as fast; {self.device}, {torch.get_num_threads()} threads"
            rows.append(("decode, batch 1", f"{slow:.1f} tok/s", f"{fast:.1f} tok/s", how))
        lines = [f"{name:<16}{a:>14}{b:>14}  {note}".rstrip() for name, a, b, note in rows]
        return "\n".join([*lines, f"quantised in {self.seconds:.1f} s"])

    def write(self, folder: Path) -> None:
        """Writes `quantization.json`."""
        (folder / REPORT_FILE).write_text(json.dumps(self._json(), indent=2) + "\n", "utf-8")

    def _json(self) -> dict[str, Any]:
        pairs = ("perplexity", "bytes", "tokens_per_second")
        content = asdict(self)
        for name in pairs:
            value = content[name]
            content[name] = None if value is None else {"before": value[0], "after": value[1]}
        return content


@torch.inference_mode()
def perplexity(decoder: Decoder, rows: Tensor) -> float:
    """Of each token of `[R, L]` given those before it in its row."""
    device = decoder.embed.weight.device
    total = 0.0
    for part in rows.to(device).split(max(1, ROWS_TOKENS // rows.shape[1])):
        attention = PackedAttention([part.shape[1]] * len(part), device)
        hidden = decoder(part.flatten(), attention.positions, attention).unflatten(0, part.shape)
        inputs, targets = hidden[:, :-1].flatten(0, 1), part[:, 1:].flatten()
        for x, wanted in zip(inputs.split(LOGIT_TOKENS), targets.split(LOGIT_TOKENS), strict=True):
            total += float(F.cross_entropy(decoder.logits(x), wanted, reduction="sum"))
    return math.exp(min(total / (len(rows) * (rows.shape[1] - 1)), 700))


@torch.inference_mode()
def decode_speed(decoder: Decoder) -> float:
    """Tokens a second of decoding one sequence, the median of some steps: everything but attention to a context."""
    device = decoder.embed.weight.device
    attention = PackedAttention([1], device)
    token = torch.zeros(1, dtype=torch.long, device=device)
    seconds = []
    for _ in range(WARM_UP + DECODE_STEPS):
        started = time.perf_counter()
        int(decoder.logits(decoder(token, attention.positions, attention)).argmax())  # waits for the device
        seconds.append(time.perf_counter() - started)
    return 1 / sorted(seconds[WARM_UP:])[DECODE_STEPS // 2]


def weight_file_bytes(path: Path) -> int:
    """Bytes of a model's weights on disk."""
    return sum(file.stat().st_size for file in ([path] if path.is_file() else weight_files(path)))
