"""Time steps fitted to a few teacher paths by the error that counts: the distance of the samples to the exact ones.

First three numbers: levels 80, then from sigma_1 down to the last one, evenly in ln sigma but for a bend,

    ln sigma_i = ln sigma_1 + (ln sigma_last - ln sigma_1) (f + c f (1 - f)),   f = (i - 1) / (N - 2),  i = 1 .. N - 1;

then, where there are few, every level freely. Above a few sigma_data the path is nearly straight, so the jump from 80
costs little; below the finest detail D hardly changes, so the step to 0 may start there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..denoiser import Denoiser
from ..sampler import Sampler, sample
from .problems import SIGMA_MAX, SIGMA_MIN

Levels = tuple[float, ...]
STARTS = ((3.0, 0.1, -0.3), (6.0, 0.05, 0.0), (50.0, 0.004, 0.3))
"""(sigma_1, last, c) to begin with, for data of unit scale; the search is local, so there are several.

The last, like rho = 7, is for many steps, where the step to 0 from a high level would be the largest error.
"""
FREE = 12
"""Above so many levels the three numbers are enough, and free ones would cost a Jacobian of as many runs."""


def bent(n: int, sigma_1: float, last: float, c: float) -> Levels:
    """The n levels of three numbers, the first of them 80."""
    f = torch.arange(n - 1, dtype=torch.float64) / max(n - 2, 1)
    a, b = math.log(sigma_1), math.log(last)
    return (SIGMA_MAX, *(a + (b - a) * (f + c * f * (1 - f))).exp().tolist())[:n]


def fit(
    denoiser: Denoiser,
    make: Callable[[Levels], Sampler],
    n: int,
    latents: Tensor,
    exact: Tensor,
    starts: Sequence[tuple[float, float, float]] = STARTS,
    report: Callable[[float], None] | None = None,
) -> tuple[Levels, float]:
    """The n levels of the smallest RMSE to exact samples, and that RMSE.

    make: the sampler for levels above 0. latents, exact: beginnings (of unit variance) and ends of teacher paths.
    Costs about 60 to 100 runs for 5 to 12 levels, 40 for more.
    """

    def run(levels: Levels) -> Tensor | None:
        falls = all(a > 1.0001 * b for a, b in zip(levels, (*levels[1:], SIGMA_MIN), strict=True))
        return (sample(denoiser, make(levels), latents=latents).x - exact).flatten() if falls else None

    def of_bend(p: list[float]) -> Tensor | None:
        return run(bent(n, math.exp(p[0]), math.exp(p[1]), p[2])) if abs(p[2]) < 1 else None

    def of_levels(p: list[float]) -> Tensor | None:
        return run((SIGMA_MAX, *(math.exp(v) for v in p)))

    found: list[tuple[float, Levels]] = []
    for sigma_1, last, c in starts:
        p, error = least_squares(of_bend, [math.log(sigma_1), math.log(last), c])
        levels = bent(n, math.exp(p[0]), math.exp(p[1]), p[2])
        if n <= FREE:
            free, error = least_squares(of_levels, [math.log(v) for v in levels[1:]])
            levels = (SIGMA_MAX, *(math.exp(v) for v in free))
        found.append((error, levels))
        if report:
            report(error)
    error, levels = min(found)
    return tuple(float(f"{v:.5g}") for v in levels), error


def least_squares(
    residual: Callable[[list[float]], Tensor | None], start: list[float], iterations: int = 8
) -> tuple[list[float], float]:
    """Levenberg-Marquardt with Jacobians by differences: the point of the least mean square, and its root.

    residual: the vector for a point, None where the point is not allowed. No step moves a number by more than 0.7.
    """
    point, r = start, residual(start)
    if r is None:
        return start, math.inf
    error, damping = float(r.square().mean()), 1e-2
    for _ in range(iterations):
        J = torch.stack([_slope(residual, point, r, i) for i in range(len(point))], 1)
        A, g = J.T @ J, J.T @ r
        before = error
        for _ in range(6):
            move = -torch.linalg.solve(A + damping * torch.diag(A.diagonal() + 1e-12), g)
            move *= min(1.0, 0.7 / max(float(move.abs().max()), 1e-12))
            trial = [p + float(m) for p, m in zip(point, move, strict=True)]
            r_trial = residual(trial)
            if r_trial is not None and (found := float(r_trial.square().mean())) < error:
                point, r, error, damping = trial, r_trial, found, max(damping / 4, 1e-6)
                break
            damping *= 5
        if error > 0.999 * before:
            break
    return point, math.sqrt(error)


def _slope(residual: Callable[[list[float]], Tensor | None], point: list[float], r: Tensor, i: int) -> Tensor:
    """The derivative of the residual in one number; 0 where neither side is allowed."""
    for h in (0.02, -0.02):
        moved = residual([p + h * (j == i) for j, p in enumerate(point)])
        if moved is not None:
            return (moved - r) / h
    return torch.zeros_like(r)
