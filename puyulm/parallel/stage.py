"""A decoder, or some consecutive layers of it, with the loss at its end: the module that parallelism is applied to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from puyulm.model.attention import Attention
from puyulm.model.decoder import Decoder, Linear
from puyulm.model.loss import IGNORE, VocabularyPart, head_loss
from puyulm.model.rope import rope_tables
from puyulm.parallel.batch import MicroBatch

SPARSE = 0.9
"""Below this share of target tokens (fine-tuning) the head, a large matrix, is spared the other tokens."""


@dataclass
class LossSettings:
    """What the loss is divided by and adds; set before each step.

    Attributes:
        denominator: Target tokens of the whole step, over all ranks.
        z_loss: Weight of log(Z)^2, see `puyulm.model.loss.head_loss`.
        compiled: On a GPU the loss compiles what it does between matrix products; on a CPU that gains nothing.
    """

    denominator: float | Tensor = 1.0
    z_loss: float = 0.0
    compiled: bool = False


class Split(Protocol):
    """How the ranks of context and tensor parallelism share the tokens of a micro-batch and the rows of the head.

    Techniques are combined by wrapping the split that is on the stage already. Context parallelism cuts T tokens into
    shares of T / context; of these, tensor parallelism cuts what is between the matrices of a layer once more, into
    T' = T / (context * tensor).
    """

    def attention(self, batch: MicroBatch) -> Attention:
        """Who sees whom, for the tokens that attention is handed here."""
        ...

    def tokens(self, values: Tensor) -> Tensor:
        """This rank's part of a value per token, `[T, ...]` -> `[T / context, ...]`."""
        ...

    def head(self, hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, VocabularyPart | None]:
        """Final hidden states and the head as the loss takes them, and which rows of the head these are.

        Args:
            hidden: `[T', H]`.
            weight: The parameter.

        Returns:
            `[T / context, H]`; `[V, H]` or some rows of it; and which, None for all.
        """
        ...


class Whole:
    """Nothing is split."""

    def attention(self, batch: MicroBatch) -> Attention:
        return batch.attention

    def tokens(self, values: Tensor) -> Tensor:
        return values

    def head(self, hidden: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, VocabularyPart | None]:
        return hidden, weight, None


@dataclass
class Losses:
    """Per-token losses of the last micro-batches, `[T / context]` each, without gradient: for what is logged."""

    of: list[Tensor] = field(default_factory=list)


class LossHead(Linear):
    """A head that takes the loss: FSDP2 gathers a module's parameters for a call of that very module."""

    def loss(
        self, hidden: Tensor, targets: Tensor, split: Split, settings: LossSettings, dtype: torch.dtype, sparse: int
    ) -> tuple[Tensor, Tensor]:
        """The loss of this rank's tokens over the denominator of the step, and each token's.

        Args:
            hidden: `[T', H]`, see `Split`.
            targets: `[T / context]`.
            dtype: Of the matrix products.
            sparse: Not 0: only tokens with a target are multiplied with the head. They are so many; -1: it is unknown
                how many, and the host waits for the device to count them.

        Returns:
            A scalar, and without a gradient `[T / context]` float32, 0 where there is no target.
        """
        hidden, weight, part = split.head(hidden, self.weight)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
        if not sparse:
            return head_loss(
                hidden, weight, targets, settings.denominator, z_loss=settings.z_loss, part=part,
                compiled=settings.compiled and hidden.is_cuda,
            )  # fmt: skip
        here = targets != IGNORE
        counted = (here.nonzero() if sparse < 0 else torch.nonzero_static(here, size=sparse)).squeeze(-1)
        loss, few = head_loss(
            hidden.index_select(0, counted), weight, targets[counted], settings.denominator,
            z_loss=settings.z_loss, part=part,
        )  # fmt: skip
        return loss, torch.zeros(len(targets), device=few.device).index_copy_(0, counted, few)


class Stage(nn.Module):
    """Layers `start` to `stop` of a decoder; the first stage embeds tokens, the last takes the loss.

    A whole decoder is one stage. Parameters keep the decoder's names under `decoder.`, whatever layers are here, so
    that checkpoints do not depend on how layers are cut.

    Args:
        decoder: Loses the layers, the embedding or the head that belong to other stages; its head becomes a `LossHead`.
        dtype: Of the activations and, under autocast, of the matrix products.

    Attributes:
        frees: Whether gathered parameters are freed after each use, or only at the end of a step.
    """

    def __init__(
        self,
        decoder: Decoder,
        start: int = 0,
        stop: int | None = None,
        *,
        dtype: torch.dtype = torch.float32,
        autocast: bool = False,
    ) -> None:
        super().__init__()
        stop = decoder.config.num_layers if stop is None else stop
        self.first, self.last = start == 0, stop == decoder.config.num_layers
        self.layer_numbers = range(start, stop)
        self.decoder = decoder
        self.dtype, self.autocast = dtype, autocast
        self.frees = True
        self.split: Split = Whole()
        self.loss_settings = LossSettings()
        self.token_losses = Losses()
        if not (self.first and self.last):
            _keep(decoder, self.layer_numbers, self.first, self.last)
        if self.last:
            decoder.head.__class__ = LossHead

    def layer(self, number: int) -> nn.Module:
        """A layer by its number in the whole decoder."""
        layers = self.decoder.layers
        return layers[str(number)] if isinstance(layers, nn.ModuleDict) else layers[number]

    def forward(self, x: Tensor | None, batch: MicroBatch) -> Tensor:
        """Runs the stage.

        Args:
            x: `[T', H]` from the stage before, where T' is this rank's share of the tokens; None in the first.
            batch: The tokens, whole, on every rank that shares them.

        Returns:
            `[T', H]`, or in the last stage the scalar loss of this rank's tokens. `token_losses` gets one entry more.
        """
        device = batch.tokens.device
        with torch.autocast(device.type, self.dtype, enabled=self.autocast):
            hidden = self.hidden(x, batch)
        if not self.last:
            return hidden
        return self.loss(hidden, batch)

    def hidden(self, x: Tensor | None, batch: MicroBatch) -> Tensor:
        """The layers, and in the last stage the final norm."""
        decoder, config = self.decoder, self.decoder.config
        attention = self.split.attention(batch)
        if self.first:
            x = decoder.embed(self.split.tokens(batch.tokens)).to(self.dtype)
        assert x is not None
        packed = batch.attention
        rope = rope_tables(
            config.rope, config.head_dim, config.max_position_embeddings, packed.positions, packed.seq_lens, self.dtype
        )
        rope = type(rope)(*(self.split.tokens(table) for table in rope))
        for number in self.layer_numbers:
            x = self.layer(number)(x, rope, attention, number)
        return decoder.norm(x) if self.last else x

    def loss(self, hidden: Tensor, batch: MicroBatch) -> Tensor:
        """The loss of this rank's tokens over the denominator of the step."""
        targets, sparse = self.split.tokens(batch.targets), 0
        if batch.num_targets < SPARSE * len(batch.targets):
            sparse = batch.num_targets if len(targets) == len(batch.targets) and batch.num_targets else -1
        loss, losses = cast(LossHead, self.decoder.head).loss(
            hidden, targets, self.split, self.loss_settings, self.dtype, sparse
        )
        self.token_losses.of.append(losses)
        return loss


def _keep(decoder: Decoder, layers: range, first: bool, last: bool) -> None:
    decoder.layers = nn.ModuleDict({str(number): decoder.layers[number] for number in layers})  # type: ignore[assignment]
    if not first:
        del decoder.embed
    if not last:
        del decoder.norm, decoder.head
