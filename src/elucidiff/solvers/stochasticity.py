"""Noise during sampling: none, the churn of EDM's Algorithm 2, ancestral steps."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import ClassVar

from torch import Tensor

from ..component import require
from .run import Run
from .solver import Stochasticity


class Deterministic(Stochasticity, kind="none"):
    """No noise after the latent: the probability-flow ODE."""

    formula: ClassVar[str] = "none"


class Churn(Stochasticity, kind="churn"):
    """Raise the noise level before each step: sigma_hat = sigma (1 + gamma) (EDM paper, Algorithm 2, lines 4-6).

    gamma = min(S_churn / N, sqrt(2) - 1) for sigma in [S_min, S_max], else 0; the fresh noise has
    standard deviation S_noise. The noise is drawn at every step, also where gamma = 0, so that the
    streams of the samples do not depend on the band.
    """

    formula: ClassVar[str] = "σ̂ = σ (1 + γ), γ = min(S_churn/N, √2 − 1) in [S_min, S_max]"
    references: ClassVar[tuple[str, ...]] = ("edm",)
    draws: ClassVar[bool] = True
    S_churn: float = 40.0
    S_min: float = 0.0
    S_max: float = math.inf
    S_noise: float = 1.0

    def validate(self) -> None:
        require(self.S_churn >= 0, f"Churn.S_churn: got {self.S_churn}; expected a number of at least 0")
        require(
            0 <= self.S_min <= self.S_max,
            f"Churn: got S_min={self.S_min}, S_max={self.S_max}; expected 0 <= S_min <= S_max",
        )
        require(0 <= self.S_noise < math.inf, f"Churn.S_noise: got {self.S_noise}; expected a number of at least 0")

    def _raised(self, sigma: float, steps: int) -> float:
        """The level sigma_hat."""
        gamma = min(self.S_churn / steps, math.sqrt(2) - 1) if self.S_min <= sigma <= self.S_max else 0.0
        return sigma * (1 + gamma)

    def visits(self, sigmas: list[float]) -> list[float]:
        return [self._raised(sigma, len(sigmas) - 1) for sigma in sigmas[:-1]]

    def lift(self, run: Run, x: Tensor, t: float) -> tuple[Tensor, float]:
        sigma = run.sigma(t)
        sigma_hat = self._raised(sigma, run.steps)
        if sigma_hat == sigma:
            run.fresh_noise(x)
            return x, t
        t_hat = run.time(run.round(sigma_hat))
        return run.renoise(x, t, t_hat, self.S_noise), t_hat


class Ancestral(Stochasticity, kind="ancestral"):
    """Step below the next level and add noise up to it: the ancestral sampling of DDPM; eta = 0 is the ODE.

    sigma_up = min(sigma_next, eta sqrt(sigma_next^2 (sigma^2 - sigma_next^2) / sigma^2))
    (Song, Meng and Ermon 2021, Eq. 16).
    """

    formula: ClassVar[str] = "σ_up = η √(σ₊² (σ² − σ₊²)/σ²)"
    references: ClassVar[tuple[str, ...]] = ("ddpm", "ddim")
    draws: ClassVar[bool] = True
    eta: float = 1.0

    def validate(self) -> None:
        require(0 <= self.eta < math.inf, f"Ancestral.eta: got {self.eta}; expected a number of at least 0")

    def _lowered(self, a: float, b: float) -> float:
        """The level below b = sigma_next to which a step from a goes."""
        up = min(b, self.eta * b * math.sqrt(max(a**2 - b**2, 0)) / a)
        return math.sqrt(b**2 - up**2) if up > 0 else b

    def visits(self, sigmas: list[float]) -> list[float]:
        return [self._lowered(a, b) for a, b in pairwise(sigmas)]

    def aim(self, run: Run, t: float, t_next: float) -> float:
        a, b = run.sigma(t), run.sigma(t_next)
        down = self._lowered(a, b)
        return t_next if down == b else run.time(down)

    def drop(self, run: Run, x: Tensor, t: float, t_next: float) -> Tensor:
        down = self.aim(run, t, t_next)
        if down == t_next:
            run.fresh_noise(x)
            return x
        return run.renoise(x, down, t_next)
