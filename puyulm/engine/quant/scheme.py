"""What a quantised checkpoint folder holds: `quantization_config`, and the tensors that stand for each matrix.

A folder has the names of its family. In place of `NAME.weight` of a quantised matrix there are `NAME.codes`,
`NAME.scales` and, with zero points, `NAME.zeros`, laid out as in `QuantizedWeight` and `Float8Weight`. Names are the
published ones and not those of our fused matrices because rows are quantised one by one: taking a matrix apart by
rows and putting it together again is exact, and nobody who reads the files has to know in what order we fuse.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from puyulm.engine.quant.float8 import E4M3, Float8Weight
from puyulm.engine.quant.linear import Activations, AnyWeight
from puyulm.engine.quant.published import Entry
from puyulm.engine.quant.rounding import scale_dtype
from puyulm.engine.quant.settings import QuantSettings
from puyulm.engine.quant.tensor import Bits, QuantizedWeight
from puyulm.errors import CheckpointError
from puyulm.model.config import ModelConfig
from puyulm.model.layouts import Slot, layout_of, published_tensors

QUANT_METHOD = "puyulm"
VERSION = 1


@dataclass(frozen=True)
class MatrixScheme:
    """How one matrix is stored: integers, or e4m3 numbers ("float8", which has neither bits nor groups)."""

    kind: Literal["integer", "float8"]
    bits: Bits = 8
    group_size: int | None = None
    zero_point: bool = False

    def stored(self, rows: int, columns: int) -> dict[str, tuple[torch.dtype, tuple[int, int]]]:
        """Suffix, type and shape of each tensor that stands for a matrix `[rows, columns]`."""
        if self.kind == "float8":
            return {"codes": (E4M3, (rows, columns)), "scales": (torch.float32, (rows, 1))}
        size = self.group_size or columns
        codes = (torch.int8, (rows, columns)) if self.bits == 8 else (torch.uint8, (rows, columns // 2))
        tensors = {"codes": codes, "scales": (scale_dtype(columns, size), (rows, columns // size))}
        return tensors | ({"zeros": (torch.uint8, (rows, columns // size))} if self.zero_point else {})

    def tensors(self, rows: int, columns: int) -> dict[str, Entry]:
        """The same, with the types that a reader takes."""
        return {suffix: ((dtype,), shape) for suffix, (dtype, shape) in self.stored(rows, columns).items()}

    def misfit(self, rows: int, columns: int) -> str | None:
        """Why a matrix of this shape cannot be stored so, or None."""
        if self.group_size is not None and columns % self.group_size:
            return f"has {columns} columns, which groups of {self.group_size} do not divide"
        return "has an odd number of columns" if self.bits == 4 and columns % 2 else None

    def take_apart(self, weight: AnyWeight) -> dict[str, Tensor]:
        """The tensors of a matrix, by suffix."""
        parts = {"codes": weight.codes, "scales": weight.scales}
        if isinstance(weight, QuantizedWeight) and self.zero_point:
            parts["zeros"] = torch.full_like(weight.scales, 8, dtype=torch.uint8)
            if weight.zeros is not None:
                parts["zeros"] = weight.zeros
        return parts

    def unpack(self, parts: Mapping[str, Tensor]) -> AnyWeight:
        """The matrix of some tensors."""
        if self.kind == "float8":
            return Float8Weight(parts["codes"], parts["scales"])
        columns = parts["codes"].shape[1] * (2 if self.bits == 4 else 1)
        zeros = parts.get("zeros")
        if zeros is not None and bool((zeros == 8).all()):
            zeros = None
        return QuantizedWeight(parts["codes"], parts["scales"], zeros, self.bits, self.group_size or columns)


@dataclass(frozen=True)
class Scheme:
    """How a folder's matrices are stored.

    Attributes:
        layers: Of the matrices in the layers.
        head: Of the language-model head; None where it is not quantised.
        method: Who chose the codes.
        activations: "int8" where the weights were prepared for 8-bit activations.
    """

    layers: MatrixScheme
    head: MatrixScheme | None
    method: str
    activations: Activations = None

    def of(self, parameter: str) -> MatrixScheme | None:
        """The scheme of one of our parameters; None where it is stored as it is."""
        if parameter == "head.weight":
            return self.head
        return self.layers if is_layer_matrix(parameter) else None


def scheme_of(settings: QuantSettings, config: ModelConfig) -> Scheme:
    """What settings make of a model."""
    size = settings.group_size
    layers = MatrixScheme("integer", settings.bits, size, settings.zero_point)
    if settings.method == "fp8":
        layers = MatrixScheme("float8")
    head = None
    if settings.head != "keep" and config.head == "lm":
        head = MatrixScheme("integer", 4 if settings.head == "int4" else 8, size)
    return Scheme(layers, head, settings.method, "int8" if settings.method == "smoothquant" else None)


def scheme_to_json(scheme: Scheme) -> dict[str, Any]:
    """The `quantization_config` of `config.json`."""
    return {
        "quant_method": QUANT_METHOD,
        "version": VERSION,
        "method": scheme.method,
        **_matrix_to_json(scheme.layers),
        "activations": scheme.activations,
        "head": None if scheme.head is None else _matrix_to_json(scheme.head),
    }


def scheme_from_json(raw: Mapping[str, Any], where: str) -> Scheme:
    """Reads what `scheme_to_json` writes.

    Raises:
        CheckpointError: A newer version, or a value that we do not write.
    """
    if raw.get("version") != VERSION:
        raise CheckpointError(
            f"{where}: quantization_config has version {raw.get('version')!r}, this PuyuLM reads {VERSION}; update it"
        )
    head, activations = raw.get("head"), raw.get("activations")
    if activations not in (None, "int8"):
        raise CheckpointError(f"{where}: quantization_config has unknown activations {activations!r}")
    return Scheme(
        _matrix_from_json(raw, where), None if head is None else _matrix_from_json(head, where),
        str(raw.get("method")), activations,
    )  # fmt: skip


def head_slots(config: ModelConfig) -> dict[str, Slot]:
    """All published tensors, and the head under its own name even where it is tied: quantised, it is a matrix apart."""
    return published_tensors(config.evolve(tie_embeddings=False), layout_of(config))


def part_slot(slot: Slot, columns: int) -> Slot:
    """Where the rows of a published matrix lie in one of the tensors of a fused matrix, which has other columns."""
    view = None if slot.view is None else (*slot.view[:-1], columns)
    return Slot(slot.parameter, (slot.shape[0], columns), view, slot.parts)


def is_layer_matrix(parameter: str) -> bool:
    """Whether one of our parameters is a matrix of a layer."""
    return parameter.startswith("layers.") and parameter.endswith(".weight") and "norm" not in parameter


def base_name(name: str) -> str:
    """ "model.layers.0.feed_forward.w1" of its ".weight"."""
    return name.removesuffix(".weight")


def stored_parts(config: ModelConfig, scheme: Scheme) -> Iterator[tuple[str, str, Slot]]:
    """Every published tensor that a folder of this scheme has a value for: name, our parameter, slot."""
    for name, slot in head_slots(config).items():
        if slot.parameter == "head.weight" and config.tie_embeddings and scheme.head is None:
            continue
        yield name, slot.parameter, slot


def _matrix_to_json(matrix: MatrixScheme) -> dict[str, Any]:
    if matrix.kind == "float8":
        return {"kind": "float8"}
    return {
        "kind": "integer", "bits": matrix.bits, "group_size": matrix.group_size, "zero_point": matrix.zero_point,
    }  # fmt: skip


def _matrix_from_json(raw: Any, where: str) -> MatrixScheme:
    if isinstance(raw, dict) and raw.get("kind") == "float8":
        return MatrixScheme("float8")
    if isinstance(raw, dict) and raw.get("kind") == "integer" and raw.get("bits") in (4, 8):
        size = raw.get("group_size")
        if size is None or (isinstance(size, int) and size >= 2):
            return MatrixScheme("integer", raw["bits"], size, bool(raw.get("zero_point")))
    raise CheckpointError(f"{where}: quantization_config does not say how matrices are stored: {raw!r}")
