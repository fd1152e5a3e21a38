"""Multistep solvers: one evaluation a step, earlier ones reused.

The first step of a run has no past and is of order 1, the second uses one value of it, and so on: NFE = N. That start
leaves an error of order h^2, times (sigma_data / sigma_max)^2 or so: nothing from sigma_max = 80 in the usual numbers
of steps, but from 10 down it hides the orders 3 and 4. With `accurate_start` the first steps are RK4's, at 3
evaluations more each.
"""

from __future__ import annotations

import functools
import math
from typing import ClassVar

from torch import Tensor

from ..component import require
from .onestep import RK4
from .quadrature import aim, arrived, combination, log_level, previous
from .run import Past, Run
from .solver import Solver


def check_order(solver: Solver, highest: int) -> None:
    """Raise ValueError for an order that a family does not have."""
    name = f"{type(solver).__name__}.order"
    require(1 <= solver.order <= highest, f"{name}: got {solver.order}; expected a whole number from 1 to {highest}")


def starting(run: Run, memory: int, t_next: float) -> bool:
    """Whether the past is still too short for the full order (the step to sigma = 0 needs none)."""
    return len(run.past) < memory and run.sigma(t_next) > 0


def _velocities(run: Run, x: Tensor, t: float, t_next: float, memory: int) -> tuple[Tensor, list[Past]]:
    """The velocity here, kept for later steps, and the past ones that continue it.

    None after fresh noise: the velocity is mostly the noise itself, and the past tells nothing of a new one.
    """
    v = run.velocity(x, t)
    run.keep("velocity", v)
    smooth = run.sigma(t_next) > 0 and arrived(run, t)
    return v, previous(run, memory, t, t_next) if smooth else []


def _velocity(run: Run, past: Past) -> Tensor:
    kept = past.kept.get("velocity")
    return run.velocity_of(past.x, past.t, past.denoised) if kept is None else kept


class AB(Solver, kind="ab"):
    """Adams-Bashforth with variable steps: the polynomial in t through the last velocities, integrated over the step.

    x_next = x + sum_j w_j v_j,  w_j = integral of L_j(tau) d tau from t to t_next, L_j the Lagrange polynomials on
    t and the order - 1 times before; v is Eq. 4 at the past states (B, *). With sigma(t) = t, s = 1 this is the linear
    multistep method (LMS) of k-diffusion. A step to sigma = 0, or after fresh noise, is Euler's. NFE = N.
    (Bashforth and Adams 1883; Hairer, Norsett and Wanner, Solving ODEs I, section III.5.)
    """

    formula: ClassVar[str] = "Adams–Bashforth"
    references: ClassVar[tuple[str, ...]] = ("adams", "hairer")
    order: int = 4  # type: ignore[misc]
    accurate_start: bool = False

    def validate(self) -> None:
        check_order(self, 4)

    @property
    def memory(self) -> int:  # type: ignore[override]
        return self.order - 1

    def step(self, run: Run, x: Tensor, t: float, t_next: float) -> Tensor:
        aim(run, t_next)
        if self.accurate_start and starting(run, self.memory, t_next):
            return RK4().step(run, x, t, t_next)
        v, past = _velocities(run, x, t, t_next, self.memory)
        w, *rest = adams_weights((t, *(p.t for p in past)), t_next)
        terms = [(w_j, _velocity(run, p)) for w_j, p in zip(rest, past, strict=True)]
        return combination(x, 1.0, [(w, v), *terms])


@functools.lru_cache(maxsize=4096)
def adams_weights(times: tuple[float, ...], t_next: float) -> tuple[float, ...]:
    """The integrals of the Lagrange polynomials on at most four times, from the first of them to t_next."""
    t, half = times[0], (t_next - times[0]) / 2
    weights = []
    for j, t_j in enumerate(times):
        total = 0.0
        for node in (-math.sqrt(1 / 3), math.sqrt(1 / 3)):  # two Gauss nodes are exact for cubics
            tau = t + half * (1 + node)
            total += math.prod((tau - t_m) / (t_j - t_m) for m, t_m in enumerate(times) if m != j)
        weights.append(half * total)
    return tuple(weights)


CONSTANT = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)  # Adams-Bashforth on equal steps


class IPNDM(Solver, kind="ipndm"):
    """Improved PNDM: Adams-Bashforth with the weights of equal steps, whatever the steps (Liu et al. 2022).

    x_next = x + h sum_j c_j v_j, c = (1), (3/2, -1/2), (23, -16, 5)/12 or (55, -59, 37, -9)/24 for the last velocities
    of Eq. 4. Where the steps change smoothly it converges at order min(order, 2), and at its full order
    where they are equal in t; few steps often gain from it all the same. A step to sigma = 0 is Euler's. NFE = N.
    """

    formula: ClassVar[str] = "iPNDM"
    references: ClassVar[tuple[str, ...]] = ("pndm", "deis")
    order: int = 4  # type: ignore[misc]

    def validate(self) -> None:
        check_order(self, 4)

    @property
    def memory(self) -> int:  # type: ignore[override]
        return self.order - 1

    def step(self, run: Run, x: Tensor, t: float, t_next: float) -> Tensor:
        aim(run, t_next)
        h = t_next - t
        v, past = _velocities(run, x, t, t_next, self.memory)
        c, *rest = CONSTANT[len(past)]
        terms = [(h * c_j, _velocity(run, p)) for c_j, p in zip(rest, past, strict=True)]
        return combination(x, 1.0, [(h * c, v), *terms])


class DPMpp2M(Solver, kind="dpmpp_2m"):
    """DPM-Solver++(2M): exact in the linear part, D extrapolated linearly in -ln sigma (Lu et al. 2022, Algorithm 2).

    The first step, and the step to sigma = 0, use D as it is. NFE = N. Depends on sigma and x / s
    alone, so it is the same under every schedule and scaling.
    """

    formula: ClassVar[str] = "DPM-Solver++(2M)"
    references: ClassVar[tuple[str, ...]] = ("dpmpp",)
    memory: ClassVar[int] = 1
    order: ClassVar[int] = 2

    def step(self, run: Run, x: Tensor, t: float, t_next: float) -> Tensor:
        D = run.denoise(x, t)
        a, b = run.sigma(t), run.sigma(t_next)
        if b > 0 and (past := previous(run, 1, t, t_next, log_level(run))):
            last = past[0]
            r = math.log(run.sigma(last.t) / a) / math.log(a / b)
            D = D + (D - last.denoised) / (2 * r)
        return run.scale(t_next) * (b / a * (x / run.scale(t)) + (1 - b / a) * D)


class DPMpp3M(Solver, kind="dpmpp_3m"):
    """DPM-Solver++(3M): exact in the linear part, D extrapolated by a parabola in lambda = -ln sigma (Lu et al. 2022).

    With steps h (the coming one), k, l (those before) in lambda and divided differences D01 = (D0 - D1) / k,
    D012 = (D01 - (D1 - D2) / l) / (k + l), the exponential integrator of Newton's parabola
    D0 + tau D01 + tau (tau + k) D012 is, per unit scaling, with E = 1 - exp(-h),

        x_next = exp(-h) x + E D0 + (h - E) (D01 + k D012) + c (h^2/2 - (h - E)) D012,    c = 2.

    `corrected=True` is this, of order 3. The default, c = 1, is the solver as it is commonly shipped (k-diffusion,
    diffusers): it takes D012 for the second derivative, which is 2 D012, and converges at order 2; at few steps it
    is often slightly better. The second step is the same with D012 = 0, and so is one after fresh
    noise; the first, and the step to 0, use D as it is.
    NFE = N. The same under every schedule and scaling.
    """

    formula: ClassVar[str] = "DPM-Solver++(3M)"
    references: ClassVar[tuple[str, ...]] = ("dpmpp",)
    memory: ClassVar[int] = 2
    corrected: bool = False
    accurate_start: bool = False

    @property
    def order(self) -> int:  # type: ignore[override]
        return 3 if self.corrected else 2

    def step(self, run: Run, x: Tensor, t: float, t_next: float) -> Tensor:
        aim(run, t_next)
        if self.accurate_start and starting(run, self.memory, t_next):
            return RK4().step(run, x, t, t_next)
        D = run.denoise(x, t)
        a, b, s_next = run.sigma(t), run.sigma(t_next), run.scale(t_next)
        count = 2 if arrived(run, t) else 1  # a parabola across fresh noise is unstable
        past = previous(run, count, t, t_next, log_level(run)) if b > 0 else []
        w, *rest = _parabola_weights(b, (a, *(run.sigma(p.t) for p in past)), 2.0 if self.corrected else 1.0)
        terms = [(s_next * w_j, p.denoised) for w_j, p in zip(rest, past, strict=True)]
        return combination(x, s_next / run.scale(t) * (b / a), [(s_next * w, D), *terms])


def _parabola_weights(b: float, levels: tuple[float, ...], c: float) -> tuple[float, ...]:
    """The weights of D at one to three levels in DPM-Solver++(3M)'s step from the first of them to b."""
    a = levels[0]
    E = 1 - b / a
    if len(levels) == 1:
        return (E,)
    h, k = math.log(a / b), math.log(levels[1] / a)
    slope = (h - E) / k  # of D0 - D1
    if len(levels) == 2:
        return (E + slope, -slope)
    l_ = math.log(levels[2] / levels[1])
    bend = (k * (h - E) + c * (h * h / 2 - (h - E))) / (k + l_)  # of D01 - (D1 - D2) / l
    return (E + slope + bend / k, -slope - bend / k - bend / l_, bend / l_)
