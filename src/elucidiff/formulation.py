"""Noise schedules sigma(t) and scalings s(sigma): the forward process x_t ~ N(s x_0, s^2 sigma^2 I) of Eq. 12-15."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from .component import Component, require
from .tensors import accepts_numbers, derivative


class Schedule(Component):
    """A noise schedule sigma(t): increasing, sigma(0) = 0.

    A new schedule needs `sigma` alone; `sigma_dot` is then its derivative by autograd and
    `sigma_inv` a bisection. All three map a float64 tensor of any shape (or a number) to one of the same shape.
    """

    role: ClassVar[str] = "schedule"
    t_max: ClassVar[float] = math.inf  # sigma(t) is defined on [0, t_max)

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for name in ("sigma", "sigma_dot", "sigma_inv"):
            if name in cls.__dict__:
                setattr(cls, name, accepts_numbers(cls.__dict__[name]))

    def sigma(self, t: Tensor) -> Tensor:
        """The noise level at time t."""
        raise NotImplementedError(f"{type(self).__name__} must define sigma(t)")

    @accepts_numbers
    def sigma_dot(self, t: Tensor) -> Tensor:
        """The derivative of sigma at time t."""
        return derivative(self.sigma, t)

    @accepts_numbers
    def sigma_inv(self, sigma: Tensor) -> Tensor:
        """The time at which the noise level is sigma. Raises ValueError for a level that is never reached."""
        low, high = torch.zeros_like(sigma), torch.where(sigma == 0, 0.0, min(1.0, self.t_max)).to(sigma.dtype)
        while self.t_max == math.inf and (short := self.sigma(high) < sigma).any():
            if (high > 1e150).any():
                raise ValueError(f"{self}: sigma(t) never reaches {sigma.max().item():g}")
            high = torch.where(short, 2 * high, high)
        while True:  # about 60 halvings; the smallest level that float64 holds would take 1,100
            middle = (low + high) / 2
            if ((middle <= low) | (middle >= high)).all():  # neighbours: nothing lies between them
                break
            below = self.sigma(middle) < sigma
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return high


class EDM(Schedule, kind="edm"):
    """sigma(t) = t, the choice of Eq. 5: the ODE becomes dx/dt = (x - D(x; t)) / t."""

    formula: ClassVar[str] = "σ(t) = t"
    references: ClassVar[tuple[str, ...]] = ("edm",)

    def sigma(self, t: Tensor) -> Tensor:
        return t

    def sigma_dot(self, t: Tensor) -> Tensor:
        return torch.ones_like(t)

    def sigma_inv(self, sigma: Tensor) -> Tensor:
        return sigma


class VE(Schedule, kind="ve"):
    """sigma(t) = sqrt(t), the variance-exploding SDE of Song et al. 2021 (EDM paper, Table 1)."""

    formula: ClassVar[str] = "σ(t) = √t"
    references: ClassVar[tuple[str, ...]] = ("sde",)

    def sigma(self, t: Tensor) -> Tensor:
        return t.sqrt()

    def sigma_dot(self, t: Tensor) -> Tensor:
        return 0.5 * t.rsqrt()

    def sigma_inv(self, sigma: Tensor) -> Tensor:
        return sigma**2


class VP(Schedule, kind="vp"):
    """sigma(t) = sqrt(exp(beta_d t^2 / 2 + beta_min t) - 1), the variance-preserving SDE (EDM paper, Table 1).

    `VP.fit(sigma_min, sigma_max)` gives the betas whose range is a given one.
    """

    formula: ClassVar[str] = "σ(t) = √(exp(½ β_d t² + β_min t) − 1)"
    references: ClassVar[tuple[str, ...]] = ("sde",)
    beta_d: float = 19.9
    beta_min: float = 0.1

    def validate(self) -> None:
        require(self.beta_d > 0, f"VP.beta_d: got {self.beta_d}; expected a number above 0")
        if self.beta_min < 0:
            turn = -self.beta_min / self.beta_d
            warnings.warn(
                f"VP: beta_min = {self.beta_min:.4g} is negative, so sigma(t) is not monotone below "
                f"t = {2 * turn:.2g}; comparisons near t = 0 hold to about 1e-7 only",
                stacklevel=4,
            )

    @classmethod
    def fit(cls, sigma_min: float, sigma_max: float, eps_s: float = 1e-3) -> VP:
        """The schedule with sigma(1) = sigma_max and sigma(eps_s) = sigma_min (EDM paper, appendix C.3)."""
        require(
            0 < sigma_min < sigma_max, f"VP.fit: got [{sigma_min}, {sigma_max}]; expected 0 < sigma_min < sigma_max"
        )
        low, high = math.log1p(sigma_min**2), math.log1p(sigma_max**2)
        require(
            low < eps_s * high,
            f"VP.fit: got sigma_min={sigma_min:g}; a VP schedule that reaches {sigma_max:g} at t = 1 is below "
            f"{math.sqrt(math.expm1(eps_s * high)):.4g} at t = {eps_s:g}",
        )
        beta_d = 2 * (low / eps_s - high) / (eps_s - 1)
        return cls(beta_d=beta_d, beta_min=high - beta_d / 2)

    def sigma(self, t: Tensor) -> Tensor:
        return torch.expm1(0.5 * self.beta_d * t**2 + self.beta_min * t).clamp(min=0).sqrt()

    def sigma_dot(self, t: Tensor) -> Tensor:
        sigma = self.sigma(t)
        return 0.5 * (self.beta_min + self.beta_d * t) * (sigma + 1 / sigma)

    def sigma_inv(self, sigma: Tensor) -> Tensor:
        log_var = torch.log1p(sigma**2)
        root = (self.beta_min**2 + 2 * self.beta_d * log_var).sqrt()
        if self.beta_min < 0:
            return (root - self.beta_min) / self.beta_d
        return 2 * log_var / (root + self.beta_min).clamp(min=1e-300)  # the same, without cancellation at small sigma


class Cosine(Schedule, kind="cosine"):
    """The cosine schedule of iDDPM in continuous time.

    alpha_bar = f(t) / f(0), f = cos^2(pi/2 (t + offset) / (1 + offset)),
    sigma = sqrt(1 / alpha_bar - 1), written as a product of sines so that small t keeps its digits
    (Nichol and Dhariwal 2021, Eq. 17).
    """

    formula: ClassVar[str] = "σ(t)² = f(0)/f(t) − 1, f = cos²(½π (t + o)/(1 + o))"
    references: ClassVar[tuple[str, ...]] = ("iddpm",)
    t_max: ClassVar[float] = 1.0
    offset: float = 0.008

    def validate(self) -> None:
        require(self.offset >= 0, f"Cosine.offset: got {self.offset}; expected a number of at least 0")

    def _angles(self, t: Tensor) -> tuple[float, Tensor]:
        unit = 0.5 * math.pi / (1 + self.offset)
        return unit * self.offset, unit * t

    def sigma(self, t: Tensor) -> Tensor:
        start, angle = self._angles(t)
        return (angle.sin() * (angle + 2 * start).sin()).sqrt() / (angle + start).cos()

    def sigma_dot(self, t: Tensor) -> Tensor:
        start, angle = self._angles(t)
        slope = 0.5 * math.pi / (1 + self.offset) * math.cos(start) ** 2  # from sigma^2 = cos^2(start) / cos^2(.) - 1
        return slope * (angle + start).sin() / (angle + start).cos() ** 3 / self.sigma(t)

    def sigma_inv(self, sigma: Tensor) -> Tensor:
        start, unit = self._angles(torch.ones_like(sigma))
        sine, cosine = math.sin(start), math.cos(start)
        root = (sine**2 + sigma**2).sqrt()
        rise = sigma**2 / (cosine * (root + sine).clamp(min=1e-300))  # tan(start + angle) - tan(start)
        return torch.atan(rise / (1 + math.tan(start) * root / cosine)) / unit


class Flow(Schedule, kind="flow"):
    """sigma(t) = t / (1 - t): the straight paths x_t = (1 - t) x_0 + t n of flow matching (Lipman et al. 2023)."""

    formula: ClassVar[str] = "σ(t) = t/(1 − t)"
    references: ClassVar[tuple[str, ...]] = ("flow",)
    t_max: ClassVar[float] = 1.0

    def sigma(self, t: Tensor) -> Tensor:
        return t / (1 - t)

    def sigma_dot(self, t: Tensor) -> Tensor:
        return (1 - t) ** -2

    def sigma_inv(self, sigma: Tensor) -> Tensor:
        return sigma / (1 + sigma)


class Table(Schedule, kind="table"):
    """A discrete DDPM table: entry k of alpha_bar has sigma = sqrt((1 - alpha_bar) / alpha_bar) at time k + 1.

    Between entries log sigma is linear in t, below the first sigma is linear in t. The path has
    corners at the entries, which limits the observed order of solvers of order 2 and more.
    """

    formula: ClassVar[str] = "σ(k + 1) = √((1 − ᾱ_k)/ᾱ_k)"
    references: ClassVar[tuple[str, ...]] = ("ddpm",)
    alpha_bar: tuple[float, ...]

    def validate(self) -> None:
        falling = all(a > b for a, b in zip(self.alpha_bar, self.alpha_bar[1:], strict=False))
        require(
            len(self.alpha_bar) >= 2 and falling and self.alpha_bar[0] < 1 and self.alpha_bar[-1] > 0,
            "Table.alpha_bar: expected at least two numbers between 1 and 0, strictly decreasing",
        )

    def __str__(self) -> str:
        levels = self.levels()
        return f"table({len(levels)} levels from {levels[0].item():.4g} to {levels[-1].item():.4g})"

    def levels(self) -> Tensor:
        """The noise levels of the entries, (K,) float64, increasing."""
        return _table_levels(self.alpha_bar)

    def _piece(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Where t lies: k, ln of level k, and the slope from there; beyond the last entry the last slope goes on."""
        logs = self.levels().log()
        k = t.floor().clamp(1, len(logs) - 1).long() - 1
        return k, logs[k], logs[k + 1] - logs[k]

    def sigma(self, t: Tensor) -> Tensor:
        k, low, slope = self._piece(t)
        return torch.where(t < 1, self.levels()[0] * t, (low + (t - 1 - k) * slope).exp())

    def sigma_dot(self, t: Tensor) -> Tensor:
        return torch.where(t < 1, self.levels()[0], self._piece(t)[2] * self.sigma(t))

    def sigma_inv(self, sigma: Tensor) -> Tensor:
        levels = self.levels()
        k = (torch.searchsorted(levels, sigma.contiguous(), right=True) - 1).clamp(0, len(levels) - 2)
        low, high = levels[k].log(), levels[k + 1].log()
        return torch.where(sigma < levels[0], sigma / levels[0], 1 + k + (sigma.log() - low) / (high - low))


class SDE(Schedule, kind="sde"):
    """The process dx = f(t) x dt + g(t) dw, given f and g (EDM paper, Eq. 16-22).

    s(t) = exp(integral of f), sigma(t) = sqrt(integral of g^2 / s^2), by Gauss-Legendre quadrature
    in the variable sqrt(t): 16 panels of 16 nodes, 1e-12 for f and g that are smooth in t or in
    sqrt(t). f and g map a float64 tensor to one of the same shape. `SDE.scaling()` is the scaling
    that belongs to it. Python functions have no JSON form.
    """

    formula: ClassVar[str] = "σ(t) = √∫ g²/s², s = exp ∫ f"
    references: ClassVar[tuple[str, ...]] = ("sde", "edm")
    f: Callable[[Tensor], Tensor]
    g: Callable[[Tensor], Tensor]

    def _quadrature(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """The integrals of f and of g^2 / s^2 from 0 to t."""
        nodes, weights, partial = _gauss_legendre(16)
        panels = torch.arange(16, dtype=torch.float64)
        width = t[..., None, None].sqrt() / 16
        v = (panels[:, None] + nodes) * width  # (..., panel, node); u = v^2, du = 2 v dv
        du = 2 * v * width
        f = self.f(v**2) * du
        before = torch.cumsum((f * weights).sum(-1, keepdim=True), dim=-2) - (f * weights).sum(-1, keepdim=True)
        log_s = before + f @ partial.T
        variance = (self.g(v**2) ** 2 * torch.exp(-2 * log_s) * weights * du).sum((-1, -2))
        return (f * weights).sum((-1, -2)), variance

    def s(self, t: Tensor) -> Tensor:
        """The scaling at time t."""
        return self._quadrature(t)[0].exp()

    def sigma(self, t: Tensor) -> Tensor:
        return self._quadrature(t)[1].sqrt()

    def sigma_dot(self, t: Tensor) -> Tensor:
        log_s, variance = self._quadrature(t)
        return 0.5 * self.g(t) ** 2 * torch.exp(-2 * log_s) / variance.sqrt()

    def scaling(self) -> SDEScaling:
        """The scaling s as a function of sigma."""
        return SDEScaling(self)


class Scaling(Component):
    """A scaling s as a function of sigma, so that it combines with every schedule: s(t) = s(sigma(t))."""

    role: ClassVar[str] = "scaling"

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for name in ("s", "s_dot"):
            if name in cls.__dict__:
                setattr(cls, name, accepts_numbers(cls.__dict__[name]))

    def s(self, sigma: Tensor) -> Tensor:
        """The scaling at noise level sigma."""
        raise NotImplementedError(f"{type(self).__name__} must define s(sigma)")

    @accepts_numbers
    def s_dot(self, sigma: Tensor) -> Tensor:
        """The derivative of s with respect to sigma."""
        return derivative(self.s, sigma)


class Unscaled(Scaling, kind="none"):
    """s = 1 (VE, iDDPM + DDIM and EDM columns of Table 1)."""

    formula: ClassVar[str] = "s = 1"

    def s(self, sigma: Tensor) -> Tensor:
        return torch.ones_like(sigma)

    def s_dot(self, sigma: Tensor) -> Tensor:
        return torch.zeros_like(sigma)


class VariancePreserving(Scaling, kind="vp"):
    """s = 1 / sqrt(1 + sigma^2): the state keeps unit variance when the data have it (VP column of Table 1)."""

    formula: ClassVar[str] = "s = 1/√(1 + σ²)"
    references: ClassVar[tuple[str, ...]] = ("sde",)

    def s(self, sigma: Tensor) -> Tensor:
        return (1 + sigma**2).rsqrt()

    def s_dot(self, sigma: Tensor) -> Tensor:
        return -sigma * (1 + sigma**2) ** -1.5


class FlowScaling(Scaling, kind="flow"):
    """s = 1 / (1 + sigma), that is 1 - t of flow matching."""

    formula: ClassVar[str] = "s = 1/(1 + σ)"
    references: ClassVar[tuple[str, ...]] = ("flow",)

    def s(self, sigma: Tensor) -> Tensor:
        return 1 / (1 + sigma)

    def s_dot(self, sigma: Tensor) -> Tensor:
        return -((1 + sigma) ** -2)


class SDEScaling(Scaling):
    """The scaling of an SDE given by f and g; made by `SDE.scaling()`."""

    formula: ClassVar[str] = "s = exp ∫ f"
    kind: ClassVar[str] = "of sde"
    references: ClassVar[tuple[str, ...]] = ("sde", "edm")
    sde: SDE

    def s(self, sigma: Tensor) -> Tensor:
        return self.sde.s(self.sde.sigma_inv(sigma))

    def s_dot(self, sigma: Tensor) -> Tensor:
        t = self.sde.sigma_inv(sigma)
        return self.sde.s(t) * self.sde.f(t) / self.sde.sigma_dot(t)  # (ds/dt) / (dsigma/dt)


def forward_sde(
    schedule: Schedule, scaling: Scaling
) -> tuple[Callable[[Tensor | float], Tensor], Callable[[Tensor | float], Tensor]]:
    """f(t) and g(t) of the SDE dx = f(t) x dt + g(t) dw that a schedule and a scaling describe.

    f = s'/s and g = s sqrt(2 sigma' sigma), derivatives by time (EDM paper, Eq. 28 and 34).
    """

    def f(t: Tensor | float) -> Tensor:
        sigma = schedule.sigma(t)  # type: ignore[arg-type]
        return scaling.s_dot(sigma) * schedule.sigma_dot(t) / scaling.s(sigma)

    def g(t: Tensor | float) -> Tensor:
        sigma = schedule.sigma(t)  # type: ignore[arg-type]
        return scaling.s(sigma) * (2 * schedule.sigma_dot(t) * sigma).sqrt()

    return f, g


@functools.lru_cache(maxsize=16)
def iddpm_levels(M: int, C1: float, C2: float) -> Tensor:
    """The levels u_0 > u_1 > ... > u_M = 0 of iDDPM, (M + 1,) float64 (EDM paper, Table 1).

    u_{j-1} = sqrt((u_j^2 + 1) / max(abar_{j-1} / abar_j, C1) - 1), abar_j = sin^2(pi/2 j / (M (C2 + 1))).
    Raises ValueError for parameters that make no table.
    """
    good = M >= 2 and 0 < C1 < 1 and 0 <= C2 < math.inf
    require(good, f"iDDPM levels: got M={M}, C1={C1:g}, C2={C2:g}; expected M >= 2, 0 < C1 < 1, C2 >= 0")
    abar = np.sin(0.5 * np.pi * np.arange(M + 1) / M / (C2 + 1)) ** 2
    u = np.zeros(M + 1)
    for j in range(M, 0, -1):
        u[j - 1] = math.sqrt((u[j] ** 2 + 1) / max(abar[j - 1] / abar[j], C1) - 1)
    return torch.from_numpy(u)


@functools.lru_cache(maxsize=16)
def _table_levels(alpha_bar: tuple[float, ...]) -> Tensor:
    """The levels sqrt((1 - alpha_bar) / alpha_bar), once a table: a tensor of 1,000 numbers costs more than a step."""
    values = torch.tensor(alpha_bar, dtype=torch.float64)
    return ((1 - values) / values).sqrt()


@functools.cache
def _gauss_legendre(n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Nodes and weights on [0, 1], and the matrix of integrals from 0 to each node of each Lagrange polynomial."""
    x, w = np.polynomial.legendre.leggauss(n)
    powers = np.polynomial.legendre.legvander(x, n - 1)
    integrals = np.stack(
        [np.polynomial.legendre.legval(x, np.polynomial.legendre.legint(c, lbnd=-1)) for c in np.eye(n)]
    )
    partial = np.linalg.solve(powers.T, integrals).T / 2
    return torch.from_numpy((x + 1) / 2), torch.from_numpy(w / 2), torch.from_numpy(partial)
