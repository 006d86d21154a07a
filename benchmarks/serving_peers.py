"""Who answers in `benchmarks serving`, each in a process of its own: `python -m benchmarks.serving_peers NAME ...`.

A process reads requests from its input, a JSON object a line, and answers each with one. While it is not asked it is
stopped (SIGSTOP), so that no thread of it spins while another is measured.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Prompts = list[list[int]]
Answer = Callable[[Prompts, int], list[list[int]]]
"""Continues each prompt greedily by exactly so many tokens; nothing is kept from one call to the next."""

CONTEXT, BATCH = 768, 8


def transformers(path: str, bits: str, threads: int) -> Answer:
    import torch
    from transformers import LlamaForCausalLM, logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    model = LlamaForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="sdpa").eval()

    def answer(prompts: Prompts, new: int) -> list[list[int]]:
        ids = torch.tensor(prompts)
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, min_new_tokens=new, max_new_tokens=new
        )
        return out[:, ids.shape[1] :].tolist()

    return answer


def llama_cpp(path: str, bits: str, threads: int) -> Answer:
    """Through the library's own functions: `Llama` runs one sequence at a time."""
    import llama_cpp as lib
    import numpy as np

    log = lib.llama_log_callback(lambda level, text, data: None)
    lib.llama_log_set(log, ctypes.c_void_p(0))
    lib.llama_backend_init()
    model = lib.llama_model_load_from_file(path.encode(), lib.llama_model_default_params())
    params = lib.llama_context_default_params()
    params.n_ctx, params.n_seq_max, params.n_batch, params.n_ubatch = BATCH * CONTEXT, BATCH, CONTEXT, 512
    params.n_threads = params.n_threads_batch = threads
    context = lib.llama_init_from_model(model, params)
    batch = lib.llama_batch_init(CONTEXT, 0, 1)
    vocab = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(model))

    def run(rows: Sequence[Sequence[int]], position: int) -> list[int]:
        """Puts tokens behind each sequence; the most likely next ones."""
        last, batch.n_tokens = [], sum(map(len, rows))
        entries = [(i, position + j, token) for i, row in enumerate(rows) for j, token in enumerate(row)]
        for place, (sequence, at, token) in enumerate(entries):
            batch.token[place], batch.pos[place], batch.n_seq_id[place] = token, at, 1
            batch.seq_id[place][0] = sequence
            batch.logits[place] = at == position + len(rows[sequence]) - 1
            if batch.logits[place]:
                last.append(place)
        if lib.llama_decode(context, batch):
            raise RuntimeError("llama_decode failed")
        rows_of_logits = (lib.llama_get_logits_ith(context, place) for place in last)
        return [int(np.ctypeslib.as_array(logits, (vocab,)).argmax()) for logits in rows_of_logits]

    def answer(prompts: Prompts, new: int) -> list[list[int]]:
        lib.llama_memory_clear(lib.llama_get_memory(context), True)
        position, tokens = len(prompts[0]), [run(prompts, 0)]
        while len(tokens) < new:
            tokens.append(run([[token] for token in tokens[-1]], position))
            position += 1
        return [list(row) for row in zip(*tokens, strict=True)]

    answer.log = log  # type: ignore[attr-defined]  # the library calls it as long as it lives
    return answer


def ctranslate2(path: str, bits: str, threads: int) -> Answer:
    import ctranslate2 as lib

    from benchmarks.serving_models import token

    model = lib.Generator(path, device="cpu", compute_type=bits, intra_threads=threads, inter_threads=1)

    def answer(prompts: Prompts, new: int) -> list[list[int]]:
        texts = [[token(i) for i in prompt] for prompt in prompts]
        results = model.generate_batch(
            texts, max_length=new, min_length=new, beam_size=1, sampling_topk=1, include_prompt_in_result=False
        )
        return [result.sequences_ids[0] for result in results]

    return answer


def vllm(path: str, bits: str, threads: int) -> Answer:
    os.environ.update(VLLM_CPU_KVCACHE_SPACE="1", VLLM_NO_USAGE_STATS="1")
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", f"0-{threads - 1}")
    from vllm import LLM, SamplingParams

    model = LLM(path, dtype="float32", skip_tokenizer_init=True, enable_prefix_caching=False, max_model_len=CONTEXT)

    def answer(prompts: Prompts, new: int) -> list[list[int]]:
        params = SamplingParams(temperature=0, max_tokens=new, ignore_eos=True, detokenize=False)
        outputs = model.generate([{"prompt_token_ids": prompt} for prompt in prompts], params, use_tqdm=False)
        return [list(output.outputs[0].token_ids) for output in outputs]

    return answer


def puyulm(path: str, bits: str, threads: int) -> Answer:
    from puyulm.engine.config import EngineConfig
    from puyulm.engine.engine import Engine
    from puyulm.engine.load import load_for_inference
    from puyulm.engine.params import SamplingParams

    model = load_for_inference(Path(path))
    shape = model.config
    memory = 4 * 2 * BATCH * CONTEXT * shape.num_layers * shape.num_kv_heads * shape.head_dim
    engine = Engine(model, config=EngineConfig(memory=memory, prefix_cache=False))

    def answer(prompts: Prompts, new: int) -> list[list[int]]:
        params = SamplingParams(temperature=0, max_new_tokens=new, ignore_eos=True)
        return [done.ids for done in engine.generate(prompts, params)]

    return answer


MAKERS: dict[str, Callable[[str, str, int], Answer]] = {
    "puyulm": puyulm, "transformers": transformers, "llama.cpp": llama_cpp, "CTranslate2": ctranslate2,
    "vLLM-cpu": vllm,
}  # fmt: skip
MODULES = {"transformers": "transformers", "llama.cpp": "llama_cpp", "CTranslate2": "ctranslate2", "vLLM-cpu": "vllm"}


class Contender:
    """A process that answers. Use as a context manager.

    Raises:
        RuntimeError: It failed; the message is what it wrote.
    """

    def __init__(self, name: str, path: Path, bits: str, vocab_size: int, threads: int) -> None:
        self.name = name
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  # as long as the process
        command = [sys.executable, "-m", "benchmarks.serving_peers", name, str(path), bits]
        environment = os.environ | {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false"}
        self._process = subprocess.Popen(
            [*command, "--vocab-size", str(vocab_size), "--threads", str(threads)], text=True, env=environment,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors,
        )  # fmt: skip
        self._read()

    def seconds(self, batch: int, prompt: int, new: int, seed: int) -> float:
        """Seconds that it takes to continue `batch` random prompts of `prompt` tokens by `new` tokens."""
        return float(self._ask(batch=batch, prompt=prompt, new=new, seed=seed)["seconds"])

    def tokens(self, prompt: int, new: int, seed: int) -> list[int]:
        """What it answers to a random prompt."""
        return self._ask(batch=1, prompt=prompt, new=new, seed=seed)["tokens"]

    def megabytes(self) -> float:
        """The most memory that it has had so far, besides that of its libraries."""
        return float(self._ask()["megabytes"])

    def _ask(self, **request: int) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.send_signal(signal.SIGCONT)
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        while not (line := self._process.stdout.readline()).startswith("{"):  # libraries print what they like
            if not line:
                self._errors.seek(0)
                raise RuntimeError(f"{self.name}'s process ended:\n{self._errors.read()[-4000:].strip()}")
        self._process.send_signal(signal.SIGSTOP)
        return json.loads(line)

    def __enter__(self) -> Contender:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.communicate()
        self._errors.close()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("name", choices=MAKERS)
    parser.add_argument("path")
    parser.add_argument("bits")
    parser.add_argument("--vocab-size", type=int)
    parser.add_argument("--threads", type=int)
    args = parser.parse_args()
    _end_with_parent()
    _import(args.name, args.threads)
    before = _memory("VmRSS")
    answer = MAKERS[args.name](args.path, args.bits, args.threads)
    print("{}", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(_respond(answer, args.vocab_size, before, **request)), flush=True)


def _respond(
    answer: Answer, vocab_size: int, before: float, batch: int = 0, prompt: int = 0, new: int = 0, seed: int = 0
) -> dict[str, Any]:
    if batch == 0:
        return {"megabytes": _memory("VmHWM") - before}
    rng = random.Random(seed)
    prompts = [[rng.randrange(3, vocab_size) for _ in range(prompt)] for _ in range(batch)]
    started = time.perf_counter()
    answers = answer(prompts, new)
    seconds = time.perf_counter() - started
    if [len(tokens) for tokens in answers] != [new] * batch:
        raise RuntimeError(f"asked for {batch} answers of {new} tokens, got {[len(tokens) for tokens in answers]}")
    return {"seconds": seconds, "tokens": list(answers[0])}


def _import(name: str, threads: int) -> None:
    """Loads the libraries, so that their own memory is not counted."""
    if name in ("puyulm", "transformers"):
        import torch

        torch.set_num_threads(threads)
    if name == "puyulm":
        import puyulm.engine.load  # noqa: F401
    elif name == "transformers":
        from transformers import LlamaForCausalLM  # noqa: F401
    elif name != "vLLM-cpu":
        __import__(MODULES[name])


def _memory(field: str) -> float:
    """Megabytes of this program, which `ru_maxrss` would count from that of its parent on."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(field + ":"))


def _end_with_parent() -> None:
    """A stopped process would outlive a parent that is killed."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


if __name__ == "__main__":
    main()
