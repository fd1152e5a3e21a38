"""Preconditionings: D(x; sigma) = c_skip x + c_out F(c_in x; c_noise), Eq. 7, one class per column of Table 1."""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from . import formulation
from .component import Component, require
from .tensors import accepts_numbers

Coefficients = tuple[Tensor, Tensor, Tensor, Tensor]


class Preconditioning(Component):
    """How a network F becomes a denoiser D. A new one defines `coefficients`.

    `sigma_min` and `sigma_max` bound the levels at which D means something; samplers stay inside.
    """

    role: ClassVar[str] = "preconditioning"
    formula_skip: ClassVar[str] = ""
    formula_out: ClassVar[str] = ""
    formula_in: ClassVar[str] = ""
    formula_noise: ClassVar[str] = ""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        for name in ("coefficients", "round_sigma"):
            if name in cls.__dict__:
                setattr(cls, name, accepts_numbers(cls.__dict__[name]))

    def coefficients(self, sigma: Tensor) -> Coefficients:
        """(c_skip, c_out, c_in, c_noise) at noise levels sigma > 0, each of the shape of sigma."""
        raise NotImplementedError(f"{type(self).__name__} must define coefficients(sigma)")

    @property
    def sigma_min(self) -> float:
        """The smallest noise level the parameterisation covers."""
        return 0.0

    @property
    def sigma_max(self) -> float:
        """The largest noise level the parameterisation covers."""
        return math.inf

    def round_sigma(self, sigma: Tensor) -> Tensor:
        """The nearest level at which a network of this kind was trained; the same level when all are."""
        return sigma


class EDM(Preconditioning, kind="edm"):
    """Unit-variance input and target at every sigma, errors amplified as little as possible (EDM paper, B.6)."""

    formula_skip: ClassVar[str] = "σ_data²/(σ² + σ_data²)"
    formula_out: ClassVar[str] = "σ σ_data/√(σ² + σ_data²)"
    formula_in: ClassVar[str] = "1/√(σ² + σ_data²)"
    formula_noise: ClassVar[str] = "ln(σ)/4"
    references: ClassVar[tuple[str, ...]] = ("edm",)
    sigma_data: float = 0.5

    def validate(self) -> None:
        require(0 < self.sigma_data < math.inf, f"sigma_data: got {self.sigma_data}; expected a number above 0")

    def coefficients(self, sigma: Tensor) -> Coefficients:
        variance = sigma**2 + self.sigma_data**2
        c_skip = self.sigma_data**2 / variance
        c_out = sigma * self.sigma_data / variance.sqrt()
        return c_skip, c_out, variance.rsqrt(), sigma.log() / 4


class VP(Preconditioning, kind="vp"):
    """The network predicts the negated unit noise; it is told the time of the VP schedule (Song et al. 2021)."""

    formula_skip: ClassVar[str] = "1"
    formula_out: ClassVar[str] = "−σ"
    formula_in: ClassVar[str] = "1/√(σ² + 1)"
    formula_noise: ClassVar[str] = "(M − 1) σ⁻¹(σ)"
    references: ClassVar[tuple[str, ...]] = ("sde",)
    beta_d: float = 19.9
    beta_min: float = 0.1
    M: int = 1000
    eps_t: float = 1e-5

    def validate(self) -> None:
        require(self.M >= 2, f"preconditioning.VP.M: got {self.M}; expected at least 2")
        require(0 < self.eps_t < 1, f"preconditioning.VP.eps_t: got {self.eps_t}; expected a number between 0 and 1")
        formulation.VP(self.beta_d, self.beta_min)  # raises for impossible betas

    @property
    def schedule(self) -> formulation.VP:
        """The noise schedule whose time the network is told."""
        return formulation.VP(self.beta_d, self.beta_min)

    @property
    def sigma_min(self) -> float:
        return float(self.schedule.sigma(self.eps_t))  # type: ignore[arg-type]

    @property
    def sigma_max(self) -> float:
        return float(self.schedule.sigma(1.0))  # type: ignore[arg-type]

    def coefficients(self, sigma: Tensor) -> Coefficients:
        c_noise = (self.M - 1) * self.schedule.sigma_inv(sigma.double())  # float32 loses digits at small sigma
        return torch.ones_like(sigma), -sigma, (sigma**2 + 1).rsqrt(), c_noise


class VE(Preconditioning, kind="ve"):
    """The network predicts the unit noise and sees the unscaled input (Song et al. 2021; Table 1)."""

    formula_skip: ClassVar[str] = "1"
    formula_out: ClassVar[str] = "σ"
    formula_in: ClassVar[str] = "1"
    formula_noise: ClassVar[str] = "ln(σ/2)"
    references: ClassVar[tuple[str, ...]] = ("sde",)
    sigma_min: float = 0.02
    sigma_max: float = 100.0

    def validate(self) -> None:
        good = 0 < self.sigma_min < self.sigma_max
        require(good, f"VE: got [{self.sigma_min}, {self.sigma_max}]; expected 0 < sigma_min < sigma_max")

    def coefficients(self, sigma: Tensor) -> Coefficients:
        one = torch.ones_like(sigma)
        return one, sigma, one, (sigma / 2).log()


class IDDPM(Preconditioning, kind="iddpm"):
    """Noise prediction at the discrete levels u_j (Nichol and Dhariwal 2021; Table 1).

    c_in and c_out use the level they are given; only c_noise uses the index of the nearest level. A `table`, the levels
    u_0 > u_1 > ... > u_M = 0 that a published network stores (computed in float32), takes the place of the formula's;
    C1 and C2 then only say where it came from.
    """

    formula_skip: ClassVar[str] = "1"
    formula_out: ClassVar[str] = "−σ"
    formula_in: ClassVar[str] = "1/√(σ² + 1)"
    formula_noise: ClassVar[str] = "M − 1 − argmin_j |u_j − σ|"
    references: ClassVar[tuple[str, ...]] = ("iddpm",)
    M: int = 1000
    C1: float = 0.001
    C2: float = 0.008
    table: tuple[float, ...] = ()

    def validate(self) -> None:
        formulation.iddpm_levels(self.M, self.C1, self.C2)  # raises for impossible parameters
        if not self.table:
            return
        n = len(self.table)
        require(n == self.M + 1, f"IDDPM.table: got {n} levels; expected M + 1 = {self.M + 1}, u_0 to u_M")
        falls = all(a > b for a, b in itertools.pairwise(self.table)) and self.table[0] < math.inf
        require(falls and self.table[-1] == 0, "IDDPM.table: expected finite levels that decrease to u_M = 0")

    def _levels(self) -> Tensor:
        return _stored(self.table) if self.table else formulation.iddpm_levels(self.M, self.C1, self.C2)

    def to_dict(self) -> dict[str, Any]:
        data = super().to_dict()
        return data if self.table else {name: value for name, value in data.items() if name != "table"}

    def __str__(self) -> str:
        shown = super().__str__()
        return shown.replace(str(self.table), f"{self.M + 1} levels") if self.table else shown.replace(", table=()", "")

    @property
    def sigma_min(self) -> float:
        return self._levels()[self.M - 1].item()

    @property
    def sigma_max(self) -> float:
        return self._levels()[0].item()

    def _nearest(self, sigma: Tensor) -> Tensor:
        u = self._levels().to(sigma.device)
        return (sigma.double()[..., None] - u).abs().argmin(-1)  # j = 0 .. M

    def coefficients(self, sigma: Tensor) -> Coefficients:
        c_noise = self.M - 1 - self._nearest(sigma)
        return torch.ones_like(sigma), -sigma, (sigma**2 + 1).rsqrt(), c_noise.to(torch.float64)

    def round_sigma(self, sigma: Tensor) -> Tensor:
        return self._levels().to(sigma.device)[self._nearest(sigma)].to(sigma.dtype)


@functools.lru_cache(maxsize=4)
def _stored(table: tuple[float, ...]) -> Tensor:
    """A table of levels as a tensor, made once: its thousand numbers cost more than a step of the sampler."""
    return torch.tensor(table, dtype=torch.float64)


class Flow(Preconditioning, kind="flow"):
    """The network predicts the velocity u = n - x_0 at x_t = (1 - t) x_0 + t n: D = x_t - t u (Lipman et al. 2023).

    With sigma = t / (1 - t): x_t = x / (1 + sigma). The network is told time_scale * t.
    """

    formula_skip: ClassVar[str] = "1/(1 + σ)"
    formula_out: ClassVar[str] = "−σ/(1 + σ)"
    formula_in: ClassVar[str] = "1/(1 + σ)"
    formula_noise: ClassVar[str] = "k σ/(1 + σ)"
    references: ClassVar[tuple[str, ...]] = ("flow",)
    time_scale: float = 1.0

    def validate(self) -> None:
        _check_time_scale(self.time_scale)

    def coefficients(self, sigma: Tensor) -> Coefficients:
        s, t = 1 / (1 + sigma), sigma / (1 + sigma)
        return s, -t, s, self.time_scale * t


def _check_time_scale(time_scale: float) -> None:
    require(0 < time_scale < math.inf, f"time_scale: got {time_scale}; expected a number above 0")


class _Scheduled(Preconditioning):
    """What epsilon, v and x0 prediction share: the variance-preserving input and the time of a schedule.

    The network is told time_scale * t + time_shift. A `Table` bounds the levels; entry k of it is number k for a
    network with time_scale = 1 and time_shift = -1. `discrete` says that the network knows these whole numbers only:
    the time told is that of the nearest entry, and `round_sigma` gives its level; c_in and c_out use the level given.
    """

    formula_in: ClassVar[str] = "1/√(σ² + 1)"
    formula_noise: ClassVar[str] = "k σ⁻¹(σ)"
    references: ClassVar[tuple[str, ...]] = ("ddpm",)
    schedule: formulation.Schedule = formulation.VP()
    time_scale: float = 999.0
    time_shift: float = 0.0
    discrete: bool = False

    def validate(self) -> None:
        _check_time_scale(self.time_scale)
        require(abs(self.time_shift) < math.inf, f"time_shift: got {self.time_shift}; expected a finite number")
        listed = isinstance(self.schedule, formulation.Table)
        require(listed or not self.discrete, f"discrete: {self.schedule.kind!r} has no entries; expected a Table")

    @property
    def sigma_min(self) -> float:
        return self.schedule.levels()[0].item() if isinstance(self.schedule, formulation.Table) else 0.0

    @property
    def sigma_max(self) -> float:
        return self.schedule.levels()[-1].item() if isinstance(self.schedule, formulation.Table) else math.inf

    def _nearest(self, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """Number, counted from 0, and level of the nearest entry of the table."""
        levels = self.schedule.levels().to(sigma.device)  # type: ignore[attr-defined]
        k = torch.bucketize(sigma.double(), (levels[1:] + levels[:-1]) / 2)
        return k, levels[k].to(sigma.dtype)

    def round_sigma(self, sigma: Tensor) -> Tensor:
        return torch.where(sigma == 0, 0.0, self._nearest(sigma)[1]) if self.discrete else sigma

    def _input_and_noise(self, sigma: Tensor) -> tuple[Tensor, Tensor]:
        t = (self._nearest(sigma)[0] + 1).double() if self.discrete else self.schedule.sigma_inv(sigma.double())
        return (sigma**2 + 1).rsqrt(), self.time_scale * t + self.time_shift


class Epsilon(_Scheduled, kind="epsilon"):
    """The network predicts the unit noise: D = x - sigma eps (Ho et al. 2020)."""

    formula_skip: ClassVar[str] = "1"
    formula_out: ClassVar[str] = "−σ"

    def coefficients(self, sigma: Tensor) -> Coefficients:
        return torch.ones_like(sigma), -sigma, *self._input_and_noise(sigma)


class V(_Scheduled, kind="v"):
    """The network predicts v: D = alpha x_t - alpha sigma v, alpha = 1 / sqrt(1 + sigma^2) (Salimans and Ho 2022)."""

    formula_skip: ClassVar[str] = "1/(σ² + 1)"
    formula_out: ClassVar[str] = "−σ/√(σ² + 1)"
    references: ClassVar[tuple[str, ...]] = ("v",)

    def coefficients(self, sigma: Tensor) -> Coefficients:
        alpha, c_noise = self._input_and_noise(sigma)
        return alpha**2, -sigma * alpha, alpha, c_noise


class X0(_Scheduled, kind="x0"):
    """The network predicts the clean sample: D = F."""

    formula_skip: ClassVar[str] = "0"
    formula_out: ClassVar[str] = "1"

    def coefficients(self, sigma: Tensor) -> Coefficients:
        return torch.zeros_like(sigma), torch.ones_like(sigma), *self._input_and_noise(sigma)
