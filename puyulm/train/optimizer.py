"""The optimizers: fused AdamW that clips and skips without looking at the device, and Muon for the layers' matrices."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Replicate

from puyulm.errors import TrainError
from puyulm.model.config import ModelConfig
from puyulm.model.layouts import Slot, published_tensors
from puyulm.train.settings import TrainSettings

MUON_MOMENTUM = 0.95
NEWTON_SCHULZ = ((3.4445, -4.7750, 2.0315),) * 5
"""Coefficients (a, b, c) of each iteration; see `orthogonalized`."""

CHUNK_VALUES = 1 << 24
"""States in half precision are widened so many values at a time: 64 MB for each of the two moments."""


class Optimizer:
    """AdamW, and Muon for the layers' matrices where the settings say so.

    Weight decay is decoupled and on matrices only: norms, biases and other vectors are not decayed. Clipping and
    skipping are part of the update: gradients are multiplied with `scale` on the way, and with `skip` set nothing
    changes, whatever the gradients hold. Both are read on the device.

    States are named after parameters and placed like them, so that checkpoints can be cut anew for another layout.

    Args:
        parameters: By the decoder's names; frozen ones are left out.
        config: Of the model; Muon needs it, to tell the matrices apart that share a parameter.

    Raises:
        TrainError: There is nothing to train.
    """

    def __init__(
        self, parameters: Mapping[str, nn.Parameter], settings: TrainSettings, config: ModelConfig | None = None
    ) -> None:
        self.settings = settings
        self.parameters = {name: p for name, p in parameters.items() if p.requires_grad}
        if not self.parameters:
            raise TrainError("there is nothing to train: all parameters are frozen")
        self._slots: dict[str, list[Slot]] = {}
        if settings.optimizer == "muon":
            assert config is not None, "Muon needs the model's configuration"
            self._slots = {name: slots for name, slots in layer_matrices(config).items() if name in self.parameters}
        dtype = getattr(torch, settings.state_dtype)
        self.steps = torch.zeros((), device=next(iter(self.parameters.values())).device)
        self.states = {
            f"{kind}.{name}": torch.zeros_like(p, dtype=dtype, requires_grad=False)
            for name, p in self.parameters.items()
            for kind in (("momentum",) if name in self._slots else ("exp_avg", "exp_avg_sq"))
        }

    def state_tensors(self) -> dict[str, Tensor]:
        """Everything that a checkpoint must hold, by name; to be filled in place."""
        return {"step": self.steps, **self.states}

    def zero_grad(self) -> None:
        """Frees the gradients."""
        for parameter in self.parameters.values():
            parameter.grad = None

    @torch.no_grad()
    def step(self, lr: float, scale: Tensor, skip: Tensor) -> None:
        """One update. Parameters without a gradient stay as they are; gradients are used up.

        Args:
            scale: Scalar that gradients are multiplied with.
            skip: Scalar bool; where true nothing changes.
        """
        names = [name for name, parameter in self.parameters.items() if parameter.grad is not None]
        self.steps += ~skip
        for name in names:
            if name in self._slots:
                self._muon(name, lr, scale, skip)
        for matrices in (True, False):
            group = [name for name in names if name not in self._slots and self._is_matrix(name) == matrices]
            self._adamw(group, lr, self.settings.weight_decay if matrices else 0.0, scale, skip)

    def _is_matrix(self, name: str) -> bool:
        return self.parameters[name].dim() >= 2

    def _adamw(self, names: Sequence[str], lr: float, decay: float, scale: Tensor, skip: Tensor) -> None:
        tensors = [
            (_local(self.parameters[name]), _local(self.parameters[name].grad), *map(_local, self._states_of(name)))
            for name in names
        ]
        settings = self.settings
        for group in _chunks(tensors, CHUNK_VALUES) if settings.state_dtype != "float32" else [tensors]:
            if not group:
                continue
            parameters, gradients, *states = (list(part) for part in zip(*group, strict=True))
            first, second = ([state.float() for state in part] for part in states)
            # The operator behind torch.optim.AdamW(fused=True), whose gradient scaler gives it the same two scalars.
            # It divides by `grad_scale`, and does nothing at all where `found_inf` is 1.
            torch._fused_adamw_(
                parameters, gradients, first, second, [], [self.steps] * len(parameters),
                lr=lr, beta1=settings.betas[0], beta2=settings.betas[1], weight_decay=decay, eps=settings.eps,
                amsgrad=False, maximize=False, grad_scale=1 / scale, found_inf=skip.float(),
            )  # fmt: skip
            if settings.state_dtype != "float32":
                torch._foreach_copy_([*states[0], *states[1]], [*first, *second])

    def _states_of(self, name: str) -> tuple[Tensor, Tensor]:
        return self.states[f"exp_avg.{name}"], self.states[f"exp_avg_sq.{name}"]

    def _muon(self, name: str, lr: float, scale: Tensor, skip: Tensor) -> None:
        """Momentum, Nesterov's look ahead, and a step along the nearest orthogonal matrix (Jordan et al. 2024).

        An orthogonal matrix of A x B has values of 1 / sqrt(max(A, B)) on the average; the step is made as long as
        AdamW's usually are, 0.2 a value, and so `lr` and weight decay serve both (Liu et al. 2025, section 2.2).
        """
        parameter, momentum = self.parameters[name], _local(self.states[f"momentum.{name}"])
        gradient, values = _local(parameter.grad) * scale, _local(parameter)
        ahead = torch.lerp(momentum.float(), gradient, 1 - MUON_MOMENTUM)
        momentum.copy_(torch.where(skip, momentum, ahead.to(momentum.dtype)))
        ahead = gradient.lerp_(ahead, MUON_MOMENTUM)
        # In half precision where that is fast: the iteration forgives it, and half as much travels between ranks.
        whole = _whole(ahead.to(torch.bfloat16 if ahead.is_cuda else torch.float32), parameter)
        for slot in self._slots[name]:
            matrix = slot.extract(whole)
            slot.store(whole, orthogonalized(matrix).mul_(0.2 * math.sqrt(max(matrix.shape))))
        decay, rate = lr * self.settings.weight_decay, lr * self.settings.muon_lr_ratio
        moved = (values * (1 - decay)).add_(_shard(whole, parameter), alpha=-rate)
        values.copy_(torch.where(skip, values, moved))


def layer_matrices(config: ModelConfig) -> dict[str, list[Slot]]:
    """The layers' matrices by parameter: q, k and v share one, gate and up another.

    Each is a linear map of its own, with singular values of its own. Orthogonalised as one, the largest of them would
    leave the others little of the step.
    """
    matrices: dict[str, list[Slot]] = {}
    for slot in published_tensors(config, "llama").values():
        if slot.parameter.startswith("layers.") and len(slot.shape) == 2:
            matrices.setdefault(slot.parameter, []).append(slot)
    return matrices


def orthogonalized(matrix: Tensor) -> Tensor:
    """A matrix with the same singular vectors and singular values near 1, between 0.7 and 1.2.

    A Newton-Schulz iteration of odd polynomials `a X + b X X' X + c (X X')^2 X`, chosen to lift small singular values
    fast rather than to meet 1 (Jordan et al. 2024, "Muon").
    """
    wide = matrix.shape[0] <= matrix.shape[1]
    x = matrix if wide else matrix.T
    x = x / x.norm().clamp_min(1e-7)
    for a, b, c in NEWTON_SCHULZ:
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x if wide else x.T


def _chunks(tensors: Sequence[tuple[Tensor, ...]], size: int) -> Iterator[list[tuple[Tensor, ...]]]:
    """Tuples of alike tensors, flat and cut, in lists of at most `size` values."""
    chunk: list[tuple[Tensor, ...]] = []
    room = size
    for group in tensors:
        flat, start = [tensor.view(-1) for tensor in group], 0
        while start < len(flat[0]):
            stop = min(start + room, len(flat[0]))
            chunk.append(tuple(tensor[start:stop] for tensor in flat))
            room -= stop - start
            start = stop
            if not room:
                yield chunk
                chunk, room = [], size
    if chunk:
        yield chunk


def _local(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor.detach()


def _whole(local: Tensor, like: Tensor) -> Tensor:
    """All of what every rank has a shard of, placed as `like` is."""
    if not isinstance(like, DTensor):
        return local
    mesh, placements = like.device_mesh, like.placements
    shape, stride = like.shape, like.stride()
    return DTensor.from_local(local, mesh, placements, run_check=False, shape=shape, stride=stride).full_tensor()


def _shard(whole: Tensor, like: Tensor) -> Tensor:
    """This rank's shard of what every rank has whole."""
    if not isinstance(like, DTensor):
        return whole
    everywhere = DTensor.from_local(whole, like.device_mesh, [Replicate()] * like.device_mesh.ndim, run_check=False)
    return everywhere.redistribute(placements=like.placements).to_local()
