"""Posterior denoisers: from D(x; sigma) and a measurement y = A x0 + noise to E[x0 | x, y]."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..component import Value, require
from ..denoiser import Denoiser, Preconditioned, Wrapper
from ..tensors import like, widest_dtype
from .conjugate import conjugate_gradients
from .operators import Operator

Pullback = Callable[[Tensor], Tensor]


class Posterior(Wrapper):
    """A denoiser given a measurement: D(x; sigma, y), for every solver, schedule, scaling and noise of `ed.sample`.

        restorer = ed.posterior.MomentMatching(denoiser, ed.posterior.Mask(), noise=0.05)
        result = ed.sample(restorer, ed.EDM, seeds=range(8), measurement=y)

    With x = x0 + sigma n, D_y = D + sigma^2 grad_x log p(y | x; sigma) replaces D in Eq. 4, and the samples follow
    p(x0 | y); the methods differ in what they take for p(y | x; sigma). Churn and ancestral steps apply unchanged:
    going back up in noise and down again is also what RePaint resamples with (Lugmayr et al. 2022).

    `measurement` is y, (B, *) as operator.apply gives it, or (1, *) for one y of all samples; other conditions go to
    the denoiser. `noise` is the standard deviation of the noise in y. With noise 0, D_y is moved onto A x = y by the
    pseudo-inverse, as E[x0 | x, y] is there, and so is the sample at the end. Computed in float64, the denoiser in its
    own dtype. Gradients are taken through the denoiser with respect to x alone. `ed.FixedBatch` goes around the
    method, not inside it; the backward pass of layers of odd width may still tell in the last bits where in a batch
    a sample stands, unless its size is 1.

    Raises ValueError when operator and denoiser do not fit, and when called without a measurement or with one of
    another shape.
    """

    references: ClassVar[tuple[str, ...]] = ()  # keys of citations.BIBTEX

    def __init__(self, denoiser: Denoiser | Callable[..., Tensor], operator: Operator, noise: float = 0.0) -> None:
        super().__init__(denoiser)
        if not isinstance(operator, Operator):
            raise TypeError(f"operator: got {operator!r}; expected one of ed.posterior, such as Mask()")
        require(0 <= noise < math.inf, f"noise: got {noise}; expected a standard deviation of at least 0")
        self.operator, self.noise = operator, float(noise)
        if self.shape is not None:
            operator.output_shape(self.shape)  # raises here what would be raised at the first call

    def denoise(self, x: Tensor, sigma: Tensor, measurement: Tensor | None = None, **conditions: Any) -> Tensor:
        """D_y, shaped as x."""
        y = self._checked(measurement, x)
        D = self.guided(x, sigma, y, conditions)
        return (self._on_data(D, y) if self.noise == 0 else D).to(torch.promote_types(x.dtype, torch.float32))

    def finish(self, x: Tensor, measurement: Tensor | None = None, **conditions: Any) -> Tensor:
        """The sample at sigma = 0, on A x = y when y has no noise: not every solver's last step is D."""
        if self.noise > 0:
            return x
        return self._on_data(x.to(widest_dtype(x.device)), self._checked(measurement, x)).to(x.dtype)

    def guided(self, x: Tensor, sigma: Tensor, y: Tensor, conditions: dict[str, Any]) -> Tensor:
        """D_y before it is moved onto the data, in the dtype of y."""
        raise NotImplementedError(f"{type(self).__name__} must define guided(x, sigma, y, conditions)")

    def _on_data(self, x: Tensor, y: Tensor) -> Tensor:
        return x + self.operator.solve(y - self.operator.apply(x))

    def _checked(self, y: Tensor | None, x: Tensor) -> Tensor:
        """The measurement (B, *) in the widest dtype, with what the operator does not see removed."""
        expected = self.operator.output_shape(tuple(x.shape[1:]))
        require(
            isinstance(y, Tensor),
            f"measurement: got {type(y).__name__}; expected a tensor of B rows {expected}, "
            "as in ed.sample(..., measurement=y)",
        )
        shape = tuple(y.shape)  # type: ignore[union-attr]
        require(
            shape[1:] == expected and shape[:1] in ((1,), (len(x),)),
            f"measurement: got shape {shape}; expected ({len(x)}, *) or (1, *) with * = {expected}",
        )
        y = y.to(x.device, widest_dtype(x.device)).expand(len(x), *expected)  # type: ignore[union-attr]
        y = self.operator.observed(y.contiguous())  # the layout decides the order of sums further on, and so the bits
        require(bool(y.isfinite().all()), "measurement: got NaN or infinite values; expected finite numbers")
        return y

    def _denoised(self, x: Tensor, sigma: Tensor, y: Tensor, conditions: dict[str, Any]) -> Tensor:
        return self.denoiser(x, sigma, **conditions).to(y.dtype)

    def _with_pullback(
        self, x: Tensor, sigma: Tensor, y: Tensor, conditions: dict[str, Any]
    ) -> tuple[Tensor, Pullback]:
        """D and v -> (dD/dx)^T v, both in the dtype of y. The graph lives as long as the function."""
        outer = torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
        with torch.inference_mode(False), torch.enable_grad():
            x_in = x if outer and x.requires_grad else x.clone().detach().requires_grad_()
            D = self.denoiser(x_in, sigma, **conditions)

        def pull(v: Tensor) -> Tensor:
            with torch.inference_mode(False):
                (g,) = torch.autograd.grad(
                    D, x_in, v.to(D.dtype), retain_graph=True, create_graph=outer, materialize_grads=True
                )
            return g.to(y.dtype)

        return (D if outer else D.detach()).to(y.dtype), pull


class _Scaled(Posterior):
    """Methods that need the standard deviation of the data; that of the model's preconditioning when None, or 0.5."""

    def __init__(
        self,
        denoiser: Denoiser | Callable[..., Tensor],
        operator: Operator,
        noise: float = 0.0,
        sigma_data: float | None = None,
    ) -> None:
        super().__init__(denoiser, operator, noise)
        if sigma_data is None:
            models = (m for m in self.denoiser.modules() if isinstance(m, Preconditioned))
            sigma_data = next((getattr(m.preconditioning, "sigma_data", None) for m in models), None) or 0.5
        self.sigma_data = _positive("sigma_data", sigma_data)

    def _unknown_variance(self, sigma: Tensor, D: Tensor) -> Tensor:
        """r^2 = sigma^2 v / (sigma^2 + v), v = sigma_data^2, () or (B,): of x0 given x, for isotropic Gaussian data."""
        s2 = sigma.to(D.device, D.dtype) ** 2
        return s2 * self.sigma_data**2 / (s2 + self.sigma_data**2)


class Replacement(_Scaled):
    """The part of D that y determines is replaced: D_y = D + A^+ (y - A D).

    For a mask: known pixels from y, the others from D, which sees y through x alone. The range-null decomposition of
    DDNM (Wang, Yu and Zhang 2023), and the plain method that the others are measured against. With noise the
    replacement is damped, r^2 A^T (r^2 A A^T + noise^2 I)^-1 (y - A D), r^2 = sigma^2 v / (sigma^2 + v), v =
    sigma_data^2: what remains unknown of x0 when its coordinates are independent. No gradients.
    """

    references: ClassVar[tuple[str, ...]] = ("ddnm",)

    def guided(self, x: Tensor, sigma: Tensor, y: Tensor, conditions: dict[str, Any]) -> Tensor:
        """D + A^+ (y - A D), damped."""
        D = self._denoised(x, sigma, y, conditions)
        r2 = self._unknown_variance(sigma, D)
        return D + self.operator.solve(y - self.operator.apply(D), self.noise**2 / r2)


class PiGDM(_Scaled):
    """Pseudoinverse guidance: x0 given x is taken for N(D, r^2 I) (Song, Vahdat, Mardani and Kautz 2023).

    D_y = D + sigma^2 (dD/dx)^T A^T (r^2 A A^T + noise^2 I)^-1 (y - A D),  r^2 = sigma^2 v / (sigma^2 + v),

    v = sigma_data^2, the variance of the data (1 in the paper); the guidance is the gradient of log p(y | x) itself,
    without the paper's extra weights. Exact for a Gaussian prior of covariance v I. One backward pass an evaluation.
    """

    references: ClassVar[tuple[str, ...]] = ("pigdm",)

    def guided(self, x: Tensor, sigma: Tensor, y: Tensor, conditions: dict[str, Any]) -> Tensor:
        """D + sigma^2 / r^2 J^T A^T (A A^T + (noise / r)^2 I)^-1 (y - A D)."""
        D, pull = self._with_pullback(x, sigma, y, conditions)
        r2 = self._unknown_variance(sigma, D)
        g = pull(self.operator.solve(y - self.operator.apply(D), self.noise**2 / r2))
        return D + like(sigma.to(r2) ** 2 / r2, D) * g


class DPS(Posterior):
    """Diffusion posterior sampling: the gradient of |y - A D(x)| through the denoiser (Chung et al. 2023).

    D_y = D - zeta sigma sqrt(m) grad_x |y - A D|  =  D + zeta sigma (dD/dx)^T A^T r / rms(r),  r = y - A D.

    The paper subtracts zeta' grad |r| at each of its 1000 steps. As a change of D, and of the size of the noise in x,
    the pull neither depends on how many steps the sampler takes nor on m, how many numbers are measured. It ignores
    `noise`, as the paper's does. One backward pass an evaluation.
    """

    references: ClassVar[tuple[str, ...]] = ("dps",)

    def __init__(
        self, denoiser: Denoiser | Callable[..., Tensor], operator: Operator, noise: float = 0.0, zeta: float = 1.0
    ) -> None:
        super().__init__(denoiser, operator, noise)
        self.zeta = _positive("zeta", zeta)

    def guided(self, x: Tensor, sigma: Tensor, y: Tensor, conditions: dict[str, Any]) -> Tensor:
        """D + zeta sigma J^T A^T r / rms(r)."""
        D, pull = self._with_pullback(x, sigma, y, conditions)
        r = y - self.operator.apply(D)
        m = self.operator.count(tuple(x.shape[1:]))
        rms = (r.flatten(1).square().sum(1) / m).sqrt()
        unit = r / like(torch.where(rms > 0, rms, 1.0), r)
        return D + self.zeta * like(sigma.to(D.device, D.dtype), D) * pull(self.operator.transpose(unit))


class Trust(Value):
    """How far moment matching believes the Jacobian of a denoiser, and where its conjugate gradients stop.

    An exact denoiser's is symmetric, and C = sigma^2 dD/dx a covariance. A network's is so only nearly, and at large
    sigma not at all: the demo's, from sigma = 7 up, gives C eigenvalues from -25 to 25 times those of the digits.
    So for networks r^2 damping is added to the variance of y (r^2 as in PiGDM), few iterations are made, and the
    correction of D is at most `bound` r, root mean square of each sample: what is not known of x0 is no larger.

    A row stops at |residual| <= tolerance |y - A D|.
    """

    iterations: int = 200
    tolerance: float = 1e-13
    damping: float = 0.0
    bound: float = math.inf

    def validate(self) -> None:
        require(self.iterations >= 1, f"Trust.iterations: got {self.iterations}; expected at least 1")
        require(0 < self.tolerance < 1, f"Trust.tolerance: got {self.tolerance}; expected a number in (0, 1)")
        require(0 <= self.damping < math.inf, f"Trust.damping: got {self.damping}; expected a number of at least 0")
        require(self.bound > 0, f"Trust.bound: got {self.bound}; expected a number above 0")


EXACT = Trust()
LEARNED = Trust(iterations=3, tolerance=1e-2, damping=0.1, bound=1.0)


class MomentMatching(_Scaled):
    """Moment matching: x0 given x is taken for N(D, C), C = sigma^2 dD/dx, its exact covariance by Tweedie's formula.

    D_y = D + C A^T (A C A^T + noise^2 I)^-1 (y - A D),

    solved by conjugate gradients, one backward pass an iteration: only products with C are needed, those with its
    transpose, which is the same. Exact for every Gaussian prior. (MMPS: Rozet et al. 2024; TMPD: Boys et al. 2023,
    with a diagonal in place of the solver.)

    trust: None takes EXACT for a denoiser without parameters, a formula, and LEARNED for a network, for which it
    says what is changed. sigma_data matters for the latter only.
    """

    references: ClassVar[tuple[str, ...]] = ("mmps", "tmpd")

    def __init__(
        self,
        denoiser: Denoiser | Callable[..., Tensor],
        operator: Operator,
        noise: float = 0.0,
        sigma_data: float | None = None,
        trust: Trust | None = None,
    ) -> None:
        super().__init__(denoiser, operator, noise, sigma_data)
        learned = next(self.denoiser.parameters(), None) is not None
        self.trust = trust if trust is not None else LEARNED if learned else EXACT

    def guided(self, x: Tensor, sigma: Tensor, y: Tensor, conditions: dict[str, Any]) -> Tensor:
        """D + C A^T v, (A C A^T + noise^2 I) v = y - A D."""
        A, trust = self.operator, self.trust
        D, pull = self._with_pullback(x, sigma, y, conditions)
        r2 = self._unknown_variance(sigma, D)
        variance, floor = like(sigma.to(D.device, D.dtype) ** 2, D), like(self.noise**2 + trust.damping * r2, D)

        def covariance(v: Tensor) -> tuple[Tensor, Tensor]:
            CAv = variance * pull(A.transpose(v))
            return A.apply(CAv) + floor * v, CAv

        correction = conjugate_gradients(covariance, y - A.apply(D), trust.iterations, trust.tolerance)[1]
        return D + (correction if math.isinf(trust.bound) else _bounded(correction, trust.bound * r2.sqrt()))


def _bounded(x: Tensor, most: Tensor) -> Tensor:
    """X with the root mean square of each sample at most (), or (B,)."""
    rms = x.flatten(1).square().mean(1).sqrt()
    return like(most / torch.maximum(rms, most), x) * x


def _positive(name: str, value: float) -> float:
    require(0 < value < math.inf, f"{name}: got {value}; expected a number above 0")
    return float(value)
