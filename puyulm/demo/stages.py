"""The stages of the demo, each a function from the results of those before to its own.

A stage's results are kept in `stages/NAME.json` with a digest of everything they depend on: the stage's settings, and
the digests and results of the stages before. A stage whose digest is unchanged is not done again, so an interrupted
demo goes on where it stopped; pretraining and fine-tuning resume inside, from their own checkpoints.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from puyulm.demo.recipe import DemoRecipe, recipe_path
from puyulm.recipe import load_recipe, recipe_dict

Json = dict[str, Any]


@dataclass(frozen=True)
class Demo:
    """Where the demo works, and what it was told."""

    recipe: DemoRecipe
    folder: Path

    def path(self, *parts: str) -> Path:
        return self.folder.joinpath(*parts)


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
        settings: What its results depend on, besides the stages before.
        outputs: Files and folders that must still be there for its results to count.
        run: Does it; the results of the stages before, by name, are handed in.
    """

    name: str
    title: str
    settings: Any
    outputs: tuple[Path, ...]
    run: Callable[[Demo, dict[str, Json]], Json]


def run_stages(demo: Demo) -> dict[str, Json]:
    """Does what is not done yet, and returns every stage's results by name."""
    results: dict[str, Json] = {}
    digest = ""
    for number, stage in enumerate(stages(demo), 1):
        digest = _digest(digest, stage)
        record = demo.path("stages", f"{stage.name}.json")
        kept = _kept(record, digest, stage)
        if kept is not None:
            print(f"\n[{number}] {stage.title}: done before, in {kept['seconds']:.0f} s", flush=True)
            results[stage.name] = kept
            digest = _chain(digest, kept)
            continue
        print(f"\n[{number}] {stage.title}", flush=True)
        started = time.monotonic()
        result = stage.run(demo, results)
        result |= {"seconds": round(time.monotonic() - started, 1), "digest": digest}
        _write(record, json.dumps(result, ensure_ascii=False, indent=1))
        results[stage.name] = result
        digest = _chain(digest, result)
    return results


def stages(demo: Demo) -> list[Stage]:
    """The demo's stages in order."""
    recipe, path = demo.recipe, demo.path
    pretrain, sft = _pretrain_recipe(demo), _sft_recipe(demo)
    free = dict(out=Path("-"))
    return [
        Stage("corpus", "Collect and clean real text", recipe.corpus, (path("corpus", "train.jsonl.gz"),), _corpus),
        Stage("tokenizer", "Train a tokenizer", recipe.tokenizer, (path("tokenizer"), path("shards")), _tokenizer),
        Stage("baselines", "Measure n-gram baselines on the same text", None, (), _baselines),
        Stage("pretrain", "Pretrain", replace(pretrain, **free), (pretrain.out / "model",), _pretrain),
        Stage("tasks", "Make questions with checkable answers", recipe.tasks, (path("tasks"),), _tasks),
        Stage("sft", "Fine-tune on them", replace(sft, **free), (sft.out / "model",), _sft),
        Stage("evaluate", "Evaluate base and tuned model", recipe.evaluation,
              tuple(path("evaluation", *name) for name in product(("base", "tuned"), ("results.json", "judged"))),
              _evaluate),
    ]  # fmt: skip


def _corpus(demo: Demo, _: dict[str, Json]) -> Json:
    from puyulm.data.collect import collect, collection_table

    report = collect(demo.path("corpus"), demo.recipe.corpus)
    print(collection_table(report))
    return {
        "sources": [asdict(source) for source in report.sources],
        "missing": report.missing,
        "notes": report.notes,
        "dropped": dict(report.cleaning.dropped),
    }


def _tokenizer(demo: Demo, _: dict[str, Json]) -> Json:
    from puyulm.data.documents import read_documents
    from puyulm.data.shards import tokenize_documents
    from puyulm.text.tokenizer import Tokenizer
    from puyulm.text.train import train_tokenizer

    settings, folder = demo.recipe.tokenizer, demo.path("tokenizer")
    texts = [document.text for document in read_documents(demo.path("corpus", "train.jsonl.gz"))]
    report = train_tokenizer(texts, settings.vocab_size, folder, settings.kind, max_digits=settings.max_digits)
    print(report)
    tokenizer = Tokenizer.load(folder)
    counts = {}
    for side in ("train", "valid"):
        documents = read_documents(demo.path("corpus", f"{side}.jsonl.gz"))
        shards = tokenize_documents(documents, tokenizer, demo.path("shards", side), eos=True)
        counts[side] = {"tokens": shards.num_tokens, "bytes": shards.num_bytes, "documents": shards.num_documents}
        print(f"{side}: {shards.num_tokens:,} tokens of {shards.num_bytes / 1e6:.1f} MB of text")
    return {"vocab_size": tokenizer.vocab_size, "bytes_per_token": report.bytes_per_token, "counts": counts}


def _baselines(demo: Demo, _: dict[str, Json]) -> Json:
    from puyulm.data.documents import read_documents
    from puyulm.data.ngram import byte_stream, ngram_bits_per_byte, token_stream
    from puyulm.data.shards import TokenShards

    train, valid = (TokenShards.open(demo.path("shards", side)) for side in ("train", "valid"))
    texts = {
        side: [document.text for document in read_documents(demo.path("corpus", f"{side}.jsonl.gz"))]
        for side in ("train", "valid")
    }
    result = {}
    for name, order, streams, vocab in (
        ("unigram of bytes", 1, (byte_stream(texts["train"]), byte_stream(texts["valid"])), 256),
        ("unigram of tokens", 1, (token_stream(train), token_stream(valid)), train.vocab_size),
        ("5-gram of bytes", 5, (byte_stream(texts["train"]), byte_stream(texts["valid"])), 256),
        ("5-gram of tokens", 5, (token_stream(train), token_stream(valid)), train.vocab_size),
    ):
        result[name] = ngram_bits_per_byte(*streams, order, vocab, valid.num_bytes)
        print(f"{name} (Kneser-Ney): {result[name]:.3f} bits per byte")
    return {"bits_per_byte": result}


def _pretrain(demo: Demo, results: dict[str, Json]) -> Json:
    from puyulm.train.pretrain import pretrain

    recipe = _pretrain_recipe(demo)
    _clear_unless_begun_so(recipe.out, demo, "pretrain", results)
    result = pretrain(recipe)
    measured = result.validation["bits_per_byte"]
    print(f"{result.tokens:,} tokens; validation {measured:.3f} bits per byte")
    return {"steps": result.steps, "tokens": result.tokens, "bits_per_byte": measured}


def _tasks(demo: Demo, _: dict[str, Json]) -> Json:
    from puyulm.align.tasks import make_mixture, write_conversations, write_items

    settings, folder = demo.recipe.tasks, demo.path("tasks")
    train = make_mixture(settings.train, settings.seed, "train")
    held_out = make_mixture(dict.fromkeys(settings.train, settings.held_out), settings.seed, "held-out")
    watched, learned = train[: len(train) // 100 + 1], train[len(train) // 100 + 1 :]
    write_conversations(watched, folder / "valid.jsonl")
    write_conversations(learned, folder / "train.jsonl", turns=3)
    write_items(train[:1000], folder / "examples.jsonl")
    write_items(held_out, folder / "held-out.jsonl")
    print(f"{len(learned):,} questions to learn from, {len(held_out):,} held out; {', '.join(settings.train)}")
    return {"train": len(learned), "held_out": len(held_out), "kinds": list(settings.train)}


def _sft(demo: Demo, results: dict[str, Json]) -> Json:
    from puyulm.align.sft import sft

    recipe = _sft_recipe(demo)
    _clear_unless_begun_so(recipe.out, demo, "sft", results)
    result = sft(recipe)
    print(f"{result.steps:,} steps; validation loss {result.validation['loss']:.4f} nats per answer token")
    return {"steps": result.steps, "tokens": result.tokens, "loss": result.validation["loss"]}


def _evaluate(demo: Demo, _: dict[str, Json]) -> Json:
    from puyulm.demo.evaluation import evaluate

    window = max(phase.seq_len for phase in _pretrain_recipe(demo).phases)
    return evaluate(demo.folder, demo.recipe.evaluation, window)


def _pretrain_recipe(demo: Demo) -> Any:
    from puyulm.train.pretrain import PretrainRecipe

    recipe = load_recipe(PretrainRecipe, recipe_path(demo.recipe.pretrain))
    path = demo.path
    return replace(recipe, tokenizer=path("tokenizer"), data=path("shards", "train"), valid=path("shards", "valid"),
                   out=path("pretrain"))  # fmt: skip


def _sft_recipe(demo: Demo) -> Any:
    from puyulm.align.sft import SFTRecipe

    recipe = load_recipe(SFTRecipe, recipe_path(demo.recipe.sft))
    path = demo.path
    return replace(recipe, model=str(path("pretrain", "model")), data=(path("tasks", "train.jsonl"),),
                   valid=path("tasks", "valid.jsonl"), out=path("sft"))  # fmt: skip


def _clear_unless_begun_so(out: Path, demo: Demo, name: str, results: dict[str, Json]) -> None:
    """Removes the run in a folder if it was begun from other inputs than those of now."""
    mark = out / "demo-inputs"
    inputs = json.dumps({stage: result["digest"] for stage, result in results.items()} | {"stage": name})
    settings = {stage.name: stage for stage in stages(demo)}[name].settings
    inputs += json.dumps(recipe_dict(settings), default=str)
    if mark.is_file() and mark.read_text("utf-8").strip() == inputs:
        return
    shutil.rmtree(out, ignore_errors=True)  # before the mark: an interruption in between must not leave the two apart
    _write(mark, inputs)


def _digest(before: str, stage: Stage) -> str:
    settings = None if stage.settings is None else recipe_dict(stage.settings)
    content = json.dumps([before, stage.name, settings], default=str, sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _chain(digest: str, result: Json) -> str:
    """The digest after a stage: it changes with what came out of the stage, too."""
    content = json.dumps([digest, {key: value for key, value in result.items() if key != "seconds"}], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _kept(record: Path, digest: str, stage: Stage) -> Json | None:
    """The results of an earlier run, if they are still true."""
    try:
        kept = json.loads(record.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    fresh = isinstance(kept, dict) and kept.get("digest") == digest
    return kept if fresh and all(output.exists() for output in stage.outputs) else None


def _write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.partial")
    partial.write_text(text + "\n" if not text.endswith("\n") else text, "utf-8")
    os.replace(partial, file)
