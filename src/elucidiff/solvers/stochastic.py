"""Solvers of the reverse SDE: they draw noise of their own; eta scales it, and eta = 0 leaves a solver of the ODE.

In x_hat = x / s and lambda = -ln sigma the family of SDEs with the marginals of Eq. 4 (EDM paper, Eq. 6, with
beta = eta sigma'/sigma; eta = 1 is the reverse SDE of Song et al. 2021) is

    d x_hat = (1 + eta) (D(x_hat; sigma) - x_hat) d lambda + sqrt(2 eta) sigma dW(lambda),

and a step by h, with D frozen, is solved exactly by

    x_next = e^(-(1 + eta) h) x_hat + (1 - e^(-(1 + eta) h)) D + sigma_next sqrt(1 - e^(-2 eta h)) N(0, I).

The solvers named after DPM-Solver++ differ in what they take for D within the step. They depend on sigma and x / s
alone, so they are the same under every schedule and scaling. `order` is the weak order, that of mean and covariance;
the strong order, that of a sample on its Brownian path, is 1 for all. A step to sigma = 0 is D, without noise.

With eta = 1 the D along an exact path is a martingale (its expectation ahead is its value now), so the mean after an
exact step with D frozen is already exact, for all data; what D within the step adds is the covariance.
"""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ..component import require
from .quadrature import combination, log_level, previous, scaled
from .run import Run
from .solver import Solver


class _Stochastic(Solver):
    """What they share: eta, S_noise (a factor on the noise), and where the noise comes from.

    `brownian=False` draws fresh numbers at every step. `brownian=True` takes the increments of one Brownian path
    over ln sigma for each seed (`elucidiff.brownian`), so that a seed gives nearly the same sample whatever the number
    of steps; for an image of 3 x 32 x 32 that costs about 0.25 ms a step and sample instead of 0.02.
    """

    draws: ClassVar[bool] = True
    eta: float = 1.0
    S_noise: float = 1.0
    brownian: bool = False

    def validate(self) -> None:
        for name in ("eta", "S_noise"):
            value = getattr(self, name)
            require(
                0 <= value < math.inf, f"{type(self).__name__}.{name}: got {value}; expected a number of at least 0"
            )

    def _noise(self, run: Run, x: Tensor, a: float, b: float) -> Tensor:
        """Standard normal numbers like x for the way from level a down to b."""
        return run.noise_between(x, a, b) if self.brownian else _fresh(run, x)

    def _added(self, run: Run, x: Tensor, a: float, b: float, std: float) -> list[tuple[float, Tensor]]:
        """The noise of the way from level a down to b as the term (std S_noise, noise); nothing where that is 0."""
        std *= self.S_noise
        return [(std, self._noise(run, x, a, b))] if std > 0 else []


class EulerMaruyama(_Stochastic, kind="euler_maruyama"):
    """Euler-Maruyama in t for the reverse SDE of any schedule and scaling (Song et al. 2021; Maruyama 1955).

    x_next = x + h (v + eta sigma'/sigma (x - s D)) + s sigma sqrt(2 eta sigma'/sigma |h|) N(0, I),
    v of Eq. 4. The noise is additive, so the strong order is 1, not 1/2. NFE = N.
    With eta = 0 it is Euler's method; its step to sigma = 0 is D under every schedule.
    """

    formula: ClassVar[str] = "Euler–Maruyama"
    references: ClassVar[tuple[str, ...]] = ("sde", "maruyama")
    order: ClassVar[int] = 1

    def step(self, run: Run, x: Tensor, t: float, t_next: float) -> Tensor:
        D = run.denoise(x, t)
        now, b = run.clock.at(t), run.sigma(t_next)
        if b == 0:
            return run.scale(t_next) * D
        h = t_next - t
        rate = now.D_weight / now.s  # sigma'/sigma
        std = now.s * now.sigma * math.sqrt(2 * self.eta * rate * -h)
        weight = 1 + h * (now.x_weight + self.eta * rate)
        noise = self._added(run, x, now.sigma, b, std)
        return combination(x, weight, [(-h * (1 + self.eta) * now.D_weight, D), *noise])


class PC(_Stochastic, kind="pc"):
    """Predictor-corrector sampling: reverse diffusion, then Langevin steps at the new level (Song et al. 2021, Alg. 1).

    In x_hat = x / s, with g(x; sigma) = (D - x) / sigma^2 the score:

        predictor   x <- x + (1 + eta)/2 (sigma^2 - sigma_next^2) g(x; sigma) + sqrt(eta (sigma^2 - sigma_next^2)) z
        corrector   x <- x + eps g(x; sigma_next) + sqrt(2 eps) z,   eps = 2 (r |z| / |g|)^2,   corrector_steps times

    r is the signal-to-noise ratio, norms are those of each sample. This is the VE form of both, taken for x / s under
    every schedule and scaling. eps is at most sigma_next^2, where D replaces x: without that bound a vanishing g
    would make it infinite. The Langevin steps draw fresh noise, so a Brownian path makes the predictor
    consistent, not the whole. The step to sigma = 0 is D. NFE = N + corrector_steps (N - 1). Weak order 1; at
    r = 0.16 the Langevin steps leave about r^2 = 3 % too much variance of the noise, which fades with sigma_next.
    With eta = 0 and no corrector it is Euler's method in sigma^2, the schedule of VE.
    """

    formula: ClassVar[str] = "predictor–corrector"
    references: ClassVar[tuple[str, ...]] = ("sde",)
    order: ClassVar[int] = 1
    corrector_steps: int = 1
    r: float = 0.16

    def validate(self) -> None:
        super().validate()
        require(
            self.corrector_steps >= 0,
            f"PC.corrector_steps: got {self.corrector_steps}; expected at least 0",
        )
        require(0 < self.r < math.inf, f"PC.r: got {self.r}; expected a number above 0")

    def step(self, run: Run, x: Tensor, t: float, t_next: float) -> Tensor:
        D = run.denoise(x, t)
        a, b, s_next = run.sigma(t), run.sigma(t_next), run.scale(t_next)
        if b == 0:
            return s_next * D
        fall = a * a - b * b
        drift = (1 + self.eta) / 2 * fall / (a * a)
        noise = self._added(run, x, a, b, math.sqrt(self.eta * fall))
        x_hat = combination(x, (1 - drift) / run.scale(t), [(drift, D), *noise])
        for _ in range(self.corrector_steps):
            x_hat = self._langevin(run, x_hat, b)
        return scaled(s_next, x_hat)

    def _langevin(self, run: Run, x: Tensor, sigma: float) -> Tensor:
        way = run.denoise_at(x, sigma) - x  # sigma^2 g
        z = _fresh(run, x)
        ratio = _ratio(z, way)  # |z| / |way|; eps = 2 (r sigma ratio)^2 sigma^2 is at most sigma^2
        ratio = ratio.nan_to_num(0.0).clamp(max=1 / (math.sqrt(2) * self.r * sigma))
        x = torch.addcmul(x, ratio.square(), way, value=2 * (self.r * sigma) ** 2)
        return x.addcmul_(ratio, z, value=2 * self.r * sigma**2 * self.S_noise)


def _fresh(run: Run, x: Tensor) -> Tensor:
    """Fresh noise like x, drawn in float32 as the latent is: a fifth of the time of float64."""
    return run.fresh_noise(x.float()).to(x.dtype)


def _ratio(x: Tensor, y: Tensor) -> Tensor:
    """|x| / |y| of each sample, (B, 1, ...); row by row, so that the bits do not depend on the batch."""
    norm = torch.linalg.vector_norm
    return torch.stack([norm(a) / norm(b) for a, b in zip(x, y, strict=True)]).reshape(-1, *[1] * (x.ndim - 1))


class DPMppSDE(_Stochastic, kind="dpmpp_sde"):
    """DPM-Solver++(SDE), single-step: D from the middle of the step in lambda, r = 1/2 (Lu et al. 2022, section 5).

    x_mid is the step by h/2 with D(x; sigma), x_next the step by h with D(x_mid; sqrt(sigma sigma_next)). Both share
    the noise of the first half: x_next gets e^(-(1 + eta) h/2) times it, and noise of its own for the second half. With
    separate noise for both the correlation of D_mid with x_next would be lost, and the weak order fall from 2 to 1.
    Weak order 2, strong order 1. NFE = 2 N - 1. With eta = 0 it is DPM-Solver++(2S).
    """

    formula: ClassVar[str] = "DPM-Solver++(SDE)"
    references: ClassVar[tuple[str, ...]] = ("dpmpp",)
    order: ClassVar[int] = 2

    def step(self, run: Run, x: Tensor, t: float, t_next: float) -> Tensor:
        D = run.denoise(x, t)
        a, b, s, s_next = run.sigma(t), run.sigma(t_next), run.scale(t), run.scale(t_next)
        if b == 0:
            return s_next * D
        c, half = math.sqrt(a * b), math.log(a / b) / 2
        decay, share = math.exp(-(1 + self.eta) * half), math.sqrt(-math.expm1(-2 * self.eta * half))
        first = self._added(run, x, a, c, c * share)
        D_mid = run.denoise_at(combination(x, decay / s, [(1 - decay, D), *first]), c)
        second = self._added(run, x, c, b, b * share)
        noise = [(s_next * decay * w, z) for w, z in first] + [(s_next * w, z) for w, z in second]
        return combination(x, s_next / s * decay**2, [(s_next * (1 - decay**2), D_mid), *noise])


class _Multistep(_Stochastic):
    """One evaluation a step: the exact step with D extrapolated from the past, weights from `_weights`."""

    references: ClassVar[tuple[str, ...]] = ("dpmpp",)

    def _weights(self, k: float, steps: list[float]) -> list[float]:
        """The weights of D now and of the past ones. k = (1 + eta) h; past steps in units of h, newest first."""
        raise NotImplementedError(f"{type(self).__name__} must define _weights(k, steps)")

    def step(self, run: Run, x: Tensor, t: float, t_next: float) -> Tensor:
        D = run.denoise(x, t)
        a, b, s_next = run.sigma(t), run.sigma(t_next), run.scale(t_next)
        if b == 0:
            return s_next * D
        h, past = math.log(a / b), previous(run, self.memory, t, t_next, log_level(run))
        logs = [math.log(run.sigma(p.t)) for p in reversed(past)] + [math.log(a)]
        steps = [(logs[i] - logs[i + 1]) / h for i in reversed(range(len(past)))]
        k = (1 + self.eta) * h
        values = [D, *(p.denoised for p in past)]
        terms = [(s_next * w, value) for w, value in zip(self._weights(k, steps), values, strict=True)]
        noise = self._added(run, x, a, b, s_next * b * math.sqrt(-math.expm1(-2 * self.eta * h)))
        return combination(x, s_next / run.scale(t) * math.exp(-k), [*terms, *noise])


class DPMpp2MSDE(_Multistep, kind="dpmpp_2m_sde"):
    """DPM-Solver++(2M) for the SDE: D extrapolated from the last two levels (Lu et al. 2022, section 5).

    With E = 1 - e^(-k), k = (1 + eta) h and the last step r h, the exact step's E D becomes

        midpoint    E (D + (D - D_last) / (2 r)), the line's value in the middle of the step; the usual choice
        heun        E D + (1 - E/k) (D - D_last) / r, the line integrated exactly

    as `variant` says. NFE = N. With eta = 0 the midpoint variant is dpmpp_2m. Weak order 2 (mean and covariance of a
    Gaussian), strong order 1. The first step takes D as it is. With churn or ancestral steps on top the
    difference of D holds their noise too, which biases the covariance: use one or the other.
    """

    formula: ClassVar[str] = "DPM-Solver++(2M) SDE"
    memory: ClassVar[int] = 1
    order: ClassVar[int] = 2
    variant: Literal["midpoint", "heun"] = "midpoint"

    def validate(self) -> None:
        super().validate()
        require(
            self.variant in ("midpoint", "heun"),
            f'DPMpp2MSDE.variant: got {self.variant!r}; expected "midpoint" or "heun"',
        )

    def _weights(self, k: float, steps: list[float]) -> list[float]:
        E = -math.expm1(-k)
        if not steps:
            return [E]
        slope = (E / 2 if self.variant == "midpoint" else 1 - E / k) / steps[0]
        return [E + slope, -slope]


class DPMpp3MSDE(_Multistep, kind="dpmpp_3m_sde"):
    """DPM-Solver++(3M) for the SDE: D extrapolated by a parabola in lambda through the last three levels.

    With k = (1 + eta) h, E = 1 - e^(-k), p = 1 - E/k, q = 1 - 2 p/k and the last steps r h, u h: divided differences
    D01 = (D0 - D1)/r, D012 = (D01 - (D1 - D2)/u)/(r + u), the exact step's E D becomes

        E D0 + p (D01 + r D012) + c q D012,    c = 1.

    `corrected=True` is this. The default, c = 1/2, is the solver as it is commonly shipped (k-diffusion): it takes
    D012 for the second derivative, which is 2 D012. NFE = N. With eta = 0 it is dpmpp_3m, corrected or not.
    The second step is the same with D012 = 0, the first takes D as it is. Weak order 2 either way, for
    the parabola gains nothing against the noise within a step; strong order 1.
    """

    formula: ClassVar[str] = "DPM-Solver++(3M) SDE"
    memory: ClassVar[int] = 2
    order: ClassVar[int] = 2
    corrected: bool = False

    def _weights(self, k: float, steps: list[float]) -> list[float]:
        E = -math.expm1(-k)
        p = 1 - E / k
        if not steps:
            return [E]
        if len(steps) == 1:
            return [E + p / steps[0], -p / steps[0]]
        r, u = steps
        bend = (r * p + (1.0 if self.corrected else 0.5) * (1 - 2 * p / k)) / (r + u)  # of D01 - (D1 - D2) / u
        return [E + (p + bend) / r, -(p + bend) / r - bend / u, bend / u]
