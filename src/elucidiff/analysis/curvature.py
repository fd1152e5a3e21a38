"""How straight the paths of a schedule and scaling are (EDM paper, Section 3 and Figure 3).

The exact solution in unscaled units x_hat = x / s is the same for every design; what differs is the curve (t, s x_hat)
that a solver has to follow. Three numbers say how far it is from a straight line:

- turning: the angle through which its tangent turns, summed along the path, in degrees;
- stretch: its length over that of its chord, less 1;
- jump error: what Euler's step does wrong when it halves sigma, relative to the noise that it removes, sigma / 2.

The first two are geometry, in a picture where time runs from 0 to 1 and the RMS displacement per dimension is 1, so
that the chord is a diagonal: units of time and of x drop out, and so does the number of dimensions, but not
a nonlinear change of time, which is the design's choice and what is measured. The third is in unscaled units, between
the same levels for every design: it is what a solver feels. Under s = 1, sigma = t the paths of data in one
point are straight lines, and all three are 0.

The paper's claim that this choice is the straightest is one about data: for N(0, I) the states of VP stand still. By
turning and stretch it holds for mixtures and for digits, exact and learned. By jump errors it holds against VE, but
not always against VP, which gains from data whose variance is 1, and at levels below the width of a smooth
density, where the path is a line in sigma^2.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..component import require
from ..denoiser import as_denoiser
from ..design import EDM, VE, VP, Design
from ..sampler import Sampler, sampler_of
from ..solvers.clock import Clock, Moment
from .exact_path import ExactPath, Labels, Model, exact_path, geometric_levels, rms

STILL = 1e-3  # a way shorter than this part of the state is none: what is left of it is the solution's error
PAPER = {"VP": VP, "VE": VE, "EDM": EDM}
FEW = range(16)


@dataclass(frozen=True)
class Straightness:
    """One design's paths between the levels of a Curvature.

    turning: degrees; stretch: length over chord, less 1; both are means over samples. jump_error: RMS of `jumps`.
    turned (L - 1,): degrees between neighbouring levels, mean over samples; their sum is `turning`.
    jumps (K,): RMS error of Euler's step from `jump_sigmas` to half of each, over the half.
    landing (L,): RMS distance in units of the data between the sample and where the tangent at each level meets
    t = 0; with s = 1, sigma = t that is |D - x(0)|.
    """

    name: str
    turning: float
    stretch: float
    jump_error: float
    turned: Tensor
    jumps: Tensor
    landing: Tensor

    def to_dict(self) -> dict[str, Any]:
        """The numbers as JSON data."""
        return {k: v.tolist() if isinstance(v, Tensor) else v for k, v in self.__dict__.items()}


@dataclass(frozen=True)
class Curvature:
    """The designs in the order asked for, on the same paths at levels sigmas (L,).

    jump_sigmas (K,): the levels from which the jumps start. reference_error: RMS error of the paths at 0.
    """

    sigmas: Tensor
    jump_sigmas: Tensor
    designs: tuple[Straightness, ...]
    reference_error: float

    def straightest(self, by: str = "turning") -> str:
        """The name of the design with the smallest "turning", "stretch" or "jump_error"."""
        require(by in NUMBERS, f"by: got {by!r}; expected one of {', '.join(NUMBERS)}")
        return min(self.designs, key=lambda one: float(getattr(one, by))).name

    def to_dict(self) -> dict[str, Any]:
        """The numbers as JSON data."""
        return {
            "sigmas": self.sigmas.tolist(),
            "jump_sigmas": self.jump_sigmas.tolist(),
            "reference_error": self.reference_error,
            "designs": [one.to_dict() for one in self.designs],
        }


NUMBERS = ("turning", "stretch", "jump_error")


def curvature(
    denoiser: Model,
    designs: Mapping[str, Sampler | Design] = PAPER,
    *,
    seeds: Sequence[int] | None = FEW,
    latents: Tensor | None = None,
    shape: Sequence[int] | None = None,
    labels: Labels = None,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    per_halving: int = 6,
    progress: bool = False,
    **conditions: Any,
) -> Curvature:
    """How straight the exact paths of some seeds are under the schedules and scalings of some designs.

    Only schedule and scaling of a design count. The levels halve every `per_halving` steps, from sigma_max to the last
    one above sigma_min, both narrowed to what the denoiser supports: the same for all designs. Costs 6 evaluations a
    level, 6 per_halving log2(sigma_max / sigma_min) in all, for all seeds at once, and nothing more a design.

    Raises ValueError for a range of less than two halvings, and as `sample` does.
    """
    denoiser = as_denoiser(denoiser)
    require(len(designs) > 0, "designs: got none; expected a name and a design each")
    require(per_halving >= 1, f"per_halving: got {per_halving}; expected at least 1")
    low, high = (float(s) for s in geometric_levels(denoiser, sigma_min, sigma_max, 2).flip(0))
    halvings = math.floor(math.log2(high / low) + 1e-9)
    require(halvings >= 2, f"noise range: got {low:g} to {high:g}; expected a factor of 4 at least")
    sigmas = high * 2.0 ** -(torch.arange(halvings * per_halving + 1, dtype=torch.float64) / per_halving)
    seeds = None if latents is not None else seeds
    path = exact_path(
        denoiser, sigmas, seeds=seeds, latents=latents, shape=shape, labels=labels, progress=progress, **conditions
    )
    measured = tuple(_measured(name, sampler_of(one), path, per_halving) for name, one in designs.items())
    return Curvature(sigmas, sigmas[:-per_halving], measured, path.error)


def _measured(name: str, sampler: Sampler, path: ExactPath, per_halving: int) -> Straightness:
    moments = _moments(sampler, path.sigmas)
    x, slopes = scaled(path, moments)
    turned, stretch = _geometry(x, slopes, torch.tensor([m.t for m in moments], dtype=torch.float64))
    jumps = _jump_errors(x, slopes, moments, path.x, per_halving)
    landing = [rms((x[i] - m.t * slopes[i]) - path.x[-1]) for i, m in enumerate(moments)]
    return Straightness(
        name,
        turning=float(turned.sum(0).mean()),
        stretch=stretch,
        jump_error=rms(jumps),
        turned=turned.mean(1).cpu(),
        jumps=jumps,
        landing=torch.tensor(landing, dtype=torch.float64),
    )


def _moments(sampler: Sampler, sigmas: Tensor) -> list[Moment]:
    clock = Clock(sampler.schedule, sampler.scaling)
    return [clock.at(t) for t in clock.grid(sigmas)]


def scaled(path: ExactPath, moments: Sequence[Moment]) -> tuple[Tensor, Tensor]:
    """The states s x_hat of a design at the path's levels above 0, and their derivatives by its time (Eq. 4)."""
    x = torch.stack([m.s * x for m, x in zip(moments, path.x, strict=False)])
    terms = zip(moments, x, path.denoised, strict=True)
    return x, torch.stack([m.x_weight * state - m.D_weight * D for m, state, D in terms])


def _geometry(x: Tensor, slopes: Tensor, t: Tensor) -> tuple[Tensor, float]:
    """Turning in degrees between neighbouring levels (L - 1, B), and the mean stretch.

    Of the curves (tau, x / X), tau = (t - t_last) / T; x counts by its RMS over dimensions.
    """
    x, slopes, d = x.flatten(2), slopes.flatten(2), x[0, 0].numel()
    X, T = rms(x[0] - x[-1]), float(t[0] - t[-1])
    if X / rms(x[0]) <= STILL:
        return x.new_zeros(x.shape[0] - 1, x.shape[1]), 0.0
    pieces = (x[1:] - x[:-1]) / (X * d**0.5)
    lengths = torch.hypot(((t[1:] - t[:-1]) / T).to(x)[:, None], pieces.norm(dim=2)).sum(0)
    chords = torch.hypot(x.new_ones(()), (x[0] - x[-1]).norm(dim=1) / (X * d**0.5))
    rise = slopes * (T / (X * d**0.5))
    tangents = torch.cat([torch.ones_like(rise[..., :1]), rise], 2)
    tangents = tangents / tangents.norm(dim=2, keepdim=True)
    half = (tangents[1:] - tangents[:-1]).norm(dim=2) / 2  # sin of half the angle: arccos loses small angles
    return (2 * half.clamp(max=1).asin()).rad2deg(), float((lengths / chords).mean()) - 1


def _jump_errors(x: Tensor, slopes: Tensor, moments: Sequence[Moment], exact: Tensor, m: int) -> Tensor:
    """Euler's step from each level to the one m later: unscaled RMS error over the noise it removes, (L - m,)."""
    errors = []
    for i in range(len(moments) - m):
        here, there = moments[i], moments[i + m]
        landed = (x[i] + (there.t - here.t) * slopes[i]) / there.s
        errors.append(rms(landed - exact[i + m]) / (here.sigma - there.sigma))
    return torch.tensor(errors, dtype=torch.float64)
