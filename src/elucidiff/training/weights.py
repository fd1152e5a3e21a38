"""Where the weights of a model in training are, and what needs all of them: here every process has them whole."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from ..denoiser import Preconditioned
from ..tensors import here
from .config import TrainConfig
from .ema import EMA
from .numerics import gradient_norm, lay_out
from .ranks import Ranks, summed


class Weights:
    """Weights that every process has whole; those of `sharded.ShardedWeights` are in pieces.

    parameters: what the optimiser changes, the model's first. names: of each, for messages.
    """

    sharded = False  # whether a process has pieces only: what needs whole weights then needs all processes

    def __init__(self, model: Preconditioned, uncertainty: nn.Module | None, config: TrainConfig, ranks: Ranks) -> None:
        self.model, self.ranks = model, ranks
        named = list(model.named_parameters())
        own = {id(p) for _, p in named}
        beside = [p for p in uncertainty.parameters() if id(p) not in own] if uncertainty is not None else []
        self.names = [name for name, _ in named] + ["the uncertainty"] * len(beside)
        self.parameters = self.placed(beside, uncertainty, config)

    def placed(
        self, beside: list[nn.Parameter], uncertainty: nn.Module | None, config: TrainConfig
    ) -> list[nn.Parameter]:
        """Bring everything where it computes; the parameters as the optimiser sees them."""
        self.model.to(config.device)
        if uncertainty is not None:
            uncertainty.to(config.device)
        lay_out(self.model, config.channels_last)
        return [*self.model.parameters(), *beside]

    def average(self) -> EMA:
        """A new average of the model's weights."""
        return EMA(self.model)

    def collect(self, parts: Iterable[object]) -> None:
        """Sum the gradients of the parts of a batch on all ranks; each part leaves its own in the parameters."""
        self.forget_gradients()
        total = summed((self._taken() for _ in parts), self.ranks)
        for p, gradient in zip(self._used, total, strict=True):
            p.grad = gradient

    def _taken(self) -> list[Tensor]:
        """The gradients that a part left, taken out of the parameters so that the next does not add to them."""
        self._used = [p for p in self.parameters if p.grad is not None]
        found = [p.grad for p in self._used if p.grad is not None]
        self.forget_gradients()
        return found

    def forget_gradients(self) -> None:
        """Leave the parameters without gradients."""
        for p in self.parameters:
            p.grad = None

    def norm(self, clip: float | None) -> Tensor:
        """The norm of all gradients; above `clip` they are scaled to it. () on their device."""
        return gradient_norm(self.parameters, clip)

    def share_overflow(self) -> None:
        """Where a gradient of one rank is not finite, make those of all ranks so: the scaler of each then agrees."""

    def first_bad(self, values: Sequence[Tensor | None], names: Sequence[str] | None = None) -> str | None:
        """The name of the first value that is not finite, as a rule of the parameters; None for none. All ranks ask."""
        bad = (i for i, t in enumerate(values) if t is not None and not bool(here(t).isfinite().all()))
        i = self.lowest(next(bad, len(values)))
        return (names or self.names)[i] if i < len(values) else None

    def first_overflown(self) -> str | None:
        """The name of the first parameter that is not finite; None for none, which takes one look. All ranks ask."""
        norms = torch._foreach_norm([here(p.detach()) for p in self.parameters])  # a tenth of what isfinite takes
        finite = bool(torch.stack(norms).isfinite().all())
        if self.lowest(int(finite)):
            return None
        return self.first_bad(self.parameters)

    def lowest(self, number: int) -> int:
        """The lowest number of the ranks, which here all have the same."""
        return number

    def stored(self, index: int, t: Tensor) -> Tensor:
        """A tensor like parameter `index`, such as a moment of Adam, as checkpoints take it."""
        return t


def weights_for(model: Preconditioned, uncertainty: nn.Module | None, config: TrainConfig, ranks: Ranks) -> Weights:
    """The weights as `config.parallel` wants them; alone a process has them whole."""
    if config.parallel == "sharded" and ranks.size > 1:
        from .sharded import ShardedWeights  # which takes seconds to import

        return ShardedWeights(model, uncertainty, config, ranks)
    return Weights(model, uncertainty, config, ranks)
