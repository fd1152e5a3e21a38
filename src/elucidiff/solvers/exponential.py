"""Exponential integrators with weights by quadrature: DEIS, and one that knows the Gaussian part of the data."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import ClassVar, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from ..component import require
from ..formulation import Schedule
from .multistep import check_order, starting
from .onestep import RK4
from .quadrature import Array, aim, arrived, combination, lagrange, levels_between, previous
from .run import Past, Run
from .solver import Solver
from .unipc import PredictorCorrector


class DEIS(Solver, kind="deis"):
    """tAB-DEIS: the noise eps = (x/s - D) / sigma extrapolated by a polynomial in t (Zhang and Chen 2023).

    x/s changes by sum_j w_j eps_j, w_j = integral of L_j(t) d sigma from t to t_next, L_j the Lagrange polynomials on
    t and the order - 1 times before; Gauss-Legendre in ln sigma with the schedule's t(sigma). With sigma(t) = t
    it is `ab`; the paper's is the VP schedule. Does not depend on the scaling. A step to sigma = 0 gives D; after fresh
    noise a step is of order 1. NFE = N.
    """

    formula: ClassVar[str] = "tAB-DEIS"
    references: ClassVar[tuple[str, ...]] = ("deis",)
    order: int = 3  # type: ignore[misc]
    accurate_start: bool = False

    def validate(self) -> None:
        check_order(self, 3)

    @property
    def memory(self) -> int:  # type: ignore[override]
        return self.order - 1

    def step(self, run: Run, x: Tensor, t: float, t_next: float) -> Tensor:
        aim(run, t_next)
        if self.accurate_start and starting(run, self.memory, t_next):
            return RK4().step(run, x, t, t_next)
        eps = _noise(run, x, t, run.denoise(x, t))
        run.keep("eps", eps)
        a, b, s_next = run.sigma(t), run.sigma(t_next), run.scale(t_next)
        smooth = b > 0 and arrived(run, t)  # eps is the noise itself: where it is fresh, the past tells nothing of it
        past = previous(run, self.memory, t, t_next) if smooth else []
        w, *rest = deis_weights(run.clock.schedule, a, b, (t, *(p.t for p in past)))
        terms = [(s_next * w_j, _kept_noise(run, p)) for w_j, p in zip(rest, past, strict=True)]
        return combination(x, s_next / run.scale(t), [(s_next * w, eps), *terms])


def _noise(run: Run, x: Tensor, t: float, D: Tensor) -> Tensor:
    sigma = run.sigma(t)
    return torch.sub(x / (run.scale(t) * sigma), D, alpha=1 / sigma)


def _kept_noise(run: Run, past: Past) -> Tensor:
    kept = past.kept.get("eps")
    return _noise(run, past.x, past.t, past.denoised) if kept is None else kept


@functools.lru_cache(maxsize=4096)
def deis_weights(schedule: Schedule, a: float, b: float, times: tuple[float, ...]) -> tuple[float, ...]:
    """The weights of eps at the times, the first of them that of level a, in the step to level b."""
    if len(times) == 1:
        return (b - a,)
    sigmas, c = levels_between(a, b)
    basis = lagrange(np.array(times), schedule.sigma_inv(torch.from_numpy(sigmas)).numpy())
    return tuple((-basis @ (c * sigmas)).tolist())


Quantity = Literal["residual", "natural", "slope"]
Variable = Literal["log", "natural", "sigma"]


class GaussianExponential(PredictorCorrector, kind="gaussian"):
    """An exponential integrator that knows the Gaussian part of the data: exact for it, the rest extrapolated.

    With D = m + v / (v + sigma^2) (x - m) + R and q = sqrt(v + sigma^2), per unit scaling and coordinate, Eq. 4 says

        d ((x - m) / q) / d sigma = -R / (sigma q),

    so (x - m) / q changes by the residual R alone. Of R, a multiple Y is extrapolated by a polynomial of degree
    order - 1 in a function u of sigma, through the last evaluations, and integrated by quadrature:

        quantity   Y                         variable   u
        residual   R                         log        ln sigma
        natural    R q / sigma               natural    arcsinh(sigma / sqrt(v)), d u = d sigma / q
        slope      R / sigma                 sigma      sigma

    v -> 0 gives the exponential integrators of the DPM-Solver++ family for (residual, log) and for the natural pair,
    v -> infinity gives Adams-Bashforth under sigma(t) = t for (slope, sigma) and for the natural pair.

    `sigma_data` is sqrt(v); `spectrum` gives v for every coordinate instead, `mean` m (zero when None): as many numbers
    as x[0] has elements, in its order. With `corrector`, the D of the next step corrects the step before it, as in
    UniPC, which raises the order by one at no evaluation; a state with fresh noise is not corrected. Without residual
    (Gaussian data of that mean and variance) every number of steps is exact down to the last level above 0. The step
    to 0 gives D, of the corrected state as far as the Gaussian part knows it. NFE = N. The same under every schedule
    and scaling.
    """

    formula: ClassVar[str] = "Gaussian-exact exponential"
    references: ClassVar[tuple[str, ...]] = ("expint", "dpmpp", "edm")
    sigma_data: float = 0.5
    mean: tuple[float, ...] | None = None
    spectrum: tuple[float, ...] | None = None
    quantity: Quantity = "natural"
    variable: Variable = "natural"
    corrector: bool = False

    def validate(self) -> None:
        super().validate()
        require(0 < self.sigma_data < math.inf, f"sigma_data: got {self.sigma_data}; expected a number above 0")
        require(
            self.spectrum is None or (len(self.spectrum) > 0 and min(self.spectrum) >= 0),
            "spectrum: expected variances of at least 0, one for each coordinate",
        )
        for name, kind in (("quantity", Quantity), ("variable", Variable)):
            value = getattr(self, name)
            require(value in get_args(kind), f"{name}: got {value!r}; expected one of {', '.join(get_args(kind))}")

    @property
    def corrects(self) -> bool:
        return self.corrector

    def value(self, run: Run, x: Tensor, t: float, D: Tensor) -> Tensor:
        """The residual R."""
        w, offset = self._known(x).linear_part(run.sigma(t), run.scale(t))
        return _plus(
            torch.add(D, x, alpha=-w) if isinstance(w, float) else torch.addcmul(D, w, x, value=-1), offset, -1
        )

    def advance(self, run: Run, x: Tensor, t: float, t_next: float, values: Sequence[tuple[float, Tensor]]) -> Tensor:
        known, a, b, s, s_next = self._known(x), run.sigma(t), run.sigma(t_next), run.scale(t), run.scale(t_next)
        if b == 0:  # D, put together again
            w, offset = known.linear_part(a, s)
            return _plus(combination(x, w, [(1.0, values[0][1])]), offset)
        levels = tuple(run.sigma(t_j) for t_j, _ in values)
        w, offset, weights = known.step(a, b, s, s_next, levels, self.quantity, self.variable)
        return _plus(combination(x, w, [(w_j, R) for w_j, (_, R) in zip(weights, values, strict=True)]), offset)

    def _known(self, x: Tensor) -> Gaussian:
        """The Gaussian part in the shape, dtype and device of x."""
        place = (x.shape[1:], x.dtype, x.device)
        if place not in self._places:
            self._places[place] = Gaussian.like(x, self.mean, self.spectrum or (self.sigma_data**2,))
        return self._places[place]

    @functools.cached_property
    def _places(self) -> dict[tuple[torch.Size, torch.dtype, torch.device], Gaussian]:
        return {}


class Gaussian:
    """A Gaussian part of the data, ready for states of one shape, dtype and device.

    Its coefficients are numbers when one variance serves all coordinates, else tensors of a sample's shape. Compared by
    identity, so that the caches need not read thousands of variances.
    """

    def __init__(self, variance: Array, mean: Array | None, x: Tensor) -> None:
        self.variance, self.mean = variance, mean
        self.dtype, self.device = x.dtype, x.device

    @classmethod
    def like(cls, x: Tensor, mean: tuple[float, ...] | None, spectrum: tuple[float, ...]) -> Gaussian:
        """For states like x (B, *). Raises ValueError where the numbers do not fit its coordinates."""
        shape, size = x.shape[1:], x[0].numel()
        for name, values in (("mean", mean), ("spectrum", spectrum)):
            if values is not None and len(values) not in (1, size):
                raise ValueError(f"gaussian solver: {name} has {len(values)} numbers; samples have {size} coordinates")
        variance = np.array(spectrum[0]) if len(spectrum) == 1 else np.array(spectrum).reshape(shape)
        centre = None if mean is None else np.broadcast_to(np.array(mean), (size,)).reshape(shape)
        return cls(variance, centre, x)

    @functools.lru_cache(maxsize=512)  # noqa: B019  # bounded, and a Gaussian lives as long as its solver
    def linear_part(self, sigma: float, s: float) -> tuple[float | Tensor, Tensor | None]:
        """(w, offset): D less R is w x + offset for the state x at level sigma and scaling s."""
        total = self.variance + sigma**2
        return self._convert(self.variance / total / s), self._centre(sigma**2 / total)

    @functools.lru_cache(maxsize=512)  # noqa: B019
    def step(
        self,
        a: float,
        b: float,
        s: float,
        s_next: float,
        levels: tuple[float, ...],
        quantity: Quantity,
        variable: Variable,
    ) -> tuple[float | Tensor, Tensor | None, tuple[float | Tensor, ...]]:
        """(w, offset, weights) of the step from level a to b: x_next = w x + offset + the sum of weights times R."""
        v = self.variance[..., None]
        sigmas, c = levels_between(a, b)
        nodes = np.array(levels)
        basis = lagrange(np.moveaxis(_variable(variable, nodes, v), -1, 0), _variable(variable, sigmas, v))
        q_a, q_b, q = np.sqrt(self.variance + a**2), np.sqrt(self.variance + b**2), np.sqrt(v + sigmas**2)
        integrals = (basis * (c * _share(quantity, sigmas, v) / q)).sum(-1)
        shares = np.moveaxis(np.broadcast_to(_share(quantity, nodes, v), (*self.variance.shape, len(nodes))), -1, 0)
        weights = tuple(self._convert(w) for w in s_next * q_b * integrals / shares)
        return self._convert(s_next / s * q_b / q_a), self._centre(s_next * (1 - q_b / q_a)), weights

    def _convert(self, value: Array) -> float | Tensor:
        return float(value) if value.ndim == 0 else torch.as_tensor(value, dtype=self.dtype, device=self.device)

    def _centre(self, share: Array) -> Tensor | None:
        return None if self.mean is None else torch.as_tensor(share * self.mean, dtype=self.dtype, device=self.device)


def _plus(x: Tensor, offset: Tensor | None, sign: int = 1) -> Tensor:
    """X + sign offset, in place; x itself without an offset."""
    return x if offset is None else x.add_(offset, alpha=sign)


def _share(quantity: Quantity, sigma: Array, v: Array) -> Array:
    """R / Y."""
    if quantity == "residual":
        return np.ones_like(sigma)
    return sigma if quantity == "slope" else sigma / np.sqrt(v + sigma**2)


def _variable(variable: Variable, sigma: Array, v: Array) -> Array:
    """u(sigma), for levels (Q,) and variances (*, 1)."""
    if variable == "natural":
        return np.arcsinh(sigma / np.sqrt(np.maximum(v, 1e-200)))
    u = np.log(sigma) if variable == "log" else sigma
    return np.broadcast_to(u, (*v.shape[:-1], len(u)))
