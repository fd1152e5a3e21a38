"""The adaptive solver: as many evaluations as a tolerance asks for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from ..component import require
from .quadrature import scaled
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
# The continuous extension of Shampine (1986): see Span; as in Hairer, Norsett and Wanner (1993), II.6.
BUMP = (
    -12715105075 / 11282082432,
    0.0,
    87487479700 / 32700410799,
    -10690763975 / 1880347072,
    701980252875 / 199316789632,
    -1453857185 / 822651844,
    69997945 / 29380423,
)
RATIO = 5  # of the levels at the ends of a step, at most
MARGIN = 4  # of a step's error below the tolerance: as many steps of full error add up to it
GROWTH = 10.0  # of a step over the last, at most


Slope = tuple[float, Tensor]  # h times a slope, as a number and a tensor whose product it is


class RK45(Solver, kind="rk45"):
    """Dormand-Prince 5(4) with error control (Dormand and Prince 1980): the grid only says where states are reported.

    Integrates d x_hat / d sigma = (x_hat - D(x_hat; sigma)) / sigma, x_hat = x / s: the same under every schedule and
    scaling. It takes as many steps as keep the root mean square of

        (difference of the two orders) / (atol + rtol max(|x_hat|, |x_hat_new|))

    at most 1/4 for every sample, so that the errors of several steps add up to the tolerance. Lengths, in parts of the
    level they begin at, follow 0.9 err^(-1/5), between a fifth and ten times the last (not above it right after a
    failure), and lead to a fifth of sigma at most: a longer step does not see what it passes, and neither does its
    estimate. Six evaluations a trial; the last D of a step is the first of the next; a step to sigma = 0 is D.

    Steps pass over the levels of the grid and end at its last above 0. States between come from the step's continuous
    extension of order 4 (`Span`) and cost no evaluation; the D that goes with one is that of the extension's slope,
    x - sigma dx/dsigma. So neither the evaluations nor the result depend on the levels between, bit for bit. Where
    noise has moved x the steps start anew, and end at the next level until one is left as it was.

    On a Gaussian, from sigma = 30 .. 120, the end errs by 0.3 to 5 times a tolerance of 1e-2 to 1e-8, and upwards by
    0.5 to 5; on it and on a mixture a state between errs by 3 (atol + rtol |x|) at most, its D by 2 tolerance^(4/5)
    times 1 + |x|.

    Raises RuntimeError after `max_evaluations`, or where no step is short enough.
    `sample` runs each sample alone, so that a sample depends on its own seed only.
    """

    formula: ClassVar[str] = "Dormand–Prince 5(4)"
    references: ClassVar[tuple[str, ...]] = ("dormand", "hairer", "sde")
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
        known = kept.get("end") is x  # churn and ancestral steps move x: then all but the length starts anew
        D = run.known(kept["denoised"]) if known else run.denoise(x, t)
        if end == 0:
            return s_next * D
        stride = kept["span"].stride if "span" in kept else math.inf
        span = kept["span"] if known else Span.at_rest(level, scaled(1 / run.scale(t), x), D, stride)
        noisy = run.noisy if not run.past else not known  # then the next noise would undo a step beyond the next level
        while (span.b > end) if end < level else (span.b < end):
            span = self._advanced(run, span, end, end if noisy else _last_level(run, level, end))
        x, D = span.at(end)
        x = scaled(s_next, x)
        run.keep("end", x)
        run.keep("denoised", D)
        run.keep("span", span)
        return x

    def _advanced(self, run: Run, last: Span, end: float, furthest: float) -> Span:
        """The next step that holds its error, at most to `furthest`."""
        level, stride, growth = last.b, last.stride, GROWTH
        sign = 1 if end < level else -1  # downwards, or upwards in an inversion
        longest = 1 - 1 / RATIO if sign > 0 else RATIO - 1
        while True:
            stride = min(stride, longest)
            target = level * (1 - sign * stride)
            target = furthest if sign * (target - furthest) <= 1e-10 * level else target  # no sliver left over
            trial = dormand_prince(run, last.x_b, level, target, last.D_b)
            err = self._error(trial.difference, last.x_b, trial.x)
            proposed = abs(level - target) / level * _factor(err, growth)
            stride = max(stride, proposed) if err <= 1 and target == furthest else proposed
            self._check(run, level, stride)
            if err <= 1:
                return Span.of(level, target, stride, last.x_b, trial, inner=sign * (end - target) > 0)
            growth = 1.0

    def _error(self, difference: Tensor, x: Tensor, x_new: Tensor) -> float:
        """The largest error of a sample, in units of what a step may have."""
        tolerated = torch.maximum(x.abs(), x_new.abs()).mul_(self.rtol).add_(self.atol)
        parts = difference.div_(tolerated)
        alone = len(parts) == 1  # as `sample` runs them: two calls less
        norm = torch.linalg.vector_norm(parts) if alone else torch.linalg.vector_norm(parts.flatten(1), dim=1).max()
        return norm.item() * MARGIN / math.sqrt(x[0].numel())

    def _check(self, run: Run, level: float, stride: float) -> None:
        asked = f"rk45 with rtol={self.rtol:g}, atol={self.atol:g}"
        if run.nfe > self.max_evaluations:
            raise RuntimeError(f"{asked}: {run.nfe} evaluations at sigma={level:g}; expected {self.max_evaluations}")
        if stride < 1e-13:
            raise RuntimeError(f"{asked}: no step from sigma={level:g} is short enough; is D finite and smooth there?")


class Span(NamedTuple):
    """One step of the integrator, from level a to level b: the unscaled x and D there, and the states between.

    With theta = (sigma - a)/h, h = b - a and the slopes k = (x - D)/sigma, the cubic through both ends with their
    slopes (Hermite), and a bump that makes its order 4, the continuous extension of Shampine (1986) in the form of
    Hairer, Norsett and Wanner (1993, II.6), whose weights BUMP are:

        x(sigma) = x_a + H (x_b - x_a) + P h k_a + M h k_b + B sum_i BUMP_i h k_i
        H = theta^2 (3 - 2 theta),  P = theta (1 - theta)^2,  M = -theta^2 (1 - theta),  B = theta^2 (1 - theta)^2.

    x and its slope are continuous from step to step. Order 4: an error of O(h^5) within a step, as in the error
    estimate; one less for the slope.
    """

    a: float
    b: float
    stride: float  # the length to try next, in parts of b
    x_a: Tensor
    x_b: Tensor
    D_b: Tensor
    terms: tuple[Slope, ...]  # x_b - x_a, h k_a, h k_b and the bump; none where no level lies within the step

    @classmethod
    def at_rest(cls, level: float, x: Tensor, D: Tensor, stride: float) -> Span:
        """No step yet."""
        return cls(level, level, stride, x, x, D, ())

    @classmethod
    def of(cls, a: float, b: float, stride: float, x: Tensor, trial: Trial, inner: bool) -> Span:
        """The step from x at level a that a trial has made; `inner`: whether states within it are wanted."""
        h_k = trial.slopes
        terms = ((1.0, trial.x - x), h_k[0], h_k[-1], (1.0, _total(BUMP, h_k))) if inner else ()
        return cls(a, b, stride, x, trial.x, trial.D, terms)

    def at(self, level: float) -> tuple[Tensor, Tensor]:
        """The state x at a level of the step, and x - sigma dx/dsigma."""
        if level == self.b:
            return self.x_b, self.D_b
        h = self.b - self.a
        theta = (level - self.a) / h
        u, c = 1 - theta, level / h
        values = theta**2 * (3 - 2 * theta), theta * u**2, -(theta**2) * u, (theta * u) ** 2
        rates = 6 * theta * u, u * (1 - 3 * theta), theta * (3 * theta - 2), 2 * theta * u * (1 - 2 * theta)
        of_D = [value - c * rate for value, rate in zip(values, rates, strict=True)]
        return _plus(self.x_a, values, self.terms), _plus(self.x_a, of_D, self.terms)


def _last_level(run: Run, level: float, end: float) -> float:
    """The last level above 0 of the grid where it lies beyond `end`, as it does but for ancestral steps; else `end`."""
    if not run.times:
        return end
    last = run.sigma(run.times[-1]) or run.sigma(run.times[-2])
    return min(last, end) if end < level else max(last, end)


def _factor(err: float, growth: float) -> float:
    """How many times as long the next step may be."""
    if err == 0:
        return growth
    return min(max(0.9 * err**-0.2, 0.2), growth) if err < math.inf else 0.2  # 0.2 for nan as well


class Trial(NamedTuple):
    """The unscaled x and D at the end of a trial step, the difference of the orders, and the h k_i."""

    x: Tensor
    D: Tensor
    difference: Tensor
    slopes: list[Slope]


def dormand_prince(run: Run, x: Tensor, a: float, b: float, D: Tensor) -> Trial:
    """A step of the pair from the unscaled x and D at level a to level b; six calls."""
    h = b - a
    x_new, slopes = x, [(h / a, x - D)]  # the quotient is left to the sums
    for c, row in zip(C[1:], A[1:], strict=True):
        x_new = _plus(x, row, slopes)
        level = b if c == 1 else a + c * h
        D = run.denoise_at(x_new, level)
        slopes.append((h / level, x_new - D))
    return Trial(x_new, D, _total(E, slopes), slopes)


def _total(weights: Sequence[float], slopes: Sequence[Slope]) -> Tensor:
    """The sum of weights times slopes."""
    step, d = slopes[0]
    return _plus((weights[0] * step) * d, weights[1:], slopes[1:])


def _plus(x: Tensor, weights: Sequence[float], slopes: Sequence[Slope]) -> Tensor:
    """The sum of x and weights times slopes, a new tensor; what has weight 0 is left out."""
    total = x
    for w, (step, d) in zip(weights, slopes, strict=True):
        if w:
            total = torch.add(x, d, alpha=w * step) if total is x else total.add_(d, alpha=w * step)
    return total
