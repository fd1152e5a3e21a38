"""Time steps: the decreasing list of noise levels at which a sampler stops, ending in 0 (Table 1, row "time steps")."""

from __future__ import annotations

import math
import numbers
import warnings
from typing import ClassVar

import torch
from torch import Tensor

from . import formulation
from .component import Component, require


class TimeSteps(Component):
    """A rule that places n noise levels between sigma_max and sigma_min.

    A new rule defines `levels`; calling it checks the request, pins the end points and appends 0.
    """

    role: ClassVar[str] = "timesteps"
    default_range: ClassVar[tuple[float, float]] = (0.002, 80.0)

    def range(self) -> tuple[float, float]:
        """(sigma_min, sigma_max) when nothing else is asked."""
        return self.default_range

    def levels(self, n: int, sigma_min: float, sigma_max: float) -> Tensor:
        """The n noise levels, (n,) float64, from sigma_max down to sigma_min; n = 1 gives sigma_max."""
        raise NotImplementedError(f"{type(self).__name__} must define levels(n, sigma_min, sigma_max)")

    def __call__(self, n: int, sigma_min: float, sigma_max: float) -> Tensor:
        """The list of levels with the final 0, (n + 1,) float64, strictly decreasing.

        Raises ValueError for n < 1, for sigma_min >= sigma_max and for more levels than the rule has.
        """
        check_range(n, sigma_min, sigma_max)
        sigmas = self.levels(n, sigma_min, sigma_max)
        return torch.cat([sigmas, torch.zeros(1, dtype=torch.float64)])


def check_range(n: int, sigma_min: float, sigma_max: float) -> None:
    """Raise ValueError unless n >= 1 and 0 < sigma_min < sigma_max < infinity."""
    whole = isinstance(n, numbers.Integral) and not isinstance(n, bool)
    require(whole and n >= 1, f"steps: got {n!r}; expected an integer of at least 1")
    require(
        0 < sigma_min < sigma_max < math.inf,
        f"noise range: got sigma_min={sigma_min:g}, sigma_max={sigma_max:g}; expected 0 < sigma_min < sigma_max < inf",
    )


def fractions(n: int) -> Tensor:
    """The fractions i / (n - 1) for i = 0 .. n - 1, (n,) float64; for n = 1 just 0."""
    return torch.arange(n, dtype=torch.float64) / max(n - 1, 1)


def pinned(sigmas: Tensor, sigma_min: float, sigma_max: float) -> Tensor:
    """The levels with end points that are exact, whatever rounding did to them."""
    sigmas[0] = sigma_max
    if len(sigmas) > 1:
        sigmas[-1] = sigma_min
    return sigmas


class EDM(TimeSteps, kind="edm"):
    """sigma_i = (sigma_max^(1/rho) + i/(N-1) (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho (EDM paper, Eq. 5)."""

    formula: ClassVar[str] = "(σ_max^{1/ρ} + i/(N−1) (σ_min^{1/ρ} − σ_max^{1/ρ}))^ρ"
    references: ClassVar[tuple[str, ...]] = ("edm",)
    rho: float = 7.0

    def validate(self) -> None:
        require(0 < self.rho < math.inf, f"timesteps.EDM.rho: got {self.rho}; expected a number above 0")

    def levels(self, n: int, sigma_min: float, sigma_max: float) -> Tensor:
        try:
            a, b = sigma_max ** (1 / self.rho), sigma_min ** (1 / self.rho)
        except OverflowError:
            raise ValueError(
                f"timesteps.EDM.rho: got {self.rho:g}; expected more for sigma_max={sigma_max:g}"
            ) from None
        return pinned((a + fractions(n) * (b - a)) ** self.rho, sigma_min, sigma_max)


class VP(TimeSteps, kind="vp"):
    """t_i = 1 + i/(N-1) (eps_s - 1), uniform in the time of the VP schedule fitted to the range (Song et al. 2021).

    The default range [sigma(eps_s), sigma(1)] of the schedule with beta_d 19.9 and beta_min 0.1 gives those betas back.
    """

    formula: ClassVar[str] = "t_i = 1 + i/(N−1) (ε_s − 1)"
    references: ClassVar[tuple[str, ...]] = ("sde",)
    eps_s: float = 1e-3

    def validate(self) -> None:
        require(0 < self.eps_s < 1, f"timesteps.VP.eps_s: got {self.eps_s}; expected a number between 0 and 1")

    def range(self) -> tuple[float, float]:
        schedule = formulation.VP()
        return schedule.sigma(self.eps_s).item(), schedule.sigma(1.0).item()  # type: ignore[arg-type]

    def levels(self, n: int, sigma_min: float, sigma_max: float) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a negative beta_min is harmless here: every t_i is above eps_s
            schedule = formulation.VP.fit(sigma_min, sigma_max, self.eps_s)
        t = 1 + fractions(n) * (self.eps_s - 1)
        return pinned(schedule.sigma(t), sigma_min, sigma_max)


class VE(TimeSteps, kind="ve"):
    """sigma_i^2 = sigma_max^2 (sigma_min^2 / sigma_max^2)^(i/(N-1)): geometric levels (Song et al. 2021)."""

    formula: ClassVar[str] = "t_i = σ_max² (σ_min²/σ_max²)^{i/(N−1)}"
    references: ClassVar[tuple[str, ...]] = ("sde",)
    default_range: ClassVar[tuple[float, float]] = (0.02, 100.0)

    def levels(self, n: int, sigma_min: float, sigma_max: float) -> Tensor:
        t = sigma_max**2 * (sigma_min**2 / sigma_max**2) ** fractions(n)
        return pinned(t.sqrt(), sigma_min, sigma_max)


class IDDPM(TimeSteps, kind="iddpm"):
    """Every k-th of the discrete levels u_j of iDDPM that lie in the range (Nichol and Dhariwal 2021; Table 1).

    With L levels in [sigma_min, sigma_max], step i takes number round(i (L - 1)/(N - 1)); the end
    points are therefore table entries. Raises ValueError when N exceeds L.
    """

    formula: ClassVar[str] = "u_j, j = round(j_0 + (M−1−j_0) i/(N−1))"
    references: ClassVar[tuple[str, ...]] = ("iddpm", "ddim")
    default_range: ClassVar[tuple[float, float]] = (0.002, 81.0)
    M: int = 1000
    C1: float = 0.001
    C2: float = 0.008

    def validate(self) -> None:
        formulation.iddpm_levels(self.M, self.C1, self.C2)  # raises for impossible parameters

    def levels(self, n: int, sigma_min: float, sigma_max: float) -> Tensor:
        u = formulation.iddpm_levels(self.M, self.C1, self.C2)[: self.M]
        inside = u[(u >= sigma_min) & (u <= sigma_max)]
        require(
            len(inside) >= n,
            f"timesteps.IDDPM: got steps={n}; the table has {len(inside)} levels in [{sigma_min:g}, {sigma_max:g}]",
        )
        return inside[(fractions(n) * (len(inside) - 1)).round().long()]


class LogSNR(TimeSteps, kind="logsnr"):
    """Levels uniform in the log signal-to-noise ratio -2 ln sigma (Lu et al. 2022); the same levels as `ve`."""

    formula: ClassVar[str] = "ln σ_i uniform"
    references: ClassVar[tuple[str, ...]] = ("dpmsolver",)

    def levels(self, n: int, sigma_min: float, sigma_max: float) -> Tensor:
        a, b = math.log(sigma_max), math.log(sigma_min)
        return pinned((a + fractions(n) * (b - a)).exp(), sigma_min, sigma_max)


class Uniform(TimeSteps, kind="uniform"):
    """Uniform in the time of a schedule: t_i^(1/power) equally spaced (power 1 linear, 2 quadratic steps of DDIM)."""

    formula: ClassVar[str] = "σ(t_i), t_i^{1/p} uniform"
    references: ClassVar[tuple[str, ...]] = ("ddim",)
    schedule: formulation.Schedule = formulation.VP()
    power: float = 1.0

    def validate(self) -> None:
        require(0 < self.power < math.inf, f"timesteps.Uniform.power: got {self.power}; expected a number above 0")

    def levels(self, n: int, sigma_min: float, sigma_max: float) -> Tensor:
        ends = self.schedule.sigma_inv(torch.tensor([sigma_max, sigma_min], dtype=torch.float64)) ** (1 / self.power)
        t = (ends[0] + fractions(n) * (ends[1] - ends[0])) ** self.power
        return pinned(self.schedule.sigma(t), sigma_min, sigma_max)


class Cosine(TimeSteps, kind="cosine"):
    """Uniform in the time of the continuous cosine schedule (Nichol and Dhariwal 2021)."""

    formula: ClassVar[str] = "σ_cos(t_i), t_i uniform"
    references: ClassVar[tuple[str, ...]] = ("iddpm",)
    offset: float = 0.008

    def levels(self, n: int, sigma_min: float, sigma_max: float) -> Tensor:
        return Uniform(schedule=formulation.Cosine(self.offset)).levels(n, sigma_min, sigma_max)


class Fixed(TimeSteps, kind="fixed"):
    """A list of noise levels, used exactly as given. The final 0 is appended and may be left out."""

    formula: ClassVar[str] = "σ_i as listed"
    sigmas: tuple[float, ...]

    def validate(self) -> None:
        if self.sigmas and self.sigmas[-1] == 0:
            object.__setattr__(self, "sigmas", self.sigmas[:-1])
        falling = all(a > b for a, b in zip(self.sigmas, self.sigmas[1:], strict=False))
        require(
            bool(self.sigmas) and falling and math.inf > self.sigmas[0] and self.sigmas[-1] > 0,
            f"timesteps.Fixed.sigmas: got {self.sigmas}; expected finite levels above 0, strictly decreasing",
        )

    def range(self) -> tuple[float, float]:
        return self.sigmas[-1], self.sigmas[0]

    def levels(self, n: int, sigma_min: float, sigma_max: float) -> Tensor:
        return torch.tensor(self.sigmas, dtype=torch.float64)

    def __call__(self, n: int, sigma_min: float, sigma_max: float) -> Tensor:
        """The list with the final 0, never re-mapped. Raises ValueError when the request does not fit it."""
        low, high = self.range()
        require(
            n == len(self.sigmas) and sigma_min <= low and high <= sigma_max,
            f"timesteps.Fixed: the list has {len(self.sigmas)} levels from {high:g} to {low:g}; "
            f"got steps={n} and the range [{sigma_min:g}, {sigma_max:g}]",
        )
        return torch.cat([self.levels(n, sigma_min, sigma_max), torch.zeros(1, dtype=torch.float64)])
