"""How many evaluations a sampler makes, and the number of steps that a budget of evaluations pays for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import timesteps
from ..component import require
from ..denoiser import Denoiser
from ..sampler import Sampler, sample


class Counted(Denoiser):
    """Answers 0 at once; range, rounding and shape are those of a model, since they decide which levels are visited."""

    def __init__(self, shape: Sequence[int], model: Denoiser | None = None) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self._round = None if model is None else model.round_sigma
        if model is not None:
            self.sigma_min, self.sigma_max = model.sigma_min, model.sigma_max

    def denoise(self, x: Tensor, sigma: Tensor, **conditions: Any) -> Tensor:
        """Zeros shaped as x (B, *)."""
        return torch.zeros_like(x)

    def round_sigma(self, sigma: Tensor) -> Tensor:
        """The model's own rounding."""
        return sigma if self._round is None else self._round(sigma)


def evaluations(sampler: Sampler, shape: Sequence[int] = (1,), model: Denoiser | None = None) -> int:
    """How often a sampler calls a denoiser for one sample of this shape, counted by a dry run (some milliseconds).

    With `model`, in its range of levels and with its rounding: of levels that round to the same one a sampler
    visits one. An adaptive solver's count is that for D = 0, and says nothing about other models.
    """
    return sample(Counted(shape, model), sampler, seeds=[0]).nfe


def has_own_cost(sampler: Sampler) -> bool:
    """Whether no number of steps can be chosen: an adaptive solver, or a fixed list of levels."""
    return sampler.solver.adaptive or isinstance(sampler.timesteps, timesteps.Fixed)


def at_budget(
    sampler: Sampler, nfe: int, shape: Sequence[int] = (1,), model: Denoiser | None = None
) -> tuple[Sampler, int] | None:
    """The sampler with as many steps as `nfe` evaluations pay for, and the evaluations it makes then.

    They are `nfe` where the solver can make exactly so many (every number with one evaluation a step, odd ones
    with Heun), else the largest number below. None when even the fewest steps cost more. Found by
    bisection: more steps never make fewer evaluations. Raises ValueError for a sampler with a cost of its own.
    """
    require(nfe >= 1, f"nfe: got {nfe}; expected at least 1 evaluation")
    require(not has_own_cost(sampler), f"nfe: {sampler.solver.kind} on {sampler.timesteps.kind} has a cost of its own")
    fewest = 1 if sampler.to_zero else 2  # one level without a step to 0 is no sampler
    low, high = fewest - 1, nfe + 2  # known to be affordable (0 steps: nothing), known not to be
    best: tuple[Sampler, int] | None = None
    while high - low > 1:
        steps = (low + high) // 2
        made = _counted(sampler, steps, shape, model)
        if made is not None and made[1] <= nfe:
            low, best = steps, made
        else:
            high = steps
    return best


def _counted(sampler: Sampler, steps: int, shape: Sequence[int], model: Denoiser | None) -> tuple[Sampler, int] | None:
    """The sampler with so many steps and its evaluations; None where its time steps have no such number of levels."""
    try:
        sampler = sampler.replace(steps=steps)
        return sampler, evaluations(sampler, shape, model)
    except ValueError:
        return None
