"""Exact likelihood by the probability-flow ODE: log densities of samples, and bits per dimension of a data set."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor

from ..component import require
from ..data import DataLike, Dataset, dataset_of, from_uint8, to_uint8
from ..denoiser import Denoiser, as_denoiser, evaluation_mode
from ..errors import unknown
from ..latents import Ascent, Climb, check_samples
from ..progress import Report, bar
from ..sampler import Sampler, sampler_of
from ..seeds import Stream, keyed
from ..solvers import RK4, RK45
from ..solvers.multistep import adams_weights
from ..tensors import widest_dtype

if TYPE_CHECKING:
    from ..design import Design

Trace = Literal["rademacher", "gaussian", "exact"]
DEFAULT = Sampler(
    solver=RK4(), steps=32
)  # 0.01 nats off on trained 8x8 digits; 64 levels of Heun, which cost more: 0.13
PROBES = "_probes"  # the name under which probes travel among the conditions, which are split with the batch
STEEP = 0.1  # neighbours nearer than this part of an interval are left out of its interpolation


@dataclass(frozen=True)
class LogLikelihood:
    """Log densities of samples under a model, and what they rest on.

    values: (B,) ln p(x; sigma_min), nats. errors: (B,) standard errors from the probes of the trace; 0 for the exact
    trace, None for one probe, which cannot say. latents: (B, *), where the samples come from, unit variance.
    nfe: forward evaluations for each sample. backward: vector-Jacobian products for each sample.
    sigma_min, sigma_max: the levels between which the ODE was integrated.
    """

    values: Tensor
    errors: Tensor | None
    latents: Tensor
    nfe: int
    backward: int
    sigma_min: float
    sigma_max: float


@dataclass(frozen=True)
class BitsPerDim:
    """Negative log likelihood of a data set per dimension, in bits; smaller is better.

    value: the mean over the images. error: its standard error, over images, probes and dequantisation together; None
    for one image. n: images. levels: of the discrete data, None where it is a density. each: (n,) bits of every image.
    likelihood: what it was made of.
    """

    value: float
    error: float | None
    n: int
    levels: int | None
    each: Tensor
    likelihood: LogLikelihood


def log_likelihood(
    denoiser: Denoiser | Callable[..., Tensor],
    x: Tensor,
    sampler: Sampler | Design = DEFAULT,
    *,
    labels: Tensor | Sequence[int] | int | None = None,
    probes: int = 1,
    trace: Trace = "rademacher",
    seed: int = 0,
    tolerance: float | None = None,
    batch_size: int | None = None,
    progress: bool = False,
    **conditions: Any,
) -> LogLikelihood:
    """The log density ln p(x; sigma_min) of samples x (B, *), by the change of variables along the ODE of Eq. 4.

    In unscaled coordinates, x / s and sigma, the ODE is dx/dsigma = (x - D)/sigma under every schedule and scaling, and

        ln p(x; sigma_min) = ln N(x(sigma_max); 0, sigma_max^2 I) + int (d - tr dD/dx) d ln sigma,

    from sigma_min to sigma_max (Song et al. 2021, Eq. 39; Chen et al. 2018). The trace is that of the Jacobian of D
    along the path: exact by d vector-Jacobian products, or by Hutchinson's estimator v^T (dD/dx) v with random signs or
    normal numbers v, the same all along a path, so that the integrand is smooth; its mean is the exact value.

    What the number is, exactly. The density at x of the model's own distribution at level sigma_min: that of what the
    ODE makes of N(0, sigma_max^2 I), the noise that samples are drawn from, before the last step to sigma = 0. x is
    taken as it is, though noise of that level would belong to it (as Song et al. do). The prior is the model's, not
    that of noisy data, about N(m, sigma_max^2 + data variance): they differ by |m| / sigma_max nats (root mean square
    over samples; m the mean sample) and by (sigma_data / sigma_max)^2 a dimension, 4e-5 for EDM's 0.5 and 80.

    How it is integrated. x follows the sampler's solver, levels, schedule and scaling, upward; the trace is taken at
    the levels, and integrated over ln sigma as piecewise cubics: error O(h^min(order, 4)) in the steps. With
    `tolerance` x and the integral together are a system for rk45, with rtol = atol = tolerance, every sample alone; the
    sampler then gives the range of levels only.

    Args:
        denoiser: a Denoiser, or any function (x, sigma, **conditions) -> D, differentiable by autograd.
        x: samples in the units of the data. Data of discrete levels: see `bits_per_dim`.
        sampler: a Sampler, or a Design, whose sampler is used; one that draws no noise. By default 32 of EDM's levels,
            with the fourth-order Runge-Kutta method.
        labels: of x, for a class-conditional denoiser: the likelihood is then p(x | label).
        probes: how many v for each sample; each costs one vector-Jacobian product at every level.
        trace: "rademacher" (random signs, the least variance), "gaussian", or "exact" (d products, no probes).
        seed: of the probes, which are functions of (seed, row of x, number of the probe) alone.
        tolerance: see above; None for the sampler's own steps.
        batch_size: samples at a time; all at once when None. Does not change the numbers beyond rounding.
        progress: show a progress bar.
        conditions: passed to the denoiser; tensors of B rows are split with the batch.

    Raises:
        ValueError: for a sampler that draws noise, a denoiser without derivative (run under no_grad, say), and for
            arguments that do not fit, saying what would.
    """
    denoiser, sampler = as_denoiser(denoiser), sampler_of(sampler)
    check_samples(denoiser, x)
    shape = x.shape[1:]
    _check(probes, trace, tolerance)
    v = None if trace == "exact" else _probes(x, probes, trace, seed)
    columns = 1 if v is None else probes
    if tolerance is not None:
        sampler = sampler.replace(solver=RK45(rtol=tolerance, atol=tolerance))
        denoiser, conditions = _Joined(denoiser, x, columns), conditions | {PROBES: v}
        x = torch.cat([x.to(widest_dtype(x.device)).flatten(1), torch.zeros(len(x), columns, device=x.device)], 1)
    ascent = Ascent(denoiser, x, sampler, labels, conditions, batch_size)
    parts = []
    with torch.no_grad(), evaluation_mode(ascent.denoiser), bar("likelihood", progress) as report:
        for climb in ascent.climbs():
            parts.append(_by_quadrature(climb, v, report) if tolerance is None else _jointly(climb, columns, report))
    top = float(ascent.levels[-1])
    latents, logs = torch.cat([part.latents for part in parts]), torch.cat([part.logs for part in parts])
    prior = -0.5 * (latents**2).flatten(1).sum(1) - latents[0].numel() * (math.log(top) + 0.5 * math.log(2 * math.pi))
    errors = torch.zeros_like(prior) if v is None else logs.std(1) / probes**0.5 if probes > 1 else None
    return LogLikelihood(
        values=prior + logs.mean(1),
        errors=errors,
        latents=latents.reshape(len(latents), *shape),
        nfe=max(part.nfe for part in parts),
        backward=max(part.traces for part in parts) * (latents[0].numel() if v is None else probes),
        sigma_min=float(ascent.levels[0]),
        sigma_max=top,
    )


class _Part(NamedTuple):
    """One batch at the top: latents (b, *), int (d - tr) d ln sigma (b, K) by probe, evaluations, traces taken."""

    latents: Tensor
    logs: Tensor
    nfe: int
    traces: int


def _by_quadrature(climb: Climb, v: Tensor | None, report: Report) -> _Part:
    """The state by the sampler's solver, the trace at its levels."""
    run, levels, v = climb.run, climb.ascent.levels, None if v is None else v[climb.rows]

    def rate(x: Tensor, level: Tensor) -> Tensor:
        s = run.scale(run.time(float(level)))
        return x[0].numel() - denoised_and_trace(run.denoiser, x / s, level, v, run.conditions)[1]

    rates = [rate(climb.x, levels[0])]
    for state in climb.states(climb.x):
        rates.append(rate(state.x, levels[state.i + 1]))
        report(climb.done(state), climb.total(state))
    weights = quadrature_weights(levels.log().tolist())
    logs = torch.tensordot(weights.to(climb.x), torch.stack(rates), 1)
    latents = state.x / (run.scale(state.t) * state.sigma)
    return _Part(latents, logs, run.nfe + len(rates), len(rates))


def _jointly(climb: Climb, columns: int, report: Report) -> _Part:
    """The state and the integral as one, by the adaptive solver."""
    for state in climb.states(climb.x):
        report(climb.done(state), climb.total(state))
    joined = state.x / climb.run.scale(state.t)
    return _Part(joined[:, :-columns] / state.sigma, joined[:, -columns:], climb.run.nfe, climb.run.nfe)


class _Joined(Denoiser):
    """The system of x and the integrals l of (d - tr dD/dx) d ln sigma, as the denoiser of a state (x, l).

    dl/dsigma = (l - D_l)/sigma with D_l = l - (d - tr): Eq. 4, so that a solver need not know.
    """

    def __init__(self, denoiser: Denoiser, x: Tensor, columns: int) -> None:
        super().__init__()
        self.denoiser, self.inner, self.columns = denoiser, tuple(x.shape[1:]), columns
        self.shape, self.label_dim = (x[0].numel() + columns,), denoiser.label_dim
        self.sigma_min, self.sigma_max = denoiser.sigma_min, denoiser.sigma_max

    def round_sigma(self, sigma: Tensor) -> Tensor:
        return self.denoiser.round_sigma(sigma)

    def denoise(self, x: Tensor, sigma: Tensor, **conditions: Any) -> Tensor:
        v = conditions.pop(PROBES)
        flat, integral = x[:, : -self.columns], x[:, -self.columns :]
        D, trace = denoised_and_trace(self.denoiser, flat.reshape(-1, *self.inner), sigma, v, conditions)
        return torch.cat([D.flatten(1), integral - (flat.shape[1] - trace)], 1)


def denoised_and_trace(
    denoiser: Denoiser, x: Tensor, sigma: Tensor, v: Tensor | None, conditions: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    """D (B, *), and v^T (dD/dx) v (B, K) for probes v (B, K, d); the trace itself (B, 1) when v is None, by d products.

    Reverse mode only: attention has no forward mode on the CPU. Raises ValueError where D has no derivative.
    """
    with torch.inference_mode(False), torch.enable_grad():
        x = x.detach().clone().requires_grad_()
        D = denoiser(x, sigma, **conditions)
        if not D.requires_grad:
            raise ValueError(
                "denoiser: its answer has no derivative by x; the likelihood needs one. Does it run under no_grad, or "
                "detach?"
            )
        d = x[0].numel()
        if v is None:
            total = x.new_zeros(len(x))
            for i in range(d):
                unit = torch.zeros_like(D).flatten(1)
                unit[:, i] = 1
                total = total + _product(D, x, unit)[:, i]
            return D.detach(), total[:, None]
        v = v.to(x.device, D.dtype)
        columns = [(v[:, k] * _product(D, x, v[:, k])).sum(1) for k in range(v.shape[1])]
    return D.detach(), torch.stack(columns, 1)


def _product(D: Tensor, x: Tensor, v: Tensor) -> Tensor:
    """The vector-Jacobian product v^T dD/dx (B, d), sample by sample."""
    return torch.autograd.grad(D, x, v.reshape(D.shape), retain_graph=True)[0].flatten(1)


def quadrature_weights(u: Sequence[float]) -> Tensor:
    """Weights (n,) with sum w_i f(u_i) = the integral of f's piecewise cubics through points u (n,) in order.

    Parabolas in the intervals at the ends. A neighbour much nearer than the interval is long is left out: the
    polynomial would swing.
    """
    weights = torch.zeros(len(u), dtype=torch.float64)
    for i in range(len(u) - 1):
        near = STEEP * (u[i + 1] - u[i])
        nodes = [i, i + 1]
        if i + 2 < len(u) and u[i + 2] - u[i + 1] > near:
            nodes.append(i + 2)
        if i > 0 and u[i] - u[i - 1] > near:
            nodes.append(i - 1)
        for j, w in zip(nodes, adams_weights(tuple(u[j] for j in nodes), u[i + 1]), strict=True):
            weights[j] += w
    return weights


def _probes(x: Tensor, probes: int, trace: Trace, seed: int) -> Tensor:
    """Probes (B, K, d) float32; number k of row j depends on (seed, k, j) alone."""
    d = x[0].numel()
    rows = np.empty((len(x), probes, d), dtype=np.float32)
    for j in range(len(x)):
        for k in range(probes):
            generator = keyed(seed, Stream.PROBE, k, j)
            signs = trace == "rademacher"
            rows[j, k] = 2.0 * generator.integers(0, 2, d) - 1 if signs else generator.standard_normal(d)
    return torch.from_numpy(rows)


def _check(probes: int, trace: str, tolerance: float | None) -> None:
    require(trace in get_args(Trace), unknown("trace", trace, get_args(Trace)))
    require(probes >= 1, f"probes: got {probes}; expected at least 1")
    require(tolerance is None or 0 < tolerance < 1, f"tolerance: got {tolerance}; expected a number such as 1e-5")


def bits_per_dim(
    denoiser: Denoiser | Callable[..., Tensor],
    data: DataLike,
    sampler: Sampler | Design = DEFAULT,
    *,
    levels: int | None = None,
    seed: int = 0,
    **options: Any,
) -> BitsPerDim:
    """The negative log likelihood of a data set in bits per dimension: how well a model would compress it.

    Images hold discrete levels k, of which a density knows nothing, so they are dequantised: uniform noise fills the
    interval around each level, x = -1 + 2 (k + u - 1/2) / (levels - 1), u in [0, 1), of width w = 2 / (levels - 1); for
    256 levels x = (k + u - 1/2) / 127.5 - 1. The mean over u of ln p(x) + d ln w is a lower bound of the logarithm of
    the model's probability P of the image (Theis et al. 2016), so that

        bits / dim = -log2 p(x; sigma_min) / d - log2 w  >=  -log2 P(k) / d        (in the mean over u).

    Other data are taken as they are: that is -log2 of the density, below 0 where it is large; it depends on the unit.

    Args:
        denoiser: a Denoiser, or any function (x, sigma, **conditions) -> D. A class-conditional one is asked with the
            labels of the data.
        data: the samples, as `ed.data.dataset_of` takes them; a part of them is `data.subset(...)`.
        sampler: as for `log_likelihood`.
        levels: of the data, evenly spaced from -1 to 1; None takes 256 for images, and a density for other data.
        seed: of the dequantisation and the probes.
        options: what else `log_likelihood` takes: probes, trace, tolerance, batch_size, progress, conditions.

    Raises:
        ValueError: for data that are not on these levels, or without the labels that the model asks for; and as
            `log_likelihood` does.
    """
    denoiser = as_denoiser(denoiser)
    data = dataset_of(data)
    x, labels = data.batch(range(len(data)))
    levels = 256 if levels is None and data.is_image else levels
    require(
        not denoiser.label_dim or labels is not None,
        "data: got none with labels; the model has classes, whose likelihood is p(x | label)",
    )
    offset = 0.0
    if levels is not None:
        x, offset = dequantised(data, x, levels, seed), math.log2((levels - 1) / 2)
    found = log_likelihood(denoiser, x, sampler, labels=labels if denoiser.label_dim else None, seed=seed, **options)
    each = offset - found.values / (x[0].numel() * math.log(2))
    error = None if len(x) == 1 else float(each.std() / len(x) ** 0.5)
    return BitsPerDim(float(each.mean()), error, len(x), levels, each, found)


def dequantised(data: Dataset, x: Tensor, levels: int, seed: int) -> Tensor:
    """Samples x (B, *) of these levels with uniform noise within them, float64; row j's depends on (seed, j) alone."""
    require(levels >= 2, f"levels: got {levels}; expected at least 2")
    require(levels <= 256 or not data.is_image, f"levels: got {levels}; images have 256 at most")
    k = ((x.double() + 1) / 2 * (levels - 1)).round()
    centres = 2 * k / (levels - 1) - 1
    written = from_uint8(to_uint8(centres), torch.float64) if data.is_image else centres
    off = (written - x.double()).abs().max() + (k.clamp(0, levels - 1) - k).abs().max()
    require(
        bool(off < 1e-5),
        f"levels: got {levels}, but the data are not on {levels} even levels from -1 to 1; expected their number"
        + (", 256 for any image" if data.is_image else ", or None for a density"),
    )
    u = [keyed(seed, Stream.DEQUANTISE, 0, j).random(tuple(x.shape[1:])) for j in range(len(x))]
    return centres + (torch.from_numpy(np.stack(u)).to(x.device) - 0.5) * (2 / (levels - 1))
