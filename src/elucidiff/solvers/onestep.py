"""One-step solvers: Euler and the explicit Runge-Kutta methods."""

from __future__ import annotations

import math
from typing import ClassVar

from torch import Tensor

from ..component import require
from .run import Run
from .solver import Solver


class Euler(Solver, kind="euler"):
    """x + h v(x, t); with sigma(t) = t, s = 1 this is DDIM (Song, Meng and Ermon 2021)."""

    formula: ClassVar[str] = "Euler"
    references: ClassVar[tuple[str, ...]] = ("ddim",)
    order: ClassVar[int] = 1

    def step(self, run: Run, x: Tensor, t: float, t_next: float) -> Tensor:
        return x + (t_next - t) * run.velocity(x, t)


class _SecondOrder(Solver):
    """The explicit second-order family of EDM's Algorithm 3: a trial step of length alpha h, then both slopes.

    x' = x + alpha h d,  x_next = x + h ((1 - 1/(2 alpha)) d + 1/(2 alpha) v(x', t + alpha h)).
    A step to sigma = 0 is Euler's, as in the paper. NFE = 2 N - 1.
    """

    references: ClassVar[tuple[str, ...]] = ("edm",)
    order: ClassVar[int] = 2

    def _second_order(self, run: Run, x: Tensor, t: float, t_next: float, alpha: float) -> Tensor:
        h = t_next - t
        d = run.velocity(x, t)
        if run.sigma(t_next) == 0:
            return x + h * d
        t_trial = t_next if alpha == 1 else t + alpha * h  # t + (t_next - t) may miss t_next by a rounding
        d_trial = run.velocity(x + alpha * h * d, t_trial)
        w = 1 / (2 * alpha)
        return x + h * ((1 - w) * d + w * d_trial)


class RK2(_SecondOrder, kind="rk2"):
    """Second-order Runge-Kutta with free alpha in (0, 1]: 1 Heun, 1/2 midpoint, 2/3 Ralston (EDM paper, Alg. 3)."""

    formula: ClassVar[str] = "2nd-order Runge–Kutta, α"
    alpha: float = 1.0

    def validate(self) -> None:
        require(0 < self.alpha <= 1, f"RK2.alpha: got {self.alpha}; expected a number in (0, 1]")

    def step(self, run: Run, x: Tensor, t: float, t_next: float) -> Tensor:
        return self._second_order(run, x, t, t_next, self.alpha)


class Heun(_SecondOrder, kind="heun"):
    """Heun's method, the paper's choice (EDM paper, Algorithm 1)."""

    formula: ClassVar[str] = "2nd-order Heun"

    def step(self, run: Run, x: Tensor, t: float, t_next: float) -> Tensor:
        return self._second_order(run, x, t, t_next, alpha=1.0)


class Midpoint(_SecondOrder, kind="midpoint"):
    """The midpoint method, alpha = 1/2."""

    formula: ClassVar[str] = "2nd-order midpoint"
    nodes: ClassVar[tuple[float, ...]] = (1 / 2,)

    def step(self, run: Run, x: Tensor, t: float, t_next: float) -> Tensor:
        return self._second_order(run, x, t, t_next, alpha=1 / 2)


class Ralston(_SecondOrder, kind="ralston"):
    """Ralston's method, alpha = 2/3: the smallest error bound of the family."""

    formula: ClassVar[str] = "2nd-order Ralston"
    nodes: ClassVar[tuple[float, ...]] = (2 / 3,)
    references: ClassVar[tuple[str, ...]] = ("edm", "ralston")

    def step(self, run: Run, x: Tensor, t: float, t_next: float) -> Tensor:
        return self._second_order(run, x, t, t_next, alpha=2 / 3)


class DPM2(Solver, kind="dpm2"):
    """DPM-Solver-2: the slope half-way in ln sigma, used for the whole step (Lu et al. 2022).

    sigma_mid = sqrt(sigma sigma_next), x_mid = x + (t_mid - t) v(x, t), x_next = x + h v(x_mid, t_mid), with t_mid the
    time of sigma_mid; the paper's with sigma(t) = t, s = 1. A step to sigma = 0 is Euler's. NFE = 2 N - 1.
    """

    formula: ClassVar[str] = "DPM-Solver-2"
    references: ClassVar[tuple[str, ...]] = ("dpmsolver",)
    order: ClassVar[int] = 2

    def step(self, run: Run, x: Tensor, t: float, t_next: float) -> Tensor:
        d = run.velocity(x, t)
        if run.sigma(t_next) == 0:
            return x + (t_next - t) * d
        t_mid = run.time(math.sqrt(run.sigma(t) * run.sigma(t_next)))
        return x + (t_next - t) * run.velocity(x + (t_mid - t) * d, t_mid)


class RK4(Solver, kind="rk4"):
    """The classical fourth-order Runge-Kutta method; a step to sigma = 0 is Euler's. NFE = 4 N - 3."""

    formula: ClassVar[str] = "4th-order Runge–Kutta"
    nodes: ClassVar[tuple[float, ...]] = (1 / 2,)
    references: ClassVar[tuple[str, ...]] = ("kutta",)
    order: ClassVar[int] = 4

    def step(self, run: Run, x: Tensor, t: float, t_next: float) -> Tensor:
        h = t_next - t
        k1 = run.velocity(x, t)
        if run.sigma(t_next) == 0:
            return x + h * k1
        k2 = run.velocity(x + h / 2 * k1, t + h / 2)
        k3 = run.velocity(x + h / 2 * k2, t + h / 2)
        k4 = run.velocity(x + h * k3, t_next)
        return x + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
