"""Multistep predictors whose last step is corrected once the next evaluation is there; UniPC."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
from torch import Tensor

from ..component import require
from .multistep import check_order, starting
from .onestep import RK4
from .quadrature import aim, arrived, combination, lagrange, levels_between, log_level, previous
from .run import Past, Run
from .solver import Solver


class PredictorCorrector(Solver):
    """Steps through one value an evaluation, D or what is made of it, corrected once the value at their end is there.

    A subclass says what the value is, and how the state advances with the values at some times, at most `order` for
    a prediction. The corrector of a step waits for the value that the next step evaluates anyway, at the predicted
    state: no evaluation more, and the last step stays as predicted. After churn or ancestral noise the state is not
    the predicted one: then the step before is not corrected, and at most one value of the past is used.
    """

    order: int = 3  # type: ignore[misc]
    accurate_start: bool = False

    def validate(self) -> None:
        check_order(self, 3)

    @property
    def corrects(self) -> bool:
        return True

    @property
    def memory(self) -> int:  # type: ignore[override]
        return self.order if self.corrects else self.order - 1

    def value(self, run: Run, x: Tensor, t: float, D: Tensor) -> Tensor:
        return D

    def advance(self, run: Run, x: Tensor, t: float, t_next: float, values: Sequence[tuple[float, Tensor]]) -> Tensor:
        raise NotImplementedError

    def step(self, run: Run, x: Tensor, t: float, t_next: float) -> Tensor:
        aim(run, t_next)
        if self.accurate_start and starting(run, self.order - 1, t_next):
            return RK4().step(run, x, t, t_next)
        now = (t, self.value(run, x, t, run.denoise(x, t)))
        run.keep("value", now[1])
        smooth = arrived(run, t)
        if self.corrects:
            x = self._correct(run, now) if smooth and "corrected" in run.past[-1].kept else x
            run.keep("corrected", x)
        count = self.order - 1 if smooth else min(self.order - 1, 1)  # a parabola across fresh noise is unstable
        past = previous(run, count, t, t_next, log_level(run)) if run.sigma(t_next) > 0 else []
        return self.advance(run, x, t, t_next, [now, *(self._at(run, p) for p in past)])

    def _correct(self, run: Run, now: tuple[float, Tensor]) -> Tensor:
        """The last step again, from its corrected start, with the value at its end."""
        last, t = run.past[-1], now[0]
        before = previous(run, self.order - 1, last.t, t, log_level(run), skip=1)
        values = [*(self._at(run, p) for p in (last, *before)), now]
        return self.advance(run, last.kept["corrected"], last.t, t, values)

    def _at(self, run: Run, past: Past) -> tuple[float, Tensor]:
        kept = past.kept.get("value")
        return past.t, self.value(run, past.x, past.t, past.denoised) if kept is None else kept


class UniPC(PredictorCorrector, kind="unipc"):
    """UniPC, multistep, data prediction (Zhao et al. 2023): UniP-p predicts, UniC-p corrects.

    With h the step and r_m h the distance of point m in lambda = -ln sigma, D_m = D(point m) - D0, per unit scaling,

        x_next = exp(-h) x + (1 - exp(-h)) D0 + B(h) sum_m (a_m / r_m) D_m,
        B(h) sum_m a_m r_m^(k-1) = k! / h^k  int_0^h exp(tau - h) tau^k / k! d tau,   k = 1, 2, ...

    over the p - 1 points of the past (UniP), and the new point, r = 1, too (UniC). NFE = N.

    The linear system says that the interpolation polynomial of D is integrated exactly, so B(h) drops out, but where
    one point leaves one unknown, the paper takes a = 1/2 instead: there B is h (bh1) or 1 - exp(-h) (bh2).
    `order` is p; it converges at order p + 1. A step to sigma = 0 gives D. The same under every schedule and scaling.
    """

    formula: ClassVar[str] = "UniPC"
    references: ClassVar[tuple[str, ...]] = ("unipc",)
    B: Literal["bh1", "bh2"] = "bh2"

    def validate(self) -> None:
        super().validate()
        require(self.B in ("bh1", "bh2"), f'UniPC.B: got {self.B!r}; expected "bh1" or "bh2"')

    def advance(self, run: Run, x: Tensor, t: float, t_next: float, values: Sequence[tuple[float, Tensor]]) -> Tensor:
        a, b, s_next = run.sigma(t), run.sigma(t_next), run.scale(t_next)
        weights = unipc_weights(b, tuple(run.sigma(t_m) for t_m, _ in values), self.B)
        terms = [(s_next * w, D) for w, (_, D) in zip(weights, values, strict=True)]
        return combination(x, s_next / run.scale(t) * (b / a), terms)


@functools.lru_cache(maxsize=4096)
def unipc_weights(b: float, levels: tuple[float, ...], B: str) -> tuple[float, ...]:
    """The weights of D at one to four levels in the step from the first of them to b."""
    a, E = levels[0], 1 - b / levels[0]
    if len(levels) == 1:
        return (E,)
    if len(levels) == 2:
        h = math.log(a / b)
        w = (h if B == "bh1" else E) / (2 * math.log(a / levels[1]) / h)
        return (E - w, w)
    sigmas, c = levels_between(a, b)
    basis = lagrange(np.log(levels), np.log(sigmas))
    return tuple((basis @ (c * b / sigmas)).tolist())
