"""LoRA adapters at run time: several of them, and none, among the rows of one forward.

Nothing is merged. Each linear layer that an adapter changes is wrapped from outside; the wrapper adds the low-rank
products to the rows of that adapter's requests and leaves all other rows as they are, bit for bit. Where nothing is
loaded, nothing is wrapped.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from puyulm.engine.adapter_files import LowRankWeights, read_adapter
from puyulm.engine.cpu import dense
from puyulm.engine.cpu.onednn import PackedLinear
from puyulm.errors import GenerationError
from puyulm.model.decoder import Decoder, Linear


class LowRank(nn.Module):
    """`x -> up (down x)`, each row for itself."""

    def __init__(self, weights: LowRankWeights, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.down = _row_wise(weights.down.to(device, dtype))
        self.up = _row_wise(weights.up.to(device, dtype))

    def forward(self, x: Tensor) -> Tensor:
        """`[T, in]` -> `[T, out]`."""
        return self.up(self.down(x))


def _row_wise(weight: Tensor) -> nn.Module:
    """A product with `[N, K]` in which, on CPUs, no row of the result depends on another one."""
    linear = Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    if weight.device.type != "cpu" or weight.dtype != torch.float32:
        return linear
    if dense.available():
        return dense.DenseLinear(linear)
    try:
        return PackedLinear(linear)
    except (RuntimeError, AttributeError):  # torch without oneDNN
        return linear


class Adapter:
    """A loaded adapter; it lives as long as a request holds it.

    Attributes:
        version: No two adapters that an engine has loaded share it, whatever their names.
        parts: By the name of the linear layer.
    """

    def __init__(self, name: str, version: int, parts: Mapping[str, LowRank]) -> None:
        self.name, self.version, self.parts = name, version, parts


class StepRows:
    """Which rows of the forward in progress are whose.

    Attributes:
        groups: Adapters and their rows, `[rows]`; None: all of them.
    """

    def __init__(self) -> None:
        self.groups: list[tuple[Adapter, Tensor | None]] = []


class LoraLinear(nn.Module):
    """A linear layer, and what adapters add to it. Parameters keep the names they have without it.

    Attributes:
        steps: Of each bank (a model may serve several engines) that has an adapter for the layer.
    """

    def __init__(self, inner: nn.Module, name: str) -> None:
        super().__init__()
        self.name = name
        self.steps: list[StepRows] = []
        self._inner = (inner,)  # in a tuple, where it is no child
        for own, parameter in inner.named_parameters(recurse=False):
            self.register_parameter(own, parameter)

    @property
    def inner(self) -> nn.Module:
        return self._inner[0]

    def forward(self, x: Tensor) -> Tensor:
        """`[T, in]` -> `[T, out]`."""
        return self._add(self.inner(x), x)

    def add_to(self, residual: Tensor, x: Tensor) -> Tensor:
        """Adds the product of x, `[T, in]`, to the residual stream, `[T, out]`, in place, and returns it."""
        return self._add(self.inner.add_to(residual, x), x)  # type: ignore[operator]

    def _add(self, out: Tensor, x: Tensor) -> Tensor:
        for adapter, rows in itertools.chain.from_iterable(step.groups for step in self.steps):
            part = adapter.parts.get(self.name)
            if part is None:
                continue
            # Always a product first and then one sum, so that a row is the same among its like and among others.
            if rows is None:
                out += part(x).to(out.dtype)
            else:
                out.index_add_(0, rows, part(x[rows]).to(out.dtype))
        return out


class AdapterBank:
    """The adapters of a model.

    Args:
        model: Its linear layers are wrapped while there is an adapter for them.
    """

    def __init__(self, model: Decoder) -> None:
        self.model = model
        self._loaded: dict[str, Adapter] = {}
        self._alive: weakref.WeakSet[Adapter] = weakref.WeakSet()  # also those that only a request holds
        self._rows = StepRows()
        self._wrapped: frozenset[str] = frozenset()
        self._versions = itertools.count(1)

    @property
    def names(self) -> list[str]:
        """What new requests may ask for."""
        return list(self._loaded)

    @property
    def active(self) -> bool:
        """Whether `place` must be called before a forward."""
        return bool(self._wrapped) or len(self._alive) > 0

    def find(self, name: str | None) -> Adapter | None:
        """The adapter of this name; None for None.

        Raises:
            GenerationError: None has this name.
        """
        if name is None:
            return None
        if name not in self._loaded:
            raise GenerationError(f"no adapter {name!r} is loaded (there are: {', '.join(self._loaded) or 'none'})")
        return self._loaded[name]

    def load(self, name: str, folder: Path | str) -> None:
        """Reads an adapter; see `puyulm.engine.adapter_files`.

        Raises:
            CheckpointError: It cannot be used with this model.
            GenerationError: The name is taken or empty, or the model is split over processes.
        """
        if not name:
            raise GenerationError("an adapter needs a name")
        if name in self._loaded:
            raise GenerationError(f"an adapter {name!r} is loaded already: unload it first, or take another name")
        weight = self.model.embed.weight
        weights = read_adapter(Path(folder), self.model.config)
        self._check_whole(weights)
        parts = {place: LowRank(pair, weight.dtype, weight.device) for place, pair in weights.items()}
        self._loaded[name] = adapter = Adapter(name, next(self._versions), parts)
        self._alive.add(adapter)

    def unload(self, name: str) -> None:
        """Takes the name away at once. Requests that have it are answered to their end; then its memory is free.

        Raises:
            GenerationError: None has this name.
        """
        self.find(name)
        del self._loaded[name]

    def place(self, step: Sequence[tuple[Adapter | None, int]]) -> None:
        """Says whose the rows of the next forward are.

        Args:
            step: Of each of its pieces the adapter and the number of rows.
        """
        self._wrap(self._alive)
        spans: dict[Adapter, list[range]] = {}
        start = 0
        for adapter, count in step:
            if adapter is not None:
                spans.setdefault(adapter, []).append(range(start, start + count))
            start += count
        device = self.model.embed.weight.device
        self._rows.groups = [
            (adapter, None if sum(map(len, rows)) == start else _index(rows, device)) for adapter, rows in spans.items()
        ]

    def leave(self) -> None:
        """Ends what `place` has said: whoever else runs this model (another engine, a draft) has rows of its own."""
        self._rows.groups = []

    def _check_whole(self, weights: Mapping[str, LowRankWeights]) -> None:
        for name, pair in weights.items():
            linear = self.model.get_submodule(name)
            linear = linear.inner if isinstance(linear, LoraLinear) else linear
            shape = tuple(getattr(linear, size, None) for size in ("out_features", "in_features"))
            if shape != (pair.up.shape[0], pair.down.shape[1]):
                raise GenerationError(
                    "the model is split over several processes, and adapters need it whole: merge the adapter into "
                    "the model, or serve it in one process"
                )

    def _wrap(self, adapters: Iterable[Adapter]) -> None:
        """Wraps exactly the layers that these adapters change, and those that other banks need."""
        wanted = frozenset(name for adapter in adapters for name in adapter.parts)
        if wanted == self._wrapped:
            return
        for name in self._wrapped ^ wanted:
            path, _, attribute = name.rpartition(".")
            owner = self.model.get_submodule(path)
            linear = getattr(owner, attribute)
            if not isinstance(linear, LoraLinear):
                linear = LoraLinear(linear, name)
                setattr(owner, attribute, linear)
            if name in wanted:
                linear.steps.append(self._rows)
            else:
                linear.steps.remove(self._rows)
            if not linear.steps:
                setattr(owner, attribute, linear.inner)
        self._wrapped = wanted


def _index(rows: Sequence[range], device: torch.device) -> Tensor:
    return torch.tensor(list(itertools.chain.from_iterable(rows)), device=device)
