"""Multistep solvers: one evaluation a step, earlier ones reused."""

from __future__ import annotations

import math
from typing import ClassVar

from torch import Tensor

from .run import Run
from .solver import Solver


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
        if run.past and b > 0:
            last = run.past[-1]
            r = math.log(run.sigma(last.t) / a) / math.log(a / b)
            if r > 0.1:  # churn may lift a to the level of the past or above: nothing to extrapolate from
                D = D + (D - last.denoised) / (2 * r)
        return run.scale(t_next) * (b / a * (x / run.scale(t)) + (1 - b / a) * D)
