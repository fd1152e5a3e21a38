"""The adaptive solver: as many evaluations as a tolerance asks for."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from ..component import require
from .quadrature import combination, scaled
from .run import Run
from .solver import Solver

# The pair of Dormand and Prince (1980), table 2: nodes, stages, and the fifth-order weights less the fourth-order ones.
C = (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
A = (
    (),
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
E = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)


class RK45(Solver, kind="rk45"):
    """Dormand-Prince 5(4) with error control (Dormand and Prince 1980): the grid only says where states are reported.

    Integrates d x_hat / d sigma = (x_hat - D(x_hat; sigma)) / sigma, x_hat = x / s: the same under every schedule and
    scaling. Within a step of the grid it takes as many steps as keep the root mean square of

        (difference of the two orders) / (atol + rtol max(|x_hat|, |x_hat_new|))

    at most 1 for every sample; step lengths follow 0.9 err^(-1/5), between a fifth and ten times the last.
    The last D of a step is the first of the next, and the last length goes on over the grid. Six evaluations a step;
    a step to sigma = 0 is D. On a Gaussian the error is 0.8 to 5 times the tolerance from 1e-4 down; at 1e-3 and more,
    where a step may cross a decade of sigma, up to 70 times on a grid of 2 or 5 levels (below 0.1 times on 18).
    Raises RuntimeError after `max_evaluations`, or where no step is short enough.
    `sample` runs each sample alone, so that a sample depends on its own seed only.
    """

    formula: ClassVar[str] = "Dormand–Prince 5(4)"
    references: ClassVar[tuple[str, ...]] = ("dormand", "sde")
    memory: ClassVar[int] = 1
    order: ClassVar[int] = 5
    adaptive: ClassVar[bool] = True
    rtol: float = 1e-4
    atol: float = 1e-4
    max_evaluations: int = 10_000

    def validate(self) -> None:
        for name in ("rtol", "atol"):
            value = getattr(self, name)
            require(0 <= value < math.inf, f"RK45.{name}: got {value}; expected a number of at least 0")
        require(self.rtol + self.atol > 0, "RK45: got rtol=0 and atol=0; expected one of them above 0")
        require(self.max_evaluations >= 1, f"RK45.max_evaluations: got {self.max_evaluations}; expected at least 1")

    def step(self, run: Run, x: Tensor, t: float, t_next: float) -> Tensor:
        level, end, s_next = run.sigma(t), run.sigma(t_next), run.scale(t_next)
        kept = run.past[-1].kept if run.past else {}
        known = kept.get("end") is x  # churn and ancestral steps move x: then D and the length start anew
        D = run.known(kept["denoised"]) if known else run.denoise(x, t)
        if end == 0:
            return s_next * D
        sign = 1 if end < level else -1  # downwards, or upwards in an inversion
        length = float(kept["length"]) if known else abs(level - end)
        x = scaled(1 / run.scale(t), x)
        while level != end:
            target = level - sign * length
            target = end if sign * target <= sign * end + 1e-10 * level else target  # no sliver left over
            x_new, D_new, difference = dormand_prince(run, x, level, target, D)
            err = self._error(difference, x, x_new)
            length = _next_length(length, abs(level - target), err)
            if err <= 1:
                x, D, level = x_new, D_new, target
            self._check(run, level, length)
        x = scaled(s_next, x)
        run.keep("end", x)
        run.keep("denoised", D)
        run.keep("length", torch.full((), length, dtype=torch.float64))
        return x

    def _error(self, difference: Tensor, x: Tensor, x_new: Tensor) -> float:
        """The largest error of a sample, in units of what is tolerated."""
        tolerated = torch.maximum(x.abs(), x_new.abs()).mul_(self.rtol).add_(self.atol)
        norms = torch.linalg.vector_norm((difference / tolerated).flatten(1), dim=1)
        return norms.max().item() / math.sqrt(math.prod(x.shape[1:]))

    def _check(self, run: Run, level: float, length: float) -> None:
        asked = f"rk45 with rtol={self.rtol:g}, atol={self.atol:g}"
        if run.nfe > self.max_evaluations:
            raise RuntimeError(f"{asked}: {run.nfe} evaluations at sigma={level:g}; expected {self.max_evaluations}")
        if length < 1e-13 * level:
            raise RuntimeError(f"{asked}: no step from sigma={level:g} is short enough; is D finite and smooth there?")


def _next_length(length: float, taken: float, err: float) -> float:
    """The length to try next, after a step `taken` that was at most `length`."""
    factor = min(max(0.9 * err**-0.2, 0.2), 10.0) if 0 < err < math.inf else 10.0 if err == 0 else 0.2
    proposed = taken * factor
    return max(length, proposed) if err <= 1 and taken < length else proposed


def dormand_prince(run: Run, x: Tensor, a: float, b: float, D: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The unscaled x at level b given x and D at level a, D there, and the difference of the orders; six calls."""
    h = b - a
    x_new, slopes = x, [(h / a, x - D)]  # h d x_hat / d sigma as (number, tensor): the quotient is left to the sums
    for c, row in zip(C[1:], A[1:], strict=True):
        x_new = combination(x, 1.0, _weighted(row, slopes))
        level = b if c == 1 else a + c * h
        D = run.denoise_at(x_new, level)
        slopes.append((h / level, x_new - D))
    (w, d), *rest = _weighted(E, slopes)
    return x_new, D, combination(d, w, rest)


def _weighted(weights: tuple[float, ...], slopes: list[tuple[float, Tensor]]) -> list[tuple[float, Tensor]]:
    """The terms of the sum of weights times slopes, without those of weight 0."""
    return [(w * step, d) for w, (step, d) in zip(weights, slopes, strict=True) if w]
