"""Load any published checkpoint folder as it is, and write the published layout back.

Loading streams: parameters are allocated once and filled tensor by tensor. Names and shapes are compared with what the
configuration asks for before the first weight is read, so a wrong folder fails at once with the tensor, both shapes and
the file. Writing streams, too, and goes to a folder beside the target, which is renamed when it is complete.
"""

from __future__ import annotations

import difflib
import functools
import glob
import json
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from puyulm.errors import CheckpointError, ConfigError
from puyulm.model.config import ModelConfig
from puyulm.model.decoder import Decoder
from puyulm.model.hf_config import config_from_json, config_to_json, merge_config
from puyulm.model.layouts import Layout, Slot, layout_of, published_tensors
from puyulm.model.shards import Scratch, StoredTensor, bin_tensors, stored_tensors, tensor_names, weight_files
from puyulm.model.weight_writer import by_parameter, write_json, write_weights
from puyulm.progress import Progress

AUXILIARY_FILES = (
    "tokenizer.model", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "generation_config.json", "chat_template.jinja", "chat_template.json",
)  # fmt: skip

READERS = 2

Rows = Callable[[int, int], Tensor]
"""Reads rows `[start, stop)` of a published tensor, into memory that the next read may overwrite."""


def load_config(path: Path) -> ModelConfig:
    """Reads the configuration of a checkpoint folder or a GGUF file.

    Raises:
        ConfigError, CheckpointError: It is missing, damaged, or of an unknown model.
    """
    if path.suffix == ".gguf":
        from puyulm.model.gguf import gguf_config

        return gguf_config(path)
    file, raw = path / "config.json", read_config(path)
    if raw.get("model_type") == "internlm" and "model.tok_embeddings.weight" in tensor_names(path):
        raw["model_type"] = "internlm2"  # InternLM2's first week of release still called itself "internlm"
    return config_from_json(raw, str(file))


def read_config(folder: Path) -> dict[str, Any]:
    """The `config.json` of a checkpoint folder as it stands.

    Raises:
        ConfigError, CheckpointError: It is missing or damaged.
    """
    file = folder / "config.json"
    if not folder.is_dir():
        raise CheckpointError(f"{folder}: no such folder")
    if not file.is_file():
        raise CheckpointError(f"{folder}: no config.json; a checkpoint folder holds config.json and weights")
    return _json_object(file)


def _json_object(file: Path) -> dict[str, Any]:
    try:
        raw = json.loads(file.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{file}: not valid JSON ({error})") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{file}: must be a JSON object, not a {type(raw).__name__}")
    return raw


def quantization_config(path: Path) -> dict[str, Any] | None:
    """What a checkpoint folder says of its quantisation; None for a float one, and for a GGUF file, which is
    dequantised while it loads.

    Raises:
        ConfigError, CheckpointError: `config.json` is missing or damaged.
    """
    if path.suffix == ".gguf":
        return None
    given = read_config(path).get("quantization_config")
    # The first versions of AutoAWQ and AutoGPTQ wrote a file of their own.
    for file, method in ((path / "quant_config.json", "awq"), (path / "quantize_config.json", "gptq")):
        if given is None and file.is_file():
            given = {"quant_method": method, **_json_object(file)}
    if given is not None and not isinstance(given, dict):
        raise ConfigError(f"{path / 'config.json'}: quantization_config must be a JSON object, not {given!r}")
    return given


def refuse_quantized(path: Path) -> None:
    """Raises a CheckpointError where a folder's weights are quantised."""
    given = quantization_config(path)
    if given is not None:
        method = given.get("method", given.get("quant_method"))
        raise CheckpointError(f"{path}: its weights are quantised ({method}); this needs the model it was made from")


def default_dtype(config: ModelConfig, device: torch.device | str) -> torch.dtype:
    """The checkpoint's own type on an accelerator; float32 on a CPU, where half precision is slow or missing."""
    return torch.float32 if torch.device(device).type == "cpu" else stored_dtype(config)


def stored_dtype(config: ModelConfig) -> torch.dtype:
    """The type the checkpoint is stored in."""
    return getattr(torch, config.dtype)


def load_model(path: Path, dtype: torch.dtype | None = None, device: torch.device | str = "cpu") -> Decoder:
    """Loads a checkpoint folder, or a GGUF file, in evaluation mode.

    Peak memory is the final weights plus one tensor a reader (safetensors), or plus the largest file (`.bin`).

    Args:
        dtype: Of the parameters; None takes `default_dtype`.

    Raises:
        ConfigError, CheckpointError: With the tensor, the shapes and the file that do not fit.
    """
    if path.suffix == ".gguf":
        from puyulm.model.gguf import load_gguf_model

        return load_gguf_model(path, dtype, device)
    refuse_quantized(path)
    config = load_config(path)
    try:
        decoder = empty_decoder(config, dtype or default_dtype(config, device), device)
    except (RuntimeError, MemoryError) as error:
        reason = str(error).partition("\n")[0]
        raise CheckpointError(f"{path}: a model of these sizes cannot be made on {device} ({reason})") from None
    fill_decoder(decoder, path)
    return decoder.eval()


def empty_decoder(config: ModelConfig, dtype: torch.dtype, device: torch.device | str) -> Decoder:
    """A decoder whose parameters are allocated and hold nothing meaningful yet."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)  # parameters are made in it; nothing is made and then converted
    try:
        with torch.device(device):
            return Decoder(config)
    finally:
        torch.set_default_dtype(before)


@torch.no_grad()
def fill_decoder(decoder: Decoder, folder: Path) -> None:
    """Fills the parameters from a folder's weight files, whichever of the two layouts they have."""
    files = weight_files(folder)
    parameters = dict(decoder.named_parameters())
    wanted = published_tensors(decoder.config, layout_of(decoder.config))
    if files[0].suffix == ".safetensors":
        stored = _merge(files)
        _require({name: tensor.shape for name, tensor in stored.items()}, wanted, decoder.config, folder, stored)
        _read_all({name: stored[name] for name in wanted}, wanted, parameters, f"loading {folder.name}")
        return
    seen: dict[str, tuple[int, ...]] = {}
    with Progress(f"loading {folder.name}", total=len(files), unit="file") as progress:
        for file in files:
            for name, tensor in bin_tensors(file):
                if name in wanted:
                    _require_shape(name, tuple(tensor.shape), wanted[name].shape, file)
                    wanted[name].store(parameters[wanted[name].parameter], tensor.contiguous())
                seen[name] = tuple(tensor.shape)
            progress.advance()
    _require(seen, wanted, decoder.config, folder, dict.fromkeys(seen))


def each_published(folder: Path, config: ModelConfig) -> Iterator[tuple[str, Slot, Rows]]:
    """Every tensor of a folder's weight files, in turn: its name, where it belongs, and what reads some rows of it.

    Raises:
        CheckpointError: Names or shapes are not those of the configuration; of safetensors files this is known before
            the first tensor is given, of `.bin` files after the last.
    """
    files = weight_files(folder)
    wanted = published_tensors(config, layout_of(config))
    if files[0].suffix == ".safetensors":
        stored, scratch = _merge(files), Scratch()
        _require({name: tensor.shape for name, tensor in stored.items()}, wanted, config, folder, stored)
        for name, slot in wanted.items():
            yield name, slot, functools.partial(stored[name].read_rows, scratch)
        return
    seen: dict[str, tuple[int, ...]] = {}
    for file in files:
        for name, tensor in bin_tensors(file):
            seen[name] = tuple(tensor.shape)
            if name in wanted:
                _require_shape(name, seen[name], wanted[name].shape, file)
                yield name, wanted[name], functools.partial(_rows, tensor)
    _require(seen, wanted, config, folder, dict.fromkeys(seen))


def _rows(tensor: Tensor, start: int, stop: int) -> Tensor:
    return tensor[start:stop]


def _read_all(
    stored: Mapping[str, StoredTensor], slots: Mapping[str, Slot], parameters: Mapping[str, Tensor], label: str
) -> None:
    """Reads tensors in a few threads: reading and first touching memory both wait on the kernel."""
    local = threading.local()

    def read(name: str) -> int:
        tensor, slot = stored[name], slots[name]
        parameter = parameters[slot.parameter]
        if slot.view is None and tensor.dtype == parameter.dtype and parameter.is_cpu:
            tensor.read_into(parameter.data)  # no copy in between
        else:
            if not hasattr(local, "scratch"):
                local.scratch = Scratch()
            slot.store(parameter.data, tensor.read(local.scratch))
        return tensor.end - tensor.begin

    total = sum(tensor.end - tensor.begin for tensor in stored.values())
    with Progress(label, total=total, unit="B") as progress, ThreadPoolExecutor(READERS) as pool:
        for count in pool.map(read, stored):
            progress.advance(count)


def _merge(files: list[Path]) -> dict[str, StoredTensor]:
    stored: dict[str, StoredTensor] = {}
    for file in files:
        for name, tensor in stored_tensors(file).items():
            if name in stored:
                raise CheckpointError(f"{file}: tensor {name} is also in {stored[name].file.name}")
            stored[name] = tensor
    return stored


def _require(
    found: dict[str, tuple[int, ...]],
    wanted: dict[str, Slot],
    config: ModelConfig,
    folder: Path,
    files: dict[str, StoredTensor] | dict[str, None],
) -> None:
    """Raises unless names and shapes are exactly those wanted, but for tensors known to be redundant."""
    missing = [name for name in wanted if name not in found]
    unexpected = [name for name in found if name not in wanted and not _redundant(name, config)]
    other: Layout = "llama" if layout_of(config) == "internlm2" else "internlm2"
    if missing and set(published_tensors(config, other)) <= set(found):
        raise CheckpointError(f"{folder}: config.json says {config.family}, but the tensors have {other} names")
    if missing:
        near = difflib.get_close_matches(missing[0], unexpected, n=1)
        hint = f" (there is {near[0]})" if near else ""
        raise CheckpointError(f"{folder}: {_count(missing, 'tensor')} missing: {_some(missing)}{hint}")
    if unexpected:
        stored = files[unexpected[0]]
        where = stored.file if stored else folder
        raise CheckpointError(f"{where}: {_count(unexpected, 'unexpected tensor')}: {_some(unexpected)}")
    for name, slot in wanted.items():
        stored = files[name]
        _require_shape(name, found[name], slot.shape, stored.file if stored else folder)
        if stored is not None and not stored.dtype.is_floating_point:
            raise CheckpointError(f"{stored.file}: {name} holds {stored.dtype}, but weights are floating-point numbers")


def _require_shape(name: str, found: tuple[int, ...], expected: tuple[int, ...], where: Path) -> None:
    if found != expected:
        raise CheckpointError(f"{where}: {name} has shape {list(found)}, config.json asks for {list(expected)}")


def _redundant(name: str, config: ModelConfig) -> bool:
    """Tensors that published files hold and that can be made anew: rotary frequencies, a tied head."""
    tied_head = config.tie_embeddings and name in ("lm_head.weight", "output.weight")
    return tied_head or name.endswith("rotary_emb.inv_freq")


def _count(names: list[str], noun: str) -> str:
    return f"{len(names)} {noun}{'s' if len(names) > 1 else ''}"


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f", and {len(names) - 3} more" if len(names) > 3 else "")


def save_model(
    decoder: Decoder,
    folder: Path,
    *,
    source: Path | None = None,
    layout: Literal["own", "llama"] = "own",
    overwrite: bool = False,
    max_shard_bytes: int = 5_000_000_000,
    write_extra: Callable[[Path], None] | None = None,
) -> None:
    """Writes a checkpoint in the published layout, stored in the type that the parameters have; see `write_model`."""
    config = decoder.config.evolve(dtype=str(decoder.embed.weight.dtype).removeprefix("torch."))
    parameters = dict(decoder.named_parameters())
    write_model(
        config, ((name, parameters[name]) for name in parameter_order(config)), folder, source=source, layout=layout,
        overwrite=overwrite, max_shard_bytes=max_shard_bytes, write_extra=write_extra,
    )  # fmt: skip


def parameter_order(config: ModelConfig) -> list[str]:
    """Names of all parameters, a shared one once, in the order in which `write_model` wants them."""
    return list(by_parameter(config, layout_of(config)))


def write_model(
    config: ModelConfig,
    parameters: Iterable[tuple[str, Tensor]],
    folder: Path,
    *,
    source: Path | None = None,
    layout: Literal["own", "llama"] = "own",
    overwrite: bool = False,
    max_shard_bytes: int = 5_000_000_000,
    write_extra: Callable[[Path], None] | None = None,
) -> None:
    """Writes a checkpoint in the published layout: safetensors (with an index when sharded), `config.json`,
    `generation_config.json`, and the tokenizer's files. One parameter is in memory at a time.

    Args:
        config: Of the model; its `dtype` is what the weights are stored in.
        parameters: Name and whole value of every parameter, in the order of `parameter_order`.
        folder: Made whole or not at all.
        source: Checkpoint folder to take tokenizer, generation and chat template files from; in the family's own
            layout also its code (`*.py`, for those who run it) and the keys of its `config.json` that are not ours.
        layout: "own" is the family's; "llama" is what transformers loads without remote code.
        overwrite: Replace an existing folder.
        write_extra: Called with the unfinished folder, to add files of the caller's.

    Raises:
        CheckpointError: The folder exists and `overwrite` is off, or it cannot be written.
        ConfigError: The layout cannot express the model.
    """
    raw = updated_config(config, layout, source)
    with new_checkpoint(folder, overwrite=overwrite) as partial:
        files = layout_of(config) if layout == "own" else "llama"
        write_weights(config, parameters, partial, files, stored_dtype(config), max_shard_bytes)
        write_companions(partial, raw, source, code=layout == "own")
        if write_extra is not None:
            write_extra(partial)


def updated_config(config: ModelConfig, layout: Literal["own", "llama"], source: Path | None) -> dict[str, Any]:
    """The `config.json` of a model; in the family's own layout with the keys of the source's that are not ours.

    Raises:
        ConfigError: The layout cannot express the model.
    """
    raw = config_to_json(config, layout)
    if source is not None and layout == "own" and (source / "config.json").is_file():
        published = read_config(source)
        if published.get("model_type") == config.family:
            return merge_config(published, raw)
    return raw


@contextmanager
def new_checkpoint(folder: Path, *, overwrite: bool) -> Iterator[Path]:
    """A new folder to write a checkpoint into, which takes the place of `folder` when it is complete; after an error
    or an interruption `folder` is as it was, and the new one gone.

    Raises:
        CheckpointError: The folder exists and `overwrite` is off, or it cannot be written.
    """
    folder = Path(os.path.abspath(folder))
    if folder == Path.cwd():  # its replacement would leave the caller in a removed folder
        raise CheckpointError(f"{folder}: is the current folder, which cannot be replaced; name another")
    if folder.exists() and not overwrite and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"{folder}: already exists; choose another folder, or overwrite it (--overwrite)")
    partial = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    try:
        _remove_leftovers(folder)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        replace_folder(partial, folder)
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be written: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_companions(folder: Path, raw: Mapping[str, Any], source: Path | None, *, code: bool) -> None:
    """Writes what stands beside the weights: `config.json`, `generation_config.json`, and files taken from `source`:
    the tokenizer's, its own generation settings, and with `code` its `*.py`."""
    write_json(folder / "config.json", raw)
    write_json(folder / "generation_config.json", {k: raw[k] for k in raw if k.endswith("_token_id")})
    if source is not None:
        for name in (*AUXILIARY_FILES, *(file.name for file in sorted(source.glob("*.py")) if code)):
            if (source / name).is_file():
                shutil.copyfile(source / name, folder / name)


def _remove_leftovers(folder: Path) -> None:
    """Removes what processes that were killed while writing this folder have left beside it."""
    if os.name != "posix":  # elsewhere there is no asking after a process without touching it
        return
    for partial in folder.parent.glob(f".{glob.escape(folder.name)}.partial-*"):
        pid = partial.name.rpartition("-")[2]
        try:
            os.kill(int(pid), 0)
        except ProcessLookupError:
            shutil.rmtree(partial, ignore_errors=True)
        except (ValueError, OverflowError, PermissionError):
            continue


def replace_folder(new: Path, folder: Path) -> None:
    """Puts a finished folder in place of another, which is removed only once the new one stands."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    old = folder.with_name(f".{folder.name}.old-{os.getpid()}")
    if folder.exists():
        os.rename(folder, old)
    os.rename(new, folder)
    shutil.rmtree(old, ignore_errors=True)
