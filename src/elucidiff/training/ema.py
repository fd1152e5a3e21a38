"""Exponential moving averages of weights, with a half-life counted in images."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn


def ema_beta(batch: int, halflife: float, images_seen: float, ramp: float | None = 0.05) -> float:
    """The factor beta = 0.5^(batch / min(halflife, ramp * images_seen)), halflife in images (EDM paper, appendix F.2).

    With the ramp the average forgets the first random weights; without images seen it is a copy (beta = 0).
    """
    window = halflife if ramp is None else min(halflife, ramp * images_seen)
    return 0.5 ** (batch / window) if window > 0 else 0.0


class EMA:
    """A module that follows another: theta_ema = beta theta_ema + (1 - beta) theta; buffers are copied."""

    def __init__(self, module: nn.Module) -> None:
        self.module = copy.deepcopy(module).eval().requires_grad_(False)
        self._pairs: tuple[list[Tensor], list[Tensor]] = (
            [p.data for p in self.module.parameters()],
            [p.data for p in module.parameters()],
        )
        self._buffers = list(zip(self.module.buffers(), module.buffers(), strict=True))

    @torch.no_grad()
    def update(self, beta: float) -> None:
        """Move towards the module's present weights."""
        averages, weights = self._pairs
        torch._foreach_lerp_(averages, weights, 1 - beta)
        for average, buffer in self._buffers:
            average.copy_(buffer)
