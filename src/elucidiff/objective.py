"""Training: the noise distribution p(sigma), the loss weight lambda(sigma), and the loss of Eq. 8."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from . import formulation
from .component import Component, Value, require
from .denoiser import Denoiser
from .tensors import accepts_numbers, like

Augment = Callable[[Tensor, torch.Generator], tuple[Tensor, Tensor]]


class NoiseDistribution(Component):
    """The distribution of training noise levels, given by its quantile function.

    The quantile makes every way of drawing possible: by a generator, by counter, stratified.
    """

    role: ClassVar[str] = "noise"

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "quantile" in cls.__dict__:
            setattr(cls, "quantile", accepts_numbers(cls.__dict__["quantile"]))  # noqa: B010

    def quantile(self, u: Tensor) -> Tensor:
        """The level below which a fraction u in (0, 1) of the levels lies, float64, of the shape of u."""
        raise NotImplementedError(f"{type(self).__name__} must define quantile(u)")

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        """Independent levels, (n,) float64 on the CPU."""
        return self.quantile(torch.rand(n, generator=generator, dtype=torch.float64))


class LogNormal(NoiseDistribution, kind="lognormal"):
    """ln sigma ~ N(P_mean, P_std^2) (EDM paper, Table 1): effort goes where the loss can be reduced."""

    formula: ClassVar[str] = "ln σ ~ N(P_mean, P_std²)"
    references: ClassVar[tuple[str, ...]] = ("edm",)
    P_mean: float = -1.2
    P_std: float = 1.2

    def validate(self) -> None:
        require(self.P_std > 0, f"LogNormal.P_std: got {self.P_std}; expected a number above 0")

    def quantile(self, u: Tensor) -> Tensor:
        return (self.P_mean + self.P_std * normal_quantile(u)).exp()


class VPUniform(NoiseDistribution, kind="vp_uniform"):
    """sigma = sigma_VP(t), t ~ U(eps_t, 1) (Song et al. 2021; EDM paper, Table 1)."""

    formula: ClassVar[str] = "σ⁻¹(σ) ~ U(ε_t, 1)"
    references: ClassVar[tuple[str, ...]] = ("sde",)
    beta_d: float = 19.9
    beta_min: float = 0.1
    eps_t: float = 1e-5

    def validate(self) -> None:
        require(0 < self.eps_t < 1, f"VPUniform.eps_t: got {self.eps_t}; expected a number between 0 and 1")
        formulation.VP(self.beta_d, self.beta_min)  # raises for impossible betas

    def quantile(self, u: Tensor) -> Tensor:
        return formulation.VP(self.beta_d, self.beta_min).sigma(self.eps_t + u * (1 - self.eps_t))


class LogUniform(NoiseDistribution, kind="loguniform"):
    """ln sigma ~ U(ln sigma_min, ln sigma_max) (Song et al. 2021, VE; EDM paper, Table 1)."""

    formula: ClassVar[str] = "ln σ ~ U(ln σ_min, ln σ_max)"
    references: ClassVar[tuple[str, ...]] = ("sde",)
    sigma_min: float = 0.02
    sigma_max: float = 100.0

    def validate(self) -> None:
        require(
            0 < self.sigma_min < self.sigma_max < math.inf,
            f"LogUniform: got [{self.sigma_min:g}, {self.sigma_max:g}]; expected 0 < sigma_min < sigma_max < inf",
        )

    def quantile(self, u: Tensor) -> Tensor:
        return self.sigma_min * (self.sigma_max / self.sigma_min) ** u


class IDDPM(NoiseDistribution, kind="iddpm"):
    """sigma = u_j, j ~ U{0, ..., M - 1} (Nichol and Dhariwal 2021; EDM paper, Table 1)."""

    formula: ClassVar[str] = "σ = u_j, j ~ U{0, …, M−1}"
    references: ClassVar[tuple[str, ...]] = ("iddpm",)
    M: int = 1000
    C1: float = 0.001
    C2: float = 0.008

    def validate(self) -> None:
        formulation.iddpm_levels(self.M, self.C1, self.C2)  # raises for impossible parameters

    def quantile(self, u: Tensor) -> Tensor:
        levels = formulation.iddpm_levels(self.M, self.C1, self.C2)[: self.M].flip(0)  # increasing
        return levels[(u * self.M).long().clamp(0, self.M - 1)]


class LogitNormal(NoiseDistribution, kind="logit_normal"):
    """sigma = t / (1 - t) with logit t ~ N(mean, std^2), the choice for flow models (Esser et al. 2024)."""

    formula: ClassVar[str] = "σ = t/(1 − t), logit t ~ N(m, s²)"
    references: ClassVar[tuple[str, ...]] = ("sd3",)
    mean: float = 0.0
    std: float = 1.0

    def validate(self) -> None:
        require(self.std > 0, f"LogitNormal.std: got {self.std}; expected a number above 0")

    def quantile(self, u: Tensor) -> Tensor:
        return (self.mean + self.std * normal_quantile(u)).exp()  # t/(1 - t) of a logit is its exponential


class Empirical(NoiseDistribution, kind="empirical"):
    """One of the listed levels, each equally often."""

    formula: ClassVar[str] = "σ from a list"
    sigmas: tuple[float, ...]

    def validate(self) -> None:
        good = bool(self.sigmas) and all(0 < s < math.inf for s in self.sigmas)
        require(good, f"Empirical.sigmas: got {self.sigmas}; expected finite levels above 0")

    def quantile(self, u: Tensor) -> Tensor:
        levels = torch.tensor(sorted(self.sigmas), dtype=torch.float64)
        return levels[(u * len(levels)).long().clamp(0, len(levels) - 1)]


def normal_quantile(u: Tensor) -> Tensor:
    """The standard normal quantile, finite also where a uniform generator returned 0."""
    return torch.special.ndtri(u.clamp(2.0**-54, 1 - 2.0**-53))


class Weighting(Component):
    """The loss weight lambda(sigma) of Eq. 8. A new one defines `__call__`."""

    role: ClassVar[str] = "weighting"

    def __call__(self, sigma: Tensor) -> Tensor:
        """The weight at levels sigma > 0, of the shape of sigma."""
        raise NotImplementedError(f"{type(self).__name__} must define __call__(sigma)")


class EDM(Weighting, kind="edm"):
    """lambda = (sigma^2 + sigma_data^2) / (sigma sigma_data)^2 = 1 / c_out^2 (EDM paper, Table 1)."""

    formula: ClassVar[str] = "(σ² + σ_data²)/(σ σ_data)²"
    references: ClassVar[tuple[str, ...]] = ("edm",)
    sigma_data: float = 0.5

    def validate(self) -> None:
        require(0 < self.sigma_data < math.inf, f"sigma_data: got {self.sigma_data}; expected a number above 0")

    def __call__(self, sigma: Tensor) -> Tensor:
        return (sigma**2 + self.sigma_data**2) / (sigma * self.sigma_data) ** 2


class InverseVariance(Weighting, kind="inverse_variance"):
    """lambda = 1 / sigma^2 (VP, VE and iDDPM columns of Table 1): a plain loss on the predicted unit noise."""

    formula: ClassVar[str] = "1/σ²"
    references: ClassVar[tuple[str, ...]] = ("ddpm",)

    def __call__(self, sigma: Tensor) -> Tensor:
        return sigma**-2


class UniformWeighting(Weighting, kind="uniform"):
    """lambda = 1: a plain loss on the clean sample."""

    formula: ClassVar[str] = "1"

    def __call__(self, sigma: Tensor) -> Tensor:
        return torch.ones_like(sigma)


class MinSNR(Weighting, kind="min_snr"):
    """lambda = min(1 / sigma^2, gamma) (Hang et al. 2023)."""

    formula: ClassVar[str] = "min(1/σ², γ)"
    references: ClassVar[tuple[str, ...]] = ("minsnr",)
    gamma: float = 5.0

    def validate(self) -> None:
        require(self.gamma > 0, f"MinSNR.gamma: got {self.gamma}; expected a number above 0")

    def __call__(self, sigma: Tensor) -> Tensor:
        return (sigma**-2).clamp(max=self.gamma)


class Learned(Weighting, kind="learned"):
    """lambda / exp(u(sigma)), u learned beside the network (EDM2 paper, Eq. 21): every level weighs equally.

    The value is lambda = 1/c_out^2 alone; training adds u (`with_uncertainty`), whose best value is
    ln(lambda E(D - y)^2), the logarithm of the loss per entry. channels: the Fourier features of ln(sigma)/4 whose
    linear map u is; a network that has a head for u of its own uses that.
    """

    formula: ClassVar[str] = "(σ² + σ_data²)/(σ σ_data)² / exp(u(σ)), + u(σ)"
    references: ClassVar[tuple[str, ...]] = ("edm2",)
    sigma_data: float = 0.5
    channels: int = 128

    def validate(self) -> None:
        require(0 < self.sigma_data < math.inf, f"sigma_data: got {self.sigma_data}; expected a number above 0")
        require(self.channels >= 2, f"Learned.channels: got {self.channels}; expected at least 2 features")

    def __call__(self, sigma: Tensor) -> Tensor:
        return (sigma**2 + self.sigma_data**2) / (sigma * self.sigma_data) ** 2


class Objective(Value):
    """What training minimises: p(sigma) and lambda(sigma)."""

    noise: NoiseDistribution = LogNormal()
    weighting: Weighting = EDM()


def loss(
    denoiser: Denoiser,
    y: Tensor,
    objective: Objective,
    *,
    labels: Tensor | None = None,
    augment: Augment | None = None,
    generator: torch.Generator | None = None,
    condition: Tensor | None = None,
) -> Tensor:
    """lambda(sigma) ||D(y + sigma n; sigma) - y||^2, summed over each sample, (B,) (EDM paper, Eq. 8).

    y is (B, *) clean data; `augment(y, generator)` returns the transformed data and their augment
    labels. Draws come from `generator` (a CPU generator; a freshly seeded one when None). `condition`, for a model with
    a `conditioning`: where it is left out, it is made from y.
    """
    if generator is None:
        generator = torch.Generator()
        generator.seed()
    conditions: dict[str, Tensor] = {} if labels is None else {"labels": labels}
    if augment is not None:
        y, conditions["augment_labels"] = augment(y, generator)
    conditioning = getattr(denoiser, "conditioning", None)  # a denoiser may be any function
    if condition is not None or conditioning is not None:
        conditions["condition"] = conditioning.of(y) if condition is None else condition  # type: ignore[union-attr]
    sigma = objective.noise.sample(len(y), generator)
    n = torch.randn(y.shape, generator=generator, dtype=y.dtype).to(y.device)
    return loss_at(denoiser, y, sigma, n, objective.weighting, **conditions)


def loss_at(
    denoiser: Denoiser, y: Tensor, sigma: Tensor, n: Tensor, weighting: Weighting, **conditions: Tensor
) -> Tensor:
    """The same for given levels sigma (B,) and unit noise n (B, *)."""
    D = denoiser(y + like(sigma.to(y.dtype), y) * n, sigma, **conditions)
    squared = ((D - y) ** 2).reshape(len(y), -1).sum(1)
    return weighting(sigma).to(squared.device, squared.dtype) * squared


def with_uncertainty(losses: Tensor, u: Tensor, entries: int) -> Tensor:
    """The sum of loss / exp(u) + u over the entries of a sample: losses (B,) of `loss_at`, u(sigma) (B,) -> (B,).

    EDM2 paper, Eq. 21, for each entry: both terms are sums, as our losses are.
    """
    return losses * (-u).exp() + entries * u
